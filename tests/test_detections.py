"""Detections check themselves once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hawkeye.detections import Detections
from hawkeye.errors import InputError


def two() -> Detections:
    xyxy = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.float32)
    return Detections(xyxy, np.array([0.9, 0.4], np.float32), np.array([1, 0], np.int32), np.array([7, 8]))


def test_choosing_rows_keeps_columns_together():
    kept = replace(two(), coasted=np.array([False, True]))[np.array([False, True])]
    assert (len(kept), kept.class_id.tolist(), kept.track_id.tolist()) == (1, [0], [8])
    assert kept.coasted is not None and kept.coasted.tolist() == [True]
    with pytest.raises(InputError):
        replace(two(), coasted=np.zeros(3, bool))
    assert len(Detections.empty()) == 0


def test_records_are_json():
    rows = json.loads(json.dumps(two().to_records(["cat", "dog"])))
    assert rows[0] == {"class_id": 1, "name": "dog", "score": 0.9, "xyxy": [0.0, 1.0, 2.0, 3.0], "track_id": 7}


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"), [((2, 4), (3,), (2,)), ((2, 5), (2,), (2,)), ((0,), (0,), (0,))]
)
def test_shapes_that_do_not_fit(boxes, scores, classes):
    with pytest.raises(InputError, match=r"\(N, 4\)"):
        Detections(np.zeros(boxes, np.float32), np.zeros(scores, np.float32), np.zeros(classes, np.int32))
