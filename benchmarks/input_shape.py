"""What the shape of the network's input costs and changes: time, memory and compilation of each, and accuracy.

    python benchmarks/input_shape.py runs/first/4-quantize/original --data coco-sample/data.yaml

Times are of the network alone, all shapes in turns, on noise. Accuracy is COCO's, on the validation pictures, each once
in the square and once in its own shape (`geometry.rectangle`). Prints JSON. `--data` left out, only times are taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hawkeye import environment
from hawkeye.artifact import Artifact
from hawkeye.config import EvaluateConfig
from hawkeye.data import load_dataset, read_image, read_labels
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.evaluate import coco_map, to_truth
from hawkeye.geometry import Letterbox, Size
from hawkeye.progress import progress
from hawkeye.runtime import Runtime, load_runtime

# A picture for each shape: what a camera or a telephone gives.
PICTURES: tuple[Size, ...] = ((1000, 1000), (1080, 1920), (1200, 1600), (1920, 1080), (1600, 1200))


def times(artifact: Artifact, name: Any, runs: int) -> dict[str, Any]:
    """Milliseconds of each shape, what it takes to compile with and without a cache, and what memory it adds."""
    process, shapes = psutil.Process(), {}
    with tempfile.TemporaryDirectory() as folder:
        first = load_runtime(artifact, name, cache_dir=Path(folder))
        for picture in PICTURES[1:]:
            began, before = time.perf_counter(), process.memory_info().rss
            hw = first.canvas_for(picture)
            cold = time.perf_counter() - began
            shapes[hw] = {"compiled_s": round(cold, 3), "rss_mb": round((process.memory_info().rss - before) / 1e6, 1)}
        again = load_runtime(artifact, name, cache_dir=Path(folder))
        for picture in PICTURES[1:]:
            began = time.perf_counter()
            hw = again.canvas_for(picture)
            shapes[hw]["from_cache_s"] = round(time.perf_counter() - began, 3)
        rng = np.random.default_rng(0)
        canvases = [rng.integers(0, 256, (*again.canvas_for(picture), 3), np.uint8) for picture in PICTURES]
        found: dict[Size, list[float]] = {canvas.shape[:2]: [] for canvas in canvases}
        for number in range(runs + 3):
            for canvas in canvases:
                again.infer(canvas)  # brings the weights back into the caches that the one before has filled
                began = time.perf_counter()
                again.infer(canvas)
                if number >= 3:
                    found[canvas.shape[:2]].append((time.perf_counter() - began) * 1e3)
    return {f"{w} x {h}": {"network_ms": round(statistics.median(found[h, w]), 2), **shapes.get((h, w), {})}
            for h, w in found}  # fmt: skip


def accuracy(runtime: Runtime, pictures: Sequence[Path], *, rect: bool) -> dict[str, Any]:
    """mAP with all pictures in the square, or each in its own shape."""
    config, found, truth, shapes = EvaluateConfig(), [], [], Counter[str]()
    with progress("own shape" if rect else "square", len(pictures)) as task:
        for path in pictures:
            image = read_image(path)
            hw = (image.shape[0], image.shape[1])
            letterbox = Letterbox.fit(hw, runtime.canvas_for(hw) if rect else runtime.spec.imgsz)
            canvas = np.empty((*letterbox.canvas_hw, 3), np.uint8)
            letterbox.apply_(image, canvas)
            boxes = decode(runtime.infer(canvas), conf=config.conf, iou=config.iou, max_det=config.max_det,
                           max_candidates=5_000, multi_label=True)  # fmt: skip
            found.append(Detections(letterbox.to_source(boxes.xyxy), boxes.score, boxes.class_id))
            truth.append(to_truth(read_labels(path, len(runtime.spec.names)), hw))
            shapes[f"{canvas.shape[1]} x {canvas.shape[0]}"] += 1
            task.advance()
    map50, map50_95, _ = coco_map(found, truth, runtime.spec.names)
    return {"map50": round(map50, 4), "map50_95": round(map50_95, 4), "pictures": dict(shapes)}


def main() -> None:
    """Measure one artefact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of an artefact with an OpenVINO IR")
    parser.add_argument("--data", type=Path, help="data.yaml whose validation pictures accuracy is measured on")
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    artifact = Artifact.load(options.model)
    name: Any = "openvino-int8" if artifact.name.endswith("+int8") else "openvino-f32"
    result: dict[str, Any] = {"model": artifact.name, "shapes": times(artifact, name, options.runs)}
    if options.data:
        pictures, runtime = load_dataset(options.data).split("val"), load_runtime(artifact, name)
        result["accuracy"] = {word: accuracy(runtime, pictures, rect=rect)
                              for word, rect in (("square", False), ("own shape", True))}  # fmt: skip
    print(json.dumps({**result, "environment": environment.describe()}, indent=2))


if __name__ == "__main__":
    main()
