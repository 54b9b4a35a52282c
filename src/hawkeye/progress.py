"""Progress with an ETA for everything that takes a while; one line now and then where there is no terminal.

Inside `told_in` it also stands in a file, for whoever looks at the run from outside, such as the service's pages.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
PROGRESS = "progress.json"
_LOG_EVERY_S, _TELL_EVERY_S = 15.0, 2.0
_watch: ContextVar[Callable[[float, float], None] | None] = ContextVar("_watch", default=None)
_folder: ContextVar[Path | None] = ContextVar("_folder", default=None)


class Task:
    """A running task: `advance()` after each piece, with an optional note such as the loss."""

    def __init__(self, progress: Progress | None, title: str, total: float | None, done: float) -> None:
        self._progress, self._title, self._total, self._done, self._before = progress, title, total, done, done
        self._started = self._logged = time.monotonic()
        self._id = progress.add_task(title, total=total, completed=int(done), note="") if progress else None
        folder = _folder.get()
        self._file = None if folder is None else folder / PROGRESS
        self._told = -_TELL_EVERY_S
        self._tell("")

    def advance(self, amount: float = 1.0, note: str = "", *, total: float | None = None) -> None:
        """Count `amount` more of the total, which may be known better by now."""
        self._done += amount
        self._total = self._total if total is None else total
        self._tell(note)
        if self._progress is not None and self._id is not None:
            self._progress.update(self._id, advance=amount, note=note, total=self._total)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            if not self._total:
                print(f"{self._title}: {self._done:g} {note}", file=sys.stderr, flush=True)
                return
            rest = max(0.0, self._total - self._done)  # a clock's last step ends a little behind it
            left = (now - self._started) / max(self._done - self._before, 1e-9) * rest
            print(f"{self._title}: {self._share():.0%}, {left:.0f} s left {note}", file=sys.stderr, flush=True)

    def _share(self) -> float | None:
        return min(1.0, self._done / self._total) if self._total else None

    def _tell(self, note: str) -> None:
        now = time.monotonic()
        if self._file is None or now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        told = {"progress": self._share(), "note": f"{self._title}: {note}" if note else self._title}
        part = self._file.with_suffix(".part")
        with suppress(OSError):  # a run must not fail for the sake of who looks at it
            part.write_text(json.dumps(told))
            part.replace(self._file)

    def close(self) -> None:
        """It is over, one way or another."""
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


@contextmanager
def told_in(folder: Path) -> Iterator[None]:
    """Tasks that begin inside also write how far they are into `PROGRESS` in this folder, which is there meanwhile."""
    before = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(before)


@contextmanager
def progress(title: str, total: float | None, *, done: float = 0.0) -> Iterator[Task]:
    """Show a task's progress, ETA and note while the block runs; a total of None has no end in sight.

    `done` of it was done before, in no time: an ETA that counted it would be far too early.
    """
    if not console.is_terminal:
        task = Task(None, title, total, done)
        try:
            yield task
        finally:
            task.close()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = Task(bar, title, total, done)
        try:
            yield task
        finally:
            task.close()


@contextmanager
def watched(watch: Callable[[float, float], None]) -> Iterator[None]:
    """While the block runs, each judgement of a training goes to `watch`: how far it is (0 to 1), and the judgement.

    What `watch` raises ends the training; what was saved of it stays.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def judged(part: float, judgement: float) -> None:
    """Tell whoever watches; lower is better."""
    if (watch := _watch.get()) is not None:
        watch(part, judgement)


def say(message: str) -> None:
    """One line for the person who waits."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
