"""Letterbox and box overlap."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hawkeye.geometry import PAD_VALUE, Letterbox, iou_matrix, rectangle


@pytest.mark.parametrize(
    ("hw", "size", "canvas"),
    [
        ((1080, 1920), 640, (384, 640)),  # 360 rows, in whole steps of the stride
        ((720, 1280), 640, (384, 640)),
        ((1920, 1080), 640, (640, 384)),
        ((480, 640), 640, (480, 640)),
        ((3024, 4032), 640, (480, 640)),
        ((1501, 2000), 640, (480, 640)),  # 480.3 rows are 480
        ((376, 500), 640, (640, 640)),  # 481 rows are not
        ((427, 640), 640, (480, 640)),
        ((640, 427), 640, (640, 480)),
        ((500, 500), 640, (640, 640)),
        ((1, 9000), 640, (384, 640)),  # a sliver
        ((1080, 1920), 320, (192, 320)),
        ((480, 640), 320, (256, 320)),
        ((1080, 1920), 64, (64, 64)),  # too small for other shapes
    ],
)
def test_rectangle(hw, size, canvas):
    assert rectangle(hw, size, 32) == canvas


@pytest.mark.parametrize("size", [64, 320, 416, 512, 608, 640, 1280])
@pytest.mark.parametrize("stride", [32, 64])
def test_every_picture_fits_its_rectangle_and_five_are_enough(size, stride):
    size = size // stride * stride
    shapes = set()
    for height in range(1, 200):
        for width in (1, 7, 64, 100, 150, 199):
            canvas = rectangle((height, width), size, stride)
            box, square = Letterbox.fit((height, width), canvas), Letterbox.fit((height, width), size)
            assert (box.scale, box.inner_hw) == (square.scale, square.inner_hw)
            assert min(box.top, box.left) >= 0
            assert box.top + box.inner_hw[0] <= canvas[0] and box.left + box.inner_hw[1] <= canvas[1]
            shapes.add(canvas)
    assert len(shapes) <= 5
    assert all(max(shape) == size and side % stride == 0 for shape in shapes for side in shape)


@pytest.mark.parametrize(
    ("hw", "size", "inner", "top", "left"),
    [
        ((1080, 1920), 640, (360, 640), 140, 0),
        ((1920, 1080), 640, (640, 360), 0, 140),
        ((640, 640), 640, (640, 640), 0, 0),
        ((427, 640), 640, (427, 640), 106, 0),  # odd padding: the smaller half above
        ((1, 1000), 64, (1, 64), 31, 0),  # a sliver keeps one row
    ],
)
def test_placement(hw, size, inner, top, left):
    box = Letterbox.fit(hw, size)
    assert (box.inner_hw, box.top, box.left) == (inner, top, left)


@pytest.mark.parametrize("hw", [(64, 64), (40, 64)])
def test_canvas_is_fully_written(hw):
    image = np.full((30, 60, 3), 200, np.uint8)
    canvas = np.zeros((*hw, 3), np.uint8)
    box = Letterbox.fit((30, 60), hw)
    box.apply_(image, canvas)
    inside = np.zeros(hw, bool)
    inside[box.top : box.top + box.inner_hw[0]] = True
    assert (canvas[inside] == 200).all()
    assert (canvas[~inside] == PAD_VALUE).all()


@pytest.mark.parametrize("hw", [(192, 192), (192, 108), (320, 320), (128, 128), (100, 192), (193, 192)])
def test_shortcut_gives_the_bytes_of_linear_resizing(hw):
    """Whole odd factors take single pixels; every other factor must not."""
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    canvas = np.zeros((64, 64, 3), np.uint8)
    box = Letterbox.fit(hw, 64)
    box.apply_(image, canvas)
    (height, width), top, left = box.inner_hw, box.top, box.left
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(canvas[top : top + height, left : left + width], expected)


def test_boxes_return_to_the_picture():
    box = Letterbox.fit((300, 500), 640)
    source = np.array([[10, 20, 200, 250], [0, 0, 500, 300]], np.float32)
    canvas = source * np.float32(box.scale) + np.array([box.left, box.top] * 2, np.float32)
    np.testing.assert_allclose(box.to_source(canvas), source, atol=1e-3)
    outside = box.to_source(np.array([[-50, -50, 900, 900]], np.float32))
    np.testing.assert_array_equal(outside, [[0, 0, 500, 300]])


def test_overlap_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    b = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(iou_matrix(a, b), [[1 / 3, 1, 0], [0, 0, 0]], atol=1e-6)
    assert iou_matrix(a, b[:0]).shape == (2, 0)
