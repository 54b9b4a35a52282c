"""What a checkpoint is made of: layers with their share of the latency, channels that are coupled, what they matter."""

from __future__ import annotations

import copy
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye.compress import yolo
from hawkeye.compress.allocate import Cost
from hawkeye.compress.distance import load_batches
from hawkeye.compress.groups import Group, SplitC2f, depthwise, find_groups, split_c2f_
from hawkeye.compress.macs import params_and_macs
from hawkeye.compress.saliency import ObsScorer, collect
from hawkeye.data import list_images, sample, training_images
from hawkeye.errors import ConfigError
from hawkeye.progress import progress, say
from hawkeye.scenes import draw_dataset

_FRACTIONS = (0.75, 0.5, 0.25)
_NAMES = {nn.BatchNorm2d: "BatchNorm", nn.SiLU: "SiLU", nn.Hardswish: "Hardswish"}
_WARM_UP = 2  # frames before the clock counts: allocations and the choice of kernels


def inspect(
    path: Path,
    *,
    imgsz: int | None = None,
    sensitivity: bool = False,
    data: Path | None = None,
    images: Path | None = None,
    samples: int = 32,
    fractions: Iterable[float] = _FRACTIONS,
    frames: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Layers, coupled channels and, on request, how much each group of channels matters; ready for JSON.

    Args:
        path: checkpoint (.pt).
        imgsz: side of the input in pixels; the size that the network was trained at when left out.
        sensitivity: measure the rise of the output error as channels go (a minute or so).
        data: data.yaml whose training pictures the sensitivity is measured on.
        images: folder of pictures for it, instead or beside. Without either, scenes are drawn, which is said: the
            order of the groups is then a first impression only.
        samples: pictures at most.
        fractions: kept fractions of each group's width at which the curve is given.
        frames: frames that the latency is measured on.
        seed: of the choice of pictures and positions.

    Returns:
        path, imgsz, names, params, macs, gflops (twice the MACs);
        latency: what was timed and how, `ms` a frame;
        layers: name, kind, shape (out, in, height, width of the kernel), stride, channels_in, channels_out,
            params, macs, latency_share (fraction; BatchNorm and activation with their convolution);
            shares of all rows add up to 1, the last row is everything without a kernel;
        groups: name, width, layers whose output channels these are, readers, why they are coupled, protected (why the
            width must stay, or None). `conv[:16]` is the half of a C2f's first convolution that is cut by itself;
        sensitivity, if asked for: pictures, source, and curves by group: kept channels, their fraction, damage (rise
            of the Fisher-weighted squared output error, each lowest channel by itself with the rest re-fitted, summed)
            and macs_kept of the whole network.

    Raises:
        CheckpointError: no checkpoint that can be compressed.
        ConfigError: imgsz does not fit the network, or a fraction outside (0, 1).
        DataError: no usable pictures where some were named.
    """
    fractions = sorted(fractions, reverse=True)
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ConfigError("such a curve cannot be drawn", got=fractions, expected="kept fractions between 0 and 1")
    if frames < 1 or samples < 1:
        raise ConfigError("nothing to measure on", got=f"frames={frames}, samples={samples}", expected="at least 1")
    checkpoint = yolo.load_checkpoint(path)
    imgsz = checkpoint.imgsz if imgsz is None else imgsz
    if imgsz <= 0:
        raise ConfigError("no such input size", got=imgsz, expected=f"a multiple of {max(checkpoint.strides)}")
    yolo.spec_of(checkpoint.model, imgsz)
    params, macs = params_and_macs(checkpoint.model, imgsz)
    layers, latency = _layers(checkpoint.model, imgsz, frames)
    model = copy.deepcopy(checkpoint.model)
    split_c2f_(model)
    groups = find_groups(model)
    rename = _stock_names(model)
    order = [name for name, _ in model.named_modules()]
    groups.sort(key=lambda group: (group.protected is not None, min(map(order.index, group.producers))))
    found: dict[str, Any] = {
        "path": str(path),
        "imgsz": imgsz,
        "names": list(checkpoint.names),
        "params": params,
        "macs": macs,
        "gflops": 2 * macs / 1e9,
        "latency": latency,
        "layers": layers,
        "groups": [_group(group, rename) for group in groups],
    }
    if sensitivity:
        with tempfile.TemporaryDirectory(prefix="hawkeye-scenes-") as folder:
            if data is None and images is None:
                source = "drawn scenes: give --data or --images for pictures that the network was made for"
                say(f"sensitivity is measured on {source}")
                draw_dataset(Path(folder) / "scenes", train=samples, val=1, imgsz=max(imgsz, 64), seed=seed)
                pictures = list_images(Path(folder) / "scenes" / "images" / "train")
            else:
                source = " and ".join(str(place) for place in (data, images) if place is not None)
                labelled, unlabelled = training_images(data, images)
                pictures = sample(labelled + unlabelled, samples, seed)
            curves = _curves(model, groups, pictures, imgsz, fractions, seed)
        found["sensitivity"] = {
            "pictures": len(pictures),
            "source": source,
            "groups": {rename(name): curve for name, curve in curves.items()},
        }
    return found


def _layers(model: nn.Module, imgsz: int, frames: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per convolution of the network as trained, one for the rest; and what was timed."""
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    pixels = _output_pixels(model, convs, imgsz)
    blocks = {name: _block(model, name) for name in convs}
    seconds, total = _time(yolo.fused(model), set(blocks.values()), imgsz, frames)
    rows: list[dict[str, Any]] = []
    for name, conv in convs.items():
        norm = getattr(model.get_submodule(blocks[name]), "bn", None)
        own = [*conv.parameters(), *(norm.parameters() if norm is not None else ())]
        rows.append({
            "name": name,
            "kind": ", ".join(["depthwise convolution" if depthwise(conv) else "convolution", *_after(model, name)]),
            "shape": list(conv.weight.shape),
            "stride": conv.stride[0],
            "channels_in": conv.in_channels,
            "channels_out": conv.out_channels,
            "params": sum(p.numel() for p in own),
            "macs": conv.weight.numel() * pixels[name],
            "latency_share": seconds[blocks[name]] / total,
        })  # fmt: skip
    rest = dict.fromkeys(rows[0]) | {
        "name": "everything else",
        "kind": "pooling, upsampling, concatenation, shortcuts, decode",
        "params": 0,
        "macs": 0,
        "latency_share": 1 - sum(row["latency_share"] for row in rows),
    }
    used = (frames + 1) // 2
    return [*rows, rest], {
        "ms": 1e3 * total / used,
        "runtime": "PyTorch eager, FP32, BatchNorm folded, batch 1; a runtime that fuses shares otherwise",
        "frames": f"the fastest {used} of {frames}",
        "threads": torch.get_num_threads(),
    }


def _after(model: nn.Module, name: str) -> list[str]:
    """What follows a convolution in its block."""
    parts = (getattr(model.get_submodule(_block(model, name)), part, None) for part in ("bn", "act"))
    return [_NAMES[type(part)] for part in parts if type(part) in _NAMES]


def _block(model: nn.Module, name: str) -> str:
    """The module that is timed for a convolution: the Conv block around it, where there is one."""
    parent = name.rpartition(".")[0]
    return parent if hasattr(model.get_submodule(parent), "bn") else name


def _output_pixels(model: nn.Module, convs: dict[str, nn.Conv2d], imgsz: int) -> dict[str, int]:
    pixels: dict[str, int] = {}

    def note(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        pixels[name] = output[0, 0].numel()

    handles = [conv.register_forward_hook(partial(note, name)) for name, conv in convs.items()]
    with torch.no_grad():
        model(torch.zeros(1, 3, imgsz, imgsz))
    for handle in handles:
        handle.remove()
    return pixels


def _time(model: nn.Module, names: Iterable[str], imgsz: int, frames: int) -> tuple[dict[str, float], float]:
    """Seconds spent in each named module and altogether, summed over the fastest half of the frames.

    Other work on the machine only ever adds time, and a slow frame would spoil the shares of the layers it hit.
    """
    started: dict[str, float] = {}
    spent: dict[str, float] = {}

    def begin(name: str, *_: Any) -> None:
        started[name] = time.perf_counter()

    def end(name: str, *_: Any) -> None:
        spent[name] = time.perf_counter() - started[name]

    for name in names:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(partial(begin, name))
        module.register_forward_hook(partial(end, name))
    frame, runs = torch.zeros(1, 3, imgsz, imgsz), []
    with torch.inference_mode():
        for i in range(_WARM_UP + frames):
            before = time.perf_counter()
            model(frame)
            if i >= _WARM_UP:
                runs.append((time.perf_counter() - before, dict(spent)))
    fastest = sorted(runs, key=lambda run: run[0])[: (frames + 1) // 2]
    return {name: sum(run[1][name] for run in fastest) for name in spent}, sum(run[0] for run in fastest)


def _stock_names(model: nn.Module) -> Callable[[str], str]:
    """Rewrites the names of a split C2f's convolutions to the stock one with the half that is meant."""
    halves: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitC2f):
            half = module.cv0.conv.out_channels
            halves[f"{name}.cv0.conv"] = f"{name}.cv1.conv[:{half}]"
            halves[f"{name}.cv1.conv"] = f"{name}.cv1.conv[{half}:]"
    return lambda text: re.sub(r"[\w.]+", lambda match: halves.get(match[0], match[0]), text)


def _group(group: Group, rename: Callable[[str], str]) -> dict[str, Any]:
    why = [] if group.why == "alone" and group.partner else [rename(group.why)]
    if group.partner:
        why.append(f"as wide as {rename(group.partner)}, the other half of a C2f")
    return {
        "name": rename(group.name),
        "width": group.width,
        "layers": [rename(name) for name in group.producers],
        "readers": [rename(name) for name in group.consumers],
        "why": "; ".join(why),
        "protected": group.protected,
    }


def _curves(model: nn.Module, groups: list[Group], pictures: list[Path], imgsz: int, fractions: list[float],
            seed: int) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Damage over kept width, per group that is free to shrink."""
    layers = sorted({name for group in groups for name in group.consumers})
    with progress("measuring", len(pictures)) as bar:
        moments = collect(model, layers, load_batches(pictures, imgsz), seed=seed, advance=bar.advance)
    cost = Cost(model, groups, imgsz)
    whole = cost.total({})[0]
    free = [group for group in groups if group.protected is None]
    scorer = ObsScorer(model, groups, moments)
    curves = {}
    with progress("judging groups", len(free)) as bar:
        for group in free:
            rising = scorer.scores(group, torch.ones(group.width, dtype=torch.bool)).sort().values.cumsum(0)
            curves[group.name] = []
            for fraction in fractions:
                kept = max(1, round(group.width * fraction))
                curves[group.name].append({
                    "kept": kept,
                    "fraction": fraction,
                    "damage": float(rising[group.width - kept - 1]) if kept < group.width else 0.0,
                    "macs_kept": cost.total({group.name: kept})[0] / whole,
                })  # fmt: skip
            bar.advance()
    return curves
