"""ByteTrack: detections of one frame after another become tracks with identities.

Method: Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022
(arXiv 2110.06864). Sure detections are matched with all tracks first, unsure ones with the tracks still in view
afterwards, so that a half hidden object keeps its track. Motion is a Kalman filter of constant velocity over centre and
size, its noise in proportion to the box (width and height as in BoT-SORT, Aharon et al. 2022, arXiv 2206.14651).
One more round than in the paper: what is left over is matched with the tracks of its class in view by widened boxes, as
in C-BIoU (Yang et al. 2023, arXiv 2211.14317), because a small object that moves by more than its own width from one
frame to the next, or turns, has no overlap with its past. Time is an argument: dropped frames are longer steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lap
import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections
from hawkeye.errors import InputError
from hawkeye.geometry import iou_matrix

Array = NDArray[np.float64]

_STEP_S = 1 / 30  # the paper's noise is per frame of 30 per second
_POSITION, _VELOCITY = 1 / 20, 1 / 160  # standard deviations, in box sides, as in the paper's code
_LOW_IOU, _UNCONFIRMED_IOU = 0.5, 0.3  # the paper's further two rounds
_NEAR_IOU = 0.2  # of widened boxes
# A box of another class counts as less alike: two classes that one object wavers between share its box, but a bottle
# and the arm that holds it do not.
_OTHER_CLASS = 0.6
_EPS_S = 1e-6  # frame times are rounded


class ByteTracker:
    """Follows the objects of one stream; not to be shared between streams.

    Args:
        high: detections of at least this score take part in the first round.
        low: detections below this score are ignored; those between `low` and `high` only prolong tracks in view.
        new: an unmatched detection of at least this score begins a track. It is confirmed when it is seen in the next
            frame too; those of the very first frame are confirmed at once.
        match_iou: smallest IoU times score for the first round.
        keep_s: seconds for which a track that is out of sight can be found again. Frames must come more often.
        class_aware: never match a detection with a track of another class. Off, because real detectors waver
            between similar classes: then their boxes must overlap more. A track's class is for the reader to vote on.

    Raises:
        InputError: thresholds out of order or out of range.
    """

    def __init__(
        self,
        *,
        high: float = 0.5,
        low: float = 0.1,
        new: float = 0.6,
        match_iou: float = 0.2,
        keep_s: float = 1.0,
        class_aware: bool = False,
    ) -> None:
        if not (0 <= low <= high <= new <= 1 and 0 <= match_iou < 1 and keep_s > 0):
            got = f"low={low}, high={high}, new={new}, match_iou={match_iou}, keep_s={keep_s}"
            raise InputError("the tracker's thresholds do not fit together", got=got,
                             expected="0 <= low <= high <= new <= 1, 0 <= match_iou < 1, keep_s > 0")  # fmt: skip
        self.high, self.low, self.new = high, low, new
        self.match_iou, self.keep_s, self.class_aware = match_iou, keep_s, class_aware
        self.reset()

    def reset(self) -> None:
        """Forget every track, as after a change of the picture's size; identities are not used again."""
        self._time: float | None = None
        self._ids = getattr(self, "_ids", 0)
        self._motion = Motion.begin(np.zeros((0, 4)))
        self._id = np.zeros(0, np.int64)  # (T,), -1 until confirmed
        self._score = np.zeros(0, np.float32)  # (T,)
        self._class = np.zeros(0, np.int32)  # (T,)
        self._seen_s = np.zeros(0)  # (T,)

    def update(self, detections: Detections, time_s: float) -> Detections:
        """Take the detections of one frame.

        Args:
            detections: boxes in pixels, any scores.
            time_s: when the frame was taken, in seconds from any beginning; never less than in the call before.

        Returns:
            The detections that belong to confirmed tracks, with `track_id` (1, 2, …) and otherwise as they were
            given: their own boxes, scores and classes, in their own order.

        Raises:
            InputError: time runs backwards, or a box is not finite.
        """
        first = self._time is None
        step_s = 0.0 if self._time is None else time_s - self._time
        if not step_s >= 0:
            raise InputError("time runs backwards", got=f"{time_s} s after {self._time} s",
                             expected="frames in order", mend="call reset() where a stream begins again")  # fmt: skip
        if not np.isfinite(detections.xyxy).all():
            raise InputError("boxes are not finite numbers", expected="corners in pixels")
        self._keep(self._seen_s >= time_s - self.keep_s - _EPS_S)
        in_view = self._seen_s >= (self._time or 0.0) - _EPS_S if not first else np.zeros(0, bool)
        self._motion.advance_(step_s, in_view)
        self._time = time_s

        confirmed = self._id >= 0
        sure = np.flatnonzero(detections.score >= self.high)
        unsure = np.flatnonzero((detections.score >= self.low) & (detections.score < self.high))
        boxes = self._motion.xyxy().astype(np.float32)
        same = detections.class_id[:, None] == self._class[None, :]  # (N, T)
        overlap = iou_matrix(detections.xyxy, boxes)
        overlap[~same] *= 0 if self.class_aware else _OTHER_CLASS
        fused = overlap * detections.score[:, None]

        track_of = np.full(len(detections), -1, np.int64)  # row in the track arrays
        free = np.ones(len(self._id), bool)

        def match(rows: NDArray[np.int64], wanted: NDArray[np.bool_], likeness: NDArray[Any], least: float) -> None:
            rows, columns = rows[track_of[rows] < 0], np.flatnonzero(wanted & free)
            at, track = assign(likeness[np.ix_(rows, columns)], least)
            track_of[rows[at]] = columns[track]
            free[columns[track]] = False

        match(sure, confirmed, fused, self.match_iou)
        match(unsure, confirmed & in_view, overlap, _LOW_IOU)
        match(sure, ~confirmed, fused, _UNCONFIRMED_IOU)
        rows, columns = sure[track_of[sure] < 0], np.flatnonzero(in_view & free)
        if len(rows) and len(columns):  # rare, so computed for what is left only
            near = np.zeros_like(overlap)
            near[np.ix_(rows, columns)] = iou_matrix(widen(detections.xyxy[rows]), widen(boxes[columns]))
            match(rows, in_view, near * same, _NEAR_IOU)

        matched = np.flatnonzero(track_of >= 0)
        tracks = track_of[matched]
        self._motion.correct_(tracks, detections.xyxy[matched])
        self._score[tracks], self._class[tracks] = detections.score[matched], detections.class_id[matched]
        self._seen_s[tracks] = time_s
        fresh = tracks[self._id[tracks] < 0]
        self._id[fresh] = self._next_ids(len(fresh))

        born = sure[(track_of[sure] < 0) & (detections.score[sure] >= self.new)]
        track_of[born] = len(self._id) + np.arange(len(born))
        self._begin(detections[born], time_s, confirmed=first)
        tracked = np.flatnonzero(track_of >= 0)
        ids = self._id[track_of[tracked]]
        self._keep((self._id >= 0) | (self._seen_s == time_s))  # unconfirmed ones have but one chance
        shown = tracked[ids >= 0]
        return replace(detections[shown], track_id=ids[ids >= 0])

    def predicted(self, time_s: float) -> Detections:
        """Where every track, in view or lost for at most `keep_s`, is expected at `time_s`; changes nothing.

        Returns:
            Boxes that may reach outside the picture, with the score, class and identity of each track; tracks that
            wait to be confirmed are among them with the identity -1. In order of their beginning.
        """
        rows = np.flatnonzero(self._seen_s >= time_s - self.keep_s - _EPS_S)
        boxes = self._motion.xyxy(max(0.0, time_s - (self._time or 0.0)))[rows].astype(np.float32)
        return Detections(boxes, self._score[rows], self._class[rows], self._id[rows])

    def _next_ids(self, count: int) -> NDArray[np.int64]:
        self._ids += count
        return np.arange(self._ids - count + 1, self._ids + 1)

    def _begin(self, found: Detections, time_s: float, *, confirmed: bool) -> None:
        count = len(found)
        ids = self._next_ids(count) if confirmed else np.full(count, -1, np.int64)
        self._motion.append_(Motion.begin(_centre_size(found.xyxy)))
        self._id = np.concatenate([self._id, ids])
        self._score = np.concatenate([self._score, found.score])
        self._class = np.concatenate([self._class, found.class_id])
        self._seen_s = np.concatenate([self._seen_s, np.full(count, time_s)])

    def _keep(self, mask: NDArray[np.bool_]) -> None:
        if mask.all():
            return
        self._motion.keep_(mask)
        self._id, self._score = self._id[mask], self._score[mask]
        self._class, self._seen_s = self._class[mask], self._seen_s[mask]


