"""Trials in a second: the stages of `finished_run`, with latency, accuracy and training that follow the settings.

Fewer FLOPs are faster and less accurate; "obs" trains better than "l1", and l1 is less accurate. As a program it is a
sweep on Ray over these stages: python sweep_fakes.py FOLDER OUT WORKERS [ADDRESS].
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import finished_run
from hawkeye.artifact import Artifact
from hawkeye.pipeline import Stages
from hawkeye.progress import judged
from hawkeye.records import AccuracyRecord, LatencyRecord, Percentiles

SPACE: dict[str, Sequence[Any]] = {"prune.flops": [0.5, 0.9], "prune.method": ["obs", "l1"]}


def prune_settings(place: Path) -> dict[str, Any]:
    """Settings of the run that a path lies in."""
    run = next(folder / "run.json" for folder in place.parents if (folder / "run.json").is_file())
    return dict(json.loads(run.read_text())["recipe"]["prune"])


def stages() -> Stages:
    """See the head of this file; each stage also writes a line into the file that `SWEEP_CALLS` names."""
    real = finished_run.stages(report=finished_run.plain_report)
    pause = float(os.environ.get("SWEEP_PAUSE_S", "0"))

    def noted(what: str, place: Path) -> None:
        if "SWEEP_CALLS" in os.environ:
            with Path(os.environ["SWEEP_CALLS"]).open("a") as file:
                file.write(f"{what} {place} {time.time()}\n")

    def recover(source: Artifact, config: Any, *, teacher: Artifact, out: Path) -> Artifact:
        if (out / "artifact.json").is_file():
            return real.recover(source, config, teacher=teacher, out=out)
        worse = {"obs": 1.0, "l1": 2.0}[prune_settings(out)["method"]]
        for part in (0.25, 0.5, 0.75, 1.0):
            time.sleep(pause)
            judged(part, worse / (1 + part))
        noted("recovered", out)
        return real.recover(source, config, teacher=teacher, out=out)

    def quantize(source: Artifact, config: Any, *, out: Path) -> Artifact:
        if not (out / "artifact.json").is_file():
            noted("quantized", out)
        return real.quantize(source, config, out=out)

    def evaluate(artifact: Artifact, config: Any, *, runtime: Any, out: Path) -> AccuracyRecord:
        path = out / f"{artifact.name}-{runtime}.json"
        if path.is_file():
            return AccuracyRecord.load(path)
        record = real.evaluate(artifact, config, runtime=runtime, out=out)
        if artifact.name.startswith("pruned"):
            how = prune_settings(out)
            value = 0.5 + 0.4 * how["flops"] - (0.1 if how["method"] == "l1" else 0.0)
            record = record.model_copy(update={"map50": value, "map50_95": value / 2})
            record.save(path)
        return record

    def benchmark(models: Sequence[Artifact], config: Any, *, out: Path) -> LatencyRecord:
        noted("begins", out)
        time.sleep(pause)
        record = real.benchmark(models, config, out=out)
        flops = prune_settings(out)["flops"]
        rows = []
        for row in record.rows:
            value = row.network.p50 * (flops if row.name.startswith("pruned") else 1.0)
            p = Percentiles(p50=value, p95=value, p99=value)
            rows.append(row.model_copy(update={"network": p, "network_ms": (value,) * len(row.network_ms)}))
        record = record.model_copy(update={"rows": tuple(rows)})
        record.save(out)
        noted("ends", out)
        return record

    return replace(real, recover=recover, quantize=quantize, evaluate=evaluate, benchmark=benchmark)


if __name__ == "__main__":
    import sweep_fakes  # by its name, as other processes know it
    from hawkeye.scale.ray_sweep import RayTrials
    from hawkeye.scale.sweep import sweep

    folder, out, count, *address = sys.argv[1:]
    with RayTrials(int(count), 1, *address) as workers:
        sweep(finished_run.recipe(Path(folder), benchmark={"runs": 3}), SPACE, out=Path(out), workers=workers,
              stages=sweep_fakes.stages)  # fmt: skip
