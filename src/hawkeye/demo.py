"""The whole of Hawkeye in minutes, offline: draw pictures, train a small detector on them, compress it, show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawkeye.artifact import digest, storage_errors, write_bytes
from hawkeye.config import (
    BenchmarkConfig,
    GateConfig,
    PruneConfig,
    QuantizeConfig,
    Recipe,
    RecoverConfig,
    parse_duration,
)
from hawkeye.data import load_dataset
from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.pipeline import RunResult, optimize
from hawkeye.progress import say
from hawkeye.scenes import draw_dataset

IMGSZ = 320
TRAIN, VAL = 480, 120  # pictures; drawing them takes seconds
# A detector trained for minutes and judged on 120 pictures moves by points from chance alone; the interval in the
# report shows it. The gate of a real run stays at 1.5.
MAX_DROP = 5.0


def train_small(data: Path, *, imgsz: int, budget: float, out: Path) -> Path:
    """Train a fresh YOLOv8n on a data set for `budget` seconds; returns the checkpoint.

    Raises:
        MissingExtraError: the [compress] extra is not installed.
    """
    model = load("hawkeye.compress.yolo").build_detector(load_dataset(data).names, imgsz=imgsz)
    made = load("hawkeye.compress.recover").train(model, data=data, imgsz=imgsz, budget=budget, out=out)
    return Path(made)


@dataclass(frozen=True)
class Steps:
    """What does the work: the public functions, or a test's."""

    draw: Callable[..., Path] = draw_dataset
    train: Callable[..., Path] = train_small
    optimize: Callable[..., RunResult] = optimize


def demo(
    *,
    out: Path,
    model: Path | None = None,
    data: Path | None = None,
    train_budget: str | float = "240s",
    budget: str | float = "90s",
    steps: Steps | None = None,
) -> RunResult:
    """Draw a data set, train on it, and compress the result; what is finished is kept when it is started again.

    Args:
        out: folder of the demo: `data`, `train` and `run` in it.
        model: the user's own checkpoint instead; needs `data` as well.
        data: the user's own data.yaml instead of drawn pictures; without `model` a detector is trained on it.
        train_budget: wall clock for the training from scratch, as 90s or 4m.
        budget: wall clock for the recovery after pruning.
        steps: what does the work.

    Raises:
        ConfigError: a model without its data.
        InputError: the model, the data or the folder cannot be used.
    """
    steps = steps or Steps()
    if model is not None and data is None:
        raise ConfigError("your own model needs its own data", got=f"--model {model} without --data",
                          expected="the data.yaml that it was trained with")  # fmt: skip
    seconds = duration(train_budget, "--train-budget")
    own = model is not None
    with storage_errors(out):
        if data is None:
            say(f"drawing {TRAIN + VAL} pictures")
            data = steps.draw(out / "data", train=TRAIN, val=VAL, imgsz=IMGSZ, seed=0)
        if model is None:
            model = trained(out / "train", data, seconds, steps)
    return steps.optimize(recipe(model, data, duration(budget, "--budget"), own=own), out=out / "run")


def duration(value: str | float, option: str) -> float:
    """Seconds of an option.

    Raises:
        ConfigError: not a duration.
    """
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"{option} cannot be used", got=error) from None


def trained(out: Path, data: Path, seconds: float, steps: Steps) -> Path:
    """The checkpoint of an earlier call with the same budget and data, or a new one."""
    place = out / digest(str(data.resolve()), seconds)[:8]
    record = place / "checkpoint.txt"  # written when training is over: names the checkpoint in this folder
    if record.is_file():
        found = place / record.read_text().strip()
        if found.is_file():
            return found
    say(f"training a small YOLOv8 from scratch for {seconds:.0f} s")
    made = steps.train(data, imgsz=IMGSZ, budget=seconds, out=place)
    write_bytes(record, made.resolve().relative_to(place.resolve()).as_posix().encode())
    return made


def recipe(model: Path, data: Path, budget: float, *, own: bool) -> Recipe:
    """A recipe that takes minutes; for the user's own detector at its usual size, with the usual gate."""
    values: dict[str, Any] = {} if own else {"imgsz": IMGSZ, "gates": GateConfig(max_drop=MAX_DROP)}
    return Recipe.build(
        model=model,
        data=data,
        prune=PruneConfig(samples=96, rounds=2),
        recover=RecoverConfig(budget=budget),
        quantize=QuantizeConfig(samples=300, budget=budget),
        benchmark=BenchmarkConfig(runs=40),
        **values,
    )
