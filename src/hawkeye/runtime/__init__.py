"""Runs exported detectors: one protocol over OpenVINO, ONNX Runtime and PyTorch, each behind one file.

Nothing heavy is imported before a model is opened.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from hawkeye.artifact import RECORD, Artifact, ModelSpec
from hawkeye.errors import ModelError
from hawkeye.geometry import Size
from hawkeye.records import RuntimeName

__all__ = ["Runtime", "load_runtime", "open_file", "spec_beside", "spec_from_metadata"]

# Output levels that YOLO detectors have; stock exports record the coarsest stride only.
_STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32))
_MAX_METADATA_BYTES = 1_000_000


class Runtime(Protocol):
    """A network that is ready to run on a CPU, batch 1; not safe for use from several threads, except `canvas_for`.

    Attributes:
        spec: input size, class names, strides.
        name: the column of the table that it is.
        precision_hint: what the library was asked for, such as "f32" or "default".
        precision_executed: what it then does, as far as it tells, such as "i8 x57, f32 x7" convolutions.
        threads: CPU threads that it may use.
    """

    spec: ModelSpec
    name: RuntimeName
    precision_hint: str
    precision_executed: str
    threads: int

    def canvas_for(self, source_hw: Size) -> Size:
        """Height and width of the canvas for a picture of that height and width, and makes ready for it.

        The picture's `geometry.rectangle`, or the square of `spec.imgsz` where this model takes no other shape.
        """
        ...

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw output (4 + nc, A) float32 for a canvas (h, w, 3) of uint8 BGR: the square, or what `canvas_for` gave.

        Rows are centre x, centre y, width and height in canvas pixels, then nc scores in [0, 1]. The array may be the
        runtime's own memory: it is valid until the next call.
        """
        ...


def load_runtime(
    artifact: Artifact,
    runtime: RuntimeName,
    *,
    threads: int = 0,
    imgsz: int | None = None,
    cache_dir: Path | None = None,
) -> Runtime:
    """Open the file of an artefact that a runtime takes; `imgsz` and `cache_dir` as in `open_file`.

    Raises:
        ModelError: the artefact has no such file, or it does not fit.
        MissingExtraError: the runtime's library is not installed.
    """
    if runtime == "pytorch-fp32":
        try:
            from hawkeye.compress.torch_runtime import TorchRuntime
        except ModuleNotFoundError as error:
            from hawkeye.errors import MissingExtraError

            raise MissingExtraError("compress", error.name or "torch") from None
        spec = artifact.spec.model_copy(update={"imgsz": imgsz or artifact.spec.imgsz})
        torch_runtime: Runtime = TorchRuntime(artifact.path("pytorch"), spec, threads=threads)
        return torch_runtime
    path = artifact.path("onnx" if runtime == "onnxruntime" else "openvino")
    return open_file(path, runtime=runtime, spec=artifact.spec, threads=threads, imgsz=imgsz, cache_dir=cache_dir)


def open_file(
    path: Path,
    *,
    runtime: RuntimeName | None = None,
    spec: ModelSpec | None = None,
    threads: int = 0,
    imgsz: int | None = None,
    cache_dir: Path | None = None,
) -> Runtime:
    """Open an .xml or .onnx file, ours or a stock export.

    Args:
        runtime: left out, an .onnx takes ONNX Runtime, and an .xml OpenVINO with its precision fixed to what the file
            holds, so that it gives the same figures on every CPU.
        spec: left out, it is read from `artifact.json` or `metadata.yaml` beside the file, or from the file itself.
        imgsz: side of the input in pixels, where it is not to be the one of the file. OpenVINO makes a static network
            of that size from any IR; ONNX Runtime takes it only where the graph was exported as dynamic.
        cache_dir: where OpenVINO may keep compiled models.

    Raises:
        ModelError: not there, damaged, not a detector, or the runtime cannot read this kind of file.
    """
    if not path.is_file():
        raise ModelError(f"there is no model {path}", mend="name an .xml or .onnx file, or the folder of an export")
    if path.suffix == ".onnx" and runtime in (None, "onnxruntime"):
        from hawkeye.runtime.onnx import OnnxRuntime

        return OnnxRuntime(path, spec or spec_beside(path), threads=threads, imgsz=imgsz)
    if path.suffix == ".xml" and runtime not in ("onnxruntime", "pytorch-fp32"):
        from hawkeye.runtime.openvino import OpenVinoRuntime

        return OpenVinoRuntime(path, spec or spec_beside(path), name=runtime, threads=threads, cache_dir=cache_dir,
                               imgsz=imgsz)  # fmt: skip
    mend = f"run `hawkeye export {path}` first" if path.suffix == ".pt" else (
        "use the runtime that reads this kind" if path.suffix in (".onnx", ".xml") else
        "name a run's folder, an export's folder, an .xml or an .onnx file")  # fmt: skip
    raise ModelError(f"{path} cannot be opened{f' by {runtime}' if runtime else ''}", got=path.suffix or "no suffix",
                     expected=".onnx for ONNX Runtime, .xml for OpenVINO", mend=mend)  # fmt: skip


