"""What a batch costs beside the runtime itself, and whether a second worker is worth it.

    python benchmarks/batch.py runs/first/4-quantize/original pictures/ --count 1500

Every way sees the same picture files, decoded from disk, on the same cores, and the rounds take turns. A batch is
measured from the moment at which its workers are ready; what starting Ray takes is told apart. Each is held against
two figures: the loop around one detector of one thread, which is what a worker can do, and `predict`, which is what the
machine can do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from hawkeye import environment
from hawkeye.artifact import Artifact
from hawkeye.data import list_images, read_image
from hawkeye.predict import predict
from hawkeye.runtime.detector import Detector
from hawkeye.runtime.openvino import throughput
from hawkeye.scale.batch import InProcess, batch
from hawkeye.scale.ray_batch import RayWorkers

_CONF = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of an exported artefact")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=1500, help="pictures a round; files are repeated under new names")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    cores = environment.cpu_count()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = root / "pictures"
        pictures.mkdir()
        files = list_images(arguments.pictures)
        for i in range(arguments.count):
            source = files[i % len(files)].resolve()
            (pictures / f"{i:06d}{source.suffix}").symlink_to(source)
        for path in files:  # into the page cache: a disk is not what is compared
            path.read_bytes()
        ways: dict[str, Callable[[Path], tuple[float, float]]] = {
            "loop: one `Detector`, 1 thread": lambda out: loop(arguments.model, pictures, 1),
            f"`predict`, {cores} threads, several in flight": lambda out: predicted(
                arguments.model, pictures, out, cores
            ),
            "batch without Ray, 1 worker of 1 thread": lambda out: batched(
                arguments.model, pictures, out, InProcess(), 1
            ),
        }
        for workers in dict.fromkeys([1, 2, cores]):
            ways[f"batch on Ray, {workers} worker{'s' * (workers > 1)} of 1 thread"] = lambda out, workers=workers: (
                batched(arguments.model, pictures, out, RayWorkers(workers, 1), 1)
            )
        rates: dict[str, list[float]] = {way: [] for way in ways}
        starts: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(arguments.rounds):
            for place, (way, measure) in enumerate(ways.items()):
                working_s, start_s = measure(root / f"out-{number}-{place}")
                rates[way].append(arguments.count / working_s)
                starts[way].append(start_s)
                print(f"{way}: {rates[way][-1]:.1f} pictures/s, {start_s:.1f} s to start", flush=True)
        artifact = Artifact.load(arguments.model)
        runtime = "openvino-int8" if artifact.name.endswith("+int8") else "openvino-f32"
        alone = throughput(artifact.path("openvino"), artifact.spec, runtime=runtime, seconds=5.0)
    print()
    print("| way | pictures/s | of the loop | of `predict` | machine hours per million | s to start |")
    print("|---|---:|---:|---:|---:|---:|")
    loop_rate, predict_rate = (median(rates[way]) for way in list(ways)[:2])
    rows = {way: (median(rates[way]), f"{median(starts[way]):.1f}") for way in ways}
    rows[f"the network alone, nothing read or decoded, {cores} threads"] = (alone, "")
    for way, (rate, start) in rows.items():
        print(f"| {way} | {rate:.1f} | {rate / loop_rate:.2f} | {rate / predict_rate:.2f} | {1e6 / rate / 3600:.2f} "
              f"| {start} |")  # fmt: skip
    print()
    print(json.dumps({"rates": rates, "starts": starts, "network_alone": alone, "count": arguments.count,
                      "environment": environment.describe()}))  # fmt: skip


def loop(model: Path, pictures: Path, threads: int) -> tuple[float, float]:
    """Seconds of work, and to start."""
    began = time.perf_counter()
    detector = Detector(model, conf=_CONF, threads=threads)
    ready = time.perf_counter()
    for path in sorted(pictures.iterdir()):
        detector(read_image(path))
    return time.perf_counter() - ready, ready - began


def predicted(model: Path, pictures: Path, out: Path, threads: int) -> tuple[float, float]:
    """Seconds of work and of opening the model, which cannot be told apart here; and nothing to start."""
    began = time.perf_counter()
    predict(model, pictures, out=out, conf=_CONF, threads=threads, engine="async", draw_pictures=False)
    return time.perf_counter() - began, 0.0


def batched(
    model: Path, pictures: Path, out: Path, workers: InProcess | RayWorkers, threads: int
) -> tuple[float, float]:
    """Seconds of work, and to start."""
    began = time.perf_counter()
    done = batch(model, [str(pictures)], out=str(out), workers=workers, threads=threads, conf=_CONF)
    working = done.report["runs"][-1]["working_seconds"]
    return working, time.perf_counter() - began - working


if __name__ == "__main__":
    main()
