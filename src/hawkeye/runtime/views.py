"""Looking at a picture in parts: which windows, and one result out of what they show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections
from hawkeye.geometry import Size, iou_matrix

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in picture pixels
_ENLARGED = 1.5  # what only a larger scale shows is lost again in the next look at another one, and counts anew
_ROUNDING = 2  # pixels that a window's edges may be moved outwards by
_OVERLAP = 0.2  # of tiles, as a fraction of their side
_NEAR_PX = 64  # an object this large in network pixels is found as surely as a larger one
_SAME = 0.5  # overlap of two boxes that two views have of one object
_STRIP = 0.25  # share of a piece that lies in the strip that two tiles share


def tiles(hw: tuple[int, int], side: int) -> list[Window]:
    """Overlapping windows of at most `side` pixels that cover a picture (H, W), at least two along its longer side."""
    longer = max(hw)
    side = min(side, int(np.ceil(longer / (2 - _OVERLAP))))
    starts = []
    for length in hw:
        count = 1 if length <= side else int(np.ceil((length - side * _OVERLAP) / (side * (1 - _OVERLAP))))
        starts.append([round(i * max(0, length - side) / max(1, count - 1)) for i in range(count)])
    return [(x, y, min(x + side, hw[1]), min(y + side, hw[0])) for y in starts[0] for x in starts[1]]


def cover(
    boxes: NDArray[np.float32], hw: Size, *, sizes: tuple[int, int], costs: Mapping[float, float], at_most: float
) -> list[Window] | None:
    """The cheapest windows found that hold all boxes (N, 4), shown at least as large as in the whole picture.

    A window is at most as wide and high as shows its contents at the scale of the whole picture in the large network;
    boxes that are large enough stand for wider ones. Each window begins at the first box that is left and holds as many
    as it can: from the left, from the top, and in flat bands along the picture. The cheapest of the three is taken.

    Args:
        sizes: input sides of the large and the small network in pixels.
        costs: of a window by its shape, which is its shorter side over its longer one; 1 is among them.
        at_most: what all windows together may cost.

    Returns:
        None where that is not enough.
    """
    boxes = np.clip(boxes, 0, np.array([hw[1], hw[0]] * 2, np.float32))
    best, least = None, at_most
    along = 0 if hw[1] >= hw[0] else 1
    for axis, flat in ((0, 1.0), (1, 1.0), (along, min(costs))):
        windows = _sweep(boxes, hw, axis, flat, sizes, costs, least)
        if windows is not None and (best is None or cost_of(windows, costs) < least):
            best, least = windows, cost_of(windows, costs)
    return best


def cost_of(windows: Sequence[Window], costs: Mapping[float, float]) -> float:
    """What windows cost, by their shapes."""
    total = 0.0
    for x1, y1, x2, y2 in windows:
        shape = min(x2 - x1, y2 - y1) / max(x2 - x1, y2 - y1)
        total += costs[min(share for share in costs if shape <= share)]
    return total


def _sweep(
    boxes: NDArray[np.float32],
    hw: Size,
    axis: int,
    flat: float,
    sizes: tuple[int, int],
    costs: Mapping[float, float],
    at_most: float,
) -> list[Window] | None:
    full, crop = sizes
    side = crop * max(1.0, max(hw) / full)
    across = flat * side - _ROUNDING if flat < 1 else side
    large = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) * crop / max(hw) >= _NEAR_PX
    windows: list[Window] = []
    left = np.ones(len(boxes), bool)
    while left.any():
        if cost_of(windows, costs) + min(costs.values()) > at_most:
            return None
        todo = boxes[left]
        first = todo[:, axis].min()
        along = todo[:, axis + 2] <= first + side
        start = todo[:, 1 - axis][:, None]  # (n, 1): where the window may begin across
        fits: NDArray[np.bool_] = along & (todo[:, 1 - axis] >= start) & (todo[:, 3 - axis] <= start + across)
        fits = fits[fits[:, int(todo[:, axis].argmin())]]  # those that hold the first one
        best = fits[int(fits.sum(axis=1).argmax())] if len(fits) else np.zeros(len(todo), bool)
        longest = side
        if large[left].sum() > best.sum():
            best, longest = large[left], float(max(hw))
        if not best.any():
            return None
        inside = todo[best]
        limits = max(float(crop), side / _ENLARGED), longest
        windows.append(_window(inside[:, :2].min(axis=0), inside[:, 2:].max(axis=0), limits, hw, costs))
        left[left] = ~best
        left &= ~held_by(boxes, windows[-1:], hw)[:, 0]  # it may be larger than its contents
    return windows if cost_of(windows, costs) <= at_most else None


def held_by(boxes: NDArray[np.float32], windows: Sequence[Window], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each box (N, 4), as far as it lies inside the picture, lies wholly in each window, as (N, M)."""
    boxes = np.clip(boxes, 0, np.array([hw[1], hw[0]] * 2, np.float32))[:, None]
    limits = np.array(windows, np.float32).reshape(1, -1, 4)
    held: NDArray[np.bool_] = np.all((boxes[..., :2] >= limits[..., :2]) & (boxes[..., 2:] <= limits[..., 2:]), axis=2)
    return held


