"""Latency of all models in all runtimes, measured in turns in one process, batch 1.

Each turn of a row is: one frame that is not timed (it brings the model's weights back into the caches that the row
before has filled), the network alone, the whole frame. The order of the rows is turned by one after each round. So a
machine that gets slower or busier meets every row alike. Start time and memory come from a fresh process per row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import environment
from hawkeye.artifact import Artifact
from hawkeye.config import BenchmarkConfig
from hawkeye.decode import decode
from hawkeye.errors import ModelError
from hawkeye.evaluate import file_format
from hawkeye.geometry import Letterbox
from hawkeye.progress import progress, say
from hawkeye.records import LatencyRecord, LatencyRow, Percentiles, RuntimeName
from hawkeye.runtime import Runtime, load_runtime

_CONF, _IOU = 0.25, 0.7
_GAP_S = 0.002  # lets the row before put its worker threads to sleep
_PROBE_TIMEOUT_S = 120.0


def benchmark(artifacts: Sequence[Artifact], config: BenchmarkConfig, *, out: Path) -> LatencyRecord:
    """Measure every artefact in every runtime that it has a file for; writes the record to `out` (JSON).

    Float models: PyTorch (where torch is installed), ONNX Runtime, OpenVINO with hint f32, OpenVINO as it comes.
    INT8 models: ONNX Runtime and OpenVINO.

    Raises:
        ModelError: there is nothing to measure, or the models take pictures of different sizes.
    """
    started = time.perf_counter()
    wanted = [(artifact, runtime) for artifact in artifacts for runtime in runtimes_of(artifact)]
    sizes = {artifact.spec.imgsz for artifact in artifacts} | ({config.imgsz} if config.imgsz else set())
    if not wanted or len(sizes) != 1:
        raise ModelError("these models cannot be measured together", got=f"{len(wanted)} rows, sizes {sorted(sizes)}",
                         expected="at least one exported model, all of one size",
                         mend="run `hawkeye export`")  # fmt: skip
    size = sizes.pop()
    threads = config.threads or environment.cpu_count()
    frame = synthetic_frame(config.frame, config.seed)
    rounds = config.warmup + config.runs
    with progress("latency", rounds * len(wanted) + len(wanted)) as task:
        probes = []
        for artifact, runtime in wanted:
            probes.append(_probe(artifact, runtime, threads))
            task.advance(note=f"{artifact.name} {runtime}")
        opened = [load_runtime(artifact, runtime, threads=threads) for artifact, runtime in wanted]
        network: list[list[float]] = [[] for _ in wanted]
        whole: list[list[float]] = [[] for _ in wanted]
        canvas: NDArray[np.uint8] = np.empty((size, size, 3), np.uint8)
        for number in range(rounds):
            for turn in range(len(wanted)):
                row = (turn + number) % len(wanted)
                time.sleep(_GAP_S)
                network_ms, frame_ms = _turn(opened[row], frame, canvas)
                if number >= config.warmup:
                    network[row].append(network_ms)
                    whole[row].append(frame_ms)
                task.advance(note=f"{wanted[row][0].name} {wanted[row][1]}")
    rows = []
    for (artifact, runtime), instance, alone, complete, probe in zip(
        wanted, opened, network, whole, probes, strict=True
    ):
        rows.append(LatencyRow(
            name=artifact.name, runtime=runtime, file_sha256=artifact.files[file_format(runtime)].sha256,
            precision_hint=instance.precision_hint, precision_executed=instance.precision_executed,
            network_ms=tuple(alone), frame_ms=tuple(complete),
            network=percentiles(alone), frame=percentiles(complete),
            throughput_fps=_throughput(artifact, runtime, threads),
            start_s=probe["start_s"], peak_rss_bytes=probe["peak_rss_bytes"],
        ))  # fmt: skip
    record = LatencyRecord(
        imgsz=size, batch=1, threads=threads, frame_hw=config.frame, rows=tuple(rows),
        seconds=round(time.perf_counter() - started, 3),
        environment={**environment.describe(), "seed": config.seed, "warmup": config.warmup},
    )  # fmt: skip
    record.save(out)
    return record


def runtimes_of(artifact: Artifact) -> tuple[RuntimeName, ...]:
    """The rows that an artefact has in the table, by the files it has and the libraries that are installed."""
    quantized = artifact.name.endswith("+int8")
    names: list[RuntimeName] = []
    if "pytorch" in artifact.files and not quantized and find_spec("torch"):
        names.append("pytorch-fp32")
    if "onnx" in artifact.files and find_spec("onnxruntime"):
        names.append("onnxruntime")
    if "openvino" in artifact.files:
        names += ["openvino-int8"] if quantized else ["openvino-f32", "openvino-default"]
    return tuple(names)


def synthetic_frame(hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """A frame (H, W, 3) BGR of coarse random patches under fine noise: the same for the same seed."""
    rng = np.random.default_rng(seed)
    height, width = hw
    coarse = rng.integers(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
    patches = coarse.repeat(40, axis=0).repeat(40, axis=1)[:height, :width]
    noise = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
    return np.ascontiguousarray((patches >> 1) + noise)


def percentiles(values: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 of raw milliseconds, linearly interpolated."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _turn(runtime: Runtime, frame: NDArray[np.uint8], canvas: NDArray[np.uint8]) -> tuple[float, float]:
    """Milliseconds of the network alone and of the whole frame."""
    _whole_frame(runtime, frame, canvas)
    started = time.perf_counter()
    runtime.infer(canvas)
    middle = time.perf_counter()
    _whole_frame(runtime, frame, canvas)
    done = time.perf_counter()
    return (middle - started) * 1e3, (done - middle) * 1e3


def _whole_frame(runtime: Runtime, frame: NDArray[np.uint8], canvas: NDArray[np.uint8]) -> None:
    letterbox = Letterbox.fit((frame.shape[0], frame.shape[1]), runtime.spec.imgsz)
    letterbox.apply_(frame, canvas)
    letterbox.to_source(decode(runtime.infer(canvas), conf=_CONF, iou=_IOU).xyxy)


def _throughput(artifact: Artifact, runtime: RuntimeName, threads: int) -> float | None:
    if not runtime.startswith("openvino"):
        return None
    from hawkeye.runtime.openvino import throughput

    return throughput(artifact.path("openvino"), artifact.spec, runtime=runtime, threads=threads)


def _probe(artifact: Artifact, runtime: RuntimeName, threads: int) -> dict[str, Any]:
    """Start time and peak memory, from a fresh process that loads the model and runs it once; None where unknown."""
    command = [sys.executable, "-m", "hawkeye.benchmark", "--probe", str(artifact.root), runtime, str(threads)]
    started = time.time()
    with tempfile.TemporaryFile("w+") as stderr:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=_PROBE_TIMEOUT_S,
                                  check=True)  # fmt: skip
            told = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, IndexError, ValueError) as error:
            stderr.seek(0)
            reason = (stderr.read().strip().splitlines() or [str(error)])[-1]
            say(f"start time and memory of {artifact.name} in {runtime} are unknown: {reason}")
            return {"start_s": None, "peak_rss_bytes": None}
    return {"start_s": told["at"] - started, "peak_rss_bytes": told["peak_rss_bytes"]}


def _peak_rss_bytes() -> int | None:
    """Peak resident memory of this process; None where the system does not tell.

    Linux' own counter: `getrusage` there starts from the peak of the process that forked this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peak = next((line for line in lines if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) * 1024 if peak else None


def _probe_main(folder: str, runtime: RuntimeName, threads: str) -> None:
    opened = load_runtime(Artifact.load(Path(folder)), runtime, threads=int(threads))
    size = opened.spec.imgsz
    decode(opened.infer(np.full((size, size, 3), 114, np.uint8)), conf=_CONF, iou=_IOU)
    at = time.time()
    print(json.dumps({"at": at, "peak_rss_bytes": _peak_rss_bytes()}))


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] != "--probe":
        sys.exit("this is the inside of `hawkeye benchmark`; run that instead")
    _probe_main(sys.argv[2], sys.argv[3], sys.argv[4])  # type: ignore[arg-type]  # checked by load_runtime
