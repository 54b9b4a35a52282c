"""The command that looks at the machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from hawkeye.lazy import load
from hawkeye.options import Json, Threads
from hawkeye.tables import as_json


def doctor(
    model: Annotated[str | None, Parameter(help="What `predict --model` takes; left out, only the machine.")] = None,
    /,
    *,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """What this machine can do, what OpenVINO will do with it, and what a model costs here. Takes some seconds.

    For example:

        hawkeye doctor

        hawkeye doctor runs/first

        hawkeye doctor runs/first/4-quantize/pruned --threads 1 --json
    """
    module = load("hawkeye.doctor")
    found = module.examine(model, threads=threads or 0)
    print(as_json(found) if json else module.report(found))
