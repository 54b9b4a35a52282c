"""decode against a plain loop over boxes, on random and on chosen outputs."""

from __future__ import annotations

import numpy as np
import pytest

from hawkeye.decode import decode
from hawkeye.errors import ModelError
from hawkeye.geometry import iou_matrix


def random_raw(seed: int, classes: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, 160, (2, count)), rng.uniform(8, 60, (2, count))
    return np.concatenate([centre, size, rng.uniform(0, 1, (classes, count))]).astype(np.float32)


def plain(raw, conf, iou, max_det, *, multi_label=False, agnostic=False):
    """The definition, one box at a time."""
    rows = []
    for cx, cy, w, h, *scores in raw.T.tolist():
        chosen = range(len(scores)) if multi_label else [int(np.argmax(scores))]
        rows += [(scores[c], c, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)) for c in chosen if scores[c] > conf]
    rows.sort(key=lambda row: -row[0])
    kept = []
    for row in rows:
        rivals = [k for k in kept if agnostic or k[1] == row[1]]
        boxes = np.array([k[2] for k in rivals], np.float32).reshape(-1, 4)
        if not (iou_matrix(np.array([row[2]], np.float32), boxes) > iou).any():
            kept.append(row)
    return kept[:max_det]


@pytest.mark.parametrize(
    ("count", "classes", "options", "reason"),
    [
        (60, 5, {}, "few candidates: one batched suppression"),
        (900, 5, {}, "many candidates: class by class"),
        (150, 5, {"multi_label": True}, "several classes per box"),
        (60, 5, {"agnostic": True}, "boxes of different classes suppress each other"),
        (60, 1, {"multi_label": True}, "one class"),
    ],
)
def test_same_as_plain_loop(count, classes, options, reason):
    raw = random_raw(count, classes, count)
    found = decode(raw, conf=0.3, iou=0.5, max_det=200, max_candidates=10_000, **options)
    expected = plain(raw, 0.3, 0.5, 200, **options)
    assert found.class_id.tolist() == [row[1] for row in expected], reason
    np.testing.assert_allclose(found.score, [row[0] for row in expected], rtol=1e-6)
    np.testing.assert_allclose(found.xyxy, [row[2] for row in expected], atol=1e-3)


def test_candidate_cap_keeps_the_best():
    raw = random_raw(3, 4, 500)
    capped = decode(raw, conf=0.01, iou=1 - 1e-6, max_candidates=20, max_det=300)
    np.testing.assert_allclose(np.sort(capped.score)[::-1], np.sort(raw[4:].max(axis=0))[::-1][:20])


def test_class_filter_and_nothing_found():
    raw = random_raw(4, 4, 100)
    everything = decode(raw, conf=0.3, iou=0.7)
    only = decode(raw, conf=0.3, iou=0.7, classes=[2])
    assert set(only.class_id.tolist()) == {2}
    assert len(only) == (everything.class_id == 2).sum()
    assert len(decode(raw, conf=1.0, iou=0.7)) == 0
    assert len(decode(raw, conf=0.3, iou=0.7, classes=[])) == 0


def test_input_is_left_alone():
    raw = random_raw(5, 4, 100)
    before = raw.copy()
    decode(raw, conf=0.1, iou=0.5)
    np.testing.assert_array_equal(raw, before)


def test_wrong_shape_is_an_error():
    with pytest.raises(ModelError, match="not a detector's output"):
        decode(np.zeros((1, 84, 8400), np.float32), conf=0.2, iou=0.7)
