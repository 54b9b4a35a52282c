"""How large a network is: its parameters and the multiply-accumulates of one picture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def params_and_macs(model: nn.Module, imgsz: int) -> tuple[int, int]:
    """Parameters of the network as trained, and multiply-accumulates of one picture of imgsz x imgsz.

    MACs are those of convolutions and linear layers, biases left out; GFLOPs are twice that.
    """
    total = 0

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += output.numel() // output.shape[1 if weight.ndim == 4 else -1] * weight.numel()

    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    device = next(probe.parameters()).device
    with torch.no_grad():
        probe(torch.zeros(1, 3, imgsz, imgsz, device=device))
    return sum(p.numel() for p in model.parameters()), total
