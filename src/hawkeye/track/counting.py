"""Counts tracks over lines and in zones, one frame after another; time is an argument and no frame is needed.

What counts, exactly:

- **A line** is crossed when the anchor of a track has passed between its ends and is clearly beyond it: by a tenth of
  the box's size (the root of its area), at least 1 pixel and at most 1 % of the picture's diagonal. Trembling on the
  line is no crossing. Passing beside the line's ends counts nothing. A track that was first seen on the line counts
  for nothing until it has been clearly on one side.
- **A track counts once** in each direction of a line (`Line.repeat` lifts that): somebody who goes in, comes out and
  goes in again is one "in" and one "out". What leaves the picture and comes back after the tracker forgot it is new.
- **A zone** is entered or left when the anchor is clearly inside or outside by the same measure. A track that is first
  seen inside has entered; one that vanishes inside has left when it was last seen. So entries = exits + occupancy.
- **What was not seen counts nothing**: a box that only moved with its track may have gone too far. Its crossing counts
  in the next frame that shows it.
- **The class** of a track is what most of its detections were so far; a stay in a zone keeps the class of its entry. A
  rule for some classes counts a track that becomes one of them: in a zone while it is inside, over a line within 2 s of
  its crossing, with the time of that. What has been counted stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, InputError
from hawkeye.track.rules import Line, Rule, Zone, check_rules
from hawkeye.track.shapes import MARGIN, Array, LineShape, ZoneShape

Kind = Literal["in", "out", "enter", "exit", "dwell"]

_MAX_MARGIN = 0.01  # of the picture's diagonal, so that large boxes near the border count too
LOST_S = 2.0  # longer than a tracker keeps a track out of sight
_SETTLE_S = 2.0  # seen from above and close, a car may be a cell phone at first; later it may be somebody else's number


@dataclass(frozen=True, slots=True)
class CountEvent:
    """One thing that was counted.

    Attributes:
        time_s: when, in the time of the frames. The exit of a track that vanished carries the time it was last seen, a
            crossing whose class was not clear at once that of the crossing.
        rule: name of the line or zone.
        kind: "in" and "out" of a line; "enter" and "exit" of a zone; "dwell" when a stay reaches the zone's `dwell_s`.
        class_name: the track's class, see the top of this module.
        track_id: the track.
        seconds: how long the stay has lasted, for "exit" and "dwell"; else None.
    """

    time_s: float
    rule: str
    kind: Kind
    class_name: str
    track_id: int
    seconds: float | None = None


@dataclass(slots=True)
class _Stay:
    since_s: float
    class_id: int
    told: bool = False


@dataclass(slots=True)
class _Track:
    seen_s: float
    sides: list[int]  # per line: -1 or 1 once clearly on a side, else 0
    places: list[tuple[float, float, float] | None]  # per line: signed distance in pixels, anchor x, anchor y
    through: list[bool]  # per line: the last change of sign lay between the line's ends
    stays: list[_Stay | None]  # per zone
    counted: set[tuple[int, int]] = field(default_factory=set)  # line, direction
    waiting: dict[tuple[int, int], float] = field(default_factory=dict)  # the same: crossed then, in a class not wanted
    votes: dict[int, int] = field(default_factory=dict)
    class_id: int = -1


@dataclass(slots=True)
class _ZoneTotals:
    enter: dict[int, int] = field(default_factory=dict)
    exit: dict[int, int] = field(default_factory=dict)
    now: int = 0
    most: int = 0
    stays: int = 0
    stay_s: float = 0.0
    longest_s: float = 0.0


class Counter:
    """Counts what a tracker reports; one for each stream.

    Args:
        rules: lines and zones, in pixels or fractions.
        names: class names by index.
        size: width and height of the picture in pixels.
        lost_s: a track unseen for longer is gone; must be longer than the tracker's `keep_s`.

    Raises:
        ConfigError: a rule outside the picture, a class that the model does not know, two rules of one name.
    """

    def __init__(
        self, rules: Sequence[Rule], names: Sequence[str], *, size: tuple[int, int], lost_s: float = LOST_S
    ) -> None:
        self.names, self.lost_s = tuple(names), lost_s
        self._rules = check_rules(rules)
        for rule in self._rules:
            unknown = sorted(set(rule.classes or ()) - set(self.names))
            if unknown:
                known = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
                raise ConfigError(f"rule {rule.name!r} names a class that the model does not know",
                                  got=", ".join(unknown), expected=known)  # fmt: skip
        self._wanted = {rule.name: self._class_ids(rule) for rule in self._rules}
        self._tracks: dict[int, _Track] = {}
        self._has_data = False
        self._time: float | None = None
        self._line_totals: list[tuple[dict[int, int], dict[int, int]]] = [({}, {}) for _ in self._of(Line)]
        self._zone_totals = [_ZoneTotals() for _ in self._of(Zone)]
        self.resize(size)

    def resize(self, size: tuple[int, int]) -> list[CountEvent]:
        """The picture has another size from now on: totals stay, stays end, tracks begin anew (reset the tracker too).

        Raises:
            ConfigError: a rule in pixels that lies outside the new picture.
        """
        width, height = size
        scaled = [rule.scaled(width, height) for rule in self._rules]
        ended = self.finish()
        self._lines = [LineShape.of(rule) for rule in scaled if isinstance(rule, Line)]
        self._zones = [ZoneShape.of(rule) for rule in scaled if isinstance(rule, Zone)]
        self._most_margin = max(1.0, _MAX_MARGIN * float(np.hypot(width, height)))
        self.size = size
        return ended

    def change(self, rules: Sequence[Rule]) -> list[CountEvent]:
        """Other rules from now on: those that are the same keep their totals and stays, the others begin anew.

        Returns:
            The stays that end because their zone is no more.

        Raises:
            ConfigError: as for the constructor; nothing is changed then.
        """
        fresh = Counter(rules, self.names, size=self.size, lost_s=self.lost_s)
        lines_now, zones_now = [line.rule for line in self._lines], [zone.rule for zone in self._zones]
        lines = [lines_now.index(new.rule) if new.rule in lines_now else None for new in fresh._lines]
        zones = [zones_now.index(new.rule) if new.rule in zones_now else None for new in fresh._zones]
        events = [
            self._leave(number, track_id, track, stay, track.seen_s)
            for track_id, track in self._tracks.items()
            for number, stay in enumerate(track.stays)
            if stay is not None and number not in zones
        ]
        for track in self._tracks.values():
            track.sides = [0 if old is None else track.sides[old] for old in lines]
            track.places = [None if old is None else track.places[old] for old in lines]
            track.through = [old is not None and track.through[old] for old in lines]
            track.stays = [None if old is None else track.stays[old] for old in zones]
            track.counted = {(new, side) for new, old in enumerate(lines) for side in (-1, 1)
                             if (old, side) in track.counted}  # fmt: skip
            track.waiting = {(new, side): track.waiting[old, side] for new, old in enumerate(lines) for side in (-1, 1)
                             if old is not None and (old, side) in track.waiting}  # fmt: skip
        self._line_totals = [
            fresh._line_totals[new] if old is None else self._line_totals[old] for new, old in enumerate(lines)
        ]
        self._zone_totals = [
            fresh._zone_totals[new] if old is None else self._zone_totals[old] for new, old in enumerate(zones)
        ]
        self._rules, self._wanted, self._lines, self._zones = fresh._rules, fresh._wanted, fresh._lines, fresh._zones
        return events

    def update(self, tracked: Detections, time_s: float) -> list[CountEvent]:
        """Take the tracks of one frame.

        Args:
            tracked: confirmed tracks with `track_id`; an empty frame is data too.
            time_s: never less than in the call before.

        Returns:
            What was counted now.

        Raises:
            InputError: no identities, or time runs backwards.
        """
        if tracked.track_id is None and len(tracked):
            raise InputError("counting needs tracks", got="detections without track_id", expected="a tracker's output")
        self._advance(time_s)
        self._has_data = True
        events = self._forget(time_s)
        if tracked.coasted is not None:
            tracked = tracked[~tracked.coasted]
        if not len(tracked) or tracked.track_id is None:
            return events
        ids = tracked.track_id.tolist()
        tracks = [self._seen(i, c, time_s) for i, c in zip(ids, tracked.class_id.tolist(), strict=True)]
        box = tracked.xyxy.astype(np.float64)
        size = np.sqrt(np.maximum(box[:, 2] - box[:, 0], 1) * np.maximum(box[:, 3] - box[:, 1], 1))
        margin = np.clip(MARGIN * size, 1.0, self._most_margin)
        middle = (box[:, 0] + box[:, 2]) / 2
        anchors = {
            "bottom": np.stack([middle, box[:, 3]], axis=1),
            "centre": np.stack([middle, (box[:, 1] + box[:, 3]) / 2], axis=1),
        }
        for number, line in enumerate(self._lines):
            events += self._cross(number, line, anchors[line.rule.anchor], margin, ids, tracks, time_s)
        for number, zone in enumerate(self._zones):
            events += self._visit(number, zone, anchors[zone.rule.anchor], margin, ids, tracks, time_s)
        return events

    def no_data(self, time_s: float) -> None:
        """Nothing is known of this moment: a dead stream or an unreadable frame, which is not an empty picture.

        Raises:
            InputError: time runs backwards.
        """
        self._advance(time_s)
        self._has_data = False

    def finish(self) -> list[CountEvent]:
        """The stream is over: every stay ends when its track was last seen."""
        return [event for track_id in list(self._tracks) for event in self._end(track_id)]

    def occupancy(self) -> dict[str, dict[str, int]] | None:
        """Who is in each zone now, by class; None where the last call was `no_data`."""
        if not self._has_data:
            return None
        result: dict[str, dict[str, int]] = {zone.rule.name: {} for zone in self._zones}
        for track in self._tracks.values():
            for zone, stay in zip(self._zones, track.stays, strict=True):
                if stay is not None:
                    name, inside = self.names[stay.class_id], result[zone.rule.name]
                    inside[name] = inside.get(name, 0) + 1
        return result

    def totals(self) -> dict[str, dict[str, Any]]:
        """Everything so far, by the rule's name, JSON-ready.

        Returns:
            A line: {"type": "line", "in": n, "out": n, "by_class": {class: {"in": n, "out": n}}}. A zone: {"type":
            "zone", "enter": n, "exit": n, "now": n or None without data, "max": n, "dwell_mean_s": of the stays that
            ended, None before the first, "dwell_max_s": the same, "by_class": {class: {"enter": n, "exit": n}}}.
        """
        result: dict[str, dict[str, Any]] = {}
        for line, (inwards, outwards) in zip(self._lines, self._line_totals, strict=True):
            result[line.rule.name] = {
                "type": "line", "in": sum(inwards.values()), "out": sum(outwards.values()),
                "by_class": self._by_class({"in": inwards, "out": outwards}),
            }  # fmt: skip
        for zone, total in zip(self._zones, self._zone_totals, strict=True):
            result[zone.rule.name] = {
                "type": "zone", "enter": sum(total.enter.values()), "exit": sum(total.exit.values()),
                "now": total.now if self._has_data else None, "max": total.most,
                "dwell_mean_s": total.stay_s / total.stays if total.stays else None,
                "dwell_max_s": total.longest_s if total.stays else None,
                "by_class": self._by_class({"enter": total.enter, "exit": total.exit}),
            }  # fmt: skip
        return {rule.name: result[rule.name] for rule in self._rules}

    def _of(self, kind: type[Line] | type[Zone]) -> list[Rule]:
        return [rule for rule in self._rules if isinstance(rule, kind)]

    def _class_ids(self, rule: Rule) -> frozenset[int]:
        wanted = range(len(self.names)) if rule.classes is None else map(self.names.index, rule.classes)
        return frozenset(wanted)

    def _by_class(self, counts: dict[str, dict[int, int]]) -> dict[str, dict[str, int]]:
        classes = sorted(set().union(*counts.values()))
        return {self.names[c]: {kind: count.get(c, 0) for kind, count in counts.items()} for c in classes}

    def _advance(self, time_s: float) -> None:
        if self._time is not None and not time_s >= self._time:
            raise InputError("time runs backwards", got=f"{time_s} s after {self._time} s", expected="frames in order")
        self._time = time_s

    def _seen(self, track_id: int, class_id: int, time_s: float) -> _Track:
        track = self._tracks.get(track_id)
        if track is None:
            lines, zones = len(self._lines), len(self._zones)
            track = _Track(time_s, [0] * lines, [None] * lines, [False] * lines, [None] * zones)
            self._tracks[track_id] = track
        track.seen_s = time_s
        votes = track.votes[class_id] = track.votes.get(class_id, 0) + 1
        if votes > track.votes.get(track.class_id, 0):  # a tie keeps the class it had
            track.class_id = class_id
        return track

    def _cross(
        self,
        number: int,
        line: LineShape,
        anchor: Array,
        margin: Array,
        ids: list[int],
        tracks: list[_Track],
        now: float,
    ) -> list[CountEvent]:
        events = []
        beyond = line.beyond(anchor)
        clear = (np.sign(beyond) * (np.abs(beyond) > margin)).astype(int).tolist()
        rows = zip(ids, tracks, beyond.tolist(), anchor.tolist(), clear, strict=True)
        for track_id, track, distance, (x, y), side in rows:
            before = track.places[number]
            track.places[number] = (distance, x, y)
            if before is not None and (before[0] >= 0) != (distance >= 0):
                share = before[0] / (before[0] - distance)
                met = (before[1] + share * (x - before[1]), before[2] + share * (y - before[2]))
                track.through[number] = line.holds(met)
            was = track.sides[number]
            if side not in (0, was):
                track.sides[number] = side
                again = not line.rule.repeat and (number, side) in track.counted
                if was != 0 and track.through[number] and not again:
                    track.waiting[number, side] = now
            if track.waiting:
                events += self._settle(number, line, track_id, track, now)
        return events

    def _settle(self, number: int, line: LineShape, track_id: int, track: _Track, now: float) -> list[CountEvent]:
        """Count the crossings of a line that wait, where the track is of a class that counts by now."""
        events = []
        for (waits, side), crossed_s in list(track.waiting.items()):
            if waits != number:
                continue
            wanted, late = track.class_id in self._wanted[line.rule.name], now - crossed_s > _SETTLE_S
            if wanted or late:
                del track.waiting[number, side]
            if wanted and not late:
                track.counted.add((number, side))
                totals = self._line_totals[number][0 if side > 0 else 1]
                totals[track.class_id] = totals.get(track.class_id, 0) + 1
                kind: Kind = "in" if side > 0 else "out"
                events.append(CountEvent(crossed_s, line.rule.name, kind, self.names[track.class_id], track_id))
        return events

    def _visit(
        self,
        number: int,
        zone: ZoneShape,
        anchor: Array,
        margin: Array,
        ids: list[int],
        tracks: list[_Track],
        now: float,
    ) -> list[CountEvent]:
        events = []
        rule, total = zone.rule, self._zone_totals[number]
        depth = zone.depth(anchor)
        margin = np.minimum(margin, zone.most_margin)
        clear = (np.sign(depth) * (np.abs(depth) > margin)).astype(int).tolist()
        for track_id, track, side in zip(ids, tracks, clear, strict=True):
            stay = track.stays[number]
            if stay is None:
                if side > 0 and track.class_id in self._wanted[rule.name]:
                    track.stays[number] = _Stay(now, track.class_id)
                    total.enter[track.class_id] = total.enter.get(track.class_id, 0) + 1
                    total.now += 1
                    total.most = max(total.most, total.now)
                    events.append(CountEvent(now, rule.name, "enter", self.names[track.class_id], track_id))
            elif side < 0:
                events.append(self._leave(number, track_id, track, stay, now))
            elif rule.dwell_s is not None and not stay.told and now - stay.since_s >= rule.dwell_s:
                stay.told = True
                name = self.names[stay.class_id]
                events.append(CountEvent(now, rule.name, "dwell", name, track_id, now - stay.since_s))
        return events

    def _leave(self, number: int, track_id: int, track: _Track, stay: _Stay, time_s: float) -> CountEvent:
        total, seconds = self._zone_totals[number], time_s - stay.since_s
        track.stays[number] = None
        total.exit[stay.class_id] = total.exit.get(stay.class_id, 0) + 1
        total.now -= 1
        total.stays += 1
        total.stay_s += seconds
        total.longest_s = max(total.longest_s, seconds)
        name = self.names[stay.class_id]
        return CountEvent(time_s, self._zones[number].rule.name, "exit", name, track_id, seconds)

    def _forget(self, now: float) -> list[CountEvent]:
        gone = [track_id for track_id, track in self._tracks.items() if now - track.seen_s > self.lost_s]
        return [event for track_id in gone for event in self._end(track_id)]

    def _end(self, track_id: int) -> list[CountEvent]:
        track = self._tracks.pop(track_id)
        return [
            self._leave(number, track_id, track, stay, track.seen_s)
            for number, stay in enumerate(track.stays)
            if stay is not None
        ]
