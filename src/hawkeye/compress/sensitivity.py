"""Which layers INT8 hurts most, and what it costs in time to leave them in float."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from hawkeye.artifact import Artifact, ModelSpec
from hawkeye.compress import fake_quantize, yolo
from hawkeye.compress.distance import agreement
from hawkeye.compress.quantizers import Quantization
from hawkeye.progress import progress
from hawkeye.runtime import open_file

PICTURES = 16  # the order of the layers settles early; every layer costs a pass over them
_ROUNDS, _WARM_UP = 20, 3


@dataclass(frozen=True)
class Layer:
    """A convolution that could run in float.

    Attributes:
        name: its node.
        maps: nodes of the maps that it reads, whose quantizers would have to go.
        gain: fall of the distance from the float network if they went; below 0 where it would rise.
        in_float: all convolutions that would then run in float, itself among them.
    """

    name: str
    maps: tuple[str, ...]
    gain: float
    in_float: tuple[str, ...]


def sensitivity(source: Artifact, quantization: Quantization, pictures: Sequence[Path]) -> list[Layer]:
    """Every quantized convolution by what leaving it in float would gain, most first.

    Measured by distillation loss on training pictures in PyTorch, by fake quantization, so nothing is compiled.
    Convolutions that read the same maps go together and are listed once.
    """
    original = yolo.folded(yolo.load_checkpoint(source.path("pytorch")).model).requires_grad_(False).eval()
    judge = agreement(original, pictures[:PICTURES], source.spec.imgsz, "cpu", bfloat16=False)
    model = fake_quantize.mirror(original, quantization, trained=False).eval()
    base = judge(model)
    already = set(quantization.in_float())
    seen: set[tuple[str, ...]] = set()
    found = []
    with progress("sensitivity of each layer", len(quantization.convolutions)) as task:
        for name, conv in quantization.convolutions.items():
            in_float = tuple(quantization.without(conv.reads).in_float())
            if name not in already and in_float not in seen:
                seen.add(in_float)
                fake_quantize.exclude_(model, quantization, conv.reads)
                found.append(Layer(name, conv.reads, base - judge(model), in_float))
            task.advance(note=name)
    return sorted(found, key=lambda layer: -layer.gain)


def latencies_ms(files: Sequence[Path], spec: ModelSpec, *, rounds: int = _ROUNDS) -> list[float]:
    """Median latency of OpenVINO files at batch 1, measured in turns on this machine."""
    runtimes = [open_file(path, runtime="openvino-int8", spec=spec) for path in files]
    canvas = np.random.default_rng(0).integers(0, 256, (spec.imgsz, spec.imgsz, 3), dtype=np.uint8)
    taken: list[list[float]] = [[] for _ in files]
    for number in range(_WARM_UP + rounds):
        for runtime, times in zip(runtimes, taken, strict=True):
            began = time.perf_counter()
            runtime.infer(canvas)
            if number >= _WARM_UP:
                times.append(1e3 * (time.perf_counter() - began))
    return [median(times) for times in taken]
