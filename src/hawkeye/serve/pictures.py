"""Pictures that strangers send: limits first, decoding second."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hawkeye.errors import DataError

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def decode_picture(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a picture file's bytes as (H, W, 3) BGR, turned upright; its header is checked first.

    Raises:
        DataError: not a picture, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:  # Pillow's limit is above ours
        raise DataError("the picture is too large", expected=f"at most {max_pixels:,} pixels") from None
    except Exception:  # Pillow raises many kinds for hostile files; all mean the same here
        raise DataError("not a picture", got=f"{len(content)} bytes that are none",
                        expected=", ".join(_FORMATS)) from None  # fmt: skip
    if width * height > max_pixels:
        raise DataError(
            "the picture is too large", got=f"{width} x {height}", expected=f"at most {max_pixels:,} pixels"
        )
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None or image.shape[0] * image.shape[1] != width * height:
        raise DataError("the picture cannot be decoded", got="damaged content", expected="a whole picture file")
    return np.asarray(image, np.uint8)
