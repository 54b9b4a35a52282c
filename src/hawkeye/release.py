"""From a finished run to a version in a model store: the model, its figures, where it came from, and its licence."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawkeye import __version__, gates
from hawkeye.artifact import RECORD, Artifact, digest, file_sha256, write_bytes, write_json
from hawkeye.errors import ConfigError, ModelError, RunDirError, StoreError
from hawkeye.progress import say
from hawkeye.report import FOLDERS, collect
from hawkeye.store import MODEL, Link, Release, Store, StoredFile, Version, open_store, version_hash

AGPL = "AGPL-3.0"
# Contents of checkpoint and data are in `identity`; where they lie is nobody's business.
_PATHS = ("model", "data", "images", "store")


@dataclass(frozen=True)
class Outcome:
    """What a release came to.

    Attributes:
        table: the run's report, judged for the released row.
        version: the version; None where a gate was missed and nothing was written.
        entry: the entry of the log; None where nothing was written.
        fresh: a new entry was made; False where this very model was the released one already.
    """

    table: dict[str, Any]
    version: Version | None
    entry: Release | None
    fresh: bool


def release(
    run: Path, store: str | None = None, *, row: str | None = None, licence: str = AGPL, despite: str | None = None
) -> Outcome:
    """Put a row of a finished run into a store and make it the released version.

    Args:
        run: folder of `hawkeye optimize`.
        store: folder or URL, a folder that is not there is made; left out, the one that the run's recipe names.
        row: which row; left out, the recipe's `gates.row` or the most compressed one.
        licence: of the weights.
        despite: release although a gate was missed; the reason is kept with the version.

    Raises:
        RunDirError: not a finished run.
        ModelError: a file of the run has been changed since it was made, or its origin is not in the run.
        StoreError: the store cannot be used, or another release came first.
    """
    table = collect(run, row=row)
    head = json.loads((run / "run.json").read_text()) if (run / "run.json").is_file() else {}
    if not head:
        raise RunDirError(f"{run} is not the folder of a run", got="no run.json",
                          mend="name the folder given to `hawkeye optimize --out`")  # fmt: skip
    store = store or head["recipe"].get("store")
    if store is None:
        raise ConfigError("no store to release into", got="neither --store nor a recipe that names one",
                          mend="hawkeye release RUN --store STORE")  # fmt: skip
    opened = open_store(store)
    current = opened.current()
    name = gates.target([line["name"] for line in table["rows"]], row or head["recipe"]["gates"].get("row"))
    chain = lineage(run, name)
    model = chain[-1]
    if current is not None and opened.version(current.version).artifact_sha256 == model.sha256:
        return Outcome(table, opened.version(current.version), current, fresh=False)
    _check_compared(table["released"], current, opened)
    passed = gates.gates_passed(table, labels=head["labels"])
    if not passed and despite is None:
        return Outcome(table, None, None, fresh=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _gather(run, place, model, table, licence, despite if not passed else None)
        files = {path.relative_to(place).as_posix(): StoredFile(sha256=file_sha256(path), bytes=path.stat().st_size)
                 for path in sorted(place.rglob("*")) if path.is_file()}  # fmt: skip
        version = Version(
            id=f"{name.replace('+', '-')}-{version_hash(files)}",
            row=name,
            artifact_sha256=model.sha256,
            lineage=tuple(_link(artifact) for artifact in chain),
            identity=head["identity"],
            recipe=settings(head["recipe"]),
            labels=head["labels"],
            gates=table["gates"],
            passed=passed,
            despite=despite if not passed else None,
            licence=licence,
            hawkeye=__version__,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            files=files,
        )
        version = opened.add(version, place)
    return Outcome(table, version, opened.point(version, expected=current, action="release", note=despite), fresh=True)


def rollback(store: str, *, to: str | None = None, note: str | None = None) -> Release:
    """Make an earlier version the released one again; the log keeps both.

    Raises:
        StoreError: there is no earlier one, it has been changed, or another release came first.
    """
    opened = open_store(store)
    current = opened.current()
    if current is None:
        raise StoreError(f"nothing is released in {opened.url}", mend="hawkeye release RUN --store STORE")
    version = opened.version(to or opened.before().version)
    if version.id == current.version:
        raise StoreError(f"{version.id} is the released version already", mend="name another one with --to")
    return opened.point(version, expected=current, action="rollback", note=note)


def lineage(run: Path, row: str) -> list[Artifact]:
    """From the imported checkpoint to a row's exported model, each made from the one before.

    Raises:
        ModelError: the row is not made, a file has been changed, or an ancestor is not in the run.
    """
    found = [Artifact.load(run / folder) for folder in FOLDERS if (run / folder / RECORD).is_file()]
    at = max((i for i, a in enumerate(found) if a.name == row and "openvino" in a.files), default=None)
    if at is None:
        raise ModelError(f"{run} has no finished {row}", got=", ".join(sorted({a.name for a in found})) or "nothing",
                         mend="let `hawkeye optimize` finish")  # fmt: skip
    chain = [found[at]]
    while (parent := chain[0].parent_sha256) is not None:
        # Only stages before it: recovery that changes nothing gives its parent's own content.
        at = max((i for i, a in enumerate(found[:at]) if a.sha256 == parent), default=None)
        if at is None:
            raise ModelError(f"{chain[0].root} was made from something that is not in the run", got=f"{parent[:12]}…",
                             mend="start `hawkeye optimize` again: it makes what is missing")  # fmt: skip
        chain.insert(0, found[at])
    if not chain[-1].intact():
        raise ModelError(f"{chain[-1].root} is not what was made", got="a file that has been changed or is missing",
                         mend="start `hawkeye optimize` again: it makes that stage again")  # fmt: skip
    return chain


def settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as JSON without the places where things lie."""
    bare = {key: value for key, value in recipe.items() if key not in _PATHS}
    return {key: {k: v for k, v in value.items() if k not in ("data", "images")} if isinstance(value, dict) else value
            for key, value in bare.items()}  # fmt: skip


