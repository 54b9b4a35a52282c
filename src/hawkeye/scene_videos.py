"""Drawn videos with exact truth: every box, identity and count is known by construction.

For tests and benchmarks of tracking, counting and resolution policies. The objects are those of `scenes`, so a detector
trained there sees them. Each actor is led along a path by the middle of its box's lower edge, which is the point that
counts, so true counts come from the paths alone: no tracker, no frames and no boxes have a part in them.

Labels are as in `scenes`: a box holds all of the object that lies inside the picture; an object that shows less than
30 % of its pixels carries no label, as a perfect detector would miss it. What leaves the picture and comes back is a
new identity. `scene_plans.make_video` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import storage_errors, write_bytes
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.progress import progress
from hawkeye.scenes import MIN_VISIBLE, NAMES, draw_background, draw_object
from hawkeye.track.rules import Line, Rule, Zone

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Counts = dict[str, dict[str, dict[str, int]]]  # rule, class, "in" | "out" | "enter" | "exit"

_NOISE = 4  # grey levels


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """One object on its way.

    Attributes:
        kind: class index.
        size: longest side in pixels at scale 1.
        times: (K,) seconds, rising; it exists between the first and the last.
        path: (K, 2) where the middle of its box's lower edge is then, in pixels; straight in between.
        scale: (K,) of the size, straight in between.
        tremble_px: its box lies up to this far beside the path, in each direction, anew in each frame.
    """

    kind: int
    size: float
    times: Array
    path: Array
    scale: Array
    tremble_px: float = 0.0

    def at(self, time_s: float) -> tuple[float, float, float]:
        """x, y and scale at a moment."""
        x, y = (float(np.interp(time_s, self.times, self.path[:, i])) for i in (0, 1))
        return x, y, float(np.interp(time_s, self.times, self.scale))

    def within(self, seconds: float) -> Actor:
        """The part of its way between 0 and `seconds`."""
        begin, end = max(0.0, float(self.times[0])), min(seconds, float(self.times[-1]))
        inner = self.times[(self.times > begin) & (self.times < end)]
        times = np.concatenate([[begin], inner, [max(begin, end)]])
        x, y, scale = (np.interp(times, self.times, a) for a in (*self.path.T, self.scale))
        return replace(self, times=times, path=np.stack([x, y], 1), scale=scale)


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame.

    Attributes:
        index: number in the video; dropped frames are missing numbers.
        time_s: index / fps.
        image: (H, W, 3) uint8 BGR, or None where only the truth was asked for.
        truth: what can be seen: exact boxes, score 1, classes, and identities as `track_id`.
    """

    index: int
    time_s: float
    image: Picture | None
    truth: Detections


