"""What lasts: counts through kill -9, a full disk, a clock that jumps, and versions of the store."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
from hawkeye.detections import Detections  # noqa: E402
from hawkeye.errors import ConfigError, StorageError  # noqa: E402
from hawkeye.outputs import Result  # noqa: E402
from hawkeye.runtime.stream import Frame  # noqa: E402
from hawkeye.serve.config import ServeConfig  # noqa: E402
from hawkeye.serve.recorder import Recorder  # noqa: E402
from hawkeye.serve.store import MIGRATIONS, Store  # noqa: E402
from hawkeye.track.counting import CountEvent  # noqa: E402
from hawkeye.track.rules import Line  # noqa: E402
from live_fakes import picture, source  # noqa: E402

RULES = (Line("gate", (0.0, 0.0), (1.0, 1.0)),)


class Clock:
    """Seconds since 1970 that a test sets."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def result(*tracks: int) -> Result:
    """A frame with an object of class "thing" for each of these tracks."""
    n = len(tracks)
    found = Detections(np.tile(np.float32([1, 1, 9, 9]), (n, 1)), np.full(n, 0.9, np.float32), np.zeros(n, np.int32),
                       np.array(tracks, np.int64))  # fmt: skip
    return Result(Frame("fake", 0, 0.0, picture(1), None, 0.0), source(), found, ("thing",), rules=RULES)


def crossing(kind: Any = "in") -> list[CountEvent]:
    return [CountEvent(0.0, "gate", kind, "thing", 1)]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(tmp_path / "s.sqlite3", ServeConfig())
    yield made
    made.close()


def value(store: Store, measure: str, start: float, end: float, bucket_s: float = 1.0) -> list[float | None]:
    rows = store.counts(start=start, end=end, bucket_s=bucket_s, measure=measure, class_name="all")
    return [row.value for row in rows]


# -- killed -----------------------------------------------------------------------------------------------------------

COUNTING = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_serve_store import crossing, result, source
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.recorder import Recorder
from hawkeye.serve.store import Store
recorder = Recorder(Store(Path({path!r}), ServeConfig()))
recorder.start()
while True:
    recorder.write(result(1))
    recorder.count(source(), crossing())
    print(time.monotonic(), flush=True)
    time.sleep(0.005)
