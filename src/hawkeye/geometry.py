"""Shapes of the network's input, letterbox and its inverse, box overlap. Pure NumPy and OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE = 114  # grey that YOLO is trained with
Size = tuple[int, int]  # height and width in pixels
SHARES = ((9, 16), (3, 4), (1, 1))  # of the longer side: video, cameras, everything else


def rectangle(source_hw: Size, imgsz: int, stride: int) -> Size:
    """The canvas for a picture: its longer side is `imgsz`, its shorter one the least of three that holds the picture.

    By the picture's size alone, so the same picture always gets the same one; and five in all, so a folder of all sorts
    of pictures needs no more networks than that. The picture is scaled as it is in the square.

    Args:
        source_hw: height and width of the picture in pixels.
        imgsz: a multiple of `stride`.
        stride: the coarsest of the network; both sides are multiples of it.
    """
    height, width = source_hw
    needed = round(min(source_hw) * (imgsz / max(source_hw)))
    sides = (-(-imgsz * part // (whole * stride)) * stride for part, whole in SHARES)
    side = next((side for side in sides if needed <= side), imgsz)
    return (side, imgsz) if height < width else (imgsz, side)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a picture lies in a canvas: scaled to fit, centred, the rest padded.

    The rounding is that of Ultralytics' `LetterBox` and `scale_boxes` (8.4), so that boxes agree to the pixel.

    Attributes:
        source_hw: height and width of the picture in pixels.
        canvas_hw: height and width of the canvas in pixels.
        scale: canvas pixels per picture pixel.
        top, left: padding in canvas pixels.
        inner_hw: height and width of the scaled picture in canvas pixels.
    """

    source_hw: Size
    canvas_hw: Size
    scale: float
    top: int
    left: int
    inner_hw: Size

    @classmethod
    def fit(cls, source_hw: Size, canvas: int | Size) -> Letterbox:
        """Place a picture of `source_hw` in a canvas: the side of a square, or the picture's `rectangle`."""
        (height, width), (rows, columns) = source_hw, (canvas, canvas) if isinstance(canvas, int) else canvas
        scale = max(rows, columns) / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = round((rows - inner[0]) / 2 - 0.1), round((columns - inner[1]) / 2 - 0.1)
        return cls((height, width), (rows, columns), scale, top, left, inner)

    def apply_(self, image: NDArray[np.uint8], canvas: NDArray[np.uint8]) -> None:
        """Scale `image` (H, W, 3) into `canvas` (rows, columns, 3), padding included, without allocating a frame."""
        (h, w), top, left = self.inner_hw, self.top, self.left
        canvas[:top] = PAD_VALUE
        canvas[top + h :] = PAD_VALUE
        canvas[top : top + h, :left] = PAD_VALUE
        canvas[top : top + h, left + w :] = PAD_VALUE
        inner = canvas[top : top + h, left : left + w]
        if image.shape[:2] == (h, w):
            inner[:] = image
        else:
            # Shrunk by an odd whole number, each linear sample falls on the middle of one pixel: taking that pixel
            # gives the same bytes and reads fewer rows (1080p to 640: half the time where caches are cold).
            factor = image.shape[0] // h
            exact = factor % 2 == 1 and image.shape[:2] == (h * factor, w * factor)
            how = cv2.INTER_NEAREST_EXACT if exact else cv2.INTER_LINEAR
            cv2.resize(image, (w, h), dst=inner, interpolation=how)

    def to_source(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) from canvas pixels to picture pixels, clipped to the picture."""
        height, width = self.source_hw
        boxes = (xyxy - np.array([self.left, self.top] * 2, np.float32)) / np.float32(self.scale)
        np.maximum(boxes, np.float32(0), out=boxes)
        np.minimum(boxes, np.array([width, height] * 2, np.float32), out=boxes)
        return boxes.astype(np.float32, copy=False)


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4), as (N, M) float32."""
    inter = np.ones((len(a), len(b)), np.float32)
    for low, high in ((0, 2), (1, 3)):  # one axis after the other: planes of (N, M) are six times as fast as (N, M, 2)
        side = np.minimum(a[:, high, None], b[:, high]) - np.maximum(a[:, low, None], b[:, low])
        inter *= np.maximum(side, 0)
    area_a = (a[:, 2:] - a[:, :2]).prod(axis=1)
    area_b = (b[:, 2:] - b[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None, :] - inter
    iou: NDArray[np.float32] = (inter / np.maximum(union, 1e-9)).astype(np.float32)
    return iou