@dataclass(frozen=True, slots=True, eq=False)
class SceneVideo:
    """A drawn video; frames are computed when they are asked for, each time the same.

    Attributes:
        name: scenario and seed.
        size: width and height in pixels.
        fps: frames per second.
        indices: numbers of the frames that there are.
        rules: lines and zones, in pixels.
        actors: far ones first; identities are 1, 2, … in this order.
        pillars: (P, 4) boxes in front of everything, in pixels.
        seed: of everything random.
    """

    name: str
    size: tuple[int, int]
    fps: float
    indices: tuple[int, ...]
    rules: tuple[Rule, ...]
    actors: tuple[Actor, ...]
    pillars: NDArray[np.int64]
    seed: int
    names: tuple[str, ...] = field(default=NAMES)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def seconds(self) -> float:
        """Length, dropped frames included."""
        return (self.indices[-1] + 1) / self.fps

    def frames(self, *, draw: bool = True) -> Iterator[VideoFrame]:
        """Every frame in order; without `draw` only the truth, which is many times faster."""
        width, height = self.size
        rng = np.random.default_rng([self.seed, 1])
        ground: Picture | None = None
        if draw:
            ground = np.clip(draw_background(rng, max(self.size))[:height, :width], 0, 255).astype(np.uint8)
            colour = rng.integers(30, 120, 3)
            bank = rng.integers(0, _NOISE + 1, (2, height + 64, width + 64, 3), np.uint8)
        sprites = [_Sprite(actor, self.seed, number) for number, actor in enumerate(self.actors)]
        owner = np.empty((height, width), np.int16)  # which actor each pixel shows
        for index in self.indices:
            time_s = index / self.fps
            owner[:] = -1
            image = None if ground is None else ground.copy()
            placed = [(number, sprite.stamp_(owner, image, index, time_s)) for number, sprite in enumerate(sprites)]
            for x1, y1, x2, y2 in self.pillars:
                owner[y1:y2, x1:x2] = -1
                if image is not None:
                    image[y1:y2, x1:x2] = colour
            if image is not None:
                dx, dy = np.random.default_rng([self.seed, 2, index]).integers(0, 64, 2)
                for change, noise in zip((cv2.add, cv2.subtract), bank, strict=True):
                    change(image, noise[dy : dy + height, dx : dx + width], dst=image)
            yield VideoFrame(index, time_s, image, self._truth(placed, owner))

    def counts(self) -> Counts:
        """The true counts per rule and class, from the paths alone; each identity once per line and direction."""
        result: Counts = {}
        for rule in self.rules:
            kinds = ("in", "out") if isinstance(rule, Line) else ("enter", "exit")
            by_class = result.setdefault(rule.name, {})
            for actor in self.actors:
                name = self.names[actor.kind]
                if rule.classes is not None and name not in rule.classes:
                    continue
                actor = actor.within(self.seconds)
                for kind in _crossings(actor, rule) if isinstance(rule, Line) else _visits(actor, rule):
                    by_class.setdefault(name, dict.fromkeys(kinds, 0))[kind] += 1
        return result

    def stays(self, zone: Zone) -> list[float]:
        """Seconds that each stay in a zone lasted, shortest first."""
        return sorted(end - start for actor in self.actors for start, end in _stays(actor.within(self.seconds), zone))

    def _truth(self, placed: list[tuple[int, _Place | None]], owner: NDArray[np.int16]) -> Detections:
        seen = []
        for number, place in placed:
            if place is None:
                continue
            x1, y1, x2, y2 = place.box
            if (owner[y1:y2, x1:x2] == number).sum() >= MIN_VISIBLE * place.area:
                seen.append((number, place.box))
        numbers = np.array([number for number, _ in seen], np.int64)
        return Detections(
            np.array([box for _, box in seen], np.float32).reshape(-1, 4),
            np.ones(len(seen), np.float32),
            np.array([self.actors[n].kind for n in numbers], np.int32),
            numbers + 1,
        )


@dataclass(frozen=True, slots=True)
class _Place:
    box: tuple[int, int, int, int]  # inside the picture
    area: int  # pixels of the whole object


