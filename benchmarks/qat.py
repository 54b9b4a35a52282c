"""What quantization-aware training is worth on a real detector: calibration against training, in a case that needs it.

    python benchmarks/qat.py yolov8n.pt --data coco-sample/data.yaml --out runs/qat [--pruned runs/first/2-recover]

Cases: the original; the original with one scale a layer's weights, which is hard on calibration, and the same with
weights of 7 bits, which is harder; and a pruned checkpoint, if one is given. Each is exported, calibrated, and trained
behind fake quantization, judged on the validation pictures in OpenVINO and, for INT8, in ONNX Runtime and PyTorch as
well. Latencies are measured in turns at the end. `benchmarks/peer_int8.py` compares with Ultralytics.

Everything finished is kept under --out: start the same command again to go on. The table is printed last, as Markdown,
and kept as results.md and results.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hawkeye import environment
from hawkeye.artifact import Artifact, write_bytes, write_json
from hawkeye.compress.calibrate import mirror_infer
from hawkeye.compress.export import export
from hawkeye.compress.original import import_original
from hawkeye.compress.quantize import quantize
from hawkeye.compress.quantizers import load
from hawkeye.compress.sensitivity import latencies_ms
from hawkeye.config import EvaluateConfig, ExportConfig, QuantizeConfig
from hawkeye.data import load_dataset
from hawkeye.evaluate import Matches, coco_map, detect_all, drop_interval, match
from hawkeye.progress import say
from hawkeye.report_text import markdown_table, quantization_step
from hawkeye.runtime import Runtime, open_file

HARD: dict[str, dict[str, Any]] = {
    "original-one-scale-a-layer": {"per_channel": False},
    "original-one-scale-a-layer-7-bits": {"per_channel": False, "weight_bits": 7},
}
CASES = ("original", *HARD, "pruned")


class Mirror:
    """The fake-quantized network as a runtime."""

    name, precision_hint, precision_executed, threads = "pytorch-fp32", "f32", "f32", 0

    def __init__(self, source: Artifact, int8: Artifact) -> None:
        import numpy as np

        self.spec = source.spec
        self._np, self._infer = np, mirror_infer(source, load(int8.path("openvino"), source.path("onnx")))

    def infer(self, canvas: Any) -> Any:
        pixels = canvas[..., ::-1].transpose(2, 0, 1).astype(self._np.float32) / 255
        return self._infer(self._np.ascontiguousarray(pixels)[None])[0]


class Study:
    """Measures once, keeps what it has measured."""

    def __init__(self, data: Path, out: Path, splits: Sequence[str]) -> None:
        self.data, self.out, self.splits = data, out, splits
        self.pictures = [picture for split in splits for picture in load_dataset(data).split(split)]
        self.records = out / ("records" if splits == ["val"] else f"records-{'-'.join(splits)}")
        self.rows: list[dict[str, Any]] = []

    def accuracy(self, stem: str, runtime: Runtime | None) -> dict[str, float]:
        """mAP on the pictures; `runtime` is not needed where it was measured before."""
        path = self.records / f"{stem}.json"
        if not path.is_file():
            assert runtime is not None
            found, truth, read = detect_all(runtime, EvaluateConfig(), self.pictures, title=stem)
            map50, map50_95, _ = coco_map(found, truth, runtime.spec.names)
            match(found, truth, len(runtime.spec.names), [p.name for p in read]).save(path.with_suffix(".npz"))
            write_json(path, {"map50": map50, "map50_95": map50_95})
        figures: dict[str, float] = json.loads(path.read_text())
        return figures

    def add(self, title: str, stem: str, base: str | None, file: Path, **more: Any) -> None:
        figures = self.accuracy(stem, None)
        row = {"title": title, "stem": stem, "file": str(file), **figures, **more}
        if base is not None:
            before = self.accuracy(base, None)
            row["drop"] = 100 * (before["map50"] - figures["map50"])
            row["ci95"] = drop_interval(Matches.load(self.records / f"{base}.npz"),
                                        Matches.load(self.records / f"{stem}.npz"))  # fmt: skip
        self.rows.append(row)


def case(study: Study, name: str, source: Artifact, modes: Sequence[str], settings: dict[str, Any]) -> None:
    """Float, and what was asked for of calibration and training, of one network."""
    spec = source.spec
    float_stem = f"{name.split('-')[0]}-float"
    study.accuracy(float_stem, open_file(source.path("openvino"), runtime="openvino-f32", spec=spec))
    if all(row["stem"] != float_stem for row in study.rows):
        study.add(f"{name}, float", float_stem, None, source.path("openvino"))
    for mode in modes:
        config = QuantizeConfig(data=study.data, mode=mode, **settings)
        made = quantize(source, config, out=study.out / name / mode)
        stem = f"{name}-{mode}"
        study.accuracy(stem, open_file(made.path("openvino"), runtime="openvino-int8", spec=spec))
        runtimes = {
            "ONNX Runtime": study.accuracy(
                f"{stem}-onnxruntime", open_file(made.path("onnx"), runtime="onnxruntime", spec=spec)),
            "PyTorch": study.accuracy(f"{stem}-pytorch", Mirror(source, made)),
        }  # fmt: skip
        for step in made.details.get("story", ()):
            say(f"{name}: {quantization_step(step)}")
        study.add(f"{name}, {mode}", stem, float_stem, made.path("openvino"), runtimes=runtimes,
                  kept=made.details.get("kept", mode), agreement=made.details["agreement"],
                  seconds=made.seconds, qat=made.details.get("qat"))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pruned", type=Path, help="folder of a pruned artefact with its checkpoint")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds of training for each case")
    parser.add_argument("--steps", type=int, help="train for this many steps instead, on a machine with other work")
    parser.add_argument("--cases", default=",".join(CASES), help="which of them, with commas; all by default")
    parser.add_argument("--modes", default="ptq,qat", help="which of calibration and training, with commas")
    parser.add_argument("--batch", type=int, default=QuantizeConfig().batch, help="pictures a step")
    parser.add_argument("--lr", type=float, default=QuantizeConfig().lr, help="peak learning rate of training")
    parser.add_argument("--splits", default="val", help="to judge on; val,train tells better how well runtimes agree")
    args = parser.parse_args()
    study = Study(args.data, args.out, args.splits.split(","))
    made = import_original(args.model, imgsz=args.imgsz, out=args.out / "original" / "checkpoint")
    source = export(made, ExportConfig(data=args.data, imgsz=args.imgsz), out=args.out / "original" / "export")
    length = {"budget": args.budget, "steps": args.steps, "batch": args.batch, "lr": args.lr}
    modes = args.modes.split(",")
    if "original" in args.cases.split(","):
        case(study, "original", source, modes, length)
    for name, harder in HARD.items():
        if name in args.cases.split(","):
            case(study, name, source, modes, length | harder)
    if args.pruned is not None and "pruned" in args.cases.split(","):
        pruned = export(Artifact.load(args.pruned), ExportConfig(data=args.data, imgsz=args.imgsz),
                        out=args.out / "pruned" / "export")  # fmt: skip
        case(study, "pruned", pruned, modes, length)
    rows = study.rows
    int8 = [row for row in rows if not row["stem"].endswith("-float")]
    for row, ms in zip(int8, latencies_ms([Path(row["file"]) for row in int8], source.spec), strict=True):
        row["latency_ms"] = ms
    body = []
    for row in rows:
        ci = row.get("ci95")
        others = [
            f"{row['runtimes'][r]['map50']:.4f}" if "runtimes" in row else "" for r in ("ONNX Runtime", "PyTorch")
        ]
        body.append([row["title"], f"{row['map50']:.4f}", f"{row['map50_95']:.4f}",
                     f"{row['drop']:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else "", *others,
                     f"{row['latency_ms']:.1f}" if "latency_ms" in row else "", row.get("kept", ""),
                     f"{row['seconds'] / 60:.0f}" if "seconds" in row else ""])  # fmt: skip
    lines = markdown_table(["", "mAP@0.5", "mAP@0.5:0.95", "drop, points [95 % CI]", "in ONNX Runtime", "in PyTorch",
                            "ms", "kept", "minutes"], body)  # fmt: skip
    drops = {row["stem"]: row["drop"] for row in rows if "drop" in row}
    for name in (*HARD, "pruned"):
        before, after = drops.get(f"{name}-ptq"), drops.get(f"{name}-qat")
        if before is not None and after is not None and before > 0:
            lines.append(
                f"{name}: calibration loses {before:.2f} points, training wins back {before - after:.2f} of them."
            )
    write_json(args.out / "results.json", {"rows": rows, "pictures": len(study.pictures), "splits": study.splits,
                                           "environment": environment.describe()})  # fmt: skip
    write_bytes(args.out / "results.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
