"""A tiny detector as OpenVINO IR, built from operators alone: no torch, no weights from elsewhere.

Its output is the stock layout (1, 4 + nc, A) at strides 8, 16 and 32. Each cell's box is fixed to the cell, and its
scores follow the mean blue, green and red of the picture there, so that what it finds can be told beforehand.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import yaml

from hawkeye.artifact import Artifact, ModelSpec

NAMES = ("blue", "green", "red")
SPEC = ModelSpec(imgsz=64, names=NAMES, strides=(8, 16, 32))


def save_ir(
    path: Path,
    *,
    outputs: int = 3,
    dynamic: bool = False,
    stock_head: bool = False,
    floor: float = 0.0,
    int8: bool = False,
    imgsz: int = 64,
) -> Path:
    """Write the .xml and .bin; `outputs` classes, or another number to be wrong on purpose.

    Scores are lower by `floor`, so what is dimmer is not found; `int8` puts a quantizer in; `imgsz`: input side.
    With `stock_head` the boxes come from the constants that a real YOLOv8 head has: cells, strides, target shapes.
    """
    import openvino as ov
    from openvino import opset13 as op

    picture = op.parameter([-1, 3, -1, -1] if dynamic else [1, 3, imgsz, imgsz], np.float32, name="images")
    pixels = op.fake_quantize(picture, *(op.constant(np.float32(v)) for v in (0, 1, 0, 1)), 256) if int8 else picture
    levels = []
    for stride in SPEC.strides:
        side = imgsz // stride
        # RGB means per cell -> scores in the order blue, green, red
        kernel = np.zeros((outputs, 3, stride, stride), np.float32)
        for out in range(min(outputs, 3)):
            kernel[out, 2 - out] = 1 / stride**2
        zeros = [0, 0]
        score = op.convolution(pixels, op.constant(kernel), [stride] * 2, zeros, zeros, [1, 1])
        score = op.subtract(score, op.constant(np.float32(floor))) if floor else score
        score = op.reshape(score, op.constant(np.array([1, outputs, -1 if stock_head else side * side])), False)
        if stock_head:
            levels.append(score)
            continue
        y, x = np.divmod(np.arange(side * side), side)
        box = np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full_like(x, stride), np.full_like(x, stride)])
        levels.append(op.concat([op.constant(box[None].astype(np.float32)), score], 1))
    result = op.concat(levels, 2)
    if stock_head:
        sides = [imgsz // stride for stride in SPEC.strides]
        grids = [np.divmod(np.arange(side * side), side) for side in sides]
        cells = np.concatenate([np.stack([x, y]) + 0.5 for y, x in grids], 1).astype(np.float32)[None]
        strides = np.repeat(SPEC.strides, [side * side for side in sides]).astype(np.float32)[None]
        none = op.multiply(op.constant(np.float32(0)), op.constant(cells))
        box = op.concat([op.constant(cells), op.add(none, op.constant(np.float32(1)))], 1)
        box = op.reshape(op.multiply(box, op.constant(strides)), op.constant(np.array([1, 4, cells.shape[-1]])), False)
        result = op.concat([box, result], 1)
    model = ov.Model([result], [picture], "tiny")
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def stock_folder(folder: Path, *, stock_head: bool = False, **metadata: object) -> Path:
    """What a stock OpenVINO export looks like: an IR with metadata.yaml beside it."""
    save_ir(folder / "tiny.xml", stock_head=stock_head)
    content = {"task": "detect", "imgsz": [64, 64], "stride": 32, "names": dict(enumerate(NAMES)), **metadata}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(content))
    return folder


def artifact(folder: Path, name: str = "original", names: tuple[str, ...] = NAMES) -> Artifact:
    """A finished artefact that holds the IR."""
    files = {"openvino": save_ir(folder / "tiny.xml")}
    spec = SPEC.model_copy(update={"names": names})
    return Artifact.create(
        folder, files, started=time.perf_counter(), name=name, stage="export", spec=spec, params=1, macs=1
    )
