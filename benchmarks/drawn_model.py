"""A detector of drawn scenes for `benchmarks/resolution.py`: stock YOLO, fine-tuned on them and made INT8.

    python benchmarks/drawn_model.py yolov8n.pt --out runs/drawn [--minutes 14]

Trained on 1,600 scenes of 320 pixels, where a step costs a quarter; judged and calibrated on 100 and 160 scenes of 640,
as the videos are looked at. Goes on where it was. The last folder, `runs/drawn/run`, is what `--drawn-model` takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hawkeye.compress.recover import train
from hawkeye.config import QuantizeConfig, Recipe
from hawkeye.pipeline import optimize
from hawkeye.scenes import draw_dataset


def main() -> None:
    """Draw, train, make INT8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="stock YOLO (.pt)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14.0, help="of training")
    options = parser.parse_args()
    small = draw_dataset(options.out / "small", train=1600, val=100, imgsz=320, seed=11)
    large = draw_dataset(options.out / "large", train=160, val=100, imgsz=640, seed=12)
    trained = train(options.checkpoint, data=small, imgsz=320, budget=options.minutes * 60, out=options.out / "trained",
                    lr=1e-3)  # fmt: skip
    recipe = Recipe.build(model=trained, data=large, imgsz=640, quantize=QuantizeConfig(mode="ptq"))
    optimize(recipe, out=options.out / "run", skip=("prune", "recover"))


if __name__ == "__main__":
    main()
