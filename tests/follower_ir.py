"""A tiny detector as OpenVINO IR that follows the one red thing in a dark picture, so that pages have something to
show, to track and to count: its box lies around the middle of what is red, its score is how much is red there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from hawkeye.artifact import Artifact, ModelSpec

NAMES = ("ball", "cube")
SIZE = (320, 180)  # of the pictures that `frames` draws
_BOX = 12.0  # side of the box in pixels of the input
SPEC = ModelSpec(imgsz=64, names=NAMES, strides=(8, 16, 32))


def save_follower(path: Path, *, box: float = _BOX, int8: bool = False) -> Path:
    """Write the .xml and .bin."""
    import openvino as ov
    from openvino import opset13 as op

    picture = op.parameter([1, 3, 64, 64], np.float32, name="images")
    pixels = op.fake_quantize(picture, *(op.constant(np.float32(v)) for v in (0, 1, 0, 1)), 256) if int8 else picture
    # Red without green and blue, and without what is dim: (1, 1, 64, 64)
    weights = np.array([1.0, -0.5, -0.5], np.float32).reshape(1, 3, 1, 1)
    red = op.convolution(pixels, op.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
    red = op.relu(op.subtract(red, op.constant(np.float32(0.4))))
    all_of_it, axes = op.constant(np.float32(1e-6)), op.constant(np.array([1, 2, 3]))
    mass = op.add(op.reduce_sum(red, axes), all_of_it)
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) + 0.5
    middle = [op.divide(op.reduce_sum(op.multiply(red, op.constant(c[None, None])), axes), mass) for c in (x, y)]
    score = op.minimum(
        op.multiply(op.reduce_max(red, axes), op.constant(np.float32(1.6))), op.constant(np.float32(0.9))
    )
    side = op.constant(np.full(1, box, np.float32))
    column = op.reshape(op.concat([*middle, side, side, score, op.constant(np.zeros(1, np.float32))], 0),
                        op.constant(np.array([1, 6, 1])), False)  # fmt: skip
    rest = op.constant(np.zeros((1, 6, SPEC.anchors - 1), np.float32))
    model = ov.Model([op.concat([column, rest], 2)], [picture], "follower")
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def run_folder(folder: Path) -> Path:
    """A folder as a finished run leaves it, with the original and an INT8 model."""
    for place, name, options in (
        ("3-export/original", "original", {}),
        ("4-quantize/original", "original+int8", {"box": 0.9 * _BOX, "int8": True}),
    ):
        target = folder / place
        files = {"openvino": save_follower(target / "tiny.xml", **options)}
        Artifact.create(target, files, started=time.perf_counter(), name=name, stage="export", spec=SPEC, params=1,
                        macs=1)  # fmt: skip
    return folder


def frames(seconds: float = 2.0, fps: float = 15.0) -> Iterator[np.ndarray]:
    """A red ball that rolls from the left to the right and back, on a dark ground: (180, 320, 3) BGR."""
    count = round(seconds * fps)
    for i in range(count):
        there = 0.5 - 0.5 * np.cos(2 * np.pi * i / count)
        image = np.full((SIZE[1], SIZE[0], 3), 24, np.uint8)
        cv2.circle(image, (round(30 + there * 260), 100), 18, (30, 30, 250), -1, cv2.LINE_AA)
        yield image


def save_video(path: Path, *, seconds: float = 2.0, fps: float = 15.0) -> Path:
    """The same as a video file."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, SIZE)
    for image in frames(seconds, fps):
        writer.write(image)
    writer.release()
    return path
