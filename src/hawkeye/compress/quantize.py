"""INT8 after training: NNCF finds the ranges on training pictures; box decoding and DFL stay in float.

Quantizing the decode costs accuracy and saves no time, so it is left out by following the graph back from its output
to the first convolutions, never by operator type: a rule "no Sigmoid" would match every SiLU.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hawkeye import artifact, environment, keys
from hawkeye.artifact import Artifact
from hawkeye.compress.export import (
    INPUT,
    OUTPUT,
    canvas_of,
    metadata,
    onnx_infer,
    openvino_infer,
    save_onnx,
    save_openvino,
)
from hawkeye.config import QuantizeConfig
from hawkeye.errors import ConfigError, ExportError, MissingExtraError
from hawkeye.keys import ENOUGH, PARITY_PICTURES
from hawkeye.progress import Task, progress, say

os.environ.setdefault("NNCF_CI", "1")  # the one switch that keeps NNCF from sending usage statistics
try:
    import nncf
    import onnx
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
except ImportError as error:
    raise MissingExtraError("compress", error.name or "nncf") from error

AGREEMENT = 0.2  # mean score difference allowed between both INT8 files, over candidates above CONFIDENT in either
CONFIDENT = 0.25
_MOVERS = ("Slice", "Split", "Concat", "Resize", "MaxPool", "Reshape", "Transpose", "Identity")
_Node = TypeVar("_Node", bound=Hashable)


def quantize(source: Artifact, config: QuantizeConfig, *, out: Path) -> Artifact:
    """Quantize an exported detector to INT8, as OpenVINO IR and as Q/DQ ONNX.

    Calibration pictures come from the training split or the folder of unlabelled pictures, never from validation.

    Args:
        source: an artefact with ONNX and OpenVINO files.
        config: settings; `data` or `images` is needed.
        out: folder that everything is written to.

    Raises:
        DataError: fewer than 10 calibration pictures.
        ModelError: the artefact is not exported.
        ConfigError: another imgsz than the export's.
        ExportError: a convolution was not quantized, the decode was, or the two files disagree.
    """
    started = time.perf_counter()
    model_path, graph_path = source.path("openvino"), source.path("onnx")
    spec = source.spec
    if config.imgsz not in (None, spec.imgsz):
        raise ConfigError("the export has another input size", got=config.imgsz, expected=spec.imgsz,
                          mend="export at that size first")  # fmt: skip
    pictures, key = keys.quantize(source.sha256, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done

    name = f"{source.name}+int8"
    warnings = _warnings(len(pictures))
    for line in warnings:
        say(f"Warning: {line}")
    dynamic = bool(source.details.get("dynamic", False))
    facts = metadata(spec, name=name, dynamic=dynamic, int8=True)
    files: dict[artifact.Format, Path] = {"onnx": out / f"{name}.onnx"}
    seconds = {}
    with artifact.storage_errors(out), progress(f"Quantize {source.name}", 2 * len(pictures)) as task:
        clock = time.perf_counter()
        model = openvino.Core().read_model(str(model_path))
        float_nodes = decode_of_openvino(model)
        model = _calibrate(model, float_nodes, pictures, spec.imgsz, config.seed, task)
        kept, convolutions = check_openvino(model)
        files["openvino"] = save_openvino(model, out, name, facts)
        seconds["openvino"] = round(time.perf_counter() - clock, 2)

        clock = time.perf_counter()
        graph = onnx.load(graph_path)
        graph = _calibrate(graph, decode_of_onnx(graph), pictures, spec.imgsz, config.seed, task)
        check_onnx(graph)
        save_onnx(graph, files["onnx"], facts)
        seconds["onnx"] = round(time.perf_counter() - clock, 2)
    executed = executed_precisions(files["openvino"])
    int8 = sum(executed[p] for p in ("i8", "u8"))
    if int8 != convolutions - kept:
        message = f"{int8} of {convolutions - kept} quantized convolutions run in INT8 on this CPU"
        if "avx2" in environment.instruction_sets():
            raise ExportError("OpenVINO does not run the quantized network in INT8", got=message,
                              expected="all but DFL")  # fmt: skip
        warnings.append(message)  # other processors: the file is right, this machine cannot use it fully
    canvases = np.stack([canvas_of(path, spec.imgsz) for path in pictures[:PARITY_PICTURES]])
    raw = {
        "fp32": openvino_infer(model_path)(canvases),
        "openvino": openvino_infer(files["openvino"])(canvases),
        "onnx": onnx_infer(files["onnx"])(canvases),
    }
    agreement = {f"{a} - {b}": distance(raw[a], raw[b]) for a, b in
                 (("openvino", "onnx"), ("openvino", "fp32"), ("onnx", "fp32"))}  # fmt: skip
    if not (agreement["openvino - onnx"]["mean_score"] or 0.0) <= AGREEMENT:
        raise ExportError("the two INT8 files do not agree", got=agreement["openvino - onnx"],
                          expected=f"mean score difference at most {AGREEMENT}")  # fmt: skip
    details = {
        "int8_convolutions": int8,
        "convolutions": convolutions,
        "executed": dict(executed),
        "float_nodes": len(float_nodes),
        "calibration_images": len(pictures),
        "calibration_seconds": seconds,
        "agreement": agreement,
        "agreement_limit": {"mean_score": AGREEMENT, "confident": CONFIDENT},
        "dynamic": dynamic,
        "warnings": warnings,
    }
    return Artifact.create(out, files, started=started, name=name, stage="quantize", spec=spec, params=source.params,
                           macs=source.macs, parent_sha256=source.sha256, key=key, config=keys.settings(config),
                           seed=config.seed, details=details)  # fmt: skip


def _warnings(pictures: int) -> list[str]:
    found = []
    if pictures < ENOUGH:
        found.append(f"{pictures} calibration pictures; {ENOUGH} or more give steadier ranges")
    sets = environment.instruction_sets()
    if sets and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(sets):
        found.append("this CPU has no VNNI: INT8 gains little speed here, and sums of products may saturate")
    return found


def _calibrate(model: Any, ignored: Sequence[str], pictures: Sequence[Path], imgsz: int, seed: int, task: Task) -> Any:
    """NNCF's post-training quantization with its chatter off; `task` advances once per picture."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - NNCF draws from the global generator
    counted = set()

    def canvas(path: Path) -> dict[str, NDArray[np.float32]]:
        if path not in counted:  # NNCF passes over the pictures more than once
            counted.add(path)
            task.advance(note=f"{len(counted)} pictures")
        return {INPUT: canvas_of(path, imgsz)[None]}

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(list(pictures), canvas),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(pictures),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=list(ignored)),
            advanced_parameters=AdvancedQuantizationParameters(),
        )


