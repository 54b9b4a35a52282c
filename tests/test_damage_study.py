"""benchmarks/damage.py: every part of pruning changed alone, each row made once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import benchmark_programs  # noqa: E402
import tiny_detector  # noqa: E402
from hawkeye.scenes import draw_dataset  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def program():
    return benchmark_programs.load("damage")


def test_each_part_alone_changes_what_is_found_and_no_row_is_made_twice(program, tmp_path, capsys):
    scenes = draw_dataset(tmp_path / "scenes", train=120, val=4, imgsz=64, seed=1)
    model = tiny_detector.checkpoint(scenes, tmp_path / "model")
    out = tmp_path / "out"
    words = [str(model), "--data", str(scenes), "--out", str(out), "--imgsz", "64", "--samples", "16", "--rounds", "2",
             "--bound", "0.8", "--steps", "2"]  # fmt: skip
    program.main(words)
    told = benchmark_programs.told(capsys.readouterr().out)
    rows = {row["row"]: row for row in told["rows"]}
    assert len(rows) == 11
    assert all(row["flops"] <= 0.81 and row["params"] <= 0.81 for row in rows.values())
    assert all(0 <= row["map50"] <= 1 for row in rows.values())
    distances = [row["distance"] for row in rows.values()]
    assert len(set(distances)) == len(distances)  # each part does something
    assert min(distances) > 0
    names = ["model.2.m.0", "model.4.m.0", "model.6.m.0", "model.8.m.0", "model.12.m.0", "model.15.m.0",
             "model.18.m.0", "model.21.m.0"]  # fmt: skip
    assert {row["row"].removeprefix("bottleneck ") for row in told["bottlenecks"]} >= {*names}
    for row in told["bottlenecks"]:
        assert 0 < row["saved"] < 0.3
        assert min(row["without"], row["channels"]) > 0
    assert [row["flops"] <= 0.81 for row in told["trained"]] == [True, True]
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    program.main(words)
    assert benchmark_programs.told(capsys.readouterr().out)["rows"] == told["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == stamps
