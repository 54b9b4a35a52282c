"""How much of a frame the network sees, and how large: one size, tiles for small targets, or crops where it matters.

What decides whether an object is found is its size in network pixels: a 1080p frame letterboxed to 640 shows it at a
third of its size, and so does a crop of 960 pixels at 320, for less than half of the cost. And where no pixel has
changed since the network last looked, the answer has not changed either. `Adaptive` builds on both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import Artifact
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError
from hawkeye.geometry import PAD_VALUE, SHARES, Size, iou_matrix
from hawkeye.records import RuntimeName
from hawkeye.runtime.changes import Changes
from hawkeye.runtime.detector import Detector, check_picture
from hawkeye.runtime.regions import NONE, expected_of, grown, inside, leap, reach
from hawkeye.runtime.views import Window, cover, held_by, merge_views, tiles

FULL, CROP = 640, 320
EVERY = 25  # frames from one full look to the next
_SCENE = 0.35  # share of the picture that changes when the scene does
_RESTS = 2  # between two looks, at most
_SLOW = 1.0  # way from frame to frame, as a share of an object's shorter side, that its track is trusted with
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
        return Adaptive(at(FULL), at(CROP), every=number or EVERY)
    if kind == "tiles" and not colon:
        return Tiles(at(FULL))
    raise ConfigError(f"there is no resolution {text!r}", got=text, expected="fixed:SIZE, adaptive or tiles",
                      mend="try fixed:640, fixed:320, adaptive or tiles")  # fmt: skip


def cost_ms(look: Looker, source_hw: Size, runs: int = 5) -> float:
    """Milliseconds that one look at a picture of that height and width takes here, measured."""
    picture = np.full((*source_hw, 3), PAD_VALUE, np.uint8)
    times = []
    for number in range(runs + 2):
        started = time.perf_counter()
        look(picture)
        if number >= 2:  # the first are slower than all that follow
            times.append((time.perf_counter() - started) * 1e3)
    return min(times)  # other work on the machine only ever adds


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

    The whole picture is looked at every `every` frames, or a third of that (8 of 25) where an object was lost since;
    when the scene or the picture's size changes, and whenever crops would cost more. Between, where a tracker follows
    objects, one frame is a look and the next two are rests:

    - A look: an object in whose box nothing has changed keeps its box. Crops are taken around every other object,
      stretched to where the tracker expects it, and around each change that no object explains: something new may be
      there.
    - A rest: objects move with their tracks, and no change is looked for. Crops are taken only around objects that move
      far or leave, and new ones: they must be seen in the next frame too, or the tracker takes them for a flicker.

    All rest in the same frames, because what costs is the number of crops, and one crop holds many objects. Crops come
    from the full-resolution picture, lying or standing as it does where that holds their contents. They show it at
    least as large as the whole picture would, unless all in them is near and large; then even the whole picture is
    shown at the small size.

    Args:
        full: detector of the large size.
        crop: detector of the small one.
        every: frames from one whole look to the next.
        cost: milliseconds of one look with either at a picture of some size, as `cost_ms` measures them.
        sizes: their input sizes in pixels.

    Attributes:
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
        # Of the whole picture, and of crops by their shape; shared by all copies of this policy.
        self._measured: dict[Size, tuple[float, dict[float, float]]] = {}
        self._full_ms, self._crop_ms = 0.0, {1.0: 0.0}
        self.names = full.names
        self.timings: dict[str, float] = {}
        self.frames = self.full_frames = self.crops = self._rests = 0  # rests since the last look
        self.windows: tuple[Window, ...] = ()
        self._hw = (0, 0)
        self._changes: Changes | None = None
        self._since, self._lost, self._seen = 0, False, Detections.empty()
        self._ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * _PROVEN
        self._expected: Detections | None = None  # in the last frame

    def prepare(self, source_hw: Size) -> Size:
        """See `Policy`."""
        for shape in _shapes(source_hw, self._sizes[1]):
            self._crop.prepare(shape)
        return self._full.prepare(source_hw)

    @property
    def costs_ms(self) -> tuple[float, float]:
        """Of the whole picture and of a square crop in milliseconds, once a picture has come."""
        return self._full_ms, self._crop_ms[1.0]

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None = None) -> Detections:
        """See `Policy`."""
        check_picture(image)
        started = time.perf_counter()
        hw = (image.shape[0], image.shape[1])
        self.frames += 1
        self._since += 1
        proven = self._proven(expected)
        due = self._since >= (self._every // 3 if self._lost else self._every)
        if self._changes is None or hw != self._hw:
            self._hw, self._changes, plan = hw, Changes(image), None
            self._weigh(hw)
        else:
            plan = None if due else self._rest(expected, proven)
            if plan is None and self._changes.compare(image) <= _SCENE and not due:
                plan = self._plan(self._changes, expected, proven)
        planned = (time.perf_counter() - started) * 1e3
        everything = (0, 0, hw[1], hw[0])
        if plan is None:
            found, timings = self._full(image), dict(self._full.timings)
            self._changes.looked_at_()
            self._since, self._lost, self.windows = 0, False, (everything,)
            self.full_frames += 1
        else:
            views, timings = _look_at(self._crop, image, plan.windows)
            begun = time.perf_counter()
            found, source = merge_views(
                [*views, plan.known], [*plan.windows, everything], hw, agnostic=self._full.agnostic
            )
            if plan.rest:
                found = replace(found, coasted=source == len(views))
            else:
                self._changes.looked_at_(plan.windows)
                nothing = (iou_matrix(plan.fresh, found.xyxy) == 0).all(axis=1)
                dull = plan.fresh[nothing & inside(plan.fresh, hw)]  # at the edge something may be coming in
                self._changes.ignore_(dull, self.frames + self._every // 2)
                # What has left at the picture's edge is gone; what is missing inside it needs a second look.
                missing = plan.due[inside(plan.due, hw)]
                self._lost |= bool((iou_matrix(missing, found.xyxy) < 0.1).all(axis=1).any())
            timings["post"] += (time.perf_counter() - begun) * 1e3
            self.crops += len(plan.windows)
            self.windows = tuple(plan.windows)
        self._rests = self._rests + 1 if plan is not None and plan.rest else 0
        timings["pre"] += planned
        self._seen, self._expected, self.timings = found, expected, timings
        return found

    def describe(self) -> str:
        """See `Policy`."""
        (full, crop), text = self.costs_ms, f"adaptive: whole every {self._every} frames at {self._sizes[0]}"
        if not self.frames:
            return text
        between = f"crops at {self._sizes[1]} ({min(self._crop_ms.values()):.1f} to {crop:.1f} ms each)"
        done = f"{self.full_frames} of {self.frames} frames whole, {self.crops} crops"
        return f"{text} ({full:.1f} ms), between them {between}; {done}"

    def _weigh(self, hw: Size) -> None:
        """Measure what the two looks cost for pictures of this size, the first time that they are seen."""
        canvas = self.prepare(hw)
        if canvas not in self._measured:
            full_ms, crops = self._cost(self._full, hw), {}
            for shape in _shapes(hw, self._sizes[1]):
                taken = self._crop.prepare(shape)  # a network that takes only the square shows every crop in it
                crops[min(taken) / max(taken)] = self._cost(self._crop, shape)
            self._measured[canvas] = (full_ms, crops)
        self._full_ms, self._crop_ms = self._measured[canvas]

    def _rest(self, expected: Detections | None, proven: NDArray[np.bool_]) -> _Plan | None:
        """Let objects move with their tracks, and look only where none can be relied on; None to look properly."""
        # Where most have gone far, as after frames that are missing, boxes cannot be told to be nobody's.
        if self._rests == _RESTS or expected is None or leap(self._expected, expected, _SLOW):
            return None
        seen = self._seen
        of = expected_of(seen.xyxy, seen.xyxy, expected, proven, self._hw)
        # What goes further has left its own box behind, and is a stranger to its track when that errs.
        shift = np.abs(of.there - seen.xyxy).max(axis=1)
        slow = of.proven & (shift <= _SLOW * (seen.xyxy[:, 2:] - seen.xyxy[:, :2]).min(axis=1))
        # What leaves the picture may be over a line in its last frame; what no tracker follows none will miss.
        coasts = (slow & inside(of.there, self._hw)) | ~of.followed
        if not coasts.any():
            return None
        reached = reach(seen.xyxy, of)
        windows = self._cover(reached[~coasts])
        if windows is None:
            return None
        coasts &= ~held_by(reached, windows, self._hw).any(axis=1)  # it is seen there anyway
        coasting = Detections(of.there[coasts], seen.score[coasts], seen.class_id[coasts])
        return _Plan(windows, coasting, NONE, NONE, rest=True)

    def _plan(self, changes: Changes, expected: Detections | None, proven: NDArray[np.bool_]) -> _Plan | None:
        """Where to look in this frame; None where the whole of it is to be looked at."""
        moved = changes.any_in(grown(self._seen.xyxy, 0.1))
        still, moving = self._seen[~moved], self._seen[moved]
        of = expected_of(moving.xyxy, still.xyxy, expected, proven, self._hw)
        others = grown(of.others[changes.any_in(of.others)], 0.25)
        known = np.concatenate([reach(moving.xyxy, of), others])
        fresh = changes.unexplained(known, self.frames)
        windows = self._cover(np.concatenate([known, grown(fresh, 0.5)]))
        due = of.there if expected is None else of.there[of.followed]  # a tracker does not miss what it does not follow
        return None if windows is None else _Plan(windows, still, due, fresh, rest=False)

    def _cover(self, boxes: NDArray[np.float32]) -> list[Window] | None:
        """Windows that hold all boxes (N, 4); None where the whole picture costs less."""
        if len(boxes) > _AT_MOST:
            return None
        # Planning and merging cost a little too, hence the tenth.
        return cover(boxes, self._hw, sizes=self._sizes, costs=self._crop_ms, at_most=0.9 * self._full_ms)

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
        known: detections that need no look.
        due: (N, 4) boxes that must be found again in the windows.
        fresh: (M, 4) boxes of what may be new.
        rest: whether all that is new waits for the next frame.
    """

    windows: list[Window]
    known: Detections
    due: NDArray[np.float32]
    fresh: NDArray[np.float32]
    rest: bool


def _shapes(hw: Size, side: int) -> list[Size]:
    """Heights and widths of crops of a picture (H, W): lying or standing as it does, and the square."""
    flat = [(side * part // whole, side) for part, whole in SHARES]
    return flat if hw[0] <= hw[1] else [(width, height) for height, width in flat]


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
