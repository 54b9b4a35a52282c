"""`hawkeye sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hawkeye.batch_commands import Address
from hawkeye.config import PruneConfig, Recipe, RecoverConfig
from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.options import Budget, Data, Device, Images, Int8, Json, Out, Seed, Steps, about, given
from hawkeye.tables import as_json, table

# Options that take several values, and the settings they vary.
_VARIED = {
    "flops": "prune.flops", "params": "prune.params", "latency": "prune.latency", "method": "prune.method",
    "align": "prune.align", "imgsz": "imgsz", "teacher": "recover.teacher",
}  # fmt: skip


def _values(kind: Any, name: str) -> Parameter:
    return Parameter(help=f"Values with commas. {about(kind, name).help}")


def sweep(
    model: Annotated[Path | None, about(Recipe, "model")] = None,
    /,
    *,
    out: Out,
    flops: Annotated[str | None, _values(PruneConfig, "flops")] = None,
    params: Annotated[str | None, _values(PruneConfig, "params")] = None,
    latency: Annotated[str | None, _values(PruneConfig, "latency")] = None,
    method: Annotated[str | None, _values(PruneConfig, "method")] = None,
    align: Annotated[str | None, _values(PruneConfig, "align")] = None,
    imgsz: Annotated[str | None, _values(Recipe, "imgsz")] = None,
    teacher: Annotated[str | None, _values(RecoverConfig, "teacher")] = None,
    vary: Annotated[tuple[str, ...], Parameter(help="Any other setting: STAGE.NAME=VALUES, such as "
                                               "recover.lr=1e-3,3e-4; may be given again.")] = (),
    data: Data = None,
    images: Images = None,
    budget: Budget = None,
    steps: Steps = None,
    int8: Int8 = None,
    seed: Seed = None,
    device: Device = None,
    config: Annotated[Path | None, Parameter(help="Recipe (.toml) that the trials change.")] = None,
    trials: Annotated[int | None, Parameter(help="Trials at most, chosen by the seed; left out, all.")] = None,
    workers: Annotated[int, Parameter(help="Trials at once.")] = 1,
    threads: Annotated[int, Parameter(help="CPU threads of each trial; 0 divides this machine's cores.")] = 0,
    address: Address = None,
    host: Annotated[str | None, Parameter(help="Machine that latency is measured on, by name or address; left out, "
                                          "this one.")] = None,
    stop: Annotated[bool, Parameter(help="Stop trials early that cannot come to the front.")] = True,
    json: Json = False,
) -> None:  # fmt: skip
    """Search bounds, methods, alignments, input sizes and teachers for the front of accuracy and latency.

    Every trial is an ordinary run in OUT/trials. Latency is measured on one machine only, one trial at a time, when
    all trials are made. Kill it anywhere and start the same command again: it goes on where it was; more values may be
    given then. On a cluster, OUT and the data must lie where all machines see them.

    For example:

        hawkeye sweep yolov8n.pt --data data.yaml --out runs/sweep --flops 0.6,0.7,0.85 --imgsz 512,640

        hawkeye sweep --config recipe.toml --out runs/sweep --method obs,l1 --teacher yolov8n.pt,yolov8s.pt --budget 20m

        hawkeye sweep --config recipe.toml --out /shared/sweep --flops 0.5,0.6,0.7 --vary recover.lr=1e-3,3e-4 \\
            --address 10.0.0.1:6379 --workers 8 --threads 4 --host edge-box
    """
    search = load("hawkeye.scale.search")
    given_values = {"flops": flops, "params": params, "latency": latency, "method": method, "align": align,
                    "imgsz": imgsz, "teacher": teacher}  # fmt: skip
    space = {_VARIED[name]: search.parse_values(text) for name, text in given_values.items() if text is not None}
    for item in vary:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError("--vary cannot be used", got=item, expected="STAGE.NAME=VALUES")
        space[key.strip()] = search.parse_values(text)
    for name, value, low in (("--workers", workers, 1), ("--threads", threads, 0), ("--trials", trials, 1)):
        if value is not None and not low <= value <= 10_000:
            raise ConfigError(f"{name} cannot be used", got=value, expected=f"{low} or more")
    base = Recipe.load(config) if config is not None else Recipe()
    base = given(base, model=model, data=data, images=images, seed=seed, device=device,
                 recover=given(base.recover, budget=budget, steps=steps),
                 quantize=given(base.quantize, mode=int8))  # fmt: skip
    search.make_trials(base, space, limit=trials)  # a mistake is told before Ray starts
    module, ray = load("hawkeye.scale.sweep"), load("hawkeye.scale.ray_sweep")
    with ray.RayTrials(workers, threads, address, host) as machines:
        done = module.sweep(base, space, out=out, workers=machines, limit=trials, stop_early=stop)
    if json:
        print(as_json(done.report))
        return
    rows = [{"front": "*" if row["front"] else "", "trial": row["name"], "mAP@0.5": row["map50"], "drop": row["drop"],
             "ms": row["ms"], "times as fast": row["times_as_fast"], "state": row["state"]}
            for row in sorted(done.report["rows"], key=lambda r: (r["ms"] is None, r["ms"]))]  # fmt: skip
    print(table(rows, ("front", "trial", "mAP@0.5", "drop", "ms", "times as fast", "state"), digits=3))
    print(out / "report.md")
