"""Policies of resolution: windows, merging and changes by hand; then whole policies with a stand-in that sees truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiny_ir
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, InputError
from hawkeye.geometry import iou_matrix, rectangle
from hawkeye.runtime.changes import Changes
from hawkeye.runtime.resolution import Adaptive, Fixed, Tiles, make_policy
from hawkeye.runtime.views import cost_of, cover, held_by, merge_views, tiles
from hawkeye.scene_plans import make_video
from hawkeye.track.bytetrack import ByteTracker

SIZES = (640, 320)
COSTS_MS = (12.0, 3.2)
HD = (1080, 1920)


def found(*rows: tuple[float, ...]) -> Detections:
    """Detections from rows of x1, y1, x2, y2, score, class."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int32))


class Seer:
    """Stands in for a detector: of a part of the present frame it sees what is large enough in network pixels.

    What part that is, it tells from where in memory the part begins.
    """

    names = ("a", "b", "c")
    agnostic = False

    def __init__(self, size: int, least_px: float = 6) -> None:
        self.size, self.least_px = size, least_px
        self.timings: dict[str, float] = {}
        self.looks: list[tuple[int, int, int, int]] = []

    def show(self, image: np.ndarray, truth: Detections) -> None:
        self.image, self.truth = image, truth

    def prepare(self, source_hw: tuple[int, int]) -> tuple[int, int]:
        return rectangle(source_hw, self.size, 32)

    def __call__(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        start = image.__array_interface__["data"][0] - self.image.__array_interface__["data"][0]
        y, x = start // self.image.strides[0], start % self.image.strides[0] // 3
        self.looks.append((x, y, x + width, y + height))
        self.timings = {"pre": 0.1, "network": 1.0, "post": 0.1}
        boxes = np.clip(self.truth.xyxy - [x, y, x, y], 0, [width, height] * 2).astype(np.float32)
        area, whole = (boxes[:, 2:] - boxes[:, :2]).prod(1), (self.truth.xyxy[:, 2:] - self.truth.xyxy[:, :2]).prod(1)
        scale = self.size / max(height, width)
        seen = (area > 0.3 * whole) & (np.sqrt(area) * scale >= self.least_px)
        return Detections(boxes[seen], np.full(seen.sum(), 0.8, np.float32), self.truth.class_id[seen])


def costing(costs_ms: tuple[float, float]) -> Callable[[Any, tuple[int, int]], float]:
    """What a look of the large stand-in and of the small one shall cost."""
    return lambda look, _: costs_ms[look.size == 320]


class Stage:
    """A policy and its stand-ins in front of frames drawn from boxes: grey ground, one colour for each object."""

    def __init__(self, every: int = 10, costs_ms: tuple[float, float] = COSTS_MS, hw: tuple[int, int] = HD) -> None:
        self.full, self.crop = Seer(640), Seer(320)
        self.policy = Adaptive(self.full, self.crop, every=every, cost=costing(costs_ms))
        self.hw = hw

    def __call__(self, *boxes: tuple[int, int, int, int], ground: int = 90, expected: Detections | None = None):
        image = np.full((*self.hw, 3), ground, np.uint8)
        for number, (x1, y1, x2, y2) in enumerate(boxes):
            image[y1:y2, x1:x2] = (40 * number, 200, 255 - 40 * number)
        truth = found(*[(*box, 1, 0) for box in boxes])
        for seer in (self.full, self.crop):
            seer.show(image, truth)
            seer.looks.clear()
        return self.policy(image, expected)

    @property
    def whole(self) -> bool:
        """Whether the last frame was looked at whole, at the large size."""
        return len(self.full.looks) == 1


@pytest.mark.parametrize(
    ("boxes", "hw", "count", "reason"),
    [
        ([], HD, 0, "nothing to look at"),
        ([(100, 100, 140, 140)], HD, 1, "one"),
        ([(100, 100, 140, 140), (900, 800, 940, 840)], HD, 1, "960 source pixels at 320 are the scale of 1920 at 640"),
        ([(0, 0, 40, 40), (1880, 1040, 1920, 1080)], HD, 2, "far apart"),
        ([(0, 500, 40, 540), (700, 500, 740, 540), (1200, 500, 1240, 540), (1880, 500, 1920, 540)], HD, 2, "a row"),
        ([(0, 0, 40, 40), (1900, 0, 1920, 40), (0, 1000, 40, 1040), (1000, 1060, 1040, 1080)], HD, None, "too many"),
        ([(100, 0, 1800, 1080)], HD, 1, "so large that the whole picture at 320 shows it well"),
        ([(0, 0, 1000, 40)], HD, None, "long and thin: no window at this scale holds it"),
        ([(-50, -50, 40, 40)], HD, 1, "reaches outside"),
        ([(0, 0, 30, 30), (300, 200, 330, 230)], (240, 340), None, "a small picture is not enlarged beyond 320"),
    ],
)
def test_cover(boxes, hw, count, reason):
    array = np.array(boxes, np.float32).reshape(-1, 4)
    windows = cover(array, hw, sizes=SIZES, costs={1.0: 1.0}, at_most=3 if hw == HD else 1)
    assert (None if windows is None else len(windows)) == count, reason
    inside = np.clip(array, 0, [hw[1], hw[0]] * 2)
    for x1, y1, x2, y2 in inside if windows else ():
        assert any(a <= x1 and b <= y1 and c >= x2 and d >= y2 for a, b, c, d in windows), reason
    for x1, y1, x2, y2 in windows or ():
        assert 0 <= x1 < x2 <= hw[1] and 0 <= y1 < y2 <= hw[0], reason


@pytest.mark.parametrize(
    ("boxes", "hw", "shapes", "reason"),
    [
        ([(100, 500, 140, 540), (900, 520, 940, 560)], HD, [0.6], "a band holds both"),
        ([(100, 300, 140, 340), (900, 820, 940, 860)], HD, [0.6], "560 pixels high: just within a band"),
        ([(100, 300, 140, 340), (900, 920, 940, 960)], HD, [0.8], "a little higher"),
        ([(100, 100, 140, 140), (900, 980, 940, 1020)], HD, [1.0], "one square costs less than two bands"),
        ([(0, 500, 40, 540), (1880, 500, 1920, 540)], HD, [0.6, 0.6], "far apart in a band"),
        ([(100, 900, 140, 940)], (1920, 1080), [0.6], "a picture that stands has crops that stand"),
        ([(100, 0, 1800, 1080)], HD, [0.6], "the whole picture, small"),
    ],
)
def test_crops_take_the_cheapest_shape(boxes, hw, shapes, reason):
    costs = {0.6: 3.0, 0.8: 4.0, 1.0: 5.0}
    array = np.array(boxes, np.float32)
    windows = cover(array, hw, sizes=SIZES, costs=costs, at_most=12.0)
    assert windows is not None and cost_of(windows, costs) == sum(costs[shape] for shape in shapes), reason
    assert held_by(array, windows, hw).any(axis=1).all()
    for (x1, y1, x2, y2), shape in zip(windows, shapes, strict=True):
        rows, columns = rectangle((y2 - y1, x2 - x1), 320, 32)
        assert min(rows, columns) == shape * 320 and (rows <= columns) == (hw == HD or shape == 1), "as it is charged"
    assert cover(array, hw, sizes=SIZES, costs=costs, at_most=2.9) is None


@pytest.mark.parametrize("hw", [(1080, 1920), (640, 640), (480, 640), (100, 3000), (1, 1), (2160, 3840)])
def test_tiles_cover_the_picture(hw):
    seen = np.zeros(hw, int)
    made = tiles(hw, 640)
    for x1, y1, x2, y2 in made:
        assert 0 <= x1 < x2 <= hw[1] and 0 <= y1 < y2 <= hw[0] and max(x2 - x1, y2 - y1) <= 640
        seen[y1:y2, x1:x2] += 1
    assert seen.all()
    assert len(made) == len(set(made))


LEFT, RIGHT = (0, 0, 120, 100), (100, 0, 200, 100)  # two windows of a picture of 100 x 200 that share 20 pixels


@pytest.mark.parametrize(
    ("left", "right", "pieces", "expected", "reason"),
    [
        ([(10, 10, 50, 50, 0.9, 0)], [], False, [(10, 10, 50, 50)], "one view"),
        ([(100, 10, 118, 40, 0.8, 0)], [(102, 10, 119, 40, 0.9, 0)], False, [(102, 10, 119, 40)], "seen twice"),
        ([(100, 10, 118, 40, 0.8, 1)], [(102, 10, 118, 40, 0.9, 0)], False,
         [(102, 10, 118, 40), (100, 10, 118, 40)], "two classes are two objects"),
        ([(80, 10, 120, 40, 0.9, 0)], [(104, 10, 160, 40, 0.6, 0)], False, [(104, 10, 160, 40)], "cut: left out"),
        ([(60, 10, 120, 40, 0.9, 0)], [(100, 10, 160, 40, 0.6, 0)], False, [], "both cut: nothing is whole"),
        ([(60, 10, 120, 40, 0.9, 0)], [(100, 10, 160, 40, 0.6, 0)], True, [(60, 10, 160, 40)], "pieces are joined"),
        ([(90, 10, 120, 40, 0.9, 0)], [(100, 10, 160, 40, 0.6, 1)], True,
         [(90, 10, 120, 40), (100, 10, 160, 40)], "pieces of two classes are not"),
        ([(0, 0, 50, 50, 0.9, 0)], [(150, 50, 200, 100, 0.8, 0)], False,
         [(0, 0, 50, 50), (150, 50, 200, 100)], "the picture's own edge cuts nothing"),
        ([(10, 10, 50, 50, 0.9, 0), (12, 10, 58, 50, 0.8, 0)], [], False,
         [(10, 10, 50, 50), (12, 10, 58, 50)], "one view has suppressed its own already"),
    ],
)  # fmt: skip
def test_merge(left, right, pieces, expected, reason):
    result, source = merge_views([found(*left), found(*right)], [LEFT, RIGHT], (100, 200), pieces=pieces)
    assert [tuple(box) for box in result.xyxy.tolist()] == expected, reason
    assert len(source) == len(result)
    assert (np.diff(result.score) <= 0).all()


def test_whole_view_beats_its_pieces():
    views = [found((40, 10, 160, 40, 0.5, 0)), found((40, 10, 120, 40, 0.9, 0)), found((100, 10, 160, 40, 0.9, 0))]
    result, _ = merge_views(views, [(0, 0, 200, 100), LEFT, RIGHT], (100, 200), pieces=True)
    assert result.xyxy.tolist() == [[40, 10, 160, 40]]


def test_changes():
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 120, (400, 400, 3), np.uint8)
    changes = Changes(ground)
    noisy = np.clip(ground.astype(int) + rng.integers(-8, 9, ground.shape), 0, 255).astype(np.uint8)
    assert changes.compare(noisy) == 0
    image = ground.copy()
    image[100:140, 200:260] = 255
    assert changes.compare(image) == pytest.approx(40 * 60 / 400**2, abs=0.003)
    inside, outside = np.array([[190, 90, 220, 120]], np.float32), np.array([[0, 0, 150, 400]], np.float32)
    assert changes.any_in(np.concatenate([inside, outside])).tolist() == [True, False]
    box = changes.unexplained(np.zeros((0, 4), np.float32), 1)
    assert iou_matrix(box, np.array([[200, 100, 260, 140]], np.float32)) > 0.7
    assert not len(changes.unexplained(np.array([[190, 90, 270, 150]], np.float32), 1))
    changes.ignore_(np.array([[190, 90, 270, 150]], np.float32), until=5)
    assert [len(changes.unexplained(np.zeros((0, 4), np.float32), frame)) for frame in (5, 6)] == [0, 1]
    changes.looked_at_([(180, 80, 280, 160)])
    assert changes.compare(image) == 0


