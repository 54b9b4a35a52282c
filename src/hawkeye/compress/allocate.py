"""Where to save: widths by damage per cost saved, in blocks of `align` channels, until every bound holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hawkeye.compress.groups import Group
from hawkeye.errors import BoundsError


class Scorer(Protocol):
    """A measure of importance."""

    def scores(self, group: Group, alive: Tensor) -> Tensor: ...
    def remove_(self, group: Group, channel: int) -> set[str]: ...
    def refit_(self, keep: dict[str, Tensor]) -> None: ...


@dataclass
class _Layer:
    """A convolution as the cost model sees it."""

    area: int  # kernel area
    pixels: int  # output height * width at the input size
    extra: int  # parameters per output channel beside the kernel (BatchNorm, bias)
    inputs: int
    outputs: int


class Cost:
    """Multiply-accumulates and parameters as functions of the widths.

    Args:
        model: detector whose C2f are split.
        imgsz: side of the square input in pixels.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], imgsz: int) -> None:
        self._layers: dict[str, _Layer] = {}
        pixels: dict[str, int] = {}
        convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        handles = [
            conv.register_forward_hook(lambda _m, _i, out, name=name: pixels.__setitem__(name, out[0, 0].numel()))
            for name, conv in convs.items()
        ]
        with torch.no_grad():
            model(torch.zeros(1, 3, imgsz, imgsz))
        for handle in handles:
            handle.remove()
        for name, conv in convs.items():
            extra = (conv.bias is not None) + (2 if name.endswith(".conv") and "dfl" not in name else 0)
            area = conv.kernel_size[0] * conv.kernel_size[1]
            self._layers[name] = _Layer(area, pixels[name], extra, conv.in_channels, conv.out_channels)
        self._groups = list(groups)

    def total(self, widths: dict[str, int]) -> tuple[int, int]:
        """(MACs, parameters) of the network with these group widths."""
        inputs = {name: layer.inputs for name, layer in self._layers.items()}
        outputs = {name: layer.outputs for name, layer in self._layers.items()}
        for group in self._groups:
            gone = group.width - widths.get(group.name, group.width)
            for name, channels in group.consumers.items():
                inputs[name] -= gone * channels.shape[1]
            for name in group.producers:
                outputs[name] -= gone
        macs = params = 0
        for name, layer in self._layers.items():
            kernel = layer.area * inputs[name] * outputs[name]
            macs += kernel * layer.pixels
            params += kernel + layer.extra * outputs[name]
        return macs, params


def units_of(groups: Iterable[Group]) -> list[tuple[Group, ...]]:
    """Groups that are free to shrink; both halves of a C2f form one unit, cut to equal widths."""
    by_name = {group.name: group for group in groups}
    units, seen = [], set()
    for group in by_name.values():
        if group.protected is None and group.name not in seen:
            unit = (group,) if group.partner is None else (group, by_name[group.partner])
            units.append(unit)
            seen.update(member.name for member in unit)
    return units


def check_reachable(groups: Iterable[Group], cost: Cost, *, macs: float, params: float, align: int) -> None:
    """Refuse bounds that no allocation can meet.

    Raises:
        BoundsError: not reachable even with every width at `align`; states the nearest possible.
    """
    widths = {group.name: group.width for unit in units_of(groups) for group in unit}
    start, floor = cost.total(widths), cost.total({name: min(align, width) for name, width in widths.items()})
    if floor[0] > macs or floor[1] > params:
        # Rounded up: what is stated as possible must be possible.
        least = [math.ceil(1e4 * low / total) / 1e4 for low, total in zip(floor, start, strict=True)]
        raise BoundsError(
            "no width can reach these bounds",
            got=f"--flops {macs / start[0]:.4g} and --params {params / start[1]:.4g}",
            expected=f"at least --flops {least[0]:.4f} and --params {least[1]:.4f}, where every width is {align}",
            mend="ask for larger fractions or a smaller --align",
        )


def allocate(
    groups: list[Group],
    cost: Cost,
    scorer: Scorer,
    *,
    macs: float,
    params: float,
    align: int,
) -> dict[str, Tensor]:
    """Kept channels per group, (kept,) int64 sorted, so that MACs and parameters are at most the given numbers.

    Greedy: the unit whose next block costs the least damage per share of the still missing savings goes first.

    Raises:
        BoundsError: not reachable even with every width at `align`; states the nearest possible.
    """
    units = units_of(groups)
    alive = {group.name: torch.ones(group.width, dtype=torch.bool) for unit in units for group in unit}
    widths = {group.name: group.width for unit in units for group in unit}
    start = now = cost.total(widths)
    check_reachable(groups, cost, macs=macs, params=params, align=align)
    scores: dict[str, Tensor] = {}
    while now[0] > macs or now[1] > params:
        need = (max(0.0, now[0] - macs) / start[0], max(0.0, now[1] - params) / start[1])
        best, best_price, best_block = None, float("inf"), 0
        for unit in units:
            width = widths[unit[0].name]
            block = width - (width - 1) // align * align
            if width - block < min(align, width):
                continue
            less = cost.total({**widths, **{g.name: width - block for g in unit}})
            # What is saved beyond the need is worth nothing.
            saved = min((now[0] - less[0]) / start[0], need[0]) + min((now[1] - less[1]) / start[1], need[1])
            damage = 0.0
            for group in unit:
                if group.name not in scores:
                    scores[group.name] = scorer.scores(group, alive[group.name])
                damage += float(scores[group.name].topk(block, largest=False).values.sum())
            price = damage / max(saved, 1e-12)
            if price < best_price:
                best, best_price, best_block = unit, price, block
        assert best is not None  # the floor was checked
        changed: set[str] = set()
        for group in best:
            for _ in range(best_block):
                channel = int(scorer.scores(group, alive[group.name]).argmin())
                alive[group.name][channel] = False
                changed |= scorer.remove_(group, channel)
            widths[group.name] -= best_block
            scores.pop(group.name, None)
        for unit in units:
            for group in unit:
                if changed.intersection(group.consumers):
                    scores.pop(group.name, None)
        now = cost.total(widths)
    return {name: mask.nonzero().flatten() for name, mask in alive.items()}
