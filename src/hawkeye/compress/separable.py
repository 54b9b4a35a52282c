"""3x3 convolutions as depthwise and pointwise ones, fitted in closed form.

Later detectors have such heads from the start, at little loss: YOLOv10 (Wang et al., arXiv 2405.14458, table 4) and
YOLO11. A trained one can be given one after the fact, since much of what its kernels do is the same little filter for
all outputs: the factors P and D of W[o, i, k] = P[o, i] D[i, k] are fitted to what the convolution really reads, with
its outputs weighted by their importance, as channels are chosen (`saliency`). Nothing but a linear map stands between
the two, so that the fit is one of least squares for either factor while the other is held (Jaderberg et al., arXiv
1405.3866, fit separable filters so). A second filter for each channel is fitted to what the first one leaves, and the
pointwise factor to both: W[o, i, k] = P1[o, i] D1[i, k] + P2[o, i] D2[i, k].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hawkeye.compress import yolo
from hawkeye.compress.allocate import Cost, allocate
from hawkeye.compress.groups import cut_, find_groups, held
from hawkeye.compress.saliency import Moments, ObsScorer
from hawkeye.errors import BoundsError

FILTERS = 3  # a channel, at most
_SWEEPS = 6  # each fits either factor once; the error is level after five
_RIDGE = 1e-3  # of the mean variance
_LARGEST = 32.0  # norm of a filter: what reads a channel that hardly varies must still fit into half precision
_WHOLE = 1.1  # times the distance are worth a backbone that needs no training
_HOPELESS = 1.2  # times the distance: what was as bad as that the first time is not tried again


def convolutions(model: nn.Module) -> list[str]:
    """Names of blocks that can be separated: the full 3x3 ones of neck and head.

    Not the backbone's: as long as it is the original's own, recovery computes it once for teacher and student
    (`trunk`). With its last such block separated as well a yolov8n began recovery at a held-out loss of 0.71 instead of
    1.10, and was behind after ten minutes.
    """
    neck = tuple(f"model.{index}." for index in range(backbone(model), len(model.model) - 1))
    found = [name for name, module in model.named_modules() if f"{name}.".startswith(neck) and _full(module)]
    return found + of_head(model)


def backbone(model: nn.Module) -> int:
    """How many leading layers the backbone has: up to SPPF; without one all but the head count."""
    kinds = [type(layer).__name__ for layer in model.model]
    return kinds.index("SPPF") + 1 if "SPPF" in kinds else len(kinds) - 1


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
        depthwise, pointwise: factors of its kernel, (r, i, k) and (o, r * i), where r is the filters a channel.
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
    """Replace each of these blocks (a convolution, BatchNorm, an activation) by depthwise and pointwise ones.

    Args:
        model: detector in eval mode, changed in place.
        fits: of their convolutions, by the name of the block.
    """
    for name, fit in fits.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _stand_in(model.get_submodule(name), fit))


def choose(model: nn.Module, fits: Mapping[str, Sequence[Fit]], moments: Mapping[str, Moments],
           judge: Callable[[nn.Module], float], *, imgsz: int, macs: float, params: float, align: int,
           advance: Callable[[int], None] = lambda _: None) -> tuple[dict[str, Fit], bool]:  # fmt: skip
    """What to separate and how, so that with the channels that still have to go the network is nearest to the original.

    What a convolution saves, no channel has to pay for, and the other way round. Beginning with one filter a channel in
    all of the head, one block after another is changed by a filter, the most damaged first, and stays so if the
    network, pruned in one step, is better for it. The damage in the units of OBS would not do: that of class branches
    is mostly to scores of background, and networks with less of it in sum were worse.

    Args:
        model: detector in eval mode whose C2f are split; not changed.
        fits: of the blocks that may be separated, by the number of filters a channel, from 1 on.
        moments: of their convolutions, and of all that read a group's channels.
        judge: distance of a network from the original.
        imgsz, macs, params, align: as channels are going to be allocated.
        advance: called with the number of blocks tried; each is tried twice, the second time in what has become of
            the network.

    Returns:
        The fits to use, by the name of the block; and whether the backbone should give no channels, which is so where
        the network is about as near without: recovery then computes it once for teacher and student.
    """
    inverse: dict[tuple[str, int], Tensor] = {}
    names, head = list(fits), of_head(model)

    def used(counts: tuple[int, ...]) -> dict[str, Fit]:
        return {name: fits[name][count - 1] for name, count in zip(names, counts, strict=True) if count}

    @cache
    def distance(counts: tuple[int, ...], whole: bool) -> float:  # of filters a channel; 0 leaves a block as it is
        trial, those = copy.deepcopy(model), used(counts)
        separate_(trial, those)
        groups = held(find_groups(trial), backbone(model) if whole else 0)
        known = dict(moments) | {f"{name}.1.conv": fit.moments for name, fit in those.items()}
        scorer = ObsScorer(trial, groups, known, inverse)
        try:
            keep = allocate(groups, Cost(trial, groups, imgsz), scorer, macs=macs, params=params, align=align)
        except BoundsError:
            return math.inf
        scorer.refit_(keep)
        cut_(trial, {name: index.tolist() for name, index in keep.items()}, groups)
        return judge(trial)

    def as_near_whole(counts: tuple[int, ...]) -> bool:
        return distance(counts, True) <= _WHOLE * distance(counts, False) < math.inf

    chosen = tuple(int(name in head) for name in names)
    whole = as_near_whole(chosen)
    order = sorted(range(len(names)), key=lambda index: -fits[names[index]][0].damage)
    hopeless = set()
    for index in [*order, *order]:
        closeness = [*range(1, len(fits[names[index]]) + 1), 0]  # to the convolution itself, which is the costliest too
        for step in (1, -1):
            # As long as it helps: no network tried was better two steps away and worse one step away.
            while 0 <= (place := closeness.index(chosen[index]) + step) < len(closeness):
                changed = (*chosen[:index], closeness[place], *chosen[index + 1 :])
                if (index, closeness[place]) in hopeless:
                    break
                if distance(changed, whole) > _HOPELESS * distance(chosen, whole):
                    hopeless.add((index, closeness[place]))
                if distance(changed, whole) >= distance(chosen, whole):
                    break
                chosen = changed
        advance(1)
    return used(chosen), as_near_whole(chosen)


def _stand_in(block: nn.Module, fit: Fit) -> nn.Module:
    """Depthwise blocks without activation and a pointwise one with the stock block's own BatchNorm and activation."""
    conv: Any = block.conv
    count, inputs, _ = fit.depthwise.shape
    first, second = yolo.depthwise_and_pointwise(inputs, len(fit.pointwise), conv.kernel_size[0], conv.stride[0], count)
    for part, kernel in zip(first if count > 1 else [first], fit.depthwise, strict=True):
        part.conv.weight.data.copy_(kernel.view_as(part.conv.weight))
        part.bn.eps, part.bn.momentum = block.bn.eps, block.bn.momentum
        part.bn.weight.data.fill_((1 + block.bn.eps) ** 0.5)  # changes nothing, until it is trained
    second.conv.weight.data.copy_(fit.pointwise.view_as(second.conv.weight))
    second.bn, second.act = copy.deepcopy(block.bn), block.act
    second.bn.running_mean -= fit.shift.to(second.bn.running_mean)
    pair: Any = nn.Sequential(first, second).eval().requires_grad_(False)
    for key in ("i", "f", "type", "np"):  # Ultralytics' place in the network, of a layer of its own
        if key in vars(block):  # Module.type is a method
            setattr(pair, key, vars(block)[key])
    return pair


