"""Many looping streams for many minutes: does memory grow, do threads stay behind, are frames lost?

    python benchmarks/soak.py runs/first VIDEO [VIDEO ...] [--streams 4] [--minutes 30] [--engine auto] [--live]

Each stream plays a video at its own speed again and again, is tracked and counted, and one of them is removed and
added again every minute. With --live the videos come over HTTP as MJPEG from a server on this machine that breaks the
connection every 20 seconds. Prints JSON; exits with 1 when memory grows by 1 MiB a minute or more (over the last two
thirds of the time), or a thread is left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from hawkeye import environment
from hawkeye.live import LiveSession
from hawkeye.predict import EVERYWHERE
from hawkeye.progress import progress
from hawkeye.runtime.choice import open_engine
from hawkeye.runtime.source import Source, find_sources, open_source
from hawkeye.runtime.stream import Stream

LIMIT_MIB_PER_MINUTE = 1.0
_SAMPLE_S = 2.0
_BREAK_EVERY_S = 20.0
_SENT_FRAMES = 300


def encoded(video: str) -> tuple[float, list[bytes]]:
    """Seconds between frames and the first frames as JPEG, ready to be sent again and again."""
    capture, frames = open_source(find_sources([video])[0]), []
    while len(frames) < _SENT_FRAMES and (shot := capture.read()) is not None:
        frames.append(cv2.imencode(".jpg", shot.image)[1].tobytes())
    pause = 1 / (capture.fps or 25)
    capture.close()
    return pause, frames


@contextmanager
def cameras(videos: list[str]) -> Iterator[list[str]]:
    """A server in a thread that plays each video as a camera does; gives an address for each."""
    # Decoded beforehand: OpenCV opens one source at a time, so a server of this process that opened a video while
    # a client waits for its first frame would wait for that client.
    ready = [encoded(video) for video in videos]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            pause, frames = ready[int(self.path.strip("/").partition("?")[0])]
            end = time.monotonic() + _BREAK_EVERY_S
            with suppress(OSError):  # the reader may go
                for data in itertools.cycle(frames):
                    if time.monotonic() > end:
                        break
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
                    time.sleep(pause)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True, name="server").start()
    try:
        yield [f"http://127.0.0.1:{server.server_port}/{number}" for number in range(len(videos))]
    finally:
        server.shutdown()
        server.server_close()


def slope(minutes: list[float], mib: list[float]) -> float:
    """Growth in MiB per minute over the last two thirds, by least squares: caches fill in the first."""
    start = len(minutes) // 3
    return float(np.polyfit(minutes[start:], mib[start:], 1)[0])


def soak(model: str, sources: list[Source], options: argparse.Namespace) -> dict[str, Any]:
    """Run all streams and sample memory and threads."""
    process = psutil.Process()
    session_threads = ("capture", "inference", "session", "leaving")
    engine, names, words = open_engine(model, kind=options.engine, threads=options.threads, conf=0.1,
                                       resolution=options.resolution)  # fmt: skip
    session = LiveSession(engine, names, bucket_s=60.0)
    names_of = itertools.cycle(sources)
    running = [replace(next(names_of), name=f"stream{number}") for number in range(options.streams)]

    def add(source: Source) -> None:
        session.add(Stream(source, loop=True, realtime=not source.live, backoff_s=(0.2, 2.0)), [EVERYWHERE])

    for source in running:
        add(source)
    session.start()
    minutes, mib, threads = [], [], []
    done = drops = reconnects = 0
    started, swapped = time.monotonic(), 0
    with progress("soaking", options.minutes * 60) as task:
        while (passed := time.monotonic() - started) < options.minutes * 60 and session.error is None:
            time.sleep(_SAMPLE_S)
            rows = session.status()
            minutes.append(passed / 60)
            mib.append(process.memory_info().rss / 2**20)
            threads.append(process.num_threads())
            task.advance(_SAMPLE_S, f"{mib[-1]:.0f} MiB, {sum(row.fps_done for row in rows):.1f} fps, "
                         f"{sum(row.drops for row in rows)} dropped")  # fmt: skip
            if passed // 60 > swapped:
                again = running[swapped % len(running)]
                swapped += 1
                row = next(row for row in rows if row.name == again.name)
                done, drops, reconnects = done + row.done, drops + row.drops, reconnects + row.reconnects
                session.remove(again.name)
                add(again)
    rows = session.status()
    session.stop()
    time.sleep(6)  # a capture thread ends at the time limit for reading at the latest
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(session_threads)]
    return {
        "engine": words,
        "minutes": round(minutes[-1], 2),
        "streams": options.streams,
        "live": options.live,
        "frames": done + sum(row.done for row in rows),
        "drops": drops + sum(row.drops for row in rows),
        "reconnects": reconnects + sum(row.reconnects for row in rows),
        "lost": sum(row.lost for row in rows),
        "restarts": engine.restarts,
        "error": None if session.error is None else str(session.error),
        "rss_mib": {"first": mib[0], "after_a_third": mib[len(mib) // 3], "last": mib[-1], "max": max(mib)},
        "rss_mib_per_minute": slope(minutes, mib),
        "samples": [[round(m, 3), round(r, 2), t] for m, r, t in zip(minutes, mib, threads, strict=True)],
        "threads": {"after_a_third": threads[len(threads) // 3], "last": threads[-1], "max": max(threads)},
        "threads_left": left,
        "environment": environment.describe(),
    }


def main() -> int:
    """Soak one model on some videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, artefact, stock export, .xml or .onnx")
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--engine", default="auto", choices=("auto", "sync", "async"))
    parser.add_argument("--resolution", help="as for `hawkeye count`")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--live", action="store_true", help="over HTTP, with broken connections")
    options = parser.parse_args()
    files = find_sources(options.videos)
    if options.live:
        with cameras([str(file.target) for file in files]) as addresses:
            result = soak(options.model, find_sources(addresses), options)
    else:
        result = soak(options.model, files, options)
    print(json.dumps(result, indent=2))
    good = result["rss_mib_per_minute"] < LIMIT_MIB_PER_MINUTE and not result["threads_left"] and not result["error"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
