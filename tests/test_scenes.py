"""The drawn data set: repeatable, exact, varied, and safe to break off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hawkeye import data, scenes
from hawkeye.errors import ConfigError, RunDirError, StorageError
from hawkeye.scenes import NAMES, draw_dataset, draw_scene


def _hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_can_be_read_back_as_a_data_set(drawn: Path) -> None:
    dataset = data.load_dataset(drawn)
    assert dataset.names == NAMES and len(NAMES) >= 6
    assert {name: len(paths) for name, paths in dataset.splits.items()} == {"train": 8, "val": 4}
    assert data.check_labels(dataset) > 10
    for path in dataset.split("train"):
        assert data.read_image(path).shape == (128, 128, 3)


def test_labels_on_disk_are_the_drawn_boxes(drawn: Path) -> None:
    rng = np.random.default_rng([7, False, 3, 128])
    boxes = draw_scene(rng, 128)[1]
    rows = data.read_labels(drawn.parent / "images/train/00003.jpg", len(NAMES))
    centre, size = rows[:, 1:3] * 128, rows[:, 3:5] * 128
    assert len(boxes) > 0
    np.testing.assert_array_equal(rows[:, 0], boxes[:, 0])
    np.testing.assert_allclose(np.concatenate([centre - size / 2, centre + size / 2], 1), boxes[:, 1:], atol=1e-3)


def test_same_seed_same_bytes_and_pictures_do_not_depend_on_their_number(tmp_path: Path) -> None:
    few = draw_dataset(tmp_path / "few", train=2, val=1, imgsz=96, seed=3).parent
    again = draw_dataset(tmp_path / "again", train=2, val=1, imgsz=96, seed=3).parent
    more = draw_dataset(tmp_path / "more", train=3, val=1, imgsz=96, seed=3).parent
    other = draw_dataset(tmp_path / "other", train=2, val=1, imgsz=96, seed=4).parent
    assert _hashes(few) == _hashes(again)
    first = "images/train/00001.jpg"
    assert _hashes(few)[first] == _hashes(more)[first] != _hashes(other)[first]
    pictures = [digest for name, digest in _hashes(more).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 4, "training and validation pictures all differ"


@pytest.mark.parametrize("kind", range(len(NAMES)), ids=NAMES)
def test_box_is_exact(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object alone on a ground darker than any colour (in floating point): what is brighter is the object."""
    ground = -1e6
    monkeypatch.setattr(scenes, "_KINDS", (scenes._KINDS[kind],))
    monkeypatch.setattr(scenes, "_camera", lambda rng, picture: picture)
    monkeypatch.setattr(scenes, "draw_background", lambda rng, side: np.full((side, side, 3), ground, np.float32))
    checked = 0
    for seed in range(200):
        if int(np.random.default_rng(seed).integers(1, 9)) != 1:
            continue  # the first thing that is drawn is the number of objects; here it must be one
        picture, labels = draw_scene(np.random.default_rng(seed), 160)
        if len(labels) == 0:
            continue  # mostly outside the picture
        ys, xs = np.nonzero((picture > 0.4 * ground).all(2))  # more than half covered, with or without a shadow
        # The mask of half-covered pixels and this one may differ by the one pixel of the soft edge.
        np.testing.assert_allclose(labels[0, 1:], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
        checked += 1
    assert checked >= 10


def test_hidden_objects_carry_no_label_and_partly_hidden_ones_the_whole_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay of the drawing: a solid square is stamped for every object, so that visibility can be counted here."""
    drawn: list[np.ndarray] = []

    def square(rng: np.random.Generator, kind: int, size: float, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = int(size) + 2
        value = 10.0 * (len(drawn) + 1)
        drawn.append(np.array([value, side]))
        return np.full((side, side, 3), value, np.float32), np.ones((side, side), np.float32)

    monkeypatch.setattr(scenes, "draw_object", square)
    monkeypatch.setattr(scenes, "draw_background", lambda rng, side: np.zeros((side, side, 3), np.float32))
    monkeypatch.setattr(scenes, "_camera", lambda rng, picture: picture)
    dropped = kept_partly = 0
    for seed in range(60):
        drawn.clear()

        class NoShadow:
            def __init__(self, rng: np.random.Generator) -> None:
                self._rng = rng

            def __getattr__(self, name: str) -> object:
                return getattr(self._rng, name)

            def random(self) -> float:
                return 1.0

        picture, labels = draw_scene(NoShadow(np.random.default_rng(seed)), 160)  # type: ignore[arg-type]
        expected = 0
        for value, side in drawn:
            share = (picture[..., 0] == value).sum() / side**2
            expected += share >= 0.3
            dropped += share < 0.3
            kept_partly += 0.3 <= share < 0.9
        assert len(labels) == expected
        assert (labels[:, 1:] >= 0).all() and (labels[:, 1:] <= 160).all()
    assert dropped > 0 and kept_partly > 0, "both cases must occur, or nothing was tested"


def test_variety() -> None:
    labels = np.concatenate([draw_scene(np.random.default_rng(seed), 320)[1] for seed in range(60)])
    longest = np.maximum(labels[:, 3] - labels[:, 1], labels[:, 4] - labels[:, 2])
    assert set(labels[:, 0].astype(int)) == set(range(len(NAMES)))
    assert longest.min() < 16 and longest.max() > 120, "from tiny to large"
    assert np.bincount(labels[:, 0].astype(int)).min() > 0.4 * len(labels) / len(NAMES), "no class is rare"


def test_broken_off_drawing_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw_dataset(tmp_path / "whole", train=4, val=2, imgsz=96).parent
    real, calls = scenes.write_bytes, []

    def failing(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == 6:
            raise StorageError("the disk is full")
        real(path, content)

    out = tmp_path / "broken"
    monkeypatch.setattr(scenes, "write_bytes", failing)
    with pytest.raises(StorageError):
        draw_dataset(out, train=4, val=2, imgsz=96)
    assert not (out / "data.yaml").exists(), "absent means unfinished"
    before = {p: p.stat().st_mtime_ns for p in (out / "images").rglob("*.jpg")}
    assert len(before) == 2
    monkeypatch.setattr(scenes, "write_bytes", real)
    draw_dataset(out, train=4, val=2, imgsz=96)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "what was there is not drawn again"
    assert _hashes(out) == _hashes(whole)


def test_a_lost_picture_is_drawn_again(tmp_path: Path) -> None:
    out = draw_dataset(tmp_path / "scenes", train=2, val=1, imgsz=96).parent
    before = _hashes(out)
    (out / "images/val/00000.jpg").unlink()
    draw_dataset(out, train=2, val=1, imgsz=96)
    assert _hashes(out) == before


def test_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(RunDirError, match="in use"):
        draw_dataset(mine, train=1, val=1, imgsz=96)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]
    out = draw_dataset(tmp_path / "scenes", train=1, val=1, imgsz=96).parent
    with pytest.raises(RunDirError, match="another drawn data set"):
        draw_dataset(out, train=1, val=1, imgsz=96, seed=1)


@pytest.mark.parametrize(("train", "val", "imgsz"), [(0, 1, 96), (1, 0, 96), (1, 1, 32)])
def test_refuses_senseless_requests(tmp_path: Path, train: int, val: int, imgsz: int) -> None:
    with pytest.raises(ConfigError, match="cannot be drawn"):
        draw_dataset(tmp_path / "scenes", train=train, val=val, imgsz=imgsz)
    assert not (tmp_path / "scenes").exists()
