"""`LiveSession`: many sources, one network, tracks, counts, outputs; the loop behind `predict`, `count`, the service.

    sources (a thread each) → engine → tracker → counter → outputs, the latest result, subscribers

Every frame of a file is worked on, in order; of a live source always the newest. Streams take turns, so that one of
them cannot starve another, and one that dies never stops the rest.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, HawkeyeError
from hawkeye.lane import Lane, StreamStatus
from hawkeye.outputs import Output, Result
from hawkeye.runtime.engine import Engine, Job
from hawkeye.runtime.stream import Frame, State, Stream
from hawkeye.track.bytetrack import ByteTracker
from hawkeye.track.counting import CountEvent
from hawkeye.track.rules import Rule
from hawkeye.track.series import CountSeries

_IDLE_S = 0.05  # how long to wait when nothing is to be done; a stop is noticed within this
_BUSY_S = 0.002
_JOIN_S = 0.5  # a capture thread that waits for a dead connection is not waited for
_SILENCE_EVERY_S = 1.0  # how often a silent stream is told to its counter


@dataclass(frozen=True, slots=True)
class Notice:
    """What a subscriber gets.

    Attributes:
        stream: name of the stream.
        time_s: in the time of the stream's frames.
        kind: "frame" with `found`, "count" with `event`, "state" with `state` and `error`.
    """

    stream: str
    time_s: float
    kind: Literal["frame", "count", "state"]
    found: Detections | None = None
    event: CountEvent | None = None
    state: State | None = None
    error: str = ""


class Subscribers:
    """Queues that notices are put into; of one that is full, the oldest is dropped. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: list[queue.Queue[Notice]] = []

    def add(self, size: int) -> queue.Queue[Notice]:
        """One more, for so many notices."""
        subscriber: queue.Queue[Notice] = queue.Queue(size)
        with self._lock:
            self._queues.append(subscriber)
        return subscriber

    def remove(self, subscriber: queue.Queue[Notice]) -> None:
        """One that is there no more is fine."""
        with self._lock, suppress(ValueError):
            self._queues.remove(subscriber)

    def tell(self, notice: Notice) -> None:
        """Put a notice into each."""
        with self._lock:
            subscribers = list(self._queues)
        for subscriber in subscribers:
            while True:
                try:
                    subscriber.put_nowait(notice)
                    break
                except queue.Full:
                    with suppress(queue.Empty):
                        subscriber.get_nowait()


