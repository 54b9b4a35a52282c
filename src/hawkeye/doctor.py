"""What this machine is to a detector: its processor, what OpenVINO will do with it, and what a model costs here."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

from hawkeye import environment
from hawkeye.environment import INT8_SETS
from hawkeye.errors import ModelError
from hawkeye.progress import progress

_FRAME = (1080, 1920)
_SECONDS = 1.2  # of measuring per row
_SMALL = 320
_BUSY = 0.5  # running tasks per core, before this one, that spoil a measurement
_GIB = 2**30

# Instruction sets as people write them, and what they are good for.
_SPELLING = {
    "avx2": "AVX2", "fma": "FMA", "avx_vnni": "AVX-VNNI", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16", "amx_int8": "AMX-INT8", "amx_bf16": "AMX-BF16",
    "asimd": "NEON", "asimddp": "NEON dot product", "i8mm": "NEON INT8 matrix", "sve": "SVE", "bf16": "NEON BF16",
}  # fmt: skip


def examine(model: str | Path | None = None, *, threads: int = 0) -> dict[str, Any]:
    """Look at this machine, and measure a model on it for some seconds.

    Args:
        model: as `Detector` takes it; left out, only the machine is looked at.
        threads: CPU threads; 0 takes all cores that the process may use.

    Returns:
        JSON-ready: `cpu`, `memory`, `openvino`, `model` (None without one) and `advice`, a list of sentences.

    Raises:
        ModelError: the model cannot be used.
    """
    import psutil

    from hawkeye.runtime.openvino import capabilities

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    memory = psutil.virtual_memory()
    found: dict[str, Any] = {
        "cpu": {
            "model": environment.cpu_model(),
            "instruction_sets": list(environment.instruction_sets()),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "usable": environment.cpu_count(),
            "quota": environment.cpu_quota(),
            "load": load,
        },
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "limit_bytes": environment.memory_limit_bytes(),
        },
        "openvino": capabilities(),
        "versions": dict(environment.versions()),
        "model": None if model is None else _cost(model, threads),
    }
    found["advice"] = advice(found)
    return found


def _cost(model: str | Path, threads: int) -> dict[str, Any]:
    """What a model costs here: milliseconds of a 1080p frame by size and threads, and frames per second."""
    from hawkeye.benchmark import synthetic_frame
    from hawkeye.runtime.detector import Detector

    frame = synthetic_frame(_FRAME, 0)
    most = threads or environment.cpu_count()
    with progress("measuring", 4) as task:
        started = time.perf_counter()
        detector = Detector(model, threads=most, cache=False)
        opened = time.perf_counter() - started
        spec, runtime = detector.spec, detector.runtime
        wanted = dict.fromkeys([(most, spec.imgsz), (1, spec.imgsz), (most, _SMALL)])
        rows = []
        for row_threads, imgsz in wanted:
            if (row_threads, imgsz) != (most, spec.imgsz):
                try:
                    detector = Detector(model, threads=row_threads, imgsz=imgsz, cache=False)
                except ModelError:
                    if imgsz == spec.imgsz:
                        raise
                    continue  # a file of one size only
            canvas = detector.prepare(_FRAME)
            rows.append({"threads": row_threads, "imgsz": imgsz, "canvas": list(canvas), **_frame_ms(detector, frame)})
            task.advance(note=f"{imgsz} pixels, {row_threads} threads")
        fps = None
        if runtime.name.startswith("openvino"):
            from hawkeye.runtime.openvino import OpenVinoRuntime, rate

            assert isinstance(runtime, OpenVinoRuntime)
            queue = runtime.queue()
            fps = rate(queue, _SECONDS, queue.canvas_for(_FRAME))
        task.advance(note="throughput")
    return {
        "source": str(model), "imgsz": spec.imgsz, "classes": len(spec.names), "runtime": runtime.name,
        "precision_hint": runtime.precision_hint, "precision_executed": runtime.precision_executed,
        "open_s": round(opened, 3), "frame_hw": list(_FRAME), "rows": rows, "throughput_fps": fps,
    }  # fmt: skip


def _frame_ms(detector: Any, frame: Any) -> dict[str, float]:
    """Medians of a whole frame and of its parts outside the network, in milliseconds."""
    whole: list[float] = []
    outside: list[float] = []
    began = time.perf_counter()
    for _ in range(3):
        detector(frame)
    while time.perf_counter() - began < _SECONDS or len(whole) < 5:
        started = time.perf_counter()
        detector(frame)
        whole.append((time.perf_counter() - started) * 1e3)
        outside.append(detector.timings["pre"] + detector.timings["post"])
    return {"frame_ms": round(statistics.median(whole), 3), "outside_ms": round(statistics.median(outside), 3)}


def advice(found: dict[str, Any]) -> list[str]:
    """What follows from it, in plain words."""
    cpu, memory, model = found["cpu"], found["memory"], found["model"]
    sets, precisions = set(cpu["instruction_sets"]), found["openvino"]["precisions"]
    said = []
    if not sets:
        said.append("This system does not tell the processor's instruction sets; let a measurement decide on INT8.")
    elif sets & set(INT8_SETS):
        said.append("INT8 pays here: the processor multiplies 8-bit numbers directly "
                    f"({_spelled(name for name in INT8_SETS if name in sets)}). Use `hawkeye quantize`.")  # fmt: skip
    else:
        said.append("INT8 gains little here: without VNNI 8-bit products take three instructions and may saturate, "
                    "so weights get 7 bits. Compare it with FP32 by `hawkeye benchmark` before using it.")  # fmt: skip
    if "avx2" not in sets and sets and "asimd" not in sets:
        said.append("Without AVX2 everything is slow here: another machine helps more than any model.")
    if "BF16" in precisions:
        said.append("Left alone, OpenVINO would compute FP32 models in bfloat16 here: faster, with other results. "
                    "Hawkeye always asks for the precision by name, so FP32 is FP32.")  # fmt: skip
    if cpu["quota"] is not None and cpu["quota"] < (cpu["threads"] or 1):
        said.append(f"This container may spend the time of {cpu['quota']:g} cores, though it sees {cpu['threads']}; "
                    f"{cpu['usable']} threads are used.")  # fmt: skip
    busy = cpu["load"] is not None and cpu["load"] > _BUSY * cpu["usable"]
    if busy:
        said.append(f"The machine is busy ({cpu['load']:.1f} tasks on {cpu['usable']} cores): times measured now are "
                    "too long.")  # fmt: skip
    limit = memory["limit_bytes"] or memory["total_bytes"]
    free = min(memory["available_bytes"], limit)
    if free < _GIB:
        said.append(f"Only {free / _GIB:.1f} GiB of memory are free; a detector takes about 0.3.")
    return said + ([] if model is None else _advice_on(model, sets, busy))


def _advice_on(model: dict[str, Any], sets: set[str], busy: bool) -> list[str]:
    said = []
    first = model["rows"][0]
    per_second = max(1e3 / first["frame_ms"], model["throughput_fps"] or 0)
    said.append(f"One 1080p frame takes {first['frame_ms']:.1f} ms; {per_second:.0f} frames per second at most. "
                + (f"Cameras at 25 per second that this serves: {int(per_second / 25)}." if per_second >= 25 else
                   "A camera at 25 per second will lose frames."))  # fmt: skip
    if first["canvas"][0] == first["canvas"][1]:
        said.append("This file takes square pictures only, so four tenths of the work on a 1080p frame is on grey. The "
                    "OpenVINO IR that `hawkeye export` writes takes the frame's shape.")  # fmt: skip
    if model["runtime"] == "openvino-f32" and sets & set(INT8_SETS):
        said.append("This model is FP32: `hawkeye quantize` makes it two to three times as fast here.")
    if model["runtime"] == "onnxruntime":
        said.append("This is an ONNX file: its OpenVINO IR is usually faster, and can take other input sizes.")
    small = next((row for row in model["rows"] if row["imgsz"] == _SMALL != model["imgsz"]), None)
    if small and small["frame_ms"] < 0.45 * first["frame_ms"]:
        said.append(f"At {_SMALL} pixels a frame takes {small['frame_ms']:.1f} ms, so `--resolution adaptive` saves "
                    "time on streams in which little moves.")  # fmt: skip
    one = next((row for row in model["rows"] if row["threads"] == 1 and row["imgsz"] == model["imgsz"]), None)
    if not busy and one and first["threads"] > 1 and one["frame_ms"] < 1.15 * first["frame_ms"]:
        said.append("More threads hardly help here: `--threads 1` leaves the other cores to other work.")
    return said


def report(found: dict[str, Any]) -> str:
    """The same for people."""
    cpu, memory, model = found["cpu"], found["memory"], found["model"]
    quota = f", {cpu['quota']:g} cores' time at most" if cpu["quota"] is not None else ""
    limit = f", {memory['limit_bytes'] / _GIB:.1f} allowed" if memory["limit_bytes"] else ""
    lines = [
        f"processor   {cpu['model']}",
        f"cores       {cpu['cores'] or '?'} cores, {cpu['threads'] or '?'} threads, {cpu['usable']} usable{quota}",
        f"instruction {_spelled(cpu['instruction_sets']) or 'unknown'}",
        f"memory      {memory['total_bytes'] / _GIB:.1f} GiB, {memory['available_bytes'] / _GIB:.1f} free{limit}",
        f"OpenVINO    {found['openvino']['version']}, computes in {', '.join(found['openvino']['precisions'])}",
    ]
    if model is not None:
        lines += [
            f"model       {model['source']}: {model['classes']} classes at {model['imgsz']} pixels, {model['runtime']}",
            f"computes    {model['precision_executed']} (asked for {model['precision_hint']})",
            f"opens in    {model['open_s']:.2f} s",
        ]
        for row in model["rows"]:
            rows, columns = row["canvas"]
            lines.append(f"one frame   {row['frame_ms']:.1f} ms at {columns} x {rows} pixels with {row['threads']} "
                         f"thread{'s' * (row['threads'] > 1)}, {row['outside_ms']:.2f} of it outside the "
                         "network")  # fmt: skip
        if model["throughput_fps"] is not None:
            lines.append(f"throughput  {model['throughput_fps']:.0f} frames per second, several in flight")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in found["advice"])])


def _spelled(names: Any) -> str:
    return ", ".join(_SPELLING.get(name, name) for name in names)
