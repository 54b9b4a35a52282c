"""OpenVINO's IR: reads it, gives it another input size, and puts the preprocessing into it.

What ties an exported YOLOv8 graph to its size are a few constants of its head. They are told by their values, so one
static file serves every size and shape of canvas, each as a static network of its own: INT8 at dynamic sizes has
crashed on CPUs with AMX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13
from openvino.preprocess import ColorFormat, PrePostProcessor

from hawkeye.artifact import ModelSpec
from hawkeye.errors import ModelError
from hawkeye.geometry import Size
from hawkeye.records import RuntimeName
from hawkeye.runtime import spec_from_metadata
from hawkeye.runtime.core import core
from hawkeye.runtime.head import head_constants, quicken_


@dataclass(frozen=True)
class Ir:
    """A file that was read, whole: another one may take its place while networks are still made from this.

    Attributes:
        path: its .xml.
        name: the row of the table that it is.
        spec: as it is used: `imgsz` may not be the file's own.
    """

    path: Path
    name: RuntimeName
    spec: ModelSpec
    _own: ModelSpec
    _model: ov.Model

    @classmethod
    def open(
        cls, path: Path, spec: ModelSpec | None = None, *, name: RuntimeName | None = None, imgsz: int | None = None
    ) -> Ir:
        """Read an .xml and its .bin.

        Args:
            spec: left out, it is read from the file itself.
            name: left out, openvino-int8 for an IR with quantizers and openvino-f32 for any other.
            imgsz: side of the square input in pixels, where it is not to be the one of the file.

        Raises:
            ModelError: damaged, not what `name` says, or no such size.
        """
        model = read(path)
        quantized = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        if name == "openvino-int8" and not quantized:
            raise ModelError(f"{path} is not INT8", got="no quantizers in it", expected="an IR made by quantization",
                             mend="run `hawkeye quantize`, or use openvino-f32")  # fmt: skip
        own = spec or _spec_in(model, path)
        size, coarsest = own.imgsz if imgsz is None else imgsz, max(own.strides)
        if size != own.imgsz and (size < coarsest or size % coarsest):
            raise ModelError(f"{size} is no input size of {path.name}", got=size, expected=f"a multiple of {coarsest}",
                             mend=f"try {max(1, round(size / coarsest)) * coarsest}")  # fmt: skip
        used = own.model_copy(update={"imgsz": size})
        return cls(path, name or ("openvino-int8" if quantized else "openvino-f32"), used, own, model)

    def prepared(self, canvas_hw: Size | None = None) -> ov.Model:
        """A graph as the runtime compiles it: static, one uint8 NHWC BGR canvas in, (1, 4 + nc, A) float32 out.

        Args:
            canvas_hw: height and width in pixels, multiples of the coarsest stride; left out, the square of `spec`.

        Raises:
            ModelError: not a detector, or tied to another size.
        """
        hw = canvas_hw or (self.spec.imgsz, self.spec.imgsz)
        model = self._model.clone()
        if hw != (self._own.imgsz, self._own.imgsz):
            _resize_(model, self._own, hw, self.path)
        return _prepare(model, self.spec, hw, self.path)


def read(path: Path) -> ov.Model:
    """The graph in a file.

    Raises:
        ModelError: not there, or damaged.
    """
    if not path.is_file():
        raise ModelError(f"there is no model {path}", got="no such file", mend="name an .xml with its .bin beside it")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path} has no weights", got=f"no {weights.name} beside it", mend="copy both files together")
    try:
        return core().read_model(path, weights)
    except RuntimeError as error:
        raise ModelError(f"{path} is not an OpenVINO model, or is damaged", got=reason(error),
                         mend="export the model again") from None  # fmt: skip


def reason(error: RuntimeError) -> str:
    """The one telling line of OpenVINO's message, without its source files."""
    lines = [re.sub(r"^Exception from \S+:\d+:\s*", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), "no reason given")[:300]