class LiveSession:
    """Owns sources, engine and outputs. `run` works in the calling thread, `start` in one of its own.

    Sources may be added and removed at any time, from any thread. Per stream one newest frame (four of a file) and one
    latest result are kept; only a time series grows, by one row of counts for each span.

    Args:
        engine: see `runtime.engine`; it is closed with the session.
        names: class names by index.
        outputs: written and closed by the session.
        tracking: give every object a number. Streams with rules are tracked anyway.
        bucket_s: length of the spans of the time series of counts in seconds; None keeps no series.
        make_tracker: one tracker for each stream.

    Example:
        >>> session = LiveSession(engine, names)
        >>> session.add(Stream(find_sources(["rtsp://camera/1"])[0]), rules=parse_rules(["0.5,0,0.5,1:gate"]))
        >>> session.start()
        >>> session.latest("camera-1").annotated()
        >>> session.stop()
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        *,
        outputs: Sequence[Output] = (),
        tracking: bool = False,
        bucket_s: float | None = None,
        make_tracker: Callable[[], ByteTracker] = ByteTracker,
    ) -> None:
        self.engine, self.names = engine, tuple(names)
        self.outputs, self.tracking, self.bucket_s = tuple(outputs), tracking, bucket_s
        self._make_tracker = make_tracker
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.RLock()
        self._ready = threading.Event()
        self._halt = threading.Event()
        self._turn = 0
        self._subscribers = Subscribers()
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.stopped_early = False  # asked to stop before every stream had ended

    # -- sources ------------------------------------------------------------------------------------------------------

    def add(self, stream: Stream, rules: Sequence[Rule] = ()) -> None:
        """Take a stream that was not started yet, and start it.

        Raises:
            ConfigError: there is a stream of this name, or the session is over: nothing would stop the stream.
        """
        tracker = self._make_tracker() if rules or self.tracking else None
        with self._lock:
            if self._halt.is_set():
                raise ConfigError("the session is over", got=f"{stream.name}, one more source")
            if stream.name in self._lanes:
                raise ConfigError("two sources have the same name", got=stream.name, expected="a name for each")
            self._lanes[stream.name] = Lane(stream, rules, tracker, self.bucket_s)
        # Compiled in the stream's own thread: the others go on meanwhile.
        stream.wake, stream.prepare = self._ready, self.engine.prepare
        stream.start()

    def remove(self, name: str) -> None:
        """Stop a stream and forget it.

        Raises:
            ConfigError: there is none of this name.
        """
        with self._lock:
            lane = self._lanes.pop(name, None)
        if lane is None:
            raise ConfigError("there is no such source", got=name, expected=", ".join(self._lanes) or "none is running")
        lane.stream.stop()

    def change_rules(self, name: str, rules: Sequence[Rule]) -> None:
        """Other lines and zones from the next frame on; unchanged ones keep their counts. Needs `tracking`.

        Raises:
            ConfigError: no such source, or a rule that does not fit; nothing is changed then.
        """
        lane = self._lanes.get(name)
        if lane is None:
            raise ConfigError("there is no such source", got=name, expected=", ".join(self._lanes) or "none is running")
        lane.change(rules, self.names)

    def latest(self, name: str) -> Result | None:
        """The newest result of a stream, with its picture; None before the first, or when there is no such stream."""
        lane = self._lanes.get(name)
        return lane.latest if lane else None

    def series(self, name: str) -> CountSeries | None:
        """The time series of a stream's counts, where there is one."""
        lane = self._lanes.get(name)
        return lane.series if lane else None

    def status(self) -> list[StreamStatus]:
        """How each stream does, in the order in which they were added."""
        with self._lock:
            lanes = list(self._lanes.values())
        return [lane.status() for lane in lanes]

    def failures(self) -> list[HawkeyeError]:
        """Why streams have failed."""
        with self._lock:
            lanes = list(self._lanes.values())
        return [error for lane in lanes if (error := lane.failure or lane.stream.failure)]

    def subscribe(self, size: int = 256) -> queue.Queue[Notice]:
        """A queue of notices; when it is full, the oldest is dropped."""
        return self._subscribers.add(size)

    def unsubscribe(self, subscriber: queue.Queue[Notice]) -> None:
        """End a subscription."""
        self._subscribers.remove(subscriber)

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Work in a thread until `stop`; an error that ends it is in `error`."""

        def work() -> None:
            try:
                self.run(until_done=False)
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=work, name="session", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the session to finish: takes effect within a frame, from any thread or signal handler."""
        self._halt.set()
        self._ready.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop, or is over."""
        return self._halt.is_set()

    def run(self, *, until_done: bool = True, watch: Callable[[], None] | None = None) -> None:
        """Work until every stream has ended, or until `stop`; then close the engine and all outputs.

        Args:
            until_done: end with the last stream; else only with `stop`.
            watch: called after each round, such as for a progress bar.

        Raises:
            StorageError: an output cannot be written.
            EngineError: the network hangs again and again.
        """
        finished = False
        try:
            while not self._halt.is_set():
                self._ready.clear()
                worked = self._feed()
                worked = self._gather() or worked
                self._watch_states()
                if watch is not None:
                    watch()
                if worked:
                    continue
                if until_done and not self.engine.in_flight and self._all_finished():
                    break
                if not self.engine.in_flight:
                    self._ready.wait(_IDLE_S)
            self._watch_states()
            self.stopped_early = not self._all_finished()
            finished = len(self.failures()) < max(1, len(self._lanes))
        finally:
            self.close(finished=finished)

    def _feed(self) -> bool:
        """Give the engine what it can take, one frame of each stream in turn."""
        with self._lock:
            lanes = list(self._lanes.values())
        fed, idle = False, 0
        while lanes and idle < len(lanes) and self.engine.free:
            self._turn = (self._turn + 1) % len(lanes)
            lane = lanes[self._turn]
            frame = None if lane.failure else lane.stream.take()
            if frame is None:
                idle += 1
                continue
            fed, idle = True, 0
            self.engine.submit(Job(frame.image, lane.expected(frame), tag=(lane, frame), key=lane.stream.name))
        return fed

    def _gather(self) -> bool:
        # Where it could take more, new frames may come before the first result does.
        jobs = self.engine.collect(_BUSY_S if self.engine.free else _IDLE_S)
        for job in jobs:
            lane, frame = job.tag
            if lane.failure is None:
                self._finish(lane, frame, job)
        return bool(jobs)

    def _finish(self, lane: Lane, frame: Frame, job: Job) -> None:
        if frame.time_s < lane.last_s:  # the silence before it was told while it was on its way
            frame = replace(frame, time_s=lane.last_s)
        lane.last_s = frame.time_s
        if job.found is None:
            lane.lost += 1
            lane.stream.error = f"the network failed on a frame ({job.error})"
            lane.no_data(frame.time_s)
            return
        try:
            found, events = lane.take(frame, job.found, self.names)
        except HawkeyeError as error:  # a rule that does not fit this picture: the others go on
            lane.failure = error
            lane.stream.stop(0)
            return
        result = lane.result(frame, found, self.names, events)
        for output in self.outputs:
            output.write(result)
        self._subscribers.tell(Notice(frame.stream, frame.time_s, "frame", found=found))
        self._tell_counts(lane, events)

    def _tell_counts(self, lane: Lane, events: Sequence[CountEvent]) -> None:
        if not events:
            return
        for output in self.outputs:
            output.count(lane.stream.source, events)
        for event in events:
            self._subscribers.tell(Notice(lane.stream.name, event.time_s, "count", event=event))

    def _watch_states(self) -> None:
        """Tell counters and outputs of streams that went silent, came back or broke, and of skipped pictures."""
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            stream, state = lane.stream, lane.stream.state
            live = stream.source.live
            for path, error in stream.skipped[lane.skips_told :]:
                lane.skips_told += 1
                for output in self.outputs:
                    output.skip(stream.source, path, error)
            time_s = max(lane.last_s, stream.now_s if live else 0.0)
            if live and state in ("no data", "reconnecting"):
                if state != lane.state:
                    lane.no_data(lane.last_s)  # since its last frame nothing is known
                elif time_s - lane.silent_told_s >= _SILENCE_EVERY_S:
                    lane.silent_told_s = lane.last_s = time_s
                    lane.no_data(time_s)
            if state == lane.state:
                continue
            lane.state = state
            if live or state == "failed":
                for output in self.outputs:
                    output.state(stream.source, time_s, state, stream.error)
            self._subscribers.tell(Notice(stream.name, time_s, "state", state=state, error=stream.error))

    def _all_finished(self) -> bool:
        with self._lock:
            return all(lane.failure or lane.stream.finished for lane in self._lanes.values())

    def close(self, *, finished: bool = False) -> None:
        """Stop threads, then close the engine and all outputs, whatever went wrong before; within about a second.

        `run` ends with it. Only a session that never ran needs it, as its streams have threads from `add` on.

        Args:
            finished: whether files get their names, or keep their `.part`.

        Raises:
            StorageError: an output cannot be written.
        """
        self._halt.set()
        with self._lock:
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.stream.stop(0)
        until = time.monotonic() + _JOIN_S
        for lane in lanes:
            lane.stream.stop(max(0.0, until - time.monotonic()))
        self.engine.close()
        problem: BaseException | None = None
        for lane in lanes:
            try:
                self._tell_counts(lane, lane.finish())
            except Exception as error:
                problem = problem or error
        for output in self.outputs:
            try:
                output.close(finished=finished)
            except Exception as error:
                problem = problem or error
        if problem is not None:
            raise problem
