"""The service under load, against the network alone in the same run: latency, throughput, overload, live sources, idle.

    python benchmarks/serve_load.py runs/first [--picture street.jpg] [--seconds 8] [--out load.json]

The service runs as `hawkeye serve` does, in a process of its own, and is asked over HTTP on loopback from this process,
which needs processor time too: what is measured is all that a client on the same machine sees. "Network" is what
`Detector` spends in the compiled network alone, of the same shape, on all cores, in turns with the service. Arrivals
under load are evenly spaced (`--poisson` makes them random). Prints a table; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import psutil
from served import Poster, Served, cameras, numbered, percentile, photograph, served, watch

from hawkeye import environment
from hawkeye.runtime.detector import Detector

_SOURCES, _FPS, _PICTURES = 4, 25.0, 200


def latency(service: Served, detector: Detector, image: Any, jpeg: bytes, count: int) -> dict[str, Any]:
    """One request and one picture through the network alone, in turns."""
    post, asked, alone = Poster(service.port, jpeg), [], []
    for number in range(count + 10):
        _, took = post()
        detector(image)
        if number >= 10:
            asked.append(took)
            alone.append(detector.timings["network"])
    return {"detect_p50_ms": percentile(asked, 0.5), "detect_p99_ms": percentile(asked, 0.99),
            "network_p50_ms": percentile(alone, 0.5), "network_p99_ms": percentile(alone, 0.99),
            "overhead_p50_ms": percentile(asked, 0.5) - percentile(alone, 0.5)}  # fmt: skip


def throughput(
    service: Served, detector: Detector, image: Any, jpeg: bytes, seconds: float, clients: int
) -> dict[str, Any]:
    """Clients that never pause, and the network alone, in turns of a second; also processor time for each answer."""
    rates: dict[str, list[float]] = {"service": [], "network": []}
    costs: dict[str, list[float]] = {"service": [], "client": []}
    alone: list[float] = []
    processes = {"service": psutil.Process(service.process.pid), "client": psutil.Process()}
    posters = [Poster(service.port, jpeg) for _ in range(clients)]
    for _ in range(max(3, round(seconds / 2))):
        end = time.perf_counter() + 1.0
        done = [0] * clients

        def work(index: int, end: float = end, done: list[int] = done) -> None:
            while time.perf_counter() < end:
                done[index] += posters[index]()[0] == 200

        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        began = time.perf_counter()
        threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates["service"].append(sum(done) / (time.perf_counter() - began))
        for name, process in processes.items():
            costs[name].append((sum(process.cpu_times()[:2]) - before[name]) / max(1, sum(done)) * 1e3)
        end, spent, runs, before_s = time.perf_counter() + 1.0, 0.0, 0, time.process_time()
        while time.perf_counter() < end:
            detector(image)
            spent, runs = spent + detector.timings["network"] / 1e3, runs + 1
        rates["network"].append(runs / spent)
        alone.append((time.process_time() - before_s) / runs * 1e3)  # letterbox and boxes too
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"service_per_s": medians["service"], "network_per_s": medians["network"],
            "share": medians["service"] / medians["network"], "clients": clients,
            "service_cpu_ms": statistics.median(costs["service"]), "client_cpu_ms": statistics.median(costs["client"]),
            "network_cpu_ms": statistics.median(alone)}  # fmt: skip


def load(service: Served, jpeg: bytes, rate: float, seconds: float, *, poisson: bool) -> dict[str, Any]:
    """Requests that come at a rate whether or not earlier ones are answered."""
    dice = random.Random(0)
    times, at = [], 0.0
    while at < seconds:
        times.append(at)
        at += dice.expovariate(rate) if poisson else 1 / rate
    results: list[tuple[int, float]] = []
    lock, began, turn = threading.Lock(), time.perf_counter() + 0.2, iter(times)

    def client() -> None:
        post = Poster(service.port, jpeg)
        while True:
            with lock:
                due = next(turn, None)
            if due is None:
                return
            time.sleep(max(0.0, began + due - time.perf_counter()))
            found = post()
            with lock:
                results.append(found)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [took for status, took in results if status == 200]
    refused = [took for status, took in results if status == 503]
    return {"rate_per_s": rate, "requests": len(results), "accepted": len(accepted), "refused_503": len(refused),
            "other": len(results) - len(accepted) - len(refused), "p50_ms": percentile(accepted, 0.5),
            "p99_ms": percentile(accepted, 0.99), "refused_p99_ms": percentile(refused, 0.99) if refused else None,
            "arrivals": "poisson" if poisson else "even"}  # fmt: skip


def idle(service: Served, seconds: float) -> dict[str, Any]:
    """Processor and memory of a service that nobody asks."""
    process = psutil.Process(service.process.pid)
    process.cpu_percent()
    time.sleep(seconds)
    return {"cpu_percent_of_a_core": process.cpu_percent(), "rss_mb": process.memory_info().rss / 1e6}


def live(model: Path, folder: Path, image: Any, seconds: float) -> dict[str, Any]:
    """Four cameras of 25 pictures a second, each looked at by one viewer."""
    pictures = [cv2.imencode(".jpg", numbered(image, n), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
                for n in range(_PICTURES)]  # fmt: skip
    with cameras(pictures, _FPS) as (address, sent):
        config = folder / "live.toml"
        config.write_text("".join(f'[[source]]\naddress = "{address}{n}"\nname = "cam{n}"\n' for n in range(_SOURCES)))
        with served(model, folder / "live", "--config", str(config)) as service:
            time.sleep(4.0)
            before = {row["name"]: row for row in json.loads(service.get("/v1/sources"))}
            began, end = time.monotonic(), time.monotonic() + seconds
            views: list[list[tuple[float, int]]] = [[] for _ in range(_SOURCES)]
            delays: list[float] = []

            def look(index: int) -> None:
                views[index] = watch(service.port, f"cam{index}", end)

            threads = [threading.Thread(target=look, args=(n,)) for n in range(_SOURCES)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - began
            after = {row["name"]: row for row in json.loads(service.get("/v1/sources"))}
            process = psutil.Process(service.process.pid)
            rss = process.memory_info().rss / 1e6
    for view in views:
        for came_s, number in view:
            # The picture was sent at the last of the times at which this number was due.
            due = [n for n in range(int((came_s - 3) * _FPS), int(came_s * _FPS) + 1) if n % _PICTURES == number]
            if due:
                delays.append((came_s - due[-1] / _FPS) * 1e3)
    done = [(after[f"cam{n}"]["done"] - before[f"cam{n}"]["done"]) / took for n in range(_SOURCES)]
    return {"done_fps": [round(rate, 2) for rate in done], "fairness_min_over_max": min(done) / max(done),
            "viewed_fps": [round(len(view) / took, 2) for view in views], "delay_p50_ms": percentile(delays, 0.5),
            "delay_p95_ms": percentile(delays, 0.95), "delay_p99_ms": percentile(delays, 0.99), "rss_mb": rss,
            "service_latency_ms": [after[f"cam{n}"]["latency_ms"] for n in range(_SOURCES)]}  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a run or an artefact")
    parser.add_argument("--picture", type=Path, help="a real picture, resized to 1280 x 720; else a drawn one")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each part")
    parser.add_argument("--poisson", action="store_true", help="random arrivals instead of even ones")
    parser.add_argument("--workers", type=int, default=0, help="detectors of the service; 0 as it thinks best")
    parser.add_argument("--threads", type=int, default=0, help="of each of them; the network alone has all cores")
    parser.add_argument("--clients", type=int, default=0, help="of the throughput; 0: one for each detector, or 2")
    parser.add_argument("--parts", default="start,latency,throughput,load,idle,live", help="which, with commas")
    parser.add_argument("--out", type=Path, help="write JSON here too")
    options = parser.parse_args()
    parts = options.parts.split(",")
    image = photograph(options.picture, (720, 1280))
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    found: dict[str, Any] = {"picture": {"size": [720, 1280], "jpeg_bytes": len(jpeg)},
                             "service": {"workers": options.workers, "threads": options.threads}}  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "start" in parts:
            starts = []
            for _ in range(4):
                with served(options.model, folder / "start") as service:
                    starts.append(service.started_s)
            found["start"] = {"first_s": starts[0], "warm_s": statistics.median(starts[1:])}
        if {"latency", "throughput", "load", "idle"} & set(parts):
            settings = {"workers": options.workers, "threads": options.threads}
            with served(options.model, folder / "state", settings=settings) as service:
                detector = Detector(options.model)
                if "idle" in parts:
                    time.sleep(3.0)
                    found["idle"] = idle(service, options.seconds)
                if "latency" in parts:
                    found["latency"] = latency(service, detector, image, jpeg, round(options.seconds * 30))
                if "throughput" in parts or "load" in parts:
                    places = json.loads(service.get("/v1/statistics"))["queues"]["requests"][1]
                    clients = options.clients or max(2, places // 2)  # half of the places are for those who wait
                    found["throughput"] = throughput(service, detector, image, jpeg, options.seconds, clients)
                if "load" in parts:
                    most = found["throughput"]["service_per_s"]
                    for name, share in (("load_70", 0.7), ("load_200", 2.0)):
                        found[name] = load(service, jpeg, share * most, options.seconds, poisson=options.poisson)
        if "live" in parts:
            found["live"] = live(options.model, folder, image, options.seconds)
    for part, values in found.items():
        print(f"{part}: " + ", ".join(f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
                                      for name, value in values.items()))  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps({**found, "environment": environment.describe()}, indent=2))


if __name__ == "__main__":
    main()
