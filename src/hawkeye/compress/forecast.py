"""What pruning has left before any training: told before an hour is spent, and whether that hour makes sense.

Accuracy is measured in PyTorch on a few held-out training pictures: against their labels, or, where there are none,
against what the original finds in them. So few pictures tell a disaster from a scratch, and no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hawkeye.artifact import ModelSpec
from hawkeye.compress import yolo
from hawkeye.config import EvaluateConfig, PruneConfig
from hawkeye.data import split_holdout, training_images
from hawkeye.evaluate import Truth, coco_map, detect_all
from hawkeye.progress import say

PICTURES = 32
_SURE = 0.25  # score of what counts as found, where the original stands in for labels


def forecast(original: nn.Module, pruned: nn.Module, spec: ModelSpec, config: PruneConfig) -> dict[str, Any]:
    """mAP@0.5 of the original and of the pruned network, before recovery.

    Args:
        original, pruned: stock detectors.
        spec: of both.
        config: names the pictures; recovery with the same seed sets aside the same ones.

    Returns:
        JSON-ready: `before`, `after`, `judge` ("labels" or "original"), `pictures`; both None where nothing can be
        told, since neither labels nor the original say that anything is there.
    """
    labelled, unlabelled = training_images(config.data, config.images)
    held = split_holdout(labelled or unlabelled, 0.1 if len(labelled or unlabelled) > 10 * PICTURES else 0.4,
                         config.seed)[1]  # fmt: skip
    pictures = held[:PICTURES]
    found = {name: _look(model, spec, pictures, name) for name, model in (("original", original), ("pruned", pruned))}
    truth = found["original"][1]
    judge = "labels" if labelled else "original"
    if judge == "original":
        sure = [(dets.score >= _SURE, dets) for dets in found["original"][0]]
        truth = [Truth(t.hw, d.xyxy[keep], d.class_id[keep]) for t, (keep, d) in zip(truth, sure, strict=True)]
    result: dict[str, Any] = {"before": None, "after": None, "judge": judge, "pictures": len(pictures)}
    if any(len(one.class_id) for one in truth):
        result["before"] = coco_map(found["original"][0], truth, spec.names)[0]
        result["after"] = coco_map(found["pruned"][0], truth, spec.names)[0]
    return result


def tell(told: dict[str, Any], *, params: float, flops: float, timed: dict[str, Any]) -> None:
    """Say it; `params` and `flops` are the fractions kept, `timed` what the table of this CPU says, if it was asked."""
    size = f"{flops:.0%} of the FLOPs, {params:.0%} of the parameters and about as much of the file"
    if timed:
        size += f", {timed['kept']:.0%} of the latency in {timed['of'].upper()}"
    if told["before"] is None:
        say(f"forecast: {size}; accuracy cannot be told: the original finds nothing in these pictures")
        return
    against = "labels" if told["judge"] == "labels" else "what the original finds"
    say(f"forecast before any training: mAP@0.5 {told['before']:.3f} → {told['after']:.3f}, a drop of "
        f"{100 * (told['before'] - told['after']):.1f} points (on {told['pictures']} held-out training pictures, "
        f"against {against}); {size}")  # fmt: skip


def _look(model: nn.Module, spec: ModelSpec, pictures: Sequence[Path], name: str) -> Any:
    runtime = yolo.TorchRuntime(model, spec, torch.get_num_threads())  # or it would set another number
    return detect_all(runtime, EvaluateConfig(), pictures, title=f"forecast: {name}")
