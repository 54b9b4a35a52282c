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
from hawkeye.compress.torch_runtime import TorchRuntime
from hawkeye.config import EvaluateConfig, PruneConfig
from hawkeye.data import split_holdout, training_images
from hawkeye.detections import Detections
from hawkeye.evaluate import Truth, coco_map, detect_all
from hawkeye.progress import say

PICTURES = 32
_SURE = 0.25  # score of what counts as found, where the original stands in for labels


def forecast(original: nn.Module, pruned: nn.Module, spec: ModelSpec, config: PruneConfig) -> dict[str, Any]:
    """mAP@0.5 of the original and of the pruned network, before recovery.

    Args:
        original, pruned: stock detectors.
        spec: of both.
        config: names the pictures; of many, recovery with the same seed sets aside the same ones.

    Returns:
        JSON-ready: `before`, `after`, `judge` ("labels" or "original"), `pictures`; both None where nothing can be
        told, since neither labels nor the original say that anything is there.
    """
    pictures, judge = _held_out(config)
    found, truth = _look(original, spec, pictures, judge, "original")
    result: dict[str, Any] = {"before": None, "after": None, "judge": judge, "pictures": len(pictures)}
    if any(len(one.class_id) for one in truth):
        result["before"] = coco_map(found, truth, spec.names)[0]
        result["after"] = coco_map(_look(pruned, spec, pictures, judge, "pruned")[0], truth, spec.names)[0]
    return result


def by_size(original: nn.Module, spec: ModelSpec, sizes: Sequence[int], config: PruneConfig) -> dict[int, float]:
    """mAP@0.5 of one network at several input sizes; without labels, against what it finds at the spec's own size."""
    pictures, judge = _held_out(config)
    truth = _look(original, spec, pictures, judge, f"at {spec.imgsz}")[1]
    if not any(len(one.class_id) for one in truth):
        return dict.fromkeys(sizes, 0.0)
    at = {size: spec.model_copy(update={"imgsz": size}) for size in sizes}
    return {size: coco_map(_look(original, at[size], pictures, judge, f"at {size}")[0], truth, spec.names)[0]
            for size in sizes}  # fmt: skip


def _held_out(config: PruneConfig) -> tuple[list[Path], str]:
    """Pictures, and who says what is in them."""
    labelled, unlabelled = training_images(config.data, config.images)
    pictures = labelled or unlabelled
    share = 0.1 if len(pictures) > 10 * PICTURES else 0.4  # of few pictures, a tenth would tell nothing
    held = split_holdout(pictures, share, config.seed)[1]
    return held[:PICTURES], "labels" if labelled else "original"


def _look(model: nn.Module, spec: ModelSpec, pictures: Sequence[Path], judge: str, name: str
          ) -> tuple[list[Detections], list[Truth]]:  # fmt: skip
    """What a network finds, and the labels, or what it is sure of in their place."""
    runtime = TorchRuntime(model, spec, torch.get_num_threads())  # or it would set another number
    found, truth, _ = detect_all(runtime, EvaluateConfig(), pictures, title=f"forecast: {name}")
    if judge == "original":
        sure = [dets.score >= _SURE for dets in found]
        truth = [Truth(t.hw, d.xyxy[keep], d.class_id[keep]) for t, d, keep in zip(truth, found, sure, strict=True)]
    return found, truth


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
