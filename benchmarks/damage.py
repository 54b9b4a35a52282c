"""What each part of pruning by channels is worth: the same bounds with one part changed at a time, and bottlenecks.

    python benchmarks/damage.py yolov8n.pt --data coco-sample/data.yaml --out runs/damage

Channels alone are pruned (no separable convolutions, no Hardswish), so that what is changed is not made up for
elsewhere. The judge is recovery's loss before any training, on training pictures that no row has measured anything on;
mAP@0.5 on the validation pictures, in PyTorch, is to be looked at and chooses nothing. A second table takes whole
bottlenecks out, one at a time, and channels for the same number of FLOPs; a third prunes at once or in two halves with
the same number of training steps. Each row is a file: start the same command again after an interruption. Nothing is
timed, so other work may run beside it. Prints JSON, then Markdown tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from hawkeye import environment, keys
from hawkeye.artifact import Artifact
from hawkeye.compress import yolo
from hawkeye.compress.allocate import Cost, Scorer, allocate
from hawkeye.compress.distance import agreement, load_batches
from hawkeye.compress.groups import Group, SplitC2f, cut_, find_groups, merge_c2f_, split_c2f_
from hawkeye.compress.macs import params_and_macs
from hawkeye.compress.original import import_original
from hawkeye.compress.prune import prune
from hawkeye.compress.reconstruct import Reconstruction
from hawkeye.compress.recover import recover
from hawkeye.compress.saliency import Moments, ObsScorer, collect
from hawkeye.config import EvaluateConfig, PruneConfig, RecoverConfig
from hawkeye.data import training_images
from hawkeye.errors import RunDirError
from hawkeye.evaluate import evaluate
from hawkeye.progress import progress, say
from hawkeye.report_text import markdown_table

_JUDGES = 64  # pictures, as recovery takes them
_REPAIRS = 16  # pictures that layers are fitted on after pruning, as `prune` takes them for Hardswish
_STATISTICS = 64  # pictures that BatchNorm is measured on again

Change = Callable[[nn.Module, "Widths"], None]


class Widths:
    """The product's allocator, which remembers what of each convolution's outputs is kept."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, groups: list[Group], cost: Cost, scorer: Scorer, **bounds: Any) -> dict[str, Tensor]:
        keep = allocate(groups, cost, scorer, **bounds)
        for group in groups:
            index = keep.get(group.name, torch.arange(group.width))
            for name in group.producers:
                self.kept[name] = self.kept.get(name, torch.arange(group.width))[index]
        return keep


class Kept(Reconstruction):
    """Reconstruction of what is left of each convolution's outputs."""

    def __init__(self, original: nn.Module, kept: Mapping[str, Tensor], names: Collection[str],
                 batches: Iterable[Tensor]) -> None:  # fmt: skip
        super().__init__(original, names, batches)
        self._wanted = [{name: (drawn, whole[:, kept[name]] if name in kept else whole)
                         for name, (drawn, whole) in batch.items()} for batch in self._wanted]  # fmt: skip


def alike(*args: Any, **options: Any) -> dict[str, Moments]:
    """As `collect`, with every output of a convolution as important as any, and every convolution as its energy."""
    model = args[0]
    found = collect(*args, **options)
    for name, moments in found.items():
        weight = model.get_submodule(name).weight.detach().double().flatten(1)
        energy = float(((weight @ moments.cov) * weight).sum())
        moments.fisher = torch.full_like(moments.fisher, 1 / max(energy, 1e-30))
    return found