def test_slow_change_adds_up():
    changes = Changes(np.full((200, 200, 3), 80, np.uint8))
    shares = [changes.compare(np.full((200, 200, 3), 80 + step, np.uint8)) for step in range(0, 20, 4)]
    assert shares == [0, 0, 0, 0, 1]


def test_nothing_moves_nothing_is_computed():
    stage = Stage(every=10)
    first = stage((100, 100, 200, 200))
    assert stage.whole
    for _ in range(9):
        assert stage((100, 100, 200, 200)).xyxy.tolist() == first.xyxy.tolist()
        assert not stage.full.looks and not stage.crop.looks
    stage((100, 100, 200, 200))
    assert stage.whole  # after `every` frames
    assert (stage.policy.frames, stage.policy.full_frames, stage.policy.crops) == (11, 2, 0)


def test_crops_follow_what_moves_and_find_what_is_new():
    stage = Stage(every=100)
    stage((100, 100, 200, 200), (1500, 800, 1560, 860))
    for step in range(1, 6):
        moving, still, new = (100 + 9 * step, 100, 200 + 9 * step, 200), (1500, 800, 1560, 860), (1000, 500, 1050, 540)
        boxes = stage(moving, still, *([new] if step >= 3 else []))
        assert sorted(map(tuple, boxes.xyxy.tolist())) == sorted([moving, still, *([new] if step >= 3 else [])])
        assert not stage.whole
        assert len(stage.crop.looks) == (2 if step == 3 else 1)  # the new one stands still after it was found


