"""Counting: hand-made tracks for each rule of what counts, and drawn videos with exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, InputError
from hawkeye.scene_plans import make_video
from hawkeye.scene_videos import SceneVideo
from hawkeye.track.bytetrack import ByteTracker
from hawkeye.track.counting import Counter, CountEvent
from hawkeye.track.rules import Line, Rule, Zone

SIZE, NAMES = (640, 360), ("person", "car")
GATE = Line("gate", (320, 100), (320, 300))  # from top to bottom: "in" is to the left
YARD = Zone("yard", ((100, 100), (200, 100), (200, 300), (100, 300)))
SIDE = 40.0  # so that clearly beyond is 4 pixels


def frame(*tracks: tuple[int, float, float], class_id: int | Sequence[int] = 0) -> Detections:
    """Tracks by identity and the middle of the box's lower edge."""
    boxes = [[x - SIDE / 2, y - SIDE, x + SIDE / 2, y] for _, x, y in tracks]
    classes = np.broadcast_to(np.asarray(class_id, np.int32), len(tracks)).copy()
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(tracks), np.float32), classes,
                      np.array([i for i, _, _ in tracks], np.int64))  # fmt: skip


def walk(rules: Sequence[Rule], places: Sequence[tuple[float, float]], fps: float = 10.0) -> list[tuple[str, str]]:
    """What one track that is at these places, one frame after another, counts for."""
    counter = Counter(rules, NAMES, size=SIZE)
    events = [e for i, (x, y) in enumerate(places) for e in counter.update(frame((1, x, y)), i / fps)]
    return [(event.rule, event.kind) for event in events]


@pytest.mark.parametrize(
    "why, places, expected",
    [
        ("to the left", [(400, 200), (240, 200)], ["in"]),
        ("to the right", [(240, 200), (400, 200)], ["out"]),
        ("in small steps", [(x, 200) for x in range(340, 300, -3)], ["in"]),
        ("beside its end", [(400, 90), (240, 90)], []),
        ("beside the other end", [(400, 310), (240, 310)], []),
        ("slanting past its end", [(400, 40), (240, 120)], []),
        ("not clearly beyond", [(400, 200), (317, 200)], []),
        ("trembling on it", [(400, 200), *[(320 + d, 200) for d in (3, -3, 2, -2, 3, -3)], (400, 200)], []),
        ("trembling, then on", [(400, 200), *[(320 + d, 200) for d in (3, -3, 2, -2)], (300, 200)], ["in"]),
        ("around its end and back through it", [(400, 50), (240, 50), (240, 200), (400, 200)], ["out"]),
        ("over it, then around its end", [(400, 200), (300, 200), (300, 50), (400, 50), (400, 200)], ["in"]),
        ("over it and back", [(400, 200), (240, 200), (400, 200)], ["in", "out"]),
        ("again and again", [(400, 200), (240, 200)] * 3, ["in", "out"]),
        ("first seen on it", [(321, 200), (240, 200)], []),
        ("in one leap", [(630, 200), (10, 200)], ["in"]),
        ("along it", [(321, 110), (319, 200), (321, 290)], []),
    ],
)
def test_what_crosses_a_line(why: str, places: list[tuple[float, float]], expected: list[str]) -> None:
    assert walk([GATE], places) == [("gate", kind) for kind in expected], why


def test_a_line_may_count_every_crossing() -> None:
    line = Line("gate", (320, 100), (320, 300), repeat=True)
    assert walk([line], [(400, 200), (240, 200)] * 3) == [("gate", kind) for kind in ("in", "out", "in", "out", "in")]


def test_direction_of_a_line_from_left_to_right_is_down() -> None:
    line = Line("sill", (0, 200), (640, 200))
    assert walk([line], [(100, 150), (100, 250)]) == [("sill", "in")]
    assert walk([Line("sill", (640, 200), (0, 200))], [(100, 150), (100, 250)]) == [("sill", "out")]