def _walk_back(ends: Sequence[_Node], parents: Callable[[_Node], Sequence[_Node]],
               stop: Callable[[_Node], bool]) -> Iterator[_Node]:  # fmt: skip
    """Nodes from the ends backwards; nodes where `stop` holds are left out, with all that only they need."""
    seen: set[_Node] = set()
    queue = list(ends)
    while queue:
        node = queue.pop()
        if node in seen or stop(node):
            continue
        seen.add(node)
        yield node
        queue += parents(node)


def decode_of_openvino(model: openvino.Model) -> list[str]:
    """Names of the nodes behind the head's last convolutions: DFL, box decode, class sigmoid."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}

    def parents(name: str) -> list[str]:
        return [value.get_node().get_friendly_name() for value in nodes[name].input_values()]

    def stop(name: str) -> bool:
        node, above = nodes[name], parents(name)
        kind = node.get_type_name()
        # A convolution's bias belongs to it; shapes of the trunk (dynamic graphs) lead back into it.
        bias = kind == "Add" and any(nodes[p].get_type_name() == "Convolution" for p in above)
        return bias or kind == "ShapeOf" or (kind == "Convolution" and not _is_dfl(node.input(1).get_partial_shape()))

    ends = [result.input_value(0).get_node().get_friendly_name() for result in model.get_results()]
    found = sorted(n for n in _walk_back(ends, parents, stop) if nodes[n].get_type_name() not in ("Constant", "Result"))
    return _plausible(found, sum(nodes[n].get_type_name() == "Convolution" for n in found))


def _is_dfl(shape: openvino.PartialShape) -> bool:
    """Whether convolution weights (out, in, kh, kw) are DFL's: they sum the bins of one side into one distance."""
    return [d.get_length() for d in shape][0] == 1