def test_scene_change_lost_objects_and_other_sizes_bring_the_whole_picture():
    stage = Stage(every=30)
    stage((100, 100, 200, 200))
    stage((100, 100, 200, 200), ground=200)
    assert stage.whole, "the scene changed"
    gone = [len(stage(ground=200)) for _ in range(12)]
    assert gone == [0] * 12
    assert stage.policy.full_frames == 3, "an object was lost: one more look at everything, not one each frame"
    stage.hw = (720, 1280)
    stage((100, 100, 200, 200))
    assert stage.whole, "another size"


def test_what_leaves_the_picture_is_not_lost():
    stage = Stage(every=100)
    for step in range(12):
        x1, x2 = 1700 + 25 * step, min(1920, 1800 + 25 * step)
        stage(*([(x1, 500, x2, 600)] if x1 < x2 else []))
    assert stage.policy.full_frames == 1


def test_crops_that_cost_more_are_not_taken():
    stage = Stage(costs_ms=(10.0, 12.0), every=100)
    for step in range(4):
        stage((100 + 10 * step, 100, 200 + 10 * step, 200))
        assert stage.whole
    stage((130, 100, 230, 200))
    assert not stage.full.looks and not stage.crop.looks  # nothing changed: that costs nothing anywhere


def test_costs_are_those_of_the_pictures_own_shape():
    """Of each shape that comes, measured once, whichever stream it comes from."""
    asked: list[tuple[int, tuple[int, int]]] = []

    def cost(look: Any, hw: tuple[int, int]) -> float:
        asked.append((look.size, hw))
        return 12.0 * np.prod(look.prepare(hw)) / 640**2

    full, crop = Seer(640), Seer(320)
    first = Adaptive(full, crop, cost=cost)
    second = copy.copy(first)  # as an engine makes them for its streams
    for policy, hw, expected in ((first, HD, 7.2), (second, (360, 640), 7.2), (second, (700, 700), 12.0)):
        image = np.zeros((*hw, 3), np.uint8)
        for seer in (full, crop):
            seer.show(image, found())
        policy(image)
        assert policy.costs_ms == pytest.approx((expected, 3.0))
    crops = [(320, (180, 320)), (320, (240, 320)), (320, (320, 320))]
    assert asked == [(640, HD), *crops, (640, (700, 700)), *crops]