def test_the_anchor_may_be_the_centre() -> None:
    """The foot crosses 20 pixels before the middle does."""
    places = [(100, 190), (100, 212)]
    assert walk([Line("sill", (0, 200), (640, 200))], places) == [("sill", "in")]
    assert walk([Line("sill", (0, 200), (640, 200), anchor="centre")], places) == []


@pytest.mark.parametrize(
    "why, places, expected",
    [
        ("through it", [(50, 200), (150, 200), (250, 200)], ["enter", "exit"]),
        ("first seen inside", [(150, 200), (250, 200)], ["enter", "exit"]),
        ("trembling on its edge", [(50, 200), *[(100 + d, 200) for d in (3, -3, 2, -2)]], []),
        ("in, and trembling", [(50, 200), (110, 200), *[(100 + d, 200) for d in (3, -3, 2, -2)]], ["enter"]),
        ("again", [(50, 200), (150, 200)] * 2, ["enter", "exit", "enter"]),
        ("past it", [(50, 310), (150, 310)], []),
    ],
)
def test_what_enters_a_zone(why: str, places: list[tuple[float, float]], expected: list[str]) -> None:
    assert walk([YARD], places) == [("yard", kind) for kind in expected], why


def test_a_concave_zone_has_a_gap() -> None:
    zone = Zone("u", ((100, 100), (400, 100), (400, 300), (300, 300), (300, 200), (200, 200), (200, 300), (100, 300)))
    assert walk([zone], [(150, 280), (250, 280), (350, 280)]) == [("u", "enter"), ("u", "exit"), ("u", "enter")]


def test_occupancy_dwell_and_those_who_vanish() -> None:
    zone = Zone("yard", YARD.points, dwell_s=1.0)
    counter = Counter([zone], NAMES, size=SIZE, lost_s=2.0)
    events: list[CountEvent] = []
    for i in range(20):  # 1 leaves after 1.5 s; 2 is seen last after 0.5 s
        tracks = [(1, 150.0 if i < 15 else 300.0, 200.0), *([(2, 160.0, 250.0)] if i <= 5 else [])]
        events += counter.update(frame(*tracks, class_id=[0, 1][: len(tracks)]), i / 10)
    assert counter.occupancy() == {"yard": {"car": 1}}, "out of sight, perhaps behind something"
    events += counter.update(frame(), 3.0)
    assert counter.occupancy() == {"yard": {}}
    told = [(e.kind, e.track_id, e.class_name, round(e.time_s, 3), e.seconds and round(e.seconds, 3)) for e in events]
    assert told == [
        ("enter", 1, "person", 0.0, None), ("enter", 2, "car", 0.0, None), ("dwell", 1, "person", 1.0, 1.0),
        ("exit", 1, "person", 1.5, 1.5), ("exit", 2, "car", 0.5, 0.5),
    ]  # fmt: skip
    total = counter.totals()["yard"]
    assert total.pop("dwell_mean_s") == pytest.approx(1.0) and total.pop("dwell_max_s") == pytest.approx(1.5)
    assert total == {"type": "zone", "enter": 2, "exit": 2, "now": 0, "max": 2, "by_class": {
        "person": {"enter": 1, "exit": 1}, "car": {"enter": 1, "exit": 1}}}  # fmt: skip


def test_no_data_is_not_an_empty_picture() -> None:
    counter = Counter([YARD], NAMES, size=SIZE)
    assert counter.occupancy() is None and counter.totals()["yard"]["now"] is None, "nothing was seen yet"
    counter.update(frame((1, 150, 200)), 0.0)
    counter.no_data(0.5)
    assert counter.occupancy() is None and counter.totals()["yard"]["now"] is None
    assert counter.update(frame((1, 150, 200)), 1.0) == [], "the same stay goes on"
    assert counter.occupancy() == {"yard": {"person": 1}}


