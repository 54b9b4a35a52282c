"""Where to save, at equal latency: the product's widths against uniform ones, FLOPs alone, L1, BatchNorm and Taylor.

    python benchmarks/allocation.py yolov8n.pt --data coco/data.yaml --out runs/allocation --latency 0.7 --steps 200

Channels alone are pruned: a separable head may reach the bound by itself, and all rows would be the same network.
Every row may take the same share of the original's INT8 latency by the table of this CPU, is pruned on the same
pictures and trained for the same number of steps. `uniform` and `flops` choose channels as the product does and refit
likewise, so only widths differ; l1, bn and taylor choose channels by their own measure and refit nothing. Accuracy is
that of PyTorch on the validation pictures; latencies are measured in turns at the end, in INT8. Each row is finished
work in a folder of its own: start the same command again after an interruption. Draws `allocation.svg`, prints JSON,
then a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from hawkeye import environment, report_plots
from hawkeye.artifact import Artifact
from hawkeye.compress import yolo
from hawkeye.compress.allocate import Cost, LatencyBound, Removal, Scorer, allocate, units_of
from hawkeye.compress.groups import Group
from hawkeye.compress.latency import networks_of
from hawkeye.compress.layer_models import networks_ms
from hawkeye.compress.original import import_original
from hawkeye.compress.prune import prune
from hawkeye.compress.recover import recover
from hawkeye.config import EvaluateConfig, PruneConfig, RecoverConfig
from hawkeye.evaluate import Matches, drop_interval, evaluate

WAYS = ("latency", "uniform", "flops", "l1", "bn", "taylor")


def uniform(groups: list[Group], cost: Cost, scorer: Scorer, *, macs: float, params: float, align: int,
            latency: LatencyBound | None = None) -> dict[str, Tensor]:  # fmt: skip
    """The same share of every width, the largest that is within the latency."""
    assert latency is not None
    units = {unit[0].name: unit for unit in units_of(groups)}

    def widths(share: float) -> dict[str, int]:
        return {name: min(unit[0].width, max(align, round(share * unit[0].width / align) * align))
                for name, unit in units.items()}  # fmt: skip

    shares = [number / 100 for number in range(100, 0, -1)]
    fitting = (s for s in shares if latency.clock.ms(_every(units, widths(s))) <= latency.ms)
    removal = Removal(units, scorer)
    for name, width in widths(next(fitting)).items():
        removal.remove_(name, units[name][0].width - width)
    return {name: mask.nonzero().flatten() for name, mask in removal.alive.items()}


def by_flops(groups: list[Group], cost: Cost, scorer: Scorer, *, macs: float, params: float, align: int,
             latency: LatencyBound | None = None) -> dict[str, Tensor]:  # fmt: skip
    """Damage per multiply-accumulate saved, until the latency is reached: what is done where nothing is measured."""
    assert latency is not None
    units = {unit[0].name: unit for unit in units_of(groups)}
    removal = Removal(units, scorer)
    while latency.clock.ms(_every(units, removal.widths)) > latency.ms:
        now = cost.total(_every(units, removal.widths))[0]
        prices = []
        for name, width in removal.widths.items():
            block = width - (width - 1) // align * align
            if width - block >= align:
                saved = now - cost.total(_every(units, {**removal.widths, name: width - block}))[0]
                prices.append((removal.damage_of(name, block) / saved, name, block))
        _, name, block = min(prices)
        removal.remove_(name, block)
    return {name: mask.nonzero().flatten() for name, mask in removal.alive.items()}


def _every(units: dict[str, tuple[Group, ...]], widths: dict[str, int]) -> dict[str, int]:
    return {group.name: widths[name] for name, unit in units.items() for group in unit}


def main(words: Sequence[str] | None = None) -> None:
    """Prune, train, evaluate, time, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.7)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args(words)
    original = import_original(options.model, imgsz=options.imgsz, out=options.out / "original")
    shared: dict[str, Any] = {"data": options.data, "imgsz": options.imgsz}
    checks = EvaluateConfig(**shared)
    made: dict[str, Artifact] = {}
    rows = []
    base = evaluate(original, checks, runtime="pytorch-fp32", out=options.out / "original")
    for way in options.ways:
        config = PruneConfig(flops=1, params=1, latency=options.latency, samples=options.samples, rounds=options.rounds,
                             separable=False,
                             method=way if way in ("l1", "bn", "taylor") else "obs", **shared)  # fmt: skip
        allocator = {"uniform": uniform, "flops": by_flops}.get(way, allocate)
        folder = options.out / way
        pruned = prune(original, config, out=folder / "pruned", allocator=allocator)
        raw = evaluate(pruned, checks, runtime="pytorch-fp32", out=folder / "raw")
        trained = recover(pruned, RecoverConfig(steps=options.steps, **shared), teacher=original,
                          out=folder / "recovered")  # fmt: skip
        after = evaluate(trained, checks, runtime="pytorch-fp32", out=folder / "after")
        made[way] = trained
        rows.append({"way": way, "predicted": pruned.details["latency"]["kept"], "flops": pruned.details["flops_kept"],
                     "params": pruned.details["params_kept"], "raw": raw.map50, "after": after.map50,
                     "matches": str(folder / "after" / after.matches)})  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        networks = [networks_of(yolo.load_checkpoint(a.path("pytorch")).model, options.imgsz, Path(place))["int8"]
                    for a in (original, *made.values())]  # fmt: skip
        times = [median(t) for t in networks_ms(networks, threads=environment.cpu_count(), runs=options.runs)]
    first = Matches.load(Path(rows[0]["matches"]))
    lines = [f"original: mAP@0.5 {base.map50:.3f} on {base.images} pictures, {times[0]:.2f} ms in INT8\n",
             "| widths by | of latency, predicted | measured | FLOPs | parameters | mAP@0.5, untrained | trained "
             f"| points below {rows[0]['way']} |", "|---|" + "---:|" * 7]  # fmt: skip
    for row, ms in zip(rows, times[1:], strict=True):
        low, high = drop_interval(first, Matches.load(Path(row.pop("matches"))))
        row |= {"measured": ms / times[0], "ms": ms, "below": 100 * (rows[0]["after"] - row["after"]),
                "interval": (low, high)}  # fmt: skip
        lines.append(f"| {row['way']} | {row['predicted']:.3f} | {row['measured']:.3f} | {row['flops']:.3f} "
              f"| {row['params']:.3f} | {row['raw']:.3f} | {row['after']:.3f} "
              f"| {row['below']:.1f} [{low:.1f}, {high:.1f}] |")  # fmt: skip
    options.out.joinpath("allocation.svg").write_text(report_plots.alone(report_plots.allocation(rows)))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"}
    print(json.dumps({"settings": settings, "original": base.map50, "original_ms": times[0], "rows": rows,
                      "environment": environment.describe()}))  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main()
