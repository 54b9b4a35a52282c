"""Letterbox and box overlap."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hawkeye.geometry import PAD_VALUE, Letterbox, iou_matrix


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


def test_canvas_is_fully_written():
    image = np.full((30, 60, 3), 200, np.uint8)
    canvas = np.zeros((64, 64, 3), np.uint8)
    box = Letterbox.fit((30, 60), 64)
    box.apply_(image, canvas)
    inside = np.zeros((64, 64), bool)
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
