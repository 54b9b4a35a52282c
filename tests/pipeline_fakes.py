"""Stages of the pipeline that take no time, and a project to run them on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hawkeye import environment
from hawkeye.artifact import Artifact, ModelSpec, digest, file_sha256, reuse, write_bytes
from hawkeye.config import EvaluateConfig, Recipe
from hawkeye.pipeline import Stages
from hawkeye.records import AccuracyRecord, LatencyRecord, LatencyRow, Percentiles

NAMES = ("ball", "box")


class Killed(BaseException):
    """Stands in for a kill: nothing in the product may catch it."""


class Bench:
    """Fake stages that keep the house's rule (finished work with the same key is returned) and note who worked."""

    def __init__(self, drop: float = 0.01, die_in: str | None = None, names: tuple[str, ...] = NAMES) -> None:
        self.worked: list[str] = []
        self.drop, self.die_in, self.names = drop, die_in, names
        self.drawn: tuple[str, str] | None = None
        self.forecasts: list[tuple[str, str]] = []

    def stages(self) -> Stages:
        return Stages(
            class_names=lambda path: self.names,
            original=lambda path, *, imgsz, out: self.make(
                "original", "original", file_sha256(path), out, ("pytorch",)
            ),
            prune=lambda a, c, *, out: self.make("prune", "pruned", [a.sha256, c.flops], out, ("pytorch",), a),
            forecast=lambda before, after: self.forecasts.append((before.name, after.name)),
            recover=lambda a, c, *, teacher, out: self.make(
                "recover", a.name, [a.sha256, teacher.sha256, c.budget], out, ("pytorch",), a
            ),
            export=lambda a, c, *, out: self.make("export", a.name, a.sha256, out, ("pytorch", "onnx", "openvino"), a),
            quantize=lambda a, c, *, out: self.make(
                "quantize", f"{a.name}+int8", a.sha256, out, ("onnx", "openvino"), a
            ),
            evaluate=self.evaluate,
            benchmark=self.benchmark,
            pictures=self.pictures,
            report=self.report,
        )

    def make(
        self, stage: str, name: str, key: Any, out: Path, formats: tuple[Any, ...], parent: Artifact | None = None
    ) -> Artifact:
        key = digest(stage, key)
        if (done := reuse(out, key)) is not None:
            return done
        self.worked.append(f"{stage} {name}")
        files = {fmt: out / f"{name}.{fmt}" for fmt in formats}
        for path in files.values():
            write_bytes(path, f"{path.name} {key}".encode())
        if self.die_in == f"{stage} {name}":
            raise Killed  # files are there, the record is not
        spec = ModelSpec(imgsz=64, names=self.names, strides=(8, 16, 32))
        return Artifact.create(out, files, started=time.perf_counter(), name=name, stage=stage, spec=spec, params=10,
                               macs=100, key=key, parent_sha256=parent.sha256 if parent else None)  # fmt: skip

    def evaluate(self, artifact: Artifact, config: EvaluateConfig, *, runtime: Any, out: Path) -> AccuracyRecord:
        fmt: Any = {"pytorch-fp32": "pytorch", "onnxruntime": "onnx"}.get(runtime, "openvino")
        stem = f"{artifact.name}-{runtime}"
        if (out / f"{stem}.json").is_file():
            done = AccuracyRecord.load(out / f"{stem}.json")
            if done.file_sha256 == artifact.files[fmt].sha256:
                return done
        self.worked.append(f"evaluate {artifact.name} {runtime}")
        if self.die_in == f"evaluate {stem}":
            raise Killed
        write_bytes(out / f"{stem}.npz", b"matches")
        record = AccuracyRecord(
            name=artifact.name, artifact_sha256=artifact.sha256, file_sha256=artifact.files[fmt].sha256, format=fmt,
            runtime=runtime, precision_hint="f32", dataset="d", dataset_sha256="d", split=config.split, images=4,
            skipped=0, imgsz=config.imgsz, conf=config.conf, iou=config.iou, max_det=config.max_det, threads=2,
            map50=0.9, map50_95=0.6, per_class=(), matches=f"{stem}.npz", seconds=0.1,
            environment=environment.describe(),
        )  # fmt: skip
        record.save(out / f"{stem}.json")
        return record

    def benchmark(self, artifacts: list[Artifact], config: Any, *, out: Path) -> LatencyRecord:
        self.worked.append("benchmark " + " ".join(a.name for a in artifacts))
        p = Percentiles(p50=1, p95=1, p99=1)
        rows = tuple(
            LatencyRow(name=a.name, runtime="openvino-f32", file_sha256=a.files["openvino"].sha256,
                       precision_hint="f32", precision_executed="f32", network_ms=(1.0,) * config.runs,
                       frame_ms=(1.0,) * config.runs, network=p, frame=p, throughput_fps=None, start_s=None,
                       peak_rss_bytes=None)
            for a in artifacts
        )  # fmt: skip
        record = LatencyRecord(imgsz=config.imgsz, batch=1, threads=2, frame_hw=config.frame, rows=rows, seconds=1,
                               environment=environment.describe())  # fmt: skip
        record.save(out)
        return record

    def pictures(self, paths: list[Path], before: Artifact, after: Artifact, *, out: Path) -> None:
        assert paths
        self.drawn = (before.name, after.name)

    def report(self, run: Path) -> dict[str, Any]:
        self.worked.append("report")
        head = json.loads((run / "run.json").read_text())
        limit = head["recipe"]["gates"]["max_drop"]
        value = 100 * self.drop if head["labels"] else None
        passed = None if value is None else value <= limit
        return {"gates": {"max_drop": {"limit": limit, "value": value, "passed": passed}}, "rows": []}


def project(tmp_path: Path) -> Callable[..., Recipe]:
    """A data set of eight pictures, a folder of unlabelled ones, and a checkpoint that only the fakes can read."""
    picture = cv2.imencode(".png", np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
    for split, count in (("train", 5), ("val", 3)):
        for i in range(count):
            write_bytes(tmp_path / "d" / "images" / split / f"{i}.png", picture + bytes([i]))
            write_bytes(tmp_path / "d" / "labels" / split / f"{i}.txt", b"0 0.5 0.5 0.25 0.25\n")
            write_bytes(tmp_path / "loose" / f"{split}{i}.png", picture)
    yaml = f"train: images/train\nval: images/val\nnames: {list(NAMES)}\n"
    write_bytes(tmp_path / "d" / "data.yaml", yaml.encode())
    write_bytes(tmp_path / "model.pt", b"weights")

    def build(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "model": tmp_path / "model.pt",
            "data": tmp_path / "d" / "data.yaml",
            "imgsz": 64,
            **changes,
        }
        return Recipe.build(**values)

    return build
