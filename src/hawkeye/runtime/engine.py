"""Runs detections for many streams: one at a time for the least delay, or several in flight for the most frames.

Both kinds work behind `Engine`, which keeps the order of the frames and watches the clock: a frame on which nothing
goes on for too long means that the runtime hangs. It is left behind, a new one is made, and the frame is tried again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import ModelSpec
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import HawkeyeError
from hawkeye.geometry import Letterbox, Size
from hawkeye.runtime.resolution import Policy

_RESTARTS_IN_A_ROW = 3
_CLOSE_S = 0.5


class EngineError(HawkeyeError):
    """The runtime hangs or fails again and again."""


@dataclass(eq=False)
class Job:
    """One frame on its way.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        expected: tracked objects at this moment, for policies that look there.
        key: name of the stream that it is from.
        tag: whatever the caller wants to find it by.
        found: the detections, or None where the runtime failed on this frame.
        error: why it failed; empty when it did not.
        timings: milliseconds by stage.
    """

    image: NDArray[np.uint8]
    expected: Detections | None = None
    key: str = ""
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

    @property
    def looks(self) -> int:
        """Grows with each look of a job that takes several; as long as it does, nothing hangs."""

    def prepare(self, source_hw: Size) -> None:
        """Make ready for pictures of that height and width; may wait for a compilation. From any thread."""

    def start(self, job: Job, report: Report) -> None:
        """Begin a job without waiting; `report` is called once, from any thread."""

    def close(self) -> None:
        """Let go of everything once all jobs are done."""


class SyncBackend:
    """One job at a time with all threads on it; it lives in a thread of its own so that a hang can be noticed.

    Args:
        policy_for: the policy of a stream by its name. Some remember the frames before, so streams must not share them.
        prepare, looks: see `Backend`.
    """

    name, capacity = "sync", 1

    def __init__(
        self,
        policy_for: Callable[[str], Policy],
        prepare: Callable[[Size], object] = lambda source_hw: None,
        looks: Callable[[], int] = lambda: 0,
    ) -> None:
        self._policy_for, self._prepare, self._looks = policy_for, prepare, looks
        self._jobs: queue.SimpleQueue[tuple[Job, Report] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def looks(self) -> int:
        """See `Backend`."""
        return self._looks()

    def prepare(self, source_hw: Size) -> None:
        """See `Backend.prepare`."""
        self._prepare(source_hw)

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
                policy = self._policy_for(job.key)
                found = policy(job.image, job.expected)
            except BaseException as error:  # whatever it is, the one who waits must hear of it
                report(None, {}, error)
            else:
                report(found, policy.timings, None)


class RequestQueue(Protocol):
    """Several requests of one network; see `runtime.openvino.OpenVinoQueue`."""

    spec: ModelSpec
    requests: int

    def canvas_for(self, source_hw: Size) -> Size:
        """Height and width of the canvas for such a picture; makes ready for it."""
        ...

    def start(
        self,
        fill: Callable[[NDArray[np.uint8]], None],
        done: Callable[[NDArray[np.float32]], None],
        canvas_hw: Size | None = None,
    ) -> None:
        """Fill an idle request's canvas and begin; `done` gets the raw output, valid only until it returns."""
        ...

    def close(self) -> None:
        """Wait for all requests."""
        ...


