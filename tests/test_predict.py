"""Pictures in, annotated pictures and JSON lines out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_ir
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.outputs import draw
from hawkeye.predict import predict
from hawkeye.runtime.source import find_sources


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for place in ("a.png", "sub/a.png", "sub/b.jpg"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((64, 64, 3), np.uint8)
        image[:32, :32, 2] = 255
        cv2.imwrite(str(folder / place), image)
    return folder


def test_folder(tmp_path, pictures):
    done = predict(tiny_ir.stock_folder(tmp_path / "m"), pictures, out=tmp_path / "out", conf=0.9, threads=1)
    rows = [json.loads(line) for line in done.results.read_text().splitlines()]
    assert [Path(row["image"]).relative_to(pictures).as_posix() for row in rows] == ["a.png", "sub/a.png", "sub/b.jpg"]
    assert {d["name"] for row in rows for d in row["detections"]} == {"red"}
    assert done.detections == sum(len(row["detections"]) for row in rows)
    assert [path.relative_to(tmp_path / "out/pictures").as_posix() for path in done.pictures] == [
        "a.png.jpg", "sub/a.png.jpg", "sub/b.jpg.jpg",
    ]  # fmt: skip
    assert all(cv2.imread(str(path)).shape == (64, 64, 3) for path in done.pictures)


def test_file_pattern_and_nothing(tmp_path, pictures):
    (one,) = find_sources([pictures / "a.png"])
    assert (one.pictures, one.base) == ((pictures / "a.png",), pictures)
    (some,) = find_sources([str(pictures / "**/*.png")])
    assert (len(some.pictures), some.base) == (2, pictures)
    with pytest.raises(DataError, match="no pictures"):
        find_sources([tmp_path / "none/*.jpg"])


def test_unreadable_pictures(tmp_path, pictures):
    (pictures / "bad.png").write_bytes(b"broken")
    with pytest.raises(DataError):
        predict(tiny_ir.stock_folder(tmp_path / "m"), pictures, out=tmp_path / "out", threads=1)
    assert not (tmp_path / "out/predictions.jsonl").exists()


def test_draw_marks_the_box_and_leaves_the_picture():
    image = np.zeros((100, 100, 3), np.uint8)
    box = np.array([[20, 40, 80, 90]], np.float32)
    drawn = draw(image, Detections(box, np.array([0.5], np.float32), np.array([0], np.int32)), ["x"])
    assert not image.any()
    assert drawn[89:92, 50].any()
    assert drawn[60:62, 19:22].any()
    assert not drawn[60:80, 40:60].any()
