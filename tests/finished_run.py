"""Whole runs in seconds and without torch: the pipeline's own order, records, report and gates around tiny networks.

The stages stand in for the real ones and compute the real keys; evaluation is the real one. A checkpoint here is a text
file with one number, its floor: squares dimmer than that are not found, so a higher floor is a worse detector.

As a program it is the `hawkeye` command with these stages: python finished_run.py optimize ...
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import tiny_ir
from hawkeye import environment, keys
from hawkeye.artifact import Artifact, file_sha256, reuse, write_bytes, write_json
from hawkeye.config import Recipe
from hawkeye.evaluate import evaluate
from hawkeye.pipeline import RunResult, Stages, optimize
from hawkeye.records import AccuracyRecord, LatencyRecord, LatencyRow, Percentiles
from hawkeye.report import collect
from hawkeye.report import report as full_report

NAMES = tiny_ir.NAMES  # blue, green, red


def draw(folder: Path, *, train: int = 12, val: int = 12) -> Path:
    """data.yaml of pictures with one square of each colour, from dim in the first picture to bright in the last."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            image = np.zeros((64, 64, 3), np.uint8)
            lines = []
            for cls in range(3):
                x, y = 8 * ((3 * i + cls) % 8), 8 * ((i + 2 * cls) % 8)
                image[y : y + 8, x : x + 8, cls] = 60 + 195 * (i + 1) // count
                lines.append(f"{cls} {(x + 4) / 64} {(y + 4) / 64} 0.125 0.125\n")
            write_bytes(folder / "images" / split / f"{i:02d}.png", cv2.imencode(".png", image)[1].tobytes())
            write_bytes(folder / "labels" / split / f"{i:02d}.txt", "".join(lines).encode())
    yaml = f"train: images/train\nval: images/val\nnames: {list(NAMES)}\n"
    write_bytes(folder / "data.yaml", yaml.encode())
    return folder / "data.yaml"


def plain_report(run: Path) -> dict[str, Any]:
    """The report's content without its plots, which take longer than everything else here."""
    table = collect(run)
    write_json(run / "report.json", table)
    return table


