"""What must hold for an INT8 file: all of it quantized but the box decode, run as INT8, and seeing what others see.

Quantizing DFL and box decoding costs accuracy and saves no time. They are found by following the graph back from its
output to the first convolutions, never by operator type: a rule "no Sigmoid" would match every SiLU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hawkeye.compress.export import OUTPUT
from hawkeye.compress.quantizers import CONVOLUTIONS
from hawkeye.errors import ExportError, MissingExtraError
from hawkeye.runtime.core import core

try:
    import onnx
    import openvino
except ImportError as error:
    raise MissingExtraError("compress", error.name or "openvino") from error

CONFIDENT = 0.25  # score from which on a difference between two outputs counts
_MOVERS = ("Slice", "Split", "Concat", "Resize", "MaxPool", "Reshape", "Transpose", "Identity")
_Node = TypeVar("_Node", bound=Hashable)


def _walk_back(ends: Sequence[_Node], parents: Callable[[_Node], Sequence[_Node]],
               stop: Callable[[_Node], bool]) -> Iterator[_Node]:  # fmt: skip
    """Nodes from the ends backwards; nodes where `stop` holds are left out, with all that only they need."""
    seen: set[_Node] = set()
    queue = list(ends)
    while queue:
        node = queue.pop()
        if node in seen or stop(node):
            continue
        seen.add(node)
        yield node
        queue += parents(node)


def decode_of_openvino(model: openvino.Model) -> list[str]:
    """Names of the nodes behind the head's last convolutions: DFL, box decode, class sigmoid."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}

    def parents(name: str) -> list[str]:
        return [value.get_node().get_friendly_name() for value in nodes[name].input_values()]

    def stop(name: str) -> bool:
        node, above = nodes[name], parents(name)
        kind = node.get_type_name()
        # A convolution's bias belongs to it; shapes of the trunk (dynamic graphs) lead back into it.
        bias = kind == "Add" and any(nodes[p].get_type_name() == "Convolution" for p in above)
        return bias or kind == "ShapeOf" or (kind == "Convolution" and not _is_dfl(node.input(1).get_partial_shape()))

    ends = [result.input_value(0).get_node().get_friendly_name() for result in model.get_results()]
    found = sorted(n for n in _walk_back(ends, parents, stop) if nodes[n].get_type_name() not in ("Constant", "Result"))
    return _plausible(found, sum(nodes[n].get_type_name() == "Convolution" for n in found))


def _is_dfl(shape: openvino.PartialShape) -> bool:
    """Whether convolution weights (out, in, kh, kw) are DFL's: they sum the bins of one side into one distance."""
    return [d.get_length() for d in shape][0] == 1


def decode_of_onnx(graph: onnx.ModelProto) -> list[str]:
    """As `decode_of_openvino`, for an ONNX graph."""
    nodes = {node.name: node for node in graph.graph.node}
    maker = {output: node.name for node in graph.graph.node for output in node.output}
    first = {tensor.name: tensor.dims[0] for tensor in graph.graph.initializer if len(tensor.dims) == 4}

    def parents(name: str) -> list[str]:
        return [maker[value] for value in nodes[name].input if value in maker]

    def stop(name: str) -> bool:
        node = nodes[name]
        return node.op_type == "Shape" or (node.op_type == "Conv" and first.get(node.input[1]) != 1)

    found = sorted(n for n in _walk_back([maker[OUTPUT]], parents, stop) if nodes[n].op_type != "Constant")
    return _plausible(found, sum(nodes[n].op_type == "Conv" for n in found))


def _plausible(names: list[str], convolutions: int) -> list[str]:
    if convolutions != 1:
        raise ExportError("the box decode cannot be told from the network", got=f"{convolutions} DFL convolutions",
                          expected=1, mend="quantize a file that `hawkeye export` wrote")  # fmt: skip
    return names


def check_openvino(model: openvino.Model, in_float: Collection[str] = ()) -> tuple[int, int]:
    """Check that exactly the decode and what was meant to stayed in float; returns (float, all) convolutions.

    Args:
        model: a quantized network.
        in_float: names, as in ONNX, of the convolutions that are to run in float.

    Raises:
        ExportError: a convolution outside the decode has float weights, or the decode holds a quantizer.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    decode = set(decode_of_openvino(model))
    quantizers = sorted(n for n in decode if nodes[n].get_type_name() == "FakeQuantize")
    if quantizers:
        raise ExportError("the box decode was quantized", got=quantizers[:3], expected="float")
    convolutions = [node for name, node in nodes.items() if node.get_type_name() in CONVOLUTIONS]
    outside = [node for node in convolutions if node.get_friendly_name() not in decode]
    loose = {node.get_friendly_name().removesuffix("/WithoutBiases") for node in outside
             if not _quantized_weights(node.input_value(1).get_node())}  # fmt: skip
    if loose != set(in_float):
        raise ExportError("convolutions were left in float", got=sorted(loose)[:3],
                          expected=f"DFL and {sorted(in_float)[:3]}" if in_float else "only DFL")  # fmt: skip
    return len(convolutions) - len(outside) + len(loose), len(convolutions)


def _quantized_weights(node: openvino.Node) -> bool:
    """Whether a weight comes from INT8 constants or through a FakeQuantize."""
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize" or node.get_element_type() in (openvino.Type.i8, openvino.Type.u8)


def check_onnx(graph: onnx.ModelProto, in_float: Collection[str] = ()) -> None:
    """Check a Q/DQ graph the same way.

    Raises:
        ExportError: a convolution outside the decode reads no DequantizeLinear, or the decode holds one.
    """
    nodes = {node.name: node for node in graph.graph.node}
    decode = set(decode_of_onnx(graph))
    maker = {output: node for node in graph.graph.node for output in node.output}

    def sources(value: str) -> set[str]:
        """Kinds of the operators that a value comes from; those that only move numbers are looked through."""
        node = maker.get(value)
        if node is not None and node.op_type in _MOVERS:
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            return set().union(*(sources(i) for i in inputs))
        return {node.op_type if node is not None else "float"}

    for name, node in nodes.items():
        if name in decode and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ExportError("the box decode was quantized in ONNX", got=name, expected="float")
        if node.op_type == "Conv" and name not in decode and name not in in_float:
            kinds = sources(node.input[0]) | sources(node.input[1])
            if kinds != {"DequantizeLinear"}:
                raise ExportError("an ONNX convolution was left in float", got=f"{name} reads {sorted(kinds)}",
                                  expected="quantized input and weights")  # fmt: skip


def executed_precisions(path: Path) -> Counter[str]:
    """Convolutions by the precision that this CPU runs them in, as OpenVINO tells after compiling."""
    compiled = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].value == "Convolution":
            found[info["runtimePrecision"].value] += 1
    return found


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> dict[str, float | int | None]:
    """How far two raw outputs (N, 4 + nc, A) are apart where either sees an object; None where neither sees any."""
    # Not maximum: what is NaN in one of them alone must not count as unseen.
    sure = np.fmax(a[:, 4:].max(1), b[:, 4:].max(1)) > CONFIDENT  # (N, A)
    if not sure.any():
        return {"candidates": 0, "mean_score": None, "mean_box_px": None}
    gap = np.abs(a - b).transpose(0, 2, 1)[sure]  # (M, 4 + nc)
    return {
        "candidates": int(sure.sum()),
        "mean_score": round(float(gap[:, 4:].max(1).mean()), 5),
        "mean_box_px": round(float(gap[:, :4].max(1).mean()), 4),
    }
