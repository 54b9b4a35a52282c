"""Drawn videos: the truth is what is drawn, the same each time, and independent of the tracker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from hawkeye import scene_videos
from hawkeye.errors import ConfigError, StorageError
from hawkeye.scene_plans import SCENARIOS, make_video
from hawkeye.scene_videos import Actor, SceneVideo, mot_rows, write_video
from hawkeye.track.rules import Line, Zone


def path(
    *points: tuple[float, float], times: tuple[float, ...] | None = None, size: float = 40, kind: int = 0
) -> Actor:
    seconds = np.arange(len(points), dtype=float) if times is None else np.array(times)
    return Actor(kind, size, seconds, np.array(points, float), np.ones(len(points)))


def video(*actors: Actor, rules: tuple[Line | Zone, ...] = (), seconds: float = 4.0) -> SceneVideo:
    count = round(seconds * 25)
    return SceneVideo("test", (320, 240), 25.0, tuple(range(count)), rules, actors, np.zeros((0, 4), np.int64), 3)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_seed_same_video_and_drawing_changes_no_truth(scenario: str) -> None:
    a, b = (make_video(scenario, seed=5, size=(640, 360), seconds=6) for _ in range(2))
    other = make_video(scenario, seed=6, size=(640, 360), seconds=6)
    assert a.counts() == b.counts()
    seen = 0
    for number, (drawn, plain) in enumerate(zip(a.frames(), b.frames(draw=False), strict=True)):
        assert plain.image is None and drawn.image is not None and drawn.image.shape == (360, 640, 3)
        assert drawn.time_s == plain.time_s == drawn.index / 25
        np.testing.assert_array_equal(drawn.truth.xyxy, plain.truth.xyxy)
        np.testing.assert_array_equal(drawn.truth.track_id, plain.truth.track_id)
        seen += len(plain.truth)
        if number == 20:
            break
    first, again = next(a.frames()).image, next(b.frames()).image
    np.testing.assert_array_equal(first, again)
    assert seen and not np.array_equal(first, next(other.frames()).image)


def test_boxes_are_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object on a black ground without noise: what is not black is the object."""
    monkeypatch.setattr(scene_videos, "_NOISE", 0)
    monkeypatch.setattr(scene_videos, "draw_background", lambda rng, side: np.zeros((side, side, 3), np.float32))
    checked = 0
    for kind in range(8):
        for shown in video(path((-30, 150), (350, 190), kind=kind), seconds=1).frames():
            assert shown.image is not None
            bright = shown.image.max(axis=2) > 0
            for x1, y1, x2, y2 in shown.truth.xyxy.astype(int):
                ys, xs = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
                # The soft edge, half a pixel of which is no object, may reach one pixel further; dark parts less.
                np.testing.assert_allclose((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1), (x1, y1, x2, y2), atol=2)
                checked += 1
    assert checked > 100


def test_the_box_stands_on_the_path() -> None:
    for shown in video(path((60, 120), (260, 200))).frames(draw=False):
        if not len(shown.truth):
            assert shown.time_s > 1
            continue
        x1, _, x2, y2 = shown.truth.xyxy[0]
        assert abs((x1 + x2) / 2 - (60 + 200 * shown.time_s)) <= 1
        assert abs(y2 - (120 + 80 * shown.time_s)) <= 0.5


def test_the_hidden_have_no_label() -> None:
    """A larger one passes in front of a smaller one that stands."""
    small = path((160, 150), (160, 150), times=(0, 4), size=24, kind=1)
    large = path((-60, 190), (380, 190), times=(0, 4), size=110, kind=1)
    ids = [set(shown.truth.track_id.tolist()) for shown in video(small, large).frames(draw=False)]  # type: ignore[union-attr]
    gone = [i for i, seen in enumerate(ids) if 1 not in seen]
    assert 10 < len(gone) < 60 and gone == list(range(gone[0], gone[-1] + 1))
    assert 1 in ids[0] and 1 in ids[-1]


