"""What ways of calibrating INT8 keep of a real detector, on training pictures that were not calibrated on.

    python benchmarks/calibration.py yolov8n.pt --data coco-sample/data.yaml --images unlabelled/ --out runs/calibration

Calibrates on one part of the training pictures and judges on the rest, in OpenVINO: fidelity (mAP with what float finds
there as the truth, which needs no labels and is far less noisy than accuracy; on the unlabelled pictures as well), the
mean differences of scores and boxes, and the drop of mAP@0.5 against float with its paired 95 % interval. Validation
pictures are not touched, so the choice of a way cannot favour them. What is finished is kept under --out. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

from hawkeye.artifact import Artifact, write_json
from hawkeye.compress import int8_checks, quantizers
from hawkeye.compress.calibrate import parameters_of, post_training
from hawkeye.compress.export import canvas_of, export, metadata, openvino_infer, save_openvino
from hawkeye.config import EvaluateConfig, ExportConfig, QuantizeConfig
from hawkeye.data import list_images, load_dataset, sample, split_holdout
from hawkeye.evaluate import Truth, coco_map, detect_all, drop_interval, match
from hawkeye.progress import progress
from hawkeye.records import RuntimeName
from hawkeye.report_text import markdown_table
from hawkeye.runtime import open_file
from hawkeye.runtime.core import core

WAYS: dict[str, dict[str, Any]] = {
    "mean-minmax": {"activations_range_estimator_params": Ranges.MEAN_MINMAX},  # NNCF's default
    "histogram": {"activations_range_estimator_params": Ranges.HISTOGRAM},
    "median-minmax": {"activations_range_estimator_params": Ranges.MEDIAN_MINMAX},
    "minmax": {"activations_range_estimator_params": Ranges.MINMAX},
    "uncorrected": {"disable_bias_correction": True},
    "7-bit": {"overflow_fix": nncf.OverflowFix.ENABLE},
}
MARGINS = {f"margin-{margin:g}": margin for margin in (1.1, 1.2, 1.3)}  # of mean-minmax; all others have 1
COMPARED = 64  # pictures on which raw outputs are compared


class Judge:
    """Float's results on the pictures to judge on, and what others lose against them."""

    def __init__(self, source: Artifact, labelled: list[Path], unlabelled: list[Path]) -> None:
        self.spec, self.labelled, self.unlabelled = source.spec, labelled, unlabelled
        self.canvases = np.stack([canvas_of(path, self.spec.imgsz) for path in [*labelled, *unlabelled][:COMPARED]])
        self.exact = openvino_infer(source.path("openvino"))(self.canvases)
        found, truth = self.look(source.path("openvino"), "openvino-f32")
        self.truth = truth[: len(labelled)]
        self.seen = []
        for one, labels in zip(found, truth, strict=True):
            sure = one.score > int8_checks.CONFIDENT
            self.seen.append(Truth(labels.hw, one.xyxy[sure], one.class_id[sure]))
        self.map50, self.matches = self.accuracy(found)

    def look(self, path: Path, runtime: RuntimeName) -> tuple[list[Any], list[Truth]]:
        """What a network finds, and the labels."""
        opened = open_file(path, runtime=runtime, spec=self.spec)
        found, truth, _ = detect_all(opened, EvaluateConfig(), [*self.labelled, *self.unlabelled], title=path.stem)
        return found, truth

    def accuracy(self, found: list[Any]) -> tuple[float, Any]:
        """mAP@0.5 and matches on the labelled pictures."""
        mine, names = found[: len(self.labelled)], self.spec.names
        matches = match(mine, self.truth, len(names), [path.name for path in self.labelled])
        return coco_map(mine, self.truth, names)[0], matches

    def figures(self, path: Path) -> dict[str, Any]:
        """All that is told of an INT8 file."""
        found, _ = self.look(path, "openvino-int8")
        map50, matches = self.accuracy(found)
        fidelity = coco_map(found, self.seen, self.spec.names)
        apart = int8_checks.distance(openvino_infer(path)(self.canvases), self.exact)
        return {"fidelity50": fidelity[0], "fidelity50_95": fidelity[1], **apart, "drop": 100 * (self.map50 - map50),
                "ci95": drop_interval(self.matches, matches)}  # fmt: skip


def main() -> None:
    """Calibrate in each way, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of unlabelled pictures to judge fidelity on as well")
    parser.add_argument("--unlabelled", type=int, default=150, help="how many of them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--holdout", type=float, default=0.4, help="share of the training pictures to judge on")
    parser.add_argument("--ways", default=",".join(WAYS | MARGINS),
                        help=f"which, with commas, of {', '.join(WAYS | MARGINS)}")  # fmt: skip
    parser.add_argument("--per-layer", action="store_true", help="one scale a layer's weights")
    args = parser.parse_args()
    source = export(args.model, ExportConfig(data=args.data, imgsz=args.imgsz), out=args.out / "export")
    calibrated, judged = split_holdout(load_dataset(args.data).split("train"), args.holdout, 0, limit=10**6)
    unlabelled = sample(list_images(args.images), args.unlabelled, 0) if args.images else []
    config = QuantizeConfig(per_channel=not args.per_layer)
    judge, rows = Judge(source, judged, unlabelled), []
    graph = onnx.load(source.path("onnx"))

    @functools.cache
    def plain(base: str) -> tuple[Any, quantizers.Quantization, float]:
        """A calibration, which its margins share, and its seconds."""
        began = time.perf_counter()
        with progress(base, len(calibrated)) as task:
            model = core().read_model(source.path("openvino"))
            parameters = replace(parameters_of(config, 8), **WAYS[base])
            model = post_training(model, calibrated, config, args.imgsz, 8, task, parameters=parameters)
        return model, quantizers.read(model, graph), time.perf_counter() - began

    for way in args.ways.split(","):
        name = f"{way}-per-layer" if args.per_layer else way
        record = args.out / f"{name}.json"
        if not record.is_file():
            model, quantization, seconds = plain(way if way in WAYS else "mean-minmax")
            quantizers.write_openvino_(model, quantization.widened(MARGINS.get(way, 1.0)))
            facts = metadata(source.spec, name=name, dynamic=False, int8=True)
            path = save_openvino(model, args.out, name, facts)
            write_json(record, {"way": name, "seconds": seconds, **judge.figures(path)})
        rows.append(json.loads(record.read_text()))
    body = [[row["way"], f"{row['fidelity50_95']:.4f}", f"{row['fidelity50']:.4f}", f"{row['mean_score']:.4f}",
             f"{row['mean_box_px']:.3f}", f"{row['drop']:.2f} [{row['ci95'][0]:.2f}, {row['ci95'][1]:.2f}]",
             f"{row['seconds']:.0f}"] for row in rows]  # fmt: skip
    print(f"{len(calibrated)} training pictures to calibrate on; {len(judged)} others and {len(unlabelled)} unlabelled "
          f"ones to judge on; float: mAP@0.5 {judge.map50:.4f}\n")  # fmt: skip
    header = ["", "fidelity@0.5:0.95", "fidelity@0.5", "score difference", "box difference, px",
              "drop of mAP@0.5, points [95 % CI]", "s"]  # fmt: skip
    print("\n".join(markdown_table(header, body)))


if __name__ == "__main__":
    main()
