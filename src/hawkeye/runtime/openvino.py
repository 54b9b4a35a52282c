"""OpenVINO: the picture goes in as the uint8 canvas, and layout, colour order and scaling happen inside the graph.

Precision is always asked for by name: left alone, OpenVINO computes in bfloat16 where the CPU has it, and a row called
FP32 would be a lie.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from hawkeye.artifact import ModelSpec
from hawkeye.environment import cpu_count
from hawkeye.errors import ModelError
from hawkeye.geometry import PAD_VALUE, Size, rectangle
from hawkeye.records import RuntimeName
from hawkeye.runtime import check_output
from hawkeye.runtime.core import core, on_threads
from hawkeye.runtime.ir import Ir, read, reason

log = logging.getLogger("hawkeye.runtime")
# What each row asks OpenVINO for. The float parts of an INT8 model are fixed to f32 as well.
_HINTS: dict[str, str | None] = {"openvino-f32": "f32", "openvino-int8": "f32", "openvino-default": None}
_Done = Callable[[NDArray[np.float32]], None]
T = TypeVar("T")


class _Shapes(Generic[T]):
    """What is made of an IR for each shape of canvas: one at once, the others when they are first asked for.

    Safe to use from several threads. What is made is kept; `rectangle` knows five shapes.

    Args:
        make: compiles one shape and wraps it.
        first: the shape that is made at once; left out, the square.
    """

    def __init__(self, ir: Ir, make: Callable[[Size], T], first: Size | None = None) -> None:
        self._ir, self._make, self._lock = ir, make, threading.Lock()
        self.square: Size = (ir.spec.imgsz, ir.spec.imgsz)
        first = first or self.square
        self.made: dict[Size, T] = {first: make(first)}
        self._tied = False

    def get(self, hw: Size) -> T | None:
        """What is made for a shape, and for the square in any case."""
        if hw == self.square and hw not in self.made:
            with self._lock:
                if hw not in self.made:
                    self.made[hw] = self._make(hw)
        return self.made.get(hw)

    def canvas_for(self, source_hw: Size) -> Size:
        """See `Runtime.canvas_for`. A graph that cannot be given a rectangle takes the square, and the log says so."""
        spec = self._ir.spec
        hw = rectangle(source_hw, spec.imgsz, max(spec.strides))
        if hw in self.made:
            return hw
        with self._lock:
            if hw not in self.made and not self._tied:
                try:
                    self.made[hw] = self._make(hw)
                except ModelError as error:
                    self._tied = True
                    log.warning("%s takes square pictures only, so all others are padded and cost as much as square "
                                "ones: %s", self._ir.path, error.summary)  # fmt: skip
        return hw if hw in self.made else self.square


class OpenVinoRuntime:
    """Compiled models of static size, one for each shape of canvas, with one reused request each; see `Runtime`.

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
        self._ir = Ir.open(path, spec, name=name, imgsz=imgsz)
        self.spec, self.name = self._ir.spec, self._ir.name
        self.threads, self._cache_dir = threads or cpu_count(), cache_dir
        self.precision_hint = _HINTS[self.name] or "default"
        self._networks = self._compiled_for("LATENCY", (self.spec.imgsz, self.spec.imgsz))
        self._requests: dict[Size, _Request] = {}
        self._shared = False
        self.precision_executed = convolutions(_executed(self._networks.made[self._networks.square]))

    def canvas_for(self, source_hw: Size) -> Size:
        """See `Runtime.canvas_for`. The first picture of a shape waits for the compilation of its network."""
        return self._networks.canvas_for(source_hw)

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.infer`. The canvas is read in place; hand in the same array each time to bind it only once."""
        hw = (canvas.shape[0], canvas.shape[1]) if canvas.ndim == 3 else (0, 0)
        network = self._networks.get(hw)
        if network is None or canvas.shape[2] != 3 or canvas.dtype != np.uint8 or not canvas.flags.c_contiguous:
            raise ModelError("the canvas does not fit the network", got=f"{canvas.dtype} {canvas.shape}",
                             expected=f"contiguous uint8 (h, w, 3) of a shape that `canvas_for` gave, such as "
                                      f"{(*self._networks.square, 3)}")  # fmt: skip
        request = self._requests.get(hw)
        if request is None:
            request = self._requests[hw] = _Request(network, shared=self._shared)
        return request(canvas)

    def replicas(self, canvas_hw: Size) -> list[OpenVinoRuntime]:
        """The same network for several threads at the same time, each of which takes one of these for itself.

        They share the cores between them: more pictures per second than all cores on one picture give, each later.
        Compiled once for all, for one shape of canvas at first; as many as OpenVINO thinks best here.
        """
        networks = self._compiled_for("THROUGHPUT", canvas_hw)
        count = int(networks.made[canvas_hw].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        replicas = [copy.copy(self) for _ in range(count)]
        for replica in replicas:
            replica._networks, replica._requests, replica._shared = networks, {}, True
        return replicas

    def _compiled_for(self, mode: str, first: Size) -> _Shapes[ov.CompiledModel]:
        # Without `self`: a runtime that refers to itself keeps its memory and threads until the collector comes by.
        return _Shapes(self._ir, partial(_shaped, self._ir, self.threads, mode, self._cache_dir), first)

    def queue(self) -> OpenVinoQueue:
        """The same networks once more, compiled for several requests in flight."""
        return OpenVinoQueue(self._ir, threads=self.threads, cache_dir=self._cache_dir)


class _Request:
    """A request of a compiled model, and the canvas that it reads.

    Args:
        shared: other requests want the cores at the same time, so that this one must not spin while it waits.
    """

    def __init__(self, compiled: ov.CompiledModel, *, shared: bool) -> None:
        self._request, self._shared = compiled.create_infer_request(), shared
        self._canvas: NDArray[np.uint8] | None = None

    def __call__(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        if canvas is not self._canvas:
            self._request.set_input_tensor(ov.Tensor(canvas[None], shared_memory=True))
            self._canvas = canvas  # also keeps the memory alive for as long as the request reads it
        if self._shared:
            self._request.start_async()
            self._request.wait()
        else:
            self._request.infer()
        raw: NDArray[np.float32] = self._request.get_output_tensor().data[0]
        return raw


class OpenVinoQueue:
    """Several requests in flight, fed from one thread: one long-lived queue for each shape of canvas.

    Each request has its own canvas for as long as it lives, bound once: nothing is freed or written while it is read.

    Args:
        ir: what to compile. threads, cache_dir: as `OpenVinoRuntime` takes them.

    Attributes:
        spec: input size, class names, strides.
        requests: how many in flight, of all shapes together, OpenVINO thinks best here.

    Raises:
        ModelError: as `OpenVinoRuntime`.
    """

    def __init__(self, ir: Ir, *, threads: int = 0, cache_dir: Path | None = None) -> None:
        self.spec, requests = ir.spec, 0

        def make(hw: Size) -> tuple[ov.AsyncInferQueue, list[NDArray[np.uint8]], list[_Done]]:
            nonlocal requests
            compiled = _shaped(ir, threads or cpu_count(), "THROUGHPUT", cache_dir, hw)
            requests = requests or int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            queue, canvases = ov.AsyncInferQueue(compiled, requests), []
            for request in queue:
                canvases.append(np.full((*hw, 3), PAD_VALUE, np.uint8))
                request.set_input_tensor(ov.Tensor(canvases[-1][None], shared_memory=True))
            dones: list[_Done] = [_no_one] * requests

            def finish(request: Any, index: int) -> None:
                done, dones[index] = dones[index], _no_one
                done(request.get_output_tensor().data[0])

            # What OpenVINO is given itself it keeps, unseen by the collector: with `done`, whose job leads back here,
            # no queue would ever go.
            queue.set_callback(finish)
            return queue, canvases, dones

        self._queues = _Shapes(ir, make)
        self.requests = requests

    def canvas_for(self, source_hw: Size) -> Size:
        """See `Runtime.canvas_for`; from any thread."""
        return self._queues.canvas_for(source_hw)

    def start(
        self,
        fill: Callable[[NDArray[np.uint8]], None],
        done: _Done,
        canvas_hw: Size | None = None,
    ) -> None:
        """Fill an idle request's canvas (h, w, 3) and begin; waits while every request of that shape is busy.

        Args:
            fill: writes the picture into the canvas.
            done: gets the raw output (4 + nc, A) in a thread of OpenVINO's; it is valid only until `done` returns.
            canvas_hw: a shape that `canvas_for` gave; left out, the square.
        """
        queue, canvases, dones = self._queues.made[canvas_hw or self._queues.square]
        # The request that is idle now is the one that start_async takes, as nobody else starts any.
        index = queue.get_idle_request_id()
        fill(canvases[index])
        dones[index] = done
        queue.start_async(userdata=index)

    def close(self) -> None:
        """Wait for all requests."""
        for queue, *_ in tuple(self._queues.made.values()):
            queue.wait_all()


def _no_one(_: NDArray[np.float32]) -> None:
    """Nobody waits for this output."""


def _shaped(ir: Ir, threads: int, mode: str, cache_dir: Path | None, hw: Size) -> ov.CompiledModel:
    """The network of a shape, held against what a detector gives."""
    compiled = _compile(ir.prepared(hw), ir.path, _HINTS[ir.name], threads, mode, cache_dir)
    check_output(ir.spec, tuple(compiled.output(0).shape), ir.path, hw)
    return compiled


def throughput(path: Path, spec: ModelSpec, *, runtime: RuntimeName, threads: int = 0, seconds: float = 1.5) -> float:
    """Frames per second with as many requests in flight as OpenVINO thinks best, the network alone."""
    return rate(OpenVinoQueue(Ir.open(path, spec, name=runtime), threads=threads), seconds)


def rate(queue: OpenVinoQueue, seconds: float = 1.5, canvas_hw: Size | None = None) -> float:
    """Frames per second of a queue with all its requests in flight, the network alone; of the square, or of a shape."""

    def same(_: NDArray[Any]) -> None:
        """The canvas stays as it is, and the output is not wanted."""

    for _ in range(queue.requests):  # warm-up
        queue.start(same, same, canvas_hw)
    queue.close()
    started, frames = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or frames < 2 * queue.requests:
        queue.start(same, same, canvas_hw)  # waits for a free request
        frames += 1
    queue.close()
    return frames / (time.perf_counter() - started)


def capabilities() -> dict[str, Any]:
    """OpenVINO's `version`, and the `precisions` that it can compute in on this CPU, such as "FP32" or "INT8"."""
    known = ("FP32", "BF16", "FP16", "INT8")
    found = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"version": ov.get_version().partition("-")[0], "precisions": [name for name in known if name in found]}


def execution_precisions(path: Path, *, hint: str | None = "f32", threads: int = 0) -> list[dict[str, Any]]:
    """What this CPU really computes for an IR, layer by layer, in order of execution; constants are left out.

    Each row: `name`, `kind`, `precision` (such as "f32", "bf16", "i8"), `primitive` (OpenVINO's kernel), and `layers`,
    the names of the graph's layers that were fused into it.

    Raises:
        ModelError: damaged, or OpenVINO cannot compile it.
    """
    compiled = _compile(read(path), path, hint, threads or cpu_count(), "LATENCY", None)
    return _executed(compiled)


def _compile(
    model: ov.Model, path: Path, hint: str | None, threads: int, mode: str, cache_dir: Path | None
) -> ov.CompiledModel:
    options: dict[str, Any] = {**on_threads(threads), "PERFORMANCE_HINT": mode}
    if hint is not None:
        options["INFERENCE_PRECISION_HINT"] = hint
    if cache_dir is not None:
        options["CACHE_DIR"] = str(cache_dir)
    try:
        return core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot compile {path}", got=reason(error), mend="export the model again") from None


def _executed(compiled: ov.CompiledModel) -> list[dict[str, Any]]:
    rows = []
    constant: set[str] = set()
    for op in compiled.get_runtime_model().get_ordered_ops():
        inputs = [value.get_node().get_friendly_name() for value in op.input_values()]
        info = {key: value.astype(str) if hasattr(value, "astype") else str(value)
                for key, value in op.get_rt_info().items()}  # fmt: skip
        if info.get("layerType") == "Const" or (inputs and constant.issuperset(inputs)):
            constant.add(op.get_friendly_name())
            continue
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


def convolutions(rows: list[dict[str, Any]]) -> str:
    """Convolutions of `execution_precisions` by precision, such as "i8 x57, f32 x7"."""
    counts = Counter(_PRECISION.get(row["precision"], row["precision"])
                     for row in rows if row["kind"] in ("Convolution", "Convolution_Fused"))  # fmt: skip
    return ", ".join(f"{precision} x{count}" for precision, count in counts.most_common()) or "no convolutions"


_PRECISION = {"u8": "i8"}  # unsigned activations: the same INT8 kernels