def test_the_class_is_what_most_detections_were() -> None:
    counter = Counter([GATE], NAMES, size=SIZE)
    for i, class_id in enumerate((1, 0, 1, 1, 0)):
        counter.update(frame((1, 400 - i, 200), class_id=class_id), i / 10)
    (event,) = counter.update(frame((1, 240, 200), class_id=0), 1.0)
    assert event == CountEvent(1.0, "gate", "in", "car", 1)


@pytest.mark.parametrize(
    ("why", "classes", "expected"),
    [
        ("clear before the line", "pccc|cc", [("in", 0.4)]),
        ("clear soon after it: counted when it crossed", "ppp|cccc", [("in", 0.3)]),
        ("clear too late", "ppp|" + "p" * 20 + "c" * 30, []),
        ("never clear", "pcp|cp", []),
        ("counted already", "ccc|pppp", [("in", 0.3)]),
        ("over it and back before it is clear", "pp|p/cccccc", [("in", 0.2), ("out", 0.3)]),
    ],
)
def test_a_line_for_some_classes_waits_for_the_class(why: str, classes: str, expected: list[tuple[str, float]]) -> None:
    """A letter to each frame: person or car; "|" is the line on the way in, "/" on the way out."""
    counter = Counter([Line("cars", GATE.start, GATE.end, classes=("car",)), GATE], NAMES, size=SIZE)
    x, time, events = 400.0, 0.0, []
    for letter in classes:
        if letter in "|/":
            x = 240.0 if letter == "|" else 400.0
            continue
        events += counter.update(frame((1, x, 200), class_id="pc".index(letter)), time)
        time = round(time + 0.1, 1)
    assert [(e.kind, e.time_s) for e in events if e.rule == "cars"] == expected, why
    assert {e.class_name for e in events if e.rule == "cars"} <= {"car"}
    gate = counter.totals()["gate"]
    assert (gate["in"], gate["out"]) == (1, int("/" in classes)), "for all classes nothing waits"


def test_a_crossing_that_waits_outlives_a_change_of_the_other_rules() -> None:
    cars = Line("cars", GATE.start, GATE.end, classes=("car",))
    counter = Counter([GATE, cars], NAMES, size=SIZE)
    for i, x in enumerate((400, 240)):
        counter.update(frame((1, x, 200)), i / 10)
    counter.change([cars, YARD])
    events = [e for i in range(2, 6) for e in counter.update(frame((1, 240, 200), class_id=1), i / 10)]
    assert [(e.rule, e.kind, e.class_name, e.time_s) for e in events] == [("cars", "in", "car", 0.1)]


def test_boxes_that_only_moved_with_their_tracks_count_nothing() -> None:
    """A track's word carries an object over the line; seen again, it has stopped before it, and turned into a car."""
    counter = Counter([GATE, YARD], NAMES, size=SIZE)
    for i, (x, coasted) in enumerate([(400, False), (330, False), (310, True), (328, False), (150, True)]):
        seen = frame((1, x, 200), class_id=int(coasted))
        assert counter.update(replace(seen, coasted=np.array([coasted])), i / 10) == []
    events = counter.update(frame((1, 150, 200)), 0.5)
    assert [(event.rule, event.kind, event.class_name) for event in events] == [
        ("gate", "in", "person"), ("yard", "enter", "person"),
    ]  # fmt: skip


def test_only_the_classes_of_the_rule() -> None:
    cars = Line("cars", GATE.start, GATE.end, classes=("car",))
    counter = Counter([cars, GATE, Zone("park", YARD.points, classes=("car",))], NAMES, size=SIZE)
    counter.update(frame((1, 400, 200), (2, 400, 250), (3, 150, 200), (4, 150, 250), class_id=[0, 1, 0, 1]), 0.0)
    events = counter.update(frame((1, 240, 200), (2, 240, 250), class_id=[0, 1]), 0.1)
    assert {(e.rule, e.track_id) for e in events} == {("cars", 2), ("gate", 1), ("gate", 2)}
    totals = counter.totals()
    assert totals["cars"] == {"type": "line", "in": 1, "out": 0, "by_class": {"car": {"in": 1, "out": 0}}}
    assert totals["park"]["enter"] == 1 and list(totals) == ["cars", "gate", "park"]