class Motion:
    """Kalman filters of many boxes at once: centre x, centre y, width, height, each with its own velocity.

    The paper's filter has 8 states, but its noise is independent from one coordinate to the next, so it is exactly
    four filters of two states (value, velocity per step); their variances are three numbers each, and no matrix is
    inverted. Arrays are (T, 4), in pixels and pixels per step of 1/30 s.
    """

    def __init__(self, value: Array, velocity: Array, var: Array, cov: Array, velocity_var: Array) -> None:
        self.value, self.velocity = value, velocity
        self.var, self.cov, self.velocity_var = var, cov, velocity_var

    @classmethod
    def begin(cls, value: Array) -> Motion:
        """Filters of boxes seen once: at rest, of unknown velocity. `value` is (T, 4): centre and size."""
        side = _sides(value)
        return cls(value.astype(np.float64), np.zeros_like(value, np.float64),
                   (2 * _POSITION * side) ** 2, np.zeros_like(side), (10 * _VELOCITY * side) ** 2)  # fmt: skip

    def advance_(self, step_s: float, in_view: NDArray[np.bool_]) -> None:
        """Let `step_s` pass. Sizes of tracks out of view are held: what was being hidden did not shrink."""
        self.velocity[~in_view, 2:] = 0
        step = step_s / _STEP_S
        side = _sides(self.value)
        self.value += step * self.velocity
        np.maximum(self.value[:, 2:], 1.0, out=self.value[:, 2:])
        self.var += step * (2 * self.cov + step * self.velocity_var) + step * (_POSITION * side) ** 2
        self.cov += step * self.velocity_var
        self.velocity_var += step * (_VELOCITY * side) ** 2

    def correct_(self, rows: NDArray[np.int64], xyxy: NDArray[Any]) -> None:
        """Take measured boxes (M, 4) of the filters `rows` (M,)."""
        seen = _centre_size(xyxy)
        var, cov = self.var[rows], self.cov[rows]
        spread = var + (_POSITION * _sides(self.value[rows])) ** 2
        gain, gain_velocity, error = var / spread, cov / spread, seen - self.value[rows]
        self.value[rows] += gain * error
        self.velocity[rows] += gain_velocity * error
        self.velocity_var[rows] -= gain_velocity * cov
        self.cov[rows] -= gain * cov
        self.var[rows] -= gain * var

    def xyxy(self, ahead_s: float = 0.0) -> Array:
        """Corners (T, 4), expected `ahead_s` from now."""
        value = self.value + ahead_s / _STEP_S * self.velocity
        half = np.maximum(value[:, 2:], 1.0) / 2
        return np.concatenate([value[:, :2] - half, value[:, :2] + half], axis=1)

    def keep_(self, mask: NDArray[np.bool_]) -> None:
        """Drop the filters outside `mask` (T,)."""
        for name, array in vars(self).items():
            setattr(self, name, array[mask])

    def append_(self, other: Motion) -> None:
        """Put the filters of `other` behind these."""
        for name, array in vars(self).items():
            setattr(self, name, np.concatenate([array, getattr(other, name)]))


