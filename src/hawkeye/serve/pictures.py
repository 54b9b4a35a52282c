"""Pictures that strangers send: limits first, decoding second."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hawkeye.data import cut_off
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.geometry import Size

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# A JPEG is stored in blocks of 8 x 8 frequencies: leaving out the high ones decodes it at a half, a quarter or an
# eighth of its size, each pixel the mean of those that it stands for, and most of the work is saved.
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture that may have been decoded smaller than it is.

    Attributes:
        image: (H, W, 3) uint8 BGR, upright.
        width, height: in pixels of the file, upright.
        reduced: pixels of the file for one of `image`, along each side.
    """

    image: NDArray[np.uint8]
    width: int
    height: int
    reduced: int = 1

    def restored(self, found: Detections) -> Detections:
        """Detections in `image` as detections in the pixels of the file."""
        if self.reduced == 1:
            return found
        edges = np.array([self.width, self.height] * 2, np.float32)
        # A side that is no multiple has its last pixel half outside.
        return Detections(np.minimum(found.xyxy * np.float32(self.reduced), edges), found.score, found.class_id)


def decode_picture(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a picture file's bytes as (H, W, 3) BGR, turned upright; its header is checked first.

    Raises:
        DataError: not a picture, damaged, or too large.
    """
    return decode_for(content, max_pixels, 0).image


def decode_for(content: bytes, max_pixels: int, imgsz: int) -> Picture:
    """Decode a picture for a network: a JPEG no larger than needed, if its longer side keeps at least `imgsz` pixels.

    Args:
        content: a picture file's bytes.
        max_pixels: most that the file may have; its header is checked before it is decoded.
        imgsz: longer side of the network's input in pixels; 0 decodes all of it.

    Raises:
        DataError: not a picture, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as header:
            size, kind = header.size, header.format
            cut = size[0] * size[1] <= max_pixels and cut_off(header)
    except Image.DecompressionBombError:  # Pillow's limit is above ours
        raise DataError("the picture is too large", expected=f"at most {max_pixels:,} pixels") from None
    except Exception:  # Pillow raises many kinds for hostile files; all mean the same here
        raise DataError("not a picture", got=f"{len(content)} bytes that are none",
                        expected=", ".join(_FORMATS)) from None  # fmt: skip
    if size[0] * size[1] > max_pixels:
        raise DataError(
            "the picture is too large", got=f"{size[0]} x {size[1]}", expected=f"at most {max_pixels:,} pixels"
        )
    if cut:
        raise DataError("the picture is cut off", got="a JPEG without its end", expected="a whole picture file")
    reduced = _reduction(size, imgsz) if kind == "JPEG" and imgsz else 1
    width, height = _shrunk(size, reduced)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED.get(reduced, cv2.IMREAD_COLOR))
    except cv2.error:
        image = None
    if image is None or image.shape[:2] not in ((height, width), (width, height)):
        raise DataError("the picture cannot be decoded", got="damaged content", expected="a whole picture file")
    upright = size if image.shape[:2] == (height, width) else size[::-1]  # else EXIF has turned it
    return Picture(np.asarray(image, np.uint8), *upright, reduced)


def _reduction(size: Size, imgsz: int) -> int:
    for reduced in sorted(_REDUCED, reverse=True):
        width, height = _shrunk(size, reduced)
        # Where only the file's sides differ, it could not be told any more whether EXIF has turned the picture.
        if max(size) // reduced >= imgsz and (width != height or size[0] == size[1]):
            return reduced
    return 1


def _shrunk(size: Size, reduced: int) -> Size:
    return -(-size[0] // reduced), -(-size[1] // reduced)
