"""The service for half an hour: does memory grow, do threads stay behind, are counts kept?

    python benchmarks/serve_soak.py runs/first [--minutes 30] [--fps 5] [--out soak.json]

Four cameras over HTTP, one of which breaks its connection every 20 seconds; two viewers that come and go; a picture to
detect every two seconds; each minute a source is removed and added again and the model is switched and rolled back.
Exits with 1 when memory grows by 1 MiB a minute or more (over the last two thirds; not judged below 15 minutes, in
which caches still fill), a thread is left over, or a second without counts cannot be explained.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from served import Poster, Served, cameras, numbered, photograph, served, watch

from hawkeye import environment

_LIMIT_MIB_PER_MINUTE = 1.0
_SETTLED_MINUTES = 15.0
_SAMPLE_S = 5.0


def ask(service: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


def disturb(service: Served, address: str, turn: int, found: dict[str, Any]) -> None:
    """What happens once a minute."""
    number = turn % 3 + 1
    name = f"cam{number}"
    statuses = [ask(service, "DELETE", f"/v1/sources/{name}")[0],
                ask(service, "POST", "/v1/sources", {"address": f"{address}{number}", "name": name})[0]]  # fmt: skip
    models = [row["id"] for row in ask(service, "GET", "/v1/models")[1] if row["why_not"] is None]
    if len(models) > 1:
        statuses += [
            ask(service, "PUT", "/v1/served", {"model": models[1]})[0],
            ask(service, "POST", "/v1/rollback")[0],
        ]
    found["disturbances"] += 1
    found["refused"] += [status for status in statuses if status >= 300]


def soak(service: Served, address: str, jpeg: bytes, minutes: float) -> dict[str, Any]:
    """Work until the time is over; what was seen."""
    for number in range(4):
        ask(service, "POST", "/v1/sources", {"address": f"{address}{number}", "name": f"cam{number}"})
    process = psutil.Process(service.process.pid)
    found: dict[str, Any] = {"disturbances": 0, "refused": [], "requests": 0, "not_200": 0, "viewed": 0}
    disturb(service, address, 0, found)  # both models are loaded before anything is compared
    began, wall = time.monotonic(), time.time()
    end = began + 60 * minutes
    samples: list[tuple[float, float, int]] = []
    halt = threading.Event()

    def view(number: int) -> None:
        while not halt.is_set():
            try:
                until = min(end, time.monotonic() + 20)
                found["viewed"] += len(watch(service.port, f"cam{number}", until, pause_s=0.5))
            except (OSError, http.client.HTTPException, cv2.error):
                halt.wait(0.5)

    def post() -> None:
        poster = Poster(service.port, jpeg)
        while not halt.wait(2.0):
            found["requests"] += 1
            found["not_200"] += poster()[0] != 200

    threads = [threading.Thread(target=view, args=(0,)), threading.Thread(target=view, args=(1,)),
               threading.Thread(target=post)]  # fmt: skip
    for thread in threads:
        thread.start()
    turn = 0
    while time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        samples.append((time.monotonic() - began, process.memory_info().rss / 2**20, process.num_threads()))
        if (time.monotonic() - began) / 60 > turn + 1:
            turn += 1
            disturb(service, address, turn, found)
            print(f"{turn} min: {samples[-1][1]:.0f} MiB, {samples[-1][2]} threads", file=sys.stderr)
    halt.set()
    for thread in threads:
        thread.join(30)
    time.sleep(3.0)
    rows = ask(service, "GET", f"/v1/counts?start={wall + 10}&end={wall + 60 * minutes - 5}&bucket_s=1&source=cam0"
                               "&measure=present_mean&class_name=all")[1]  # fmt: skip
    late = [s for s in samples if s[0] > 20 * minutes]
    slope = float(np.polyfit([s[0] / 60 for s in late], [s[1] for s in late], 1)[0])
    info = ask(service, "GET", "/v1/sources/cam0")[1]
    return {**found, "minutes": minutes, "rss_mib_first": samples[0][1], "rss_mib_last": samples[-1][1],
            "rss_mib_per_minute": slope, "threads_first": int(np.median([s[2] for s in samples[:12]])),
            "threads_last": samples[-1][2], "threads_most": max(s[2] for s in samples),
            "seconds_asked": len(rows), "seconds_with_data": sum(row["value"] is not None for row in rows),
            "cam0": {key: info[key] for key in ("done", "drops", "lost", "reconnects")},
            "history": ask(service, "GET", "/v1/statistics")[1]["history"]}  # fmt: skip


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a run or an artefact")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=5.0, help="of each camera")
    parser.add_argument("--picture", type=Path, help="a real picture; else a drawn one")
    parser.add_argument("--out", type=Path, help="write JSON here too")
    options = parser.parse_args()
    image = photograph(options.picture, (360, 640))
    pictures = [cv2.imencode(".jpg", numbered(image, n))[1].tobytes() for n in range(50)]
    with (
        tempfile.TemporaryDirectory() as folder,
        cameras(pictures, options.fps, break_s=20.0) as (address, _),
        served(options.model, Path(folder) / "state", "--allow-network", "127.0.0.0/8") as service,
    ):
        found = soak(service, address, pictures[0], options.minutes)
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps({**found, "environment": environment.describe()}, indent=2))
    steady = found["rss_mib_per_minute"] < _LIMIT_MIB_PER_MINUTE or options.minutes < _SETTLED_MINUTES
    good = (steady and found["history"] == "on"
            and found["threads_last"] <= found["threads_first"] + 4
            and found["seconds_with_data"] > 0.8 * found["seconds_asked"])  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
