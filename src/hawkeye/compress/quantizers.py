"""The quantizers of a calibrated network: read from OpenVINO IR, written back to it, and copied into a Q/DQ ONNX graph.

NNCF decides on OpenVINO IR where quantizers sit and where their ranges begin. Both files are written from the one
record that is read here, so they hold the same integers; quantization-aware training starts from the same record.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawkeye.compress.export import INPUT
from hawkeye.errors import ExportError, MissingExtraError
from hawkeye.runtime.core import core

try:
    import onnx
    import openvino
    from onnx import numpy_helper
    from openvino import opset13
except ImportError as error:
    raise MissingExtraError("compress", error.name or "openvino") from error

LEVELS = 256  # of a feature map: unsigned 8 bits
CONVOLUTIONS = ("Convolution", "GroupConvolution")  # of the IR; depthwise ones are of the second kind
# They only move numbers, so what they give is quantized where what they read is.
_MOVERS = ("VariadicSplit", "Split", "Slice", "StridedSlice", "Concat", "Interpolate", "MaxPool")


@dataclass
class Activation:
    """A quantizer of a feature map: one scale, unsigned 8 bits.

    Attributes:
        node: name of the node whose output it quantizes, the same in ONNX and in IR; the input's own name for pictures.
        scale: size of one step.
        zero_point: the integer that stands for 0, so that 0 is met exactly.
        group: node of the quantizer that it shares its range with; maps that meet in a concatenation share one.
        on: False where it has been taken out.
    """

    node: str
    scale: float
    zero_point: int
    group: str
    on: bool = True

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value that it can represent."""
        return -self.zero_point * self.scale, (LEVELS - 1 - self.zero_point) * self.scale


@dataclass
class Convolution:
    """A quantized convolution.

    Attributes:
        module: its name in the PyTorch network.
        kernel: float weights (O, I, kh, kw).
        bias: (O,) float32.
        scale: size of one step, (O,) or (1,) float32.
        limit: largest integer; 127, or 64 where sums of products could overflow.
        reads: nodes of the activations that its input is made of.
    """

    module: str
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    scale: NDArray[np.float32]
    limit: int
    reads: tuple[str, ...]

    def integers(self) -> NDArray[np.int8]:
        """The kernel as the exported files hold it."""
        scale = self.scale.reshape(-1, 1, 1, 1)
        return np.clip(np.rint(self.kernel / scale), -self.limit, self.limit).astype(np.int8)


@dataclass
class Quantization:
    """Every quantizer of a network: activations by node, convolutions by their node in the ONNX graph."""

    activations: dict[str, Activation] = field(default_factory=dict)
    convolutions: dict[str, Convolution] = field(default_factory=dict)

    def in_float(self) -> list[str]:
        """Convolutions that run in float, because a quantizer that they read from has been taken out."""
        return [name for name, conv in self.convolutions.items()
                if not all(self.activations[node].on for node in conv.reads)]  # fmt: skip

    def readers(self, node: str) -> list[str]:
        """Convolutions that read what an activation's quantizer gives."""
        return [name for name, conv in self.convolutions.items() if node in conv.reads]

    def widened(self, margin: float) -> Quantization:
        """A copy whose maps have ranges that are so many times as wide; the pictures' own stays, which is known."""
        activations = {name: item if item.node == INPUT else replace(item, scale=item.scale * margin)
                       for name, item in self.activations.items()}  # fmt: skip
        return Quantization(activations, dict(self.convolutions))

    def without(self, nodes: Collection[str]) -> Quantization:
        """A copy with some activations' quantizers taken out, and those that share a range with them.

        A concatenation of a quantized and a float map is read in float anyway.
        """
        groups = {self.activations[node].group for node in nodes}
        activations = {
            name: replace(item, on=item.on and item.group not in groups) for name, item in self.activations.items()
        }
        return Quantization(activations, dict(self.convolutions))


