"""What the benchmarks of the service share: a service in a process of its own, cameras, and clients."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_CELL, _BITS = 24, 12  # a number written into a picture as black and white cells that survive JPEG and scaling


@dataclass
class Served:
    """A service that runs."""

    process: subprocess.Popen[str]
    port: int
    started_s: float

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        body = connection.getresponse().read()
        connection.close()
        return body


@contextmanager
def served(model: Path, state: Path, *options: str, settings: dict[str, Any] | None = None) -> Iterator[Served]:
    """A service in a process of its own; `started_s` is from its start until `/readyz` says 200."""
    environment = {**os.environ, "HAWKEYE_SERVE_RATE_PER_MINUTE": "1000000"}
    environment |= {f"HAWKEYE_SERVE_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    command = [sys.executable, "-m", "hawkeye.cli", "serve", str(model), "--port", "0", "--state", str(state), *options]
    began = time.perf_counter()
    with (state.parent / "serve.log").open("a") as log, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)\s*$", process.stdout.readline())
            if found is None:
                raise SystemExit(f"the service did not start; see {state.parent / 'serve.log'}")
            made = Served(process, int(found[1]), 0.0)
            while True:
                with suppress(OSError):
                    if b'"ready"' in made.get("/readyz"):
                        break
                time.sleep(0.01)
            made.started_s = time.perf_counter() - began
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


class Poster:
    """Posts one picture again and again over one connection."""

    def __init__(self, port: int, body: bytes, path: str = "/v1/detect") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._body, self._path = body, path

    def __call__(self) -> tuple[int, float]:
        """Status and milliseconds of one request."""
        began = time.perf_counter()
        self._connection.request("POST", self._path, self._body, {"Content-Type": "image/jpeg"})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, (time.perf_counter() - began) * 1e3


def numbered(image: Image, number: int) -> Image:
    """A copy with a number in its upper left corner."""
    made = image.copy()
    for bit in range(_BITS):
        made[:_CELL, bit * _CELL : (bit + 1) * _CELL] = 255 * (number >> bit & 1)
    return made


def number_of(image: Image) -> int:
    """The number that `numbered` has written."""
    middle = _CELL // 2
    return sum(int(image[middle, bit * _CELL + middle].mean() > 127) << bit for bit in range(_BITS))


@contextmanager
def cameras(pictures: Sequence[bytes], fps: float, *, break_s: float = 0.0) -> Iterator[tuple[str, dict[int, float]]]:
    """Cameras over HTTP at one address, all in step; also when each picture was sent last, by its number.

    Args:
        break_s: the camera at `/3` breaks its connection after so long; 0 never.
    """
    sent: dict[int, float] = {}
    halt = threading.Event()
    heads = [f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(p)}\r\n\r\n".encode() for p in pictures]

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            end = time.monotonic() + break_s if break_s and self.path == "/3" else float("inf")
            with suppress(OSError):
                while not halt.is_set() and time.monotonic() < end:
                    number = int(time.monotonic() * fps) + 1
                    time.sleep(max(0.0, number / fps - time.monotonic()))
                    at = number % len(pictures)
                    sent[at] = number / fps
                    self.wfile.write(heads[at] + pictures[at] + b"\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        halt.set()
        server.shutdown()
        server.server_close()


def watch(port: int, source: str, end_s: float, *, pause_s: float = 0.0) -> list[tuple[float, int]]:
    """Look at a live source as a page does until a time; when each picture came and which number it bears.

    Args:
        pause_s: after each picture; the service leaves out what comes meanwhile.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/pages/frames?s={source}:1280")  # see pages/frames.py
    answer = connection.getresponse()
    seen = []
    while time.monotonic() < end_s and (head := answer.read(4)):
        about = json.loads(answer.read(int.from_bytes(head, "big")))
        if not about:  # a sign of life
            continue
        body = answer.read(about["bytes"])
        came_s = time.monotonic()
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
        doubled = np.asarray(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), np.uint8)
        seen.append((came_s, number_of(doubled)))
        time.sleep(pause_s)
    connection.close()
    return seen


def photograph(path: Path | None, size: tuple[int, int]) -> Image:
    """A picture of height and width `size`: a file's, or a drawn scene."""
    if path is not None:
        found = cv2.imread(str(path))
        if found is None:
            raise SystemExit(f"{path} is no picture")
    else:
        import tempfile

        from hawkeye.scenes import draw_dataset

        with tempfile.TemporaryDirectory() as folder:
            draw_dataset(Path(folder) / "d", train=1, val=1, imgsz=640, seed=0)
            found = cv2.imread(
                str(next((Path(folder) / "d").rglob("*.jpg"), next((Path(folder) / "d").rglob("*.png"), "")))
            )
    return np.asarray(cv2.resize(found, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def percentile(values: Sequence[float], share: float) -> float:
    """As small as the given share of values."""
    return float(np.percentile(values, 100 * share)) if values else float("nan")
