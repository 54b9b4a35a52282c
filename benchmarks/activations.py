"""What SiLU takes in INT8, and the head's last step in the file's own order: the same network without, in turns.

    python benchmarks/activations.py yolov8n.pt --data coco-sample/data.yaml

Prints medians of the network alone in ms, and the speed against the original in FP32 with the head as the runtime has
it. Networks are calibrated on noise, which is enough for timing. Tells why `compress/activations.py` and
`runtime/head.py` are there.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
from pathlib import Path
from unittest import mock

from torch import nn

from hawkeye import environment
from hawkeye.compress import activations, yolo
from hawkeye.compress.distance import agreement, load_batches
from hawkeye.compress.export import metadata, save_openvino
from hawkeye.compress.groups import merge_c2f_, split_c2f_
from hawkeye.compress.latency import networks_of
from hawkeye.compress.reconstruct import Reconstruction
from hawkeye.data import sample, training_images
from hawkeye.progress import progress
from hawkeye.runtime import Runtime, open_file
from hawkeye.timing import in_turns_ms

_JUDGES, _REPAIRS = 8, 16  # as `prune` takes them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint of a detector")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml; its training pictures judge activations")
    parser.add_argument("--limit", type=float, default=0.06, help="`hardswish` of the recipe")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--runs", type=int, default=60, help="timed runs of each row")
    args = parser.parse_args()
    silu = yolo.load_checkpoint(args.model).model
    some, every = copy.deepcopy(silu), copy.deepcopy(silu)
    labelled, _ = training_images(args.data, None)
    pictures = sample(labelled, _JUDGES + _REPAIRS, 0)
    judge = agreement(silu, pictures[:_JUDGES], args.imgsz, "cpu")
    for network, limit in ((some, args.limit), (every, math.inf)):
        split_c2f_(network)
        units = activations.candidates(network)
        read = {name for names in activations.readers(network, units).values() for name in names}
        repair = Reconstruction(network, read, load_batches(pictures[_JUDGES:], args.imgsz))
        with progress("choosing activations", len(units)) as bar:
            activations.simplify_(network, units, judge, args.imgsz, limit, bar.advance, repair)
        merge_c2f_(network)
    rows: dict[str, Runtime] = {}
    with tempfile.TemporaryDirectory(prefix="hawkeye-activations-") as folder:
        for title, network in (
            ("SiLU", silu),
            (f"Hardswish in {len(activations.of(some))} blocks", some),
            ("Hardswish", every),
        ):
            rows |= _opened(title, network, args.imgsz, Path(folder))
        times = [statistics.median(runs) for runs in in_turns_ms(list(rows.values()), runs=args.runs)]
    reference = times[list(rows).index("FP32, SiLU")]
    print(f"{environment.cpu_model()}, {args.model.name} at {args.imgsz} pixels, {environment.cpu_count()} threads; "
          f"with Hardswish everywhere and no training the distance is {judge(every):.3f}, with some "
          f"{judge(some):.3f}\n")  # fmt: skip
    print("| network | ms | times the speed |\n|---|---:|---:|")
    for title, ms in zip(rows, times, strict=True):
        print(f"| {title} | {ms:.2f} | {reference / ms:.2f} |")


def _opened(title: str, network: nn.Module, imgsz: int, folder: Path) -> dict[str, Runtime]:
    """Of SiLU in FP32 and INT8, with the head in either order; of others in INT8, as the runtime has it."""
    spec, rows = yolo.spec_of(network, imgsz), {}
    for precision, model in networks_of(network, imgsz, folder).items():
        if precision == "fp32" and title != "SiLU":
            continue
        name = f"{precision.upper()}, {title}"
        facts = metadata(spec, name=name, dynamic=False, int8=precision == "int8")
        path = save_openvino(model, folder, f"{len(list(folder.iterdir()))}", facts)
        kind = "openvino-int8" if precision == "int8" else "openvino-f32"
        if title == "SiLU":
            with mock.patch("hawkeye.runtime.ir.quicken_"):
                rows[f"{name}, the file's own head"] = open_file(path, runtime=kind, spec=spec)
        rows[name] = open_file(path, runtime=kind, spec=spec)
    return rows


if __name__ == "__main__":
    main()
