"""Which pictures a stage works on, and the key of its work: the same key means that finished work is used again.

Without torch, so that `hawkeye plan` can tell beforehand what each stage will tell when it starts. Everything that
decides a stage's result is in its key; where the pictures lie is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hawkeye import __version__
from hawkeye.artifact import digest, file_sha256
from hawkeye.config import EvaluateConfig, ExportConfig, PruneConfig, QuantizeConfig, RecoverConfig, StageConfig
from hawkeye.data import Dataset, content_digest, sample, split_holdout, training_images
from hawkeye.errors import DataError

PARITY_PICTURES = 4
FEWEST, ENOUGH = 10, 300  # calibration pictures: below the first it is an error, below the second a warning


def original(checkpoint: Path, imgsz: int) -> str:
    """Key of taking in a checkpoint."""
    return digest("original", file_sha256(checkpoint), imgsz, __version__)


def prune(base_sha256: str, config: PruneConfig) -> tuple[list[Path], str]:
    """Pictures that saliency is measured on, and the key of pruning.

    Raises:
        DataError: no usable pictures, or `taylor` without labels.
    """
    labelled, unlabelled = training_images(config.data, config.images)
    if config.method == "taylor" and not labelled:
        raise DataError("taylor needs labels", got="--images only", expected="--data", mend="use --method obs")
    pictures = sample(labelled + unlabelled if config.method == "obs" else labelled or unlabelled,
                      config.samples, config.seed)  # fmt: skip
    without = ("device", "floor", *(() if config.latency is not None else ("latency", "latency_of", "threads")))
    return pictures, digest("prune", base_sha256, settings(config, *without), content_digest(pictures), __version__)


def recover(source_sha256: str, teacher_sha256: str, config: RecoverConfig) -> tuple[list[Path], list[Path], str]:
    """Labelled and unlabelled training pictures, and the key of recovery.

    Raises:
        DataError: no usable pictures.
    """
    labelled, unlabelled = training_images(config.data, config.images)
    content = content_digest(labelled + unlabelled)
    key = digest("recover", source_sha256, teacher_sha256, settings(config, "device", "save_every", "teacher"), content,
                 __version__)  # fmt: skip
    return labelled, unlabelled, key


def export(checkpoint_sha256: str, name: str, imgsz: int, config: ExportConfig) -> tuple[list[Path], str]:
    """Training pictures that the exported graphs are compared on, none where no data was named; and the key."""
    pictures: list[Path] = []
    if config.data is not None or config.images is not None:
        labelled, unlabelled = training_images(config.data, config.images)
        pictures = sample([*labelled, *unlabelled], PARITY_PICTURES, config.seed)
    return pictures, digest("export", name, imgsz, checkpoint_sha256, settings(config), content_digest(pictures),
                            __version__)  # fmt: skip


def quantize(source_sha256: str, config: QuantizeConfig) -> tuple[list[Path], tuple[list[Path], list[Path]], str]:
    """Training pictures to calibrate on, labelled and unlabelled ones alike; those set aside; and the key.

    The labelled and the unlabelled pictures that are set aside are the ones that recovery sets aside, so a recovered
    network has not learned from them either. Calibration alone chooses nothing, and sets none aside.

    Raises:
        DataError: fewer than 10, or no place named.
    """
    labelled, unlabelled = training_images(config.data, config.images)
    held: tuple[list[Path], list[Path]] = ([], [])
    without = ["device", "save_every"]
    if config.mode == "ptq":
        without += [
            "max_drop",
            "max_slowdown",
            "holdout",
            "budget",
            "steps",
            "batch",
            "lr",
            "ranges",
            "labels",
            "checks",
        ]
    else:
        labelled, held_l = split_holdout(labelled, config.holdout, config.seed) if labelled else ([], [])
        unlabelled, held_u = split_holdout(unlabelled, config.holdout, config.seed) if unlabelled else ([], [])
        held = (held_l, held_u)
    pictures = sample([*labelled, *unlabelled], config.samples, config.seed)
    if len(pictures) < FEWEST:
        aside = sum(map(len, held))
        got = f"{len(pictures) + aside}, of which {aside} set aside to judge the result on" if aside else len(pictures)
        raise DataError("too few pictures to calibrate on", got=got,
                        expected=f"at least {FEWEST} to calibrate on, better {ENOUGH}",
                        mend="give --images a folder of typical pictures; they need no labels")  # fmt: skip
    content = content_digest(pictures if config.mode == "ptq" else [*labelled, *unlabelled, *held[0], *held[1]])
    return pictures, held, digest("quantize", source_sha256, settings(config, *without), content, __version__)


def pictures_digest(pictures: Sequence[Path]) -> str:
    """Hash of what pictures show: their names, labels and order are nothing to calibration."""
    return digest(*sorted(file_sha256(path) for path in pictures))


def evaluation(dataset: Dataset, config: EvaluateConfig) -> Sequence[Path]:
    """Pictures that accuracy is measured on.

    Raises:
        DataError: the data set has no such split.
    """
    pictures = dataset.split(config.split)
    return pictures if config.samples is None else sample(pictures, config.samples, config.seed)


def settings(config: StageConfig, *without: str) -> dict[str, Any]:
    """A stage's settings that decide its result."""
    return config.model_dump(mode="json", exclude={"data", "images", *without})
