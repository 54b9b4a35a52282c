"""`Lane`: one stream of a session with its tracker, its counter and its latest result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hawkeye.detections import Detections
from hawkeye.errors import HawkeyeError
from hawkeye.outputs import Result
from hawkeye.runtime.stream import Frame, Rate, State, Stream
from hawkeye.track.bytetrack import ByteTracker
from hawkeye.track.counting import Counter, CountEvent
from hawkeye.track.rules import Line, Rule
from hawkeye.track.series import CountSeries


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How a stream does, JSON-ready with `dataclasses.asdict`.

    Attributes:
        name, source: of the stream; the source without passwords.
        kind: pictures, video, camera or url.
        state: connecting, live, no data, reconnecting, ended, failed or stopped.
        error: what went wrong last.
        fps_in, fps_done: frames per second that arrive, and that are worked on.
        total: frames that the source states to hold, 0 where unknown.
        captured, done: frames decoded and worked on.
        drops: frames that a newer one replaced.
        skipped: pictures that could not be read.
        damaged: frames of a video that could not be decoded.
        lost: frames on which the network failed.
        reconnects: how often it was opened again.
        waiting: decoded frames that wait.
        latency_ms: from decoding to the result, of the last frame; None before the first.
        width, height: of the last frame in pixels; None before the first.
        counts: see `Counter.totals`; None where nothing is counted.
    """

    name: str
    source: str
    kind: str
    state: State
    error: str
    fps_in: float
    fps_done: float
    total: int
    captured: int
    done: int
    drops: int
    skipped: int
    damaged: int
    lost: int
    reconnects: int
    waiting: int
    latency_ms: float | None
    width: int | None
    height: int | None
    counts: dict[str, dict[str, Any]] | None


