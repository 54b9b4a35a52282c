"""Training pictures through Ultralytics' own pipeline: its mosaics and its augmentation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hawkeye.compress import yolo
from hawkeye.compress.yolo import Mosaic, YOLODataset
from hawkeye.data import read_labels
from hawkeye.errors import DataError

_BUFFER_BYTES = 512 * 2**20  # of decoded pictures that each loading process keeps


class _TrainingSet(YOLODataset):
    """Ultralytics' data set over an explicit list of pictures: writes nothing beside them, needs no labels."""

    def __init__(self, images: Sequence[Path], names: Sequence[str], *, labelled: bool, **kwargs: Any) -> None:
        self._images, self._names, self._labelled = list(images), names, labelled
        super().__init__(img_path="", data={"names": dict(enumerate(names))}, task="detect", **kwargs)
        if self.augment:  # stock keeps 128; decoding the others again is a third of what reading pictures takes
            self.max_buffer_length = min(self.ni, _BUFFER_BYTES // (3 * self.imgsz**2))
        # Stock loading reads, refreshes and deletes .npy files beside the pictures, which are not ours.
        nowhere = Path(os.environ["YOLO_CONFIG_DIR"]) / "never-written"
        self.npy_files = [nowhere / f"{i}.npy" for i in range(self.ni)]

    def build_transforms(self, hyp: Any = None) -> Any:
        transforms = super().build_transforms(hyp)
        for mosaic in _mosaics(transforms):
            # Stock mosaics take their partners from the pictures read last. A sample would then depend on what was
            # read before it, and a run that goes on after a kill would see others than an uninterrupted one.
            mosaic.buffer_enabled = False
        return transforms

    def get_img_files(self, img_path: Any) -> list[str]:
        return [str(path) for path in self._images]

    def get_labels(self) -> list[dict[str, Any]]:
        labels = []
        for path in self._images:
            rows = read_labels(path, len(self._names)) if self._labelled else np.zeros((0, 5), np.float32)
            labels.append({"im_file": str(path), "cls": rows[:, :1], "bboxes": rows[:, 1:], "segments": [],
                           "keypoints": None, "normalized": True, "bbox_format": "xywh"})  # fmt: skip
        return labels

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        self.labels[index].setdefault("shape", (0, 0))  # only rectangular training reads it
        sample: dict[str, Any] = super().get_image_and_label(index)
        return sample


def _mosaics(transform: Any) -> Iterator[Mosaic]:
    if isinstance(transform, Mosaic):
        yield transform
    for part in getattr(transform, "transforms", ()):
        yield from _mosaics(part)


def training_set(images: Sequence[Path], names: Sequence[str], imgsz: int, *, mosaic: float, augment: bool,
                 labelled: bool) -> YOLODataset:  # fmt: skip
    """Training pictures through Ultralytics' own pipeline.

    Args:
        images: pictures, in this order.
        names: class names by index; labels are checked against their number.
        imgsz: side of a sample in pixels.
        mosaic: probability of a mosaic of four pictures.
        augment: mosaic, shift, scale, hue/saturation/value and flip; otherwise just the letterbox.
        labelled: read the labels beside the pictures; otherwise every sample has none.

    Returns:
        A torch data set of dicts: img (3, imgsz, imgsz) uint8 RGB; cls (N, 1); bboxes (N, 4) float32 centre and size
        as fractions; batch_idx (N,). To be batched with `collate`. A sample depends on its index and the states
        of `random` and `numpy.random` only, not on what was read before.

    Raises:
        DataError: no pictures, or a label that cannot be used.
    """
    if not images:
        raise DataError("no pictures to train on", got=0, expected="at least one")
    settings = yolo.settings(mosaic=mosaic, imgsz=imgsz)
    return _TrainingSet(images, names, labelled=labelled, imgsz=imgsz, augment=augment, hyp=settings)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch of a training set: img (B, 3, H, W) uint8 RGB, cls (N, 1), bboxes (N, 4), batch_idx (N,)."""
    batch: dict[str, Any] = YOLODataset.collate_fn(samples)
    return batch
