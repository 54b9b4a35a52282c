"""Time series: every span is there, a gap is no zero, and three formats say the same."""

from __future__ import annotations

import csv
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hawkeye.errors import ConfigError, InputError, MissingExtraError, StorageError
from hawkeye.track.counting import CountEvent
from hawkeye.track.rules import Line, Zone
from hawkeye.track.series import COLUMNS, CountSeries, check_format

GATE = Line("gate", (0.5, 0), (0.5, 1), classes=("car",))
YARD = Zone("yard", ((0, 0), (1, 0), (1, 1)))


def value(series: CountSeries, start_s: float, rule: str, name: str, measure: str) -> Any:
    keys = ("start_s", "rule", "class", "measure")
    (row,) = [row for row in series.rows() if tuple(row[k] for k in keys) == (start_s, rule, name, measure)]
    return row["value"]


def covered(series: CountSeries) -> dict[float, float]:
    return {row["start_s"]: row["covered"] for row in series.rows()}


def example() -> CountSeries:
    """Ten seconds, one frame every half: data, then a gap from 3 to 7."""
    series = CountSeries([GATE, YARD], bucket_s=2, epoch_s=1_700_000_000)
    series.update(0.0, [CountEvent(0.0, "yard", "enter", "person", 1)], {"yard": {"person": 1}})
    for i in range(1, 6):
        inside = {"person": 1, "car": 1} if i >= 2 else {"person": 1}
        events = [CountEvent(i / 2, "gate", "in", "car", 2)] if i in (1, 5) else []
        series.update(i / 2, events, {"yard": inside})
    series.no_data(3.0)
    series.no_data(5.0)
    series.update(7.0, [CountEvent(2.5, "yard", "exit", "person", 1, 2.5)], {"yard": {}})
    for i in range(15, 21):
        series.update(i / 2, [], {"yard": {}})
    return series


def test_spans_counts_and_gaps() -> None:
    series = example()
    assert covered(series) == {0.0: 1.0, 2.0: 0.5, 4.0: 0.0, 6.0: 0.5, 8.0: 1.0, 10.0: 0.0}
    ins = [value(series, s, "gate", "car", "in") for s in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)]
    assert ins == [1, 1, None, 0, 0, 0], "nothing is known of 4 to 6, and that is no zero"
    assert value(series, 0.0, "gate", "all", "out") == 0
    assert value(series, 2.0, "yard", "person", "exit") == 1, "it left when it was last seen"
    assert value(series, 2.0, "yard", "person", "dwell_mean_s") == 2.5
    assert value(series, 0.0, "yard", "person", "dwell_mean_s") is None, "no stay ended then"


def test_occupancy_is_weighed_by_time() -> None:
    series = example()
    assert value(series, 0.0, "yard", "car", "occupancy_mean") == pytest.approx(0.5)
    assert value(series, 0.0, "yard", "all", "occupancy_mean") == pytest.approx(1.5)
    assert value(series, 0.0, "yard", "all", "occupancy_max") == 2
    assert value(series, 4.0, "yard", "all", "occupancy_mean") is None
    assert value(series, 4.0, "yard", "all", "occupancy_max") is None
    assert value(series, 8.0, "yard", "all", "occupancy_mean") == 0


def test_frames_far_apart_have_a_gap_between_them() -> None:
    series = CountSeries([GATE], bucket_s=1, max_gap_s=5)
    for time_s in (0.0, 1.0, 9.0, 10.0):
        series.update(time_s, [], {})
    assert [round(c, 3) for c in covered(series).values()] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert [value(series, s, "gate", "all", "in") for s in (0.0, 4.0, 9.0)] == [0, None, 0]


def test_spans_begin_at_whole_multiples() -> None:
    series = CountSeries([GATE], bucket_s=0.1)
    for i in range(3, 6):
        series.update(i * 0.1, [CountEvent(i * 0.1, "gate", "in", "car", i)], {})
    assert [value(series, s * 0.1, "gate", "all", "in") for s in (3, 4, 5)] == [1, 1, 1]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    series = example()
    for suffix in ("csv", "json", "parquet"):
        series.write(tmp_path / f"counts.{suffix}")
    rows = list(series.rows())
    assert rows[0]["time"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)

    with (tmp_path / "counts.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        table = list(reader)
    assert [float(r["value"]) if r["value"] else None for r in table] == [row["value"] for row in rows]
    assert [datetime.fromisoformat(r["time"]) for r in table] == [row["time"] for row in rows]

    read = json.loads((tmp_path / "counts.json").read_text())
    assert read["bucket_s"] == 2
    assert [{**r, "time": datetime.fromisoformat(r["time"])} for r in read["rows"]] == rows

    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tmp_path / "counts.parquet").to_pylist() == rows
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing is left lying about"


def test_an_empty_series_has_a_head_and_no_rows(tmp_path: Path) -> None:
    series = CountSeries([GATE])
    series.write(tmp_path / "a.csv")
    series.write(tmp_path / "a.json")
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == []


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="csv, .json, .parquet"):
        example().write(tmp_path / "counts.xlsx")
    with pytest.raises(ConfigError, match="no suffix"):
        check_format(tmp_path / "counts")
    for bucket_s in (0, -1, 0.001, math.inf, math.nan):
        with pytest.raises(ConfigError, match="spans of time"):
            CountSeries([GATE], bucket_s=bucket_s)
    series = example()
    with pytest.raises(InputError, match="backwards"):
        series.no_data(1.0)
    series.no_data(1e12)
    with pytest.raises(ConfigError, match="too many spans"):
        series.write(tmp_path / "counts.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"hawkeye\[parquet\]"):
        check_format(tmp_path / "counts.parquet")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "counts.csv").write_text("before")
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(StorageError, match="cannot write"):
        example().write(tmp_path / "counts.csv")
    assert (tmp_path / "counts.csv").read_text() == "before"
