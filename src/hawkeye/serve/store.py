"""What lasts, in one SQLite file in WAL mode: sources, rules, alerts, tokens, and counts over time.

A count is a number that adds up (`in`, `seen`, seconds of presence, seconds covered) or a largest (`most`), for a
second; seconds become minutes and minutes hours as they age. A process that is killed loses what it had not handed in
yet and nothing else. A disk that refuses is a state, not an error: counts wait in memory and are written when it can.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hawkeye.errors import ConfigError, StorageError
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.schemas import CountRow

Key = tuple[int, str, str, str, str]  # second, source, rule ("" the picture), class ("" all), measure
LARGEST = "most"
# Seconds from which there is data, by what they are of, and what is counted there.
COVERED = {"line_s": ("in", "out"), "zone_s": ("enter", "exit"), "picture_s": ("seen",)}
_OF_LINES = ("line_s", *COVERED["line_s"])
_MAX_SPANS, _MAX_ROWS = 50_000, 200_000
_STEPS = ((1, 60), (60, 3600))  # seconds to minutes, minutes to hours
_MINUTES_LAST = 30  # times as long as seconds

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE documents (kind TEXT, name TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, name));
    CREATE TABLE counts (step INTEGER, source TEXT, rule TEXT, class TEXT, measure TEXT, start INTEGER,
                         value REAL NOT NULL, PRIMARY KEY (step, source, rule, class, measure, start)) WITHOUT ROWID;
    CREATE INDEX counts_by_time ON counts (step, start);
    """,
)
_MERGE = """ON CONFLICT DO UPDATE SET
            value = CASE WHEN measure = 'most' THEN max(value, excluded.value) ELSE value + excluded.value END"""
_ADD = f"INSERT INTO counts VALUES (1, :source, :rule, :class, :measure, :start, :value) {_MERGE}"
_SUM = "CASE WHEN measure = 'most' THEN max(value) ELSE sum(value) END"


