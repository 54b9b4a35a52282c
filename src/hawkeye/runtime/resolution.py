"""How much of a frame the network sees, and how large: one size, tiles for small targets, or crops where it matters.

What decides whether an object is found is its size in network pixels: a 1080p frame letterboxed to 640 shows it at a
third of its size, and so does a crop of 960 pixels at 320, for less than half of the cost. And where no pixel has
changed since the network last looked, the answer has not changed either. `Adaptive` builds on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import Artifact
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError
from hawkeye.geometry import PAD_VALUE, Size, iou_matrix
from hawkeye.records import RuntimeName
from hawkeye.runtime.changes import Changes
from hawkeye.runtime.detector import Detector, check_picture
from hawkeye.runtime.views import Window, cover, held_by, merge_views, tiles

FULL, CROP = 640, 320
EVERY = 25  # frames from one full look to the next
_SCENE = 0.35  # share of the picture that changes when the scene does
_SLOW = 0.5  # way from frame to frame, as a share of an object's shorter side, that its track is trusted with
_PROVEN = 3  # frames that a track must have been expected in before its word stands for a look
_AT_MOST = 48  # regions that are planned for; a frame with more is looked at whole


class Looker(Protocol):
    """What policies are built on; `Detector` is one."""

    names: tuple[str, ...]
    agnostic: bool
    timings: dict[str, float]

    def prepare(self, source_hw: Size) -> Size:
        """Make ready for pictures of that height and width; from any thread."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Detections in one picture (H, W, 3) of uint8 BGR, in its pixels."""
        ...


