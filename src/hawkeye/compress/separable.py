"""3x3 convolutions of the head as a depthwise and a pointwise one, fitted in closed form.

Later detectors have such heads from the start, at little loss: YOLOv10 (Wang et al., arXiv 2405.14458, table 4) and
YOLO11. A trained one can be given one after the fact, since much of what its kernels do is the same little filter for
all outputs: the factors P and D of W[o, i, k] = P[o, i] D[i, k] are fitted to what the convolution really reads, with
its outputs weighted by their importance, as channels are chosen (`saliency`). Nothing but a linear map stands between
the two, so that the fit is one of least squares for either factor while the other is held (Jaderberg et al., arXiv
1405.3866, fit separable filters so).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye.compress import yolo
from hawkeye.compress.saliency import Moments

_SWEEPS = 8  # each fits either factor once; the error is level after five
_RIDGE = 1e-3  # of the mean variance


def convolutions(model: nn.Module) -> list[str]:
    """Names of the head's blocks with a full 3x3 convolution: two in each branch, of boxes and of classes."""
    head = f"model.{len(model.model) - 1}"
    return [name.removesuffix(".conv") for name, module in model.named_modules()
            if name.startswith(f"{head}.cv") and name.endswith(".conv") and isinstance(module, nn.Conv2d)
            and module.kernel_size == (3, 3) and module.groups == 1]  # fmt: skip


def separate_(model: nn.Module, names: Sequence[str], moments: Mapping[str, Moments]) -> dict[str, float]:
    """Replace each of these blocks by a depthwise and a pointwise one.

    Args:
        model: detector in eval mode, changed in place.
        names: of blocks with a convolution, BatchNorm and an activation.
        moments: of their convolutions, by the name of those.

    Returns:
        The share of each one's weighted output energy that is lost.
    """
    lost = {}
    for name in names:
        block, known = model.get_submodule(name), moments[f"{name}.conv"]
        weight = block.conv.weight.detach()
        depthwise, pointwise, lost[name] = factors(weight, known)
        product = (pointwise[:, :, None] * depthwise[None]).flatten(1)
        shift = (weight.double().flatten(1) - product) @ known.mean  # of the mean output, taken up by BatchNorm
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _stand_in(block, depthwise, pointwise, shift))
    return lost


def _stand_in(block: nn.Module, depthwise: Tensor, pointwise: Tensor, shift: Tensor) -> nn.Module:
    """A depthwise block without activation and a pointwise one with the block's own BatchNorm and activation.

    Args:
        block: a stock `Conv`.
        depthwise, pointwise: see `factors`.
        shift: (o,) what the mean output of the block's convolution is above that of the two.
    """
    conv: Any = block.conv
    first, second = yolo.depthwise_and_pointwise(*pointwise.shape[::-1], conv.kernel_size[0], conv.stride[0])
    first.conv.weight.data.copy_(depthwise.view_as(first.conv.weight))
    second.conv.weight.data.copy_(pointwise.view_as(second.conv.weight))
    first.bn.eps, first.bn.momentum = block.bn.eps, block.bn.momentum
    first.bn.weight.data.fill_((1 + block.bn.eps) ** 0.5)  # changes nothing, until it is trained
    second.bn, second.act = copy.deepcopy(block.bn), block.act
    second.bn.running_mean -= shift.to(second.bn.running_mean)
    return nn.Sequential(first, second).eval().requires_grad_(False)


def factors(weight: Tensor, moments: Moments) -> tuple[Tensor, Tensor, float]:
    """Depthwise (i, k) and pointwise (o, i) float64 factors of a kernel (o, i, kh, kw), and the energy's share lost."""
    w = weight.detach().double().flatten(2)  # (o, i, k)
    outputs, inputs, area = w.shape
    flat, fisher = w.flatten(1), moments.fisher.double()
    cov = moments.cov + _RIDGE * moments.cov.diagonal().mean() * torch.eye(inputs * area, dtype=torch.float64)
    by_place = cov.view(inputs, area, inputs, area)
    seen = (flat @ cov).view(outputs, inputs, area)
    # The best filters if inputs were independent of each other.
    depthwise = torch.linalg.svd((w * fisher.sqrt()[:, None, None]).transpose(0, 1), full_matrices=False).Vh[:, 0]
    pointwise = torch.zeros(outputs, inputs, dtype=torch.float64)
    for sweep in range(_SWEEPS):
        if sweep:
            pairs = torch.einsum("o,oi,oj->ij", fisher, pointwise, pointwise)
            normal = torch.einsum("ij,ikjl->ikjl", pairs, by_place).reshape(inputs * area, -1)
            wanted = torch.einsum("o,oi,oik->ik", fisher, pointwise, seen).flatten()
            depthwise = _solve(normal, wanted).view(inputs, area)
        gram = torch.einsum("ik,ikjl,jl->ij", depthwise, by_place, depthwise)
        pointwise = _solve(gram, torch.einsum("oik,ik->io", seen, depthwise)).T
    error = flat - (pointwise[:, :, None] * depthwise[None]).flatten(1)
    energy, left = (float(((fisher[:, None] * (a @ cov)) * a).sum()) for a in (flat, error))
    return depthwise, pointwise, left / max(energy, 1e-300)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares where channels that are never active leave the matrix singular."""
    ridge = 1e-8 * float(matrix.diagonal().mean()) + 1e-300
    return torch.linalg.solve(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype), right)