def test_counts_come_from_the_paths() -> None:
    gate = Line("gate", (160, 40), (160, 200))  # "in" is to the left
    yard = Zone("yard", ((200, 40), (280, 40), (280, 200), (200, 200)))
    there = [(100, 100), (300, 100)]
    actors = (
        path(*there, kind=0),  # out; enters, leaves
        path(*there[::-1], kind=0),  # in; enters, leaves
        path((100, 20), (300, 20), kind=1),  # above both
        path((100, 100), (180, 100), (100, 120), (180, 120), kind=2),  # out, in, and out again
        path((240, 100), (240, 120), kind=3),  # was there all the time
        path((100, 100), (300, 100), times=(3.9, 8.0), kind=4),  # comes too late
    )
    drawn = video(*actors, rules=(gate, yard))
    names = drawn.names
    assert drawn.counts() == {
        "gate": {names[0]: {"in": 1, "out": 1}, names[2]: {"in": 1, "out": 1}},
        "yard": {names[0]: {"enter": 2, "exit": 2}, names[3]: {"enter": 1, "exit": 1}},
    }
    assert drawn.stays(yard) == pytest.approx([0.4, 0.4, 1.0], abs=0.02)
    only = Line("gate", gate.start, gate.end, classes=(names[2],))
    assert list(video(*actors, rules=(only,)).counts()["gate"]) == [names[2]]


def test_scenarios_hold_what_they_promise() -> None:
    """Otherwise exact counts would prove little."""
    hidden = crossed = 0
    drops = make_video("drops", seed=1)
    assert len(drops) < 0.8 * round(drops.seconds * drops.fps) and np.diff(drops.indices).max() >= 4
    occlusion = make_video("occlusion", seed=1)
    per_frame = [set(f.truth.track_id.tolist()) for f in occlusion.frames(draw=False)]  # type: ignore[union-attr]
    for identity in range(1, len(occlusion.actors) + 1):
        seen = [i for i, ids in enumerate(per_frame) if identity in ids]
        hidden = max(hidden, int(np.diff(seen).max()))
    assert 5 < hidden < 25, "long enough to be hard, shorter than a tracker's memory"
    crowd = make_video("crowd", seed=1)
    assert max(len(f.truth) for f in crowd.frames(draw=False)) >= 15
    jitter = make_video("jitter", seed=1)
    for actor in range(1, len(jitter.actors) + 1):
        boxes = [f.truth.xyxy[f.truth.track_id == actor] for f in jitter.frames(draw=False)]
        middle = np.array([(b[0, 0] + b[0, 2]) / 2 for b in boxes if len(b)])
        crossed += int((np.diff(np.sign(middle - 320.25)) != 0).sum())
    assert crossed > 10 * len(jitter.actors), "each is on both sides of the line many times"
    traffic = make_video("traffic", seed=1)
    assert traffic.size == (1920, 1080)
    few = replace(traffic, indices=traffic.indices[::10])
    sides = [float(s) for f in few.frames(draw=False) for s in (f.truth.xyxy[:, 2:] - f.truth.xyxy[:, :2]).max(1)]
    far, near = np.mean(np.array(sides) < 45), np.mean(np.array(sides) > 200)
    assert far > 0.25 and near > 0.05


def test_written_videos_can_be_read_back(tmp_path: Path) -> None:
    made = make_video("crossing", seed=2, seconds=1)
    out = write_video(made, tmp_path / "new" / "crossing.mp4")
    reader, frames = cv2.VideoCapture(str(out)), 0
    while reader.read()[0]:
        frames += 1
    reader.release()
    assert frames == len(made) == 25
    rows = np.loadtxt(out.with_suffix(".txt"), delimiter=",", ndmin=2)
    truth = [(n, i) for n, f in enumerate(made.frames(draw=False), 1) for i in f.truth.track_id.tolist()]  # type: ignore[union-attr]
    assert [(int(r[0]), int(r[1])) for r in rows] == truth
    assert mot_rows(3, next(made.frames(draw=False)).truth[:0]) == []


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crossing, occlusion"):
        make_video("ballet")
    with pytest.raises(ConfigError, match="cannot be drawn"):
        make_video("crowd", size=(64, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError)):
        write_video(make_video("crossing", seconds=0.1), tmp_path / "file" / "x.mp4")
