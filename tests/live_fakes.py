"""Stand-ins for tests of streams and sessions: a source without a camera, a network that is told what to find, and a
real HTTP server that plays a camera and its faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.runtime.engine import Engine, SyncBackend
from hawkeye.runtime.source import Shot, Source

NAMES = ("thing", "other")


def source(name: str = "fake", kind: Any = "video") -> Source:
    return Source(kind, name, f"the {name}", "nowhere")


def picture(value: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


class FakeCapture:
    """Gives what it is told: arrays are pictures, errors are raised, callables are called first."""

    def __init__(self, script: Sequence[Any], *, frames: int = 0, fps: float = 10.0) -> None:
        self._script, self.frames, self.fps = list(script), frames, fps
        self.closed = False

    def read(self) -> Shot | None:
        while self._script:
            item = self._script.pop(0)
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
                continue
            return Shot(item)
        return None

    def close(self) -> None:
        self.closed = True


def file_of(count: int, **options: Any) -> Callable[[Source], FakeCapture]:
    """An opener for a file of `count` frames whose grey is their number."""
    return lambda _: FakeCapture([picture(i % 256) for i in range(count)], frames=count, **options)


def refuse(_: Source) -> FakeCapture:
    raise DataError("cannot open it", got="no answer")


class FakeNetwork:
    """A policy that finds one box where `at` says, by the grey of the picture; may be slow, hang or break."""

    def __init__(
        self,
        at: Callable[[int], tuple[float, float, float, float] | None] = lambda grey: (10, 10, 20, 30),
        *,
        delay_s: float = 0.0,
        trouble: Callable[[int], None] | None = None,
    ) -> None:
        self.names = NAMES
        self.timings = {"pre": 0.1, "network": 1.0, "post": 0.1}
        self.seen: list[int] = []
        self.expected: list[Detections | None] = []
        self._at, self._delay_s, self._trouble = at, delay_s, trouble

    def __call__(self, image: np.ndarray, expected: Detections | None = None) -> Detections:
        grey = int(image[0, 0, 0])
        self.seen.append(grey)
        self.expected.append(expected)
        if self._trouble is not None:
            self._trouble(grey)
        time.sleep(self._delay_s)
        box = self._at(grey)
        if box is None:
            return Detections.empty()
        return Detections(np.array([box], np.float32), np.array([0.9], np.float32), np.array([0], np.int32))

    def describe(self) -> str:
        return "fake"


def write_video(path: Path, frames: int = 30, size: tuple[int, int] = (64, 64)) -> Path:
    """A video whose frames grow brighter, .mp4 or .avi."""
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v")), 10.0, size
    )
    for number in range(frames):
        writer.write(picture(number * 8 % 256, (size[1], size[0])))
    writer.release()
    return path


def engine(network: FakeNetwork | None = None, **options: Any) -> Engine:
    policy = network or FakeNetwork()
    return Engine(lambda: SyncBackend(lambda _: policy), **options)


def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def capture_threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(("capture", "inference", "session", "leaving"))
    ]


Camera = Callable[[Callable[[bytes], None], int], None]


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


@contextmanager
def mjpeg_camera(play: Camera) -> Iterator[str]:
    """A camera on this machine: `play(send, visit)` for each connection; returning closes it. Gives the address."""
    visits = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()

            def send(data: bytes) -> None:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                self.wfile.flush()

            visits[0] += 1
            with suppress(OSError):  # the other end has gone
                play(send, visits[0])

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live?password=secret"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
