"""ONNX Runtime on the CPU; scaling to float happens outside the graph here, and counts as part of the network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import ModelSpec
from hawkeye.environment import cpu_count
from hawkeye.errors import MissingExtraError, ModelError
from hawkeye.geometry import Size, rectangle
from hawkeye.records import RuntimeName
from hawkeye.runtime import check_output, spec_from_metadata

try:
    import onnxruntime as ort
except ModuleNotFoundError:
    raise MissingExtraError("compress", "onnxruntime") from None


class OnnxRuntime:
    """One session; see `Runtime`. Reads our exports and stock ones, float and Q/DQ.

    Raises:
        ModelError: damaged, not a detector, or its input or output does not fit the spec.
    """

    def __init__(
        self, path: Path, spec: ModelSpec | None = None, *, threads: int = 0, imgsz: int | None = None
    ) -> None:
        self.name: RuntimeName = "onnxruntime"
        self.threads = threads or cpu_count()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Workers would spin on for a while after each frame, and steal time from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base of their own
            raise ModelError(f"{path} is not an ONNX model, or is damaged", got=str(error).splitlines()[0][:300],
                             mend="export the model again") from None  # fmt: skip
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            raise ModelError(f"{path} is not a detector", got=[(i.name, i.type, i.shape) for i in inputs],
                             expected="one float input and one output")  # fmt: skip
        shape, last = inputs[0].shape, outputs[0].shape[-1] if outputs[0].shape else None
        self.spec = spec or spec_from_metadata(
            self._session.get_modelmeta().custom_metadata_map, path, candidates=last if isinstance(last, int) else None
        )
        if imgsz is not None:
            self.spec = self.spec.model_copy(update={"imgsz": imgsz})
        wanted = [1, 3, self.spec.imgsz, self.spec.imgsz]
        if len(shape) != 4 or any(isinstance(s, int) and s != w for s, w in zip(shape, wanted, strict=True)):
            raise ModelError(f"{path} does not take pictures of {self.spec.imgsz} pixels", got=shape, expected=wanted,
                             mend=f"export it again with --imgsz {self.spec.imgsz}, or take the OpenVINO IR, which "
                                  "can be given another size")  # fmt: skip
        self._path, self._input = path, inputs[0].name
        self._rectangles = not any(isinstance(side, int) for side in shape[2:])  # exported as dynamic
        quantized = b"DequantizeLinear" in path.read_bytes()
        self.precision_hint = "as the file"
        # ONNX Runtime does not tell what it computes in; the graph is what can be known.
        self.precision_executed = "graph with INT8 quantizers" if quantized else "f32"
        self.infer(np.zeros((self.spec.imgsz,) * 2 + (3,), np.uint8))

    def canvas_for(self, source_hw: Size) -> Size:
        """See `Runtime.canvas_for`."""
        size = self.spec.imgsz
        return rectangle(source_hw, size, max(self.spec.strides)) if self._rectangles else (size, size)

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.infer`."""
        blob = cv2.dnn.blobFromImage(canvas, 1 / 255, swapRB=True)  # (1, 3, h, w) float32 RGB
        raw: NDArray[np.float32] = self._session.run(None, {self._input: blob})[0]
        check_output(self.spec, raw.shape, self._path, (canvas.shape[0], canvas.shape[1]))
        found: NDArray[np.float32] = raw[0]
        return found