def _window(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    limits: tuple[float, float],
    hw: Size,
    shapes: Iterable[float],
) -> Window:
    """The flattest window along the picture around a box, moved into the picture, and cut where that is too small.

    Args:
        low, high: corners of the box.
        limits: of the window's longer side in pixels; the box fits into a square of the second.
        shapes: the shorter side over the longer one; 1 is among them.
    """
    content = (high - low).tolist()
    across = 1 if hw[1] >= hw[0] else 0
    side = max(limits[0], *content)
    sides = [side, side]
    for shape in sorted(shapes):
        longer = max(limits[0], content[1 - across], (content[across] + _ROUNDING) / shape)
        if shape < 1 and longer <= limits[1]:
            sides[across], sides[1 - across] = shape * longer - _ROUNDING, longer
            break
    ends = []
    for axis, length in ((0, hw[1]), (1, hw[0])):
        start = float(low[axis] + high[axis] - sides[axis]) / 2
        begin = min(max(0.0, start), max(0.0, length - sides[axis]))
        ends.append((int(begin), min(length, int(np.ceil(begin + sides[axis])))))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def merge_views(
    views: Sequence[Detections],
    windows: Sequence[Window],
    hw: tuple[int, int],
    *,
    agnostic: bool = False,
    pieces: bool = False,
) -> tuple[Detections, NDArray[np.intp]]:
    """One result from looks at parts of a picture (H, W), best score first.

    Two views may show the same object: the weaker of two boxes that overlap by half is dropped, but never one of two
    boxes of one view, whose own suppression has spoken. A box at a window's edge inside the picture may be cut. It is
    left out where a whole box of its class holds most of it; the rest is left out too, or with `pieces` put together
    where pieces overlap.

    Args:
        views: detections of each window, in picture pixels.
        windows: what each view saw.
        agnostic: boxes of different classes may be the same object too.

    Returns:
        The detections, and the number of the view that each comes from.
    """
    xyxy = np.concatenate([view.xyxy for view in views]) if views else np.zeros((0, 4), np.float32)
    if not len(xyxy):
        return Detections.empty(), np.zeros(0, np.intp)
    score = np.concatenate([view.score for view in views])
    class_id = np.concatenate([view.class_id for view in views])
    source = np.repeat(np.arange(len(views)), [len(view) for view in views])
    window = np.array(windows, np.float32)[source]
    inner = window != (0, 0, hw[1], hw[0])  # edges that are not the picture's own
    slack = np.maximum(1.5, (window[:, 2:] - window[:, :2]).max(axis=1, keepdims=True) * 0.005)
    cut = (inner & (np.abs(xyxy - window) <= slack)).any(axis=1)
    same = agnostic | (class_id[:, None] == class_id[None])
    twice = same & (source[:, None] != source[None]) & (iou_matrix(xyxy, xyxy) > _SAME)
    kept: list[int] = []
    by_score = np.argsort(-score, kind="stable")
    for index in by_score[~cut[by_score]].tolist():
        if not twice[index, kept].any():
            kept.append(index)
    if pieces and cut.any():
        kept = _with_pieces_(xyxy, kept, by_score[cut[by_score]].tolist(), same)
        kept.sort(key=lambda index: -score[index])
    return Detections(xyxy[kept], score[kept], class_id[kept]), source[kept]


def _with_pieces_(xyxy: NDArray[np.float32], whole: list[int], cut: list[int], same: NDArray[np.bool_]) -> list[int]:
    """Indices of whole boxes and of cut ones that none of them holds; cut ones that overlap are joined in place."""
    held = _held(xyxy, xyxy)
    joined: list[int] = []
    for piece in cut:
        if (held[piece, whole] * same[piece, whole] > 0.5).any():
            continue
        share = np.maximum(_held(xyxy[[piece]], xyxy[joined])[0], _held(xyxy[joined], xyxy[[piece]])[:, 0])
        share *= same[piece, joined]
        if len(joined) and share.max() > _STRIP:
            partner = joined[int(share.argmax())]
            xyxy[partner] = [*np.minimum(xyxy[partner, :2], xyxy[piece, :2]),
                             *np.maximum(xyxy[partner, 2:], xyxy[piece, 2:])]  # fmt: skip
        else:
            joined.append(piece)
    return whole + joined


def _held(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of each box of `a` (N, 4) that lies inside each of `b` (M, 4), as (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    share: NDArray[np.float32] = (
        np.clip(high - low, 0, None).prod(axis=2) / np.maximum((a[:, 2:] - a[:, :2]).prod(axis=1), 1e-9)[:, None]
    )
    return share
