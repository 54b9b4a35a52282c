"""INT8 by calibration: NNCF finds places and ranges on training pictures; both files are written from its record."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import artifact, environment
from hawkeye.artifact import Artifact, Format
from hawkeye.compress import int8_checks, quantizers
from hawkeye.compress.export import (
    INPUT,
    Infer,
    canvas_of,
    metadata,
    onnx_infer,
    openvino_infer,
    save_onnx,
    save_openvino,
)
from hawkeye.compress.quantizers import Quantization
from hawkeye.config import QuantizeConfig
from hawkeye.errors import ExportError, MissingExtraError, ModelError
from hawkeye.keys import ENOUGH, PARITY_PICTURES, pictures_digest
from hawkeye.progress import Task, progress, say

os.environ.setdefault("NNCF_CI", "1")  # the one switch that keeps NNCF from sending usage statistics
try:
    import nncf
    import onnx
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
except ImportError as error:
    raise MissingExtraError("compress", error.name or "nncf") from error

# Mean score difference allowed between torch, OpenVINO and ONNX Runtime, over candidates above CONFIDENT in either.
# The same integers give 0.01 to 0.02 for yolov8n: runtimes add up in another order, and what falls on the edge between
# two integers goes to either side. Rounding the first layer's largest weights the other way alone gave up to 0.05.
AGREEMENT = 0.08
# Mean box difference allowed, as a share of the input's side: 6.4 pixels of 640. Of 44 quantized networks at 320 to 640
# pixels the largest was 0.0033 (docs/results/int8.md); boxes of another decode are tens of pixels off.
BOX_AGREEMENT = 0.01


def calibrate(source: Artifact, config: QuantizeConfig, pictures: Sequence[Path], *, out: Path, key: str) -> Artifact:
    """Quantize an exported detector to INT8, as OpenVINO IR and as Q/DQ ONNX with the same integers.

    Args:
        source: an artefact with ONNX and OpenVINO files, whose input `check_input` has seen.
        config: settings.
        pictures: at least 10 training pictures.
        out: folder that everything is written to.
        key: of the work.

    Raises:
        ExportError: a convolution was not quantized, the decode was, or the files disagree.
    """
    started = time.perf_counter()
    if (done := artifact.reuse(out, key)) is not None:
        return done
    spec, graph = source.spec, onnx.load(source.path("onnx"))
    model = quantizers.read_ir(source.path("openvino"))
    warnings, bits = cpu_notes(len(pictures), config.weight_bits)
    for line in warnings:
        say(f"Warning: {line}")
    with progress(f"Quantize {source.name}", len(pictures)) as task:
        clock = time.perf_counter()
        model = post_training(model, pictures, config, spec.imgsz, bits, task)
        seconds = round(time.perf_counter() - clock, 2)
    # NNCF takes the mean of each picture's extremes, and what lies beyond is cut off.
    quantization = quantizers.read(model, graph).widened(config.margin)
    details = {"calibration_images": len(pictures), "calibration_digest": pictures_digest(pictures),
               "calibration_seconds": seconds, "warnings": warnings,
               "weight_bits": bits, "weight_scales": "by channel" if config.per_channel else "by layer"}  # fmt: skip
    return write_int8(source, model, quantization, pictures, config, details, out=out, key=key, started=started)


def write_int8(
    source: Artifact,
    model: openvino.Model,
    quantization: Quantization,
    pictures: Sequence[Path],
    config: QuantizeConfig,
    details: dict[str, Any],
    *,
    out: Path,
    key: str,
    started: float,
) -> Artifact:
    """Write both INT8 files of a record of quantizers, prove them, and return the artefact.

    Args:
        source: the float artefact.
        model: calibrated IR; changed.
        quantization: what both files shall hold.
        pictures: of which some are compared on.
        config: settings.
        details: what else there is to record.
        out: folder.
        key: of the work.
        started: of `time.perf_counter`.

    Raises:
        ExportError: what runs in INT8 is not what should, or PyTorch, OpenVINO and ONNX Runtime disagree.
    """
    spec, name = source.spec, f"{source.name}+int8"
    dynamic = bool(source.details.get("dynamic", False))
    facts = metadata(spec, name=name, dynamic=dynamic, int8=True)
    in_float = quantization.in_float()
    files: dict[Format, Path] = {"onnx": out / f"{name}.onnx"}
    with artifact.storage_errors(out):
        quantizers.write_openvino_(model, quantization)
        kept, convolutions = int8_checks.check_openvino(model, in_float)
        files["openvino"] = save_openvino(model, out, name, facts)
        graph = quantizers.write_onnx(onnx.load(source.path("onnx")), quantization)
        int8_checks.check_onnx(graph, in_float)
        save_onnx(graph, files["onnx"], facts)
    warnings = list(details.get("warnings", ()))
    executed = {fmt: int8_checks.executed_precisions(path) for fmt, path in files.items()}
    int8 = {fmt: sum(counts[p] for p in ("i8", "u8")) for fmt, counts in executed.items()}
    for fmt, count in int8.items():
        if count != convolutions - kept:
            message = f"{count} of {convolutions - kept} quantized convolutions of the {fmt} file run in INT8 here"
            if "avx2" in environment.instruction_sets():
                raise ExportError("OpenVINO does not run the quantized network in INT8", got=message,
                                  expected="all but DFL and what was left in float")  # fmt: skip
            warnings.append(message)  # other processors: the file is right, this machine cannot use it fully
    canvases = np.stack([canvas_of(path, spec.imgsz) for path in pictures[:PARITY_PICTURES]])
    computed = {"openvino": openvino_infer(files["openvino"]), "onnx": onnx_infer(files["onnx"])}
    if "pytorch" in source.files:
        computed["torch"] = mirror_infer(source, quantization)
    raw = {runtime: infer(canvases) for runtime, infer in computed.items()}
    exact = openvino_infer(source.path("openvino"))(canvases)
    pairs = (("openvino", "onnx"), ("torch", "openvino"), ("torch", "onnx"))
    agreement = {f"{a} - {b}": int8_checks.distance(raw[a], raw[b]) for a, b in pairs if a in raw}
    check_agreement(agreement, spec.imgsz)
    if not any(found["candidates"] for found in agreement.values()):
        warnings.append(f"no runtime scores anything above {int8_checks.CONFIDENT} in the {len(canvases)} calibration "
                        "pictures that they are compared on, so it is not shown that they agree")  # fmt: skip
        say(f"Warning: {warnings[-1]}")
    agreement |= {f"{runtime} - fp32": int8_checks.distance(output, exact) for runtime, output in raw.items()}
    details = {
        **details,
        "int8_convolutions": int8["openvino"],
        "convolutions": convolutions,
        "executed": dict(executed["openvino"]),
        "float_layers": in_float,
        "agreement": agreement,
        "agreement_limit": {
            "mean_score": AGREEMENT,
            "mean_box_px": BOX_AGREEMENT * spec.imgsz,
            "confident": int8_checks.CONFIDENT,
        },
        "dynamic": dynamic,
        "warnings": warnings,
    }
    return Artifact.create(out, files, started=started, name=name, stage="quantize", spec=spec, params=source.params,
                           macs=source.macs, parent_sha256=source.sha256, key=key,
                           config=config.model_dump(mode="json", exclude={"data", "images"}), seed=config.seed,
                           details=details)  # fmt: skip


def check_agreement(agreement: dict[str, dict[str, float | int | None]], imgsz: int) -> None:
    """Refuse files that do not compute the same.

    Args:
        agreement: of `int8_checks.distance`, by the pair of runtimes; where nothing is seen there is nothing to refuse.
        imgsz: side of the input in pixels.

    Raises:
        ExportError: scores or boxes of a pair are further apart than allowed, or not finite.
    """
    limits = {"mean_score": AGREEMENT, "mean_box_px": BOX_AGREEMENT * imgsz}
    for pair, found in agreement.items():
        for what, limit in limits.items():
            if not (found[what] or 0.0) <= limit:  # NaN is not below anything
                raise ExportError(f"INT8 does not compute the same in {pair.replace(' - ', ' and ')}", got=found,
                                  expected=f"{what} at most {limit:g}")  # fmt: skip


def mirror_infer(source: Artifact, quantization: Quantization) -> Infer:
    """The same arithmetic in PyTorch, by fake quantization."""
    import torch

    from hawkeye.compress import fake_quantize, yolo

    network = yolo.folded(yolo.load_checkpoint(source.path("pytorch")).model)
    network = fake_quantize.mirror(network, quantization, trained=False).eval()

    def infer(canvases: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.concatenate([network(torch.from_numpy(c[None]))[0].numpy() for c in canvases])

    return infer


def check_input(model: openvino.Model) -> None:
    """Pictures are given as planes of red, green and blue; refuse a network that takes them in another order.

    Raises:
        ModelError: one input of (1, 3, H, W) is expected.
    """
    shapes = [value.get_partial_shape() for value in model.inputs]
    shape = shapes[0] if len(shapes) == 1 else None
    if shape is None or len(shape) != 4 or shape[1].is_dynamic or shape[1].get_length() != 3:
        raise ModelError("the network takes its pictures in another order of channels", got=[str(s) for s in shapes],
                         expected="(1, 3, height, width), red, green and blue in [0, 1]",
                         mend="quantize a file that `hawkeye export` wrote")  # fmt: skip


def cpu_notes(pictures: int, bits: int | None) -> tuple[list[str], int]:
    """What the user should know about the pictures and this CPU; and the bits that weights shall have."""
    found = []
    if pictures < ENOUGH:
        found.append(f"{pictures} calibration pictures; {ENOUGH} or more give steadier ranges")
    sets = environment.instruction_sets()
    if set(environment.INT8_SETS) & set(sets):
        return found, bits or 8
    if not sets:
        if bits is None:
            found.append("this system does not tell the CPU's instruction sets: weights get 8 bits; where it has no "
                         "VNNI sums of products may overflow, which weight_bits = 7 in a recipe prevents")  # fmt: skip
        return found, bits or 8
    # Without them two products are added in 16 bits, which 8 bits times 8 bits can overflow.
    found.append("this CPU has no VNNI, nor ARM's dot product: INT8 gains little speed here" + (
        ", and sums of products may overflow with 8-bit weights" if bits == 8 else
        "; weights get 7 bits, so that sums of products cannot overflow"))  # fmt: skip
    return found, bits or 7


def parameters_of(config: QuantizeConfig, bits: int) -> AdvancedQuantizationParameters:
    """How NNCF calibrates; `benchmarks/calibration.py` compares the ways."""
    return AdvancedQuantizationParameters(
        # The first layer's weights have 7 bits in any case: its sums are the largest, and it costs nothing.
        overflow_fix=nncf.OverflowFix.ENABLE if bits == 7 else nncf.OverflowFix.FIRST_LAYER,
        weights_quantization_params=QuantizationParameters(per_channel=config.per_channel),
        # What depthwise convolutions read would get a range per channel, beside the one that others read it with.
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )


def post_training(
    model: openvino.Model,
    pictures: Sequence[Path],
    config: QuantizeConfig,
    imgsz: int,
    bits: int,
    task: Task,
    *,
    parameters: AdvancedQuantizationParameters | None = None,
) -> openvino.Model:
    """NNCF's post-training quantization with its chatter off; `task` advances once per picture."""
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 - NNCF draws from the global generator
    counted = set()

    def canvas(path: Path) -> dict[str, NDArray[np.float32]]:
        if path not in counted:  # NNCF passes over the pictures more than once
            counted.add(path)
            task.advance(note=f"{len(counted)} pictures")
        return {INPUT: canvas_of(path, imgsz)[None]}

    quantizers.fold_constants_(model)  # or NNCF corrects none of them
    ignored = int8_checks.decode_of_openvino(model)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(list(pictures), canvas),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(pictures),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=ignored),
            advanced_parameters=parameters or parameters_of(config, bits),
        )
