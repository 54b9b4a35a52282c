"""Which convolutions share a width, found by Torch-Pruning's dependency graph (the only importer of torch_pruning).

`C2f` computes both halves of its input with one convolution and chunks the result, which the graph cannot follow
(IndexError, Torch-Pruning #363). It is split, exactly, into two convolutions before tracing, and merged back after
cutting. The halves of one C2f are therefore cut to equal widths, so that the result is made of stock modules only.

Method: Fang et al., DepGraph, arXiv 2301.12900.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hawkeye.errors import MissingExtraError

try:
    import torch_pruning as tp
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtraError("compress", "torch_pruning") from error


class SplitC2f(nn.Module):
    """A C2f whose first convolution is two, one for each half; computes exactly the same."""

    def __init__(self, c2f: nn.Module) -> None:
        super().__init__()
        half = c2f.cv1.conv.out_channels // 2
        self.cv0 = _rows(c2f.cv1, slice(0, half))
        self.cv1 = _rows(c2f.cv1, slice(half, None))
        self.m, self.cv2 = c2f.m, c2f.cv2
        self.i, self.f, self.type = c2f.i, c2f.f, c2f.type  # Ultralytics' place in the network
        self._stock = [c2f]  # in a list: kept for merging, not a submodule

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv0(x), self.cv1(x)]
        for block in self.m:
            y.append(block(y[-1]))
        return self.cv2(torch.cat(y, 1))

    def merged(self) -> nn.Module:
        """The stock C2f again, with whatever widths were kept."""
        c2f = self._stock[0]
        first, second = self.cv0, self.cv1
        if first.conv.out_channels != second.conv.out_channels:
            raise AssertionError("the halves of a C2f must keep equal widths")
        conv = copy.deepcopy(first)
        conv.conv.weight = nn.Parameter(
            torch.cat([first.conv.weight, second.conv.weight]).detach(), requires_grad=False
        )
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(first.bn, name), getattr(second.bn, name)]).detach()
            setattr(conv.bn, name, nn.Parameter(joined, requires_grad=False))
        for name in ("running_mean", "running_var"):
            setattr(conv.bn, name, torch.cat([getattr(first.bn, name), getattr(second.bn, name)]))
        conv.conv.out_channels = conv.bn.num_features = 2 * first.conv.out_channels
        c2f.c, c2f.cv1, c2f.m, c2f.cv2 = first.conv.out_channels, conv, self.m, self.cv2
        return c2f


def _rows(block: nn.Module, rows: slice) -> nn.Module:
    part = copy.deepcopy(block)
    part.conv.weight = nn.Parameter(part.conv.weight[rows].detach().clone(), requires_grad=False)
    for name in ("weight", "bias"):
        setattr(part.bn, name, nn.Parameter(getattr(part.bn, name)[rows].detach().clone(), requires_grad=False))
    for name in ("running_mean", "running_var"):
        setattr(part.bn, name, getattr(part.bn, name)[rows].clone())
    part.conv.out_channels = part.bn.num_features = len(part.conv.weight)
    return part


def split_c2f_(model: nn.Module) -> None:
    """Replace every C2f by its exact split."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "C2f":
            _replace_(model, name, SplitC2f(module))


def merge_c2f_(model: nn.Module) -> None:
    """Put stock C2f modules back."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SplitC2f):
            _replace_(model, name, module.merged())


def _replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@dataclass(frozen=True)
class Group:
    """Channels that must be kept or removed together.

    Attributes:
        name: the convolution that the group is named after.
        width: number of channels.
        producers: convolutions whose output channels these are, in order.
        consumers: for each convolution that reads them, its input channels per group channel, (width, r) int64;
            r > 1 where a concatenation or shortcut feeds one channel in several places.
        why: what couples the layers, in words.
        protected: why the width must stay, or None.
        partner: group that must keep the same number of channels (the other half of a C2f), or None.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: dict[str, Tensor]
    why: str
    protected: str | None = None
    partner: str | None = None


