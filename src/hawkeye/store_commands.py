"""The commands around a model store: release, roll back, list, and tell two versions apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hawkeye import gates
from hawkeye.config import GateConfig
from hawkeye.data import list_images
from hawkeye.errors import EXIT_GATE_MISSED, ConfigError
from hawkeye.lazy import load
from hawkeye.options import Json, Store, about
from hawkeye.store import Release, Version, open_store
from hawkeye.tables import as_json, number, run_table, table

_Note = Annotated[str | None, Parameter(help="Why; kept in the store's log.")]


def release(
    run: Annotated[Path, Parameter(help="Folder of a finished run.")],
    /,
    *,
    store: Annotated[str | None, Parameter(help="Model store: a folder, or a URL such as s3://bucket/models; left out, "
                                           "the one that the run's recipe names.")] = None,
    row: Annotated[str | None, about(GateConfig, "row")] = None,
    licence: Annotated[str, Parameter(help="Licence of the weights. Weights that come from Ultralytics' are AGPL-3.0, "
                                      "unless you hold another one.")] = "AGPL-3.0",
    despite: Annotated[str | None, Parameter(help="Release although a gate was missed, for this reason; it is kept "
                                             "with the version.")] = None,
) -> int:  # fmt: skip
    """Put a finished run's detector into a model store and make it the released version.

    Exit code 3: a gate was missed and nothing was released. Start the same command again after an interruption.

    For example:

        hawkeye release runs/first --store models

        hawkeye release runs/first --store s3://bucket/models --row original+int8

        hawkeye release runs/first --store models --despite "the old model fails on the new camera"
    """
    done = load("hawkeye.release").release(run, store, row=row, licence=licence, despite=despite)
    if done.version is None:
        for line in gates.lines(done.table["gates"]):
            print(line)
        print("not released: a gate was missed (--despite REASON releases all the same)")
        return EXIT_GATE_MISSED
    if not done.fresh:
        print(f"{done.version.id} is the released version already")
        return 0
    print(f"released {done.version.id} ({done.version.licence}) as number {done.entry.number}")
    return 0


def rollback(
    *,
    store: Store,
    to: Annotated[str | None, Parameter(help="Version to go back to; left out, the one before.")] = None,
    note: _Note = None,
) -> None:
    """Make an earlier version the released one again.

    For example:

        hawkeye rollback --store models --note "misses forklifts at night"

        hawkeye rollback --store models --to pruned-int8-3f9a1c0b2d4e
    """
    entry = load("hawkeye.release").rollback(store, to=to, note=note)
    print(f"rolled back from {entry.previous} to {entry.version} as number {entry.number} of {store}")


def list_(
    *,
    store: Store,
    history: Annotated[bool, Parameter(help="Show the log of releases instead.", negative=())] = False,
    verify: Annotated[bool, Parameter(help="Read every file back and hold it against its hash.", negative=())] = False,
    json: Json = False,
) -> None:
    """List the versions of a model store, the released one marked.

    For example:

        hawkeye list --store models

        hawkeye list --store models --history

        hawkeye list --store s3://bucket/models --verify
    """
    opened = open_store(store)
    log, versions = opened.history(), opened.versions()
    if verify:
        for version in versions:
            opened.verify(version)
    if json:
        print(as_json({"releases": [e.model_dump() for e in log], "versions": [v.model_dump() for v in versions]}))
        return
    if history:
        print(table([entry.model_dump() for entry in log], ("number", "at", "action", "version", "previous", "note")))
        return
    current = log[-1].version if log else None
    print(table([_line(v, current, log) for v in versions],
                ("version", "", "created", "drop", "drop against released", "gates", "licence")))  # fmt: skip
    if not versions:
        print(f"{opened.url} holds no version yet: hawkeye release RUN --store {store}")
    elif verify:
        print(f"{len(versions)} versions verified")


def _line(version: Version, current: str | None, log: list[Release]) -> dict[str, Any]:
    word = "released" if version.id == current else "" if any(e.version == version.id for e in log) else "never released"  # fmt: skip # noqa: E501
    verdict = "none" if not version.gates else "passed" if version.passed else f"missed: {version.despite}"
    drop, against = (version.gates.get(name, {}).get("value") for name in ("max_drop", "released_drop"))
    return {"version": version.id, "": word, "created": version.created, "drop": drop,
            "drop against released": against, "gates": verdict, "licence": version.licence}  # fmt: skip


def diff(
    a: Annotated[str, Parameter(help="Version, an unambiguous beginning of one, `released`, `previous`, or the folder "
                                "of a run.")],
    b: Annotated[str, Parameter(help="The other one.")],
    /,
    *,
    store: Annotated[str | None, Parameter(help="Model store; not needed between two runs.")] = None,
    images: Annotated[Path | None, Parameter(help="Folder of pictures to run both on.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder for the pictures where they differ most.")] = None,
    count: Annotated[int, Parameter(help="How many pictures.")] = 10,
    json: Json = False,
) -> None:  # fmt: skip
    """Compare two versions: the table, the change of each class, and the pictures where they differ most.

    For example:

        hawkeye diff previous released --store models

        hawkeye diff released runs/second --store models --images pictures/ --out differences
    """
    module = load("hawkeye.diff")
    if (images is None) != (out is None):
        raise ConfigError("pictures need both a source and a place", got="one of --images and --out", expected="both")
    if count < 1:
        raise ConfigError("--count cannot be used", got=count, expected="1 or more")
    pictures = list_images(images) if images is not None else []
    first, second = module.side(a, store), module.side(b, store)
    found = module.diff(first, second, count=count)
    drawn = module.draw_differences(first, second, pictures, out=out, count=count) if pictures else []
    if json:
        print(as_json({"a": first.label, "b": second.label, **found, "drawn": drawn}))
        return
    print(run_table({"rows": [{**first.row, "name": first.label}, {**second.row, "name": second.label}]}))
    for note in found["notes"]:
        print(note)
    if found["drop"] is not None:
        ci = found["drop_ci95"]
        print(f"\nfrom the first to the second, mAP@0.5 falls by {number(found['drop'], 2)} points"
              + (f" (95 % interval {ci[0]:.2f} to {ci[1]:.2f})" if ci else ""))  # fmt: skip
    changed = [c for c in found["per_class"] or () if c["ap50_change"]]
    if changed:
        print("\nchange of each class, in points of AP@0.5")
        print(table([{"class": c["name"], "objects": c["instances"], "change": c["ap50_change"]}
                     for c in sorted(changed, key=lambda c: c["ap50_change"])], ("class", "objects", "change")))  # fmt: skip # noqa: E501
    if found["pictures"]:
        print(f"\npictures where they differ most, above confidence {module.CONF}: first, second")
        print(table(found["pictures"], ("picture", "difference", "objects", "found", "false")))
    if drawn:
        print(f"\ndrawn in {out}, the first on the left")
        print(table(drawn, ("picture", "difference", "drawn")))
    elif pictures:
        print(f"\nboth find the same in all of {images}")
