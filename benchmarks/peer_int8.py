"""INT8 against Ultralytics: its OpenVINO INT8 export and its quantization-aware training, on the same pictures.

    python benchmarks/peer_int8.py yolov8n.pt --data coco-sample/data.yaml --int8 runs/int8/4-quantize/original \\
        --out runs/peer [--epochs 2]

Both get the same training pictures, and every file is measured by the same evaluator on the validation pictures in
OpenVINO, with latencies taken in turns. With --epochs also its `train(quantize=8)` by the recipe that its authors
published with it (AdamW, 1e-5, no mosaics), exported to Q/DQ ONNX, the only kind of file that it gives for CPUs; it
needs `nvidia-modelopt` and `huggingface_hub`. What cannot be run is told with its error.

Finished parts are kept under --out. Prints a table as Markdown, kept as results.md with results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import yaml

from hawkeye import environment
from hawkeye.artifact import Artifact, ModelSpec, write_bytes, write_json
from hawkeye.compress.diagnose import find_parent
from hawkeye.compress.int8_checks import executed_precisions
from hawkeye.compress.sensitivity import latencies_ms
from hawkeye.config import EvaluateConfig
from hawkeye.data import label_path, load_dataset
from hawkeye.evaluate import Matches, coco_map, detect_all, drop_interval, match
from hawkeye.progress import say
from hawkeye.records import RuntimeName
from hawkeye.report_text import markdown_table
from hawkeye.runtime import open_file

CALIBRATION = 300  # pictures, as ours by default
CHECKED = 16  # training pictures that its training validates on, so that validation pictures choose nothing


def own_copy(data: Path, out: Path) -> Path:
    """The training pictures as links and their labels as copies: its caches shall not lie beside other people's data.

    Its export calibrates on `val`, which is what is measured here, so training pictures stand in its place.
    """
    dataset = load_dataset(data)
    yaml_path = out / "data.yaml"
    if yaml_path.is_file():
        return yaml_path
    for kind in ("images", "labels"):
        (out / kind / "train").mkdir(parents=True, exist_ok=True)
    links = []
    for picture in dataset.split("train"):
        link = out / "images" / "train" / picture.name
        link.unlink(missing_ok=True)
        link.symlink_to(picture.resolve())
        links.append(str(link.resolve().parent / link.name))
        if label_path(picture).is_file():
            shutil.copyfile(label_path(picture), label_path(link))
    write_bytes(out / "few.txt", "\n".join(links[:CHECKED]).encode())
    content = {"path": str(out.resolve()), "train": "images/train", "names": dict(enumerate(dataset.names))}
    write_bytes(out / "check.yaml", yaml.safe_dump(content | {"val": "few.txt"}).encode())
    write_bytes(yaml_path, yaml.safe_dump(content | {"val": "images/train"}).encode())
    return yaml_path


def exported(model: Path, data: Path, out: Path, spec: ModelSpec) -> tuple[Path, dict[str, Any]]:
    """Its INT8 export for OpenVINO."""
    found = next(iter(out.glob("*_openvino_model/*.xml")), None)
    if found is not None:
        return found, {}
    from ultralytics import YOLO

    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, out / model.name)
    began = time.perf_counter()
    pictures = len(load_dataset(data).split("train"))
    YOLO(str(out / model.name)).export(format="openvino", quantize=8, imgsz=spec.imgsz, data=str(data),
                                       fraction=min(1.0, CALIBRATION / pictures))  # fmt: skip
    return next(out.glob("*_openvino_model/*.xml")), {"seconds": round(time.perf_counter() - began)}


def trained(model: Path, data: Path, out: Path, spec: ModelSpec, epochs: int) -> tuple[Path, dict[str, Any]]:
    """Its quantization-aware training and the Q/DQ ONNX export of it, as IR."""
    xml = out / "trained.xml"
    told: dict[str, Any] = {"epochs": epochs}
    if not xml.is_file():
        from ultralytics import YOLO

        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, out / model.name)
        began = time.perf_counter()
        YOLO(str(out / model.name)).train(
            data=str(data.with_name("check.yaml")), quantize=8, epochs=epochs, patience=3, batch=16, imgsz=spec.imgsz,
            optimizer="AdamW", lr0=1e-5, lrf=0.1, warmup_epochs=0.5, cos_lr=True, mosaic=0.0, device="cpu", workers=1,
            plots=False, project=str(out.resolve()), name="train", exist_ok=True, seed=0,
        )  # fmt: skip
        told["seconds"] = round(time.perf_counter() - began)
        onnx_path = YOLO(str(out / "train" / "weights" / "last.pt")).export(format="onnx", imgsz=spec.imgsz)
        openvino.save_model(openvino.convert_model(onnx_path), xml, compress_to_fp16=False)
    return xml, told


class Peers:
    """Rows of the table."""

    def __init__(self, data: Path, out: Path, spec: ModelSpec) -> None:
        self.out, self.spec = out, spec
        self.pictures = load_dataset(data).split("val")
        self.rows: list[dict[str, Any]] = []

    def add(self, title: str, stem: str, runtime: RuntimeName, make: Callable[[], tuple[Path, dict[str, Any]]]) -> None:
        """Measure a file's accuracy; a library that is missing or refuses is a result here."""
        try:
            file, told = make()
        except Exception as error:
            say(f"{title}: {type(error).__name__}: {error}")
            message = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            self.rows.append({"title": title, "could_not_run": message})
            return
        path = self.out / "records" / f"{stem}.json"
        if not path.is_file():
            opened = open_file(file, runtime=runtime, spec=self.spec)
            found, truth, read = detect_all(opened, EvaluateConfig(), self.pictures, title=stem)
            map50, map50_95, _ = coco_map(found, truth, self.spec.names)
            match(found, truth, len(self.spec.names), [p.name for p in read]).save(path.with_suffix(".npz"))
            write_json(path, {"map50": map50, "map50_95": map50_95, **told})
        row = {"title": title, "stem": stem, "runtime": runtime, "file": str(file), **json.loads(path.read_text())}
        row["bytes"] = file.stat().st_size + file.with_suffix(".bin").stat().st_size
        row["executed"] = dict(executed_precisions(file))
        first = next((r for r in self.rows if "stem" in r), None)
        if first is not None:
            row["drop"] = 100 * (first["map50"] - row["map50"])
            row["ci95"] = self.interval(first["stem"], stem)
        self.rows.append(row)

    def interval(self, first: str, second: str) -> tuple[float, float]:
        """Of the points of mAP@0.5 that the second loses against the first."""
        folder = self.out / "records"
        return drop_interval(Matches.load(folder / f"{first}.npz"), Matches.load(folder / f"{second}.npz"))

    def against(self, ours: str) -> None:
        """What each peer has lost against ours."""
        mine = next(row for row in self.rows if row.get("stem") == ours)
        for row in self.rows:
            if row.get("stem", "").startswith("ultralytics"):
                row["behind_ours"] = 100 * (mine["map50"] - row["map50"])
                row["behind_ours_ci95"] = self.interval(ours, row["stem"])

    def write(self) -> str:
        """Table and records."""
        body = []
        for row in self.rows:
            if "could_not_run" in row:
                body.append([row["title"], *[""] * 6, row["could_not_run"]])
                continue
            cells = [row["title"], f"{row['map50']:.4f}", f"{row['map50_95']:.4f}"]
            for value, ci in (("drop", "ci95"), ("behind_ours", "behind_ours_ci95")):
                cells.append(f"{row[value]:.2f} [{row[ci][0]:.2f}, {row[ci][1]:.2f}]" if value in row else "")
            runs = ", ".join(f"{kind} x{count}" for kind, count in sorted(row["executed"].items()))
            body.append([*cells, f"{row['latency_ms']:.2f}" if "latency_ms" in row else "",
                         f"{row['bytes'] / 1e6:.2f}", runs])  # fmt: skip
        lines = markdown_table(["", "mAP@0.5", "mAP@0.5:0.95", "drop, points [95 % CI]", "behind ours", "ms", "MB",
                                "convolutions"], body)  # fmt: skip
        write_json(self.out / "results.json", {"rows": self.rows, "pictures": len(self.pictures),
                                               "environment": environment.describe()})  # fmt: skip
        write_bytes(self.out / "results.md", ("\n".join(lines) + "\n").encode())
        return "\n".join(lines)


