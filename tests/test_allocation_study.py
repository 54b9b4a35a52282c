"""benchmarks/allocation.py: widths chosen in several ways at one latency, each row made once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import benchmark_programs  # noqa: E402
import tiny_detector  # noqa: E402
from hawkeye.scenes import draw_dataset  # noqa: E402
from test_latency import small_profile  # noqa: E402, F401  # fixture

pytestmark = pytest.mark.compress


def test_every_way_is_within_the_latency_and_no_row_is_made_twice(small_profile, tmp_path, monkeypatch, capsys):  # noqa: F811
    program = benchmark_programs.load("allocation")
    monkeypatch.setattr(program, "networks_of", lambda *_: {"int8": None})  # test_latency.py times real ones
    monkeypatch.setattr(program, "networks_ms", lambda networks, **_: [[10.0], *[[7.0]] * (len(networks) - 1)])
    ways = ("l1", "uniform")  # the others take long, and are made by the same lines
    model = tiny_detector.fresh(tmp_path / "small.pt")
    scenes = draw_dataset(tmp_path / "scenes", train=24, val=4, imgsz=64, seed=1)
    out = tmp_path / "out"
    words = [str(model), "--data", str(scenes), "--out", str(out), "--imgsz", "64", "--latency", "0.9", "--ways", *ways,
             "--samples", "8", "--rounds", "1", "--steps", "2"]  # fmt: skip
    program.main(words)
    told = benchmark_programs.told(capsys.readouterr().out)
    rows = {row["way"]: row for row in told["rows"]}
    assert tuple(rows) == ways
    assert all(row["predicted"] <= 0.9 and row["measured"] == pytest.approx(0.7) for row in rows.values())
    assert all(0 <= row[key] <= 1 for row in rows.values() for key in ("raw", "after", "flops", "params"))
    assert len({(row["flops"], row["params"]) for row in rows.values()}) == 2  # ways differ in what they take
    assert rows["l1"]["below"] == 0
    drawing = (out / "allocation.svg").read_text()
    assert drawing.startswith("<svg") and all(f">{way}<" in drawing for way in rows)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    program.main(words)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == stamps
