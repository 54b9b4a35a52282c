"""`Detector`: a picture in, detections in the picture's pixels out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import RECORD, Artifact, ModelSpec
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import InputError, ModelError
from hawkeye.geometry import Letterbox
from hawkeye.records import RuntimeName
from hawkeye.runtime import Runtime, load_runtime, open_file

# Where `hawkeye optimize` puts its results, the best for use first.
_BEST = ("4-quantize/pruned", "3-export/pruned", "4-quantize/original", "3-export/original")


class Detector:
    """A ready detector. Not safe for use from several threads at once: make one for each.

    Args:
        source: the folder of a run (its best finished result is taken), the folder of an artefact, a stock
            `*_openvino_model` folder, an .xml or an .onnx file, or an artefact itself.
        runtime: left out, OpenVINO where there is an IR, with the precision that the file holds.
        conf: detections must score more than this.
        iou: overlap above which the weaker of two boxes is dropped.
        threads: CPU threads; 0 takes all cores.
        max_det: detections kept per picture.
        agnostic: boxes suppress each other across classes too.

    Attributes:
        spec: input size, class names, strides.
        names: class names by index.
        source: what was opened.
        timings: milliseconds of the last frame: `pre` (letterbox), `network`, `post` (decode and suppression).

    Raises:
        ModelError: nothing usable there; the message says what was found.

    Example:
        >>> detector = Detector("runs/first")
        >>> detector(cv2.imread("street.jpg")).to_records(detector.names)
    """

    def __init__(
        self,
        source: str | Path | Artifact,
        *,
        runtime: RuntimeName | None = None,
        conf: float = 0.25,
        iou: float = 0.7,
        threads: int = 0,
        max_det: int = 300,
        agnostic: bool = False,
    ) -> None:
        self.source = source.root if isinstance(source, Artifact) else Path(source)
        if isinstance(source, Artifact):
            self.runtime = _open_artifact(source, runtime, threads)
        else:
            self.runtime = open_source(self.source, runtime=runtime, threads=threads)
        self.spec: ModelSpec = self.runtime.spec
        self.names = self.spec.names
        self.conf, self.iou, self.max_det, self.agnostic = conf, iou, max_det, agnostic
        self.timings: dict[str, float] = {}
        self._canvas: NDArray[np.uint8] = np.empty((self.spec.imgsz, self.spec.imgsz, 3), np.uint8)
        self._letterbox: Letterbox | None = None

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Detect in one picture (H, W, 3) of uint8 BGR, as OpenCV reads it.

        Raises:
            InputError: not such an array.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError("not a picture", got=got, expected="uint8 (H, W, 3) in BGR order")
        if 0 in image.shape:
            raise InputError("an empty picture", got=image.shape, expected="at least one pixel")
        started = time.perf_counter()
        source_hw = (image.shape[0], image.shape[1])
        if self._letterbox is None or self._letterbox.source_hw != source_hw:
            self._letterbox = Letterbox.fit(source_hw, self.spec.imgsz)
        self._letterbox.apply_(image, self._canvas)
        prepared = time.perf_counter()
        raw = self.runtime.infer(self._canvas)
        computed = time.perf_counter()
        found = decode(raw, conf=self.conf, iou=self.iou, max_det=self.max_det, agnostic=self.agnostic)
        result = Detections(self._letterbox.to_source(found.xyxy), found.score, found.class_id)
        done = time.perf_counter()
        self.timings = {
            "pre": (prepared - started) * 1e3,
            "network": (computed - prepared) * 1e3,
            "post": (done - computed) * 1e3,
        }
        return result


def open_source(source: Path, *, runtime: RuntimeName | None = None, threads: int = 0) -> Runtime:
    """Open whatever a person may name as a model; see `Detector`.

    Raises:
        ModelError: nothing usable there.
    """
    if source.is_file():
        return open_file(source, runtime=runtime, threads=threads)
    if not source.is_dir():
        raise ModelError(f"there is no model {source}", mend="name a run folder, an export's folder, an .xml or .onnx")
    if (source / RECORD).is_file():
        return _open_artifact(Artifact.load(source), runtime, threads)
    for place in _BEST:
        if (source / place / RECORD).is_file():
            return _open_artifact(Artifact.load(source / place), runtime, threads)
    suffix = ".onnx" if runtime == "onnxruntime" else ".xml"
    files = sorted(source.glob(f"*{suffix}")) or sorted(source.glob("*.onnx"))
    if len(files) != 1:
        raise ModelError(f"{source} holds no model that can be chosen", got=[file.name for file in files] or "none",
                         expected="a finished run, an artefact, or one .xml or .onnx file",
                         mend="finish the run, or name the file itself")  # fmt: skip
    return open_file(files[0], runtime=runtime, threads=threads)


def _open_artifact(artifact: Artifact, runtime: RuntimeName | None, threads: int) -> Runtime:
    if runtime is None:
        quantized = artifact.name.endswith("+int8")
        if "openvino" in artifact.files:
            runtime = "openvino-int8" if quantized else "openvino-f32"
        elif "onnx" in artifact.files:
            runtime = "onnxruntime"
        else:
            artifact.path("openvino")  # raises, and says how to export
            raise AssertionError("unreachable")
    return load_runtime(artifact, runtime, threads=threads)