def find_groups(model: nn.Module) -> list[Group]:
    """Every coupled group of a detector whose C2f are split, protected ones last.

    The head's final 1x1 convolutions (class scores, box distributions) and DFL have a meaning per channel and are
    protected; the head's inner convolutions are not: most of the first savings come from there.
    """
    graph = _graph(model)
    names = {module: name for name, module in model.named_modules()}
    protected = protected_outputs(model)
    ignored = [model.get_submodule(name) for name in protected]
    found = [
        _describe(group, names) for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d])
    ]
    by_producer = {producer: group for group in found for producer in group.producers}
    partner: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitC2f):
            a, b = by_producer[f"{name}.cv0.conv"], by_producer[f"{name}.cv1.conv"]
            partner[a.name], partner[b.name] = b.name, a.name
    groups = [Group(g.name, g.width, g.producers, g.consumers, g.why, None, partner.get(g.name)) for g in found]
    fixed = [
        Group(name, model.get_submodule(name).out_channels, (name,), {}, "alone", reason)
        for name, reason in protected.items()
    ]
    return groups + fixed


def held(groups: Collection[Group], layers: int) -> list[Group]:
    """The same groups, those with channels of the first `layers` layers protected."""
    return [replace(group, protected="backbone: computed once for teacher and student")
            if not group.protected and any(int(name.split(".")[1]) < layers for name in group.producers) else group
            for group in groups]  # fmt: skip


def protected_outputs(model: nn.Module) -> dict[str, str]:
    """Convolutions whose outputs must stay, with the reason."""
    head_name, head = f"model.{len(model.model) - 1}", model.model[-1]
    found = {f"{head_name}.dfl.conv": "DFL: fixed arithmetic that turns a distribution into a distance"}
    for level in range(head.nl):
        found[f"{head_name}.cv2.{level}.{len(head.cv2[level]) - 1}"] = "head output: 4 x reg_max box distributions"
        found[f"{head_name}.cv3.{level}.{len(head.cv3[level]) - 1}"] = "head output: one score per class"
    return found


def depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel is filtered by itself."""
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels


def cut_(model: nn.Module, keep: dict[str, Collection[int]], groups: Collection[Group]) -> None:
    """Remove all but the kept channels of each named group, everywhere at once."""
    graph = _graph(model)
    for group in groups:
        kept = set(keep.get(group.name, range(group.width)))
        removed = [channel for channel in range(group.width) if channel not in kept]
        if removed:
            root = model.get_submodule(group.producers[0])
            graph.get_pruning_group(root, tp.prune_conv_out_channels, idxs=removed).prune()


def _graph(model: nn.Module) -> tp.DependencyGraph:
    grads = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in grads:
            p.requires_grad_(True)  # the graph is traced through autograd
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(model, torch.zeros(1, 3, 64, 64), verbose=False)
    finally:
        for p, flag in grads.items():
            p.requires_grad_(flag)


def _describe(group: tp.Group, names: dict[nn.Module, str]) -> Group:
    width = len(group[0].idxs)
    producers: list[str] = []
    after: list[str] = []
    consumers: dict[str, set[tuple[int, int]]] = {}
    inputs: dict[str, int] = {}
    for item in group:
        module = item.dep.target.module
        if not isinstance(module, nn.Conv2d):
            continue
        name = names[module]
        if depthwise(module):  # a channel in is a channel out: cut along, never the first
            if name not in after:
                after.append(name)
        elif item.dep.handler == tp.prune_conv_out_channels:
            if name not in producers:
                producers.append(name)
        else:
            consumers.setdefault(name, set()).update(zip(item.root_idxs, item.idxs, strict=True))
            inputs[name] = module.in_channels
    index = {
        name: torch.tensor([channel for _, channel in sorted(pairs)]).view(width, -1)
        for name, pairs in consumers.items()
    }
    reasons = []
    if len(producers) > 1:
        reasons.append("shortcut: " + " + ".join(producers))
    joined = [name for name, channels in index.items() if channels.shape[1] > 1 or width < inputs[name]]
    if joined:
        reasons.append("concatenated into " + ", ".join(joined))
    if after:
        reasons.append("depthwise: " + ", ".join(after))
    return Group(producers[0], width, (*producers, *after), index, "; ".join(reasons) or "alone")