def _prepare(model: ov.Model, spec: ModelSpec, canvas_hw: Size, path: Path) -> ov.Model:
    """Make the input static and put the preprocessing into the graph: uint8 NHWC BGR in, float32 out."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(f"{path} is not a detector", got=f"{len(model.inputs)} inputs, {len(model.outputs)} outputs",
                         expected="one of each")  # fmt: skip
    wanted = [1, 3, *canvas_hw]
    shape = model.input().partial_shape
    if not shape.compatible(ov.PartialShape(wanted)):
        raise ModelError(f"{path} does not take pictures of {canvas_hw[1]} pixels", got=shape, expected=wanted,
                         mend=f"export it again with --imgsz {canvas_hw[1]}")  # fmt: skip
    try:
        if shape.is_dynamic:
            model.reshape(wanted)
        quicken_(model, spec, canvas_hw)
        process = PrePostProcessor(model)
        process.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(
            ColorFormat.BGR
        )
        process.input().model().set_layout(ov.Layout("NCHW"))
        steps = process.input().preprocess()
        steps.convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
        steps.convert_element_type(model.input().element_type)
        process.output().tensor().set_element_type(ov.Type.f32)
        return process.build()
    except RuntimeError as error:
        raise ModelError(f"{path} cannot be prepared", got=reason(error), mend="export the model again") from None


def _resize_(model: ov.Model, own: ModelSpec, canvas_hw: Size, path: Path) -> None:
    """Give a graph, static or dynamic, another input size.

    What ties a static YOLOv8 graph to its size are constants of the head: the cells' centres (x, y in cells), their
    strides, and target shapes that name the number of candidates. They are told by their values, so that an unknown one
    is an error and never a wrong box.

    Raises:
        ModelError: the graph holds something else that is tied to its size.
    """
    size = "x".join(map(str, dict.fromkeys(canvas_hw)))
    mend = f"export the model with --imgsz {max(canvas_hw)}, or with --dynamic"
    before, after = own.anchors, own.anchors_of(canvas_hw)
    try:
        if model.input().partial_shape.is_static:
            old, wanted = head_constants(own.strides, (own.imgsz,) * 2), head_constants(own.strides, canvas_hw)
            for node in [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]:
                shape = node.get_output_shape(0)
                if len(shape) == 0 or (before not in shape and len(shape) != 1):
                    continue
                value = node.get_data()
                targets = {port.get_node().get_type_name() for port in node.output(0).get_target_inputs()}
                if value.dtype.kind == "i" and targets == {"Reshape"} and before in value:
                    fresh = np.where(value == before, after, value)
                elif shape[-1] != before:
                    continue
                else:
                    same = [k for k, v in old.items()
                            if value.size == v.size and np.array_equal(value.reshape(v.shape), v)]  # fmt: skip
                    if not same:
                        raise ModelError(f"{path} is tied to {own.imgsz} pixels", got=node.get_friendly_name(),
                                         expected="a stock YOLOv8 head", mend=mend)  # fmt: skip
                    fresh = wanted[same[0]].reshape([*shape[:-1], after])
                constant = opset13.constant(fresh.astype(value.dtype))
                constant.set_friendly_name(node.get_friendly_name())
                for port in node.output(0).get_target_inputs():
                    port.replace_source_output(constant.output(0))
        # Not model.reshape: it checks the old shapes first, which no longer fit.
        model.get_parameters()[0].set_partial_shape(ov.PartialShape([1, 3, *canvas_hw]))
        model.validate_nodes_and_infer_types()
    except RuntimeError as error:
        raise ModelError(f"{path} cannot take pictures of {size} pixels", got=reason(error), mend=mend) from None


def _spec_in(model: ov.Model, path: Path) -> ModelSpec:
    """Spec from the IR's own `model_info`, for an .xml that was moved without its metadata.yaml."""
    info = {
        key: model.get_rt_info(["model_info", key]).astype(str)
        for key in ("labels", "model_type", "task")
        if model.has_rt_info(["model_info", key])
    }
    if "labels" not in info:
        raise ModelError(f"{path} does not tell its classes", got="no metadata.yaml and no labels in the file",
                         mend="keep the export's files together, or export the model again")  # fmt: skip
    shape = model.input().partial_shape
    size = shape[2].get_length() if len(shape) == 4 and shape[2].is_static else 0
    outputs = model.outputs[0].partial_shape
    last = outputs[len(outputs) - 1]
    for stride in (32, 64):
        try:
            # Labels are kept in one string; a blank inside a name was written as an underscore.
            values = {"names": info["labels"].split(), "imgsz": size or None, "stride": stride,
                      "task": info.get("task", "detect")}  # fmt: skip
            return spec_from_metadata(values, path, candidates=last.get_length() if last.is_static else None)
        except ModelError:
            if stride == 64:
                raise
    raise AssertionError("unreachable")
