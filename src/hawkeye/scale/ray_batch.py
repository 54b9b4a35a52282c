"""The workers of a batch on Ray Data: one detector an actor, parts through a pool of them.

Ray starts a worker that died again and gives its part to another. A picture that kills every worker is found and listed
by the workers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hawkeye import errors
from hawkeye.errors import HawkeyeError
from hawkeye.scale.listing import Part
from hawkeye.scale.ray_session import machines, session
from hawkeye.scale.worker import Done, Job, Worker

import ray.data  # isort: skip  # after ray_session, which sets what Ray reads when it is imported
import ray.exceptions  # isort: skip


class RayWorkers:
    """See `hawkeye.scale.batch.Workers`.

    Args:
        count: workers.
        threads: CPU threads of each, reserved for it.
        address: of a running cluster; None starts Ray here.
    """

    def __init__(self, count: int, threads: int, address: str | None = None) -> None:
        self.count, self.threads, self.address = count, threads, address
        self.machines = 1

    def run(self, job: Job, parts: Sequence[Part]) -> Iterator[Done]:
        """See `Workers.run`.

        Raises:
            HawkeyeError: what a worker raised, or it died again and again.
        """
        count = min(self.count, len(parts))
        with session(self.address, cpus=count * self.threads):
            self.machines = machines()
            _quiet()
            rows = ray.data.from_items([part._asdict() for part in parts], override_num_blocks=len(parts))
            # Ray Data starts a worker that died again and gives its part away again, without end; see worker.py.
            results = rows.map_batches(
                _Actor, fn_constructor_args=(job,), batch_size=1, num_cpus=self.threads,
                compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            )  # fmt: skip
            try:
                for row in results.iter_rows():
                    if row["error"]:
                        raise getattr(errors, row["kind"], HawkeyeError)(row["error"])
                    yield Done(*(row[name] for name in Done._fields))
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise HawkeyeError("the workers died", got=reason[-1], mend="start the same command again: it goes on "
                                   "where it was; where memory was short, with fewer --workers") from None  # fmt: skip


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False


class _Actor:
    """A worker in a process of its own; errors that are told go home as rows, so that Ray does not wrap them."""

    def __init__(self, job: Job) -> None:
        self._worker: Worker | None = None
        self._error: HawkeyeError | None = None
        try:
            self._worker = Worker(job)
        except HawkeyeError as error:
            self._error = error

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        part = Part(int(batch["number"][0]), str(batch["manifest"][0]), int(batch["group"][0]),
                    int(batch["pictures"][0]))  # fmt: skip
        done, error = Done(part.number, 0, 0, 0, 0.0), self._error
        if self._worker is not None:
            try:
                done = self._worker(part)
            except HawkeyeError as caught:
                error = caught
        told = {"kind": type(error).__name__ if error else "", "error": str(error) if error else ""}
        return {name: [value] for name, value in {**done._asdict(), **told}.items()}
