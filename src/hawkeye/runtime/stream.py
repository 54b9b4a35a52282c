"""`Stream`: one source with a capture thread of its own, which decodes, reconnects, and counts what it drops.

A file gives every frame in order: its thread waits until there is room. A live source keeps only its newest frame: an
older one that nobody took is dropped and counted. A source that gives nothing is "no data", which is not "no objects".
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hawkeye.data import MAX_UNREADABLE
from hawkeye.errors import DataError, HawkeyeError
from hawkeye.geometry import Size
from hawkeye.runtime.source import Capture, Source, open_source

State = Literal["connecting", "live", "no data", "reconnecting", "ended", "failed", "stopped"]
_QUEUED_FRAMES = 4  # decoded frames of a file that wait: enough to hide decoding, little memory
_DAMAGED_IN_A_ROW = 1000  # with more of them there is nothing behind that can be decoded


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a stream.

    Attributes:
        stream: name of the stream.
        index: number of the frame in its stream from 0; dropped and damaged frames have numbers too.
        time_s: seconds since the stream's first frame: of the file's own clock, or of arrival where it is live.
        image: (H, W, 3) uint8 BGR.
        path: the picture's file, where each frame is one.
        taken_s: the stream's clock when the frame was decoded; the age of a frame is counted from here.
    """

    stream: str
    index: int
    time_s: float
    image: NDArray[np.uint8]
    path: Path | None
    taken_s: float


class Rate:
    """Events per second over the last two seconds or so."""

    def __init__(self, clock: Callable[[], float], window_s: float = 2.0) -> None:
        self._clock, self._window_s = clock, window_s
        self._times: deque[float] = deque(maxlen=1000)

    def tick(self) -> None:
        """One more event, now."""
        self._times.append(self._clock())

    @property
    def per_second(self) -> float:
        """0 before the second event and when the last ones are long past."""
        since = self._clock() - self._window_s
        recent = [moment for moment in tuple(self._times) if moment >= since]
        span = recent[-1] - recent[0] if len(recent) > 1 else 0.0
        return (len(recent) - 1) / span if span > 0 else 0.0


