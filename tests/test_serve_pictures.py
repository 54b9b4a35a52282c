"""JPEGs are decoded no larger than the network needs, and nobody can tell but by the clock."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi")
from PIL import Image  # noqa: E402

import serve_world as world  # noqa: E402
from hawkeye.detections import Detections  # noqa: E402
from hawkeye.errors import DataError  # noqa: E402
from hawkeye.geometry import iou_matrix  # noqa: E402
from hawkeye.runtime.detector import Detector  # noqa: E402
from hawkeye.serve.pictures import Picture, decode_for, decode_picture  # noqa: E402

LIMIT = 10_000_000


def smooth(width: int, height: int) -> np.ndarray:
    """A picture without fine detail, each place of it different."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = (255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 40) * np.cos(y / 50))
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = ".jpg") -> bytes:
    return bytes(cv2.imencode(kind, image)[1])


def turned(image: np.ndarray, orientation: int, folder: Path) -> bytes:
    """A JPEG whose EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image[:, :, ::-1]).save(folder / "turned.jpg", quality=95, exif=exif)
    return (folder / "turned.jpg").read_bytes()


@pytest.mark.parametrize(
    ("size", "imgsz", "reduced", "why"),
    [
        ((1280, 720), 640, 2, "exactly half"),
        ((1279, 720), 640, 1, "half of it would be one pixel short"),
        ((1281, 721), 640, 2, "odd sides"),
        ((1920, 1080), 640, 2, "a third is not on offer"),
        ((2592, 1944), 640, 4, "a quarter"),
        ((100, 1400), 160, 8, "upright, an eighth"),
        ((640, 480), 640, 1, "nothing to save"),
        ((1280, 720), 0, 1, "all of it is wanted"),
        ((1281, 1282), 640, 1, "sides that would become equal: it could not be told whether EXIF has turned it"),
        ((1280, 1280), 640, 2, "square anyway"),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(size: tuple[int, int], imgsz: int, reduced: int, why: str) -> None:
    width, height = size
    image = smooth(width, height)
    picture = decode_for(encoded(image), LIMIT, imgsz)
    assert (picture.width, picture.height, picture.reduced) == (width, height, reduced), why
    rows, columns = picture.image.shape[:2]
    assert (rows, columns) == (-(-height // reduced), -(-width // reduced))
    assert max(rows, columns) >= min(imgsz, *([max(size)] if imgsz else [0]))
    high, wide = height // reduced, width // reduced  # without the last pixel where it is half outside
    whole = decode_picture(encoded(image), LIMIT)[: high * reduced, : wide * reduced]
    mean = cv2.resize(whole, (wide, high), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(picture.image[:high, :wide] - mean).mean() < 1, "each pixel is the mean of those that it stands for"


@pytest.mark.parametrize("kind", [".png", ".webp", ".bmp"])
def test_other_kinds_are_decoded_whole(kind: str) -> None:
    picture = decode_for(encoded(smooth(1300, 700), kind), LIMIT, 640)
    assert (picture.reduced, picture.image.shape) == (1, (700, 1300, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_reduced_picture_as_it_turns_the_whole(orientation: int, tmp_path: Path) -> None:
    content = turned(smooth(1281, 701), orientation, tmp_path)
    whole, picture = decode_for(content, LIMIT, 0), decode_for(content, LIMIT, 640)
    assert (whole.reduced, picture.reduced) == (1, 2)
    assert (picture.width, picture.height) == (whole.width, whole.height) == whole.image.shape[1::-1]
    small = cv2.resize(whole.image, picture.image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(picture.image.astype(int) - small).mean() < 3


def test_boxes_come_out_in_the_pixels_of_the_file_and_inside_it() -> None:
    found = Detections(np.array([[1, 2, 641, 361]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32))
    picture = Picture(np.zeros((361, 641, 3), np.uint8), 1281, 721, 2)
    assert picture.restored(found).xyxy.tolist() == [[2, 4, 1281, 721]]
    whole = Picture(np.zeros((721, 1281, 3), np.uint8), 1281, 721)
    assert whole.restored(found) is found


def test_limits_come_before_decoding_and_damage_is_found_at_each_size() -> None:
    content = encoded(smooth(1280, 720))
    for imgsz in (0, 640):
        with pytest.raises(DataError, match="too large"):
            decode_for(content, 1280 * 720 - 1, imgsz)
        for damaged in (content[:300], b"\xff\xd8\xff\xe0" + bytes(100)):
            with pytest.raises(DataError):
                decode_for(damaged, LIMIT, imgsz)
        with pytest.raises(DataError, match="cut off"):
            decode_for(content[: len(content) // 2], LIMIT, imgsz)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_service_answers_for_a_reduced_picture_as_for_the_whole(orientation: int, tmp_path: Path) -> None:
    image = world.scene(size=(512, 1024))  # something red in a quarter; the tiny detector looks at 64 pixels
    content = turned(image, orientation, tmp_path)
    whole = decode_picture(content, LIMIT)
    assert decode_for(content, LIMIT, 64).reduced == 8
    with world.client_of(world.config_of(tmp_path)) as client:
        answer = client.post("/v1/detect", content=content).json()
    detector = Detector(tmp_path / "models" / "tiny", threads=1, conf=0.5)
    expected = detector(whole)
    assert (answer["height"], answer["width"]) == whole.shape[:2]
    boxes = np.array([box["xyxy"] for box in answer["detections"]], np.float32)
    assert len(boxes) == len(expected) > 0
    assert iou_matrix(expected.xyxy, boxes).max(axis=1).min() > 0.99
    assert {box["name"] for box in answer["detections"]} == {"red"}
