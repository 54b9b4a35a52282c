"""Several depthwise filters a channel, as one stock block in a file and as parallel ones everywhere else.

A stock depthwise convolution may have r filters for each channel: `DWConv(c, r * c)`. OpenVINO and oneDNN have no fast
kernel for that: in INT8 two filters a channel, and the pointwise convolution behind them, take eight times as long as
one filter does, 2.5 ms instead of 0.32 at 64 channels of 80 x 80, and a full 3x3 convolution takes 0.75 (two cores with
VNNI, `benchmarks/filters.py`). Two depthwise convolutions whose maps are concatenated compute the same in 0.50. So
checkpoints are made of stock blocks, as stock Ultralytics reads them, and what is pruned, trained and exported has
parallel ones; `yolo.load_checkpoint` and `yolo.save_checkpoint` are where the one becomes the other.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_BY_CHANNEL = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


class Filters(nn.ModuleList):
    """Depthwise blocks that read the same map; what the first of them computes comes first."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) to (B, r * c, H', W')."""
        return torch.cat([block(x) for block in self], 1)


def split_filters_(model: nn.Module) -> None:
    """Replace every stock block of several filters a channel, with a pointwise one behind it, by parallel ones."""
    for pair in _pairs(model):
        first, second = pair[0], pair[1]
        count = _filters(first)
        if count > 1:
            pair[0] = Filters(_every(first, start, count) for start in range(count))
            _reorder_(second, second.conv.in_channels // count, count)


def merge_filters_(model: nn.Module) -> None:
    """Put stock blocks back, with whatever channels were kept."""
    for pair in _pairs(model):
        first, second = pair[0], pair[1]
        if isinstance(first, Filters):
            pair[0] = _interleaved(first)
            _reorder_(second, len(first), second.conv.in_channels // len(first))


def _pairs(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Sequential) and len(module) == 2]


def _filters(block: nn.Module) -> int:
    """Filters a channel of a depthwise block; 0 of anything else."""
    conv = getattr(block, "conv", None)
    if not isinstance(conv, nn.Conv2d) or conv.groups == 1 or conv.groups != conv.in_channels:
        return 0
    return conv.out_channels // conv.groups


def _every(block: nn.Module, start: int, count: int) -> nn.Module:
    """One filter of each channel; those of a channel lie side by side in a grouped convolution."""
    state = block.state_dict()
    return _with(block, {name: state[name][start::count] for name in _BY_CHANNEL})


def _interleaved(blocks: Filters) -> nn.Module:
    states = [block.state_dict() for block in blocks]
    return _with(blocks[0], {name: torch.stack([s[name] for s in states], 1).flatten(0, 1) for name in _BY_CHANNEL})


def _with(block: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of a block with other outputs."""
    made: Any = copy.deepcopy(block)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        kept = tensor.detach().clone()
        setattr(made.get_submodule(owner), leaf,
                kept if "running" in leaf else nn.Parameter(kept, requires_grad=False))  # fmt: skip
    made.conv.out_channels = made.bn.num_features = len(tensors["conv.weight"])
    return made  # type: ignore[no-any-return]


def _reorder_(block: Any, rows: int, columns: int) -> None:
    """What a pointwise block reads as (rows, columns) comes as (columns, rows)."""
    weight = block.conv.weight
    weight.data = weight.detach().unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2).contiguous()
