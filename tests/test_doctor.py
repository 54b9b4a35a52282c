"""The machine and its advice: limits from made-up files, sentences from made-up machines, one real run."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

import tiny_ir
from hawkeye import environment
from hawkeye.cli import run
from hawkeye.doctor import advice, examine, report

MACHINE: dict[str, Any] = {
    "cpu": {"model": "some CPU", "instruction_sets": ["avx2", "avx512_vnni"], "cores": 4, "threads": 8, "usable": 8,
            "quota": None, "load": 0.1},
    "memory": {"total_bytes": 16 * 2**30, "available_bytes": 8 * 2**30, "limit_bytes": None},
    "openvino": {"version": "1", "precisions": ["FP32", "INT8"]},
    "model": None,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "source": "m", "imgsz": 640, "classes": 3, "runtime": "openvino-int8", "precision_hint": "f32",
    "precision_executed": "i8 x3", "open_s": 0.1, "throughput_fps": 110.0,
    "rows": [{"threads": 8, "imgsz": 640, "canvas": [384, 640], "frame_ms": 10.0, "outside_ms": 0.5},
             {"threads": 1, "imgsz": 640, "canvas": [384, 640], "frame_ms": 40.0, "outside_ms": 0.5},
             {"threads": 8, "imgsz": 320, "canvas": [192, 320], "frame_ms": 3.0, "outside_ms": 0.3}],
}  # fmt: skip


def machine(model: bool = False, **changes: Any) -> dict[str, Any]:
    """The machine with some values changed: cpu_load stands for cpu, load."""
    found = copy.deepcopy({**MACHINE, "model": MODEL if model else None})
    for name, value in changes.items():
        part, _, key = name.partition("_")
        found[part][key] = value
    return found


@pytest.mark.parametrize(
    ("found", "said", "not_said"),
    [
        (machine(), "INT8 pays here", "busy"),
        (machine(cpu_instruction_sets=["avx2"]), "without VNNI", "INT8 pays"),
        (machine(cpu_instruction_sets=["avx2", "avx_vnni"]), "AVX-VNNI", "without VNNI"),
        (machine(cpu_instruction_sets=["asimd", "asimddp"]), "NEON dot product", "Without AVX2"),
        (machine(cpu_instruction_sets=["fma"]), "Without AVX2", "INT8 pays"),
        (machine(cpu_instruction_sets=[]), "does not tell", "without VNNI"),
        (machine(openvino_precisions=["FP32", "BF16"]), "bfloat16", "busy"),
        (machine(), "INT8", "bfloat16"),
        (machine(cpu_quota=1.5, cpu_usable=2), "time of 1.5 cores, though it sees 8; 2 threads", "busy"),
        (machine(cpu_load=6.0), "busy (6.0 tasks on 8 cores)", "memory"),
        (machine(memory_available_bytes=2**29), "Only 0.5 GiB", "busy"),
        (machine(memory_limit_bytes=2**28), "Only 0.2 GiB", "busy"),
        (machine(model=True), "10.0 ms; 110 frames per second at most. Cameras at 25 per second that this serves: 4",
         "lose frames"),
        (machine(model=True), "At 320 pixels a frame takes 3.0 ms", "hardly help"),
        (machine(model=True), "10.0 ms", "square pictures only"),
        (machine(model=True, model_rows=[{**MODEL["rows"][0], "canvas": [640, 640]}]), "square pictures only", "320"),
        (machine(model=True, model_throughput_fps=20.0, model_rows=[{**MODEL["rows"][0], "frame_ms": 60.0}]),
         "will lose frames", "320"),
        (machine(model=True, model_runtime="openvino-f32"), "two to three times", "ONNX file"),
        (machine(model=True, model_runtime="onnxruntime", model_throughput_fps=None), "100 frames per second",
         "quantize` makes"),
        (machine(model=True, model_rows=[MODEL["rows"][0], {**MODEL["rows"][1], "frame_ms": 11.0}]),
         "More threads hardly help", "320"),
        (machine(model=True, cpu_load=9.0, model_rows=[MODEL["rows"][0], {**MODEL["rows"][1], "frame_ms": 11.0}]),
         "busy", "More threads hardly help"),
    ],
)  # fmt: skip
def test_advice(found, said, not_said):
    text = " ".join(advice(found))
    assert said in text
    assert not_said not in text
    assert all(sentence in report({**found, "advice": advice(found)}) for sentence in advice(found))


@pytest.mark.parametrize(
    ("files", "quota", "memory"),
    [
        ({}, None, None),
        ({"cpu.max": "150000 100000\n", "memory.max": "536870912\n"}, 1.5, 2**29),
        ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "1048576"}, 0.5, 2**20),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ({"cpu.max": "nonsense", "memory.max": "nonsense"}, None, None),
    ],
)  # fmt: skip
def test_limits_of_a_container(tmp_path, files, quota, memory):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment.cpu_quota(tmp_path) == quota
    assert environment.memory_limit_bytes(tmp_path) == memory


def test_threads_follow_the_quota(monkeypatch):
    cores = environment.cpu_count()
    for quota, expected in ((0.3, 1), (1.0, 1), (cores + 7.0, cores), (None, cores)):
        monkeypatch.setattr(environment, "cpu_quota", lambda quota=quota: quota)
        assert environment.cpu_count() == expected


def test_a_model_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hawkeye.doctor._SECONDS", 0.05)
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    assert run(["doctor", str(folder), "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["precision_executed"] == "f32 x3"
    assert [(row["threads"], row["imgsz"], row["canvas"]) for row in found["model"]["rows"]] == [
        (1, 64, [64, 64]), (1, 320, [192, 320])]  # fmt: skip
    assert all(row["frame_ms"] > row["outside_ms"] > 0 for row in found["model"]["rows"])
    assert found["model"]["throughput_fps"] > 0
    assert found["openvino"]["version"] and "FP32" in found["openvino"]["precisions"]
    text = report(found)
    assert "3 classes at 64 pixels" in text and "computes    f32 x3 (asked for f32)" in text


def test_a_file_of_one_size_has_no_second_row(tmp_path, monkeypatch):
    monkeypatch.setattr("hawkeye.doctor._SECONDS", 0.02)
    found = examine(tiny_ir.stock_folder(tmp_path), threads=1)
    assert [row["imgsz"] for row in found["model"]["rows"]] == [64]


def test_machine_alone_and_a_wrong_model(tmp_path, capsys):
    assert run(["doctor"]) == 0
    assert "processor" in capsys.readouterr().out
    assert run(["doctor", str(tmp_path / "none")]) == 2
    assert "there is no model" in capsys.readouterr().err
