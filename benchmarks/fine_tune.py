"""Fine-tune a stock checkpoint for the classes of a data set: the detector that a business starts from.

    python benchmarks/fine_tune.py yolov8n.pt --data bccd/data.yaml --out runs/cells-detector --budget 10m

For studies on sets that no trained detector exists for; for production, train at length with Ultralytics. Starts where
it was when it is started again. Prints the checkpoint's path.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hawkeye.compress.recover import train
from hawkeye.config import parse_duration


def main() -> None:
    """Fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--budget", type=parse_duration, default=600.0, help="such as 10m")
    parser.add_argument("--lr", type=float, default=2e-4)
    options = parser.parse_args()
    print(train(options.model, data=options.data, imgsz=options.imgsz, budget=options.budget, out=options.out,
                lr=options.lr))  # fmt: skip


if __name__ == "__main__":
    main()
