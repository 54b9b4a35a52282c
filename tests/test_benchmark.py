"""Latency records: complete, in turns, with raw values."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import tiny_ir
from hawkeye.benchmark import benchmark, percentiles, runtimes_of, synthetic_frame
from hawkeye.config import BenchmarkConfig
from hawkeye.errors import ModelError
from hawkeye.records import LatencyRecord


def test_record_is_complete(tmp_path):
    models = [tiny_ir.artifact(tmp_path / "a"), tiny_ir.artifact(tmp_path / "b", name="pruned")]
    config = BenchmarkConfig(runs=4, warmup=1, threads=1, frame=(90, 160))
    record = benchmark(models, config, out=tmp_path / "latency.json")
    assert LatencyRecord.load(tmp_path / "latency.json") == record
    assert [(row.name, row.runtime) for row in record.rows] == [
        (name, runtime) for name in ("original", "pruned") for runtime in ("openvino-f32", "openvino-default")
    ]
    for row in record.rows:
        assert len(row.network_ms) == len(row.frame_ms) == 4
        assert 0 < row.network.p50 <= row.network.p95 <= row.network.p99 <= max(row.network_ms)
        assert row.throughput_fps > 0
        assert 0.05 < row.start_s < 60
        assert 20e6 < row.peak_rss_bytes < 4e9
    assert record.rows[0].precision_hint == "f32"
    assert (record.threads, record.imgsz, record.batch, record.frame_hw) == (1, 64, 1, (90, 160))


def test_rows_are_measured_in_turns(tmp_path, monkeypatch):
    order = []
    module = sys.modules["hawkeye.benchmark"]
    real = module._turn
    monkeypatch.setattr(module, "_turn", lambda runtime, *rest: order.append(runtime.name) or real(runtime, *rest))
    benchmark([tiny_ir.artifact(tmp_path / "a")], BenchmarkConfig(runs=3, warmup=1, threads=1), out=tmp_path / "l.json")
    f32, default = "openvino-f32", "openvino-default"
    assert order == [f32, default, default, f32, f32, default, default, f32]


def test_percentiles_by_hand():
    found = percentiles(list(range(101)))
    assert (found.p50, found.p95, found.p99) == (50, 95, 99)


def test_frame_repeats_with_its_seed():
    first = synthetic_frame((90, 161), 3)
    assert (first.shape, first.dtype) == ((90, 161, 3), np.uint8)
    np.testing.assert_array_equal(first, synthetic_frame((90, 161), 3))
    assert (first != synthetic_frame((90, 161), 4)).any()


def test_rows_of_an_int8_model(tmp_path):
    assert runtimes_of(tiny_ir.artifact(tmp_path, name="pruned+int8")) == ("openvino-int8",)


def test_nothing_to_measure(tmp_path):
    with pytest.raises(ModelError, match="cannot be measured"):
        benchmark([], BenchmarkConfig(), out=tmp_path / "latency.json")
    with pytest.raises(ModelError, match="cannot be measured"):
        benchmark([tiny_ir.artifact(tmp_path)], BenchmarkConfig(imgsz=128), out=tmp_path / "latency.json")