def _check_compared(made: dict[str, Any] | None, current: Release | None, opened: Store) -> None:
    """A comparison with a model that is no longer the released one proves nothing."""
    if made is None:
        if current is not None:
            say(f"the run was not compared with the released model ({current.version}): its recipe names no store")
        return
    now = (current.version, current.number) if current else (None, 0)
    if (made["version"], made["number"]) != now:
        raise StoreError(f"the run was not compared with what {opened.url} releases now",
                         got=f"a comparison with {made['version'] or 'nothing'}", expected=now[0] or "nothing released",
                         mend="start `hawkeye optimize` again: only the comparison is made anew")  # fmt: skip


def _gather(run: Path, place: Path, model: Artifact, table: dict[str, Any], licence: str, despite: str | None) -> None:
    """Copy what a version holds; whatever changes from one call to the next stays out, as the name is its hash."""
    shutil.copytree(model.root, place / MODEL, ignore=lambda folder, names: {n for n in names if n.startswith(".")})
    accuracy = run / "records" / "accuracy"
    for name in ("original-openvino-f32", f"{model.name}-openvino-{'int8' if model.name.endswith('+int8') else 'f32'}"):
        for path in accuracy.glob(f"{name}.*"):
            _copy(path, place / "records" / "accuracy" / path.name)
    if (run / "records" / "latency.json").is_file():
        _copy(run / "records" / "latency.json", place / "records" / "latency.json")
    write_json(place / "report.json", table)
    write_bytes(place / "NOTICE.md", notice(licence, table, despite).encode())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def notice(licence: str, table: dict[str, Any], despite: str | None) -> str:
    """What somebody must know who is handed the model."""
    lines = ["# Notice", "", f"Licence of these weights: {licence}", ""]
    if licence == AGPL:
        lines += [
            "The model was made from a checkpoint of Ultralytics YOLO, which is under AGPL-3.0; a compressed model is",
            "a derived work. Who passes it on, or offers a service over a network with it, must follow that licence or",
            "hold another one from Ultralytics. Hawkeye itself is under Apache-2.0.", "",
        ]  # fmt: skip
    lines += [*table["headline"], ""]
    if despite is not None:
        lines += [f"Released although a gate was missed: {despite}", ""]
    return "\n".join(lines)


def _link(artifact: Artifact) -> Link:
    return Link(stage=artifact.stage, name=artifact.name, sha256=artifact.sha256, key=artifact.key,
                parent_sha256=artifact.parent_sha256, created=artifact.created,
                hawkeye=str(artifact.environment.get("versions", {}).get("hawkeye", "")))  # fmt: skip


def same_inputs(version: Version, identity: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """What differs between a version's inputs and settings and those given; empty where nothing does.

    Gates are left out: they judge a model and do not change it.
    """
    names = {"model": "the checkpoint's content", "data": "the data's content", "images": "the pictures' content"}
    found = [f"{names.get(key, key)} ({_short(version.identity.get(key))} → {_short(value)})"
             for key, value in identity.items() if version.identity.get(key) != value]  # fmt: skip
    before, now = settings(version.recipe), settings(recipe)
    # These are compared already, judge only, or belong to stages that neither has.
    aside = {"gates", "imgsz", "seed", "model_sha256", "data_sha256", "images_sha256"}
    left_out = set(before.get("skip", ())) & set(now.get("skip", ()))
    aside |= {"prune", "recover"} if "prune" in left_out else left_out
    for key in sorted({*before, *now} - aside):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{key}.{k} ({old.get(k)} → {new.get(k)})" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]  # fmt: skip # noqa: E501
        elif digest(old) != digest(new):
            found.append(f"{key} ({old} → {new})")
    return found


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
