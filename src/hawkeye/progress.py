"""Progress with an ETA for everything that takes a while; one line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
_LOG_EVERY_S = 15.0


class Task:
    """A running task: `advance()` after each piece, with an optional note such as the loss."""

    def __init__(self, progress: Progress | None, title: str, total: float | None) -> None:
        self._progress, self._title, self._total, self._done = progress, title, total, 0.0
        self._started = self._logged = time.monotonic()
        self._id = progress.add_task(title, total=total, note="") if progress else None

    def advance(self, amount: float = 1.0, note: str = "", *, total: float | None = None) -> None:
        """Count `amount` more of the total, which may be known better by now."""
        self._done += amount
        self._total = self._total if total is None else total
        if self._progress is not None and self._id is not None:
            self._progress.update(self._id, advance=amount, note=note, total=self._total)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            if not self._total:
                print(f"{self._title}: {self._done:g} {note}", file=sys.stderr, flush=True)
                return
            left = (now - self._started) / max(self._done, 1e-9) * (self._total - self._done)
            print(
                f"{self._title}: {self._done / self._total:.0%}, {left:.0f} s left {note}", file=sys.stderr, flush=True
            )


@contextmanager
def progress(title: str, total: float | None) -> Iterator[Task]:
    """Show a task's progress, ETA and note while the block runs; a total of None has no end in sight."""
    if not console.is_terminal:
        yield Task(None, title, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield Task(bar, title, total)


def say(message: str) -> None:
    """One line for the person who waits."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
