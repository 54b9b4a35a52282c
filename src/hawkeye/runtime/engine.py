"""Runs detections for many streams: one at a time for the least delay, or several in flight for the most frames.

Both kinds work behind `Engine`, which keeps the order of the frames and watches the clock: a frame that does not come
back in time means that the runtime hangs, so it is left behind, a new one is made, and the frame is tried once more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import ModelSpec
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import HawkeyeError
from hawkeye.geometry import Letterbox

_RESTARTS_IN_A_ROW = 3
# Asynchronous work delays each frame, so it must be worth it.
_CLEARLY_FASTER = 1.05


class EngineError(HawkeyeError):
    """The runtime hangs or fails again and again."""


class Policy(Protocol):
    """Turns a picture into detections; see `runtime.resolution`.

    Attributes:
        names: class names by index.
        timings: milliseconds of the last frame, by stage.
    """

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def timings(self) -> Mapping[str, float]: ...  # noqa: D102

    def __call__(self, image: NDArray[np.uint8], expected: Detections | None) -> Detections:
        """Detections in picture pixels; `expected` are objects that should be there, where that is known."""
        ...


@dataclass(eq=False)
class Job:
    """One frame on its way.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        expected: tracked objects at this moment, for policies that look there.
        tag: whatever the caller wants to find it by.
        found: the detections, or None where the runtime failed on this frame.
        error: why it failed; empty when it did not.
        timings: milliseconds by stage.
    """

    image: NDArray[np.uint8]
    expected: Detections | None = None
    tag: Any = None
    found: Detections | None = None
    error: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    tries: int = 0
    begun_s: float = 0.0
    done: bool = False


# What a backend reports: the job, its detections and timings, or the error.
Report = Callable[[Detections | None, Mapping[str, float], BaseException | None], None]


class Backend(Protocol):
    """Where jobs are worked on.

    Attributes:
        name: for people.
        capacity: jobs that it takes at once.
    """

    name: str
    capacity: int

    def start(self, job: Job, report: Report) -> None:
        """Begin a job without waiting; `report` is called once, from any thread."""
        ...

    def close(self) -> None:
        """Let go of everything once all jobs are done."""
        ...


class SyncBackend:
    """One job at a time with all threads on it; it lives in a thread of its own so that a hang can be noticed."""

    name, capacity = "sync", 1

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._jobs: queue.SimpleQueue[tuple[Job, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def start(self, job: Job, report: Report) -> None:
        """See `Backend.start`."""
        self._jobs.put((job, report))

    def close(self) -> None:
        """See `Backend.close`."""
        self._jobs.put(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, report = item
            try:
                found = self._policy(job.image, job.expected)
            except BaseException as error:  # whatever it is, the one who waits must hear of it
                report(None, {}, error)
            else:
                report(found, dict(self._policy.timings), None)


class RequestQueue(Protocol):
    """Several requests of one network; see `runtime.openvino.OpenVinoQueue`."""

    spec: ModelSpec
    requests: int

    def start(self, fill: Callable[[NDArray[np.uint8]], None], done: Callable[[NDArray[np.float32]], None]) -> None:
        """Fill an idle request's canvas and begin; `done` gets the raw output, valid only until it returns."""
        ...

    def close(self) -> None:
        """Wait for all requests."""
        ...


class AsyncBackend:
    """As many jobs in flight as the runtime thinks best: more frames per second, each later."""

    def __init__(self, requests: RequestQueue, *, conf: float, iou: float, max_det: int = 300) -> None:
        self._queue, self._conf, self._iou, self._max_det = requests, conf, iou, max_det
        self.capacity = requests.requests
        self.name = f"async, {self.capacity} in flight"

    def start(self, job: Job, report: Report) -> None:
        """See `Backend.start`."""
        size = self._queue.spec.imgsz
        letterbox = Letterbox.fit((job.image.shape[0], job.image.shape[1]), size)
        moments = [time.perf_counter()]

        def fill(canvas: NDArray[np.uint8]) -> None:
            letterbox.apply_(job.image, canvas)
            moments.append(time.perf_counter())

        def done(raw: NDArray[np.float32]) -> None:
            try:
                moments.append(time.perf_counter())
                found = decode(raw, conf=self._conf, iou=self._iou, max_det=self._max_det)
                result = Detections(letterbox.to_source(found.xyxy), found.score, found.class_id)
                moments.append(time.perf_counter())
            except Exception as problem:
                report(None, {}, problem)
                return
            spans = (later - earlier for earlier, later in zip(moments, moments[1:], strict=False))
            report(result, {k: v * 1e3 for k, v in zip(("pre", "network", "post"), spans, strict=True)}, None)

        self._queue.start(fill, done)

    def close(self) -> None:
        """See `Backend.close`."""
        self._queue.close()