class _Sprite:
    """An actor's pixels, cut to its own box, with the sizes that were needed so far."""

    def __init__(self, actor: Actor, seed: int, number: int) -> None:
        self.actor, self.seed, self.number = actor, seed, number
        # Not the ground's own colour there, as that is not known where only the truth is asked for.
        grey = np.full(3, 128, np.float32)
        self.bgr, self.alpha = draw_object(np.random.default_rng([seed, 3, number]), actor.kind, actor.size, grey)
        self._cut: dict[int, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]] = {}

    def stamp_(self, owner: NDArray[np.int16], image: Picture | None, index: int, time_s: float) -> _Place | None:
        """Paint it into `owner`, and into `image` where there is one."""
        actor = self.actor
        if not actor.times[0] <= time_s <= actor.times[-1]:
            return None
        x, y, scale = actor.at(time_s)
        if actor.tremble_px:
            shift = np.random.default_rng([self.seed, 4, self.number, index]).uniform(-1, 1, 2) * actor.tremble_px
            x, y = x + float(shift[0]), y + float(shift[1])
        bgr, alpha, solid = self._at(scale)
        height, width = owner.shape
        rows, columns = solid.shape
        left, top = round(x - columns / 2), round(y) - rows
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
        if x1 >= x2 or y1 >= y2:
            return None
        part = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        inside = solid[part]
        xs, ys = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        if not len(xs):
            return None
        owner[y1:y2, x1:x2][inside] = self.number
        if image is not None:
            region = image[y1:y2, x1:x2]
            region[:] = region + (bgr[part] - region) * alpha[part][..., None]
        box = (int(xs[0]) + x1, int(ys[0]) + y1, int(xs[-1]) + 1 + x1, int(ys[-1]) + 1 + y1)
        return _Place(box, int(solid.sum()))

    def _at(self, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        side = max(8, round(len(self.alpha) * scale))
        if side not in self._cut:
            bgr, alpha = self.bgr, self.alpha
            if side != len(alpha):
                how = cv2.INTER_AREA if side < len(alpha) else cv2.INTER_LINEAR
                bgr, alpha = (cv2.resize(layer, (side, side), interpolation=how) for layer in (bgr, alpha))
            solid = alpha > 0.5
            ys, xs = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            cut = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
            self._cut[side] = (bgr[cut], alpha[cut], solid[cut])
        return self._cut[side]


def _crossings(actor: Actor, line: Line) -> set[str]:
    """In which directions a path crosses a line."""
    (ax, ay), (bx, by) = line.start, line.end
    found = set()

    def hand(x: float, y: float) -> bool:
        return (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0  # the right one

    for (px, py), (qx, qy) in zip(actor.path[:-1].tolist(), actor.path[1:].tolist(), strict=True):
        if hand(px, py) == hand(qx, qy):
            continue
        sides = [(qx - px) * (y - py) - (qy - py) * (x - px) > 0 for x, y in (line.start, line.end)]
        if sides[0] != sides[1]:  # the line's ends lie on both sides of the path
            found.add("in" if hand(qx, qy) else "out")
    return found


def _stays(actor: Actor, zone: Zone) -> list[tuple[float, float]]:
    """From when to when a path lies inside a polygon, to the hundredth of a second."""
    polygon = np.array(zone.points, np.float32)
    times = np.arange(actor.times[0], actor.times[-1] + 1e-9, 0.01)
    points = np.stack([np.interp(times, actor.times, actor.path[:, i]) for i in (0, 1)], 1)
    inside = [cv2.pointPolygonTest(polygon, (float(x), float(y)), False) >= 0 for x, y in points]
    edges = np.flatnonzero(np.diff(np.array([False, *inside, False], np.int8)))
    return [(float(times[i]), float(times[j - 1])) for i, j in zip(edges[::2], edges[1::2], strict=True)]


def _visits(actor: Actor, zone: Zone) -> list[str]:
    return [kind for _ in _stays(actor, zone) for kind in ("enter", "exit")]


def write_video(video: SceneVideo, path: Path) -> Path:
    """Draw a video into an MP4 file, and its truth beside it as `<name>.txt` in MOT Challenge's format.

    A file cannot tell of dropped frames: it holds the others, one after another.

    Raises:
        DataError: OpenCV cannot encode MP4.
        StorageError: the disk refused.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), video.fps, video.size)
    if not writer.isOpened():
        raise DataError(f"cannot write {path}", got="OpenCV cannot encode it", expected="a path that ends in .mp4")
    rows: list[str] = []
    try:
        with progress(f"drawing {video.name}", len(video)) as task:
            for number, frame in enumerate(video.frames(), 1):
                if frame.image is not None:
                    writer.write(frame.image)
                rows += mot_rows(number, frame.truth)
                task.advance()
    finally:
        writer.release()
    write_bytes(path.with_suffix(".txt"), "".join(rows).encode())
    return path


def mot_rows(frame: int, found: Detections) -> list[str]:
    """Detections of one frame (counted from 1) as lines of MOT Challenge's format: frame, id, x, y, w, h, score."""
    ids = [-1] * len(found) if found.track_id is None else found.track_id.tolist()
    return [
        f"{frame},{i},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.4f},-1,-1,-1\n"
        for i, (x1, y1, x2, y2), score in zip(ids, found.xyxy.tolist(), found.score.tolist(), strict=True)
    ]
