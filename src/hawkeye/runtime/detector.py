"""`Detector`: a picture in, detections in the picture's pixels out."""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawkeye import environment
from hawkeye.artifact import RECORD, Artifact, ModelSpec
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, InputError, ModelError
from hawkeye.geometry import Letterbox, Size
from hawkeye.records import RuntimeName
from hawkeye.runtime import Runtime, load_runtime, open_file
from hawkeye.store import is_store, released

_VIDEO = (720, 1280)  # what is looked at most
# Where `hawkeye optimize` puts its results, the best for use first.
BEST = ("4-quantize/pruned", "3-export/pruned", "4-quantize/original", "3-export/original")


class Detector:
    """A ready detector. Not safe for use from several threads at once: make one for each.

    Args:
        source: the folder of a run (its best finished result is taken), the folder of an artefact, a stock
            `*_openvino_model` folder, an .xml or an .onnx file, a model store (its released version is taken; a folder,
            or a URL such as `s3://bucket/models`), or an artefact itself.
        runtime: left out, OpenVINO where there is an IR, with the precision that the file holds.
        imgsz: longer side of the network's input in pixels; left out, the model's own.
        rect: the input takes the picture's shape, as far as `geometry.rectangle` knows it, and nothing is computed for
            the grey around it: a network for each shape, compiled with the first picture that needs it. False: always
            the square that tables of accuracy are made with.
        conf: detections must score more than this.
        iou: overlap above which the weaker of two boxes is dropped.
        threads: CPU threads; 0 takes all cores.
        max_det: detections kept per picture.
        agnostic: boxes suppress each other across classes too.
        classes: names or indices of the classes to look for; left out, all.
        cache: keep the compiled network in the user's cache folder and start faster the next time; see
            `hawkeye.environment.cache_dir`.
        watch: called after each picture, in the thread that it was looked at in.

    Attributes:
        spec: input size, class names, strides.
        names: class names by index.
        source: what was opened.
        timings: milliseconds of the last frame: `pre` (letterbox), `network`, `post` (decode and suppression).

    Raises:
        ModelError: nothing usable there, or not of that size; the message says what was found.
        ConfigError: a threshold, a class or a number that cannot be.

    Example:
        >>> detector = Detector("runs/first")
        >>> detector(cv2.imread("street.jpg")).to_records(detector.names)
    """

    def __init__(
        self,
        source: str | Path | Artifact,
        *,
        runtime: RuntimeName | None = None,
        imgsz: int | None = None,
        rect: bool = True,
        conf: float = 0.25,
        iou: float = 0.7,
        threads: int = 0,
        max_det: int = 300,
        agnostic: bool = False,
        classes: Sequence[int | str] | None = None,
        cache: bool = True,
        watch: Callable[[], object] = lambda: None,
    ) -> None:
        for name, value, low, high in (("conf", conf, 0, 1), ("iou", iou, 0, 1), ("threads", threads, 0, 1024),
                                       ("max_det", max_det, 1, 100_000)):  # fmt: skip
            if not low <= value <= high:  # NaN is between nothing
                raise ConfigError(f"{name} cannot be used", got=value, expected=f"{low} to {high}")
        self.source = source.root if isinstance(source, Artifact) else local(source)
        cache_dir = environment.cache_dir("openvino") if cache else None
        opened = source if isinstance(source, Artifact) else self.source
        self.runtime = open_source(opened, runtime=runtime, threads=threads, imgsz=imgsz, cache_dir=cache_dir)
        self.spec: ModelSpec = self.runtime.spec
        self.names = self.spec.names
        self.rect, self.conf, self.iou, self.max_det, self.agnostic = rect, conf, iou, max_det, agnostic
        self.classes = None if classes is None else class_indices(classes, self.names)
        self.timings: dict[str, float] = {}
        self._watch = watch
        self._canvases: dict[Size, NDArray[np.uint8]] = {}
        self._letterbox: Letterbox | None = None

    def prepare(self, source_hw: Size) -> Size:
        """Make ready for pictures of that height and width, so that the first need not wait; from any thread.

        Returns:
            height and width of the network's input for them.
        """
        return self.runtime.canvas_for(source_hw) if self.rect else (self.spec.imgsz, self.spec.imgsz)

    def replicas(self) -> list[Detector]:
        """This detector for several threads at the same time; none where its runtime cannot do that.

        Each thread takes one for itself. See `OpenVinoRuntime.replicas`; waits for a compilation.
        """
        make: Callable[[Size], list[Runtime]] | None = getattr(self.runtime, "replicas", None)
        replicas = []
        for runtime in make(self.prepare(_VIDEO)) if make is not None else ():
            replica = copy.copy(self)
            replica.runtime, replica.timings, replica._canvases, replica._letterbox = runtime, {}, {}, None
            replicas.append(replica)
        return replicas

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Detect in one picture (H, W, 3) of uint8 BGR, as OpenCV reads it.

        Raises:
            InputError: not such an array.
        """
        check_picture(image)
        source_hw = (image.shape[0], image.shape[1])
        if self._letterbox is None or self._letterbox.source_hw != source_hw:
            self._letterbox = Letterbox.fit(source_hw, self.prepare(source_hw))
        started = time.perf_counter()
        hw = self._letterbox.canvas_hw
        canvas = self._canvases.get(hw)
        if canvas is None:
            canvas = self._canvases[hw] = np.empty((*hw, 3), np.uint8)
        self._letterbox.apply_(image, canvas)
        prepared = time.perf_counter()
        raw = self.runtime.infer(canvas)
        computed = time.perf_counter()
        found = decode(raw, conf=self.conf, iou=self.iou, max_det=self.max_det, agnostic=self.agnostic,
                       classes=self.classes)  # fmt: skip
        result = Detections(self._letterbox.to_source(found.xyxy), found.score, found.class_id)
        done = time.perf_counter()
        self.timings = {
            "pre": (prepared - started) * 1e3,
            "network": (computed - prepared) * 1e3,
            "post": (done - computed) * 1e3,
        }
        self._watch()
        return result


def check_picture(image: object) -> None:
    """Hold a frame against what every detector takes: (H, W, 3) of uint8 BGR, at least one pixel.

    Raises:
        InputError: not such an array.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError("not a picture", got=got, expected="uint8 (H, W, 3) in BGR order")
    if 0 in image.shape:
        raise InputError("an empty picture", got=image.shape, expected="at least one pixel")


