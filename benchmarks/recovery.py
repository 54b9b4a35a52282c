"""Recipes of recovery from the same pruned network, each for the same time or number of steps.

    python benchmarks/recovery.py runs/first/1-prune --original runs/first/0-original --data coco-sample/data.yaml \\
        --images unlabelled/ --out runs/recovery --budget 6m \\
        --try trunk=trained batch=8 --try batch=8 --try batch=4 --try batch=4 lr=2e-3 --try batch=2

That a recipe is harmless: the original learns from itself, where there is nothing to win back, and from a larger one.

    python benchmarks/recovery.py runs/first/0-original --original runs/first/0-original --data coco-sample/data.yaml \\
        --images unlabelled/ --out runs/harmless --budget 30m --evaluate --try --try teacher=yolov8s.pt

The baseline, the labels without a teacher (its held-out loss is the detection loss, not to be compared):

    python benchmarks/recovery.py runs/first/1-prune --original runs/first/0-original --data coco-sample/data.yaml \\
        --out runs/baseline --budget 25m --evaluate --fine-tune 2e-4

A recipe is a list of keys of `[recover]` that differ from the defaults; `--try` alone is the defaults. The held-out
loss is that of training pictures which are not trained on, the same ones for each recipe. With `--evaluate`, accuracy
on the validation pictures, in PyTorch, at every point of each curve (which is not counted as training): it is to be
looked at, and chooses nothing. Each recipe has a folder of its own and goes on where it was: start the same command
again after an interruption. Time is that of training alone, but other work on the machine takes from it: give `--steps`
where there is any. Prints JSON, then Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hawkeye import environment
from hawkeye.artifact import Artifact, write_json
from hawkeye.compress import yolo
from hawkeye.compress.original import import_original
from hawkeye.compress.recover import recover, train
from hawkeye.config import EvaluateConfig, RecoverConfig, parse_duration
from hawkeye.errors import ConfigError
from hawkeye.evaluate import evaluate
from hawkeye.progress import say
from hawkeye.report_text import markdown_table


def settings_of(words: Sequence[str]) -> dict[str, str]:
    """Keys and values of `key=value` words."""
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise ConfigError("not a setting", got=" ".join(words), expected="key=value, such as batch=4")
    return {key: value for key, _, value in pairs}


class Points:
    """Networks along a curve, kept as they come, and their accuracy."""

    def __init__(self, pruned: Artifact, folder: Path, imgsz: int | None = None) -> None:
        self.pruned, self.folder = pruned, folder
        self.spec = pruned.spec.model_copy(update={"imgsz": imgsz or pruned.spec.imgsz})

    def keep(self, network: nn.Module, point: dict[str, Any]) -> None:
        place = self.folder / str(point["step"])
        yolo.save_checkpoint(place / "network.pt", network, names=self.spec.names,
                             imgsz=self.spec.imgsz)  # fmt: skip
        write_json(place / "point.json", point)

    def curve(self) -> list[dict[str, Any]]:
        """The points as they were kept; a training that was killed has some from before."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*/point.json")]
        return sorted(found, key=lambda point: int(point["step"]))

    def map50(self, point: dict[str, Any], checks: EvaluateConfig) -> float:
        place = self.folder / str(point["step"])
        network = Artifact.create(place, {"pytorch": place / "network.pt"}, started=time.perf_counter(), name="point",
                                  stage="recover", spec=self.spec, params=self.pruned.params,
                                  macs=self.pruned.macs)  # fmt: skip
        return evaluate(network, checks, runtime="pytorch-fp32", out=place).map50


def study(name: str, pruned: Artifact, config: RecoverConfig, original: Artifact, out: Path,
          checks: EvaluateConfig | None) -> dict[str, Any]:  # fmt: skip
    """Train by one recipe; its curve, with accuracy at each point where `checks` asks for it."""
    say(f"recipe {name}")
    points = Points(pruned, out / "points", config.imgsz)
    if config.teacher is not None:
        original = import_original(config.teacher, imgsz=points.spec.imgsz, out=out / "teacher")
    made = recover(pruned, config, teacher=original, out=out / "recovered", look=points.keep)
    curve = [{**point, "pictures": point["step"] * config.batch} for point in made.details["curve"]]
    for point in curve if checks is not None else ():
        point["map50"] = points.map50(point, checks)
    return {"recipe": name, "config": config.model_dump(mode="json"), "before": made.details["held_out_before"],
            "after": made.details["held_out_after"], "pictures": made.details["pictures"], "curve": curve}  # fmt: skip