def assign(likeness: NDArray[Any], least: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair rows with columns so that the likeness gained is greatest; pairs at or under `least` do not count.

    Args:
        likeness: (N, M), 0 to 1.
        least: a pair must be more alike than this.

    Returns:
        rows and columns of the pairs, each (K,).
    """
    possible = likeness > least
    alone = possible & (possible.sum(1) == 1)[:, None] & (possible.sum(0) == 1)[None, :]
    rows, columns = np.nonzero(alone)  # pairs without a rival need no solver
    left_rows = np.flatnonzero(possible.any(1) & ~alone.any(1))
    if len(left_rows):
        left_columns = np.flatnonzero(possible.any(0) & ~alone.any(0))
        cost = 1.0 - likeness[np.ix_(left_rows, left_columns)].astype(np.float64)
        of_row, _ = lap.lapjv(cost, extend_cost=True, cost_limit=1.0 - least, return_cost=False)
        paired = np.flatnonzero(of_row >= 0)
        rows = np.concatenate([rows, left_rows[paired]])
        columns = np.concatenate([columns, left_columns[of_row[paired]]])
    return rows, columns


def widen(xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes (N, 4) with a margin of their own size (the root of their area) all around."""
    low, high = xyxy[:, :2], xyxy[:, 2:]
    margin = np.sqrt(np.maximum(high - low, 1).prod(axis=1))[:, None]
    return np.concatenate([low - margin, high + margin], axis=1)


def _centre_size(xyxy: NDArray[Any]) -> Array:
    """(N, 4) corners to centre x, centre y, width, height; sides of at least a pixel."""
    low, high = xyxy[:, :2].astype(np.float64), xyxy[:, 2:].astype(np.float64)
    return np.concatenate([(low + high) / 2, np.maximum(high - low, 1.0)], axis=1)


def _sides(value: Array) -> Array:
    """The side that each coordinate's noise is in proportion to: width, height, width, height."""
    return value[:, [2, 3, 2, 3]]
