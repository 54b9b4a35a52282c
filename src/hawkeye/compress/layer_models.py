"""Small OpenVINO models that a layer's cost is measured with, and the cost of each node of a whole network.

Convolutions that read the same input share one model, each with what surrounds it in a quantized detector: 8-bit
input, INT8 weights with a scale per output channel, bias, SiLU and the next quantizer. OpenVINO's own per-node clock
tells them apart, so neither copies in and out nor the cost of a call are counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hawkeye.errors import MissingExtraError, ModelError
from hawkeye.runtime.core import core, on_threads

try:
    import openvino as ov
    from openvino import opset13 as op
except ImportError as error:
    raise MissingExtraError("compress", error.name or "openvino") from error

Precision = Literal["int8", "fp32"]


class Shape(NamedTuple):
    """What a convolution's cost depends on.

    Attributes:
        kind: "conv" with bias and SiLU, "depthwise" with bias alone, or "output", the head's last 1x1 with float
            results.
        kernel, stride: of both directions.
        cin, cout: channels.
        h, w: of the output, in cells.
    """

    kind: str
    kernel: int
    stride: int
    cin: int
    cout: int
    h: int
    w: int


@dataclass(frozen=True)
class Node:
    """One executed node of a network: its name in the graph, OpenVINO's kind and kernel, and its least milliseconds."""

    name: str
    kind: str
    kernel: str
    ms: float


def version() -> str:
    """OpenVINO's version."""
    return str(ov.get_version()).partition("-")[0]


def layers_ms(shapes: Sequence[Shape], precision: Precision, *, threads: int, runs: int) -> dict[Shape, float]:
    """Milliseconds of convolutions that read the same input: equal but for `cout` and `kind`.

    The least of `runs`: other work on the machine only ever adds time.

    Raises:
        ModelError: OpenVINO ran no convolution for a shape.
    """
    if len({(s.kernel, s.stride, s.cin, s.h, s.w) for s in shapes}) != 1:
        raise AssertionError("these layers do not read the same input")
    nodes = {node.name: node.ms for node in network_ms(_model(shapes, precision), threads=threads, runs=runs)}
    names = {_name(shape): shape for shape in shapes}
    found = {names[name]: ms for name, ms in nodes.items() if name in names and ms > 0}
    if len(found) != len(names):
        raise ModelError("OpenVINO does not tell the cost of a layer", got=f"{len(found)} of {len(names)} layers",
                         expected="a convolution for each")  # fmt: skip
    return found


def network_ms(model: ov.Model | Path, *, threads: int, runs: int) -> list[Node]:
    """Least milliseconds of each node of a network, in FP32 but for what is quantized."""
    request = _request(model, threads, count=True)
    nodes: dict[str, Node] = {}
    for _ in range(runs):
        request.infer()
        for info in request.profiling_info:
            ms = info.real_time.total_seconds() * 1e3
            if info.node_name not in nodes or ms < nodes[info.node_name].ms:
                nodes[info.node_name] = Node(info.node_name, info.node_type, info.exec_type, ms)
    return list(nodes.values())


def networks_ms(models: Sequence[ov.Model | Path], *, threads: int, runs: int) -> list[list[float]]:
    """Milliseconds of whole networks, `runs` of each, measured in turns."""
    requests = [_request(model, threads) for model in models]
    found: list[list[float]] = [[] for _ in models]
    for _ in range(runs):
        for request, values in zip(requests, found, strict=True):
            request.infer()  # not timed: brings the weights back into the caches that the one before has filled
            started = time.perf_counter()
            request.infer()
            values.append((time.perf_counter() - started) * 1e3)
    return found


def _request(model: ov.Model | Path, threads: int, *, count: bool = False) -> ov.InferRequest:
    options = {**on_threads(threads), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
               "PERF_COUNT": count}  # fmt: skip
    compiled = core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    rng = np.random.default_rng(0)
    for port in compiled.inputs:
        request.set_tensor(port, ov.Tensor(rng.random(tuple(port.shape), dtype=np.float32)))
    request.infer()  # allocations, and the choice of kernels
    return request


def _name(shape: Shape) -> str:
    return f"{shape.kind}-{shape.cout}"


def _model(shapes: Sequence[Shape], precision: Precision) -> ov.Model:
    first = shapes[0]
    rng = np.random.default_rng(0)
    picture = op.parameter([1, first.cin, first.h * first.stride, first.w * first.stride], np.float32)
    source = _quantizer(picture) if precision == "int8" else picture
    results = []
    for shape in shapes:
        groups = [shape.cout, 1] if shape.kind == "depthwise" else [shape.cout]
        size = (*groups, 1 if shape.kind == "depthwise" else shape.cin, shape.kernel, shape.kernel)
        if precision == "int8":
            whole: Any = op.convert(op.constant(rng.integers(-127, 128, size, np.int8)), np.float32)
            weights: Any = op.multiply(whole, op.constant(np.full((*groups, 1, 1, 1), 1e-3, np.float32)))
        else:
            weights = op.constant(rng.standard_normal(size, np.float32) * np.float32(0.01))
        pad = [shape.kernel // 2] * 2
        convolution = op.group_convolution if shape.kind == "depthwise" else op.convolution
        value = convolution(source, weights, [shape.stride] * 2, pad, pad, [1, 1])
        value.set_friendly_name(_name(shape))
        value = op.add(value, op.constant(np.full((1, shape.cout, 1, 1), 0.01, np.float32)))
        if shape.kind == "conv":
            value = op.swish(value)
        if shape.kind != "output" and precision == "int8":
            value = _quantizer(value)
        # One cell leaves the model: copying whole maps out would take longer than some layers.
        corner = [op.constant([0, 0]), op.constant([1, 1]), op.constant([1, 1]), op.constant([2, 3])]
        results.append(op.result(op.slice(value, *corner)))
    return ov.Model(results, [picture])


def _quantizer(value: Any) -> Any:
    """256 steps from SiLU's lowest value on, as activations of a detector have them."""
    low, high = (op.constant(np.full((1, 1, 1, 1), bound, np.float32)) for bound in (-0.28, 3.0))
    return op.fake_quantize(value, low, high, low, high, 256)
