"""A detector as one ONNX graph that a model server can serve; the twin of `hawkeye.runtime.serving`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import artifact
from hawkeye.artifact import ModelSpec
from hawkeye.config import ServingConfig
from hawkeye.detections import Detections
from hawkeye.errors import MissingExtraError, ModelError
from hawkeye.geometry import PAD_VALUE
from hawkeye.runtime.serving import INPUT, OUTPUTS

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("compress", error.name or "onnx") from error

_OLDEST_OPSET = 13  # Resize by sizes, Pad and Split with their settings as inputs


class _Graph:
    """Nodes and constants around the network, under names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, kind: str, *inputs: str | NDArray[Any] | np.generic, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; arrays among its inputs become constants. Returns the names of its outputs."""
        names = [value if isinstance(value, str) else self.constant(np.asarray(value)) for value in inputs]
        made = [f"serving/{kind}{len(self.nodes)}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, name=f"serving/{kind}{len(self.nodes)}", **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant."""
        name = f"serving/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def save(source: Path, spec: ModelSpec, serving: ServingConfig, path: Path) -> None:
    """Write the graph of an exported ONNX file with everything around it.

    Raises:
        ModelError: not a detector's graph, or one of too old an operator set.
    """
    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf has its own kinds
        raise ModelError(f"{source} is not an ONNX file", got=type(error).__name__, mend="export it again") from None
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    graph = model.graph
    if opset < _OLDEST_OPSET or len(graph.input) != 1 or len(graph.output) != 1:
        raise ModelError(f"{source} cannot be served", got=f"opset {opset}, {len(graph.input)} inputs, "
                         f"{len(graph.output)} outputs", expected=f"opset {_OLDEST_OPSET} or more, one of each",
                         mend="export it again")  # fmt: skip
    add = _Graph()
    picture, scale, pad, hw = _letterbox(add, spec.imgsz)
    before = len(add.nodes)
    boxes, scores, classes = _detections(add, graph.output[0].name, len(spec.names), serving, scale, pad, hw)
    for name, made in zip(OUTPUTS, (boxes, scores, classes), strict=True):
        add.nodes.append(helper.make_node("Identity", [made], [name], name=f"serving/{name}"))
    for node in graph.node:
        node.input[:] = [picture if name == graph.input[0].name else name for name in node.input]
    nodes = [*add.nodes[:before], *graph.node, *add.nodes[before:]]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(add.constants)
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, "height", "width", 3]))
    for name, kind, shape in zip(OUTPUTS, (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32),
                                 (["found", 4], ["found"], ["found"]), strict=True):  # fmt: skip
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    artifact.write_bytes(path, model.SerializeToString())


def load(path: Path, *, threads: int = 1) -> Callable[[NDArray[np.uint8]], Detections]:
    """A served graph as a function of a picture (H, W, 3) of uint8 BGR: what a client would get."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: Detections(*session.run(list(OUTPUTS), {INPUT: image[None]}))


def _letterbox(add: _Graph, size: int) -> tuple[str, str, str, str]:
    """The network's input (1, 3, size, size), pixels per pixel, padding and size (2,) as y, x."""
    side = np.float32([size])
    hw = add("Cast", add("Slice", add("Shape", INPUT), np.int64([1]), np.int64([3])), to=TensorProto.FLOAT)
    longest = add("ReduceMax", hw, keepdims=1)
    inner = add("Max", add("Round", add("Div", add("Mul", hw, side), longest)), np.float32([1]))
    pad = add("Round", add("Sub", add("Div", add("Sub", side, inner), np.float32([2])), np.float32([0.1])))
    planes = add("Cast", add("Transpose", INPUT, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    whole = add("Concat", np.int64([1, 3]), add("Cast", inner, to=TensorProto.INT64), axis=0)
    scaled = add("Resize", planes, "", "", whole, mode="linear", coordinate_transformation_mode="half_pixel")
    none = np.int64([0, 0])
    after = add("Sub", add("Sub", side, inner), pad)
    pads = add("Concat", none, add("Cast", pad, to=TensorProto.INT64), none, add("Cast", after, to=TensorProto.INT64),
               axis=0)  # fmt: skip
    canvas = add("Pad", add("Round", scaled), pads, np.float32(PAD_VALUE))
    canvas = add("Reshape", canvas, np.int64([1, 3, size, size]))
    rgb = add("Gather", canvas, np.int64([2, 1, 0]), axis=1)
    return add("Div", rgb, np.float32(255)), add("Div", side, longest), pad, hw


def _detections(
    add: _Graph, raw: str, classes: int, serving: ServingConfig, scale: str, pad: str, hw: str
) -> tuple[str, str, str]:
    """Boxes, scores and classes from the raw output (1, 4 + nc, A)."""
    boxes, scores = add("Split", raw, np.int64([4, classes]), outputs=2, axis=1)
    boxes = add("Transpose", boxes, perm=[0, 2, 1])  # (1, A, 4): centre and sides
    kind = add("ArgMax", scores, axis=1, keepdims=1)  # (1, 1, A)
    best = add("Squeeze", add("GatherElements", scores, kind, axis=1), np.int64([0, 1]))  # (A,)
    # Each box stands for its best class alone, as in the runtime.
    mask = add("Equal", kind, np.arange(classes, dtype=np.int64).reshape(1, -1, 1))
    alone = add("Where", mask, scores, np.float32(0))
    chosen = add("NonMaxSuppression", boxes, alone, np.int64([serving.max_det]), np.float32([serving.iou]),
                 np.float32([serving.conf]), center_point_box=1)  # fmt: skip
    indices = add("Squeeze", add("Slice", chosen, np.int64([2]), np.int64([3]), np.int64([1])), np.int64([1]))
    # Class after class so far: the best ones first, and no more of them than were asked for.
    count = add("Min", add("Shape", indices), np.int64([serving.max_det]))
    values, order = add("TopK", add("Gather", best, indices), count, outputs=2, axis=0)
    indices = add("Gather", indices, order)
    picked = add("Gather", add("Squeeze", boxes, np.int64([0])), indices)  # (n, 4)
    centre, sides = add("Split", picked, np.int64([2, 2]), outputs=2, axis=1)
    half = add("Div", sides, np.float32(2))
    xy, wh = add("Gather", pad, np.int64([1, 0])), add("Gather", hw, np.int64([1, 0]))
    corners = [
        add("Min", add("Max", add("Div", add("Sub", add(kind_of, centre, half), xy), scale), np.float32(0)), wh)
        for kind_of in ("Sub", "Add")
    ]
    kinds = add("Gather", add("Squeeze", kind, np.int64([0, 1])), indices)
    return add("Concat", *corners, axis=1), values, add("Cast", kinds, to=TensorProto.INT32)
