"""SiLU as Hardswish, where a trained detector hardly tells the one from the other.

An INT8 kernel multiplies 64 numbers at a time, and then computes an exponential and a division for each value of its
output: with Hardswish everywhere a yolov8n at 640 pixels takes a sixth less time in INT8, most of which is in the
first layers, whose maps are large (`benchmarks/activations.py`). h(x) = x * relu6(x + 3) / 6 (Howard et al., arXiv
1905.02244) is a few additions and multiplications, and was made for networks to be trained with it. A trained network
takes h(s * x) / s instead: with a slope s of 1.15 that is nearer to SiLU on the values that layers have, so much that a
block costs three to ten times less. The slope disappears in the weights: a block's BatchNorm gives s * x, and what
reads its map, which is s times as large now, has weights s times as small. The checkpoint keeps to stock modules. What
reads the map can then be fitted to it anew (`reconstruct`), which halves what most blocks of the backbone cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye.compress.allocate import units_of
from hawkeye.compress.groups import Group, SplitC2f, depthwise, find_groups, merge_c2f_, split_c2f_
from hawkeye.compress.reconstruct import Reconstruction
from hawkeye.compress.trunk import outputs_of

SLOPE = 1.15


class _Sloped(nn.Module):
    """What a block computes after `_give_`, with its slope still apart; to try it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.hardswish(SLOPE * x) / SLOPE


def simplify_(model: nn.Module, units: Mapping[str, Sequence[str]], judge: Callable[[nn.Module], float], imgsz: int,
              limit: float, advance: Callable[[int], None] = lambda _: None,
              repair: Reconstruction | None = None) -> dict[str, float]:  # fmt: skip
    """Give blocks Hardswish instead of SiLU, those first where a value of their maps costs the least.

    Blocks whose maps are added, and both halves of a C2f, have one slope and change together. What several cost
    together is a little less than the sum of what each costs alone, so each is tried alone.

    Args:
        model: detector in eval mode whose C2f are split, changed in place.
        units: its `candidates`.
        judge: distance of a network from the original; 0 of the original itself.
        imgsz: side of the input in pixels.
        limit: of the sum of what they cost, in units of `judge`.
        advance: called with the number of units tried.
        repair: of the model's `readers`; fits them to the changed maps. Left out, they stay as they are.

    Returns:
        What each of the changed blocks costs alone, or with those that change with it, by name of the first.
    """
    sizes = _sizes(model, {name for blocks in units.values() for name in blocks}, imgsz)
    read = readers(model, units) if repair else {}
    costs, values = {}, {}
    for first, blocks in units.items():
        trial: Any = copy.deepcopy(model)
        for name in blocks:
            trial.get_submodule(name).act = _Sloped()
        if repair:
            repair.fit_(trial, read[first])
        costs[first] = max(0.0, judge(trial))
        values[first] = sum(sizes[name] for name in blocks)
        advance(1)
    chosen, total = {}, 0.0
    for first in sorted(units, key=lambda name: costs[name] / values[name]):
        if total + costs[first] <= limit:
            chosen[first] = costs[first]
            total += costs[first]
    _give_(model, [name for first in chosen for name in units[first]])
    if repair:
        changed = {name for first in chosen for name in read[first]}
        # One after another, as the network computes them: each sees what those before it have come to.
        for name in [name for name, _ in model.named_modules() if name in changed]:
            repair.fit_(model, [name])
    return chosen


def readers(model: nn.Module, units: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Convolutions that read the maps of each unit, and can be fitted to them; the C2f of the model are split.

    None for the head's own maps: there detections depend on few places, of which an even draw sees nothing, and its
    class branches were further from the original after a fit than before.
    """
    head = f"model.{len(model.model) - 1}."
    found: dict[str, set[str]] = {first: set() for first in units}
    for group in find_groups(model):
        for first, blocks in units.items():
            if group.producers[0].removesuffix(".conv") in blocks and not first.startswith(head):
                found[first].update(group.consumers)
    return {first: sorted(names) for first, names in found.items()}


def like(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A model with Hardswish in those of the named blocks that can have it without others; its C2f are whole."""
    if not names:
        return model
    changed = copy.deepcopy(model)
    split_c2f_(changed)
    wanted = [blocks for blocks in candidates(changed).values()
              if {_merged(changed, name) for name in blocks} <= {*names}]  # fmt: skip
    _give_(changed, [name for blocks in wanted for name in blocks])
    merge_c2f_(changed)
    return changed


def of(model: nn.Module) -> list[str]:
    """Names of the blocks that have Hardswish."""
    return [name for name, block in model.named_modules() if isinstance(getattr(block, "act", None), nn.Hardswish)]


def gain(model: nn.Module, original: nn.Module, name: str) -> float:
    """How many times as large a module's map is as the original's, for the slope of its last block."""
    mine, theirs = (_last_activation(network.get_submodule(name)) for network in (model, original))
    return SLOPE if isinstance(mine, nn.Hardswish) and not isinstance(theirs, nn.Hardswish) else 1.0


def candidates(model: nn.Module) -> dict[str, list[str]]:
    """Blocks with SiLU that can only change together, by name of the first; the C2f of the model are split."""
    units = {}
    for unit in units_of(find_groups(model)):
        blocks = [name.removesuffix(".conv") for group in unit for name in group.producers]
        if all(isinstance(getattr(model.get_submodule(name), "act", None), nn.SiLU) for name in blocks):
            units[blocks[0]] = blocks
    return units


def _give_(model: nn.Module, names: Collection[str]) -> None:
    """Give whole units Hardswish: in front of it BatchNorm gives s * x, behind it weights are s times as small."""
    with torch.no_grad():
        for group in find_groups(model):
            if group.producers[0].removesuffix(".conv") in names:
                _steepen_(model, group)


def _steepen_(model: nn.Module, group: Group) -> None:
    for producer in group.producers:
        block: Any = model.get_submodule(producer.removesuffix(".conv"))
        block.act = nn.Hardswish()
        block.bn.weight.mul_(SLOPE)
        block.bn.bias.mul_(SLOPE)
        if depthwise(block.conv):  # reads what the same group's first block gives
            block.conv.weight.div_(SLOPE)
    for consumer, channels in group.consumers.items():
        conv: Any = model.get_submodule(consumer)
        conv.weight[:, channels.flatten()] /= SLOPE


def _merged(model: nn.Module, name: str) -> str:
    """A block's name once a C2f is whole again."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.cv1" if leaf == "cv0" and isinstance(model.get_submodule(parent), SplitC2f) else name


def _last_activation(module: nn.Module) -> nn.Module | None:
    block = module[-1] if isinstance(module, nn.Sequential) else module
    act: nn.Module | None = getattr(block, "act", None)
    return act


def _sizes(model: nn.Module, names: Iterable[str], imgsz: int) -> dict[str, int]:
    """Values of each block's map of a picture."""
    with torch.no_grad(), outputs_of(model, names) as found:
        model(torch.zeros(1, 3, imgsz, imgsz))
    return {name: output.numel() for name, output in found.items()}
