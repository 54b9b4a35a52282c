"""Structured pruning of a trained detector: measure, allocate, compensate, cut, in small steps."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye import artifact, keys
from hawkeye.artifact import Artifact
from hawkeye.compress import activations, separable, training_data, yolo
from hawkeye.compress.allocate import Allocator, Cost, LatencyBound, Scorer, allocate, check_reachable, units_of
from hawkeye.compress.device import claim
from hawkeye.compress.distance import agreement, load_batches
from hawkeye.compress.forecast import forecast, tell
from hawkeye.compress.groups import Group, cut_, find_groups, held, merge_c2f_, split_c2f_
from hawkeye.compress.latency import profile, whole_ms
from hawkeye.compress.macs import params_and_macs
from hawkeye.compress.original import import_original
from hawkeye.compress.reconstruct import Reconstruction
from hawkeye.compress.saliency import Moments, ObsScorer, StaticScorer, collect
from hawkeye.config import PruneConfig
from hawkeye.errors import BoundsError, RunDirError
from hawkeye.progress import progress, say

_BATCH = 4  # pictures per forward and backward pass: keeps the peak under 4 GiB at 640
_JUDGES = 16  # pictures that tell which convolutions to separate
_REPAIRS = 16  # pictures that what reads changed activations is fitted on
_AIM = 0.97  # of the bound on latency: the table errs by a few percent, and a bound is a bound


def prune(source: Artifact | Path, config: PruneConfig, *, out: Path, allocator: Allocator = allocate) -> Artifact:
    """Remove channels until MACs and parameters are within the bounds.

    Args:
        source: an original, or the path of a checkpoint.
        config: bounds, method, pictures.
        out: folder of the result.
        allocator: chooses widths; studies give another than the product's, each with a folder of its own.

    Returns:
        An artefact "pruned" with a stock checkpoint. Its details hold the kept fractions, the widths before and after,
        and for every convolution that the head reads the indices of its kept channels.

    Raises:
        BoundsError: a bound of 1 or more, or one that cannot be reached (tells the nearest).
        ConfigError: there is no GPU, and one is asked for.
        DataError: no usable pictures, or `taylor` without labels.
        CheckpointError: the source cannot be compressed.
    """
    started = time.perf_counter()
    _check_bounds(config)
    base = _as_original(source, config, out)
    pictures, key = keys.prune(base.sha256, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done
    claim(config.device)  # pruning itself needs none, but what comes after it does, minutes later

    checkpoint = yolo.load_checkpoint(base.path("pytorch"))
    imgsz = config.imgsz or base.spec.imgsz
    model = copy.deepcopy(checkpoint.model)
    split_c2f_(model)
    simpler = _simplify_(model, checkpoint.model, config, pictures, imgsz)
    groups = find_groups(model)
    cost = Cost(model, groups, imgsz)
    start = cost.total({})
    bounds = start[0] * config.flops, start[1] * config.params
    # Before anything is measured: a later step would tell it after minutes, in fractions of what is left by then.
    check_reachable(groups, cost, macs=bounds[0], params=bounds[1], align=config.align)
    separated, whole = _separate_(model, checkpoint.model, config, pictures, imgsz, bounds)
    groups = held(find_groups(model), whole)
    channels = {group.name: torch.arange(group.width) for group in groups}  # kept, in the original's numbering
    clocks = _Clocks(checkpoint.model, model, groups, imgsz, config) if config.latency is not None else None
    begin = Cost(model, groups, imgsz).total({})
    rounds = _rounds(config, start, begin, bounds)
    for step in range(1, rounds + 1):
        # Equal ratios a step; the last one lands on the bounds themselves.
        targets = [total * min(1.0, bound / total) ** (step / rounds)
                   for total, bound in zip(begin, bounds, strict=True)]  # fmt: skip
        scorer = _scorer(model, groups, pictures, config, imgsz, step, rounds, checkpoint.names)
        keep = allocator(
            groups, Cost(model, groups, imgsz), scorer, macs=targets[0], params=targets[1], align=config.align,
            latency=clocks.bound(model, groups, step / rounds) if clocks else None,
        )  # fmt: skip
        scorer.refit_(keep)
        cut_(model, {name: index.tolist() for name, index in keep.items()}, groups)
        for name, index in keep.items():
            channels[name] = channels[name][index]
        groups = held(find_groups(model), whole)
    verify(model, groups, channels, imgsz)
    timed = clocks.found(model, groups) if clocks else {}
    widths = _widths(checkpoint.model, groups, channels)
    kept = _features(model, groups, channels)
    merge_c2f_(model)
    reached = params_and_macs(model, imgsz)
    target = out / "pruned.pt"
    yolo.save_checkpoint(target, model, names=checkpoint.names, imgsz=imgsz)
    fractions = {"flops_kept": reached[1] / start[0], "params_kept": reached[0] / start[1]}
    say(f"pruned: {fractions['flops_kept']:.3f} of the FLOPs and {fractions['params_kept']:.3f} of the parameters kept")
    if timed:
        say(f"by the table of this CPU it takes {timed['predicted_ms']:.2f} ms in INT8, {timed['kept']:.3f} of the "
            f"original's {timed['original_ms']:.2f} ms in {timed['of'].upper()}")  # fmt: skip
    spec = base.spec.model_copy(update={"imgsz": imgsz})
    told = forecast(checkpoint.model, model, spec, config)
    tell(told, params=fractions["params_kept"], flops=fractions["flops_kept"], timed=timed)
    return Artifact.create(
        out, {"pytorch": target}, started=started, name="pruned", stage="prune",
        spec=spec, params=reached[0], macs=reached[1],
        parent_sha256=base.sha256, key=key, config=config.model_dump(mode="json"), seed=config.seed,
        details={**fractions, "pruned_from": base.files["pytorch"].sha256, "widths": widths, "kept_features": kept,
                 "pictures": len(pictures), "groups": {name: len(index) for name, index in channels.items()},
                 "forecast": told, "hardswish": simpler, "separated": separated,
                 **({"latency": timed} if timed else {})},
    )  # fmt: skip


class _Clocks:
    """The bound on latency, spread over the rounds.

    Raises:
        BoundsError: INT8 alone reaches it, or no width does; states the nearest.
    """

    def __init__(self, original: nn.Module, split: nn.Module, groups: list[Group], imgsz: int,
                 config: PruneConfig) -> None:  # fmt: skip
        assert config.latency is not None
        whole = copy.deepcopy(split)
        merge_c2f_(whole)
        self._profile = profile(whole, imgsz, threads=config.threads, precisions=("int8",))
        self._of, self._start = config.latency_of, self._profile.wholes["int8"].total
        self._reference = whole_ms(original, imgsz, threads=config.threads)[self._of]
        self._end = min(self._start, _AIM * config.latency * self._reference)
        if self._end >= self._start and not config.separable:
            raise BoundsError("--latency leaves nothing to prune", got=config.latency,
                              expected=f"below {self._start / self._reference / _AIM:.3f}, which INT8 alone reaches",
                              mend="leave pruning out with --skip prune,recover")  # fmt: skip
        narrow = {group.name: min(config.align, group.width) for unit in units_of(groups) for group in unit}
        floor = self._profile.of(split, groups).ms(narrow)
        if floor > self._end:
            least = math.ceil(1e3 * floor / self._reference / _AIM) / 1e3
            raise BoundsError("no width can reach this latency", got=f"--latency {config.latency:g}",
                              expected=f"at least --latency {least:.3f}, where every width is {config.align}",
                              mend="ask for a larger --latency, or for a smaller --imgsz")  # fmt: skip

    def bound(self, model: nn.Module, groups: list[Group], share: float) -> LatencyBound:
        """What the network may take after this share of the rounds: equal ratios."""
        return LatencyBound(self._profile.of(model, groups), self._start * (self._end / self._start) ** share)

    def found(self, model: nn.Module, groups: list[Group]) -> dict[str, Any]:
        """What the table tells of the result; `kept` is the fraction that the bound is about."""
        ms = self._profile.of(model, groups).ms({})
        return {"kept": ms / self._reference, "of": self._of, "predicted_ms": ms, "original_ms": self._reference,
                "threads": self._profile.tables["int8"].threads, "table_sha256": self._profile.sha256}  # fmt: skip


def _rounds(config: PruneConfig, start: tuple[int, int], begin: tuple[int, int], bounds: tuple[float, float]) -> int:
    """Steps of the size that the recipe asks for, over what separable convolutions have left to do."""
    if config.method != "obs":
        return 1
    if config.latency is not None:
        return config.rounds
    left = max(math.log(b / bound) / math.log(a / bound) for a, b, bound in zip(start, begin, bounds, strict=True))
    return max(1, math.ceil(config.rounds * left))


def _check_bounds(config: PruneConfig) -> None:
    for option, bound in config.useless():
        raise BoundsError(f"{option} leaves nothing to prune", got=bound, expected="a fraction below 1",
                          mend="leave pruning out with --skip prune,recover")  # fmt: skip


def _as_original(source: Artifact | Path, config: PruneConfig, out: Path) -> Artifact:
    if isinstance(source, Artifact):
        return source
    if source.is_dir():
        return Artifact.load(source)
    if out.exists() and any(out.iterdir()) and not (out / "original").exists():
        raise RunDirError(
            f"{out} holds something else", got=[p.name for p in out.iterdir()][:3], expected="an empty folder"
        )
    imgsz = config.imgsz or yolo.load_checkpoint(source).imgsz
    return import_original(source, imgsz=imgsz, out=out / "original")


def _simplify_(model: nn.Module, original: nn.Module, config: PruneConfig, pictures: Sequence[Path],
               imgsz: int) -> dict[str, float]:  # fmt: skip
    """Give blocks Hardswish as far as the recipe allows; returns what each costs alone."""
    if not config.hardswish:
        return {}
    few = _JUDGES // 2  # each block alone is told apart by fewer
    judge = agreement(original, pictures[:few], imgsz, "cpu")
    units = activations.candidates(model)
    read = activations.readers(model, units)
    others = pictures[few : few + _REPAIRS] or pictures  # what is fitted must not be what judges it
    repair = Reconstruction(model, {name for names in read.values() for name in names}, load_batches(others, imgsz),
                            seed=config.seed)  # fmt: skip
    with progress("choosing activations", len(units)) as bar:
        chosen = activations.simplify_(model, units, judge, imgsz, config.hardswish, bar.advance, repair)
    say(f"{len(activations.of(model))} blocks have Hardswish instead of SiLU, at a distance of about "
        f"{sum(chosen.values()):.3f} from the original")  # fmt: skip
    return chosen


def _separate_(model: nn.Module, original: nn.Module, config: PruneConfig, pictures: Sequence[Path], imgsz: int,
               bounds: tuple[float, float]) -> tuple[dict[str, dict[str, float]], int]:  # fmt: skip
    """Make convolutions depthwise and pointwise ones where the recipe asks for it.

    Returns:
        Of each: filters a channel, and the share of its weighted output energy that is lost. And how many leading
        layers should give no channels.
    """
    names = separable.convolutions(model) if config.separable else []
    if not names:
        return {}, 0
    layers = {f"{name}.conv" for name in names}.union(_readers(find_groups(model)))
    moments = _measure(model, sorted(layers), pictures, imgsz, config.seed, "convolutions")
    with progress("fitting separable convolutions", len(names)) as bar:
        fits = {}
        for name in names:
            weight, known = model.get_submodule(name).conv.weight, moments[f"{name}.conv"]
            fits[name] = separable.factorize(weight, known, separable.FILTERS if config.latency is None else 1)
            bar.advance(1)
    chosen, whole = {name: fits[name][0] for name in separable.of_head(model)}, False
    if config.latency is None:  # with a bound on it, what each saves of it would have to be measured first
        judge = agreement(original, pictures[:_JUDGES], imgsz, "cpu")
        with progress("choosing separable convolutions", 2 * len(fits)) as bar:
            chosen, whole = separable.choose(model, fits, moments, judge, imgsz=imgsz, macs=bounds[0],
                                             params=bounds[1], align=config.align, advance=bar.advance)  # fmt: skip
    separable.separate_(model, chosen)
    if chosen:
        lost = [fit.lost for fit in chosen.values()]
        by_filters = Counter(len(fit.depthwise) for fit in chosen.values())
        told = ", ".join(f"{count} with {filters}" for filters, count in sorted(by_filters.items()))
        say(f"{len(chosen)} of {len(names)} 3x3 convolutions are depthwise and pointwise now, losing {min(lost):.1%} "
            f"to {max(lost):.1%} of their output's energy; filters a channel: {told}")  # fmt: skip
    details = {name: {"filters": len(fit.depthwise), "lost": fit.lost} for name, fit in chosen.items()}
    return details, separable.backbone(model) if whole else 0


def _readers(groups: Sequence[Group]) -> list[str]:
    """Convolutions that read channels which may go."""
    return sorted({name for group in groups for name in group.consumers})


def _measure(model: nn.Module, layers: Sequence[str], pictures: Sequence[Path], imgsz: int, seed: int,
             title: str) -> dict[str, Moments]:  # fmt: skip
    with progress(f"measuring, {title}", len(pictures)) as bar:
        return collect(model, layers, load_batches(pictures, imgsz), seed=seed, advance=bar.advance)


def _scorer(model: nn.Module, groups: list[Group], pictures: Sequence[Path], config: PruneConfig, imgsz: int,
            step: int, rounds: int, names: Sequence[str]) -> Scorer:  # fmt: skip
    if config.method in ("l1", "bn"):
        return StaticScorer(model, [g for g in groups if not g.protected], config.method)
    if config.method == "taylor":
        _loss_gradients_(model, pictures, names, imgsz)
        return StaticScorer(model, [g for g in groups if not g.protected], "taylor")
    title = f"step {step} of {rounds}"
    return ObsScorer(model, groups, _measure(model, _readers(groups), pictures, imgsz, config.seed + step, title))


def _loss_gradients_(model: nn.Module, pictures: Sequence[Path], names: Sequence[str], imgsz: int) -> None:
    """Leave the detection loss's gradients, summed over the pictures, in `.grad`."""
    data = training_data.training_set(pictures, names, imgsz, mosaic=0.0, augment=False, labelled=True)
    loss = yolo.detection_loss(model)
    model.requires_grad_(True)
    with progress("measuring", len(data)) as bar, torch.enable_grad():
        for first in range(0, len(data), _BATCH):
            batch = training_data.collate([data[i] for i in range(first, min(first + _BATCH, len(data)))])
            (loss(model(batch["img"].float() / 255), batch) * len(batch["img"])).backward()
            bar.advance(len(batch["img"]))
    model.requires_grad_(False)


