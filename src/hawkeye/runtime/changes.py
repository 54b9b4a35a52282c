"""Where a stream's picture has changed since the network last looked there, on a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.runtime.views import Window

_SIDE = 200  # longer side of the thumbnail
_CHANGE = 12  # grey levels that one of its pixels must differ by: above sensor and compression noise
_LEAST = 12  # cells of a change after growing by one all round; one cell alone is 9: noise


class Changes:
    """Compares frames (H, W, 3) of uint8 BGR of one size with what was looked at before.

    The reference is kept cell by cell: slow motion adds up until it shows.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        scale = _SIDE / max(height, width)
        self._size = max(1, round(width * scale)), max(1, round(height * scale))
        self._scale = np.array([self._size[0] / width, self._size[1] / height], np.float32)
        self._now = self._reference = self._thumbnail(image)
        self._changed: NDArray[np.uint8] = np.zeros(self._size[::-1], np.uint8)
        self._sums: NDArray[np.int32] = cv2.integral(self._changed)
        self._dull: NDArray[np.int64] = np.zeros(self._size[::-1], np.int64)

    def compare(self, image: NDArray[np.uint8]) -> float:
        """Take in the next frame; returns the share of it that has changed."""
        self._now = self._thumbnail(image)
        blue, green, red = cv2.split(cv2.absdiff(self._now, self._reference))
        largest = cv2.max(cv2.max(blue, green), red)
        self._changed = cv2.threshold(largest, _CHANGE, 1, cv2.THRESH_BINARY)[1]
        self._sums = cv2.integral(self._changed)
        return float(self._sums[-1, -1]) / self._changed.size

    def any_in(self, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether anything has changed inside each box (N, 4) in picture pixels."""
        x1, y1, x2, y2 = self._cells(boxes)
        sums = self._sums
        inside: NDArray[np.bool_] = (sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]) > 0
        return inside

    def unexplained(self, known: NDArray[np.float32], frame: int) -> NDArray[np.float32]:
        """Boxes (M, 4) around changes outside the `known` ones (N, 4), but for those that mean nothing in `frame`."""
        rest = self._changed & (self._dull < frame).view(np.uint8)
        for x1, y1, x2, y2 in zip(*self._cells(known), strict=True):
            rest[y1:y2, x1:x2] = 0
        if not rest.any():
            return np.zeros((0, 4), np.float32)
        stats = cv2.connectedComponentsWithStats(cv2.dilate(rest, np.ones((3, 3), np.uint8)))[2][1:]
        rows = stats[stats[:, cv2.CC_STAT_AREA] > _LEAST].astype(np.float32)
        boxes: NDArray[np.float32] = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        boxes /= np.concatenate([self._scale, self._scale])
        return boxes

    def looked_at_(self, windows: Sequence[Window] | None = None) -> None:
        """The present frame is the reference from now on, in some windows or everywhere."""
        if windows is None:
            self._reference = self._now
            return
        for x1, y1, x2, y2 in zip(*self._cells(np.array(windows, np.float32).reshape(-1, 4)), strict=True):
            self._reference[y1:y2, x1:x2] = self._now[y1:y2, x1:x2]

    def ignore_(self, boxes: NDArray[np.float32], until: int) -> None:
        """Changes in these boxes (N, 4) mean nothing up to frame `until`."""
        for x1, y1, x2, y2 in zip(*self._cells(boxes), strict=True):
            self._dull[y1:y2, x1:x2] = until

    def _cells(self, boxes: NDArray[np.float32]) -> tuple[NDArray[np.int64], ...]:
        """x1, y1, x2, y2 (ends excluded) of the cells that boxes in picture pixels touch, each (N,)."""
        low = np.clip((boxes[:, :2] * self._scale).astype(np.int64), 0, self._size)
        high = np.clip(np.ceil(boxes[:, 2:] * self._scale).astype(np.int64), 0, self._size)
        return low[:, 0], low[:, 1], high[:, 0], high[:, 1]

    def _thumbnail(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # Four samples per cell calm the noise; averaging all pixels would cost as much as a look.
        small = cv2.resize(image, (2 * self._size[0], 2 * self._size[1]), interpolation=cv2.INTER_LINEAR)
        thumb: NDArray[np.uint8] = cv2.resize(small, self._size, interpolation=cv2.INTER_AREA)
        return thumb
