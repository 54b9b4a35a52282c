"""A 1080p frame end to end: Hawkeye's `Detector` against Ultralytics' `predict`, with the same OpenVINO model.

    python benchmarks/peer_ultralytics.py runs/first/4-quantize/original/*_openvino_model [--pictures folder/]

Both take the frame as OpenCV has it and return boxes in its pixels, at the same size and thresholds; Ultralytics'
results are read out once, as a user must. Ultralytics runs an export at the square that it was made for; Hawkeye gives
it the shape of the frame, and is measured at the square as well. Frame by frame in turn, the first to go alternating.
Prints JSON: medians of each, and the ratio of medians of each block of frames with its spread. The aim is a ratio of at
most 0.8.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hawkeye import environment
from hawkeye.benchmark import synthetic_frame
from hawkeye.data import list_images, read_image
from hawkeye.progress import progress
from hawkeye.runtime.detector import Detector

SIZE = (1080, 1920)


def frames(folder: Path | None, count: int) -> list[np.ndarray]:
    """Frames of 1080p: pictures repeated to fill them, or synthetic ones."""
    if folder is None:
        return [synthetic_frame(SIZE, seed) for seed in range(count)]
    result = []
    for path in list_images(folder)[:count]:
        picture = read_image(path)
        rows, columns = -(-SIZE[0] // picture.shape[0]), -(-SIZE[1] // picture.shape[1])
        result.append(np.ascontiguousarray(np.tile(picture, (rows, columns, 1))[: SIZE[0], : SIZE[1]]))
    return result


def main() -> None:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an *_openvino_model folder, ours or a stock export")
    parser.add_argument("--pictures", type=Path, help="folder of real pictures")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--frames", type=int, default=40, help="frames per block")
    options = parser.parse_args()
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    from ultralytics import YOLO

    detector = Detector(options.model, conf=0.25, iou=0.7)
    square = Detector(options.model, conf=0.25, iou=0.7, rect=False)
    stock = YOLO(options.model, task="detect")
    size = detector.spec.imgsz

    def peer(frame: np.ndarray) -> int:
        boxes = stock.predict(frame, imgsz=size, conf=0.25, iou=0.7, device="cpu", verbose=False)[0].boxes
        xyxy, _, _ = boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy()
        return len(xyxy)

    runners: dict[str, Callable[[Any], int]] = {"hawkeye": lambda frame: len(detector(frame)), "ultralytics": peer,
                                                "hawkeye, square": lambda frame: len(square(frame))}  # fmt: skip
    given = frames(options.pictures, 16)
    found = {name: sum(run(frame) for frame in given) for name, run in runners.items()}  # warms both up too
    every: dict[str, list[float]] = {name: [] for name in runners}
    ratios: dict[str, list[float]] = {name: [] for name in runners if name != "ultralytics"}
    with progress("in turns", options.blocks * options.frames) as task:
        for _ in range(options.blocks):
            block: dict[str, list[float]] = {name: [] for name in runners}
            for number in range(options.frames):
                frame = given[number % len(given)]
                for name in list(runners) if number % 2 else list(runners)[::-1]:
                    started = time.perf_counter()
                    runners[name](frame)
                    block[name].append((time.perf_counter() - started) * 1e3)
                task.advance()
            for name, found_ratios in ratios.items():
                found_ratios.append(statistics.median(block[name]) / statistics.median(block["ultralytics"]))
            for name in runners:
                every[name] += block[name]
    print(json.dumps({
        "model": options.model.name, "imgsz": size, "frame": SIZE, "frames": len(every["hawkeye"]),
        "input": {"hawkeye": detector.prepare(SIZE), "others": (size, size)},
        "detections": found,
        "precision": {"hawkeye": f"{detector.runtime.precision_executed}, hint {detector.runtime.precision_hint}",
                      "ultralytics": "as OpenVINO chooses"},
        "median_ms": {name: round(statistics.median(values), 3) for name, values in every.items()},
        "p95_ms": {name: round(float(np.percentile(values, 95)), 3) for name, values in every.items()},
        "ratio": {name: {"median": round(statistics.median(values), 3), "min": round(min(values), 3),
                         "max": round(max(values), 3), "blocks": [round(ratio, 3) for ratio in values]}
                  for name, values in ratios.items()},
        "environment": environment.describe(),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
