"""Compression runs as they lie on disk: how far each has come, and its report."""

from __future__ import annotations

import time
from pathlib import Path

from hawkeye.artifact import RECORD
from hawkeye.progress import PROGRESS
from hawkeye.rundir import RUN
from hawkeye.serve.catalogue import read_json
from hawkeye.serve.problems import NotFound
from hawkeye.serve.schemas import RunInfo

_STAGES = ("0-original", "1-prune", "2-recover", "3-export/original", "3-export/pruned", "4-quantize/original",
           "4-quantize/pruned")  # fmt: skip
_ALIVE_S = 300.0  # a run that works writes something at least this often
_MAX_RUNS, _MAX_FILES = 500, 5000


class Runs:
    """Runs right below a folder; a demo's run lies one deeper, in a folder `run`, and has the demo's name.

    Args:
        root: such as `runs`; may be missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self) -> list[RunInfo]:
        """See `Service.runs`."""
        return sorted(
            (self._info(name, folder) for name, folder in self._folders().items()), key=lambda run: -run.changed
        )

    def report(self, run: str) -> Path:
        """See `Service.report`."""
        folders = self._folders()
        if run not in folders or not (folders[run] / "report.html").is_file():
            raise NotFound("report", run, folders)
        return folders[run] / "report.html"

    def _folders(self) -> dict[str, Path]:
        """Runs by the name of their folder: what a client names is looked up here and never becomes a path."""
        try:
            found = sorted(path.parent for path in (*self._root.glob(f"*/{RUN}"), *self._root.glob(f"*/run/{RUN}")))
        except OSError:
            return {}
        names = {folder.name if folder.parent == self._root else folder.parent.name: folder for folder in found[::-1]}
        return dict(list(names.items())[:_MAX_RUNS])

    def _info(self, name: str, folder: Path) -> RunInfo:
        recipe = read_json(folder / RUN) or {}
        report = read_json(folder / "report.json") or {}
        done = tuple(stage for stage in _STAGES if (folder / stage / RECORD).is_file())
        changed = _newest(folder)
        alive = time.time() - changed < _ALIVE_S
        has_report = (folder / "report.html").is_file()
        state = "finished" if has_report else "running" if alive else "unfinished"
        at_work = next((f for f in sorted(folder.rglob(PROGRESS)) if not (f.parent / RECORD).is_file()), None)
        told = read_json(at_work) if at_work is not None and state == "running" else None
        share: float | None = None
        note = ""
        if isinstance(told, dict):
            note = str(told.get("note", ""))[:200]
            if isinstance(part := told.get("progress"), int | float):
                share = max(0.0, min(1.0, float(part)))
        headline = report.get("headline", []) if isinstance(report, dict) else []
        return RunInfo(
            id=name, state=state, stages=done, changed=changed, progress=share,  # type: ignore[arg-type]
            note=note or str(recipe.get("started", "")) if isinstance(recipe, dict) else "",
            headline=tuple(str(line) for line in headline), has_report=has_report,
        )  # fmt: skip


def _newest(folder: Path) -> float:
    newest = 0.0
    for number, path in enumerate(folder.rglob("*")):
        if number >= _MAX_FILES:
            break
        try:
            newest = max(newest, path.stat().st_mtime)
        except OSError:  # removed in between
            continue
    return newest