def class_indices(wanted: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """Indices of classes given by name or by index, as a number or as text.

    Raises:
        ConfigError: the model has no such class.
    """
    found = []
    for item in wanted:
        text = str(item)
        index = names.index(text) if text in names else int(text) if text.isascii() and text.isdigit() else -1
        if not 0 <= index < len(names):
            near = difflib.get_close_matches(text, names, 1, 0.6)
            raise ConfigError(f"the model has no class {text!r}", got=text,
                              expected=f"a name or 0 to {len(names) - 1}: {', '.join(names[:8])}"
                                       f"{', …' if len(names) > 8 else ''}",
                              mend=f"did you mean {near[0]!r}?" if near else None)  # fmt: skip
        found.append(index)
    return tuple(found)


def local(source: str | Path) -> Path:
    """Where a model that somebody named lies: the released version of a model store, or the path itself.

    Raises:
        StoreError: a store that cannot be reached, or has nothing released.
    """
    return released(source) if "://" in str(source) or is_store(Path(source)) else Path(source)


def open_source(
    source: Path | Artifact,
    *,
    runtime: RuntimeName | None = None,
    threads: int = 0,
    imgsz: int | None = None,
    cache_dir: Path | None = None,
) -> Runtime:
    """Open whatever a person may name as a model; see `Detector` and `open_file`.

    Raises:
        ModelError: nothing usable there.
    """
    if isinstance(source, Artifact):
        name = runtime or _best_runtime(source)
        return load_runtime(source, name, threads=threads, imgsz=imgsz, cache_dir=cache_dir)
    if source.is_file():
        return open_file(source, runtime=runtime, threads=threads, imgsz=imgsz, cache_dir=cache_dir)
    if not source.is_dir():
        raise ModelError(f"there is no model {source}", mend="name a run folder, an export's folder, an .xml or .onnx")
    for place in (".", *BEST):
        if (source / place / RECORD).is_file():
            artifact = Artifact.load(source / place)
            return open_source(artifact, runtime=runtime, threads=threads, imgsz=imgsz, cache_dir=cache_dir)
    suffix = ".onnx" if runtime == "onnxruntime" else ".xml"
    files = sorted(source.glob(f"*{suffix}")) or sorted(source.glob("*.onnx"))
    if len(files) != 1:
        raise ModelError(f"{source} holds no model that can be chosen", got=[file.name for file in files] or "none",
                         expected="a finished run, an artefact, or one .xml or .onnx file",
                         mend="finish the run, or name the file itself")  # fmt: skip
    return open_file(files[0], runtime=runtime, threads=threads, imgsz=imgsz, cache_dir=cache_dir)


def _best_runtime(artifact: Artifact) -> RuntimeName:
    if "openvino" not in artifact.files and "onnx" in artifact.files:
        return "onnxruntime"
    artifact.path("openvino")  # raises where there is none, and says how to export
    return "openvino-int8" if artifact.name.endswith("+int8") else "openvino-f32"
