"""The commands about what layers, widths and picture sizes cost on this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hawkeye.config import PruneConfig
from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.options import Json, OwnSize, about
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
