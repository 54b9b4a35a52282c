"""The latency of a whole detector as a function of its widths: the table's layers, tied to two whole networks.

A sum of layers is not a network: alone, a layer finds its input in the cache; in the network there are also maps to be
moved, decoding, and some microseconds around each node. So the network at hand is measured as a whole, at full width
and with half of every width, and what lies between goes with the sum of the table's layers.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from hawkeye import environment
from hawkeye.artifact import Artifact, digest, write_json
from hawkeye.compress import activations, latency_table, yolo
from hawkeye.compress.allocate import Cost, units_of
from hawkeye.compress.groups import Group, SplitC2f, cut_, depthwise, find_groups, merge_c2f_, split_c2f_
from hawkeye.compress.latency_table import Table
from hawkeye.compress.layer_models import Precision, Shape, networks_ms, version
from hawkeye.config import QuantizeConfig
from hawkeye.progress import progress, say

_RUNS = 40  # whole networks are quick beside the table, and everything is told relative to them
_NOISE = 2  # pictures; what a quantized network costs does not depend on its ranges


@dataclass(frozen=True)
class Layer:
    """A convolution of the exported network; the two halves of a split C2f are one."""

    parts: tuple[str, ...]
    shape: Shape
    fixed: bool  # its output channels have a meaning each


@dataclass(frozen=True)
class Whole:
    """Milliseconds of one run of the network.

    Attributes:
        total: at full width.
        half: with half of every width.
    """

    total: float
    half: float


class Latency:
    """Milliseconds of a detector as a function of its widths.

    Args:
        model: the detector with its C2f split, at any widths that the table covers.
        groups: its coupled channels.
        imgsz: side of the input in pixels.
        table: layer costs.
        whole: the network that `model` is or was pruned from, measured as a whole.
        ends: what the table's layers of that network sum up to, at full width and with half of every width.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], imgsz: int, table: Table, whole: Whole,
                 ends: tuple[float, float]) -> None:  # fmt: skip
        self._cost, self._table, self._total = Cost(model, groups, imgsz), table, whole.total
        self._layers = layers_of(model, imgsz)
        self._full = ends[0]
        # A machine at work with other things may find the half no quicker; less width never costs time. And the
        # narrowest of detectors have no half.
        apart = ends[0] - ends[1]
        self._slope = max(0.0, whole.total - whole.half) / apart if apart > 0 else 0.0
        self._known: dict[tuple[int, int, int], float] = {}  # a search asks for the same ones

    def ms(self, widths: dict[str, int]) -> float:
        """Predicted milliseconds with these group widths; groups that are left out keep theirs."""
        inputs, outputs = self._cost.channels(widths)
        convolutions = 0.0
        for number, layer in enumerate(self._layers):
            key = (number, inputs[layer.parts[0]], sum([outputs[part] for part in layer.parts]))
            if key not in self._known:
                self._known[key] = self._table.ms(layer.shape._replace(cin=key[1], cout=key[2]))
            convolutions += self._known[key]
        return self._total + self._slope * (convolutions - self._full)


@dataclass(frozen=True)
class Profile:
    """Everything to predict latencies of what becomes of one detector on this machine.

    Attributes:
        imgsz: side of the input in pixels.
        layers: of the detector at full width.
        half: the same with half of every width.
        tables, wholes: by precision.
        measured: layers that were measured for it now.
    """

    imgsz: int
    layers: list[Layer]
    half: list[Layer]
    tables: dict[Precision, Table]
    wholes: dict[Precision, Whole]
    measured: int

    def of(self, model: nn.Module, groups: Iterable[Group], precision: Precision = "int8") -> Latency:
        """The latency of this detector, or of what was pruned from it."""
        table = self.tables[precision]
        full, half = (sum(table.ms(layer.shape) for layer in layers) for layers in (self.layers, self.half))
        return Latency(model, groups, self.imgsz, table, self.wholes[precision], (full, half))

    @property
    def sha256(self) -> str:
        """Of the figures that widths are chosen by."""
        wholes = {name: vars(whole) for name, whole in self.wholes.items()}
        return digest(wholes, {name: table.sha256 for name, table in self.tables.items()})


