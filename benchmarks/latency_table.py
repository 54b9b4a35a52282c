"""How well the table of layer costs predicts whole networks: random prunings, predicted and measured, in INT8.

    python benchmarks/latency_table.py yolov8n.pt --nets 10 --out runs/latency-table

Measures the table first where this machine has none yet (minutes). Each unit of coupled channels of each network gets
a random width, a multiple of 8. All networks run in turns with the original; the least of `--runs` is compared with
what the table predicts, since the table itself holds the least. Run it on an idle machine: networks are kept in
`--out`, so `--build` makes them beforehand, and what is timed is short. Prints JSON, then a Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from hawkeye import environment
from hawkeye.compress import yolo
from hawkeye.compress.allocate import units_of
from hawkeye.compress.export import metadata, save_openvino
from hawkeye.compress.groups import cut_, find_groups, merge_c2f_, split_c2f_
from hawkeye.compress.latency import networks_of, profile
from hawkeye.compress.layer_models import networks_ms


def pruned(model: Any, seed: int) -> tuple[Any, dict[str, int]]:
    """The network with random widths of a quarter to the whole, split still, and those widths by group."""
    draw = random.Random(seed)
    model = copy.deepcopy(model)
    split_c2f_(model)
    groups = find_groups(model)
    widths = {}
    for unit in units_of(groups):
        width = max(8, round(unit[0].width * draw.uniform(0.25, 1.0) / 8) * 8)
        widths |= {group.name: min(width, group.width) for group in unit}
    cut_(model, {name: list(range(width)) for name, width in widths.items()}, groups)
    return model, widths


def int8_of(model: Any, imgsz: int, name: str, out: Path) -> Path:
    """A detector as an INT8 file for timing, made where it is not there yet."""
    path = out / f"{name}_openvino_model" / f"{name}.xml"
    if not path.is_file():
        facts = metadata(yolo.spec_of(model, imgsz), name=name, dynamic=False, int8=True)
        with tempfile.TemporaryDirectory() as folder:
            save_openvino(networks_of(model, imgsz, Path(folder))["int8"], out, name, facts)
    return path


def main() -> None:
    """Predict, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--nets", type=int, default=10)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True, help="folder for the networks")
    parser.add_argument("--build", action="store_true", help="measure the table, make the networks, and end")
    options = parser.parse_args()
    model = yolo.load_checkpoint(options.model).model
    started = time.perf_counter()
    known = profile(model, options.imgsz, threads=options.threads, precisions=("int8",))
    table_s = time.perf_counter() - started
    threads = known.tables["int8"].threads
    predicted, files = [known.wholes["int8"].total], [int8_of(model, options.imgsz, "original", options.out)]
    for seed in range(options.nets):
        small, _ = pruned(model, seed)
        predicted.append(known.of(small, find_groups(small)).ms({}))
        merge_c2f_(small)
        files.append(int8_of(small, options.imgsz, f"random-{seed}", options.out))
    if options.build:
        return
    measured = networks_ms(files, threads=threads, runs=options.runs)
    rows = [
        {"net": "original" if number == 0 else f"random {number - 1}", "predicted_ms": ms, "least_ms": min(runs),
         "median_ms": statistics.median(runs), "error": ms / min(runs) - 1}
        for number, (ms, runs) in enumerate(zip(predicted, measured, strict=True))
    ]  # fmt: skip
    worst = max(abs(row["error"]) for row in rows[1:])
    print(json.dumps({"rows": rows, "worst": worst, "measured": known.measured,
                      "table_s": round(table_s, 1), "threads": threads, "imgsz": options.imgsz,
                      "environment": environment.describe()}))  # fmt: skip
    print("| net | predicted ms | least ms | median ms | error |\n|---" + "|---:" * 4 + "|")
    for row in rows:
        print(f"| {row['net']} | {row['predicted_ms']:.2f} | {row['least_ms']:.2f} | {row['median_ms']:.2f} "
              f"| {row['error']:+.1%} |")  # fmt: skip
    print(f"\nlargest error {worst:.1%}; {known.measured} layers measured in {table_s:.0f} s")


if __name__ == "__main__":
    main()
