"""Where to save: widths by damage per cost saved, in blocks of `align` channels, until every bound holds.

With a bound on latency, widths are taken only where the table of the CPU says that they pay, and the greedy result is
improved by exchanges (`knapsack.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hawkeye.compress import knapsack
from hawkeye.compress.groups import Group, depthwise
from hawkeye.errors import BoundsError


class Scorer(Protocol):
    """A measure of importance."""

    def scores(self, group: Group, alive: Tensor) -> Tensor: ...
    def remove_(self, group: Group, channel: int) -> set[str]: ...
    def refit_(self, keep: dict[str, Tensor]) -> None: ...


class Clock(Protocol):
    """Milliseconds as a function of group widths; those that are left out are whole."""

    def ms(self, widths: dict[str, int]) -> float: ...


@dataclass(frozen=True)
class LatencyBound:
    """What a network may take: `ms` at most, by this clock."""

    clock: Clock
    ms: float


class Allocator(Protocol):
    """Chooses what is kept; see `allocate`."""

    def __call__(
        self, groups: list[Group], cost: Cost, scorer: Scorer, *, macs: float, params: float, align: int,
        latency: LatencyBound | None = None,
    ) -> dict[str, Tensor]: ...  # fmt: skip


@dataclass
class _Layer:
    """A convolution as the cost model sees it."""

    area: int  # kernel area
    pixels: int  # output height * width at the input size
    extra: int  # parameters per output channel beside the kernel (BatchNorm, bias)
    inputs: int
    outputs: int
    depthwise: bool


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
            self._layers[name] = _Layer(area, pixels[name], extra, conv.in_channels, conv.out_channels,
                                        depthwise(conv))  # fmt: skip
        # (name, width, consumers with the number of inputs per channel, producers)
        self._groups = [(g.name, g.width, [(name, c.shape[1]) for name, c in g.consumers.items()], g.producers)
                        for g in groups]  # fmt: skip

    def channels(self, widths: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """Input and output channels of each convolution with these group widths."""
        inputs = {name: layer.inputs for name, layer in self._layers.items()}
        outputs = {name: layer.outputs for name, layer in self._layers.items()}
        for group, width, consumers, producers in self._groups:
            if gone := width - widths.get(group, width):
                for name, times in consumers:
                    inputs[name] -= gone * times
                for name in producers:
                    outputs[name] -= gone
        inputs |= {name: outputs[name] for name, layer in self._layers.items() if layer.depthwise}
        return inputs, outputs

    def total(self, widths: dict[str, int]) -> tuple[int, int]:
        """(MACs, parameters) of the network with these group widths."""
        inputs, outputs = self.channels(widths)
        macs = params = 0
        for name, layer in self._layers.items():
            kernel = layer.area * outputs[name] * (1 if layer.depthwise else inputs[name])
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
    latency: LatencyBound | None = None,
) -> dict[str, Tensor]:
    """Kept channels per group, (kept,) int64 sorted, so that MACs and parameters are at most the given numbers.

    Greedy: the unit whose next block costs the least damage per share of the still missing savings goes first. With a
    bound on latency that holds as well, and exchanges between units follow.

    Raises:
        BoundsError: not reachable even with every width at `align`; states the nearest possible.
    """
    check_reachable(groups, cost, macs=macs, params=params, align=align)
    if latency is not None:
        return _allocate_timed(groups, cost, scorer, macs=macs, params=params, align=align, latency=latency)
    units = units_of(groups)
    alive = {group.name: torch.ones(group.width, dtype=torch.bool) for unit in units for group in unit}
    widths = {group.name: group.width for unit in units for group in unit}
    start = now = cost.total(widths)
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
            near = _least(scores[group.name], _NEAR * best_block)
            for _ in range(best_block):
                channel = int(scorer.scores(group, near).argmin())
                near[channel] = alive[group.name][channel] = False
                changed |= scorer.remove_(group, channel)
            widths[group.name] -= best_block
            scores.pop(group.name, None)
        for unit in units:
            for group in unit:
                if changed.intersection(group.consumers):
                    scores.pop(group.name, None)
        now = cost.total(widths)
    return {name: mask.nonzero().flatten() for name, mask in alive.items()}


_NEAR = 2  # times as many as a block has; as some go, the others mostly become more important
_JUMP = 4  # blocks that a unit may lose at once: a single one may lead to a width that costs more


def _least(scores: Tensor, count: int) -> Tensor:
    """Mask of the least important channels, `count` of them or all that are left."""
    found = torch.zeros(len(scores), dtype=torch.bool)
    found[scores.topk(min(count, len(scores)), largest=False).indices] = True
    return found & scores.isfinite()


def _allocate_timed(
    groups: list[Group],
    cost: Cost,
    scorer: Scorer,
    *,
    macs: float,
    params: float,
    align: int,
    latency: LatencyBound,
) -> dict[str, Tensor]:
    """`allocate` with a bound on latency."""
    units = {unit[0].name: unit for unit in units_of(groups)}

    def costs(widths: dict[str, int]) -> tuple[float, float, float]:
        every = {group.name: widths[name] for name, unit in units.items() for group in unit}
        return (*cost.total(every), latency.clock.ms(every))

    limits = (macs, params, latency.ms)
    removal = Removal(units, scorer)
    start = now = costs(removal.widths)
    while any(value > limit for value, limit in zip(now, limits, strict=True)):
        need = [max(0.0, value - limit) / whole for value, limit, whole in zip(now, limits, start, strict=True)]
        best: tuple[float, str, int] | None = None
        for name in units:
            width = removal.widths[name]
            first = width - (width - 1) // align * align
            for block in range(first, min(first + _JUMP * align, width), align):
                if width - block < min(align, width):
                    break
                less = costs({**removal.widths, name: width - block})
                saved = sum(
                    min((a - b) / whole, missing)
                    for a, b, whole, missing in zip(now, less, start, need, strict=True)
                    if missing
                )
                if saved > 0:
                    price = removal.damage_of(name, block) / saved
                    best = min(best or (price, name, block), (price, name, block))
        if best is None:
            raise BoundsError("no width can reach this latency", got=f"{now[2]:.2f} ms where nothing more pays",
                              expected=f"{latency.ms:.2f} ms by the table of this CPU",
                              mend="ask for a larger --latency, or for a smaller --imgsz")  # fmt: skip
        removal.remove_(best[1], best[2])
        now = costs(removal.widths)
    widths = knapsack.exchange(removal.widths, {name: removal.curve(name, align) for name in units}, costs, limits)
    for name, width in widths.items():
        removal.move_(name, width)
    return {name: mask.nonzero().flatten() for name, mask in removal.alive.items()}


class Removal:
    """Channels taken out one after another, with the damage that each did when it went."""

    def __init__(self, units: dict[str, tuple[Group, ...]], scorer: Scorer) -> None:
        self.units, self.scorer = units, scorer
        self.alive = {g.name: torch.ones(g.width, dtype=torch.bool) for unit in units.values() for g in unit}
        self.widths = {name: unit[0].width for name, unit in units.items()}
        self._done = {name: [0.0] for name in self.alive}  # damage by the number of channels gone
        self._order: dict[str, list[int]] = {name: [] for name in self.alive}  # channels as they went
        self._rising: dict[str, list[float]] = {}

    def damage_of(self, name: str, block: int) -> float:
        """Damage of a unit's least important channels, as far as it is known before they go."""
        return sum(self._ahead(group)[block - 1] for group in self.units[name])

    def remove_(self, name: str, count: int) -> None:
        """Take out a unit's least important channels."""
        changed: set[str] = set()
        for group in self.units[name]:
            for _ in range(count):
                scores = self.scorer.scores(group, self.alive[group.name])
                channel = int(scores.argmin())
                self._done[group.name].append(self._done[group.name][-1] + float(scores[channel]))
                self._order[group.name].append(channel)
                self.alive[group.name][channel] = False
                changed |= self.scorer.remove_(group, channel)
            self._rising.pop(group.name, None)
        for unit in self.units.values():
            for group in unit:
                if changed.intersection(group.consumers):
                    self._rising.pop(group.name, None)
        self.widths[name] -= count

    def move_(self, name: str, width: int) -> None:
        """Bring a unit to this width; what went last comes back first. The scorer does not follow what comes back."""
        for group in self.units[name]:
            back = len(self._order[group.name]) - (group.width - width)
            self.alive[group.name][self._order[group.name][-back:] if back > 0 else []] = True
        self.remove_(name, max(0, self.widths[name] - width))
        self.widths[name] = width

    def curve(self, name: str, align: int) -> dict[int, float]:
        """Damage at every width that the unit may have: as it was down to here, as it is foreseen below."""
        whole = self.units[name][0].width
        total = [0.0] * whole
        for group in self.units[name]:
            done = self._done[group.name]
            ahead = [done[-1] + value for value in self._ahead(group)]
            for gone, value in enumerate([*done, *ahead][:whole]):
                total[gone] += value
        found = {width: total[whole - width] for width in range(min(align, whole), whole, align)}
        return {**found, whole: 0.0}

    def _ahead(self, group: Group) -> list[float]:
        if group.name not in self._rising:
            scores = self.scorer.scores(group, self.alive[group.name])
            self._rising[group.name] = scores[self.alive[group.name]].sort().values.cumsum(0).tolist()
        return self._rising[group.name]
