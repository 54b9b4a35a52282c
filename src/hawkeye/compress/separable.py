"""3x3 convolutions as a depthwise and a pointwise one, fitted in closed form.

Later detectors have such heads from the start, at little loss: YOLOv10 (Wang et al., arXiv 2405.14458, table 4) and
YOLO11. A trained one can be given one after the fact, since much of what its kernels do is the same little filter for
all outputs: the factors P and D of W[o, i, k] = P[o, i] D[i, k] are fitted to what the convolution really reads, with
its outputs weighted by their importance, as channels are chosen (`saliency`). Nothing but a linear map stands between
the two, so that the fit is one of least squares for either factor while the other is held (Jaderberg et al., arXiv
1405.3866, fit separable filters so).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hawkeye.compress import yolo
from hawkeye.compress.allocate import Cost, allocate
from hawkeye.compress.groups import cut_, find_groups
from hawkeye.compress.saliency import Moments, ObsScorer

_SWEEPS = 8  # each fits either factor once; the error is level after five
_RIDGE = 1e-3  # of the mean variance
_HOPELESS = 1.2  # times the distance: what was as bad as that the first time is not tried again


def convolutions(model: nn.Module) -> list[str]:
    """Names of blocks that can be separated: the head's full 3x3 ones, and those of the neck that halve the map.

    Not the backbone's: as long as it is the original's own, recovery computes it once for teacher and student
    (`trunk`). With its last such block separated as well a yolov8n began recovery at a held-out loss of 0.71 instead of
    1.10, and was behind after ten minutes.
    """
    kinds = [type(layer).__name__ for layer in model.model]
    neck = range(kinds.index("SPPF") + 1 if "SPPF" in kinds else len(kinds), len(kinds) - 1)
    return [f"model.{index}" for index in neck if _full(model.model[index])] + of_head(model)


def of_head(model: nn.Module) -> list[str]:
    """Names of the head's blocks with a full 3x3 convolution: two in each branch, of boxes and of classes."""
    head = f"model.{len(model.model) - 1}"
    return [name for name, module in model.named_modules() if name.startswith(f"{head}.cv") and _full(module)]


def _full(block: nn.Module) -> bool:
    conv = getattr(block, "conv", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.groups == 1


class Fit(NamedTuple):
    """What stands in for a convolution, in float64.

    Attributes:
        depthwise, pointwise: factors of its kernel, (i, k) and (o, i).
        shift: (o,) what its mean output is above theirs.
        lost: the share of its weighted output energy that is lost.
        damage: the same as a sum over a picture, in the units of `ObsScorer`.
        moments: of the pointwise convolution.
    """

    depthwise: Tensor
    pointwise: Tensor
    shift: Tensor
    lost: float
    damage: float
    moments: Moments


def separate_(model: nn.Module, fits: Mapping[str, Fit]) -> None:
    """Replace each of these blocks (a convolution, BatchNorm, an activation) by a depthwise and a pointwise one.

    Args:
        model: detector in eval mode, changed in place.
        fits: of their convolutions, by the name of the block.
    """
    for name, fit in fits.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _stand_in(model.get_submodule(name), fit))


def choose(model: nn.Module, fits: Mapping[str, Fit], moments: Mapping[str, Moments],
           judge: Callable[[nn.Module], float], *, imgsz: int, macs: float, params: float, align: int,
           advance: Callable[[int], None] = lambda _: None) -> list[str]:  # fmt: skip
    """Blocks to separate, so that with the channels that still have to go the network is the nearest to the original.

    What a convolution saves, no channel has to pay for, and the other way round. Beginning with all of the head's, one
    after another is changed, the most damaged first, and stays so if the network, pruned in one step, is better for it.
    The damage in the units of OBS would not do: that of class branches is mostly to scores of background, and networks
    with less of it in sum were worse.

    Args:
        model: detector in eval mode whose C2f are split; not changed.
        fits: of the blocks that may be separated.
        moments: of their convolutions, and of all that read a group's channels.
        judge: distance of a network from the original.
        imgsz, macs, params, align: as channels are going to be allocated.
        advance: called with the number of blocks tried; each is tried twice, the second time in what has become of
            the network.
    """
    inverse: dict[str, Tensor] = {}
    known = dict(moments) | {f"{name}.1.conv": fit.moments for name, fit in fits.items()}

    @cache
    def distance(names: frozenset[str]) -> float:
        trial = copy.deepcopy(model)
        separate_(trial, {name: fit for name, fit in fits.items() if name in names})
        groups = find_groups(trial)
        scorer = ObsScorer(trial, groups, known, inverse)
        keep = allocate(groups, Cost(trial, groups, imgsz), scorer, macs=macs, params=params, align=align)
        scorer.refit_(keep)
        cut_(trial, {name: index.tolist() for name, index in keep.items()}, groups)
        return judge(trial)

    chosen = frozenset(of_head(model))
    order = sorted(fits, key=lambda name: -fits[name].damage)
    hopeless = set()
    for name in [*order, *order]:
        if name not in hopeless:
            changed = chosen ^ {name}
            if distance(changed) > _HOPELESS * distance(chosen):
                hopeless.add(name)
            chosen = min(chosen, changed, key=distance)
        advance(1)
    return [name for name in fits if name in chosen]


def _stand_in(block: nn.Module, fit: Fit) -> nn.Module:
    """A depthwise block without activation and a pointwise one with the stock block's own BatchNorm and activation."""
    conv: Any = block.conv
    first, second = yolo.depthwise_and_pointwise(*fit.pointwise.shape[::-1], conv.kernel_size[0], conv.stride[0])
    first.conv.weight.data.copy_(fit.depthwise.view_as(first.conv.weight))
    second.conv.weight.data.copy_(fit.pointwise.view_as(second.conv.weight))
    first.bn.eps, first.bn.momentum = block.bn.eps, block.bn.momentum
    first.bn.weight.data.fill_((1 + block.bn.eps) ** 0.5)  # changes nothing, until it is trained
    second.bn, second.act = copy.deepcopy(block.bn), block.act
    second.bn.running_mean -= fit.shift.to(second.bn.running_mean)
    pair: Any = nn.Sequential(first, second).eval().requires_grad_(False)
    for key in ("i", "f", "type", "np"):  # Ultralytics' place in the network, of a layer of its own
        if key in vars(block):  # Module.type is a method
            setattr(pair, key, vars(block)[key])
    return pair


def factorize(weight: Tensor, moments: Moments) -> Fit:
    """The depthwise and pointwise factors that lose the least of what a kernel (o, i, kh, kw) computes."""
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
    read = Moments((moments.mean.view_as(depthwise) * depthwise).sum(1),
                   torch.einsum("ik,ikjl,jl->ij", depthwise, moments.cov.view_as(by_place), depthwise),
                   moments.fisher)  # fmt: skip
    return Fit(depthwise, pointwise, error @ moments.mean, left / max(energy, 1e-300), left, read)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares where channels that are never active leave the matrix singular."""
    ridge = 1e-8 * float(matrix.diagonal().mean()) + 1e-300
    return torch.linalg.solve(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype), right)