def profile(model: nn.Module, imgsz: int, *, threads: int = 0, precisions: tuple[Precision, ...] = ("int8", "fp32"),
            runs: int = latency_table.RUNS) -> Profile:  # fmt: skip
    """Measure what this detector's layers cost at every width that it can take; what is known is not measured again.

    Args:
        model: stock detector, eval mode.
        imgsz: side of the input in pixels.
        threads: of the runtime; 0 takes all cores.
        precisions: INT8 alone is enough to choose widths by.
        runs: of each layer; the least counts.
    """
    split = copy.deepcopy(model)
    split_c2f_(split)
    layers = layers_of(split, imgsz)
    halve_(split)
    half = layers_of(split, imgsz)
    merge_c2f_(split)
    tables: dict[Precision, Table] = {}
    count = 0
    for precision in precisions:
        tables[precision] = latency_table.open_table(precision, threads)
        shapes = wanted(layers, precision)
        count += latency_table.measure_(tables[precision], shapes, runs=runs)
    any_threads = next(iter(tables.values())).threads
    return Profile(imgsz, layers, half, tables, _wholes(model, split, layers, imgsz, any_threads), count)


def whole_ms(model: nn.Module, imgsz: int, *, threads: int = 0) -> dict[Precision, float]:
    """Milliseconds of one run of a stock detector as it is, in both precisions."""
    split = copy.deepcopy(model)
    split_c2f_(split)
    layers = layers_of(split, imgsz)
    halve_(split)
    merge_c2f_(split)
    wholes = _wholes(model, split, layers, imgsz, threads or environment.cpu_count())
    return {precision: whole.total for precision, whole in wholes.items()}


