"""The trials of a sweep on Ray Tune, and latency on one named machine of the cluster, one trial at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread
from typing import Any

from hawkeye.environment import cpu_count
from hawkeye.errors import ConfigError, HawkeyeError
from hawkeye.scale.front import FrontStopper
from hawkeye.scale.ray_session import session
from hawkeye.scale.sweep import Work, attempt

import ray  # isort: skip  # after ray_session, which sets what Ray reads when it is imported
from ray import tune  # isort: skip
from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

_TRIES = 2  # of a trial whose process died; it goes on where it was


class RayTrials:
    """See `hawkeye.scale.sweep.Workers`. A context: Ray runs while it is entered.

    Args:
        count: trials at once, in all.
        threads: CPU threads of each trial; 0 divides this machine's cores.
        address: of a running cluster; None starts Ray here.
        host: name or address of the machine that latency is measured on; None takes this one.
    """

    def __init__(self, count: int = 1, threads: int = 0, address: str | None = None, host: str | None = None) -> None:
        self.count, self.address, self._wanted = count, address, host
        self.threads = threads or max(1, cpu_count() // count)
        self.host, self._node, self._cores = "", "", 1
        self._open = ExitStack()

    def __enter__(self) -> RayTrials:
        """Start Ray and find the target host.

        Raises:
            ConfigError: nothing answers, or no machine of that name.
        """
        with ExitStack() as stack:
            stack.enter_context(session(self.address, cpus=self.count * self.threads))
            self._find_host()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _find_host(self) -> None:
        nodes: list[dict[str, Any]] = [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        here = ray.get_runtime_context().get_node_id()
        for node in nodes:
            names = {node["NodeManagerHostname"], node["NodeManagerAddress"], node["NodeID"]}
            if self._wanted in names or (self._wanted in (None, "localhost", socket.gethostname())
                                         and node["NodeID"] == here):  # fmt: skip
                self.host, self._node = node["NodeManagerHostname"], node["NodeID"]
                self._cores = int(node["Resources"].get("CPU", 1))
                return
        raise ConfigError("no machine of the cluster has that name", got=self._wanted,
                          expected=", ".join(sorted({n["NodeManagerHostname"] for n in nodes})),
                          mend="give --host one of them")  # fmt: skip

    def make(self, work: Work, names: Sequence[str], stopper: FrontStopper | None) -> Iterator[tuple[str, str]]:
        """See `Workers.make`. A trial whose process dies is taken up again where it was."""
        finished: SimpleQueue[tuple[str, str] | BaseException | None] = SimpleQueue()
        trainable = tune.with_resources(_trainable(work), {"cpu": self.threads})
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(list(names))},
            tune_config=tune.TuneConfig(scheduler=_Scheduler(stopper), max_concurrent_trials=self.count),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(work.out / ".tune"), verbose=0, callbacks=[_Told(finished)],
                failure_config=tune.FailureConfig(max_failures=_TRIES - 1),
            ),
        )  # fmt: skip

        def fit() -> None:
            try:
                tuner.fit()
                finished.put(None)
            except BaseException as error:  # the one who waits must hear of it
                finished.put(error)

        thread = Thread(target=fit, name="tune", daemon=True)
        thread.start()
        left = set(names)
        while (item := finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if item[0] in left:
                left.discard(item[0])
                yield item
        thread.join()
        yield from ((name, "failed: its process died again and again") for name in left)

    def measure(self, work: Work, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """See `Workers.measure`. Each takes all cores of the host, so Ray lets nothing else run there."""
        there = NodeAffinitySchedulingStrategy(self._node, soft=False)
        for name in names:
            task = _measure.options(num_cpus=self._cores, scheduling_strategy=there)
            try:
                yield name, ray.get(task.remote(work, name))
            except ray.exceptions.RayError as error:
                raise HawkeyeError(f"latency cannot be measured on {self.host}", got=str(error).splitlines()[0],
                                   mend="start the same command again: it goes on where it was") from None  # fmt: skip


@ray.remote(max_retries=1)
def _measure(work: Work, name: str) -> str:
    return attempt(lambda: work.measure(name))


def _trainable(work: Work) -> Any:
    def trial(config: dict[str, Any]) -> None:
        name = config["trial"]

        def judge(group: str, cost: float, part: float, score: float) -> bool:
            tune.report({"group": group, "cost": cost, "part": part, "score": score, "outcome": ""})
            return False  # the scheduler ends the process

        outcome = attempt(lambda: work.make(name, judge))
        tune.report({"group": "", "cost": 0.0, "part": 1.0, "score": 0.0, "outcome": outcome})

    return trial


class _Scheduler(FIFOScheduler):
    """Asks a `FrontStopper` about each judgement."""

    def __init__(self, stopper: FrontStopper | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stopper = stopper

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `TrialScheduler`."""
        stop = self._stopper is not None and result["group"] and self._stopper.judge(
            trial.config["trial"], group=result["group"], cost=result["cost"], part=result["part"],
            score=result["score"],
        )  # fmt: skip
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


class _Told(tune.Callback):
    """Passes on how trials ended, as they do."""

    def __init__(self, finished: SimpleQueue[tuple[str, str] | BaseException | None]) -> None:
        self._finished = finished

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks into a file, to be restored; here the runs themselves tell what is done."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        last = trial.last_result or {}
        self._finished.put((trial.config["trial"], "stopped" if last.get("group") else last.get("outcome", "")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`."""
        self._finished.put(
            (trial.config["trial"], "failed: its process died, or a fault of this program's own; see its log")
        )
