"""SiLU as Hardswish, where a trained detector hardly tells the one from the other.

An INT8 kernel multiplies 64 numbers at a time, and then computes an exponential and a division for each value of its
output: with Hardswish everywhere a yolov8n at 640 pixels takes an eighth less time in INT8, most of which is in the
first layers, whose maps are large (`benchmarks/activations.py`). x * relu6(x + 3) / 6 (Howard et al., arXiv 1905.02244)
is a few additions and multiplications. It was made for networks to be trained with it; but where a layer's outputs are
spread far beyond -3 to 3, as they are in the first layers and at the ends of the head, both functions are 0 on the one
side and x on the other almost everywhere, and a trained network can be given it as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from hawkeye.compress.trunk import outputs_of


def simplify_(model: nn.Module, judge: Callable[[nn.Module], float], imgsz: int, limit: float,
              advance: Callable[[int], None] = lambda _: None) -> dict[str, float]:  # fmt: skip
    """Give blocks Hardswish instead of SiLU, those first where a value of their maps costs the least.

    What several cost together is a little less than the sum of what each costs alone, so each is tried alone.

    Args:
        model: detector in eval mode, changed in place.
        judge: distance of a network from the original; 0 of the original itself.
        imgsz: side of the input in pixels.
        limit: of the sum of what they cost, in units of `judge`.
        advance: called with the number of blocks tried.

    Returns:
        What each of the changed blocks costs alone, by its name.
    """
    sizes = _sizes(model, imgsz)
    trial: Any = copy.deepcopy(model)
    costs = {}
    for name in sizes:
        block = trial.get_submodule(name)
        silu, block.act = block.act, nn.Hardswish()
        costs[name] = max(0.0, judge(trial))
        block.act = silu
        advance(1)
    chosen, total = {}, 0.0
    for name in sorted(sizes, key=lambda name: costs[name] / sizes[name]):
        if total + costs[name] <= limit:
            chosen[name] = costs[name]
            total += costs[name]
    give_(model, chosen)
    return chosen


def give_(model: nn.Module, names: Iterable[str]) -> None:
    """Give these blocks Hardswish."""
    for name in names:
        block: Any = model.get_submodule(name)
        block.act = nn.Hardswish()


def of(model: nn.Module) -> dict[str, nn.Hardswish]:
    """The blocks of a detector that have Hardswish, by name."""
    return {name: block.act for name, block in model.named_modules()
            if isinstance(getattr(block, "act", None), nn.Hardswish)}  # fmt: skip


def blocks(model: nn.Module) -> list[str]:
    """Names of the blocks that have SiLU."""
    return [name for name, block in model.named_modules() if isinstance(getattr(block, "act", None), nn.SiLU)]


def _sizes(model: nn.Module, imgsz: int) -> dict[str, int]:
    """Values of each block's map of a picture."""
    with torch.no_grad(), outputs_of(model, blocks(model)) as found:
        model(torch.zeros(1, 3, imgsz, imgsz))
    return {name: output.numel() for name, output in found.items()}