class Store:
    """The store; safe to use from several threads.

    Args:
        path: the file; its folder is made. Only this user may read it: addresses in it may hold passwords.
        config: how long counts are kept, and how large the file may become.
        migrations: from one version of the file to the next.

    Attributes:
        state: "on", or why nothing can be written now.

    Raises:
        StorageError: cannot be opened, is damaged, or is of a newer Hawkeye.
    """

    def __init__(self, path: Path, config: ServeConfig, *, migrations: Sequence[str] = MIGRATIONS) -> None:
        self.path, self._config = path, config
        self.state = "on"
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, timeout=5.0, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            # With a WAL this survives kill -9 whole; a power cut may take the last second.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate(migrations)
            self._reader = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0,
                                           check_same_thread=False)  # fmt: skip
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot open the store {path}", got=error,
                               mend="free some space, name another --state, or move it away") from None  # fmt: skip
        self._read_lock = threading.Lock()
        self._wall, self._steady = time.time(), time.monotonic()

    def close(self) -> None:
        """Close the file."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()

    def _migrate(self, migrations: Sequence[str]) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise StorageError(f"the store {self.path} is of a newer Hawkeye", got=f"version {version}",
                               expected=f"at most {len(migrations)}", mend="install that one again")  # fmt: skip
        for number, script in enumerate(migrations[version:], version + 1):
            try:
                # One transaction with its number: killed in between, the version before is still whole.
                self._db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
                self.state = "on"
            except sqlite3.Error as error:
                self.state = f"no history: {error}"
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise StorageError("the store cannot be written", got=error, mend="free some space") from None

    # -- documents ----------------------------------------------------------------------------------------------------

    def documents(self, kind: str) -> dict[str, dict[str, Any]]:
        """All documents of a kind by name, in the order in which they were first put."""
        rows = self._read("SELECT name, body FROM documents WHERE kind = ? ORDER BY rowid", (kind,))
        return {name: json.loads(body) for name, body in rows}

    def put(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Keep a document.

        Raises:
            StorageError: the disk refused.
        """
        with self._writing() as db:
            db.execute("INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                       (kind, name, json.dumps(body)))  # fmt: skip

    def drop(self, kind: str, name: str) -> None:
        """Forget a document.

        Raises:
            StorageError: the disk refused.
        """
        with self._writing() as db:
            db.execute("DELETE FROM documents WHERE kind = ? AND name = ?", (kind, name))

    # -- counts -------------------------------------------------------------------------------------------------------

    def add(self, values: Mapping[Key, float]) -> None:
        """Add counts, all or none.

        Raises:
            StorageError: the disk refused; add them again later.
        """
        rows = [{"start": start, "source": source, "rule": rule, "class": cls, "measure": measure, "value": value}
                for (start, source, rule, cls, measure), value in values.items()]  # fmt: skip
        with self._writing() as db:
            db.executemany(_ADD, rows)

    def total(self, source: str, rule: str, measure: str, start: float, end: float) -> dict[str, int]:
        """Sum of a measure by class over a range of time."""
        rows = self._read("SELECT class, sum(value) FROM counts WHERE step IN (1, 60, 3600) AND source = ? AND rule "
                          "= ? AND measure = ? AND class != '' AND start >= ? AND start < ? GROUP BY class",
                          (source, rule, measure, math.floor(start), math.ceil(end)))  # fmt: skip
        return {name: round(value) for name, value in rows}

    def counted(self) -> dict[str, dict[str, Literal["line", "zone"]]]:
        """Every source that there are counts of, removed or not, and of each its lines and zones."""
        found: dict[str, dict[str, Literal["line", "zone"]]] = {}
        at: Sequence[Any] = (0, "", "")
        # From one rule to the next by the primary key: a DISTINCT would read every count.
        while rows := self._read("SELECT step, source, rule, measure FROM counts WHERE (step, source, rule, class) > "
                                 "(?, ?, ?, char(0x10ffff)) ORDER BY step, source, rule, class, measure LIMIT 1",
                                 at):  # fmt: skip
            (*at, measure) = rows[0]
            rules = found.setdefault(at[1], {})
            if at[2]:
                rules.setdefault(at[2], "line" if measure in _OF_LINES else "zone")
        return found

    def counts(
        self,
        *,
        start: float,
        end: float,
        bucket_s: float = 60.0,
        source: str | None = None,
        rule: str | None = None,
        class_name: str | None = None,
        measure: str | None = None,
        utc_offset_s: int = 0,
    ) -> list[CountRow]:
        """See `Service.counts`.

        Raises:
            ConfigError: an empty range, or too many spans.
        """
        span = _span(start, end, bucket_s)
        where = "start >= :start AND start < :end"
        filters: dict[str, Any] = {k: v for k, v in (("source", source), ("rule", rule)) if v is not None}
        where += "".join(f" AND {name} = :{name}" for name in filters)
        # What is kept by the hour or minute cannot be told by less, nor cut: spans are whole ones, and begin with one.
        for step in (3600, 60, 1):
            wide, offset = -(-span // step) * step, utc_offset_s // step * step
            values = filters | {"start": _floor(start, wide, offset), "end": math.ceil(end)}
            if self._read(f"SELECT 1 FROM counts WHERE step = {step} AND {where} LIMIT 1", values):
                break
        rows = self._read(
            f"SELECT source, rule, class, measure, (start + :offset) / :span * :span - :offset AS bucket, {_SUM} "
            f"FROM counts WHERE step IN (1, 60, 3600) AND {where} GROUP BY source, rule, class, measure, bucket",
            values | {"span": wide, "offset": offset},
        )
        starts = range(values["start"], values["end"], wide)
        found = [row for row in _rows_of(rows, wide, starts)
                 if class_name in (None, row.class_name) and measure in (None, row.measure)]  # fmt: skip
        return sorted(found, key=lambda row: (row.source, row.rule, row.measure, row.class_name, row.start))

    def keep_house(self) -> None:
        """Sum up and remove what is old, and keep the file within its size.

        Raises:
            StorageError: the disk refused.
        """
        # A clock that jumps ahead must not take the whole history with it.
        now = min(time.time(), self._wall + time.monotonic() - self._steady)
        day, config = 86_400, self._config
        ages = (config.keep_seconds_days * day, config.keep_seconds_days * day * _MINUTES_LAST)
        with self._writing() as db:
            for (fine, coarse), age in zip(_STEPS, ages, strict=True):
                before = _floor(now - age, coarse, 0)
                db.execute(
                    f"""INSERT INTO counts SELECT {coarse}, source, rule, class, measure,
                        start / {coarse} * {coarse} AS begin, {_SUM} FROM counts WHERE step = {fine} AND start < ?
                        GROUP BY source, rule, class, measure, begin {_MERGE}""",
                    (before,),
                )
                db.execute("DELETE FROM counts WHERE step = ? AND start < ?", (fine, before))
            db.execute("DELETE FROM counts WHERE start < ?", (now - config.keep_days * day,))
            if self._bytes() > config.max_store_bytes:
                oldest, newest = db.execute("SELECT min(start), max(start) FROM counts").fetchone()
                if oldest is not None:
                    db.execute("DELETE FROM counts WHERE start <= ?", (oldest + (newest - oldest) // 10,))
        with self._lock:
            self._db.execute("PRAGMA incremental_vacuum(2000)").fetchall()

    def _bytes(self) -> int:
        used = [
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((used[0] - used[1]) * used[2])

    def _read(self, statement: str, values: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        with self._read_lock:
            try:
                return self._reader.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError("the store cannot be read", got=error, mend="free some space") from None


def _rows_of(rows: Sequence[tuple[str, str, str, str, int, float]], span: int, starts: range) -> Iterator[CountRow]:
    """Rows with gaps from sums of (source, rule, class, measure, start of span)."""
    values: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for source, rule, cls, measure, bucket, value in rows:
        values.setdefault((source, rule, cls, measure), {})[bucket] = value
    if len(values) * len(starts) > _MAX_ROWS:
        raise ConfigError("too many counts for one answer", got=len(values) * len(starts),
                          expected=f"at most {_MAX_ROWS}", mend="ask for longer spans or fewer sources")  # fmt: skip
    nothing: dict[int, float] = {}
    for source, rule, _, kind in [key for key in values if key[3] in COVERED]:
        covered = values[source, rule, "", kind]
        classes = sorted({c for s, r, c, _ in values if (s, r) == (source, rule) and c})
        word = "occupancy" if rule else "present"
        for cls in ("", *classes):
            parts = [cls] if cls else classes
            sums = {name: [values.get((source, rule, part, name), nothing) for part in parts]
                    for name in (*COVERED[kind], "present_s")}  # fmt: skip
            most = values.get((source, rule, cls, LARGEST), nothing)
            for at in starts:
                known = covered.get(at, 0.0)
                total = {name: sum(part.get(at, 0.0) for part in series) for name, series in sums.items()}
                # What was counted in a span without a covered moment, as in its first frame, is known all the same.
                facts: dict[str, float | None] = {}
                facts |= {name: total[name] if known or total[name] else None for name in COVERED[kind]}
                if kind != "line_s":
                    facts |= {f"{word}_mean": total["present_s"] / known if known else None,
                              f"{word}_max": most.get(at, 0.0) if known or at in most else None}  # fmt: skip
                share = min(1.0, round(known / span, 4))
                for measure, fact in facts.items():
                    yield CountRow.model_construct(start=float(at), seconds=float(span), source=source, rule=rule,
                                                   class_name=cls or "all", measure=measure, value=fact,
                                                   covered=share)  # fmt: skip


def _span(start: float, end: float, bucket_s: float) -> int:
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end <= 1e11):
        raise ConfigError("not a range of time", got=f"{start} to {end}", expected="start before end, since 1970")
    if not 1 <= bucket_s <= 366 * 86_400:
        raise ConfigError("spans of this length are not kept", got=bucket_s, expected="1 s to 366 days")
    span = round(bucket_s)
    if (end - start) / span > _MAX_SPANS:
        raise ConfigError("too many spans of time", got=f"{(end - start) / span:.0f}", expected=f"at most {_MAX_SPANS}",
                          mend="choose longer spans or a shorter range")  # fmt: skip
    return span


def _floor(value: float, span: int, offset: int) -> int:
    return (math.floor(value) + offset) // span * span - offset