def factorize(weight: Tensor, moments: Moments, filters: int = 1) -> list[Fit]:
    """The depthwise and pointwise factors that lose the least of what a kernel (o, i, kh, kw) computes.

    Returns:
        One fit for each number of filters a channel, 1 to `filters`. Filters give maps of variance 1, within reason,
        so that one range fits all of them in INT8.
    """
    w = weight.detach().double().flatten(2)  # (o, i, k)
    outputs, inputs, area = w.shape
    flat, fisher = w.flatten(1), moments.fisher.double()
    cov = moments.cov + _RIDGE * moments.cov.diagonal().mean() * torch.eye(inputs * area, dtype=torch.float64)
    by_place = cov.view(inputs, area, inputs, area)
    energy = float(((fisher[:, None] * (flat @ cov)) * flat).sum())
    found: list[Fit] = []
    bank = torch.zeros(0, inputs, area, dtype=torch.float64)
    seen, error = _seen(w, by_place), w
    for count in range(1, filters + 1):
        bank = torch.cat([bank, _filter(error, by_place, fisher)[None]])
        pointwise = _pointwise(seen, bank, by_place)
        error = w - torch.einsum("ori,rik->oik", pointwise.unflatten(1, (count, inputs)), bank)
        lost = error.flatten(1)
        left = float(((fisher[:, None] * (lost @ cov)) * lost).sum())
        read = Moments((moments.mean.view(inputs, area) * bank).sum(2).flatten(),
                       torch.einsum("rik,ikjl,sjl->risj", bank, moments.cov.view_as(by_place), bank)
                       .reshape(count * inputs, -1), moments.fisher)  # fmt: skip
        found.append(Fit(bank, pointwise, lost @ moments.mean, left / max(energy, 1e-300), left, read))
    return found


