"""A detector as one OpenVINO graph that a model server can serve: any picture in, boxes in its own pixels out.

Letterbox, decoding and non-maximum suppression are in the graph, so a client sends a picture as it is, uint8 BGR in
any size, and gets `boxes` (N, 4) as x1, y1, x2, y2, `scores` (N,) and `classes` (N,), best first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from hawkeye.artifact import ModelSpec
from hawkeye.config import ServingConfig
from hawkeye.detections import Detections
from hawkeye.errors import ExportError
from hawkeye.geometry import PAD_VALUE
from hawkeye.runtime.core import core
from hawkeye.runtime.ir import Ir

_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")  # how OpenVINO names what nobody has named, counted over the whole process
INPUT, OUTPUTS = "image", ("boxes", "scores", "classes")


def save(source: Path, spec: ModelSpec, serving: ServingConfig, path: Path) -> None:
    """Write the graph of an exported IR with everything around it.

    Raises:
        ModelError: the IR is not a detector, or is damaged.
        ExportError: the disk refused.
    """
    network = Ir.open(source, spec).prepared()  # uint8 NHWC BGR canvas in, as in the runtime
    image = op.parameter([1, -1, -1, 3], np.uint8, name=INPUT)
    image.set_layout(ov.Layout("NHWC"))
    canvas, scale, pad, hw = _letterbox(image, spec.imgsz)
    canvas = op.convert(op.transpose(canvas, _ints(0, 2, 3, 1)), "u8")
    for port in network.get_parameters()[0].output(0).get_target_inputs():
        port.replace_source_output(canvas.output(0))
    raw = network.get_results()[0].input_value(0)
    results = _detections(raw, len(spec.names), serving, scale, pad, hw)
    for node, name in zip(results, OUTPUTS, strict=True):
        node.output(0).get_tensor().set_names({name})
        node.set_friendly_name(name)
    image.output(0).get_tensor().set_names({INPUT})
    model = ov.Model([op.result(node) for node in results], [image], "hawkeye")
    for number, node in enumerate(model.get_ordered_ops()):
        if _COUNTED.fullmatch(node.get_friendly_name()):  # or the same model would be written differently each time
            node.set_friendly_name(f"serving/{node.get_type_name()}{number}")
    model.set_rt_info(" ".join(name.replace(" ", "_") for name in spec.names), ["model_info", "labels"])
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's own kind of "cannot write"
        raise ExportError(f"OpenVINO could not write {path}", got=str(error).splitlines()[0]) from None


def load(path: Path, *, threads: int = 1) -> Any:
    """A served graph as a function of a picture (H, W, 3) of uint8 BGR: what a client would get."""
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32",
                                                  "INFERENCE_NUM_THREADS": threads})  # fmt: skip

    def detect(image: NDArray[np.uint8]) -> Detections:
        result = compiled(image[None])
        boxes, scores, classes = (result[name].copy() for name in OUTPUTS)
        return Detections(boxes, scores, classes)

    return detect


def _letterbox(image: ov.Node, size: int) -> tuple[ov.Node, ov.Node, ov.Node, ov.Node]:
    """The picture in a square of `size` (1, 3, size, size), pixels per pixel, padding and size (2,) as y, x."""
    hw = op.convert(op.gather(op.shape_of(image), _ints(1, 2), _ints(0, whole=True)), "f32")
    longest = op.reduce_max(hw, _ints(0), True)  # (1,)
    # One division of whole numbers, which float32 holds: it rounds as the runtime's float64 does.
    inner = op.round(op.divide(op.multiply(hw, _float(size)), longest), "half_to_even")
    inner = op.maximum(inner, _float(1))
    pad = op.round(op.subtract(op.divide(op.subtract(_float(size), inner), _float(2)), _float(0.1)), "half_to_even")
    planes = op.convert(op.transpose(image, _ints(0, 3, 1, 2)), "f32")
    scaled = op.interpolate(planes, op.convert(inner, "i64"), "linear_onnx", "sizes", axes=_ints(2, 3),
                            coordinate_transformation_mode="half_pixel")  # fmt: skip
    none = _ints(0, 0)
    before = op.concat([none, op.convert(pad, "i64")], 0)
    after = op.concat([none, op.convert(op.subtract(op.subtract(_float(size), inner), pad), "i64")], 0)
    canvas = op.pad(op.round(scaled, "half_to_even"), before, after, "constant", _float(PAD_VALUE))
    # The sizes are known again from here on: INT8 kernels want static ones.
    canvas = op.reshape(canvas, _ints(1, 3, size, size), False)
    return canvas, op.divide(_float(size), longest), pad, hw


def _detections(
    raw: ov.Output, classes: int, serving: ServingConfig, scale: ov.Node, pad: ov.Node, hw: ov.Node
) -> tuple[ov.Node, ov.Node, ov.Node]:
    """Boxes, scores and classes from the raw output (1, 4 + nc, A)."""
    parts = op.variadic_split(raw, np.int64(1), _ints(4, classes))
    boxes, scores = op.transpose(parts.output(0), _ints(0, 2, 1)), parts.output(1)  # (1, A, 4): centre and sides
    best = op.topk(scores, np.int64(1), 1, "max", "value", "i64")
    kind = best.output(1)  # (1, 1, A)
    # Each box stands for its best class alone, as in the runtime.
    mask = op.equal(kind, op.constant(np.arange(classes, dtype=np.int64).reshape(1, -1, 1)))
    alone = op.select(mask, scores, _float(0))
    chosen = op.non_max_suppression(
        boxes, alone, np.int64(serving.max_det), _float(serving.iou), _float(serving.conf), box_encoding="center",
        sort_result_descending=True, output_type="i64",
    )  # fmt: skip
    indices = op.gather(chosen.output(0), op.constant(np.int64(2)), op.constant(np.int64(1)))  # (n,)
    indices = op.slice(indices, _ints(0), _ints(serving.max_det), _ints(1))
    first = op.constant(np.int64(0))
    picked = op.gather(op.squeeze(boxes, _ints(0)), indices, first)  # (n, 4)
    sides = op.variadic_split(picked, np.int64(1), _ints(2, 2))
    centre, half = sides.output(0), op.divide(sides.output(1), _float(2))
    xy = op.gather(pad, _ints(1, 0), first)
    wh = op.gather(hw, _ints(1, 0), first)
    corners = [
        op.minimum(op.maximum(op.divide(op.subtract(corner, xy), scale), _float(0)), wh)
        for corner in (op.subtract(centre, half), op.add(centre, half))
    ]
    kinds = op.convert(op.gather(op.squeeze(kind, _ints(0, 1)), indices, first), "i32")
    values = op.gather(op.squeeze(best.output(0), _ints(0, 1)), indices, first)
    return op.concat(corners, 1), values, kinds


def _ints(*values: int, whole: bool = False) -> ov.Node:
    return op.constant(np.int64(values[0]) if whole else np.array(values, np.int64))


def _float(value: float) -> ov.Node:
    return op.constant(np.float32(value))
