"""What several depthwise filters a channel take in INT8, as one stock convolution and as parallel ones.

    python benchmarks/filters.py

Each is a 3x3 convolution with SiLU, or what stands in for one, at shapes of yolov8n's neck and head at 640 pixels; four
in a chain, so that what a call costs weighs little. They take turns; prints a table of medians in ms per convolution.
Tells why `compress/filters.py` splits stock blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from hawkeye import environment
from hawkeye.progress import progress
from hawkeye.runtime.core import core, on_threads

_CHAIN = 4
_WAYS = ("full 3x3", "one filter", "two filters, stock", "two filters, parallel")
_SHAPES = ((64, 80), (128, 40), (256, 20))  # channels, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="timed runs of each row")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(f"{environment.cpu_model()}, OpenVINO {ov.get_version()}, {args.threads} threads\n")
    print("| ms a convolution |", " | ".join(_WAYS), "|\n|---|" + "---:|" * len(_WAYS))
    with progress("timing", args.runs * len(_SHAPES)) as bar:
        for channels, cells in _SHAPES:
            requests = [_request(_chain(way, channels, cells), args.threads) for way in _WAYS]
            found: list[list[float]] = [[] for _ in _WAYS]
            for _ in range(args.runs):
                for request, values in zip(requests, found, strict=True):
                    request.infer()
                    started = time.perf_counter()
                    request.infer()
                    values.append((time.perf_counter() - started) * 1e3 / _CHAIN)
                bar.advance(1)
            row = " | ".join(f"{statistics.median(values):.2f}" for values in found)
            print(f"| {channels} channels of {cells} x {cells} | {row} |", flush=True)


def _request(model: ov.Model, threads: int) -> ov.InferRequest:
    options = {**on_threads(threads), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(model, "CPU", options).create_infer_request()


def _chain(way: str, channels: int, cells: int) -> ov.Model:
    picture = op.parameter([1, channels, cells, cells], np.float32)
    value: Any = _steps(picture, -1.0, 1.0)
    for _ in range(_CHAIN):
        if way == "full 3x3":
            value = _convolved(value, (channels, channels, 3, 3))
        else:
            each = 2 if way == "two filters, stock" else 1
            banks = [_steps(_convolved(value, (channels, each, 1, 3, 3)), -3.0, 3.0)
                     for _ in range(2 if way == "two filters, parallel" else 1)]  # fmt: skip
            joined = op.concat(banks, 1) if len(banks) > 1 else banks[0]
            value = _convolved(joined, (channels, channels * each * len(banks), 1, 1))
        value = _steps(op.swish(value), -0.28, 6.0)
    corner = [op.constant([0, 0]), op.constant([1, 1]), op.constant([1, 1]), op.constant([2, 3])]
    return ov.Model([op.result(op.slice(value, *corner))], [picture])


def _convolved(value: Any, size: tuple[int, ...]) -> Any:
    """A convolution with INT8 weights and a bias; of five dimensions, one with as many groups as the first tells."""
    grouped, side = len(size) == 5, size[-1]
    weights = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    top = np.abs(weights).max(axis=tuple(range(1 + grouped, len(size))), keepdims=True)
    low, high = op.constant(-top), op.constant(top)
    kernel = op.fake_quantize(op.constant(weights), low, high, low, high, 255)
    pads = [side // 2] * 2
    value = (op.group_convolution if grouped else op.convolution)(value, kernel, [1, 1], pads, pads, [1, 1])
    outputs = size[0] * size[1] if grouped else size[0]
    return op.add(value, op.constant(np.full((1, outputs, 1, 1), 0.01, np.float32)))


def _steps(value: Any, low: float, high: float) -> Any:
    ends = [op.constant(np.float32(end)) for end in (low, high)]
    return op.fake_quantize(value, *ends, *ends, 256)


if __name__ == "__main__":
    main()