"""


@pytest.mark.parametrize("after_s", [1.3, 2.1])
def test_kill_9_in_the_middle_of_counting_loses_at_most_a_second(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "s.sqlite3"
    code = COUNTING.format(tests=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        told = [float(line) for line in (first + process.stdout.read()).split("\n") if "." in line]
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    store = Store(path, ServeConfig())
    kept = store.total("fake", "gate", "in", 0, 1e10).get("thing", 0)
    store.close()
    last_second = sum(at > told[-1] - 1.0 for at in told)
    assert len(told) > 50
    assert kept > 0
    assert len(told) - last_second <= kept <= len(told) + 1


# -- a disk that refuses ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_state_and_what_was_counted_meanwhile_is_written_later(store: Store) -> None:
    clock = Clock()
    recorder = Recorder(store, clock=clock)
    recorder.write(result(1))
    recorder.flush()
    # SQLite's own "database or disk is full".
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(600):
        clock.now += 0.5
        recorder.write(result(1))
        recorder.count(source(), crossing())
    with pytest.raises(StorageError, match="full"):
        recorder.flush()
    assert store.state.startswith("no history: ")
    with pytest.raises(StorageError, match="free some space"):
        store.put("source", "x", {"big": "x" * 100_000})
    assert recorder.waiting > 500
    assert store.documents("source") == {}, "reading goes on"
    store._db.execute("PRAGMA max_page_count = 100000")
    recorder.flush()
    assert store.state == "on"
    assert recorder.waiting == 0
    assert store.total("fake", "gate", "in", 0, 1e10) == {"thing": 600}
    recorder.stop()


def test_what_waits_for_the_disk_is_bounded(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr("hawkeye.serve.recorder._MAX_WAITING", 50)
    clock = Clock()
    recorder = Recorder(store, clock=clock)
    store._db.execute("PRAGMA query_only = ON")
    for _ in range(300):
        clock.now += 1
        recorder.count(source(), crossing())
    with pytest.raises(StorageError):
        recorder.flush()
    assert recorder.waiting == 50
    store._db.execute("PRAGMA query_only = OFF")
    recorder.flush()
    kept = store.total("fake", "gate", "in", 0, 1e10)["thing"]
    assert 0 < kept <= 50
    assert store.total("fake", "gate", "in", clock.now - 5, clock.now + 1)["thing"] == 6, "the newest are kept"


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_leaves_a_gap_and_no_hours_of_presence(store: Store, jump_s: float) -> None:
    clock = Clock()
    recorder = Recorder(store, clock=clock)
    for number in range(40):
        clock.now += 0.1 + (jump_s if number == 20 else 0.0)
        recorder.write(result(1))
        if number % 10 == 0:
            recorder.count(source(), crossing())
    recorder.flush()
    present = store._read("SELECT sum(value) FROM counts WHERE measure = 'present_s'", ())[0][0]
    assert present == pytest.approx(38 * 0.1, abs=0.01)
    assert store.total("fake", "gate", "in", 0, 1e10) == {"thing": 4}
    assert store.total("fake", "", "seen", 0, 1e10) == {"thing": 1}


def test_a_clock_that_jumps_ahead_does_not_empty_the_store(store: Store, monkeypatch: Any) -> None:
    now = time.time()
    store.add({(int(now) - 5, "fake", "gate", "thing", "in"): 1.0})
    monkeypatch.setattr("hawkeye.serve.store.time.time", lambda: now + 10 * 365 * 86_400)
    store.keep_house()
    assert store.total("fake", "gate", "in", 0, 1e10) == {"thing": 1}


# -- what a count says ------------------------------------------------------------------------------------------------


def test_no_data_is_not_zero(store: Store) -> None:
    clock = Clock(1000.0)
    recorder = Recorder(store, clock=clock)
    for _ in range(20):
        recorder.write(result())
        clock.now += 0.1
    recorder.state(source(), 0.0, "reconnecting", "gone")
    clock.now = 1005.0
    for _ in range(11):
        recorder.write(result(1, 2))
        clock.now += 0.1
    recorder.flush()
    assert value(store, "in", 1000, 1006) == [0.0, 0.0, None, None, None, 0.0]
    assert value(store, "present_mean", 1000, 1006) == [0.0, 0.0, None, None, None, pytest.approx(2.0)]
    assert value(store, "seen", 1000, 1006) == [0.0, 0.0, None, None, None, 2.0]


def test_old_seconds_become_minutes_and_hours_and_sums_stay(tmp_path: Path) -> None:
    now = time.time()
    store = Store(tmp_path / "s.sqlite3", ServeConfig(keep_seconds_days=1, keep_days=100))
    old, older = int(now - 2 * 86_400) // 3600 * 3600, int(now - 40 * 86_400) // 3600 * 3600
    for start in (old, older):
        store.add({(start + second, "fake", "gate", "thing", "in"): 1.0 for second in range(0, 3600, 10)})
        store.add({(start + second, "fake", "gate", "", "line_s"): 1.0 for second in range(0, 3600, 10)})
        store.add({(start + second, "fake", "gate", "thing", "most"): second / 10 for second in range(0, 3600, 10)})
    store.add({(int(now - 200 * 86_400), "fake", "gate", "thing", "in"): 1.0})
    store.keep_house()
    steps = dict(store._read("SELECT step, count(*) FROM counts WHERE measure = 'in' GROUP BY step", ()))
    assert steps == {60: 60, 3600: 1}
    assert store.total("fake", "gate", "in", 0, 1e10) == {"thing": 720}
    assert value(store, "in", older, older + 3600, 3600) == [360.0]
    assert store._read("SELECT max(value) FROM counts WHERE step = 3600 AND measure = 'most'", ()) == [(359.0,)]

    def spans(start: int, end: int, bucket_s: int, offset: int = 0) -> list[tuple[float, float, float | None]]:
        rows = store.counts(start=start, end=end, bucket_s=bucket_s, utc_offset_s=offset, measure="in",
                            class_name="all")  # fmt: skip
        return [(row.start, row.seconds, row.value) for row in rows]

    # What is kept by the minute or hour is in the span that it lies in, and in one only.
    assert {(seconds, n) for _, seconds, n in spans(old, old + 3600, 90)} == {(120.0, 12.0)}
    assert spans(older, older + 3600, 5400)[-1][1:] == (7200.0, 360.0)
    assert spans(older, older + 3600, 3600, 19_800) == [(older, 3600.0, 360.0)], "5 h 30 min ahead of UTC"
    assert spans(older + 1800, older + 1860, 60) == [(older, 3600.0, 360.0)], "a part of what is known by the hour"
    store.close()


def test_what_was_counted_is_known_by_source_and_rule(store: Store) -> None:
    assert store.counted() == {}
    old = int(time.time()) - 40 * 86_400
    for start in (old, old + 39 * 86_400):
        store.add({(start, "gone", "gate", "", "line_s"): 1.0, (start + 1, "gone", "gate", "thing", "in"): 1.0,
                   (start, "gone", "yard", "", "most"): 1.0, (start, "gone", "yard", "", "zone_s"): 1.0,
                   (start, "gone", "", "", "picture_s"): 1.0, (start, "first", "door", "thing", "out"): 1.0,
                   (start, "empty", "", "", "picture_s"): 1.0})  # fmt: skip
        store.keep_house()
    assert store.counted() == {"empty": {}, "first": {"door": "line"}, "gone": {"gate": "line", "yard": "zone"}}


def test_the_store_keeps_within_its_size(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite3", ServeConfig(max_store_bytes=1_000_000, keep_seconds_days=300))
    now = int(time.time())
    store.add({(now - n, "fake", "gate", "thing", "in"): 1.0 for n in range(40_000)})
    for _ in range(60):
        store.keep_house()
    assert store._bytes() < 1_100_000
    assert store.total("fake", "gate", "in", now - 1000, now + 1)["thing"] == 1001, "the newest stay"
    store.close()


@pytest.mark.parametrize(
    ("start", "end", "bucket_s"), [(5, 5, 1), (5, 4, 1), (-1, 5, 1), (0, 1e9, 1), (0, 10, 0.1), (0, float("nan"), 1)]
)
def test_ranges_that_cannot_be(store: Store, start: float, end: float, bucket_s: float) -> None:
    with pytest.raises(ConfigError):
        store.counts(start=start, end=end, bucket_s=bucket_s)


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_store_of_every_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    following = (*MIGRATIONS, "CREATE TABLE more (x); INSERT INTO more SELECT count(*) FROM counts;")
    for version in range(1, len(MIGRATIONS) + 1):
        path = tmp_path / f"{version}.sqlite3"
        old = Store(path, ServeConfig(), migrations=MIGRATIONS[:version])
        old.put("source", "door", {"spec": {"address": "0"}})
        old.add({(5, "door", "gate", "thing", "in"): 3.0})
        old.close()
        new = Store(path, ServeConfig(), migrations=following)
        assert new.documents("source") == {"door": {"spec": {"address": "0"}}}
        assert new.total("door", "gate", "in", 0, 10) == {"thing": 3}
        assert new._read("SELECT x FROM more", ()) == [(1,)]
        new.close()
        assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (len(following),)
        with pytest.raises(StorageError, match="newer Hawkeye"):
            Store(path, ServeConfig())


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    Store(path, ServeConfig()).close()
    broken = (*MIGRATIONS, "CREATE TABLE more (x); INSERT INTO none VALUES (1);")
    with pytest.raises(StorageError, match="none"):
        Store(path, ServeConfig(), migrations=broken)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    Store(path, ServeConfig()).close()


def test_a_store_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="move it away"):
        Store(path, ServeConfig())


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_nobody_else_reads_the_store(store: Store) -> None:
    assert store.path.stat().st_mode & 0o077 == 0
