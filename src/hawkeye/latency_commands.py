"""The commands about what layers, widths and picture sizes cost on this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hawkeye.config import PruneConfig, Recipe
from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.options import Json, Out, OwnSize, RunOptions, about
from hawkeye.tables import as_json, table


def profile(
    model: Annotated[Path, Parameter(help="Checkpoint (.pt) of a YOLOv8 detector.")],
    /,
    *,
    imgsz: OwnSize = None,
    threads: Annotated[int | None, about(PruneConfig, "threads")] = None,
    precision: Annotated[
        Literal["both", "int8"], Parameter(help="INT8 alone is enough for --latency; FP32 is there to compare with.")
    ] = "both",
    json: Json = False,
) -> None:
    """Measure what each layer costs on this CPU at every width that pruning could give it; minutes, once.

    The table is kept in the user's cache folder, by processor, OpenVINO version and threads; `--latency` of `prune` and
    `optimize` reads it. Other work on the machine makes it worse: measure while it is idle.

    For example:

        hawkeye profile yolov8n.pt

        hawkeye profile yolov8n.pt --imgsz 512 --threads 1 --precision int8 --json
    """
    if imgsz is not None and (imgsz % 32 or not 64 <= imgsz <= 1280):
        raise ConfigError("this picture size cannot be used", got=imgsz, expected="a multiple of 32 from 64 to 1280")
    module, checkpoint = load("hawkeye.compress.latency"), load("hawkeye.compress.yolo").load_checkpoint(model)
    settings = PruneConfig.build(threads=threads or 0)
    made = module.profile(checkpoint.model, imgsz or checkpoint.imgsz, threads=settings.threads,
                          precisions=("int8", "fp32") if precision == "both" else ("int8",))  # fmt: skip
    found = module.summary(made)
    if json:
        print(as_json(found))
        return
    rows = [{**row, "does not pay": " ".join(map(str, row["poor_widths"]))} for row in found["layers"]]
    costs = tuple(f"{name}_ms" for name in made.tables)
    print(table(rows, ("layer", "kind", "cells", "cin", "cout", *costs, "does not pay"), digits=3))
    print("\nwhole network, ms")
    wholes = [{"precision": name, **whole} for name, whole in found["network"].items()]
    print(table(wholes, ("precision", "total", "convolutions", "moving", "rest")))
    print(f"\n{found['measured_now']} layers measured now; {found['threads']} threads, OpenVINO {found['openvino']}, "
          f"{found['cpu']}")  # fmt: skip


def frontier(
    model: Annotated[Path | None, about(Recipe, "model")] = None,
    /,
    *,
    out: Out,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    smaller: Annotated[Path | None, Parameter(help="A smaller detector of the same classes, as another rival.")] = None,
    json: Json = False,
) -> None:
    """Draw the accuracy-latency curve: this detector compressed, beside itself in INT8, both at several input sizes.

    Each point is an ordinary run in a folder of its own; start the same command again after an interruption. Takes the
    options of `optimize` but --imgsz auto, --int8 (all are calibrated alone), --max-drop and --store; `search` in a
    recipe says which sizes, and which latencies the curves are compared at: what is offered there, pruned or not, is
    chosen on training pictures.

    For example:

        hawkeye frontier yolov8n.pt --data data.yaml --out runs/frontier --config configs/frontier.toml

        hawkeye frontier yolov8s.pt --data data.yaml --out runs/s --config configs/frontier.toml --smaller yolov8n.pt
    """
    if options.imgsz == "auto":
        raise ConfigError("a frontier tries every size", got="--imgsz auto",
                          expected="a number, at which widths are chosen; `search.sizes` in a recipe has the others",
                          mend="leave --imgsz out")  # fmt: skip
    unused = {"--int8": options.int8 not in (None, "ptq"), "--max-drop": options.max_drop is not None,
              "--store": options.store is not None}  # fmt: skip
    if any(unused.values()):
        raise ConfigError("a frontier judges nothing, and calibrates all detectors alike",
                          got=", ".join(name for name, given in unused.items() if given),
                          expected="none of these options")  # fmt: skip
    recipe = options.recipe(model)
    recipe = recipe.with_(skip=tuple(sorted({*recipe.skip, *options.left_out})))
    found = load("hawkeye.frontier").frontier(recipe, out=out, smaller=smaller)
    if json:
        print(as_json(found))
        return
    rows = sorted(found["rows"], key=lambda row: -row["ms"])
    print(table(rows, ("name", "imgsz", "ms", "times_as_fast", "map50", "gain", "rival"), digits=3))
    for line in found["words"]:
        print(f"- {line}")
    print(f"plot: {out / 'frontier.svg'}")
