"""OpenVINO: the picture goes in as the uint8 canvas, and layout, colour order and scaling happen inside the graph.

Precision is always asked for by name: left alone, OpenVINO computes in bfloat16 where the CPU has it, and a row called
FP32 would be a lie.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13
from openvino.preprocess import ColorFormat, PrePostProcessor

from hawkeye.artifact import ModelSpec
from hawkeye.environment import affinity, cpu_count
from hawkeye.errors import ModelError
from hawkeye.records import RuntimeName
from hawkeye.runtime import check_output, spec_beside, spec_from_metadata

# What each row asks OpenVINO for. The float parts of an INT8 model are fixed to f32 as well.
_HINTS: dict[str, str | None] = {"openvino-f32": "f32", "openvino-int8": "f32", "openvino-default": None}


class OpenVinoRuntime:
    """One compiled model of static size with one reused request; see `Runtime`.

    Args:
        path: the .xml of an IR: ours, or a stock export (FP32, FP16 or INT8).
        spec: left out, it is read from the IR's own metadata.
        name: left out, openvino-int8 for an IR with quantizers and openvino-f32 for any other.
        threads: 0 takes all cores that the process may use.
        cache_dir: where OpenVINO may keep compiled models, to start faster the next time.
        imgsz: side of the input in pixels, where it is not to be the one of the file.

    Raises:
        ModelError: damaged, not a detector, its input or output does not fit the spec, or it cannot take that size.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec | None = None,
        *,
        name: RuntimeName | None = None,
        threads: int = 0,
        cache_dir: Path | None = None,
        imgsz: int | None = None,
    ) -> None:
        self._origin = (path, spec, name, imgsz)
        model, self.spec, self.name = _open(*self._origin)
        self.threads = threads or cpu_count()
        hint = _HINTS[self.name]
        self.precision_hint = hint or "default"
        self._compiled = _compile(_prepare(model, self.spec, path), path, hint, self.threads, "LATENCY", cache_dir)
        check_output(self.spec, tuple(self._compiled.output(0).shape), path)
        self.precision_executed = _summary(_executed(self._compiled))
        self._request = self._compiled.create_infer_request()
        self._canvas: NDArray[np.uint8] | None = None

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.infer`. The canvas is read in place; hand in the same array each time to bind it only once."""
        if canvas is not self._canvas:
            _check_canvas(canvas, self.spec.imgsz)
            self._request.set_input_tensor(ov.Tensor(canvas[None], shared_memory=True))
            self._canvas = canvas  # also keeps the memory alive for as long as the request reads it
        self._request.infer()
        raw: NDArray[np.float32] = self._request.get_output_tensor().data[0]
        return raw

    def queue(self) -> OpenVinoQueue:
        """The same network at the same size once more, compiled for several requests in flight."""
        return OpenVinoQueue(*self._origin, threads=self.threads)


class OpenVinoQueue:
    """Several requests of one network in flight; one long-lived queue, fed from one thread.

    Each request has its own canvas for as long as it lives, bound once: nothing is freed or written while it is read.

    Args:
        path, spec, name, imgsz, threads: as `OpenVinoRuntime` takes them.

    Attributes:
        spec: input size, class names, strides.
        requests: how many OpenVINO thinks best here.

    Raises:
        ModelError: as `OpenVinoRuntime`.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec | None = None,
        name: RuntimeName | None = None,
        imgsz: int | None = None,
        *,
        threads: int = 0,
    ) -> None:
        model, self.spec, self.name = _open(path, spec, name, imgsz)
        prepared = _prepare(model, self.spec, path)
        compiled = _compile(prepared, path, _HINTS[self.name], threads or cpu_count(), "THROUGHPUT", None)
        check_output(self.spec, tuple(compiled.output(0).shape), path)
        self.requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._queue = ov.AsyncInferQueue(compiled, self.requests)
        self._canvases: list[NDArray[np.uint8]] = []
        for request in self._queue:
            canvas = np.full((1, self.spec.imgsz, self.spec.imgsz, 3), 114, np.uint8)
            request.set_input_tensor(ov.Tensor(canvas, shared_memory=True))
            self._canvases.append(canvas)
        self._queue.set_callback(_finish)

    def start(self, fill: Callable[[NDArray[np.uint8]], None], done: Callable[[NDArray[np.float32]], None]) -> None:
        """Fill an idle request's canvas (size, size, 3) and begin; waits while every request is busy.

        Args:
            fill: writes the picture into the canvas.
            done: gets the raw output (4 + nc, A) in a thread of OpenVINO's; it is valid only until `done` returns.
        """
        # The request that is idle now is the one that start_async takes, as nobody else starts any.
        fill(self._canvases[self._queue.get_idle_request_id()][0])
        self._queue.start_async(userdata=done)

    def close(self) -> None:
        """Wait for all requests."""
        self._queue.wait_all()


def _finish(request: Any, done: Callable[[NDArray[np.float32]], None]) -> None:
    done(request.get_output_tensor().data[0])


def _open(
    path: Path, spec: ModelSpec | None, name: RuntimeName | None, imgsz: int | None
) -> tuple[ov.Model, ModelSpec, RuntimeName]:
    """Read an IR, give it the size that is wanted, and tell which row of the table it is."""
    model = _read(path)
    quantized = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    if name == "openvino-int8" and not quantized:
        raise ModelError(f"{path} is not INT8", got="no quantizers in it", expected="an IR made by quantization",
                         mend="run `hawkeye quantize`, or use openvino-f32")  # fmt: skip
    spec = spec or _own_spec(model, path)
    if imgsz is not None and imgsz != spec.imgsz:
        spec = _resize_(model, spec, imgsz, path)
    return model, spec, name or ("openvino-int8" if quantized else "openvino-f32")


def open_prepared(path: Path, spec: ModelSpec | None = None) -> ov.Model:
    """An IR as the runtime compiles it: static, one uint8 NHWC BGR canvas in, (1, 4 + nc, A) float32 out.

    Raises:
        ModelError: damaged, or not a detector.
    """
    model, spec, _ = _open(path, spec, None, None)
    return _prepare(model, spec, path)


def throughput(path: Path, spec: ModelSpec, *, runtime: RuntimeName, threads: int = 0, seconds: float = 1.5) -> float:
    """Frames per second with as many requests in flight as OpenVINO thinks best, the network alone."""
    return rate(OpenVinoQueue(path, spec, runtime, threads=threads), seconds)


def rate(queue: OpenVinoQueue, seconds: float = 1.5) -> float:
    """Frames per second of a queue with all its requests in flight, the network alone."""

    def same(_: NDArray[Any]) -> None:
        """The canvas stays as it is, and the output is not wanted."""

    for _ in range(queue.requests):  # warm-up
        queue.start(same, same)
    queue.close()
    started, frames = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or frames < 2 * queue.requests:
        queue.start(same, same)  # waits for a free request
        frames += 1
    queue.close()
    return frames / (time.perf_counter() - started)


def capabilities() -> dict[str, Any]:
    """OpenVINO's `version`, and the `precisions` that it can compute in on this CPU, such as "FP32" or "INT8"."""
    known = ("FP32", "BF16", "FP16", "INT8")
    found = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"version": ov.get_version().partition("-")[0], "precisions": [name for name in known if name in found]}


def execution_precisions(path: Path, *, hint: str | None = "f32", threads: int = 0) -> list[dict[str, Any]]:
    """What this CPU really computes for an IR, layer by layer, in order of execution.

    Each row: `name`, `kind`, `precision` (such as "f32", "bf16", "i8"), `primitive` (OpenVINO's kernel), and `layers`,
    the names of the graph's layers that were fused into it.

    Raises:
        ModelError: damaged, or OpenVINO cannot compile it.
    """
    compiled = _compile(_read(path), path, hint, threads or cpu_count(), "LATENCY", None)
    return _executed(compiled)


def _read(path: Path) -> ov.Model:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path} has no weights", got=f"no {weights.name} beside it", mend="copy both files together")
    try:
        return ov.Core().read_model(path, weights)
    except RuntimeError as error:
        raise ModelError(f"{path} is not an OpenVINO model, or is damaged", got=_reason(error),
                         mend="export the model again") from None  # fmt: skip


def _prepare(model: ov.Model, spec: ModelSpec, path: Path) -> ov.Model:
    """Make the input static and put the preprocessing into the graph: uint8 NHWC BGR in, float32 out."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(f"{path} is not a detector", got=f"{len(model.inputs)} inputs, {len(model.outputs)} outputs",
                         expected="one of each")  # fmt: skip
    wanted = [1, 3, spec.imgsz, spec.imgsz]
    shape = model.input().partial_shape
    if not shape.compatible(ov.PartialShape(wanted)):
        raise ModelError(f"{path} does not take pictures of {spec.imgsz} pixels", got=shape, expected=wanted,
                         mend=f"export it again with --imgsz {spec.imgsz}")  # fmt: skip
    try:
        if shape.is_dynamic:
            model.reshape(wanted)  # INT8 at dynamic sizes has crashed on CPUs with AMX: always compile one static size
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
        raise ModelError(f"{path} cannot be prepared", got=_reason(error), mend="export the model again") from None


def _resize_(model: ov.Model, spec: ModelSpec, imgsz: int, path: Path) -> ModelSpec:
    """Give a static graph another input size; returns its new spec.

    What ties a YOLOv8 graph to its size are constants of the head: the cells' centres (x, y in cells), their strides,
    and target shapes that name the number of candidates. They are told by their values, so that an unknown one is an
    error and never a wrong box.

    Raises:
        ModelError: the size does not fit the strides, or the graph holds something else that is tied to its size.
    """
    coarsest = max(spec.strides)
    if imgsz < coarsest or imgsz % coarsest:
        raise ModelError(f"{imgsz} is no input size of {path.name}", got=imgsz, expected=f"a multiple of {coarsest}",
                         mend=f"try {max(1, round(imgsz / coarsest)) * coarsest}")  # fmt: skip
    new = spec.model_copy(update={"imgsz": imgsz})
    mend = f"export the model with --imgsz {imgsz}, or with --dynamic"
    try:
        if model.input().partial_shape.is_static:
            old, wanted = _head_constants(spec), _head_constants(new)
            for node in [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]:
                shape = node.get_output_shape(0)
                if len(shape) == 0 or (spec.anchors not in shape and len(shape) != 1):
                    continue
                value = node.get_data()
                targets = {port.get_node().get_type_name() for port in node.output(0).get_target_inputs()}
                if value.dtype.kind == "i" and targets == {"Reshape"} and spec.anchors in value:
                    fresh = np.where(value == spec.anchors, new.anchors, value)
                elif shape[-1] != spec.anchors:
                    continue
                else:
                    same = [k for k, v in old.items()
                            if value.size == v.size and np.array_equal(value.reshape(v.shape), v)]  # fmt: skip
                    if not same:
                        raise ModelError(f"{path} is tied to {spec.imgsz} pixels", got=node.get_friendly_name(),
                                         expected="a stock YOLOv8 head", mend=mend)  # fmt: skip
                    fresh = wanted[same[0]].reshape([*shape[:-1], new.anchors])
                constant = opset13.constant(fresh.astype(value.dtype))
                constant.set_friendly_name(node.get_friendly_name())
                for port in node.output(0).get_target_inputs():
                    port.replace_source_output(constant.output(0))
        # Not model.reshape: it checks the old shapes first, which no longer fit.
        model.get_parameters()[0].set_partial_shape(ov.PartialShape([1, 3, imgsz, imgsz]))
        model.validate_nodes_and_infer_types()
    except RuntimeError as error:
        raise ModelError(f"{path} cannot take pictures of {imgsz} pixels", got=_reason(error), mend=mend) from None
    return new


def _head_constants(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """What a YOLOv8 head keeps for each candidate: centres (2, A) in cells and in pixels, strides (1, A)."""
    centres, strides = [], []
    for stride in spec.strides:
        side = spec.imgsz // stride
        y, x = np.divmod(np.arange(side * side), side)
        centres.append(np.stack([x, y]) + 0.5)
        strides.append(np.full((1, side * side), stride))
    cells, step = np.concatenate(centres, 1).astype(np.float32), np.concatenate(strides, 1).astype(np.float32)
    return {"cells": cells, "strides": step, "pixels": cells * step}


def _compile(
    model: ov.Model, path: Path, hint: str | None, threads: int, mode: str, cache_dir: Path | None
) -> ov.CompiledModel:
    # Threads that are tied to cores begin with the first one, in every process: several workers would share it.
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": mode,
                               "ENABLE_CPU_PINNING": threads >= affinity()}  # fmt: skip
    if hint is not None:
        options["INFERENCE_PRECISION_HINT"] = hint
    if cache_dir is not None:
        options["CACHE_DIR"] = str(cache_dir)
    try:
        return ov.Core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot compile {path}", got=_reason(error), mend="export the model again") from None


def _own_spec(model: ov.Model, path: Path) -> ModelSpec:
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


def _executed(compiled: ov.CompiledModel) -> list[dict[str, Any]]:
    rows = []
    for op in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) if hasattr(value, "astype") else str(value)
                for key, value in op.get_rt_info().items()}  # fmt: skip
        rows.append({
            "order": int(info.get("execOrder", 0)),
            "name": op.get_friendly_name(),
            "kind": info.get("layerType", op.get_type_name()),
            "precision": info.get("runtimePrecision", "unknown"),
            "primitive": info.get("primitiveType", "unknown"),
            "layers": info.get("originalLayersNames", "").split(",") if info.get("originalLayersNames") else [],
        })  # fmt: skip
    rows.sort(key=lambda row: row.pop("order"))
    return rows


def _summary(rows: list[dict[str, Any]]) -> str:
    """Convolutions by precision, such as "i8 x57, f32 x7"."""
    counts = Counter(_PRECISION.get(row["precision"], row["precision"])
                     for row in rows if row["kind"] in ("Convolution", "Convolution_Fused"))  # fmt: skip
    return ", ".join(f"{precision} x{count}" for precision, count in counts.most_common()) or "no convolutions"


_PRECISION = {"u8": "i8"}  # unsigned activations: the same INT8 kernels


def _check_canvas(canvas: NDArray[np.uint8], size: int) -> None:
    if canvas.shape != (size, size, 3) or canvas.dtype != np.uint8 or not canvas.flags.c_contiguous:
        raise ModelError("the canvas does not fit the network", got=f"{canvas.dtype} {canvas.shape}",
                         expected=f"contiguous uint8 ({size}, {size}, 3)")  # fmt: skip


def _reason(error: RuntimeError) -> str:
    """The one telling line of OpenVINO's message, without its source files."""
    lines = [re.sub(r"^Exception from \S+:\d+:\s*", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), "no reason given")[:300]


def read_spec(path: Path) -> ModelSpec:
    """Spec of an IR, from the files beside it or from the file itself."""
    return spec_beside(path) or _own_spec(_read(path), path)
