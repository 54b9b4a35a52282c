"""Convolutions fitted anew, in closed form, to maps that are no longer what they were trained on.

A convolution's weights move so that it computes from the changed maps, by least squares over places of some pictures,
what it computes in the original from the original's: the asymmetric reconstruction of Zhang et al. (arXiv 1505.06798).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
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
        # Of each batch, by name: where it is looked at, and what is computed there, (B * P, out_channels).
        self._wanted: list[dict[str, tuple[Tensor, Tensor]]] = []
        for seen in _seen(original, names, self._batches):
            drawn = {name: torch.randperm(output[0, 0].numel(), generator=generator)[:positions]
                     for name, (_, output) in seen.items()}  # fmt: skip
            self._wanted.append({name: (drawn[name], _rows(output.flatten(2), drawn[name]))
                                 for name, (_, output) in seen.items()})  # fmt: skip

    def fit_(self, model: nn.Module, names: Collection[str]) -> None:
        """Move the weights of these convolutions of the changed copy, as it is now; biases follow the mean."""
        sums: dict[str, list[Tensor]] = {}
        for seen, wanted in zip(_seen(model, names, self._batches), self._wanted, strict=True):
            for name, (x, output) in seen.items():
                drawn, whole = wanted[name]
                read = _patches(model.get_submodule(name), x, drawn)
                read = torch.cat([read, torch.ones(len(read), 1)], 1).double()
                missing = (whole - _rows(output.flatten(2), drawn)).double()
                square, cross = read.T @ read, read.T @ missing
                known = sums.setdefault(name, [torch.zeros_like(square), torch.zeros_like(cross)])
                known[0] += square
                known[1] += cross
        for name, (square, cross) in sums.items():
            damping = square.diagonal()[:-1].mean() * _DAMPING * torch.ones(len(square), dtype=square.dtype) + 1e-12
            damping[-1] = 1e-12  # of the bias, which nothing holds back
            change = torch.linalg.solve(square + torch.diag(damping), cross)
            _shift_(model, name, change[:-1].T, change[-1])


def _shift_(model: nn.Module, name: str, weight: Tensor, output: Tensor) -> None:
    """Add to a convolution's weights, (o, i * area), and to what it computes, (o,)."""
    conv: Any = model.get_submodule(name)
    conv.weight.data += weight.reshape(conv.weight.shape).to(conv.weight)
    if conv.bias is not None:
        conv.bias.data += output.to(conv.bias)
    else:
        norm: Any = model.get_submodule(name.rpartition(".")[0]).bn
        norm.running_mean -= output.to(norm.running_mean)


def _seen(model: nn.Module, names: Collection[str], batches: Iterable[Tensor]
          ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:  # fmt: skip
    """For each batch what each of the convolutions has read and what it has computed, by name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, _module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        found[name] = inputs[0], output

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        for batch in batches:
            with torch.no_grad():
                model(batch)
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def _patches(conv: Any, x: Tensor, drawn: Tensor) -> Tensor:
    """Input patches of a convolution at drawn output positions, (B * P, in_channels * area)."""
    return _rows(nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride), drawn)


def _rows(maps: Tensor, drawn: Tensor) -> Tensor:
    """(B, C, H * W) at drawn positions, (B * P, C)."""
    return maps[:, :, drawn].transpose(1, 2).flatten(0, 1)
