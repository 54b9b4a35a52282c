"""Counts over time: per second, minute or any other span, per rule and class, as CSV, JSON or Parquet.

One row is one measure of one rule and class in one span of time:

    start_s  time     rule  class   measure         value  covered
    0.0      (UTC)    gate  all     in              3      1.0
    0.0      (UTC)    gate  person  in              2      1.0
    0.0      (UTC)    yard  all     occupancy_mean  1.5    1.0
    60.0     (UTC)    gate  all     in                     0.0

Measures: `in` and `out` of a line; `enter`, `exit`, `occupancy_mean`, `occupancy_max` and `dwell_mean_s` (of the stays
that ended then) of a zone. `class` is "all" or a class that the rule names or that was counted. `covered` is the share
of the span from which there is data. A span without any has no value: null in JSON and Parquet, empty in CSV, never 0.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hawkeye.artifact import write_bytes
from hawkeye.errors import ConfigError, InputError
from hawkeye.lazy import load
from hawkeye.track.counting import CountEvent
from hawkeye.track.rules import Line, Rule, check_rules

COLUMNS = ("start_s", "time", "rule", "class", "measure", "value", "covered")
FORMATS = (".csv", ".json", ".parquet")
ALL = "all"
_LINE, _ZONE = ("in", "out"), ("enter", "exit")
SHORTEST_S = 0.1  # of a span: each frame must be booked in all spans since the one before
_MAX_BUCKETS = 10_000_000


@dataclass(slots=True)
class _Bucket:
    covered_s: float = 0.0
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)  # rule, class, kind
    present_s: dict[tuple[str, str], float] = field(default_factory=dict)  # rule, class: objects x seconds
    most: dict[tuple[str, str], int] = field(default_factory=dict)
    stays: dict[tuple[str, str], list[float]] = field(default_factory=dict)


class CountSeries:
    """Gathers what a `Counter` reports into spans of equal length.

    Args:
        rules: the counter's.
        bucket_s: length of a span in seconds; spans begin at whole multiples of it.
        epoch_s: what 0 seconds of the frames' time is in seconds since 1970 (UTC), for the column `time`; None leaves
            it empty.
        max_gap_s: two frames further apart than this have a gap between them even if nobody said so.

    Raises:
        ConfigError: lengths that are not positive, or spans of less than 0.1 s.
    """

    def __init__(
        self, rules: Sequence[Rule], *, bucket_s: float = 60.0, epoch_s: float | None = None, max_gap_s: float = 5.0
    ) -> None:
        if not (SHORTEST_S <= bucket_s < math.inf and max_gap_s > 0):
            raise ConfigError("a time series needs spans of time", got=f"bucket_s={bucket_s}, max_gap_s={max_gap_s}",
                              expected=f"at least {SHORTEST_S:g} s")  # fmt: skip
        self.rules, self.bucket_s, self.epoch_s, self.max_gap_s = (
            check_rules(rules),
            float(bucket_s),
            epoch_s,
            max_gap_s,
        )
        self._classes = {rule.name: dict.fromkeys(rule.classes or ()) for rule in self.rules}
        self._buckets: dict[int, _Bucket] = {}
        self._first: int | None = None
        self._time: float | None = None  # of the last call, data or not
        self._occupancy: Mapping[str, Mapping[str, int]] | None = None  # since then; None without data

    def update(self, time_s: float, events: Sequence[CountEvent], occupancy: Mapping[str, Mapping[str, int]]) -> None:
        """Take one frame: what `Counter.update` returned and what `Counter.occupancy` says after it.

        Raises:
            InputError: time runs backwards.
        """
        self._pass(time_s)
        bucket = self._bucket(time_s)
        self._occupancy = occupancy
        for zone, inside in occupancy.items():
            for name in inside:
                self._classes[zone].setdefault(name)
            for name, count in ((ALL, sum(inside.values())), *inside.items()):
                bucket.most[zone, name] = max(count, bucket.most.get((zone, name), 0))
        self.add(events)

    def add(self, events: Sequence[CountEvent]) -> None:
        """Take events that belong to no new frame: what `Counter.finish` or `Counter.resize` returned."""
        for event in events:
            self._classes[event.rule].setdefault(event.class_name)
            bucket = self._bucket(event.time_s)
            for name in (ALL, event.class_name):
                key = (event.rule, name, event.kind)
                bucket.counts[key] = bucket.counts.get(key, 0) + 1
                if event.kind == "exit" and event.seconds is not None:
                    bucket.stays.setdefault((event.rule, name), []).append(event.seconds)

    def no_data(self, time_s: float) -> None:
        """Nothing is known from the last frame's time until the next frame.

        Raises:
            InputError: time runs backwards.
        """
        self._pass(time_s)
        self._occupancy = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every measure of every rule and class, span after span, with the keys `COLUMNS`.

        Raises:
            ConfigError: more than ten million spans lie between the first call and the last.
        """
        if self._first is None or self._time is None:
            return
        last = self._index(self._time)
        if last - self._first >= _MAX_BUCKETS:
            raise ConfigError("too many spans of time", got=f"{last - self._first + 1} of {self.bucket_s:g} s",
                              expected=f"at most {_MAX_BUCKETS}", mend="choose a longer span")  # fmt: skip
        for index in range(self._first, last + 1):
            start = index * self.bucket_s
            moment = None if self.epoch_s is None else datetime.fromtimestamp(self.epoch_s + start, UTC)
            bucket = self._buckets.get(index)
            covered = 0.0 if bucket is None else min(1.0, round(bucket.covered_s / self.bucket_s, 6))
            for rule in self.rules:
                for name in (ALL, *self._classes[rule.name]):
                    for measure, value in self._measures(bucket, rule, name):
                        row = (start, moment, rule.name, name, measure, value, covered)
                        yield dict(zip(COLUMNS, row, strict=True))

    def write(self, path: Path) -> None:
        """Write the rows as the file's suffix says: .csv, .json or .parquet; whole or not at all.

        Raises:
            ConfigError: another suffix.
            MissingExtraError: .parquet without the [parquet] extra.
            StorageError: the disk refused.
        """
        kind = path.suffix.lower()
        check_format(path)
        write_bytes(path, {".csv": self._csv, ".json": self._json, ".parquet": self._parquet}[kind]())

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "time": _iso(row["time"])} for row in self.rows())
        return text.getvalue().encode()

    def _json(self) -> bytes:
        rows = [json.dumps({**row, "time": _iso(row["time"])}, ensure_ascii=False) for row in self.rows()]
        body = ",\n".join(rows)  # a line to each row, so that it can be searched and compared
        return f'{{"bucket_s": {json.dumps(self.bucket_s)}, "rows": [\n{body}\n]}}\n'.encode()

    def _parquet(self) -> bytes:
        arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
        text, number = arrow.string(), arrow.float64()
        types = (number, arrow.timestamp("us", tz="UTC"), text, text, text, number, number)
        table = arrow.Table.from_pylist(list(self.rows()), schema=arrow.schema(list(zip(COLUMNS, types, strict=True))))
        sink = arrow.BufferOutputStream()
        parquet.write_table(table, sink)
        return bytes(sink.getvalue().to_pybytes())

    def _measures(self, bucket: _Bucket | None, rule: Rule, name: str) -> Iterator[tuple[str, float | None]]:
        key = (rule.name, name)
        for kind in _LINE if isinstance(rule, Line) else _ZONE:
            yield kind, None if bucket is None else bucket.counts.get((*key, kind), 0)
        if isinstance(rule, Line):
            return
        known = bucket is not None and bucket.covered_s > 0
        yield "occupancy_mean", bucket.present_s.get(key, 0.0) / bucket.covered_s if bucket and known else None
        yield "occupancy_max", None if bucket is None else bucket.most.get(key, 0)
        stays = bucket.stays.get(key) if bucket else None
        yield "dwell_mean_s", sum(stays) / len(stays) if stays else None

    def _index(self, time_s: float) -> int:
        return math.floor(time_s / self.bucket_s + 1e-9)  # 3 * 0.1 s belongs to the span that begins there

    def _bucket(self, time_s: float) -> _Bucket:
        return self._buckets.setdefault(self._index(time_s), _Bucket())

    def _pass(self, time_s: float) -> None:
        """Let time pass; if the last frame is known and near, it speaks for the time until now."""
        last, self._time = self._time, time_s
        if last is None:
            self._first = self._index(time_s)
            return
        if not time_s >= last:
            raise InputError("time runs backwards", got=f"{time_s} s after {last} s", expected="frames in order")
        if self._occupancy is None or time_s - last > self.max_gap_s:
            return
        for index in range(self._index(last), self._index(time_s) + 1):
            part = min(time_s, (index + 1) * self.bucket_s) - max(last, index * self.bucket_s)
            if part <= 0:
                continue
            bucket = self._buckets.setdefault(index, _Bucket())
            bucket.covered_s += part
            for zone, inside in self._occupancy.items():
                for name, count in ((ALL, sum(inside.values())), *inside.items()):
                    bucket.present_s[zone, name] = bucket.present_s.get((zone, name), 0.0) + count * part
                    bucket.most[zone, name] = max(count, bucket.most.get((zone, name), 0))


def check_format(path: Path) -> None:
    """Refuse a file name that `CountSeries.write` could not write, before any work is done.

    Raises:
        ConfigError: an unknown suffix.
        MissingExtraError: .parquet without the [parquet] extra.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a time series cannot be written as {path.name!r}", got=path.suffix or "no suffix",
                          expected=", ".join(FORMATS))  # fmt: skip
    if path.suffix.lower() == ".parquet":
        load("pyarrow")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")
