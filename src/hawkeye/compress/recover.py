"""Recovery after pruning: distillation from the original, with labels beside it where there are any.

No image needs a label: the original's class scores are per-class binary targets, its box distributions are targets
for localisation (Zheng et al., arXiv 2102.12252), and what each block of the trunk gives is compared on the kept
channels (Romero et al., arXiv 1412.6550), whose indices are known, so no adapters are needed. Every anchor counts with
the teacher's own probabilities; going easy on background was found to cost accuracy.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye import artifact, keys
from hawkeye.artifact import Artifact
from hawkeye.compress import activations, training_data, yolo
from hawkeye.compress.device import claim
from hawkeye.compress.distance import agreement, distillation_loss, raw_maps
from hawkeye.compress.training import Batch, Look, Objective, Source, first_rank, fit_, wait_for_all
from hawkeye.compress.trunk import SharedTrunk, outputs_of, untouched
from hawkeye.config import RecoverConfig
from hawkeye.data import load_dataset, split_holdout, training_images
from hawkeye.errors import DataError, ModelError
from hawkeye.progress import say


def recover(source: Artifact, config: RecoverConfig, *, teacher: Artifact, out: Path,
            look: Look | None = None) -> Artifact:  # fmt: skip
    """Train a pruned detector back towards the original.

    Args:
        source: the pruned artefact.
        config: length, rates, weights, pictures.
        teacher: the original, or another detector of the same classes (`config.teacher`, or any that the source was
            not pruned from), which teaches scores and boxes alone.
        out: folder of the result; holds the training state while it runs.
        look: for studies; is shown a stock network of the averaged weights with each new point of the curve.

    Returns:
        An artefact with the best weights on held-out training pictures; they are the source's own when nothing better
        was found. Details: the curve, the judgement before and after.

    Raises:
        ConfigError: there is no GPU, and one is asked for.
        DivergenceError: training broke down for good.
        DataError: no usable pictures.
        ModelError: the teacher knows other classes, or speaks of boxes otherwise.
    """
    started = time.perf_counter()
    labelled, unlabelled, key = keys.recover(source.sha256, teacher.sha256, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done
    claim(config.device)
    imgsz = config.imgsz or source.spec.imgsz
    loaded = yolo.load_checkpoint(source.path("pytorch"))
    model = loaded.model.requires_grad_(True)
    yolo.freeze_statistics_(model, config.freeze_bn)
    model.model[-1].dfl.requires_grad_(False)
    unfolded = yolo.load_checkpoint(teacher.path("pytorch")).model
    original = _frozen(unfolded, config.device)
    _check_teacher(original, loaded.model, teacher)
    other = _is_other(source, teacher, original, config)
    if other:
        say("the teacher is not what this network was pruned from: it teaches scores and boxes alone")
    kept = _kept_features(source, original, config, other)
    learn_l, judge_l = split_holdout(labelled, config.holdout, config.seed) if labelled else ([], [])
    learn_u, judge_u = split_holdout(unlabelled, config.holdout, config.seed) if unlabelled else ([], [])
    if not learn_l + learn_u:
        raise DataError("too few pictures to learn from", got=len(labelled) + len(unlabelled),
                        expected="at least 2, one of which is set aside to choose the best weights on")  # fmt: skip
    judge = agreement(original, (judge_l + judge_u)[:64], imgsz, config.device)  # before a trunk is shared
    length, unfolded = _shared_trunk(model, unfolded, source, config, other)
    trunk = None
    if length:
        original = _frozen(unfolded, config.device)
        trunk = SharedTrunk(model, original, length)
        kept = {name: index for name, index in kept.items() if name not in trunk}
    names = loaded.names
    lessons, objective = distillation(model, original, (learn_l, learn_u), names, imgsz, kept, config, trunk)
    say(f"recovering on {len(learn_l)} labelled and {len(learn_u)} unlabelled pictures, "
        f"judged on {min(64, len(judge_l) + len(judge_u))} held-out training pictures")  # fmt: skip
    state = out / "training" / f"{key[:16]}.pt"
    curve, best, start = fit_(
        model, lessons, objective, judge, config, state=state, title="recover",
        look=None if look is None else lambda network, point: look(_stock_(copy.deepcopy(network), trunk), point),
    )  # fmt: skip
    if not first_rank():
        wait_for_all()
        return Artifact.load(out)
    target = out / "recovered.pt"
    yolo.save_checkpoint(target, _stock_(model, trunk).cpu(), names=names, imgsz=imgsz)
    result = Artifact.create(
        out, {"pytorch": target}, started=started, name=source.name, stage="recover", spec=source.spec,
        params=source.params, macs=source.macs, parent_sha256=source.sha256, key=key,
        config=config.model_dump(mode="json"), seed=config.seed,
        details={**source.details, "curve": curve, "held_out_before": start, "held_out_after": best,
                 "pictures": {"labelled": len(learn_l), "unlabelled": len(learn_u),
                              "held_out": len(judge_l) + len(judge_u)}},
    )  # fmt: skip
    state.unlink(missing_ok=True)
    wait_for_all()
    return result


def distillation(
    model: nn.Module,
    original: nn.Module,
    pictures: tuple[Sequence[Path], Sequence[Path]],
    names: Sequence[str],
    imgsz: int,
    kept: Mapping[str, Tensor],
    config: RecoverConfig,
    trunk: SharedTrunk | None = None,
) -> tuple[Source, Objective]:
    """What to learn from, and the loss: distance from the original, and the detection loss where there are labels.

    Args:
        model: the student.
        original: the teacher, on the device.
        pictures: labelled and unlabelled ones.
        names: class names by index.
        imgsz: side of a sample in pixels.
        kept: for modules of both, the teacher's output channels that the student has kept; their maps are compared.
        config: weights of the parts, mosaic, device.
        trunk: layers that both share.
    """
    labelled, unlabelled = pictures
    data = _Mixed(labelled, unlabelled, names, imgsz, config.mosaic)
    detection = yolo.detection_loss(model) if labelled and config.labels else None
    gains = {name: activations.gain(model, original, name) for name in kept}

    def objective(student: nn.Module, batch: Batch) -> Tensor:
        pixels = _pixels(batch["img"])
        with outputs_of(model, [*kept, *(trunk.maps if trunk else ())]) as mine:
            got = student(pixels)
        with torch.no_grad(), torch.autocast(config.device, torch.bfloat16), outputs_of(original, kept) as theirs:
            wanted = raw_maps(trunk.teach(mine) if trunk else original(pixels))
        student_maps = {**got, "feats": [mine[name] / gains[name] for name in kept]}
        teacher_maps = {**wanted, "feats": [theirs[name] for name in kept]}
        loss = distillation_loss(student_maps, teacher_maps, config.features, list(kept.values()))
        if detection is not None and batch["labelled"].any():
            loss = loss + config.labels * _labelled_loss(detection, got, batch)
        return loss

    return Source(data, data.collate), objective


def train(start: Path | nn.Module, *, data: Path, imgsz: int, budget: float, out: Path, lr: float = 1e-3,
          seed: int = 0, look: Look | None = None) -> Path:  # fmt: skip
    """Plain training with labels: from scratch, or a checkpoint fine-tuned for the classes of `data`.

    Args:
        start: a fresh network, or a checkpoint; its class head is replaced where the classes differ.
        data: data.yaml.
        imgsz: side of the input in pixels.
        budget: seconds.
        out: folder of the checkpoint and, while it runs, of the training state.
        lr: peak learning rate; 1e-3 from scratch, about 2e-4 for fine-tuning.
        seed: of everything random.
        look: for studies; is shown the averaged network with each new point of the curve.

    Returns:
        The checkpoint, `out / "trained.pt"`; an existing one is returned as it is.
    """
    # Statistics of BatchNorm must be learned here, and half of the pictures stay whole so that large objects are seen.
    config = RecoverConfig(
        budget=budget, optimizer="adamw", lr=lr, batch=16, seed=seed, freeze_bn=False, ema=0.99, mosaic=0.5, checks=8
    )
    target = out / "trained.pt"
    if target.is_file():
        return target
    dataset = load_dataset(data)
    model = yolo.load_checkpoint(start).model if isinstance(start, Path) else start
    if tuple(model.names.values()) != dataset.names:
        model = yolo.transfer_head(model, dataset.names)
    model.requires_grad_(True)
    model.model[-1].dfl.requires_grad_(False)
    labelled, _ = training_images(data, None)
    learn, held = split_holdout(labelled, config.holdout, config.seed)
    source = training_data.training_set(learn, dataset.names, imgsz, mosaic=config.mosaic, augment=True, labelled=True)
    source_held = training_data.training_set(held, dataset.names, imgsz, mosaic=0.0, augment=False, labelled=True)
    loss = yolo.detection_loss(model)
    batches = [training_data.collate([source_held[i] for i in range(first, min(first + 8, len(held)))])
               for first in range(0, len(held), 8)]  # fmt: skip

    def judge(network: nn.Module) -> float:
        with torch.no_grad(), torch.autocast(config.device, torch.bfloat16):
            return sum(float(loss(network(_pixels(b["img"].to(config.device))), b)) for b in batches) / len(batches)

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        return loss(network(_pixels(batch["img"])), batch)

    fit_(model, Source(source, training_data.collate), objective, judge, config, state=out / "training.pt",
         title="train", look=look)  # fmt: skip
    yolo.save_checkpoint(target, model.cpu(), names=dataset.names, imgsz=imgsz)
    (out / "training.pt").unlink(missing_ok=True)
    return target


class _Mixed(torch.utils.data.Dataset[Any]):
    """Labelled and unlabelled pictures in one data set; mosaics never mix the two."""

    def __init__(self, labelled: Sequence[Path], unlabelled: Sequence[Path], names: Sequence[str], imgsz: int,
                 mosaic: float) -> None:  # fmt: skip
        self._parts = [
            (training_data.training_set(paths, names, imgsz, mosaic=mosaic, augment=True, labelled=has), has)
            for paths, has in ((labelled, True), (unlabelled, False))
            if paths
        ]

    def __len__(self) -> int:
        return sum(len(part) for part, _ in self._parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for part, has in self._parts:
            if index < len(part):
                return {**part[index], "has_labels": has}
            index -= len(part)
        raise IndexError(index)

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """Labelled pictures first, so that their outputs are one slice."""
        samples = sorted(samples, key=lambda sample: not sample["has_labels"])
        has = torch.tensor([sample.pop("has_labels") for sample in samples])
        return {**training_data.collate(samples), "labelled": has}


def _labelled_loss(detection: Callable[[Any, Any], Tensor], raw: dict[str, Any], batch: Batch) -> Tensor:
    """Mean over half of the labelled pictures: as good a guide, for what counts a tenth, in half of the time."""
    count = (int(batch["labelled"].sum()) + 1) // 2
    mine = {"boxes": raw["boxes"][:count], "scores": raw["scores"][:count], "feats": [f[:count] for f in raw["feats"]]}
    theirs = batch["batch_idx"] < count
    return detection(mine, {name: batch[name][theirs] for name in ("batch_idx", "cls", "bboxes")})


def _pixels(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last).float().div_(255)  # bytes are moved, not floats


def all_features(model: nn.Module, device: str) -> dict[str, Tensor]:
    """Every output channel of each block of the trunk: what a student of the same widths has kept."""
    return {name: torch.arange(model.get_submodule(last).out_channels, device=device)
            for name, last in yolo.block_outputs(model).items()}  # fmt: skip


def _frozen(model: nn.Module, device: str) -> nn.Module:
    """As a teacher: BatchNorm folded, weights in bfloat16 once for all steps, boxes not decoded."""
    frozen = yolo.folded(model).requires_grad_(False).eval().to(torch.bfloat16)
    frozen.model[-1].train()  # the head has no BatchNorm any more
    return frozen.to(device, memory_format=torch.channels_last)


def _check_teacher(teacher: nn.Module, student: nn.Module, named: Artifact) -> None:
    ours, theirs = ((tuple(dict(m.names).values()), m.model[-1].reg_max, m.model[-1].nl) for m in (student, teacher))
    if ours != theirs:
        raise ModelError(f"the teacher {named.root} does not fit", got=f"{len(theirs[0])} classes, {theirs[1:]}",
                         expected=f"the {len(ours[0])} classes of the student, {ours[1:]}",
                         mend="name a detector of the same family, trained on the same classes")  # fmt: skip


def _shared_trunk(model: nn.Module, teacher: nn.Module, source: Artifact, config: RecoverConfig, other: bool
                  ) -> tuple[int, nn.Module]:  # fmt: skip
    """How many leading layers a pruned student shares with what it was pruned from, and the teacher that has them.

    That teacher has the student's own, with their Hardswish where there is any: cheaper than to compute both. None
    with another teacher, whose layers go with other ones behind them.
    """
    trained = source.stage == "recover" and source.config.get("trunk") == "trained"
    if config.trunk == "trained" or other or source.name == "original" or trained:
        return 0, teacher
    length = untouched(model, teacher)
    if length:
        say(f"{length} of {len(model.model)} layers need no training: they stay as they are, computed once for both")
    simpler = [name for name in activations.of(model) if int(name.split(".")[1]) < length]
    shared = activations.like(teacher, simpler)  # what reads them in the teacher takes their slope back
    own = copy.deepcopy(model)
    yolo.freeze_statistics_(own, False)
    for index in range(length):
        shared.model[index] = own.model[index]
    return length, shared


def _stock_(model: nn.Module, trunk: SharedTrunk | None) -> nn.Module:
    """A student made of stock blocks, all of them its own, again."""
    if trunk is not None:
        trunk.release_(model)
    yolo.freeze_statistics_(model, False)
    return model


def _is_other(source: Artifact, teacher: Artifact, network: nn.Module, config: RecoverConfig) -> bool:
    """Whether the teacher, of this network, is another one than that of which the student was made.

    What does not tell what it was made of is known by the widths of its blocks before pruning.
    """
    itself = source.stage == source.name == "original"
    base = source.files["pytorch"].sha256 if itself else source.details.get("pruned_from")
    if base is not None:
        return bool(base != teacher.files["pytorch"].sha256)
    blocks, widths = yolo.block_outputs(network), source.details.get("widths", {})
    return config.teacher is not None or any(
        network.get_submodule(blocks[name]).out_channels != widths[f"{name}.conv"][0]
        for name in source.details.get("kept_features", ()))  # fmt: skip


def _kept_features(source: Artifact, teacher: nn.Module, config: RecoverConfig, other: bool) -> dict[str, Tensor]:
    """The teacher's channels that each block of the student has kept; all of them for an unpruned student.

    None where the teacher is another network than the one that they were kept of.
    """
    if not config.features or other:
        return {}
    recorded = source.details.get("kept_features")
    if recorded is None and source.name != "original":
        raise ModelError("the artefact does not tell which channels it has kept", got=source.root,
                         expected="an artefact of `hawkeye prune`",
                         mend="name the folder that `hawkeye prune` made, not its checkpoint")  # fmt: skip
    if recorded is None:
        return all_features(teacher, config.device)
    return {name: torch.tensor(index, device=config.device) for name, index in recorded.items()}