def test_followed_objects_rest_two_frames_of_three_and_what_is_new_waits_for_the_third():
    """A tracker follows one object for 12 frames; then another one appears, in a rest or a look."""
    stage, tracker, looked, found_at = Stage(every=100), ByteTracker(), [], []
    for step in range(24):
        boxes = [(100 + 9 * step, 100, 200 + 9 * step, 200), *([(1500, 800, 1560, 860)] if step >= 13 else [])]
        expected = tracker.predicted(step / 25)
        result = stage(*boxes, expected=expected)
        tracked = tracker.update(result, step / 25)
        rest = not stage.crop.looks and not stage.whole
        assert rest == (result.coasted is not None and bool(result.coasted.all())), "and who counts is told so"
        assert not rest or (tracked.coasted is not None and tracked.coasted.all())
        looked.append(len(stage.crop.looks))
        found_at.append(len(result))
        assert iou_matrix(np.array(boxes[:1], np.float32), result.xyxy).max() > 0.8, step
    cycle = [1, 0, 0] * 4
    assert looked[5:13] in [cycle[begin : begin + 8] for begin in range(3)], looked
    first = found_at.index(2)
    assert first == next(step for step in (13, 14, 15) if looked[step]), "in the first frame that is no rest"
    assert found_at[first:] == [2] * (24 - first)
    assert stage.policy.full_frames == 1


def test_near_objects_are_shown_small():
    stage = Stage(every=100)
    for step in range(3):
        assert len(stage((100 + 20 * step, 40, 1500 + 20 * step, 1040))) == 1
    assert stage.crop.looks[0][2] - stage.crop.looks[0][0] > 1400


