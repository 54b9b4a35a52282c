"""A tiny detector whose signals reach its outputs, bare and exported; a fresh one; settings that train in seconds."""

from __future__ import annotations

import torch

from hawkeye.compress import yolo
from hawkeye.compress.distance import load_batches
from hawkeye.compress.export import export
from hawkeye.config import ExportConfig, QuantizeConfig
from hawkeye.data import load_dataset
from hawkeye.scenes import NAMES


def fresh(path, names=NAMES, *, width=0.125, imgsz=64, seed=0):
    """The checkpoint of a network that nobody has trained, the same each time."""
    torch.manual_seed(seed)
    yolo.save_checkpoint(path, yolo.build_detector(names, width=width, imgsz=imgsz), names=names)
    return path


def checkpoint(scenes, folder):
    """Random weights, but signals that differ from place to place: a fresh network's fade out on the way."""
    torch.manual_seed(0)
    model = yolo.build_detector(NAMES, width=0.125, imgsz=64)
    for branch in model.model[-1].cv3:
        torch.nn.init.normal_(branch[-1].weight, std=0.5)
        torch.nn.init.constant_(branch[-1].bias, -2.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum, module.eps = 0.5, 1e-5
    with torch.no_grad():
        for batch in list(load_batches(load_dataset(scenes).split("train"), 64, 8)) * 3:
            model(batch)
    yolo.save_checkpoint(folder / "tiny.pt", model, names=NAMES, imgsz=64)
    return folder / "tiny.pt"


def exported(scenes, folder):
    """Its checkpoint, ONNX and OpenVINO files."""
    return export(checkpoint(scenes, folder), ExportConfig(data=scenes, tolerance=0.1), out=folder / "out")


def settings(scenes, **changes):
    """Of quantization that trains."""
    # A random network contradicts the labels, so they get no weight here.
    return QuantizeConfig(**{"mode": "qat", "data": scenes, "steps": 4, "batch": 4, "checks": 2, "holdout": 0.2,
                             "labels": 0.0, **changes})  # fmt: skip
