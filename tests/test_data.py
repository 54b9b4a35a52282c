"""Data sets and pictures: good ones, and every way in which they are bad."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from hawkeye import data
from hawkeye.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            image = tmp_path / "images" / split / f"{number}.png"
            label = tmp_path / "labels" / split / f"{number}.txt"
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), np.full((20, 40, 3), 10 * number, np.uint8))
            label.write_text("1 0.5 0.5 0.2 0.4\n")
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: object) -> Path:
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"], **changes}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def test_good(folder):
    dataset = data.load_dataset(folder / "data.yaml")
    assert dataset.names == ("cat", "dog")
    assert [len(dataset.split(name)) for name in ("train", "val")] == [4, 2]
    assert data.check_labels(dataset) == 6
    labels = data.read_labels(dataset.split("val")[0], 2)
    np.testing.assert_allclose(labels, [[1, 0.5, 0.5, 0.2, 0.4]])
    assert data.read_image(dataset.split("val")[0]).shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, "keys train, val and names"),
        ({"train": "images/none"}, "does not exist"),
        ({"nc": 3}, "contradicts itself"),
        ({"names": []}, "cannot be used"),
        ({"names": {0: "cat", 2: "dog"}}, "gaps"),
    ],
)
def test_bad_yaml(folder, changes, message):
    with pytest.raises(DataError, match=message):
        data.load_dataset(write(folder, **changes))


def test_no_yaml_and_not_yaml(folder):
    with pytest.raises(DataError, match="cannot read"):
        data.load_dataset(folder / "none.yaml")
    (folder / "data.yaml").write_text("a: [1")
    with pytest.raises(DataError, match="not YAML"):
        data.load_dataset(folder / "data.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class out of range"),
        ("-1 0.5 0.5 0.1 0.1", "class out of range"),
        ("0 50 50 10 10", "outside the picture"),
        ("0 0.5 0.5 0.1", "not a label"),
        ("0 nan 0.5 0.1 0.1", "not a label"),
        ("cat 0.5 0.5 0.1 0.1", "not a label"),
    ],
)
def test_bad_label(folder, line, message):
    (folder / "labels/val/0.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        data.check_labels(data.load_dataset(folder / "data.yaml"))


def test_polygon_becomes_its_box(folder):
    (folder / "labels/val/0.txt").write_text("0 0.1 0.2 0.5 0.2 0.3 0.8\n")
    labels = data.read_labels(folder / "images/val/0.png", 2)
    np.testing.assert_allclose(labels, [[0, 0.3, 0.5, 0.4, 0.6]], atol=1e-6)


def test_unreadable_pictures(folder):
    paths = [folder / "images/train/0.png"] * 10
    bad = folder / "bad.jpg"
    bad.write_bytes(b"no picture")
    good, skipped = data.readable([*paths, bad])
    assert (len(good), skipped) == (10, [bad])
    with pytest.raises(DataError, match="too many"):
        data.readable([*paths[:3], bad])
    with pytest.raises(DataError, match="cannot read"):
        data.read_image(bad)


def test_validation_pictures_never_become_training_pictures(folder):
    labelled, unlabelled = data.training_images(folder / "data.yaml", folder / "images")
    assert not {path.resolve() for path in labelled + unlabelled} & set((folder / "images/val").resolve().iterdir())
    assert len(labelled) == 4


def test_same_content_same_digest(folder, tmp_path_factory):
    paths = data.list_images(folder / "images/val")
    before = data.content_digest(paths)
    assert before == data.content_digest(paths)
    (folder / "labels/val/0.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    assert data.content_digest(paths) != before
