"""`hawkeye plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from hawkeye.config import Recipe
from hawkeye.errors import EXIT_CHANGED, ConfigError
from hawkeye.lazy import load
from hawkeye.options import Json, Out, RunOptions, Until, about
from hawkeye.report_text import show_seconds
from hawkeye.tables import as_json, table

if TYPE_CHECKING:
    from hawkeye.plan import Step


def plan(
    model: Annotated[Path | None, about(Recipe, "model")] = None,
    /,
    *,
    out: Out,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    until: Until = None,
    check: Annotated[bool, Parameter(help="Say only whether anything has changed since the run in --out or the "
                                     "released version of --store: exit code 0 for no, 4 for yes.",
                                     negative=())] = False,
    json: Json = False,
) -> int:  # fmt: skip
    """Say what `hawkeye optimize` would do with the same options: what runs, what is reused, how long it takes.

    Nothing is written, and torch is not loaded. The content hashes at the end can be put into the recipe, which then
    refuses other content.

    For example:

        hawkeye plan --config recipe.toml --out runs/next

        hawkeye plan --config recipe.toml --out runs/next --store models --check || hawkeye optimize ...
    """
    if options.imgsz == "auto":
        raise ConfigError("the input size is not known yet", got="--imgsz auto",
                          expected="a number; `hawkeye optimize --imgsz auto` tells one when it starts",
                          mend="--imgsz 640")  # fmt: skip
    made = load("hawkeye.plan").make(options.recipe(model), out=out, until=until, skip=options.left_out)
    changed = made.changes is None or bool(made.changes)
    if json:
        print(as_json({**asdict(made), "seconds": made.seconds, "unknown": made.unknown, "changed": changed}))
        return EXIT_CHANGED if check and changed else 0
    if not check:
        rows = [{"stage": s.stage, "of": s.name, "": s.todo, "time": _time(s), "time is that of": s.basis, "why": s.why}
                for s in made.steps]  # fmt: skip
        print(table(rows, ("stage", "of", "", "time", "time is that of", "why")))
        unknown = f", and what is unknown: {len(made.unknown)} of {len(made.steps)} steps" if made.unknown else ""
        print(f"\nforecast: {show_seconds(made.seconds)}{unknown}")
        for name in ("model", "data", "images"):
            if made.identity[name] is not None:
                print(f'{name}_sha256 = "{made.identity[name]}"')
    if made.changes is None:
        print(f"compared with {made.compared}")
    elif made.changes:
        print(f"changed since {made.compared}: {'; '.join(made.changes)}")
    else:
        print(f"unchanged since {made.compared}")
    return EXIT_CHANGED if check and changed else 0


def _time(step: Step) -> str:
    if step.todo == "reuse":
        return ""
    if not step.basis:
        return "seconds"
    return "unknown" if step.seconds is None else show_seconds(step.seconds)