def halve_(model: nn.Module) -> None:
    """Cut a detector whose C2f are split to half of every width that is free, in multiples of 8."""
    groups = find_groups(model)
    widths = {
        group.name: min(group.width, max(8, group.width // 16 * 8)) for unit in units_of(groups) for group in unit
    }
    cut_(model, {name: range(width) for name, width in widths.items()}, groups)


def wanted(layers: list[Layer], precision: Precision) -> list[Shape]:
    """Shapes that the network can take."""
    fixed = {layer.shape for layer in layers if layer.fixed}
    return latency_table.wanted({layer.shape for layer in layers}, precision, fixed)


def layers_of(model: nn.Module, imgsz: int) -> list[Layer]:
    """Convolutions of a detector whose C2f are split, in the order of its modules, without DFL."""
    head = f"model.{len(model.model) - 1}."
    halves = {f"{name}.cv0.conv": f"{name}.cv1.conv" for name, m in model.named_modules() if isinstance(m, SplitC2f)}
    cells: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        return lambda _m, _i, out: cells.__setitem__(name, (out.shape[2], out.shape[3]))

    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and ".dfl." not in name}
    handles = [conv.register_forward_hook(note(name)) for name, conv in convs.items()]
    with torch.no_grad():
        model(torch.zeros(1, 3, imgsz, imgsz))
    for handle in handles:
        handle.remove()
    found = []
    for name, conv in convs.items():
        if name in halves.values():
            continue
        parts = (name, halves[name]) if name in halves else (name,)
        last = name.startswith(head) and not name.endswith(".conv")
        kind = "output" if last else "depthwise" if depthwise(conv) else "conv"
        shape = Shape(kind, conv.kernel_size[0], conv.stride[0], conv.in_channels,
                      conv.out_channels * len(parts), *cells[name])  # fmt: skip
        found.append(Layer(parts, shape, last))
    return found


def _wholes(model: nn.Module, half: nn.Module, layers: list[Layer], imgsz: int, threads: int) -> dict[Precision, Whole]:
    """The whole network in each precision; kept beside the tables, by its layers."""
    folder = environment.cache_dir("layers")
    # An activation that is cheaper shows in no layer's shape.
    key = digest([layer.shape for layer in layers], sorted(activations.of(model)), imgsz, threads, version())
    path = folder / f"wholes-{key[:16]}.json" if folder else None
    if path is not None and path.is_file():
        try:
            known = json.loads(path.read_text())
            return {precision: Whole(**known[precision]) for precision in ("int8", "fp32")}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: measured again
    say("measuring the whole network in INT8 and FP32")
    with tempfile.TemporaryDirectory(prefix="hawkeye-profile-") as place:
        full, less = networks_of(model, imgsz, Path(place)), networks_of(half, imgsz, Path(place))
        least = [min(runs) for runs in networks_ms([*full.values(), *less.values()], threads=threads, runs=_RUNS)]
        found = {name: Whole(*pair) for name, *pair in zip(full, least[: len(full)], least[len(full) :], strict=True)}
    if path is not None:
        write_json(path, {precision: vars(whole) for precision, whole in found.items()})
    return found


def networks_of(model: nn.Module, imgsz: int, folder: Path) -> dict[Precision, Any]:
    """The detector as OpenVINO models in FP32 and INT8, calibrated on noise: for timing, not for use."""
    from hawkeye.compress.calibrate import post_training
    from hawkeye.compress.export import read_swish, to_onnx

    path = folder / "network.onnx"
    path.write_bytes(to_onnx(yolo.fused(model), imgsz, opset=17, dynamic=False, simplify=True).SerializeToString())
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(_NOISE):
        pictures.append(folder / f"{number}.png")
        cv2.imwrite(str(pictures[-1]), rng.integers(0, 256, (imgsz // 8, imgsz // 8, 3), np.uint8))
    with progress("INT8 for timing", _NOISE) as task:
        int8 = post_training(read_swish(path), pictures, QuantizeConfig(), imgsz, 8, task)
    return {"fp32": read_swish(path), "int8": int8}


def forecast(original: Artifact, pruned: Artifact) -> float:
    """What pruning has left of the latency in INT8, measured now; said before training, which changes no widths.

    Returns:
        The fraction.
    """
    with tempfile.TemporaryDirectory(prefix="hawkeye-forecast-") as place:
        networks = [networks_of(yolo.load_checkpoint(a.path("pytorch")).model, a.spec.imgsz, Path(place))["int8"]
                    for a in (original, pruned)]  # fmt: skip
        before, after = (median(runs) for runs in networks_ms(networks, threads=environment.cpu_count(), runs=_RUNS))
    say(f"forecast of latency: {after / before:.2f} of the original's in INT8, {after:.1f} ms instead of {before:.1f} "
        "for the network alone, on this machine now")  # fmt: skip
    return after / before


def summary(made: Profile) -> dict[str, Any]:
    """What a profile tells, JSON-ready: the whole network, its layers, and output widths that do not pay."""
    table = made.tables["int8"]
    layers = []
    for layer in made.layers:
        shape = layer.shape
        # A wider layer that takes no longer makes a width pointless.
        costs = {cout: table.ms(shape._replace(cin=cout if shape.kind == "depthwise" else shape.cin, cout=cout))
                 for cout in latency_table.grid(shape.cout)}  # fmt: skip
        poor = [] if layer.fixed else [
            cout for cout, ms in costs.items() if any(costs[wider] <= ms for wider in costs if wider > cout)
        ]  # fmt: skip
        row = {"layer": layer.parts[0], "kind": f"{shape.kernel}x{shape.kernel}/{shape.stride}",
               "cells": f"{shape.h}x{shape.w}", "cin": shape.cin, "cout": shape.cout}  # fmt: skip
        row |= {f"{name}_ms": known.ms(shape) for name, known in made.tables.items()}
        layers.append({**row, "poor_widths": poor})
    return {
        "imgsz": made.imgsz, "threads": table.threads, "cpu": environment.cpu_model(), "openvino": version(),
        "measured_now": made.measured, "tables": {name: str(t.path or "") for name, t in made.tables.items()},
        "table_sha256": made.sha256, "network": {name: vars(whole) for name, whole in made.wholes.items()},
        "layers": layers,
    }  # fmt: skip
