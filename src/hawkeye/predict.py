"""Pictures in, annotated pictures and one JSON line per picture out."""

from __future__ import annotations

import colorsys
import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import Artifact, write_bytes
from hawkeye.data import IMAGE_SUFFIXES, MAX_UNREADABLE, list_images, read_image
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.progress import progress
from hawkeye.records import RuntimeName
from hawkeye.runtime.detector import Detector

RESULTS = "predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    Attributes:
        results: the JSON-lines file: one object per picture, with `image`, `width`, `height` and `detections`, each
            with `class_id`, `name`, `score` and `xyxy` in pixels.
        pictures: annotated pictures, in the order of the lines; empty where none were asked for.
        images: pictures that were looked at.
        skipped: pictures that could not be read.
        detections: how many objects in all.
    """

    results: Path
    pictures: tuple[Path, ...]
    images: int
    skipped: tuple[Path, ...]
    detections: int


def predict(
    source: str | Path | Artifact,
    pictures: str | Path,
    *,
    out: Path,
    runtime: RuntimeName | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    threads: int = 0,
    max_det: int = 300,
    draw_pictures: bool = True,
) -> Prediction:
    """Detect in a picture, a folder of pictures, or all that a glob pattern such as `shots/*.jpg` matches.

    Args:
        source: model, as `Detector` takes it.
        out: folder for `predictions.jsonl` and the annotated pictures; those keep their place below a folder.

    Raises:
        DataError: nothing there, or more than 10 % of it cannot be read.
        ModelError: the model cannot be used.
    """
    paths, base = find_pictures(pictures)
    detector = Detector(source, runtime=runtime, conf=conf, iou=iou, threads=threads, max_det=max_det)
    lines: list[str] = []
    drawn: list[Path] = []
    skipped: list[Path] = []
    total = 0
    with progress("detecting", len(paths)) as task:
        for path in paths:
            try:
                image = read_image(path)
            except DataError:
                skipped.append(path)
                if len(skipped) > MAX_UNREADABLE * len(paths):
                    raise
                task.advance()
                continue
            found = detector(image)
            total += len(found)
            height, width = image.shape[:2]
            lines.append(json.dumps({"image": str(path), "width": width, "height": height,
                                     "detections": found.to_records(detector.names)}, ensure_ascii=False))  # fmt: skip
            if draw_pictures:
                place = path.relative_to(base)
                # The whole name stays in it: a.png and a.jpg of one folder must not end in one file.
                target = out / "pictures" / place.with_name(place.name + ".jpg")
                write_bytes(target, encode_jpeg(draw(image, found, detector.names)))
                drawn.append(target)
            task.advance(note=f"{len(found)} found")
    write_bytes(out / RESULTS, "".join(line + "\n" for line in lines).encode())
    return Prediction(out / RESULTS, tuple(drawn), len(lines), tuple(skipped), total)


def find_pictures(what: str | Path) -> tuple[list[Path], Path]:
    """Pictures that a path, folder or glob pattern means, sorted, and the folder that they lie below.

    Raises:
        DataError: there are none.
    """
    path = Path(what)
    if path.is_dir():
        found, base = list_images(path), path
    elif path.is_file():
        return [path], path.parent
    else:
        # Not Path.glob: that takes no absolute patterns.
        found = sorted(p for p in map(Path, glob.glob(str(what), recursive=True))  # noqa: PTH207
                       if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)  # fmt: skip
        fixed = [i for i, part in enumerate(path.parts) if glob.has_magic(part)]
        base = Path(*path.parts[: fixed[0]]) if fixed else path.parent
    if not found:
        raise DataError("no pictures to look at", got=what, expected="a picture, a folder of pictures, or a pattern",
                        mend=f"kinds that can be read: {' '.join(sorted(IMAGE_SUFFIXES))}")  # fmt: skip
    return found, base


def draw(image: NDArray[np.uint8], found: Detections, names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of a picture (H, W, 3) BGR with boxes, class names and scores; strokes grow with the picture."""
    canvas = image.copy()
    height, width = image.shape[:2]
    stroke = max(1, round((height + width) / 600))
    scale = max(0.4, stroke / 3)
    for box, score, cls in zip(found.xyxy, found.score, found.class_id, strict=True):
        x1, y1, x2, y2 = (int(round(float(v))) for v in box)
        colour = _colour(int(cls))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, stroke, cv2.LINE_AA)
        text = f"{names[cls]} {score:.2f}"
        (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        top = max(0, y1 - text_height - below - 2)
        left = max(0, min(x1, width - text_width - 2))
        corner = (left + text_width + 2, top + text_height + below + 2)
        cv2.rectangle(canvas, (left, top), corner, colour, cv2.FILLED)
        dark = sum(colour) < 380
        cv2.putText(canvas, text, (left + 1, top + text_height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale,
                    (255, 255, 255) if dark else (0, 0, 0), 1, cv2.LINE_AA)  # fmt: skip
    return canvas


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """JPEG bytes of a picture (H, W, 3) BGR."""
    content: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return content


def _colour(cls: int) -> tuple[int, int, int]:
    """A BGR colour per class; steps of the golden ratio keep neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb(cls * 0.618034 % 1.0, 0.75, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)