def read(model: openvino.Model, graph: onnx.ModelProto) -> Quantization:
    """The quantizers of a calibrated IR.

    Args:
        model: as NNCF calibrated it.
        graph: the float ONNX graph that it was made from: its kernels, and the names that PyTorch knows.

    Raises:
        ExportError: a quantizer of a kind, or in a place, that is not known.
    """
    convs = {node.name: node for node in graph.graph.node if node.op_type == "Conv"}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = Quantization()
    nodes = model.get_ordered_ops()
    for node in nodes:
        if node.get_type_name() == "FakeQuantize":
            activation = _activation(node)
            if activation.node in found.activations:
                raise ExportError("a feature map has two quantizers", got=activation.node, expected="one")
            found.activations[activation.node] = activation
    for node in nodes:
        kind = node.get_type_name()
        if kind == "Concat":
            _join_(found, sorted(_quantizers_before(node.input_values())))
        elif kind in CONVOLUTIONS and _kernel_constants(node) is not None:
            name = _onnx_name(node)
            if name not in convs:
                raise ExportError("a convolution of the IR is not in the ONNX graph", got=name)
            found.convolutions[name] = _convolution(node, convs[name], tensors)
    return found


def _activation(node: openvino.Node) -> Activation:
    low, high, out_low, out_high = (float(v.get_node().get_data()) for v in _one_each(node))
    levels = node.get_attributes()["levels"]
    source = node.input_value(0)
    if levels != LEVELS or (low, high) != (out_low, out_high) or source.get_index() != 0:
        raise ExportError("a quantizer is not of the kind that INT8 needs", got=f"{node.get_friendly_name()}: {levels} "
                          f"levels from {low} to {high}", expected="256 levels, the same range in and out")  # fmt: skip
    scale = (high - low) / (LEVELS - 1)
    zero_point = round(-low / scale)
    if not 0 <= zero_point < LEVELS or abs(low + zero_point * scale) > 0.01 * scale:
        raise ExportError("a quantizer cannot represent 0", got=f"{node.get_friendly_name()}: {low} to {high}")
    name = source.get_node().get_friendly_name()
    others = [t.get_node() for t in source.get_target_inputs() if t.get_node().get_type_name() != "ShapeOf"]
    if len(others) != 1:
        raise ExportError("some readers of a feature map go past its quantizer", got=name, expected="all through it")
    return Activation(name, scale, zero_point, name)


def _one_each(node: openvino.Node) -> list[openvino.Output]:
    values = node.input_values()[1:]
    if any(np.asarray(v.get_node().get_data()).size != 1 for v in values):
        raise ExportError("a feature map is quantized by channel", got=node.get_friendly_name(), expected="one range")
    return values