def fine_tuned(lr: float, pruned: Artifact, options: argparse.Namespace, checks: EvaluateConfig | None
               ) -> dict[str, Any]:  # fmt: skip
    """The baseline: trained on the labels alone, as `benchmarks/fine_tune.py` does, without a teacher."""
    name = f"labels alone, rate {lr:g}"
    say(name)
    out = options.out / name
    points = Points(pruned, out / "points")
    train(pruned.path("pytorch"), data=options.data, imgsz=pruned.spec.imgsz, budget=options.budget, lr=lr, out=out,
          look=points.keep)  # fmt: skip
    curve = points.curve()
    for point in curve if checks is not None else ():
        point["map50"] = points.map50(point, checks)
    losses = [point["held_out"] for point in curve]
    return {"recipe": name, "before": losses[0], "after": min(losses), "curve": curve}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """What each recipe has come to; and its curve, where accuracy was measured."""
    result = [[row["recipe"], str(row["curve"][-1]["step"]), str(row["curve"][-1].get("pictures", "")),
               f"{row['curve'][-1]['seconds'] / 60:.1f}", f"{row['before']:.3f}", f"{row['after']:.3f}"]
              for row in rows]  # fmt: skip
    lines = markdown_table(["recipe", "steps", "pictures", "minutes", "held-out loss before", "after"], result)
    points = [[row["recipe"], str(point["step"]), f"{point['seconds'] / 60:.1f}", f"{point['held_out']:.3f}",
               f"{point['map50']:.3f}"] for row in rows for point in row["curve"] if "map50" in point]  # fmt: skip
    if points:
        lines += markdown_table(["recipe", "step", "minutes", "held-out loss", "mAP@0.5"], points)
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Train by each recipe, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path, help="folder of the artefact to recover")
    parser.add_argument("--original", type=Path, required=True, help="folder of the artefact that it was pruned from")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=parse_duration, default=360.0, help="of each recipe, such as 6m")
    parser.add_argument("--steps", type=int, help="of each recipe, instead of a time")
    parser.add_argument("--checks", type=int, default=6, help="points of each curve")
    parser.add_argument("--evaluate", action="store_true", help="accuracy at every point; needs --data")
    parser.add_argument("--try", dest="recipes", nargs="*", action="append", metavar="KEY=VALUE", default=[])
    parser.add_argument("--fine-tune", type=float, nargs="*", default=[], metavar="RATE",
                        help="beside the recipes: trained on labels alone, for the same time")  # fmt: skip
    options = parser.parse_args(words)
    if options.fine_tune and options.data is None:
        raise ConfigError("no labels to learn from", got="--fine-tune without --data", expected="a data.yaml")
    pruned, original = Artifact.load(options.pruned), Artifact.load(options.original)
    shared = {"data": options.data, "images": options.images, "checks": options.checks, "budget": options.budget,
              "steps": options.steps}  # fmt: skip
    # A wrong key is told before anything is trained.
    configs = {" ".join(sorted(pairs)) or "defaults": RecoverConfig.build(**{**shared, **settings_of(pairs)})
               for pairs in options.recipes}  # fmt: skip
    checks = EvaluateConfig(data=options.data) if options.evaluate else None
    rows = [study(name, pruned, config, original, options.out / name.replace("/", "_"), checks)
            for name, config in configs.items()]  # fmt: skip
    rows += [fine_tuned(lr, pruned, options, checks) for lr in options.fine_tune]
    told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"}
    print(json.dumps({"settings": told, "rows": rows, "environment": environment.describe()}))
    print(tables(rows))


if __name__ == "__main__":
    main()
