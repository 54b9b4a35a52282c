"""Where the objects of one frame may be in the next one: boxes (N, 4) in picture pixels, moved, stretched and grown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections
from hawkeye.geometry import Size, iou_matrix

Boxes = NDArray[np.float32]
NONE: Boxes = np.zeros((0, 4), np.float32)


class Expected(NamedTuple):
    """What a tracker says of the objects of the last frame.

    Attributes:
        there: (N, 4) where each should be; where it was, where no track says anything.
        followed: (N,) whether a track says so.
        proven: (N,) whether a track says so whose word can be relied on.
        others: (M, 4) where tracks expect objects that are none of these.
    """

    there: Boxes
    followed: NDArray[np.bool_]
    proven: NDArray[np.bool_]
    others: Boxes


def expected_of(
    boxes: Boxes, still: Boxes, expected: Detections | None, proven: NDArray[np.bool_], hw: Size
) -> Expected:
    """Find the track of each object.

    Args:
        boxes: (N, 4) of the last frame.
        still: (K, 4) further ones, which need no track.
        expected: of a tracker; None where there is none.
        proven: which of them can be relied on.
        hw: height and width of the picture.
    """
    there, followed, sure = boxes.copy(), np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    if expected is None or not len(expected):
        return Expected(there, followed, sure, NONE)
    tracks: Boxes = np.clip(expected.xyxy, 0, np.array([hw[1], hw[0]] * 2, np.float32))
    in_picture = (tracks[:, 2:] > tracks[:, :2] + 1).all(axis=1)
    tracks = tracks[in_picture]
    overlap = iou_matrix(boxes, tracks)
    if len(boxes) and len(tracks):
        partner = overlap.argmax(axis=1)
        followed = overlap[np.arange(len(boxes)), partner] > 0.2
        sure = followed & proven[in_picture][partner]
        there[followed] = tracks[partner[followed]]
    unseen = (overlap <= 0.2).all(axis=0) & (iou_matrix(tracks, still) <= 0.5).all(axis=1)
    return Expected(there, followed, sure, tracks[unseen])


def leap(before: Detections | None, now: Detections | None, share: float) -> bool:
    """Whether most tracks are expected elsewhere than in the last frame by more than `share` of their shorter side."""
    if before is None or now is None or before.track_id is None or now.track_id is None:
        return False
    _, then, here = np.intersect1d(before.track_id, now.track_id, return_indices=True)
    moved = np.abs(now.xyxy[here] - before.xyxy[then]).max(axis=1)
    sides = (before.xyxy[then, 2:] - before.xyxy[then, :2]).min(axis=1)
    return bool(((moved > share * sides) & (now.track_id[here] >= 0)).sum() > len(here) / 2)


def reach(boxes: Boxes, expected: Expected) -> Boxes:
    """All of the picture that objects (N, 4) may be in: far around where no proven track says where they go."""
    low, high = np.minimum(expected.there, boxes)[:, :2], np.maximum(expected.there, boxes)[:, 2:]
    return grown(np.concatenate([low, high], axis=1), np.where(expected.proven, 0.25, 0.75)[:, None])


def grown(boxes: Boxes, share: float | NDArray[np.float64]) -> Boxes:
    """Boxes with a margin of `share` of their longer side, and at least 8 pixels."""
    margin = np.maximum(8, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) * share) if len(boxes) else 0
    return (boxes + margin * np.array([-1, -1, 1, 1], np.float32)).astype(np.float32).reshape(-1, 4)


def inside(boxes: Boxes, hw: Size) -> NDArray[np.bool_]:
    """Which boxes do not touch the edge of a picture (H, W)."""
    away: NDArray[np.bool_] = np.all((boxes[:, :2] > 2) & (boxes[:, 2:] < (hw[1] - 2, hw[0] - 2)), axis=1)
    return away