def verify(model: nn.Module, groups: list[Group], channels: dict[str, Tensor], imgsz: int) -> None:
    """Coupled widths must still fit: neither the graph's word is taken for it, nor that of what was asked for.

    Raises:
        AssertionError: they do not; that is a mistake of ours.
    """
    for group in groups:
        kept = len(channels[group.name])
        found = {name: model.get_submodule(name).out_channels for name in group.producers}
        if set(found.values()) != {kept}:  # a shortcut adds what its producers compute, channel by channel
            raise AssertionError(f"{group.name} was to keep {kept} channels, and its layers have {found}")
    read: dict[str, int] = {}
    for group in groups:
        for name, index in group.consumers.items():
            read[name] = read.get(name, 0) + index.numel()
    for name, count in read.items():
        if model.get_submodule(name).in_channels != count:
            raise AssertionError(f"{name} reads {model.get_submodule(name).in_channels} channels, and is given {count}")
    with torch.no_grad():
        model(torch.zeros(1, 3, imgsz, imgsz))


def _widths(original: nn.Module, groups: list[Group], channels: dict[str, Tensor]) -> dict[str, list[int]]:
    """Output channels before and after, per stock convolution."""
    now = {producer: len(channels[group.name]) for group in groups for producer in group.producers}
    widths = {}
    for name, module in original.named_modules():
        if isinstance(module, nn.Conv2d):
            split = name.replace(".cv1.conv", ".cv0.conv")
            if split != name and split in now:  # the joined first convolution of a C2f
                widths[name] = [module.out_channels, 2 * now[split]]
            else:
                found = name if name in now else name.replace(".conv", ".1.conv")  # pointwise, behind a depthwise one
                widths[name] = [module.out_channels, now[found]]
    return widths


def _features(model: nn.Module, groups: list[Group], channels: dict[str, Tensor]) -> dict[str, list[int]]:
    """Kept output channels of each block of the trunk, in the original's numbering."""
    group_of = {producer: group.name for group in groups for producer in group.producers}
    return {name: channels[group_of[last]].tolist() for name, last in yolo.block_outputs(model).items()}