def decode_of_onnx(graph: onnx.ModelProto) -> list[str]:
    """As `decode_of_openvino`, for an ONNX graph."""
    nodes = {node.name: node for node in graph.graph.node}
    maker = {output: node.name for node in graph.graph.node for output in node.output}
    first = {tensor.name: tensor.dims[0] for tensor in graph.graph.initializer if len(tensor.dims) == 4}

    def parents(name: str) -> list[str]:
        return [maker[value] for value in nodes[name].input if value in maker]

    def stop(name: str) -> bool:
        node = nodes[name]
        return node.op_type == "Shape" or (node.op_type == "Conv" and first.get(node.input[1]) != 1)

    found = sorted(n for n in _walk_back([maker[OUTPUT]], parents, stop) if nodes[n].op_type != "Constant")
    return _plausible(found, sum(nodes[n].op_type == "Conv" for n in found))


def _plausible(names: list[str], convolutions: int) -> list[str]:
    if convolutions != 1:
        raise ExportError("the box decode cannot be told from the network", got=f"{convolutions} DFL convolutions",
                          expected=1, mend="quantize a file that `hawkeye export` wrote")  # fmt: skip
    return names


def check_openvino(model: openvino.Model) -> tuple[int, int]:
    """Check that exactly the decode stayed in float; returns (float convolutions, all convolutions).

    Raises:
        ExportError: a convolution outside the decode has float weights, or the decode holds a quantizer.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    decode = set(decode_of_openvino(model))
    quantizers = sorted(n for n in decode if nodes[n].get_type_name() == "FakeQuantize")
    if quantizers:
        raise ExportError("the box decode was quantized", got=quantizers[:3], expected="float")
    convolutions = [node for name, node in nodes.items() if node.get_type_name() == "Convolution"]
    outside = [node for node in convolutions if node.get_friendly_name() not in decode]
    loose = [node.get_friendly_name() for node in outside if not _quantized_weights(node.input_value(1).get_node())]
    if loose:
        raise ExportError("convolutions were left in float", got=loose[:3], expected="only DFL in float")
    return len(convolutions) - len(outside), len(convolutions)


def _quantized_weights(node: openvino.Node) -> bool:
    """Whether a weight comes from INT8 constants or through a FakeQuantize."""
    while node.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize" or node.get_element_type() in (openvino.Type.i8, openvino.Type.u8)


def check_onnx(graph: onnx.ModelProto) -> None:
    """Check a Q/DQ graph the same way.

    Raises:
        ExportError: a convolution outside the decode reads no DequantizeLinear, or the decode holds one.
    """
    nodes = {node.name: node for node in graph.graph.node}
    decode = set(decode_of_onnx(graph))
    maker = {output: node for node in graph.graph.node for output in node.output}

    def sources(value: str) -> set[str]:
        """Kinds of the operators that a value comes from; those that only move numbers are looked through."""
        node = maker.get(value)
        if node is not None and node.op_type in _MOVERS:
            inputs = node.input if node.op_type == "Concat" else node.input[:1]
            return set().union(*(sources(i) for i in inputs))
        return {node.op_type if node is not None else "float"}

    for name, node in nodes.items():
        if name in decode and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ExportError("the box decode was quantized in ONNX", got=name, expected="float")
        if node.op_type == "Conv" and name not in decode:
            kinds = sources(node.input[0]) | sources(node.input[1])
            if kinds != {"DequantizeLinear"}:
                raise ExportError("an ONNX convolution was left in float", got=f"{name} reads {sorted(kinds)}",
                                  expected="quantized input and weights")  # fmt: skip


def executed_precisions(path: Path) -> Counter[str]:
    """Convolutions by the precision that this CPU runs them in, as OpenVINO tells after compiling."""
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].value == "Convolution":
            found[info["runtimePrecision"].value] += 1
    return found


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> dict[str, float | int | None]:
    """How far two raw outputs (N, 4 + nc, A) are apart where either sees an object; None where neither sees any."""
    sure = np.maximum(a[:, 4:].max(1), b[:, 4:].max(1)) > CONFIDENT  # (N, A)
    if not sure.any():
        return {"candidates": 0, "mean_score": None, "mean_box_px": None}
    gap = np.abs(a - b).transpose(0, 2, 1)[sure]  # (M, 4 + nc)
    return {
        "candidates": int(sure.sum()),
        "mean_score": round(float(gap[:, 4:].max(1).mean()), 5),
        "mean_box_px": round(float(gap[:, :4].max(1).mean()), 4),
    }