def stages(latency_ms: float = 10.0, report: Any = full_report) -> Stages:
    """Stages for `optimize`; INT8 models take `latency_ms`, all others twice that."""

    def made(stage: str, name: str, key: str, out: Path, floor: float, parent: Artifact | None, *fmts: str) -> Artifact:
        if (done := reuse(out, key)) is not None:
            return done
        started = time.perf_counter()
        files: dict[Any, Path] = {}
        for fmt in fmts:
            files[fmt] = out / {"pytorch": f"{name}.pt", "onnx": f"{name}.onnx", "openvino": f"{name}.xml"}[fmt]
            if fmt == "openvino":
                tiny_ir.save_ir(files[fmt], floor=floor, int8=name.endswith("+int8"))
            else:
                write_bytes(files[fmt], f"{floor} {key}".encode())
        size = 70 if name.startswith("pruned") else 100
        return Artifact.create(out, files, started=started, name=name, stage=stage, spec=tiny_ir.SPEC, params=size,
                               macs=1000 * size, key=key, parent_sha256=parent.sha256 if parent else None,
                               details={"floor": floor, "stage": stage})  # fmt: skip

    def original(path: Path, *, imgsz: int, out: Path) -> Artifact:
        return made("original", "original", keys.original(path, imgsz), out, 0.0, None, "pytorch")

    def prune(base: Artifact, config: Any, *, out: Path) -> Artifact:
        source = Path(out.parent / "0-original" / "original.pt")
        assert source.is_file()
        return made("prune", "pruned", keys.prune(base.sha256, config)[-1], out, _floor(out), base, "pytorch")

    def recover(source: Artifact, config: Any, *, teacher: Artifact, out: Path) -> Artifact:
        key = keys.recover(source.sha256, teacher.sha256, config)[-1]
        return made("recover", "pruned", key, out, _floor(out), source, "pytorch")

    def export(source: Artifact, config: Any, *, out: Path) -> Artifact:
        key = keys.export(file_sha256(source.path("pytorch")), source.name, source.spec.imgsz, config)[-1]
        floor = source.details["floor"]
        return made("export", source.name, key, out, floor, source, "pytorch", "onnx", "openvino")

    def quantize(source: Artifact, config: Any, *, out: Path) -> Artifact:
        key = keys.quantize(source.sha256, config)[-1]
        floor = source.details["floor"]
        return made("quantize", f"{source.name}+int8", key, out, floor, source, "onnx", "openvino")

    def measure(artifact: Artifact, config: Any, *, runtime: Any, out: Path) -> AccuracyRecord:
        if runtime in ("openvino-f32", "openvino-int8"):
            return evaluate(artifact, config, runtime=runtime, out=out)
        like = AccuracyRecord.load(out / f"{artifact.name}-openvino-f32.json")
        fmt: Any = "pytorch" if runtime == "pytorch-fp32" else "onnx"
        record = like.model_copy(update={"runtime": runtime, "format": fmt, "file_sha256": artifact.files[fmt].sha256})
        record.save(out / f"{artifact.name}-{runtime}.json")
        return record

    def benchmark(models: Sequence[Artifact], config: Any, *, out: Path) -> LatencyRecord:
        rows = []
        for model in models:
            int8 = model.name.endswith("+int8")
            # The released model keeps the time that it was made with.
            value = 10.0 if model.name.startswith("released") else latency_ms if int8 else 2 * latency_ms
            p = Percentiles(p50=value, p95=value, p99=value)
            rows.append(LatencyRow(
                name=model.name, runtime="openvino-int8" if int8 else "openvino-f32",
                file_sha256=model.files["openvino"].sha256, precision_hint="f32", precision_executed="f32",
                network_ms=(value,) * config.runs, frame_ms=(value,) * config.runs, network=p, frame=p,
                throughput_fps=None, start_s=None, peak_rss_bytes=None,
            ))  # fmt: skip
        record = LatencyRecord(imgsz=64, batch=1, threads=1, frame_hw=config.frame, rows=tuple(rows), seconds=6.0,
                               environment=environment.describe())  # fmt: skip
        record.save(out)
        return record

    def _floor(out: Path) -> float:
        return float((out.parent / "0-original" / "checkpoint.txt").read_text())

    def take_in(path: Path, *, imgsz: int, out: Path) -> Artifact:
        write_bytes(out / "checkpoint.txt", path.read_bytes())
        return original(path, imgsz=imgsz, out=out)

    return Stages(
        class_names=lambda path: NAMES, original=take_in, prune=prune, forecast=lambda *a: None, recover=recover,
        export=export, quantize=quantize, evaluate=measure, benchmark=benchmark,
        pictures=lambda *a, **k: None, report=report,
    )  # fmt: skip


def recipe(folder: Path, *, floor: float = 0.0, **changes: Any) -> Recipe:
    """A recipe over the drawn data in `folder/data`; draws it where it is not there."""
    data = folder / "data" / "data.yaml"
    if not data.is_file():
        draw(data.parent)
    model = folder / f"model-{floor}.pt"
    model.write_text(f"{floor}")
    return Recipe.build(**{"model": model, "data": data, "imgsz": 64, **changes})


def make(folder: Path, name: str = "run", *, floor: float = 0.0, latency_ms: float = 10.0, **changes: Any) -> RunResult:
    """A finished run in `folder/name`."""
    return optimize(recipe(folder, floor=floor, **changes), out=folder / name, stages=stages(latency_ms))


if __name__ == "__main__":
    from hawkeye import cli, pipeline

    latency = float(os.environ.get("FINISHED_RUN_LATENCY_MS", "10"))
    pipeline.Stages = lambda: stages(latency, report=plain_report)  # type: ignore[assignment,misc]
    sys.exit(cli.run(sys.argv[1:]))
