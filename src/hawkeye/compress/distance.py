"""How far a network is from the one that it shall do as: the loss of recovery, and what it is on pictures held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hawkeye.compress.cross_entropy import bernoulli_divergence
from hawkeye.compress.training import mean_over_ranks
from hawkeye.data import read_image
from hawkeye.geometry import Letterbox

# Anchors of a picture whose boxes are compared, those that the teacher believes in most: objects claim some hundred of
# 8,400, and each box counts with its confidence.
_ANCHORS = 1024


def distillation_loss(student: dict[str, Any], teacher: dict[str, Any], features: float,
                      kept: Sequence[Tensor]) -> Tensor:  # fmt: skip
    """Distance of two raw outputs of the stock head, per object-sized unit of the teacher's confidence.

    Args:
        student, teacher: "scores" (B, nc, A) logits, "boxes" (B, 4 * reg_max, A) logits, "feats" list of (B, C, H, W).
        features: weight of the feature term, a mean over the maps; 0 leaves it out.
        kept: for each map in "feats", the teacher's channels that the student has kept.

    Returns:
        Scalar; 0 where both agree.
    """
    confidence = teacher["scores"].amax(1).float().sigmoid()  # (B, A)
    unit = mean_over_ranks(confidence.sum()).clamp_min(1.0)  # as one process would see all of the pictures
    classes = bernoulli_divergence(student["scores"], teacher["scores"]) / unit
    believed, index = confidence.topk(min(_ANCHORS, confidence.shape[1]), 1, sorted=False)  # (B, n)
    index = index[:, None].expand(-1, student["boxes"].shape[1], -1)
    log_p, log_q = (
        raw["boxes"].gather(2, index).float().unflatten(1, (4, -1)).log_softmax(2) for raw in (student, teacher)
    )
    divergence = (log_q.exp() * (log_q - log_p)).sum((1, 2))  # (B, n): four sides
    loss = classes + (divergence * believed).sum() / unit
    if features:
        for mine, theirs, index in zip(student["feats"], teacher["feats"], kept, strict=True):
            # As the student's maps lie in memory: gradients of two layouts take 15 times as long to add up as of one,
            # and those of `mse_loss` never lie channels-last. The norm's is one pass, that of a mean of squares three.
            wanted = theirs[:, index].contiguous(memory_format=torch.channels_last).float()
            apart = torch.linalg.vector_norm(mine.float() - wanted).square() / wanted.numel()
            variance = wanted.square().mean() - wanted.mean().square()  # a third of the time of `var`
            loss = loss + features * apart / variance.clamp_min(1e-6) / len(kept)
    return loss


def agreement(original: nn.Module, pictures: Sequence[Path], imgsz: int, device: str, *,
              bfloat16: bool = True) -> Callable[[nn.Module], float]:  # fmt: skip
    """Distillation loss (without features) on pictures that are not trained on."""
    batches = [batch.to(device) for batch in load_batches(pictures, imgsz, 8)]
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        wanted = [{k: v for k, v in raw_maps(original(_channels_last(b))).items() if k != "feats"} for b in batches]

    def judge(network: nn.Module) -> float:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            losses = [float(distillation_loss(raw_maps(network(_channels_last(b))), w, 0.0, ()))
                      for b, w in zip(batches, wanted, strict=True)]  # fmt: skip
        return sum(losses) / len(losses)

    return judge


def raw_maps(output: Any) -> dict[str, Any]:
    """What the stock head gives before boxes are decoded: alone in train mode, behind them in eval mode."""
    return output[1] if isinstance(output, tuple) else output


def _channels_last(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last)


def load_batches(pictures: Sequence[Path], imgsz: int, batch: int = 4) -> Iterator[Tensor]:
    """Letterboxed pictures as the runtime sees them: (B, 3, imgsz, imgsz) float32 RGB in [0, 1]."""
    for first in range(0, len(pictures), batch):
        chunk = pictures[first : first + batch]
        canvas = np.empty((len(chunk), imgsz, imgsz, 3), np.uint8)
        for place, path in zip(canvas, chunk, strict=True):
            image = read_image(path)
            Letterbox.fit((image.shape[0], image.shape[1]), imgsz).apply_(image, place)
        yield torch.from_numpy(canvas[..., ::-1].transpose(0, 3, 1, 2).copy()).float().div_(255)
