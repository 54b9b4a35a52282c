"""The last step of a YOLOv8 graph, from the head's last convolutions to boxes and scores, in a quicker order.

Convolutions leave their maps channels last. An exported head then turns all of them around, joins them, turns the box
distributions around once more for their softmax, and takes sigmoids of all classes at the end: many passes over four
megabytes of float. Here the exponentials of a distribution and its two sums, weighted and plain, are taken where the
map lies, by a 1x1 convolution, and 8 numbers a cell are turned around instead of 64; scores go through their sigmoid
at the convolution. These are the same sums in another order, so results agree to a few units of the last place.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from hawkeye.artifact import ModelSpec
from hawkeye.geometry import Size

log = logging.getLogger("hawkeye.runtime")
# What stands between the box distributions and the boxes, with constants; anything else is another head.
_DECODE = {"Softmax": 1, "Convolution": 1, "Subtract": 2, "Add": 2, "Concat": 1, "Multiply": 1, "Divide": 1}
_SHAPING = {"Reshape", "Transpose", "Slice", "StridedSlice", "Split", "VariadicSplit", "ShapeOf", "Broadcast",
            "Convert", "Constant"}  # fmt: skip
_LARGEST = 80.0  # of a logit: its exponential is still a float32, and no trained head comes near


def quicken_(model: ov.Model, spec: ModelSpec, canvas_hw: Size) -> bool:
    """Reorder what follows the head's last convolutions, if the graph is that of a stock YOLOv8 head of static size.

    Returns:
        Whether it is; any other graph is left as it is, and computes what it always did.
    """
    found = _maps(model, spec, canvas_hw)
    if found is None:
        log.debug("%s has no stock head of static size; it is computed as it stands", model.get_friendly_name())
        return False
    boxes, classes = found
    scores = [op.reshape(op.sigmoid(value), _ints(0, 0, -1), True) for value in classes]
    raw = op.concat([_boxes(boxes, spec, canvas_hw), op.concat(scores, 2)], 1)
    last = model.get_results()[0].input(0)
    raw.output(0).get_tensor().set_names(last.get_source_output().get_names())
    raw.set_friendly_name(last.get_source_output().get_node().get_friendly_name())
    last.replace_source_output(raw.output(0))
    model.validate_nodes_and_infer_types()
    return True


def head_constants(strides: tuple[int, ...], canvas_hw: Size) -> dict[str, NDArray[np.float32]]:
    """What a YOLOv8 head keeps for each candidate: centres (2, A) in cells and in pixels, strides (1, A)."""
    centres, steps = [], []
    for stride in strides:
        height, width = (side // stride for side in canvas_hw)
        y, x = np.divmod(np.arange(height * width), width)
        centres.append(np.stack([x, y]) + 0.5)
        steps.append(np.full((1, height * width), stride))
    cells, step = np.concatenate(centres, 1).astype(np.float32), np.concatenate(steps, 1).astype(np.float32)
    return {"cells": cells, "strides": step, "pixels": cells * step}


def _boxes(maps: Sequence[ov.Output], spec: ModelSpec, canvas_hw: Size) -> ov.Node:
    """Centre and sides (1, 4, A) in pixels, from box distributions (1, 4 * bins, h, w) of each level."""
    bins = maps[0].get_shape()[1] // 4
    kernel = np.zeros((8, 4 * bins, 1, 1), np.float32)
    for side in range(4):
        kernel[side, side * bins : (side + 1) * bins, 0, 0] = np.arange(bins)
        kernel[4 + side, side * bins : (side + 1) * bins] = 1
    sums = []
    for value in maps:
        weights = op.exp(op.clamp(value, -_LARGEST, _LARGEST))
        both = op.convolution(weights, op.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])
        sums.append(op.reshape(both, _ints(0, 0, -1), True))
    weighted, plain = op.variadic_split(op.concat(sums, 2), np.int64(1), _ints(4, 4)).outputs()
    near, far = op.variadic_split(op.divide(weighted, plain), np.int64(1), _ints(2, 2)).outputs()
    known = head_constants(spec.strides, canvas_hw)
    cells, strides = op.constant(known["cells"][None]), op.constant(known["strides"][None])
    centre = op.add(cells, op.multiply(op.subtract(far, near), op.constant(np.float32(0.5))))
    return op.multiply(op.concat([centre, op.add(near, far)], 1), strides)


def _maps(model: ov.Model, spec: ModelSpec, canvas_hw: Size) -> tuple[list[ov.Output], list[ov.Output]] | None:
    """The head's last maps, of boxes and of classes, by level; None where the graph is not what it is taken for."""
    last = model.get_results()[0].input_value(0).get_node()
    if last.get_type_name() != "Concat" or last.get_input_size() != 2:
        return None
    boxes, scores = (value.get_node() for value in last.input_values())
    if scores.get_type_name() != "Sigmoid":
        return None
    classes = _levels(scores.input_value(0).get_node())
    softmax = _softmax_behind(boxes, spec, canvas_hw)
    if softmax is None:
        return None
    turned = softmax.input_value(0).get_node()
    split = turned.input_value(0).get_node()
    if (turned.get_type_name(), split.get_type_name()) != ("Transpose", "Reshape"):
        return None
    distributions, bins = _levels(split.input_value(0).get_node()), softmax.get_output_shape(0)[1]
    cells = [[side // stride for side in canvas_hw] for stride in spec.strides]
    if [list(m.get_shape()) for m in classes] != [[1, len(spec.names), *hw] for hw in cells]:
        return None
    if [list(m.get_shape()) for m in distributions] != [[1, 4 * bins, *hw] for hw in cells]:
        return None
    return distributions, classes


def _levels(joined: ov.Node) -> list[ov.Output]:
    """The maps (1, c, h, w) that a concatenation joins as (1, c, h * w); none where it joins anything else."""
    if joined.get_type_name() != "Concat":
        return []
    parts = [value.get_node() for value in joined.input_values()]
    if any(part.get_type_name() != "Reshape" for part in parts):
        return []
    maps = [part.input_value(0) for part in parts]
    return maps if all(m.get_partial_shape().is_static for m in maps) else []


def _softmax_behind(boxes: ov.Node, spec: ModelSpec, canvas_hw: Size) -> ov.Node | None:
    """The softmax that boxes come from, if all that stands between is a stock head's decoding for this canvas."""
    kinds: Counter[str] = Counter()
    constants: list[NDArray[np.generic]] = []
    seen, waiting, softmax = {boxes.get_friendly_name()}, [boxes], None
    while waiting:
        node = waiting.pop()
        kind = node.get_type_name()
        if kind not in _SHAPING:
            kinds[kind] += 1
        if kind == "Softmax":
            softmax = node
            continue
        if kind == "Constant":
            constants.append(node.get_data())
        for value in node.input_values():
            source = value.get_node()
            if source.get_friendly_name() not in seen:
                seen.add(source.get_friendly_name())
                waiting.append(source)
    if kinds != _DECODE or softmax is None:
        return None
    known = head_constants(spec.strides, canvas_hw)
    bins = np.arange(softmax.get_output_shape(0)[1], dtype=np.float32)
    for wanted in (known["cells"], known["strides"], bins):
        if not any(c.size == wanted.size and np.array_equal(c.reshape(wanted.shape), wanted) for c in constants):
            return None
    return softmax


def _ints(*values: int) -> ov.Node:
    return op.constant(np.array(values, np.int64))