def _filter(w: Tensor, by_place: Tensor, fisher: Tensor) -> Tensor:
    """The filters (i, k), one for each channel, that go the furthest towards a kernel (o, i, k)."""
    _, inputs, area = w.shape
    seen = _seen(w, by_place)
    # The best filters if inputs were independent of each other.
    found = torch.linalg.svd((w * fisher.sqrt()[:, None, None]).transpose(0, 1), full_matrices=False).Vh[:, 0]
    for _ in range(_SWEEPS):
        pointwise = _pointwise(seen, found[None], by_place)
        pairs = torch.einsum("o,oi,oj->ij", fisher, pointwise, pointwise)
        normal = torch.einsum("ij,ikjl->ikjl", pairs, by_place).reshape(inputs * area, -1)
        wanted = torch.einsum("o,oi,oik->ik", fisher, pointwise, seen).flatten()
        found = _solve(normal, wanted).view(inputs, area)
    variance = torch.einsum("ik,ikl,il->i", found, by_place.diagonal(dim1=0, dim2=2).movedim(2, 0), found)
    found = found / variance.clamp_min(1e-30).sqrt()[:, None]
    norm = found.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return found * norm.clamp(1 / _LARGEST, _LARGEST) / norm


def _seen(w: Tensor, by_place: Tensor) -> Tensor:
    """Covariance (o, i, k) of what a kernel (o, i, k) computes with what it reads."""
    return (w.flatten(1) @ by_place.flatten(2).flatten(0, 1)).view_as(w)


def _pointwise(seen: Tensor, bank: Tensor, by_place: Tensor) -> Tensor:
    """The best pointwise factor (o, r * i) behind these filters (r, i, k), for the kernel whose `_seen` it is."""
    gram = torch.einsum("rik,ikjl,sjl->risj", bank, by_place, bank).flatten(2).flatten(0, 1)
    return _solve(gram, torch.einsum("oik,rik->rio", seen, bank).flatten(0, 1)).T


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares, (d, m) or (d,), where channels that are never active leave the matrix singular."""
    ridge = 1e-8 * float(matrix.diagonal().mean()) + 1e-300
    factor = torch.linalg.cholesky(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
    return torch.cholesky_solve(right.reshape(len(right), -1), factor).reshape(right.shape)