class Policy(Protocol):
    """A picture in, detections in its pixels out.

    Attributes:
        timings: milliseconds of the last frame: `pre`, `network` and `post`, summed over all looks.
    """

    timings: dict[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by index."""
        ...

    def prepare(self, source_hw: Size) -> object:
        """Make ready for pictures of that height and width, so that the first need not wait; from any thread."""
        ...

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None = None) -> Detections:
        """Detect in one picture (H, W, 3) of uint8 BGR; `expected` is where a tracker expects objects in it."""
        ...

    def describe(self) -> str:
        """One line for people: what it does, and what it has done so far."""
        ...


def make_policy(text: str, model: str | Path | Artifact, *, conf: float, iou: float, threads: int,
                runtime: RuntimeName | None = None, **options: Any) -> Policy:  # fmt: skip
    """The policy that `text` names: `fixed:SIZE`, `adaptive`, `adaptive:FRAMES` or `tiles`.

    `Adaptive` remembers what it saw, so each stream needs one of its own.

    Args:
        model, conf, iou, threads, runtime, options: as `Detector` takes them.

    Raises:
        ConfigError: no such policy.
        ModelError: the model cannot be used, or not at the sizes that the policy needs.
    """
    kind, colon, value = text.strip().lower().partition(":")
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0

    def at(imgsz: int, **others: Any) -> Detector:
        settings = {"conf": conf, "iou": iou, "threads": threads, **options, **others}
        return Detector(model, runtime=runtime, imgsz=imgsz, **settings)

    if kind == "fixed" and number:
        return Fixed(at(number))
    if kind == "adaptive" and (number or not colon):
        # Crops are squares; for what the picture's edge cuts off one of them no other network is worth its memory.
        return Adaptive(at(FULL), at(CROP, rect=False), every=number or EVERY)
    if kind == "tiles" and not colon:
        return Tiles(at(FULL))
    raise ConfigError(f"there is no resolution {text!r}", got=text, expected="fixed:SIZE, adaptive or tiles",
                      mend="try fixed:640, fixed:320, adaptive or tiles")  # fmt: skip


def cost_ms(look: Looker, source_hw: Size, runs: int = 5) -> float:
    """Median milliseconds that one look at a picture of that height and width takes here and now, measured."""
    picture = np.full((*source_hw, 3), PAD_VALUE, np.uint8)
    times = []
    for number in range(runs + 2):
        started = time.perf_counter()
        look(picture)
        if number >= 2:  # the first are slower than all that follow
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


class Fixed:
    """The whole picture at one size."""

    def __init__(self, look: Looker) -> None:
        self._look = look
        self.names = look.names
        self.timings: dict[str, float] = {}
        self.prepare = look.prepare

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None = None) -> Detections:
        """See `Policy`."""
        found = self._look(image)
        self.timings = self._look.timings
        return found

    def describe(self) -> str:
        """See `Policy`."""
        spec = getattr(self._look, "spec", None)
        return f"fixed: the whole picture{f' at {spec.imgsz}' if spec else ''}"


class Tiles:
    """Overlapping tiles at the size of the network, and the whole picture: for far and small targets.

    Slicing as in SAHI (Akyon et al., ICIP 2022). A box that a tile's edge cuts gives way to the whole one that another
    view has; where no view has it whole, its pieces become one box.

    Args:
        look: the detector.
        tile: side of a tile in picture pixels at most; a smaller picture is cut into at least two along its longer
            side, and they are enlarged.
    """

    def __init__(self, look: Looker, *, tile: int = FULL) -> None:
        self._look, self._tile, self._count = look, tile, 0
        self.names = look.names
        self.timings: dict[str, float] = {}

    def prepare(self, source_hw: Size) -> None:
        """See `Policy`."""
        for x1, y1, x2, y2 in ((0, 0, source_hw[1], source_hw[0]), *tiles(source_hw, self._tile)):
            self._look.prepare((y2 - y1, x2 - x1))

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None = None) -> Detections:
        """See `Policy`."""
        check_picture(image)
        hw = (image.shape[0], image.shape[1])
        windows = [(0, 0, hw[1], hw[0]), *tiles(hw, self._tile)]
        views, self.timings = _look_at(self._look, image, windows)
        started = time.perf_counter()
        result, _ = merge_views(views, windows, hw, agnostic=self._look.agnostic, pieces=True)
        self.timings["post"] += (time.perf_counter() - started) * 1e3
        self._count = len(windows) - 1
        return result

    def describe(self) -> str:
        """See `Policy`."""
        return f"tiles of at most {self._tile} pixels and the whole picture; {self._count} tiles in the last one"


class Adaptive:
    """The whole picture now and then; between, small crops around what moves, and nothing for what stands still.

    The whole picture is looked at every `every` frames, when the scene changes, when the picture's size changes, after
    an object was lost, and whenever crops would cost more. Between:

    - An object in whose box nothing has changed keeps its box.
    - An object that a tracker expects close to where it was moves with its track, but never twice in a row.
    - A crop is taken around every other object, stretched to where the tracker expects it, and around each change that
      no object explains: something new may be there.

    Crops come from the full-resolution picture. They are never smaller in scale than the whole picture would be, unless
    all in them is near and large; then even the whole picture is shown at the small size.

    Args:
        full: detector of the large size.
        crop: detector of the small one.
        every: frames from one whole look to the next.
        cost: milliseconds of one look with either at a picture of some size, as `cost_ms` measures them.
        sizes: their input sizes in pixels.

    Attributes:
        costs_ms: of the whole picture and of a crop, once a picture has come.
        crops_at_most: how many cost less than the whole picture.
        frames, full_frames, crops: how many so far.
        windows: what was looked at in the last frame, in picture pixels.
    """

    def __init__(
        self,
        full: Looker,
        crop: Looker,
        *,
        every: int = EVERY,
        cost: Callable[[Looker, Size], float] = cost_ms,
        sizes: tuple[int, int] = (FULL, CROP),
    ) -> None:
        self._full, self._crop, self._every, self._sizes, self._cost = full, crop, every, sizes, cost
        self._measured: dict[Size, tuple[float, float]] = {}  # shared by all copies of this policy
        self.costs_ms, self.crops_at_most = (0.0, 0.0), 0
        self.names, self.prepare = full.names, full.prepare
        self.timings: dict[str, float] = {}
        self.frames, self.full_frames, self.crops = 0, 0, 0
        self.windows: tuple[Window, ...] = ()
        self._hw = (0, 0)
        self._changes: Changes | None = None
        self._since, self._lost = 0, False
        self._seen = Detections.empty()
        self._ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * _PROVEN
        self._coasted: NDArray[np.bool_] = np.zeros(0, bool)  # whether a box of `_seen` came from its track alone

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None = None) -> Detections:
        """See `Policy`."""
        check_picture(image)
        started = time.perf_counter()
        hw = (image.shape[0], image.shape[1])
        self.frames += 1
        self._since += 1
        changed = 1.0
        if self._changes is None or hw != self._hw:
            self._hw, self._changes = hw, Changes(image)
            self._weigh(hw)
        else:
            changed = self._changes.compare(image)
        whole = changed > _SCENE or self._since >= (self._every // 3 if self._lost else self._every)
        plan = None if whole else self._plan(self._changes, expected)
        planned = (time.perf_counter() - started) * 1e3
        everything = (0, 0, hw[1], hw[0])
        if plan is None:
            found, timings = self._full(image), dict(self._full.timings)
            self._changes.looked_at_()
            self._coasted = np.zeros(len(found), bool)
            self._since, self._lost, self.windows = 0, False, (everything,)
            self.full_frames += 1
        else:
            views, timings = _look_at(self._crop, image, plan.windows)
            begun = time.perf_counter()
            found, source = merge_views([*views, plan.still, plan.coasting], [*plan.windows, everything, everything],
                                        hw, agnostic=self._full.agnostic)  # fmt: skip
            self._coasted = source == len(views) + 1
            self._changes.looked_at_(plan.windows)
            nothing = (iou_matrix(plan.fresh, found.xyxy) == 0).all(axis=1)
            dull = plan.fresh[nothing & _inside(plan.fresh, hw)]  # at the edge something may be coming in
            self._changes.ignore_(dull, self.frames + self._every // 2)
            # What has left at the picture's edge is gone; what is missing inside it needs a second look.
            due = plan.due[_inside(plan.due, hw)]
            self._lost |= bool((iou_matrix(due, found.xyxy) < 0.1).all(axis=1).any())
            timings["post"] += (time.perf_counter() - begun) * 1e3
            self.crops += len(plan.windows)
            self.windows = tuple(plan.windows)
        timings["pre"] += planned
        self._seen, self.timings = found, timings
        return found

    def describe(self) -> str:
        """See `Policy`."""
        (full, crop), text = self.costs_ms, f"adaptive: whole every {self._every} frames at {self._sizes[0]}"
        if not self.frames:
            return text
        done = f"{self.full_frames} of {self.frames} frames whole, {self.crops} crops"
        return (f"{text} ({full:.1f} ms), between them at most {self.crops_at_most} crops at {self._sizes[1]} "
                f"({crop:.1f} ms each); {done}")  # fmt: skip

    def _weigh(self, hw: Size) -> None:
        """Measure what the two looks cost for pictures of this size, the first time that they are seen."""
        canvas = self._full.prepare(hw)
        if canvas not in self._measured:
            self._measured[canvas] = (self._cost(self._full, hw), self._cost(self._crop, (self._sizes[1],) * 2))
        self.costs_ms = self._measured[canvas]
        # Planning and merging cost a little too, hence the tenth.
        self.crops_at_most = int(0.9 * self.costs_ms[0] / max(self.costs_ms[1], 1e-6))

    def _plan(self, changes: Changes, expected: Detections | None) -> _Plan | None:
        """What to do with this frame; None where the whole of it is to be looked at."""
        moved = changes.any_in(_grown(self._seen.xyxy, 0.1))
        still, moving, coasted = self._seen[~moved], self._seen[moved], self._coasted[moved]
        proven = self._proven(expected)
        there, sure, others = _expected(moving.xyxy, still.xyxy, expected, proven, self._hw)
        others = others[changes.any_in(others)]
        # As far as this even an object that stopped dead keeps an overlap of a third with its box.
        shift = np.abs(there - moving.xyxy).max(axis=1)
        slow = sure & ~coasted & (shift <= _SLOW * (moving.xyxy[:, 2:] - moving.xyxy[:, :2]).min(axis=1))
        stretched = np.concatenate([np.minimum(there, moving.xyxy)[:, :2], np.maximum(there, moving.xyxy)[:, 2:]], 1)
        reach = _grown(stretched, np.where(sure, 0.25, 0.75)[:, None])  # wherever it may go, where no track tells
        fresh = changes.unexplained(np.concatenate([reach, _grown(others, 0.25)]), self.frames)
        wanted = np.concatenate([reach[~slow], _grown(others, 0.25), _grown(fresh, 0.5)])
        if len(wanted) > (_AT_MOST if self.crops_at_most else 0):
            return None
        windows = cover(wanted, self._hw, sizes=self._sizes, at_most=self.crops_at_most)
        if windows is None:
            return None
        # A slow object that lies wholly in one of the windows is seen there anyway.
        shown = held_by(reach, windows, self._hw).any(axis=1)
        coast = slow & ~shown
        coasting = Detections(there[coast], moving.score[coast], moving.class_id[coast])
        return _Plan(windows, still, coasting, there[~coast], fresh)

    def _proven(self, expected: Detections | None) -> NDArray[np.bool_]:
        """Which of the expected objects have been tracked for long enough to have a speed; remembers them."""
        ids = np.zeros(0, np.int64) if expected is None or expected.track_id is None else expected.track_id
        proven = ids >= 0
        for earlier in self._ids:
            proven &= np.isin(ids, earlier)
        self._ids = [*self._ids[1:], ids]
        return proven if expected is not None and len(ids) == len(expected) else np.zeros(len(expected or ()), bool)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to do with one frame.

    Attributes:
        windows: to look at.
        still, coasting: detections that stay, and that move with their tracks.
        due: (N, 4) boxes that must be found again in the windows.
        fresh: (M, 4) boxes of what may be new.
    """

    windows: list[Window]
    still: Detections
    coasting: Detections
    due: NDArray[np.float32]
    fresh: NDArray[np.float32]


def _expected(
    moving: NDArray[np.float32],
    still: NDArray[np.float32],
    expected: Detections | None,
    proven: NDArray[np.bool_],
    hw: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Where each moving object should be (N, 4), whether a proven track says so (N,), and where else one should be."""
    there, sure = moving.copy(), np.zeros(len(moving), bool)
    if expected is None or not len(expected):
        return there, sure, np.zeros((0, 4), np.float32)
    boxes: NDArray[np.float32] = np.clip(expected.xyxy, 0, np.array([hw[1], hw[0]] * 2, np.float32))
    inside = (boxes[:, 2:] > boxes[:, :2] + 1).all(axis=1)
    boxes = boxes[inside]
    overlap = iou_matrix(moving, boxes)
    if len(moving) and len(boxes):
        partner = overlap.argmax(axis=1)
        near = overlap[np.arange(len(moving)), partner] > 0.2
        sure = near & proven[inside][partner]
        there[near] = boxes[partner[near]]
    unseen = (overlap <= 0.2).all(axis=0) & (iou_matrix(boxes, still) <= 0.5).all(axis=1)
    return there, sure, boxes[unseen]


def _look_at(
    look: Looker, image: NDArray[np.uint8], windows: Sequence[Window]
) -> tuple[list[Detections], dict[str, float]]:
    """Detections of each window in picture pixels, and the summed milliseconds."""
    views, total = [], {"pre": 0.0, "network": 0.0, "post": 0.0}
    for x1, y1, x2, y2 in windows:
        found = look(image[y1:y2, x1:x2])
        views.append(Detections(found.xyxy + np.array([x1, y1, x1, y1], np.float32), found.score, found.class_id))
        for name, ms in look.timings.items():
            total[name] = total.get(name, 0.0) + ms
    return views, total


def _inside(boxes: NDArray[np.float32], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes (N, 4) do not touch the edge of a picture (H, W)."""
    inside: NDArray[np.bool_] = np.all((boxes[:, :2] > 2) & (boxes[:, 2:] < (hw[1] - 2, hw[0] - 2)), axis=1)
    return inside


def _grown(boxes: NDArray[np.float32], share: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Boxes (N, 4) with a margin of `share` of their longer side, and at least 8 pixels."""
    margin = np.maximum(8, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) * share) if len(boxes) else 0
    return (boxes + margin * np.array([-1, -1, 1, 1], np.float32)).astype(np.float32).reshape(-1, 4)