def _convolution(node: openvino.Node, conv: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> Convolution:
    constants = _kernel_constants(node)
    assert constants is not None
    integers, scale = constants
    kernel = numpy_helper.to_array(tensors[conv.input[1]]).astype(np.float32)
    limit = int(np.abs(integers.astype(np.int16)).max())
    add = _bias_of(node)
    reads = tuple(sorted(_quantizers_before([node.input_value(0)])))
    if not reads:
        raise ExportError("a convolution with quantized weights reads a float map", got=conv.name)
    return Convolution(conv.input[1].removesuffix(".weight"), kernel, _data(add[0].input_value(add[1])).reshape(-1),
                       scale.reshape(-1), 64 if limit <= 64 else 127, reads)  # fmt: skip


def _kernel_constants(node: openvino.Node) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Integers and scale of a quantized kernel: Multiply(Convert(int8), scale)."""
    top = node.input_value(1).get_node()
    if top.get_type_name() != "Multiply" or top.input_value(0).get_node().get_type_name() != "Convert":
        return None
    integers = top.input_value(0).get_node().input_value(0).get_node()
    if integers.get_type_name() != "Constant" or integers.get_element_type() != openvino.Type.i8:
        return None
    return integers.get_data(), _data(top.input_value(1))


def _constant(value: openvino.Output) -> openvino.Node | None:
    node = value.get_node()
    if node.get_type_name() == "Reshape":  # OpenVINO's reader gives a bias its four dimensions
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _data(value: openvino.Output) -> NDArray[np.float32]:
    node = _constant(value)
    assert node is not None
    return np.array(node.get_data(), np.float32)


def _bias_of(node: openvino.Node) -> tuple[openvino.Node, int]:
    """As `_bias`, where there has to be one."""
    if (found := _bias(node)) is None:
        raise ExportError("a convolution has no bias", got=node.get_friendly_name(),
                          expected="BatchNorm folded into it")  # fmt: skip
    return found


def _bias(node: openvino.Node) -> tuple[openvino.Node, int] | None:
    """The Add behind a convolution and the place of its constant."""
    for target in node.output(0).get_target_inputs():
        add = target.get_node()
        if add.get_type_name() == "Add":
            for i in (0, 1):
                if _constant(add.input_value(i)) is not None:
                    return add, i
    return None


def _onnx_name(node: openvino.Node) -> str:
    name: str = node.get_friendly_name()
    return name.removesuffix("/WithoutBiases")  # OpenVINO's reader takes the bias out of the convolution


def _quantizers_before(values: Sequence[openvino.Output]) -> set[str]:
    """Nodes of the activations that some values are made of, looking through what only moves numbers."""
    found, queue = set(), [value.get_node() for value in values]
    while queue:
        node = queue.pop()
        if node.get_type_name() == "FakeQuantize":
            found.add(node.input_value(0).get_node().get_friendly_name())
        elif node.get_type_name() in _MOVERS:
            every = node.get_type_name() == "Concat"
            queue += [value.get_node() for value in (node.input_values() if every else node.input_values()[:1])]
    return found


def _join_(found: Quantization, nodes: Sequence[str]) -> None:
    """Let maps that meet in a concatenation keep the one range that they were calibrated with."""
    for node in nodes[1:]:
        first, other = found.activations[nodes[0]], found.activations[node]
        if (first.scale, first.zero_point) == (other.scale, other.zero_point) and first.group != other.group:
            for activation in found.activations.values():
                if activation.group == other.group:
                    activation.group = first.group


def write_openvino_(model: openvino.Model, quantization: Quantization) -> None:
    """Give a calibrated IR other kernels, biases and ranges, and take out what is to run in float."""
    in_float = set(quantization.in_float())
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            activation = quantization.activations[node.input_value(0).get_node().get_friendly_name()]
            if not activation.on:
                for target in node.output(0).get_target_inputs():
                    target.replace_source_output(node.input_value(0))
                continue
            for i, value in enumerate(activation.range * 2, 1):
                shape = list(node.input_value(i).get_shape())
                _set_(node, i, opset13.constant(np.full(shape, value, np.float32)))
        elif node.get_type_name() in CONVOLUTIONS and _onnx_name(node) in quantization.convolutions:
            name = _onnx_name(node)
            conv = quantization.convolutions[name]
            add, place = _bias_of(node)
            _set_(add, place, opset13.constant(conv.bias.reshape(1, -1, 1, 1).astype(np.float32)))
            shape = list(node.get_input_shape(1))  # that of a depthwise kernel has the groups in front
            if name in in_float:
                _set_(node, 1, opset13.constant(conv.kernel.astype(np.float32).reshape(shape)))
                continue
            integers = opset13.convert(opset13.constant(conv.integers().reshape(shape)), "f32")
            scale = opset13.constant(conv.scale.reshape(-1, *[1] * (len(shape) - 1)).astype(np.float32))
            kernel = opset13.multiply(integers, scale)
            kernel.set_friendly_name(node.input_value(1).get_node().get_friendly_name())
            _set_(node, 1, kernel)
    model.validate_nodes_and_infer_types()


def fold_constants_(model: openvino.Model) -> int:
    """Make each convolution's bias, and a depthwise one's kernel, a plain constant; returns how many biases there are.

    OpenVINO's ONNX reader computes a bias's four dimensions, and the five of a depthwise kernel, in the graph. NNCF
    then takes the convolution for one without a bias, and leaves out the correction of biases without a word.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() not in CONVOLUTIONS or (found := _bias(node)) is None:
            continue
        add, place = found
        if node.get_type_name() == "GroupConvolution" and _constant(node.input_value(1)) is not None:
            kernel = opset13.constant(_data(node.input_value(1)).reshape(list(node.get_input_shape(1))))
            kernel.set_friendly_name(f"{_onnx_name(node)}/Kernel")
            _set_(node, 1, kernel)
        bias = opset13.constant(_data(add.input_value(place)).reshape(1, -1, 1, 1))
        bias.set_friendly_name(f"{_onnx_name(node)}/Bias")
        _set_(add, place, bias)
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _set_(node: openvino.Node, place: int, value: openvino.Node) -> None:
    node.input(place).replace_source_output(value.output(0))


def write_onnx(graph: onnx.ModelProto, quantization: Quantization) -> onnx.ModelProto:
    """A copy of a float ONNX graph with the same quantizers as QuantizeLinear and DequantizeLinear.

    Raises:
        ExportError: a node of the record is not in the graph.
    """
    if next(o.version for o in graph.opset_import if not o.domain) < 13:
        graph = onnx.version_converter.convert_version(graph, 13)  # the first with scales by channel
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    body = made.graph
    in_float = set(quantization.in_float())
    tensors = {tensor.name: tensor for tensor in body.initializer}
    output_of = {node.name: node.output[0] for node in body.node} | {INPUT: INPUT}
    through: dict[str, str] = {}  # tensor: its quantized self
    added: dict[str, list[onnx.NodeProto]] = {}  # nodes that follow the tensor
    for activation in quantization.activations.values():
        if activation.node not in output_of:
            raise ExportError("a quantizer of the IR has no place in the ONNX graph", got=activation.node)
        if not activation.on:
            continue
        value = output_of[activation.node]
        names = _constants_(body, value, np.float32(activation.scale), np.uint8(activation.zero_point))
        through[value] = f"{value}_dequantized"
        added[value] = [
            onnx.helper.make_node("QuantizeLinear", [value, *names], [f"{value}_quantized"], f"{value}/Quantize"),
            onnx.helper.make_node("DequantizeLinear", [f"{value}_quantized", *names], [through[value]],
                                  f"{value}/Dequantize"),
        ]  # fmt: skip
    nodes = list(added.get(INPUT, ()))
    for node in body.node:
        if node.op_type != "Shape":  # a shape is the same before and after
            for i, name in enumerate(node.input):
                node.input[i] = through.get(name, name)
        conv = quantization.convolutions.get(node.name)
        if conv is not None:
            kernel, bias = node.input[1], node.input[2]
            tensors[bias].CopyFrom(numpy_helper.from_array(conv.bias.astype(np.float32), bias))
            if node.name in in_float:
                tensors[kernel].CopyFrom(numpy_helper.from_array(conv.kernel.astype(np.float32), kernel))
            else:
                tensors[kernel].CopyFrom(numpy_helper.from_array(conv.integers(), kernel))
                scale = conv.scale.astype(np.float32)
                by_channel = {"axis": 0} if scale.size > 1 else {}
                scale = scale if scale.size > 1 else scale[0]
                names = _constants_(body, kernel, scale, np.zeros(scale.shape, np.int8))
                node.input[1] = f"{kernel}_dequantized"
                nodes.append(onnx.helper.make_node("DequantizeLinear", [kernel, *names], [node.input[1]],
                                                   f"{kernel}/Dequantize", **by_channel))  # fmt: skip
        nodes.append(node)
        for output in node.output:
            nodes += added.get(output, ())
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del body.node[:]
    body.node.extend(kept)
    onnx.checker.check_model(made)
    return made


def _constants_(body: onnx.GraphProto, value: str, scale: object, zero_point: object) -> list[str]:
    """Add scale and zero point of a tensor to a graph; returns their names."""
    names = [f"{value}_scale", f"{value}_zero_point"]
    for name, constant in zip(names, (scale, zero_point), strict=True):
        body.initializer.append(numpy_helper.from_array(np.asarray(constant), name))
    return names


def read_ir(path: Path) -> openvino.Model:
    """An IR file."""
    return core().read_model(str(path))


def load(model: Path, graph: Path) -> Quantization:
    """The quantizers of an INT8 IR file that was made from a float ONNX file, with the kernels that it computes with.

    Those are integers times a scale: training may have moved them from the float ones.
    """
    ir = read_ir(model)
    found = read(ir, onnx.load(graph))
    for node in ir.get_ordered_ops():
        if node.get_type_name() in CONVOLUTIONS and (held := _kernel_constants(node)) is not None:
            conv = found.convolutions[_onnx_name(node)]
            conv.kernel = held[0].reshape(conv.kernel.shape) * conv.scale.reshape(-1, 1, 1, 1)
    return found
