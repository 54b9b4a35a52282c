"""The tracker: its filter against the textbook's, its identities against the truth and against another package."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hawkeye.detections import Detections
from hawkeye.errors import InputError
from hawkeye.track.bytetrack import ByteTracker, Motion, assign

REFERENCE = json.loads((Path(__file__).parent / "reference" / "bytetrack.json").read_text())


def found(boxes: list[list[float]], scores: list[float] | None = None, classes: list[int] | None = None) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([0.9] * count if scores is None else scores, np.float32),
        np.array([0] * count if classes is None else classes, np.int32),
    )


def box(x: float, y: float = 100.0, side: float = 40.0) -> list[float]:
    return [x, y, x + side, y + side]


def test_filter_is_the_textbook_kalman_filter() -> None:
    """Four filters of two states are the one of eight states that the paper uses."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(50, 300, (5, 2)), rng.uniform(320, 500, (5, 2))], 1)
    value = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    motion = Motion.begin(value)
    dense = []
    for v in value:
        side = v[[2, 3, 2, 3]]
        spread = np.diag(np.concatenate([(2 / 20 * side) ** 2, (10 / 160 * side) ** 2]))
        dense.append((np.concatenate([v, np.zeros(4)]), spread))
    observe = np.eye(4, 8)
    for step in (1.0, 1.0, 4.0, 0.5, 1.0):
        shifted = boxes + rng.normal(0, 3, boxes.shape)
        motion.advance_(step / 30, np.ones(5, bool))
        move = np.eye(8) + step * np.eye(8, k=4)
        rows = np.array([0, 2, 3])
        motion.correct_(rows, shifted[rows])
        for i in range(5):
            mean, spread = dense[i]
            side = mean[[2, 3, 2, 3]]
            noise = step * np.diag(np.concatenate([(side / 20) ** 2, (side / 160) ** 2]))
            mean, spread = move @ mean, move @ spread @ move.T + noise
            if i in rows:
                b = shifted[i]
                seen = np.concatenate([(b[:2] + b[2:]) / 2, b[2:] - b[:2]])
                total = observe @ spread @ observe.T + np.diag((mean[[2, 3, 2, 3]] / 20) ** 2)
                gain = spread @ observe.T @ np.linalg.inv(total)
                mean, spread = mean + gain @ (seen - observe @ mean), spread - gain @ total @ gain.T
            dense[i] = (mean, spread)
    np.testing.assert_allclose(motion.value, [m[:4] for m, _ in dense], rtol=1e-9)
    np.testing.assert_allclose(motion.velocity, [m[4:] for m, _ in dense], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(motion.var, [np.diag(s)[:4] for _, s in dense], rtol=1e-9)
    np.testing.assert_allclose(motion.cov, [np.diag(s[:4, 4:]) for _, s in dense], rtol=1e-9)


def test_assignment_is_the_best_of_all() -> None:
    """Against every possible assignment of small matrices."""
    rng = np.random.default_rng(1)

    def best(likeness: np.ndarray, least: float, row: int = 0, taken: frozenset[int] = frozenset()) -> float:
        if row == len(likeness):
            return 0.0
        options = [best(likeness, least, row + 1, taken)]
        for column in range(likeness.shape[1]):
            gain = likeness[row, column] - least
            if column not in taken and gain > 0:
                options.append(gain + best(likeness, least, row + 1, taken | {column}))
        return max(options)

    for _ in range(60):
        likeness = rng.random((rng.integers(0, 6), rng.integers(0, 6))) * (rng.random() + 0.5)
        rows, columns = assign(likeness, 0.4)
        assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
        assert (likeness[rows, columns] > 0.4).all()
        assert (likeness[rows, columns] - 0.4).sum() == pytest.approx(best(likeness, 0.4))


def _links(rows: np.ndarray, ids: np.ndarray) -> set[tuple[int, int]]:
    """Which rows follow each other in a track."""
    return {pair for i in np.unique(ids[ids >= 0]) for pair in pairwise(np.flatnonzero(ids == i).tolist())}


@pytest.mark.parametrize("sequence", REFERENCE["sequences"], ids=lambda s: s["name"])
def test_agrees_with_the_trackers_package(sequence: dict) -> None:
    """MOT-format sequences with misses, tremble and imagined boxes; see benchmarks/trackers_reference.py."""
    rows = np.array(sequence["rows"])  # frame, true id, x, y, w, h, score, the package's id
    settings = REFERENCE["settings"]
    tracker = ByteTracker(**settings)
    ours = np.full(len(rows), -1)
    for frame in np.unique(rows[:, 0]):
        at = np.flatnonzero(rows[:, 0] == frame)
        xyxy = np.concatenate([rows[at, 2:4], rows[at, 2:4] + rows[at, 4:6]], 1).astype(np.float32)
        given = Detections(xyxy, rows[at, 6].astype(np.float32), np.zeros(len(at), np.int32))
        tracked = tracker.update(given, (frame - 1) / REFERENCE["fps"])
        where = {tuple(b): row for b, row in zip(xyxy.tolist(), at, strict=True)}
        assert tracked.track_id is not None
        for b, i in zip(tracked.xyxy.tolist(), tracked.track_id, strict=True):
            ours[where[tuple(b)]] = i
    theirs, truth = rows[:, 7].astype(int), rows[:, 1].astype(int)
    our_links, their_links, true_links = (_links(rows, ids) for ids in (ours, theirs, truth))
    assert len(their_links) > 200, "there is something to agree on"
    agreement = len(our_links & their_links) / len(our_links | their_links)
    assert agreement > 0.9, f"{agreement:.3f} of the links are the same"
    # And where they differ, ours is not the one that is wrong.
    right, their_right = (len(links & true_links) / len(true_links) for links in (our_links, their_links))
    assert right > their_right - 0.01
    wrong, their_wrong = len(our_links - true_links), len(their_links - true_links)
    assert wrong <= their_wrong + 2


def test_order_boxes_and_scores_are_the_detections_own() -> None:
    tracker = ByteTracker()
    first = tracker.update(found([box(0), box(200), box(400)], [0.9, 0.55, 0.8], [2, 0, 1]), 0.0)
    assert first.track_id is not None and first.track_id.tolist() == [1, 2]  # 0.55 is not sure enough to begin
    given = found([box(402), box(700), box(3)], [0.7, 0.9, 0.3], [1, 0, 2])
    second = tracker.update(given, 0.04)
    np.testing.assert_array_equal(second.xyxy, given.xyxy[[0, 2]])
    np.testing.assert_array_equal(second.score, given.score[[0, 2]])
    assert second.track_id is not None and second.track_id.tolist() == [2, 1]  # the weak one keeps its track


def test_a_track_is_confirmed_in_its_second_frame_or_never() -> None:
    tracker = ByteTracker()
    tracker.update(Detections.empty(), 0.0)
    assert len(tracker.update(found([box(0)]), 0.04)) == 0
    assert tracker.predicted(0.08).track_id.tolist() == [-1]  # type: ignore[union-attr]
    assert tracker.update(found([box(2)]), 0.08).track_id.tolist() == [1]  # type: ignore[union-attr]
    tracker.update(found([box(4), box(300)]), 0.12)  # a flash
    assert len(tracker.predicted(0.16)) == 2
    tracker.update(found([box(6)]), 0.16)
    assert len(tracker.predicted(0.2)) == 1


@pytest.mark.parametrize("gap_s, same", [(0.9, True), (1.1, False)])
def test_found_again_within_keep_s(gap_s: float, same: bool) -> None:
    """200 pixels a second; after the gap it is where it must be by then."""
    tracker = ByteTracker(keep_s=1.0)
    for i in range(26):
        tracker.update(found([box(i * 8)]), i / 25)
    expected = tracker.predicted(1.0 + gap_s)
    if same:
        np.testing.assert_allclose(expected.xyxy[0], box(200 + gap_s * 200), atol=4)
    else:
        assert len(expected) == 0
    for i in range(2):
        seen = tracker.update(found([box(200 + (gap_s + i / 25) * 200)]), 1.0 + gap_s + i / 25)
    assert seen.track_id is not None and seen.track_id.tolist() == [1 if same else 2]


def test_dropped_frames_are_longer_steps() -> None:
    """Nothing comes for 0.4 s and the object has moved by three of its widths: by time it is found, by count not."""
    times = [i / 25 for i in range(60) if not 30 <= i < 40]
    by_time, by_count = ByteTracker(), ByteTracker()
    for number, time_s in enumerate(times):
        given = found([box(time_s * 300)])
        a, b = by_time.update(given, time_s), by_count.update(given, number / 25)
    assert a.track_id.tolist() == [1]  # type: ignore[union-attr]
    assert b.track_id.tolist() == [2]  # type: ignore[union-attr]


def test_narrow_and_quick_objects_are_followed() -> None:
    """It moves by more than its own width from one frame to the next, and turns at once."""
    tracker = ByteTracker()
    places = [*range(0, 120, 8), *range(120, 0, -8)]
    for i, x in enumerate(places):
        seen = tracker.update(found([[x, 100, x + 6, 124]]), i / 25)
        assert seen.track_id is not None and seen.track_id.tolist() == [1]


def test_weak_detections_prolong_tracks_but_begin_none() -> None:
    tracker = ByteTracker()
    for i in range(3):
        tracker.update(found([box(0), box(300)], [0.9, 0.3]), i / 25)
    seen = tracker.update(found([box(0), box(300), box(600)], [0.2, 0.3, 0.05]), 3 / 25)
    assert seen.track_id is not None and seen.track_id.tolist() == [1]


@pytest.mark.parametrize("aware, ids", [(False, [1]), (True, [2])])
def test_classes_may_waver_unless_told_otherwise(aware: bool, ids: list[int]) -> None:
    tracker = ByteTracker(class_aware=aware)
    tracker.update(found([box(0)], classes=[0]), 0.0)
    for i in (1, 2):
        seen = tracker.update(found([box(0)], classes=[1]), i / 25)
    assert seen.track_id is not None and seen.track_id.tolist() == ids


def test_an_object_does_not_hand_its_identity_to_what_holds_it() -> None:
    """A bottle that a hand covers for three frames, while the arm around it is seen as a person."""
    tracker = ByteTracker()
    bottle, arm = [100, 20, 150, 140], [40, 0, 155, 150]
    for i in range(4):
        tracker.update(found([bottle], classes=[0]), i / 25)
    for i in range(4, 7):
        seen = tracker.update(found([arm], classes=[1]), i / 25)
    assert seen.track_id is not None and seen.track_id.tolist() == [2]
    seen = tracker.update(found([bottle, arm], classes=[0, 1]), 7 / 25)
    assert seen.track_id is not None and seen.track_id.tolist() == [1, 2]


def test_reset_forgets_tracks_but_not_which_identities_were_used() -> None:
    tracker = ByteTracker()
    tracker.update(found([box(0), box(200)]), 5.0)
    tracker.reset()
    assert len(tracker.predicted(5.0)) == 0
    assert tracker.update(found([box(0)]), 0.0).track_id.tolist() == [3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings", [{"low": 0.6}, {"new": 0.2}, {"high": 1.2, "new": 1.3}, {"keep_s": 0}, {"match_iou": 1}]
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="do not fit together"):
        ByteTracker(**settings)  # type: ignore[arg-type]


def test_time_runs_forwards_and_boxes_are_numbers() -> None:
    tracker = ByteTracker()
    tracker.update(found([box(0)]), 1.0)
    tracker.update(found([box(0)]), 1.0)  # some videos give two frames one time
    with pytest.raises(InputError, match="time runs backwards"):
        tracker.update(found([box(0)]), 0.9)
    with pytest.raises(InputError, match="time runs backwards"):
        tracker.update(found([box(0)]), float("nan"))
    with pytest.raises(InputError, match="finite"):
        tracker.update(found([[0, 0, float("nan"), 1]]), 1.1)


def test_empty_frames_and_degenerate_boxes() -> None:
    tracker = ByteTracker()
    for i in range(5):
        assert len(tracker.update(Detections.empty(), i / 25)) == 0
    for i in range(5, 8):
        seen = tracker.update(found([[10, 10, 10, 10], [900, 5, 1000, 5.5]]), i / 25)
    assert np.isfinite(tracker.predicted(0.4).xyxy).all() and len(seen) <= 2
