"""Boxes with names and scores on a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618034  # steps of this round the colour circle keep neighbouring classes apart


def colour(class_id: int) -> tuple[int, int, int]:
    """A colour (B, G, R) for a class, the same everywhere."""
    r, g, b = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1.0, 0.85, 0.95)
    return round(255 * b), round(255 * g), round(255 * r)


def draw(image: NDArray[np.uint8], detections: Detections, names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of a picture (H, W, 3) uint8 BGR with its detections; the surest on top."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    line = max(1, round(max(height, width) / 400))
    size = max(0.35, max(height, width) / 1600)
    for i in np.argsort(detections.score, kind="stable"):
        x1, y1, x2, y2 = (round(float(v)) for v in detections.xyxy[i])
        kind = int(detections.class_id[i])
        fill = colour(kind)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), fill, line, cv2.LINE_AA)
        text = f"{names[kind]} {detections.score[i]:.2f}"
        if detections.track_id is not None:
            text = f"#{detections.track_id[i]} {text}"
        (wide, high), below = cv2.getTextSize(text, _FONT, size, 1)
        # Above the box where there is room, otherwise inside it; never outside the picture.
        top = y1 - high - below if y1 - high - below >= 0 else y1
        left = max(0, min(x1, width - wide))
        cv2.rectangle(canvas, (left, top), (left + wide, top + high + below), fill, cv2.FILLED)
        ink = (0, 0, 0) if 0.114 * fill[0] + 0.587 * fill[1] + 0.299 * fill[2] > 128 else (255, 255, 255)
        cv2.putText(canvas, text, (left, top + high + below // 2), _FONT, size, ink, 1, cv2.LINE_AA)
    return canvas