class Stream:
    """One source, decoded in a thread of its own; safe to use from several threads.

    Args:
        source: what to open; see `source.find_sources`.
        realtime: play a file at its own speed and drop frames as a camera would.
        loop: begin a file again when it ends.
        fps: frames per second of pictures, and of a file that does not state its own.
        connect_s: a live source that has never given a frame fails after this long; None tries for ever. One that
            has given a frame is tried again for ever.
        stall_s: a live source without a frame for this long is in the state "no data".
        backoff_s: first and longest wait between two attempts; each is twice the one before.
        open_: opens the source; a test hands in its own.
        clock: seconds, steady.

    Attributes:
        name: of the source.
        live: whether frames are dropped rather than waited for.
        total: frames that the source states to hold, 0 where unknown.
        captured: frames decoded so far.
        drops: frames that were replaced by a newer one before anybody took them.
        skipped: pictures that could not be read, and why, each in one line.
        damaged: frames of a video that could not be decoded, with good ones behind them.
        reconnects: how often it was opened again after it had broken.
        error: what went wrong last, without passwords; empty when nothing did.
        failure: why it has failed for good, or None.
        nominal_fps: frames per second that the source states, 0 where unknown.
        decode_ms: processor time of decoding one of the last frames of a live source; None before, and of a file, which
            is decoded in several threads.
        wake: set after each frame and change of state; one event may serve many streams.
        prepare: called with height and width before the first frame of a size is there to be taken.
    """

    def __init__(
        self,
        source: Source,
        *,
        realtime: bool = False,
        loop: bool = False,
        fps: float = 25.0,
        connect_s: float | None = 30.0,
        stall_s: float = 2.0,
        backoff_s: tuple[float, float] = (0.5, 10.0),
        open_: Callable[[Source], Capture] = open_source,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source, self.name = source, source.name
        self.live = source.live or realtime
        self.total = len(source.pictures)
        self.captured = self.drops = self.damaged = self.reconnects = 0
        self.skipped: list[tuple[Path, str]] = []
        self.error = ""
        self.failure: HawkeyeError | None = None
        self._why: HawkeyeError | None = None  # what went wrong last
        self.nominal_fps = 0.0
        self.decode_ms: float | None = None
        self._realtime, self._loop, self._fps = realtime, loop, fps
        self._connect_s, self._stall_s, self._backoff_s = connect_s, stall_s, backoff_s
        self._open, self._clock = open_, clock
        self.wake = threading.Event()
        self.prepare: Callable[[Size], object] = lambda source_hw: None
        self._source_hw: Size | None = None
        self._state: State = "connecting"
        self._halt = threading.Event()
        self._room = threading.Condition()
        self._frames: deque[Frame] = deque()
        self._rate = Rate(clock)
        self._last_s = self._begun_s = clock()
        self._file_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"capture {self.name}", daemon=True)

    # -- for whoever takes the frames ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to decode."""
        self._begun_s = self._last_s = self._clock()
        self._thread.start()

    def take(self) -> Frame | None:
        """The next frame of a file or the newest of a live source, or None when there is none now."""
        with self._room:
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._room.notify()
            return frame

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Ask the thread to end and wait for it; whether it did.

        A thread that waits for a dead connection ends by itself at the time limit for reading.
        """
        self._halt.set()
        with self._room:
            self._room.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Decoded frames that nobody has taken yet."""
        return len(self._frames)

    @property
    def finished(self) -> bool:
        """Whether no frame will come any more and all were taken."""
        return self._state in ("ended", "failed", "stopped") and not self._frames

    @property
    def state(self) -> State:
        """connecting, live, no data, reconnecting, ended, failed, or stopped before its end."""
        if self._state == "live" and self.live and self.silent_s > self._stall_s:
            return "no data"
        return self._state

    @property
    def silent_s(self) -> float:
        """Seconds since the last frame."""
        return self._clock() - self._last_s

    @property
    def now_s(self) -> float:
        """The time that a frame would have that arrived now; only for live streams."""
        return self._clock() - self._begun_s

    @property
    def fps(self) -> float:
        """Frames per second that arrive now."""
        return self._rate.per_second

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = self._backoff_s[0]
        over = False
        while not self._halt.is_set():
            before = self.captured
            then = self._attempt()
            over = then == "over"
            if over or self._halt.is_set():
                break
            if then == "loop":
                continue
            if self.captured > before:
                wait_s = self._backoff_s[0]
            elif self._connect_s is not None and not self.captured and self.now_s > self._connect_s:
                why = self._why or DataError(self.error or "it is silent")
                self.failure = DataError(
                    f"{self.source.label} never gave a picture in {self._connect_s:g} s",
                    got=f"{why.summary}: {why.got}" if why.got else why.summary,
                    mend=why.mend or "check that it is on, its address and its password",
                )
                break
            self.reconnects += 1
            self._turn("reconnecting")
            self._halt.wait(wait_s)
            wait_s = min(2 * wait_s, self._backoff_s[1])
        if self.failure is not None:
            self.error = self.failure.summary
        self._turn("failed" if self.failure is not None else "ended" if over else "stopped")

    def _attempt(self) -> Literal["over", "loop", "retry"]:
        """Open the source and read it until it ends or breaks; what is to be done then."""
        capture: Capture | None = None
        endless = self.source.live
        try:
            capture = self._open(self.source)
            endless = endless and capture.frames == 0
            # An address may also be a file, which has an end and wants every frame.
            self.live = endless or self._realtime
            self.total, self.nominal_fps = capture.frames, capture.fps
            count = self._read_all(capture, endless)
            if self._halt.is_set():
                return "retry"
            if endless:
                self.error = f"{self.source.label} closed the connection or fell silent"
            elif count == 0:
                raise DataError(f"{self.source.label} holds no picture that can be read", got="nothing decoded",
                                mend="replace the file: it is damaged")  # fmt: skip
            # Containers state the number only roughly.
            elif count < 0.9 * capture.frames - 1:
                self.error = f"{self.source.label} is damaged: it ended after {count} of {capture.frames} frames"
            return "retry" if endless else "loop" if self._loop else "over"
        except HawkeyeError as error:
            self.error, self._why = _one_line(error), error
            if not endless:
                self.failure = error
            return "retry" if endless else "over"
        except Exception as error:  # of a decoder: one source must never stop the others
            self.error = f"{self.source.label} cannot be decoded: {type(error).__name__}"
            if not endless:
                self.failure = DataError(self.error)
            return "retry" if endless else "over"
        finally:
            if capture is not None:
                capture.close()

    def _read_all(self, capture: Capture, endless: bool) -> int:
        """Read until the end; how many pictures were read, skipped or damaged."""
        count = failed = 0  # of them in a row
        offset_s = self._file_s + (1 / (capture.fps or self._fps) if self.captured else 0.0)
        started_s = self._clock()
        while not self._halt.is_set():
            begun_s = time.thread_time()  # not the wall's: most of that is waiting for the camera
            try:
                shot = capture.read()
            except DataError as error:
                if self.source.kind != "pictures":
                    raise
                count += 1
                self.skipped.append((self.source.pictures[count - 1], _one_line(error)))
                self.error = error.summary
                if len(self.skipped) > MAX_UNREADABLE * capture.frames:
                    raise
                continue
            if shot is None:
                # What FFmpeg cannot decode looks like the end, and good frames follow.
                failed += 1
                if self.source.kind == "video" and count + failed < capture.frames and failed < _DAMAGED_IN_A_ROW:
                    continue
                break
            if self.source.live:
                spent_ms = (time.thread_time() - begun_s) * 1e3
                before_ms = spent_ms if self.decode_ms is None else self.decode_ms
                self.decode_ms = before_ms + 0.1 * (spent_ms - before_ms)
            if endless:
                time_s = self.now_s
            else:
                step = 1 / (capture.fps or self._fps)
                own = None if shot.time_s is None else offset_s + shot.time_s
                # Some containers have no times, or jump back: then frames follow at the stated rate.
                time_s = own if own is not None and (own > self._file_s or count == 0) else self._file_s + step * (
                    failed + (self.captured > 0))  # fmt: skip
                if self._realtime and (early := started_s + time_s - offset_s - self._clock()) > 0:
                    self._halt.wait(early)
                self._file_s = time_s
            count += failed + 1
            self.damaged, failed = self.damaged + failed, 0
            self._put(Frame(self.name, self.captured + self.damaged, time_s, shot.image, shot.path, self._clock()))
        return count

    def _put(self, frame: Frame) -> None:
        if self._source_hw != (source_hw := (frame.image.shape[0], frame.image.shape[1])):
            self.prepare(source_hw)
            self._source_hw = source_hw
        with self._room:
            if self.live:
                self.drops += len(self._frames)
                self._frames.clear()
            while len(self._frames) >= _QUEUED_FRAMES and not self._halt.is_set():
                self._room.wait()
            self._frames.append(frame)
            self.captured += 1
        self._last_s = self._clock()
        self._rate.tick()
        self._turn("live")

    def _turn(self, state: State) -> None:
        self._state = state
        self.wake.set()


def _one_line(error: HawkeyeError) -> str:
    return str(error).replace("\n ", ";")