class Lane:
    """A stream with its tracker, counter and latest result."""

    def __init__(
        self, stream: Stream, rules: Sequence[Rule], tracker: ByteTracker | None, bucket_s: float | None
    ) -> None:
        self.stream, self.rules, self.tracker, self.bucket_s = stream, tuple(rules), tracker, bucket_s
        self.counter: Counter | None = None
        self.series: CountSeries | None = None
        self.size: tuple[int, int] | None = None  # of the first frame: tracks and rules live in its pixels
        self.pixel_rules: tuple[Rule, ...] = ()
        self.latest: Result | None = None
        self.totals: dict[str, dict[str, Any]] | None = None  # a copy, as others read it while this thread counts
        self.failure: HawkeyeError | None = None
        self.rate = Rate(time.monotonic)
        self.done = self.lost = self.skips_told = 0
        self.last_s = self.silent_told_s = 0.0
        self.latency_ms: float | None = None
        self.state: State = "connecting"
        self._wanted: tuple[Rule, ...] | None = None  # rules to be taken up with the next frame

    def change(self, rules: Sequence[Rule], names: Sequence[str]) -> None:
        """Other rules from the next frame on; from any thread, for a lane that tracks. Not for one with a series.

        Raises:
            ConfigError: a rule that does not fit the model, or the picture where one was seen; nothing is changed then.
        """
        Counter(rules, names, size=self.size or (1_000_000, 1_000_000))
        self._wanted = tuple(rules)

    def scale_to(self, frame: Frame) -> np.ndarray[Any, Any]:
        """Factors (4,) from this frame's pixels to those of the first frame: a stream may change its size."""
        width, height = self.size or (frame.image.shape[1], frame.image.shape[0])
        return np.array([width / frame.image.shape[1], height / frame.image.shape[0]] * 2, np.float32)

    def expected(self, frame: Frame) -> Detections | None:
        """Where tracked objects should be in this frame; None where nothing is tracked."""
        if self.tracker is None or self.size is None:
            return None
        found = self.tracker.predicted(frame.time_s)
        return replace(found, xyxy=found.xyxy / self.scale_to(frame))

    def take(self, frame: Frame, found: Detections, names: tuple[str, ...]) -> tuple[Detections, list[CountEvent]]:
        """Track and count; detections stay in the frame's pixels.

        Raises:
            ConfigError: a rule that does not fit the picture or the model.
        """
        if self.size is None:
            self.size = (frame.image.shape[1], frame.image.shape[0])
            self.pixel_rules = tuple(rule.scaled(*self.size) for rule in self.rules)
            if self.rules:
                self.counter = Counter(self.rules, names, size=self.size)
                # Only a live stream knows what time of day a frame is from.
                epoch_s = time.time() - frame.time_s if self.stream.source.live else None
                if self.bucket_s is not None:
                    self.series = CountSeries(self.rules, bucket_s=self.bucket_s, epoch_s=epoch_s)
        if self.tracker is None:
            return found, []
        changed = [] if self._wanted is None else self._take_up(self._wanted, names)
        factors = self.scale_to(frame)
        tracked = self.tracker.update(replace(found, xyxy=found.xyxy * factors), frame.time_s)
        events = self.counter.update(tracked, frame.time_s) if self.counter else []
        if self.series is not None and self.counter is not None:
            self.series.update(frame.time_s, events, self.counter.occupancy() or {})
        return replace(tracked, xyxy=tracked.xyxy / factors), changed + events

    def _take_up(self, rules: tuple[Rule, ...], names: tuple[str, ...]) -> list[CountEvent]:
        assert self.size is not None
        self._wanted, self.rules = None, rules
        self.pixel_rules = tuple(rule.scaled(*self.size) for rule in rules)
        if self.counter is None:
            self.counter = Counter(rules, names, size=self.size)
            return []
        return self.counter.change(rules)

    def no_data(self, time_s: float) -> None:
        """Nothing is known of this moment."""
        for sink in (self.counter, self.series):
            if sink is not None:
                sink.no_data(time_s)
        self.totals = self.counter.totals() if self.counter else None

    def finish(self) -> list[CountEvent]:
        """The stream is over: stays in zones end."""
        if self.counter is None:
            return []
        events = self.counter.finish()
        if self.series is not None:
            self.series.add(events)
        self.totals = self.counter.totals()
        return events

    def result(self, frame: Frame, found: Detections, names: tuple[str, ...], events: Sequence[CountEvent]) -> Result:
        """The result of a frame, which becomes the latest."""
        self.done += 1
        self.rate.tick()
        self.latency_ms = (time.monotonic() - frame.taken_s) * 1e3
        rate = self.stream.nominal_fps or (self.stream.fps if self.stream.live else 0.0) or 25.0
        rules = self.pixel_rules
        if self.size != (size := (frame.image.shape[1], frame.image.shape[0])):
            factors = np.array(size) / np.array(self.size)
            rules = tuple(_stretched(rule, factors) for rule in rules)
        self.totals = self.counter.totals() if self.counter else None
        self.latest = Result(frame, self.stream.source, found, names, tuple(events), rules, self.totals, rate)
        return self.latest

    def status(self) -> StreamStatus:
        """How it does."""
        stream, shape = self.stream, self.latest.frame.image.shape if self.latest else (None, None)
        return StreamStatus(
            name=stream.name, source=stream.source.label, kind=stream.source.kind,
            state="failed" if self.failure else stream.state,
            error=self.failure.summary if self.failure else stream.error, fps_in=stream.fps,
            fps_done=self.rate.per_second, total=stream.total, captured=stream.captured, done=self.done,
            drops=stream.drops, skipped=len(stream.skipped), damaged=stream.damaged, lost=self.lost,
            reconnects=stream.reconnects, waiting=stream.waiting, latency_ms=self.latency_ms, width=shape[1],
            height=shape[0], counts=self.totals,
        )  # fmt: skip


def _stretched(rule: Rule, factors: np.ndarray[Any, Any]) -> Rule:
    """A rule in pixels, in the pixels of a picture of another size."""

    def move(point: tuple[float, float]) -> tuple[float, float]:
        return point[0] * float(factors[0]), point[1] * float(factors[1])

    if isinstance(rule, Line):
        return replace(rule, start=move(rule.start), end=move(rule.end))
    return replace(rule, points=tuple(move(point) for point in rule.points))
