"""Lines and zones in pixels: how far points lie beyond or inside them. The geometry of counting, without its memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hawkeye.track.rules import Line, Zone

Array = NDArray[np.float64]

MARGIN = 0.1  # of a box's size: how far beyond an edge its anchor is clearly on the other side


@dataclass(frozen=True, slots=True)
class LineShape:
    """A line in pixels, ready to be asked about many points at once."""

    rule: Line
    start: Array  # (2,)
    along: Array  # (2,) unit vector from start to end
    length: float

    @classmethod
    def of(cls, rule: Line) -> LineShape:
        start, end = np.array(rule.start), np.array(rule.end)
        length = float(np.hypot(*(end - start)))
        return cls(rule, start, (end - start) / length, length)

    def beyond(self, points: Array) -> Array:
        """Signed distance (N,) of points (N, 2) in pixels, positive on the right hand of one who walks to the end."""
        x, y = (points - self.start).T
        return np.asarray(y * self.along[0] - x * self.along[1])

    def holds(self, point: tuple[float, float]) -> bool:
        """Whether a point of the endless line lies between the ends."""
        return 0 <= float((np.array(point) - self.start) @ self.along) <= self.length


@dataclass(frozen=True, slots=True)
class ZoneShape:
    """A polygon in pixels, ready to be asked about many points at once."""

    rule: Zone
    start: Array  # (E, 2)
    side: Array  # (E, 2), to the next corner
    most_margin: float  # a small zone must still have a clear inside

    @classmethod
    def of(cls, rule: Zone) -> ZoneShape:
        start = np.array(rule.points)
        end = np.roll(start, -1, axis=0)
        area = abs(float(np.sum(start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]))) / 2
        return cls(rule, start, end - start, MARGIN * float(np.sqrt(area)))

    def depth(self, points: Array) -> Array:
        """Distance (N,) of points (N, 2) to the polygon's edge in pixels, positive inside."""
        offset = points[:, None] - self.start[None]  # (N, E, 2)
        share = np.clip((offset * self.side).sum(2) / (self.side**2).sum(1), 0, 1)
        distance = np.hypot(*np.moveaxis(offset - share[..., None] * self.side, 2, 0)).min(1)
        # Even-odd rule: how many edges does a ray to the right meet?
        low, high = self.start[:, 1], self.start[:, 1] + self.side[:, 1]
        y = points[:, 1, None]
        spans = (low <= y) != (high <= y)
        rise = np.where(self.side[:, 1] == 0, 1.0, self.side[:, 1])
        right = self.start[:, 0] + (y - low) / rise * self.side[:, 0] > points[:, 0, None]
        inside = (spans & right).sum(1) % 2 == 1
        return np.asarray(np.where(inside, distance, -distance))
