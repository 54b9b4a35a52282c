"""`hawkeye plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hawkeye.commands import names_of
from hawkeye.config import Recipe
from hawkeye.errors import EXIT_CHANGED
from hawkeye.lazy import load
from hawkeye.options import Budget, Data, Flops, Images, Json, Out, Params, Seed, Size, about, given
from hawkeye.report_text import show_seconds
from hawkeye.tables import as_json, table


def plan(
    model: Annotated[Path | None, about(Recipe, "model")] = None,
    /,
    *,
    out: Out,
    data: Data = None,
    images: Images = None,
    flops: Flops = None,
    params: Params = None,
    budget: Budget = None,
    imgsz: Size = None,
    seed: Seed = None,
    config: Annotated[Path | None, Parameter(help="Recipe (.toml); options replace what it says.")] = None,
    store: Annotated[str | None, about(Recipe, "store")] = None,
    until: Annotated[str | None, Parameter(help="End after this stage.")] = None,
    skip: Annotated[str | None, Parameter(help="Stages to leave out, with commas.")] = None,
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
    base = Recipe.load(config) if config is not None else Recipe()
    recipe = given(
        base, model=model, data=data, images=images, imgsz=imgsz, seed=seed, store=store,
        prune=given(base.prune, flops=flops, params=params), recover=given(base.recover, budget=budget),
    )  # fmt: skip
    made = load("hawkeye.plan").make(recipe, out=out, until=until, skip=names_of(skip))
    changed = made.changes is None or bool(made.changes)
    if json:
        print(as_json({**asdict(made), "seconds": made.seconds, "unknown": made.unknown, "changed": changed}))
        return EXIT_CHANGED if check and changed else 0
    if not check:
        rows = [{"stage": s.stage, "of": s.name, "": s.todo, "time": "" if s.todo == "reuse" else
                 "unknown" if s.seconds is None else show_seconds(s.seconds), "time is that of": s.basis, "why": s.why}
                for s in made.steps]  # fmt: skip
        print(table(rows, ("stage", "of", "", "time", "time is that of", "why")))
        print(f"\nforecast: {show_seconds(made.seconds)}" + (f", and {', '.join(made.unknown)}, for which nothing is "
              "known yet" if made.unknown else ""))  # fmt: skip
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