@pytest.mark.parametrize("hw", [(1, 1), (1, 3000), (3000, 2), (7, 5)])
def test_odd_pictures(hw):
    rng = np.random.default_rng(0)
    stage = Stage(hw=hw)
    tile = Seer(640)
    for _ in range(3):
        image = rng.integers(0, 256, (*hw, 3), np.uint8)
        for seer in (stage.full, stage.crop, tile):
            seer.show(image, found())
        assert len(stage.policy(image, found((0, 0, 1, 1, 0.9, 0)))) == 0
        assert len(Tiles(tile)(image)) == 0


def test_not_a_picture():
    for policy in (Fixed(Seer(640)), Tiles(Seer(640)), Adaptive(Seer(640), Seer(320))):
        with pytest.raises((InputError, AttributeError)):
            policy(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("tracked", [True, False])
def test_traffic_as_accurate_for_less(tracked):
    """Each drawn frame of 1080p traffic: at most a point worse than the whole picture at 640, for far fewer looks."""
    full, crop, fixed = Seer(640), Seer(320), Seer(640)
    policy, tracker = Adaptive(full, crop, cost=costing(COSTS_MS)), ByteTracker()
    objects, wrong, wrong_fixed = 0, 0, 0
    for frame in make_video("traffic", seed=3, seconds=6).frames():
        for seer in (full, crop, fixed):
            seer.show(frame.image, frame.truth)
        result = policy(frame.image, tracker.predicted(frame.time_s) if tracked else None)
        tracker.update(result, frame.time_s)
        objects += len(frame.truth)
        wrong += errors(result, frame.truth)
        wrong_fixed += errors(fixed(frame.image), frame.truth)
    assert objects > 600
    assert wrong <= wrong_fixed + 0.01 * objects
    spent = policy.full_frames * COSTS_MS[0] + policy.crops * COSTS_MS[1]
    # Without tracks each moving object is looked at in each frame.
    assert policy.frames * COSTS_MS[0] / spent > (1.8 if tracked else 1.4), policy.describe()


def errors(result: Detections, truth: Detections) -> int:
    """Objects that were missed, and boxes that are none: an overlap of half and the class make a match."""
    overlap = iou_matrix(truth.xyxy, result.xyxy) * (truth.class_id[:, None] == result.class_id[None]) > 0.5
    return int((~overlap.any(axis=1)).sum() + (~overlap.any(axis=0)).sum())


def test_tiles_find_what_the_whole_picture_does_not_show():
    image = np.zeros((*HD, 3), np.uint8)
    truth = found((700, 500, 712, 512, 1, 0), (600, 100, 680, 180, 1, 1), (20, 100, 1900, 900, 1, 2))
    seer = Seer(640)
    seer.show(image, truth)
    assert len(Fixed(seer)(image)) == 2
    policy = Tiles(seer)
    result = policy(image)
    assert sorted(result.class_id.tolist()) == [0, 1, 2]
    assert (iou_matrix(truth.xyxy, result.xyxy).max(axis=1) == 1).all()
    assert set(policy.timings) == {"pre", "network", "post"} and policy.timings["network"] == len(seer.looks) - 1
    assert "tiles" in policy.describe()


@pytest.mark.parametrize("text", ["fixed:640", "fixed:64", "adaptive", "adaptive:5", "tiles", "ADAPTIVE"])
def test_policies_of_a_real_model(tmp_path, text):
    """One file serves all sizes; a red square that covers cells of each size is found by every policy."""
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    policy = make_policy(text, folder, conf=0.9, iou=0.7, threads=1)
    image = np.zeros((640, 640, 3), np.uint8)
    image[64:320, 64:320] = (0, 0, 255)
    for _ in range(3):
        boxes = policy(image)
        image[320:384, 64:320] = (0, 0, 255)
        assert len(boxes) and set(boxes.class_id.tolist()) == {2}
    assert policy.names == tiny_ir.NAMES
    assert set(policy.timings) == {"pre", "network", "post"}
    assert text.lower().split(":")[0] in policy.describe()


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:", "fixed:0", "fixed:big", "fixed:-640", "adaptive:", "adaptive:x", "tile", "tiles:3"]
)
def test_no_such_policy(tmp_path, text):
    with pytest.raises(ConfigError, match="try fixed:640"):
        make_policy(text, tmp_path, conf=0.25, iou=0.7, threads=1)