def settle_(model: nn.Module, _: Widths, *, pictures: list[Path], imgsz: int) -> None:
    """BatchNorm's statistics anew, from these pictures alone."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in load_batches(pictures, imgsz, 16):
            model(batch)
    model.eval()


def refit_(model: nn.Module, widths: Widths, *, original: nn.Module, pictures: list[Path], imgsz: int) -> None:
    """Each convolution in turn, on what the pruned network gives it, to what the original computes there."""
    whole = copy.deepcopy(original)
    for network in (whole, model):
        split_c2f_(network)
    readers = {name for group in find_groups(model) for name in group.consumers}
    names = [name for name, _ in model.named_modules() if name in readers]
    repair = Kept(whole, widths.kept, names, load_batches(pictures, imgsz))
    with progress("refitting", len(names)) as bar:
        for name in names:
            repair.fit_(model, [name])
            bar.advance(1)
    merge_c2f_(model)


def nothing_(model: nn.Module, _: Widths) -> None:
    """Leave it as pruning has."""


def told_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that rows depend on, as JSON has them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
            if key != "out"}  # fmt: skip


class Study:
    """What all rows share.

    Args:
        options: the command line.
        base: what every row differs from in one thing.
        most: the most pictures that any row measures on.
    """

    def __init__(self, options: argparse.Namespace, base: PruneConfig, most: int) -> None:
        self.options, self.base = options, base
        self.artifact = import_original(options.model, imgsz=options.imgsz, out=options.out / "original")
        self.original = yolo.load_checkpoint(self.artifact.path("pytorch")).model
        measured = keys.prune(self.artifact.sha256, base.with_(samples=most))[0]
        labelled, unlabelled = training_images(options.data, options.images)
        self.held = [path for path in labelled + unlabelled if path not in measured]
        self.judge = agreement(self.original, self.held[:_JUDGES], options.imgsz, "cpu")
        self.pictures = keys.prune(self.artifact.sha256, base)[0]
        self.checks = EvaluateConfig(data=options.data, imgsz=options.imgsz)

    def row(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """A row, made once."""
        file = self.options.out / f"{name.replace('/', '_')}.json"
        if not file.is_file():
            say(f"row {name}")
            folder = file.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)  # half of a row
            found = {"row": name, "settings": told_of(self.options), **make(folder)}
            file.write_text(json.dumps(found))
        told: dict[str, Any] = json.loads(file.read_text())
        if told.pop("settings") != told_of(self.options):
            raise RunDirError(f"{file} was made with other settings", got=file, expected="the same command line",
                              mend="name another folder with --out")  # fmt: skip
        return told

    def figures(self, network: nn.Module, folder: Path) -> dict[str, Any]:
        """Distance and accuracy of a stock network."""
        path = folder / "judged" / "network.pt"
        yolo.save_checkpoint(path, network, names=self.artifact.spec.names, imgsz=self.options.imgsz)
        params, macs = params_and_macs(network, self.options.imgsz)
        made = Artifact.create(path.parent, {"pytorch": path}, started=time.perf_counter(), name="pruned",
                               stage="prune", spec=self.artifact.spec, params=params, macs=macs)  # fmt: skip
        accuracy = evaluate(made, self.checks, runtime="pytorch-fp32", out=path.parent)
        return {"flops": macs / self.artifact.macs, "params": params / self.artifact.params,
                "distance": self.judge(network), "map50": accuracy.map50}  # fmt: skip

    def pruned(self, config: PruneConfig, during: AbstractContextManager[Any], after: Change, folder: Path
               ) -> dict[str, Any]:  # fmt: skip
        """Prune by a changed recipe, then change the result."""
        widths = Widths()
        with during:
            made = prune(self.artifact, config, out=folder / "pruned", allocator=widths)
        network = yolo.load_checkpoint(made.path("pytorch")).model
        after(network, widths)
        return self.figures(network, folder)

    def trained(self, shares: tuple[float, ...], folder: Path) -> dict[str, Any]:
        """Prune in so many parts with as many steps of training in all, features left out."""
        made = self.artifact
        steps = self.options.steps // len(shares)
        for number, share in enumerate(shares):
            bounds = {"flops": self.base.flops**share, "params": self.base.params**share}
            rounds = max(1, self.base.rounds // len(shares))
            made = prune(made, self.base.with_(rounds=rounds, **bounds), out=folder / f"{number}-pruned")
            config = RecoverConfig(steps=steps, features=0, data=self.options.data, images=self.options.images,
                                   imgsz=self.options.imgsz, checks=2)  # fmt: skip
            made = recover(made, config, teacher=self.artifact, out=folder / f"{number}-recovered")
        return {"held_out": made.details["held_out_after"],
                **self.figures(yolo.load_checkpoint(made.path("pytorch")).model, folder)}  # fmt: skip


def bottlenecks(study: Study) -> list[dict[str, Any]]:
    """Each bottleneck alone taken out, what reads it refitted; and channels that save as many FLOPs instead."""
    imgsz = study.options.imgsz
    whole = copy.deepcopy(study.original)
    split_c2f_(whole)
    groups = find_groups(whole)
    cost = Cost(whole, groups, imgsz)
    macs, params = cost.total({})
    readers = sorted({name for group in groups for name in group.consumers})
    names = [f"{name}.m.{index}" for name, block in whole.named_modules() if isinstance(block, SplitC2f)
             for index in range(len(block.m))]  # fmt: skip
    made: dict[str, Any] = {}

    def shared() -> dict[str, Any]:
        if not made:
            repairs = load_batches(study.held[_JUDGES : _JUDGES + _REPAIRS], imgsz)
            made["repair"] = Reconstruction(whole, readers, repairs)
            with progress("measuring", len(study.pictures)) as bar:
                made["moments"] = collect(whole, readers, load_batches(study.pictures, imgsz), advance=bar.advance)
            made["inverse"] = {}
        return made

    def without(name: str, _: Path) -> dict[str, Any]:
        trial: Any = copy.deepcopy(whole)
        parent, _, index = name.rpartition(".")
        trial.get_submodule(parent)[int(index)] = nn.Identity()
        saved = macs - params_and_macs(trial, imgsz)[1]
        block = parent.removesuffix(".m")
        behind = [f"{parent}.{number}.cv1.conv" for number in range(int(index) + 1, len(whole.get_submodule(parent)))]
        for reader in (*behind[:1], f"{block}.cv2.conv"):
            shared()["repair"].fit_(trial, [reader])
        other = copy.deepcopy(whole)
        scorer = ObsScorer(other, groups, shared()["moments"], shared()["inverse"])
        keep = allocate(groups, cost, scorer, macs=macs - saved, params=params, align=study.base.align)
        scorer.refit_(keep)
        cut_(other, {key: kept.tolist() for key, kept in keep.items()}, find_groups(other))
        return {"saved": saved / macs, "without": study.judge(trial), "channels": study.judge(other)}

    return [study.row(f"bottleneck {name}", partial(without, name)) for name in names]


def main(words: Sequence[str] | None = None) -> None:
    """Prune in every way, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bound", type=float, default=0.7, help="of FLOPs and parameters")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="of the rows that train")
    options = parser.parse_args(words)
    base = PruneConfig(data=options.data, images=options.images, imgsz=options.imgsz, flops=options.bound,
                       params=options.bound, samples=options.samples, rounds=options.rounds, separable=False,
                       floor=0)  # fmt: skip
    study = Study(options, base, 2 * options.samples)
    settle = partial(settle_, pictures=study.pictures[:_STATISTICS], imgsz=options.imgsz)
    refit = partial(refit_, original=study.original, pictures=study.held[_JUDGES : _JUDGES + _REPAIRS],
                    imgsz=options.imgsz)  # fmt: skip
    target = "hawkeye.compress.prune"
    ways: dict[str, tuple[dict[str, Any], Callable[[], AbstractContextManager[Any]], Change]] = {
        "as it is": ({}, nullcontext, nothing_),
        "outputs alike, no Fisher information": ({}, lambda: mock.patch(f"{target}.collect", alike), nothing_),
        "no least squares": ({}, lambda: mock.patch.object(ObsScorer, "refit_", lambda *_: None), nothing_),
        "one round": ({"rounds": 1}, nullcontext, nothing_),
        f"{2 * options.rounds} rounds": ({"rounds": 2 * options.rounds}, nullcontext, nothing_),
        "widths of 1": ({"align": 1}, nullcontext, nothing_),
        "widths of 16": ({"align": 16}, nullcontext, nothing_),
        f"{options.samples // 2} pictures": ({"samples": options.samples // 2}, nullcontext, nothing_),
        f"{2 * options.samples} pictures": ({"samples": 2 * options.samples}, nullcontext, nothing_),
        "layers refitted in turn": ({}, nullcontext, refit),
        "BatchNorm measured again": ({}, nullcontext, settle),
    }
    rows = [study.row(name, lambda folder, way=way: study.pruned(base.with_(**way[0]), way[1](), way[2], folder))
            for name, way in ways.items()]  # fmt: skip
    blocks = bottlenecks(study)
    parts = {"at once, then trained": (1.0,), "halves, each trained": (0.5, 0.5)}
    trained = [study.row(name, partial(study.trained, shares)) for name, shares in parts.items()]
    tables = [
        markdown_table(["", "FLOPs", "parameters", "distance", "mAP@0.5"],
                       [[row["row"], f"{row['flops']:.3f}", f"{row['params']:.3f}", f"{row['distance']:.3f}",
                         f"{row['map50']:.3f}"] for row in [*rows, *trained]]),
        markdown_table(["taken out", "of the FLOPs", "distance", "of channels for as many"],
                       [[row["row"].removeprefix("bottleneck "), f"{row['saved']:.1%}", f"{row['without']:.3f}",
                         f"{row['channels']:.3f}"] for row in blocks]),
    ]  # fmt: skip
    print(json.dumps({"settings": told_of(options), "rows": rows, "bottlenecks": blocks, "trained": trained,
                      "environment": environment.describe()}))  # fmt: skip
    print("\n".join(line for table in tables for line in table))


if __name__ == "__main__":
    main()