class AsyncBackend:
    """As many jobs in flight as the runtime thinks best: more frames per second, each later.

    Args:
        rect, conf, iou, max_det, agnostic, classes: as `Detector` takes them.
    """

    looks = 0  # each job is one

    def __init__(
        self,
        requests: RequestQueue,
        *,
        rect: bool = True,
        conf: float,
        iou: float,
        max_det: int = 300,
        agnostic: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        self._queue, self._conf, self._iou, self._max_det = requests, conf, iou, max_det
        self._rect, self._agnostic, self._classes = rect, agnostic, classes
        self.capacity = requests.requests
        self.name = f"async, {self.capacity} in flight"

    def prepare(self, source_hw: Size) -> None:
        """See `Backend.prepare`."""
        self._canvas_for(source_hw)

    def _canvas_for(self, source_hw: Size) -> Size:
        return self._queue.canvas_for(source_hw) if self._rect else (self._queue.spec.imgsz,) * 2

    def start(self, job: Job, report: Report) -> None:
        """See `Backend.start`."""
        source_hw = (job.image.shape[0], job.image.shape[1])
        letterbox = Letterbox.fit(source_hw, self._canvas_for(source_hw))
        moments = [time.perf_counter()]

        def fill(canvas: NDArray[np.uint8]) -> None:
            letterbox.apply_(job.image, canvas)
            moments.append(time.perf_counter())

        def done(raw: NDArray[np.float32]) -> None:
            try:
                moments.append(time.perf_counter())
                found = decode(raw, conf=self._conf, iou=self._iou, max_det=self._max_det, agnostic=self._agnostic,
                               classes=self._classes)  # fmt: skip
                result = Detections(letterbox.to_source(found.xyxy), found.score, found.class_id)
                moments.append(time.perf_counter())
            except Exception as problem:
                report(None, {}, problem)
                return
            spans = (later - earlier for earlier, later in zip(moments, moments[1:], strict=False))
            report(result, {k: v * 1e3 for k, v in zip(("pre", "network", "post"), spans, strict=True)}, None)

        self._queue.start(fill, done, letterbox.canvas_hw)

    def close(self) -> None:
        """See `Backend.close`."""
        self._queue.close()


class Engine:
    """Takes jobs, gives them back in order, and restarts a backend that hangs. For use from one thread.

    Args:
        make: makes a backend; called again for each restart.
        timeout_s: a look that takes longer than this means that the backend hangs.
        clock: seconds, steady.

    Attributes:
        watch: called with each job that is collected, in the collecting thread.
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
        self.watch: Callable[[Job], None] | None = None
        self.restarts = self.lost = 0
        self._in_a_row = self._looks = 0
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._next: tuple[Callable[[], Backend], Backend] | None = None  # to be taken up with the next job
        self._draining: tuple[Backend, int] | None = None  # the one before, and how many jobs it still has

    @property
    def in_flight(self) -> int:
        """Jobs that have not been collected."""
        return len(self._jobs)

    @property
    def capacity(self) -> int:
        """Jobs that it takes at once."""
        return self._backend.capacity

    @property
    def free(self) -> bool:
        """Whether it takes another job now."""
        return len(self._jobs) < self.capacity

    def swap(self, other: Engine) -> None:
        """Work with the backend of another engine, such as of another network, from the next job on.

        The backend before ends its jobs and is closed then; results stay in order. From any thread.

        Args:
            other: unused until now, and used up by this.
        """
        with self._changed:
            unused, self._next = self._next, (other._make, other._backend)
        if unused is not None:
            unused[1].close()

    def prepare(self, source_hw: Size) -> None:
        """Make ready for frames of that height and width, so that the first need not wait. From any thread."""
        self._backend.prepare(source_hw)

    def submit(self, job: Job) -> None:
        """Begin a job; only while `free`."""
        self._take_up()
        self._jobs.append(job)
        self._begin(job)

    def collect(self, timeout_s: float) -> list[Job]:
        """Jobs that are done, in the order in which they were submitted; waits at most `timeout_s` for the first.

        Raises:
            EngineError: the backend hung several times in a row.
        """
        self._take_up()
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs or self._jobs[0].done, self._wait(timeout_s))
        if self._jobs and not self._jobs[0].done and self._clock() - self._jobs[0].begun_s >= self._timeout_s:
            before, self._looks = self._looks, self._backend.looks
            if self._looks == before:
                self._restart()
            else:  # slow, but it goes on
                self._jobs[0].begun_s = self._clock()
        ready = []
        while self._jobs and self._jobs[0].done:
            job = self._jobs.popleft()
            if job.found is None:
                self.lost += 1
            else:
                self._in_a_row = 0
            if self.watch is not None:
                self.watch(job)
            ready.append(job)
        self._drain(len(ready))
        return ready

    def close(self) -> None:
        """Let go of the backend; jobs in flight are given up."""
        with self._changed:
            idle = self._changed.wait_for(lambda: all(job.done for job in self._jobs), _CLOSE_S)
        spare = [self._next[1]] if self._next else []
        spare += [self._draining[0]] if self._draining and idle else []
        for backend in spare:
            backend.close()
        if idle:
            self._backend.close()
        else:
            _leave(self._backend)
        self._jobs.clear()

    def _take_up(self) -> None:
        if self._next is None or self._draining is not None:
            return
        with self._changed:
            (self._make, fresh), self._next = self._next, None
        self._draining = (self._backend, len(self._jobs))
        self._backend, self.name = fresh, fresh.name
        self._drain(0)

    def _drain(self, done: int) -> None:
        """Close the backend before this one once its last job was collected."""
        if self._draining is None:
            return
        backend, left = self._draining
        self._draining = (backend, left - done) if left > done else None
        if self._draining is None:
            backend.close()

    def _wait(self, timeout_s: float) -> float:
        if not self._jobs:
            return 0.0
        return max(0.0, min(timeout_s, self._jobs[0].begun_s + self._timeout_s - self._clock()))

    def _begin(self, job: Job) -> None:
        self._backend.prepare((job.image.shape[0], job.image.shape[1]))  # a compilation is no hang
        job.begun_s, self._looks = self._clock(), self._backend.looks
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
        _leave(self._backend)
        if self._draining is not None:  # its jobs are begun again below
            _leave(self._draining[0])
            self._draining = None
        self._backend = self._make()
        for job in self._jobs:
            if job.done:
                continue
            if job.tries >= 2:
                with self._changed:
                    job.error, job.done = f"no result within {self._timeout_s:g} s", True
            else:
                self._begin(job)


def _leave(backend: Backend) -> None:
    """Let go of a backend that may hang: whoever closes or destroys it would hang too, so a thread does."""
    threading.Thread(target=backend.close, name="leaving a backend", daemon=True).start()
