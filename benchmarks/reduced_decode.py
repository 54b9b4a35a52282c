"""What it changes to decode a JPEG no larger than the network needs: boxes, accuracy and time, against the whole.

    python benchmarks/reduced_decode.py runs/int8 --data coco-sample/data.yaml --enlarge 2,3,4

Each validation picture is enlarged and saved as a JPEG (quality 90), which is then decoded whole and as the service
does it. To tell how much a difference is worth, the whole is also compared with the same picture saved at quality 95.
Prints JSON; times are of one thread's processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye import environment
from hawkeye.data import load_dataset, read_image, read_labels
from hawkeye.detections import Detections
from hawkeye.evaluate import Truth, coco_map, to_truth
from hawkeye.geometry import iou_matrix
from hawkeye.progress import progress
from hawkeye.runtime.detector import Detector
from hawkeye.serve.pictures import decode_for

_LIMIT = 200_000_000
_CONF, _LOW = 0.25, 0.001  # the service's threshold, and the one of accuracy


class Agreement:
    """How the boxes above the service's threshold agree, over many pictures."""

    def __init__(self) -> None:
        self.boxes = self.pairs = 0
        self.overlaps: list[float] = []
        self.scores: list[float] = []

    def add(self, one: Detections, other: Detections) -> None:
        """Pair boxes of the same class that overlap by half or more, the best first."""
        one, other = one[one.score > _CONF], other[other.score > _CONF]
        self.boxes += len(one) + len(other)
        iou = iou_matrix(one.xyxy, other.xyxy) * (one.class_id[:, None] == other.class_id)
        while iou.size and iou.max() >= 0.5:
            row, column = np.unravel_index(iou.argmax(), iou.shape)
            self.pairs += 1
            self.overlaps.append(float(iou[row, column]))
            self.scores.append(abs(float(one.score[row] - other.score[column])))
            iou[row], iou[:, column] = 0, 0

    def summary(self) -> dict[str, Any]:
        """In figures."""
        return {"boxes": self.boxes, "in_both": round(2 * self.pairs / self.boxes, 4),
                "iou_median": round(statistics.median(self.overlaps), 4),
                "score_change_median": round(statistics.median(self.scores), 4)}  # fmt: skip


def jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """A picture as a file."""
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def compare(detector: Detector, pictures: Sequence[Path], factor: float) -> dict[str, Any]:
    """All three ways of every picture."""
    found: dict[str, list[Detections]] = {"whole": [], "reduced": [], "quality 95": []}
    spent: dict[str, list[float]] = {name: [] for name in found}
    truth: list[Truth] = []
    agreements = {"reduced": Agreement(), "quality 95": Agreement()}
    reductions = Counter[int]()
    with progress(f"enlarged {factor:g} times", len(pictures)) as task:
        for path in pictures:
            small = read_image(path)
            image = np.asarray(cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)
            content = jpeg(image, 90)
            for name, file, imgsz in (("whole", content, 0), ("reduced", content, detector.spec.imgsz),
                                      ("quality 95", jpeg(image, 95), 0)):  # fmt: skip
                began = time.thread_time()
                picture = decode_for(file, _LIMIT, imgsz)
                spent[name].append((time.thread_time() - began) * 1e3)
                found[name].append(picture.restored(detector(picture.image)))
                if name == "reduced":
                    reductions[picture.reduced] += 1
            for name, agreement in agreements.items():
                agreement.add(found["whole"][-1], found[name][-1])
            truth.append(to_truth(read_labels(path, len(detector.names)), (image.shape[0], image.shape[1])))
            task.advance()
    rows: dict[str, Any] = {}
    for name in found:
        map50, map50_95, _ = coco_map(found[name], truth, detector.names)
        rows[name] = {"map50": round(map50, 4), "map50_95": round(map50_95, 4),
                      "decode_ms": round(statistics.median(spent[name]), 2)}  # fmt: skip
        if name in agreements:
            rows[name] |= agreements[name].summary()
    return {"reduced_by": dict(reductions), **rows}


def main() -> None:
    """Compare at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="as `hawkeye predict --model` takes it")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml; its validation pictures are taken")
    parser.add_argument("--enlarge", default="2", help="by how much, several with commas")
    parser.add_argument("--count", type=int, default=0, help="pictures, 0 for all")
    options = parser.parse_args()
    detector = Detector(options.model, conf=_LOW)
    pictures = load_dataset(options.data).split("val")[: options.count or None]
    result = {f"x {factor}": compare(detector, pictures, float(factor)) for factor in options.enlarge.split(",")}
    print(json.dumps({"pictures": len(pictures), **result, "environment": environment.describe()}, indent=2))


if __name__ == "__main__":
    main()
