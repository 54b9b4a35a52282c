"""What a frame costs outside the network: letterbox of a 1080p frame to the input size, and decode of the output.

    python benchmarks/frame_overhead.py runs/first [--frames 200]

Prints JSON with medians in milliseconds; the aim is under 1 ms for pre + post together.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from hawkeye import environment
from hawkeye.benchmark import synthetic_frame
from hawkeye.data import read_image
from hawkeye.runtime.detector import Detector


def main() -> None:
    """Measure one model on one frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, artefact, stock export, .xml or .onnx")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--picture", type=Path, help="a real picture, repeated to fill the frame; else a synthetic one")
    parser.add_argument("--no-rect", action="store_true", help="the square, whatever the shape of the frame")
    options = parser.parse_args()
    detector = Detector(options.model, rect=not options.no_rect)
    frame = synthetic_frame((1080, 1920), seed=0)
    if options.picture:
        picture = read_image(options.picture)
        rows, columns = -(-1080 // picture.shape[0]), -(-1920 // picture.shape[1])
        frame = np.ascontiguousarray(np.tile(picture, (rows, columns, 1))[:1080, :1920])
    timings = []
    for number in range(options.frames + 5):
        found = detector(frame)
        if number >= 5:
            timings.append(detector.timings)
    medians = {name: statistics.median(t[name] for t in timings) for name in ("pre", "network", "post")}
    result = {
        "frame": [1080, 1920],
        "input": detector.prepare((1080, 1920)),
        "frames": len(timings),
        "detections": len(found),
        "median_ms": medians,
        "overhead_ms": statistics.median(t["pre"] + t["post"] for t in timings),
        "environment": environment.describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
