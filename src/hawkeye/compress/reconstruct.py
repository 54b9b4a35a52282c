"""Convolutions fitted anew, in closed form, to maps that are no longer what they were trained on.

A convolution's weights move so that it computes from the changed maps, by least squares over places of some pictures,
what it computes in the original from the original's: the asymmetric reconstruction of Zhang et al. (arXiv 1505.06798).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_DAMPING = 1e-2  # of the mean variance of inputs: weights hardly move where inputs hardly vary


class Reconstruction:
    """What convolutions of a network compute, to be computed by those of a changed copy.

    Args:
        original: detector in eval mode; not changed.
        names: its convolutions that may be fitted.
        batches: (B, 3, H, W) float32 in [0, 1]; kept for the changed copies.
        positions: output positions per picture and layer at most, drawn evenly.
        seed: of the positions.
    """

    def __init__(self, original: nn.Module, names: Collection[str], batches: Iterable[Tensor], *,
                 positions: int = 320, seed: int = 0) -> None:  # fmt: skip
        self._batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
        generator = torch.Generator().manual_seed(seed)
        self._drawn: dict[str, list[Tensor]] = {name: [] for name in names}  # positions of each batch
        self._wanted: dict[str, list[Tensor]] = {name: [] for name in names}  # (B * P, out_channels) of each batch

        def keep(name: str, output: Tensor) -> None:
            maps = output.flatten(2)  # (B, C, H * W)
            drawn = torch.randperm(maps.shape[2], generator=generator)[:positions]
            self._drawn[name].append(drawn)
            self._wanted[name].append(maps[:, :, drawn].transpose(1, 2).flatten(0, 1).clone())

        hooks = [original.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: keep(name, output)) for name in names]  # fmt: skip
        _run(original, self._batches, hooks)

    def fit_(self, model: nn.Module, names: Collection[str]) -> None:
        """Move the weights of these convolutions, in what the changed copy gives them now; biases follow the mean."""
        sums: dict[str, list[Tensor]] = {}

        def add(name: str, conv: Any, x: Tensor, output: Tensor, done: list[int]) -> None:
            index = len(done)
            drawn = self._drawn[name][index]
            done.append(index)
            read = _patches(conv, x, drawn)
            missing = self._wanted[name][index] - output.flatten(2)[:, :, drawn].transpose(1, 2).flatten(0, 1)
            read = torch.cat([read, torch.ones(len(read), 1)], 1).double()
            square, cross = read.T @ read, read.T @ missing.double()
            known = sums.setdefault(name, [torch.zeros_like(square), torch.zeros_like(cross)])
            known[0] += square
            known[1] += cross

        hooks = []
        for name in names:
            done: list[int] = []
            hooks.append(model.get_submodule(name).register_forward_hook(
                lambda conv, inputs, output, name=name, done=done: add(name, conv, inputs[0], output, done)
            ))  # fmt: skip
        _run(model, self._batches, hooks)
        for name, (square, cross) in sums.items():
            damping = torch.full((len(square),), _DAMPING * float(square.diagonal()[:-1].mean()) + 1e-12)
            damping[-1] = 1e-12  # of the shift, which nothing holds back
            change = torch.linalg.solve(square + torch.diag(damping.double()), cross)
            shift_(model, name, change[:-1].T, change[-1])


def shift_(model: nn.Module, name: str, weight: Tensor, output: Tensor) -> None:
    """Add to a convolution's weights, (o, i * area), and to what it computes, (o,)."""
    conv: Any = model.get_submodule(name)
    conv.weight.data += weight.reshape(conv.weight.shape).to(conv.weight)
    if conv.bias is not None:
        conv.bias.data += output.to(conv.bias)
    else:
        norm: Any = model.get_submodule(name.rpartition(".")[0]).bn
        norm.running_mean -= output.to(norm.running_mean)


def _run(model: nn.Module, batches: Iterable[Tensor], hooks: Iterable[Any]) -> None:
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _patches(conv: nn.Conv2d, x: Tensor, drawn: Tensor) -> Tensor:
    """Input patches of a convolution at drawn output positions, (B * P, in_channels * area)."""
    found = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    return found[:, :, drawn].transpose(1, 2).flatten(0, 1)
