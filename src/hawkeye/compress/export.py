"""ONNX and OpenVINO from a checkpoint, each held against PyTorch on pictures before it counts as done.

The graphs are what stock Ultralytics expects: input `images` (1, 3, H, W) RGB in [0, 1], output `output0`
(1, 4 + nc, A), and its metadata; so `YOLO("x.onnx")` and `YOLO("x_openvino_model/")` predict with them.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hawkeye import __version__, artifact, keys
from hawkeye.artifact import Artifact, ModelSpec
from hawkeye.config import ExportConfig
from hawkeye.data import read_image
from hawkeye.errors import ExportError, MissingExtraError
from hawkeye.geometry import Letterbox
from hawkeye.keys import PARITY_PICTURES
from hawkeye.progress import progress
from hawkeye.runtime.core import core

try:
    import onnx
    import onnxruntime
    import openvino
    import openvino.opset13
    import openvino.utils
    import torch
    from torch import nn
    from torch.onnx.errors import OnnxExporterError, UnsupportedOperatorError
except ImportError as error:
    raise MissingExtraError("compress", error.name or "onnx") from error

INPUT, OUTPUT = "images", "output0"
# What makes an exported detector differ from PyTorch: Infer(canvases (N, 3, H, W)) -> (N, 4 + nc, A).
Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def export(source: Artifact | Path, config: ExportConfig, *, out: Path) -> Artifact:
    """Write a checkpoint as ONNX and as OpenVINO IR in FP32, and compare both with PyTorch.

    Args:
        source: an artefact with a PyTorch file, or the path of a checkpoint.
        config: settings; `data` or `images` give the pictures to compare on, without them seeded noise is taken.
        out: folder that everything is written to.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: an operator that ONNX lacks (named with its layer), or a graph that computes something else.
    """
    from hawkeye.compress import yolo
    from hawkeye.compress.macs import params_and_macs

    started = time.perf_counter()
    path = source.path("pytorch") if isinstance(source, Artifact) else Path(source)
    checkpoint = yolo.load_checkpoint(path)
    imgsz = config.imgsz or (source.spec.imgsz if isinstance(source, Artifact) else checkpoint.imgsz)
    name = source.name if isinstance(source, Artifact) else "original"
    parent = source.sha256 if isinstance(source, Artifact) else None
    pictures, key = keys.export(artifact.file_sha256(path), name, imgsz, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done

    spec = yolo.spec_of(checkpoint.model, imgsz)
    params, macs = params_and_macs(checkpoint.model, imgsz)
    network = yolo.fused(checkpoint.model)
    with artifact.storage_errors(out), progress(f"Export {name}", 4) as task:
        files: dict[artifact.Format, Path] = {"pytorch": out / f"{name}.pt", "onnx": out / f"{name}.onnx"}
        artifact.write_bytes(files["pytorch"], path.read_bytes())
        facts = metadata(spec, name=name, dynamic=config.dynamic)
        graph = to_onnx(network, imgsz, opset=config.opset, dynamic=config.dynamic, simplify=config.simplify)
        save_onnx(graph, files["onnx"], facts)
        task.advance(note="ONNX")
        # OpenVINO reads the ONNX graph itself: one trace, and the nodes keep their names in both.
        files["openvino"] = save_openvino(read_swish(files["onnx"]), out, name, facts)
        task.advance(note="OpenVINO")
        canvases = canvases_of(pictures, imgsz, config.seed)
        expected = _torch_infer(network)(canvases)
        parity: dict[str, Any] = {}
        for fmt, infer in (("onnx", onnx_infer(files["onnx"])), ("openvino", openvino_infer(files["openvino"]))):
            parity[fmt] = compare(fmt, expected, infer(canvases), imgsz, config.tolerance)
            task.advance(note=f"compared {fmt}")
    details = {
        "parity": parity,
        "tolerance": {"scores": config.tolerance, "boxes_px": config.tolerance * imgsz / 100},
        "pictures": [p.name for p in pictures] or f"{PARITY_PICTURES} seeded noise pictures: none were given",
        "opset": config.opset,
        "dynamic": config.dynamic,
    }
    return Artifact.create(out, files, started=started, name=name, stage="export", spec=spec, params=params, macs=macs,
                           parent_sha256=parent, key=key, config=keys.settings(config), seed=config.seed,
                           details=details)  # fmt: skip


def metadata(spec: ModelSpec, *, name: str, dynamic: bool, **more: Any) -> dict[str, Any]:
    """What an exported file says about itself, under the keys that stock Ultralytics reads."""
    return {
        "description": f"Hawkeye detector, {name}",
        "author": "Hawkeye",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "license": "that of the trained weights; weights by Ultralytics are AGPL-3.0",
        "stride": max(spec.strides),
        "task": spec.task,
        "head": "Detect",
        "batch": 1,
        "imgsz": [spec.imgsz, spec.imgsz],
        "names": dict(enumerate(spec.names)),
        "args": {"batch": 1, "dynamic": dynamic, "nms": False, **more},
        "channels": 3,
        "end2end": False,
        "strides": list(spec.strides),
    }


def to_onnx(network: nn.Module, imgsz: int, *, opset: int, dynamic: bool, simplify: bool) -> onnx.ModelProto:
    """Trace a fused network into an ONNX graph.

    Raises:
        ExportError: an operator that ONNX lacks, named together with the layer that needs it.
    """
    image = torch.zeros(1, 3, imgsz, imgsz)
    axes = {INPUT: {0: "batch", 2: "height", 3: "width"}, OUTPUT: {0: "batch", 2: "anchors"}} if dynamic else None
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if hasattr(module, "anchors") and hasattr(module, "dynamic"):
            module.dynamic, module.shape = dynamic, None  # anchors computed in the graph, or folded for this size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        try:
            _trace(network, (image,), path, opset, input_names=[INPUT], output_names=[OUTPUT], dynamic_axes=axes)
        except UnsupportedOperatorError as error:
            layer = _blame(network, image, opset)
            raise ExportError(f"ONNX has no operator for what layer {layer!r} computes", got=_first_line(error),
                              expected=f"operators of opset {opset}",
                              mend="replace the layer, or try a higher --opset (up to 20)") from error  # fmt: skip
        except OnnxExporterError as error:
            raise ExportError("the network cannot be traced into ONNX", got=_first_line(error)) from error
        graph = onnx.load(path)
    if simplify:
        try:
            import onnxslim
        except ImportError as error:
            raise MissingExtraError("compress", "onnxslim") from error
        graph = onnxslim.slim(graph)
    onnx.checker.check_model(graph)
    return graph


def _trace(module: nn.Module, args: tuple[Any, ...], path: Path, opset: int, **kwargs: Any) -> None:
    # The TorchScript exporter: its graphs carry layer names, every opset from 12 on, and it needs no further package.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing notes about constants, and the notice that a newer exporter exists
        torch.onnx.export(module, args, str(path), opset_version=opset, dynamo=False, **kwargs)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _blame(network: nn.Module, image: torch.Tensor, opset: int) -> str:
    """Dotted name and kind of the innermost module that cannot be exported by itself."""
    inputs: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: inputs.setdefault(m, args)) for m in network.modules()]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()

    def fails(module: nn.Module) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            try:
                _trace(module, inputs[module], Path(folder) / "part.onnx", opset)
            except UnsupportedOperatorError:
                return True
            except Exception:  # a part that cannot stand alone says nothing about operators
                return False
        return False

    # Innermost first: a part that was never called directly (a container) has no inputs and is passed over.
    parts = [(n, m) for n, m in network.named_modules() if n and m in inputs]
    for name, module in sorted(parts, key=lambda part: -part[0].count(".")):
        if fails(module):
            return f"{name} ({type(module).__name__})"
    return f"{type(network).__name__} itself"


def save_onnx(graph: onnx.ModelProto, path: Path, facts: dict[str, Any]) -> None:
    """Write an ONNX file with its metadata, whole or not at all."""
    del graph.metadata_props[:]
    for key, value in facts.items():
        graph.metadata_props.add(key=key, value=str(value))
    artifact.write_bytes(path, graph.SerializeToString())


def read_swish(path: Path) -> openvino.Model:
    """An ONNX file as an OpenVINO model, with x * sigmoid(x) as one Swish.

    ONNX writes SiLU as two operators. NNCF would put a quantizer between them, which costs accuracy and keeps the
    CPU from running the activation inside the INT8 convolution.
    """
    model = core().read_model(str(path))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        values = node.input_values()
        for value, other in (values, values[::-1]):
            gate = other.get_node()
            if gate.get_type_name() == "Sigmoid" and _same(gate.input_value(0), value):
                swish = openvino.opset13.swish(value)
                swish.set_friendly_name(node.get_friendly_name())
                openvino.utils.replace_node(node, swish)
                break
    model.validate_nodes_and_infer_types()
    return model


def _same(a: openvino.Output, b: openvino.Output) -> bool:
    return (a.get_node().get_friendly_name(), a.get_index()) == (b.get_node().get_friendly_name(), b.get_index())


def save_openvino(model: openvino.Model, out: Path, name: str, facts: dict[str, Any]) -> Path:
    """Write `<name>_openvino_model/<name>.xml` with weights as they are (never rounded to FP16); returns the .xml."""
    folder = out / f"{name}_openvino_model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    info = {
        "model_type": "YOLO",
        "labels": " ".join(str(label).replace(" ", "_") for label in facts["names"].values()),
        "resize_type": "fit_to_window_letterbox",
        "pad_value": 114,
        "reverse_input_channels": True,
        "scale_values": 255,
    }
    for key, value in info.items():
        model.set_rt_info(value, ["model_info", key])
    for key, value in facts.items():
        model.set_rt_info(str(value), ["hawkeye", key])
    path = folder / f"{name}.xml"
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's own kind of "cannot write"
        raise ExportError(f"OpenVINO could not write {path}", got=_first_line(error),
                          mend="is the disk full?") from error  # fmt: skip
    artifact.write_bytes(folder / "metadata.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).encode())
    return path


def canvas_of(path: Path, imgsz: int) -> NDArray[np.float32]:
    """A picture as the network gets it: letterboxed as in the runtime, (3, imgsz, imgsz) float32 RGB in [0, 1]."""
    image = read_image(path)
    canvas = np.empty((imgsz, imgsz, 3), np.uint8)
    Letterbox.fit((image.shape[0], image.shape[1]), imgsz).apply_(image, canvas)
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def canvases_of(pictures: Sequence[Path], imgsz: int, seed: int) -> NDArray[np.float32]:
    """Pictures, or seeded noise where there are none, as (N, 3, imgsz, imgsz) float32 in [0, 1]."""
    if pictures:
        return np.stack([canvas_of(path, imgsz) for path in pictures])
    return np.random.default_rng(seed).random((PARITY_PICTURES, 3, imgsz, imgsz), dtype=np.float32)


def compare(fmt: str, expected: NDArray[np.float32], got: NDArray[np.float32], imgsz: int,
            tolerance: float) -> dict[str, float]:  # fmt: skip
    """Largest differences of two raw outputs (N, 4 + nc, A): scores as they are, boxes in pixels.

    Raises:
        ExportError: more than `tolerance` for scores, or than tolerance * imgsz / 100 pixels for boxes; or not finite.
    """
    if got.shape != expected.shape:
        raise ExportError(f"{fmt} gives another shape than PyTorch", got=got.shape, expected=expected.shape)
    gap = np.abs(got - expected)
    found = {"scores": float(gap[:, 4:].max()), "boxes_px": float(gap[:, :4].max())}
    limits = {"scores": tolerance, "boxes_px": tolerance * imgsz / 100}
    for what, limit in limits.items():
        if not found[what] <= limit:  # NaN is not below anything
            raise ExportError(f"{fmt} differs from PyTorch in its {what.removesuffix('_px')} ({OUTPUT})",
                              got=f"{found[what]:.3g}", expected=f"at most {limit:.3g}",
                              mend="another --opset, or without --simplify")  # fmt: skip
    return found


def _torch_infer(network: nn.Module) -> Infer:
    def infer(canvases: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.concatenate([network(torch.from_numpy(c[None])).numpy() for c in canvases])

    return infer


def onnx_infer(path: Path) -> Infer:
    """An ONNX file in ONNX Runtime on the CPU, one picture at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda canvases: np.concatenate([session.run([OUTPUT], {INPUT: c[None]})[0] for c in canvases])


def openvino_infer(path: Path) -> Infer:
    """An OpenVINO IR on the CPU with float parts in true FP32, one picture at a time."""
    compiled = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda canvases: np.concatenate([compiled(c[None])[0] for c in canvases])