def test_another_picture_size_keeps_the_totals() -> None:
    counter = Counter(
        [Line("gate", (0.5, 0), (0.5, 1)), Zone("all", ((0, 0), (1, 0), (1, 1), (0, 1)))], NAMES, size=SIZE
    )
    counter.update(frame((1, 400, 200)), 0.0)
    counter.update(frame((1, 240, 200)), 0.1)
    assert [e.kind for e in counter.resize((1280, 720))] == ["exit"]
    counter.update(frame((2, 700, 200)), 0.2)
    assert [e.kind for e in counter.update(frame((2, 600, 200)), 0.3)] == ["in"]
    assert counter.totals()["gate"]["in"] == 2
    with pytest.raises(ConfigError, match="outside the picture"):
        Counter([GATE], NAMES, size=SIZE).resize((300, 200))


def test_memory_does_not_grow_with_tracks_that_are_gone() -> None:
    counter = Counter([GATE], NAMES, size=SIZE)
    for i in range(1000):
        counter.update(frame((i, 400, 200)), i / 10)
    assert len(counter._tracks) < 30


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not know"):
        Counter([Line("g", (0, 0), (1, 1), classes=("person", "unicorn"))], NAMES, size=SIZE)
    with pytest.raises(ConfigError, match="outside the picture"):
        Counter([GATE], NAMES, size=(200, 200))
    with pytest.raises(ConfigError, match="same name"):
        Counter([GATE, Zone("gate", YARD.points)], NAMES, size=SIZE)
    counter = Counter([GATE], NAMES, size=SIZE)
    with pytest.raises(InputError, match="without track_id"):
        counter.update(Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)), 0.0)
    assert counter.update(Detections.empty(), 1.0) == []
    for late in (counter.no_data, lambda t: counter.update(frame(), t)):
        with pytest.raises(InputError, match="backwards"):
            late(0.5)


def count(video: SceneVideo, *, class_aware: bool = False) -> Counter:
    tracker, counter = ByteTracker(class_aware=class_aware), Counter(video.rules, video.names, size=video.size)
    for shown in video.frames(draw=False):
        counter.update(tracker.update(shown.truth, shown.time_s), shown.time_s)
    counter.finish()
    return counter


def by_class(counts: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    return {name: {c: n for c, n in value["by_class"].items() if any(n.values())} for name, value in counts.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scenario", ["crossing", "occlusion", "jitter", "reentry", "crowd", "drops"])
def test_counts_are_exact_where_the_detector_is_perfect(scenario: str, seed: int) -> None:
    """24 videos: per rule, direction and class; also how long the stays were."""
    video = make_video(scenario, seed=seed)
    counter, truth = count(video), video.counts()
    assert by_class(counter.totals()) == truth
    assert sum(n for rule in truth.values() for c in rule.values() for n in c.values()) >= 4, (
        "there is something to count"
    )
    zone = next(rule for rule in video.rules if isinstance(rule, Zone))
    stays = video.stays(zone)
    total = counter.totals()[zone.name]
    assert total["dwell_mean_s"] == pytest.approx(np.mean(stays), abs=0.5), "a few frames and the clear margin"


def test_counts_are_exact_in_traffic() -> None:
    video = make_video("traffic", seed=0, seconds=12)
    assert by_class(count(video).totals()) == video.counts()


def test_a_detector_that_never_confuses_classes_may_say_so() -> None:
    """One object vanishes behind another of another class that comes along: only the class tells them apart."""
    video = make_video("crowd", seed=11)
    assert by_class(count(video).totals()) != video.counts()
    assert by_class(count(video, class_aware=True).totals()) == video.counts()