def spec_beside(path: Path) -> ModelSpec | None:
    """What the files beside an exported model say of it; None where there are none.

    Raises:
        ModelError: they say that it is not a detector, or cannot be read.
    """
    if (path.parent / RECORD).is_file():
        artifact = Artifact.load(path.parent)
        if any(artifact.root / record.path == path for record in artifact.files.values()):
            return artifact.spec
    metadata = path.parent / "metadata.yaml"
    if path.suffix == ".xml" and metadata.is_file():
        try:
            if metadata.stat().st_size > _MAX_METADATA_BYTES:
                raise ModelError(f"{metadata} is too large", got=metadata.stat().st_size, expected=_MAX_METADATA_BYTES)
            content = yaml.safe_load(metadata.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ModelError(f"{metadata} cannot be read", got=str(error).splitlines()[0]) from None
        return spec_from_metadata(content, metadata)
    return None


def spec_from_metadata(metadata: Mapping[str, Any], source: Path, *, candidates: int | None = None) -> ModelSpec:
    """A model's spec from an export's metadata, as YAML has it or as strings (ONNX keeps strings only).

    Args:
        candidates: A, the last side of the output, where it is known; it tells the output levels apart.

    Raises:
        ModelError: not a detector, or something that a runtime must know is missing.
    """
    if not isinstance(metadata, Mapping):
        raise ModelError(f"{source} holds no metadata", got=type(metadata).__name__, expected="names, imgsz, stride")
    values = {key: _literal(metadata.get(key)) for key in ("names", "imgsz", "stride", "task", "strides")}
    if values["task"] not in (None, "detect"):
        raise ModelError(f"{source} is not a detector", got=f"task {values['task']}", expected="task detect")
    arguments = _literal(metadata.get("args"))
    suppresses = isinstance(arguments, Mapping) and arguments.get("nms") is True
    if suppresses or _literal(metadata.get("end2end")) is True:
        raise ModelError(f"{source} suppresses boxes by itself", got="built-in NMS", mend="export it with nms=False",
                         expected="a detector that gives all its candidates")  # fmt: skip
    names, imgsz = values["names"], values["imgsz"]
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names)]
    sides = list(imgsz) if isinstance(imgsz, list | tuple) else [imgsz] * 2
    if not isinstance(names, list | tuple) or not names or not all(isinstance(s, int) and s > 0 for s in sides):
        raise ModelError(f"{source} lacks what a detector's export records", got=f"names {names!r}, imgsz {imgsz!r}",
                         expected="class names and input size", mend="export the model again")  # fmt: skip
    if len(set(sides)) != 1:
        raise ModelError(f"{source} takes pictures that are not square", got=imgsz, expected="one side for both",
                         mend="export it again with one --imgsz")  # fmt: skip
    size, coarsest = sides[0], values["stride"] or 32
    given = values["strides"]
    options = [tuple(given)] if isinstance(given, list | tuple) else [s for s in _STRIDES if s[-1] == coarsest]
    fitting = [s for s in options if candidates is None or sum((size // v) ** 2 for v in s) == candidates]
    if not fitting:
        raise ModelError(f"{source} has output levels that are not known here", got=f"{candidates} candidates",
                         expected=f"those of strides {list(_STRIDES)} at {size}")  # fmt: skip
    return ModelSpec(imgsz=size, names=tuple(str(name) for name in names), strides=fitting[0])


def _literal(value: Any) -> Any:
    """ONNX metadata are strings that hold Python literals; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def check_output(spec: ModelSpec, shape: tuple[int, ...], source: Path, canvas_hw: Size) -> None:
    """Hold a network's output shape for a canvas against its spec.

    Raises:
        ModelError: it is not (1, 4 + classes, candidates) of this spec.
    """
    expected = (1, 4 + len(spec.names), spec.anchors_of(canvas_hw))
    if shape != expected:
        raise ModelError(f"{source} does not compute a detector's output", got=shape, expected=expected,
                         mend="export a YOLOv8-style detector without built-in NMS")  # fmt: skip
