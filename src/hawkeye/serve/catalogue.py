"""Which models there are: results of a run, artefacts, exported files, versions of a store. Never a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawkeye.artifact import RECORD, Artifact
from hawkeye.errors import HawkeyeError, ModelError
from hawkeye.rundir import RUN
from hawkeye.runtime.detector import BEST
from hawkeye.store import is_store, open_store

_MAX_JSON_BYTES = 10_000_000
DEMO = "runs/demo/run"


@dataclass(frozen=True)
class Entry:
    """A model that could be opened.

    Attributes:
        id: its name in this service.
        source: what `Detector` takes: a folder or file, or a store's version once it was fetched.
        version: of a store; None elsewhere.
    """

    id: str
    source: Path
    artifact: Artifact | None = None
    store: str | None = None
    version: str | None = None

    def place(self) -> Path:
        """Where it lies; a remote version is fetched first. May wait.

        Raises:
            StoreError: it cannot be fetched.
        """
        if self.store is None or self.version is None:
            return self.source
        store = open_store(self.store)
        return store.folder(store.version(self.version))

    def row(self) -> dict[str, Any] | None:
        """Its row in the table of its run's report; None where there is none."""
        if self.artifact is None:
            return None
        for folder in (self.artifact.root, *self.artifact.root.parents[:3]):
            report = read_json(folder / "report.json")
            for row in report.get("rows", []) if isinstance(report, dict) else []:
                if isinstance(row, dict) and row.get("name") == self.artifact.name:
                    return row
        return None


def entries_of(named: Sequence[str]) -> dict[str, Entry]:
    """Every model that these names stand for, by id; the best of the first name first.

    Raises:
        ModelError: one of them holds no model.
        StoreError: a store cannot be reached.
    """
    found: dict[str, Entry] = {}
    for text in named:
        for entry in _entries(text):
            name, number = entry.id, 2
            while name in found:
                name, number = f"{entry.id}-{number}", number + 1
            found[name] = Entry(name, entry.source, entry.artifact, entry.store, entry.version)
    return found


def read_json(path: Path) -> Any:
    """A JSON file's content, or None where it is missing, damaged or huge."""
    try:
        return json.loads(path.read_text()) if path.stat().st_size <= _MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def _entries(text: str) -> list[Entry]:
    path = Path(text)
    if "://" in text or is_store(path):
        store = open_store(text)
        current = store.current()
        first = current.version if current else None
        versions = sorted(store.versions(), key=lambda v: (v.id != first, v.created))
        if not versions:
            raise ModelError(f"the store {store.url} is empty", mend="hawkeye release RUN --store STORE")
        return [Entry(v.id, path, _artifact(path / "versions" / v.id / "model"), text, v.id) for v in versions]
    if path.suffix == ".pt":
        raise ModelError(f"{path} is a checkpoint, which is never served", got=".pt", expected="an exported model",
                         mend=f"run `hawkeye optimize {path}`, and serve the run's folder")  # fmt: skip
    if path.is_file():
        if path.suffix not in (".xml", ".onnx"):
            raise ModelError(f"{path} is no model that can be served", got=path.suffix, expected=".xml or .onnx")
        return [Entry(path.stem, path, _artifact(path.parent))]
    if not path.is_dir():
        raise ModelError(f"there is no model {path}", mend="name a run's folder, an export's folder, an .xml or .onnx")
    if (path / RECORD).is_file():
        artifact = Artifact.load(path)
        return [Entry(artifact.name, path, artifact)]
    places = [path / place for place in BEST if (path / place / RECORD).is_file()]
    if places:
        artifacts = [Artifact.load(place) for place in places]
        return [Entry(artifact.name, artifact.root, artifact) for artifact in artifacts]
    if (path / RUN).is_file():
        raise ModelError(f"the run {path} has no finished model yet", mend="start its command again to go on")
    return [Entry(path.resolve().name, path)]


def _artifact(folder: Path) -> Artifact | None:
    try:
        return Artifact.load(folder) if (folder / RECORD).is_file() else None
    except HawkeyeError:
        return None
