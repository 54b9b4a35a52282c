"""Time and peak memory of pruning, and time per picture and step of recovery, on this machine.

    python benchmarks/compress_speed.py yolov8n.pt --data coco-sample/data.yaml

Each stage runs in a process of its own, so that the peak is the stage's. Run it on an idle machine. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hawkeye import environment
from hawkeye.config import PruneConfig, RecoverConfig


def stage(name: str, model: Path, data: Path, work: Path, imgsz: int, samples: int, steps: int) -> dict[str, float]:
    """Run one stage here and tell its cost."""
    from hawkeye.artifact import Artifact
    from hawkeye.compress.original import import_original
    from hawkeye.compress.prune import prune
    from hawkeye.compress.recover import recover

    began = time.perf_counter()
    figures: dict[str, float] = {}
    original = import_original(model, imgsz=imgsz, out=work / "original")
    if name == "prune":
        prune(original, PruneConfig(data=data, imgsz=imgsz, samples=samples), out=work / "pruned")
        figures["seconds"] = time.perf_counter() - began
    else:
        config = RecoverConfig(data=data, imgsz=imgsz, steps=steps, checks=2)
        result = recover(Artifact.load(work / "pruned"), config, teacher=original, out=work / "recovered")
        half, end = result.details["curve"][-2:]  # without the start, when processes and caches begin
        pictures = (end["step"] - half["step"]) * config.batch
        figures["ms_per_picture"] = (end["seconds"] - half["seconds"]) * 1000 / pictures
    figures["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {key: round(value, 1) for key, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--stage", choices=("prune", "recover"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(stage(args.stage, args.model, args.data, args.work, args.imgsz, args.samples, args.steps)))
        return
    with tempfile.TemporaryDirectory() as work:
        result = {}
        for name in ("prune", "recover"):
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", name, "--work", work]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result[name] = json.loads(output.splitlines()[-1])
    print(json.dumps({**result, "imgsz": args.imgsz, "environment": environment.describe()}, indent=2))


if __name__ == "__main__":
    main()