class Engine:
    """Takes jobs, gives them back in order, and restarts a backend that hangs. For use from one thread.

    Args:
        make: makes a backend; called again for each restart.
        timeout_s: a job that takes longer than this means that the backend hangs.
        clock: seconds, steady.

    Attributes:
        name: of the backend.
        restarts: how often a new backend had to be made.
        lost: jobs that came back without detections.
    """

    def __init__(
        self, make: Callable[[], Backend], *, timeout_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make, self._timeout_s, self._clock = make, timeout_s, clock
        self._backend = make()
        self.name = self._backend.name
        self.restarts = self.lost = 0
        self._in_a_row = 0
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        # Destroying a runtime that hangs would hang too, so it is kept.
        self._left_behind: list[Backend] = []

    @property
    def in_flight(self) -> int:
        """Jobs that have not been collected."""
        return len(self._jobs)

    @property
    def free(self) -> bool:
        """Whether it takes another job now."""
        return len(self._jobs) < self._backend.capacity

    def submit(self, job: Job) -> None:
        """Begin a job; only while `free`."""
        self._jobs.append(job)
        self._begin(job)

    def collect(self, timeout_s: float) -> list[Job]:
        """Jobs that are done, in the order in which they were submitted; waits at most `timeout_s` for the first.

        Raises:
            EngineError: the backend hung several times in a row.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs or self._jobs[0].done, self._wait(timeout_s))
        if self._jobs and not self._jobs[0].done and self._clock() - self._jobs[0].begun_s >= self._timeout_s:
            self._restart()
        ready = []
        while self._jobs and self._jobs[0].done:
            job = self._jobs.popleft()
            if job.found is None:
                self.lost += 1
            else:
                self._in_a_row = 0
            ready.append(job)
        return ready

    def close(self) -> None:
        """Let go of the backend; jobs in flight are given up."""
        if any(not job.done for job in self._jobs):
            self.collect(0.5)
        if all(job.done for job in self._jobs):
            self._backend.close()
        else:
            self._left_behind.append(self._backend)
        self._jobs.clear()

    def _wait(self, timeout_s: float) -> float:
        if not self._jobs:
            return 0.0
        return max(0.0, min(timeout_s, self._jobs[0].begun_s + self._timeout_s - self._clock()))

    def _begin(self, job: Job) -> None:
        job.begun_s = self._clock()
        job.tries += 1
        attempt = job.tries

        def report(found: Detections | None, timings: Mapping[str, float], error: BaseException | None) -> None:
            with self._changed:
                if job.done or job.tries != attempt:  # from a backend that was left behind
                    return
                job.found, job.timings = found, dict(timings)
                job.error = "" if error is None else f"{type(error).__name__}: {error}"
                job.done = True
                self._changed.notify_all()

        self._backend.start(job, report)

    def _restart(self) -> None:
        """A new backend; the jobs that the old one still had are tried once more, except one that hung twice."""
        self.restarts += 1
        self._in_a_row += 1
        if self._in_a_row > _RESTARTS_IN_A_ROW:
            raise EngineError("the network hangs", got=f"nothing within {self._timeout_s:g} s, {self._in_a_row} times",
                              mend="try --engine sync, fewer --threads, or another model")  # fmt: skip
        self._left_behind.append(self._backend)
        self._backend = self._make()
        for job in self._jobs:
            if job.done:
                continue
            if job.tries >= 2:
                with self._changed:
                    job.error, job.done = f"no result within {self._timeout_s:g} s", True
            else:
                self._begin(job)


def choose(
    sync: Callable[[], Backend],
    several: Callable[[], Backend],
    image: NDArray[np.uint8],
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Callable[[], Backend], str]:
    """Measure both kinds on this machine with this model, and keep the one that gives more frames per second.

    Args:
        sync, several: make the two backends.
        image: (H, W, 3) uint8 BGR to measure with.
        seconds: time for each.

    Returns:
        the maker of the better one, and what was measured, in words.
    """
    backends = [sync(), several()]
    frames, spent = [0, 0], [0.0, 0.0]
    try:
        for turn in range(5):  # turn and turn about: the machine's speed may change; the first is for warming up
            for place, backend in enumerate(backends):
                engine = Engine(lambda backend=backend: backend)  # type: ignore[misc]
                started = clock()
                count = 0
                while clock() - started < seconds / 4:
                    while engine.free:
                        engine.submit(Job(image))
                    count += len(engine.collect(1.0))
                while engine.in_flight:
                    count += len(engine.collect(1.0))
                if turn:
                    frames[place] += count
                    spent[place] += clock() - started
    finally:
        for backend in backends:
            backend.close()
    rates = [count / time_s for count, time_s in zip(frames, spent, strict=True)]
    better = rates[1] > _CLEARLY_FASTER * rates[0]
    words = f"sync {rates[0]:.1f} frames/s, {backends[1].name} {rates[1]:.1f}, measured here"
    return (several, f"async ({words})") if better else (sync, f"sync ({words})")