def main() -> None:
    """Make, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--int8", type=Path, required=True, help="folder of our quantized artefact of the same model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=0, help="of its quantization-aware training; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=200, help="timed frames of each file; 0 for accuracy alone")
    args = parser.parse_args()
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # what is missing is told, not installed
    ours = Artifact.load(args.int8)
    base, spec = find_parent(ours), ours.spec
    peers = Peers(args.data, args.out, spec)
    data = own_copy(args.data, args.out / "data")
    peers.add("float", "float", "openvino-f32", lambda: (base.path("openvino"), {}))
    peers.add("Hawkeye INT8", "hawkeye", "openvino-int8", lambda: (ours.path("openvino"), {}))
    peers.add("Ultralytics INT8 export", "ultralytics-export", "openvino-int8",
              lambda: exported(args.model, data, args.out / "ultralytics-export", spec))  # fmt: skip
    if args.epochs:
        peers.add(f"Ultralytics train(quantize=8), {args.epochs} epochs", "ultralytics-trained", "openvino-int8",
                  lambda: trained(args.model, data, args.out / "ultralytics-trained", spec, args.epochs))  # fmt: skip
    peers.against("hawkeye")
    if args.rounds:
        int8 = [row for row in peers.rows if row.get("runtime") == "openvino-int8"]
        files = [Path(row["file"]) for row in int8]
        for row, ms in zip(int8, latencies_ms(files, spec, rounds=args.rounds), strict=True):
            row["latency_ms"] = ms
    print(peers.write())


if __name__ == "__main__":
    main()
