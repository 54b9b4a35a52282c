"""Input size and widths together: what a detector is expected to find at a latency, before anything is trained.

Short measurements span the space: INT8 latency of the whole network at each input size, its accuracy at each, and what
is left of it after small prunings to several latencies. Accuracy is measured on held-out training pictures. What is
expected at (size, widths) is the product, with a stated share of pruning's loss won back by recovery: a forecast that
orders candidates, and no promise. The run that follows measures.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hawkeye import __version__, environment, keys
from hawkeye.artifact import Artifact, digest, file_sha256, write_json
from hawkeye.compress import yolo
from hawkeye.compress.export import metadata as facts_of
from hawkeye.compress.export import save_openvino
from hawkeye.compress.forecast import by_size
from hawkeye.compress.latency import networks_of
from hawkeye.compress.original import import_original
from hawkeye.compress.prune import prune
from hawkeye.config import Recipe
from hawkeye.errors import BoundsError
from hawkeye.progress import progress, say
from hawkeye.runtime import open_file
from hawkeye.timing import in_turns_ms

_RUNS = 30


@dataclass(frozen=True)
class Curves:
    """What was measured of one detector on this machine.

    Attributes:
        nominal: input size that latencies and accuracies are compared with.
        fp32_ms: OpenVINO FP32 at the nominal size.
        int8_ms: by input size.
        accuracy: mAP@0.5 of the original by input size, on held-out training pictures.
        left: share of accuracy left after pruning and before training, by the share of latency kept.
    """

    nominal: int
    fp32_ms: float
    int8_ms: dict[int, float]
    accuracy: dict[int, float]
    left: dict[float, float]

    def expected(self, size: int, kept: float, recovered: float) -> float:
        """Accuracy after recovery, by forecast."""
        shares = sorted({1.0: 1.0, **self.left}.items())
        left = float(np.interp(kept, [share for share, _ in shares], [value for _, value in shares]))
        return self.accuracy[size] * (1 - (1 - recovered) * (1 - left))


@dataclass(frozen=True)
class Choice:
    """An input size, and how much of the latency there pruning is to keep (1: nothing is pruned).

    Attributes:
        ms: INT8 latency, by measurement and proportion.
        drop: expected points of mAP@0.5 lost against the original at the nominal size.
    """

    imgsz: int
    kept: float
    ms: float
    drop: float


def choose(
    curves: Curves, *, recovered: float, budget_ms: float | None = None, max_drop: float | None = None
) -> Choice:
    """The most accurate choice within a latency, or else the fastest within a drop.

    Raises:
        BoundsError: nothing measured comes that far; states the nearest.
    """
    best, least = curves.accuracy[curves.nominal], min([1.0, *curves.left])

    def choice(size: int, kept: float) -> Choice:
        drop = 100 * (best - curves.expected(size, kept, recovered))
        return Choice(size, kept, kept * curves.int8_ms[size], drop)

    if budget_ms is not None:
        shares = {size: min(1.0, budget_ms / ms) for size, ms in curves.int8_ms.items()}
        found = [choice(size, kept) for size, kept in shares.items() if kept >= least]
        if not found:
            floor = least * min(curves.int8_ms.values())
            raise BoundsError("no input size and widths reach this latency", got=f"{budget_ms:.2f} ms",
                              expected=f"at least {floor:.2f} ms ({floor / curves.fp32_ms:.3f} of FP32, "
                              f"{floor / curves.int8_ms[curves.nominal]:.3f} of INT8)",
                              mend="ask for a larger --latency, or search smaller sizes")  # fmt: skip
        return min(found, key=lambda c: (c.drop, c.ms))
    assert max_drop is not None
    shares_ = [1.0, *(round(share, 2) for share in np.arange(0.95, least - 1e-9, -0.05))]
    found = [choice(size, kept) for size in curves.int8_ms for kept in shares_]
    return min(
        (c for c in found if c.drop <= max_drop), key=lambda c: (c.ms, c.drop), default=choice(curves.nominal, 1.0)
    )


def settle(recipe: Recipe, *, out: Path) -> tuple[Recipe, Choice]:
    """A recipe with input size and bound on latency in place of `--imgsz auto`.

    With a latency in the recipe, the most accurate choice within it; else the fastest within the gate's drop. FLOPs and
    parameters are no bounds then. The gate is lowered by what the smaller input is expected to lose, since the run
    compares with the original at its own size.

    Args:
        recipe: its `imgsz` is the size that the latency is a fraction of, and that accuracy is compared with.
        out: folder for what is measured; used again.
    """
    curves = measure(recipe, out=out)
    bound = recipe.prune.latency
    budget = None
    if bound is not None:
        budget = bound * (curves.fp32_ms if recipe.prune.latency_of == "fp32" else curves.int8_ms[curves.nominal])
    chosen = choose(curves, recovered=recipe.search.recovered, budget_ms=budget, max_drop=recipe.gates.max_drop)
    say(f"--imgsz auto: {chosen.imgsz} pixels and {chosen.kept:.0%} of the latency there: about {chosen.ms:.1f} ms in "
        f"INT8, an expected drop of {chosen.drop:.1f} points against the original at {curves.nominal}")  # fmt: skip
    lost = 100 * max(0.0, curves.accuracy[curves.nominal] - curves.accuracy[chosen.imgsz])
    return apply(recipe, chosen, max_drop=recipe.gates.max_drop - lost), chosen


def apply(recipe: Recipe, chosen: Choice, *, max_drop: float) -> Recipe:
    """The recipe at a choice."""
    gates = recipe.gates.with_(max_drop=max_drop)
    if chosen.kept >= 1:
        return recipe.with_(imgsz=chosen.imgsz, skip=tuple({*recipe.skip, "prune", "recover"}), gates=gates)
    pruned = recipe.prune.with_(latency=chosen.kept, latency_of="int8", flops=1.0, params=1.0)
    return recipe.with_(imgsz=chosen.imgsz, prune=pruned, gates=gates)


def measure(recipe: Recipe, *, out: Path) -> Curves:
    """Measure the curves of a recipe's model, or read them back; minutes."""
    assert recipe.model is not None
    config = recipe.stage(recipe.prune).with_(
        samples=recipe.search.samples, rounds=recipe.search.rounds, latency=None, flops=0.99, params=0.99
    )
    checkpoint = yolo.load_checkpoint(recipe.model)
    pictures, _ = keys.prune(file_sha256(recipe.model), config)
    key = digest(file_sha256(recipe.model), [path.name for path in pictures], recipe.search.model_dump(mode="json"),
                 recipe.imgsz, recipe.seed, environment.cpu_model(), environment.cpu_count(), __version__)  # fmt: skip
    path = out / "search.json"
    if (known := _read(path, key)) is not None:
        return known
    sizes = sorted({*recipe.search.sizes, recipe.imgsz})
    spec = yolo.spec_of(checkpoint.model, recipe.imgsz)
    say("input size and widths: measuring what each costs")
    fp32_ms, int8_ms = _latencies(checkpoint.model, spec, sizes)
    accuracy = by_size(checkpoint.model, spec, sizes, config)
    if not accuracy[recipe.imgsz]:
        raise BoundsError("--imgsz auto needs pictures that the detector finds something in",
                          got=f"mAP@0.5 0 on held-out training pictures at {recipe.imgsz}",
                          mend="give --imgsz a number")  # fmt: skip
    original = import_original(recipe.model, imgsz=recipe.imgsz, out=out / "original")
    left = {}
    for kept in recipe.search.kept:
        tried = config.with_(latency=kept, latency_of="int8", flops=1.0, params=1.0)
        made: Artifact = prune(original, tried, out=out / f"pruned-{kept:g}")
        told = made.details["forecast"]
        left[kept] = min(1.0, told["after"] / told["before"]) if told["before"] else 0.0
    curves = Curves(recipe.imgsz, fp32_ms, int8_ms, accuracy, left)
    write_json(path, {"key": key, **asdict(curves)})
    return curves


def _latencies(model: Any, spec: Any, sizes: Sequence[int]) -> tuple[float, dict[int, float]]:
    with tempfile.TemporaryDirectory(prefix="hawkeye-search-") as name, progress("latency by input size", 1) as task:
        folder = Path(name)
        files = {}
        for precision, network in networks_of(model, spec.imgsz, folder).items():
            facts = facts_of(spec, name=precision, dynamic=False, int8=precision == "int8")
            files[precision] = save_openvino(network, folder, precision, facts)
        runtimes = [open_file(files["fp32"], runtime="openvino-f32", spec=spec)]
        runtimes += [open_file(files["int8"], runtime="openvino-int8", spec=spec, imgsz=size) for size in sizes]
        times = [float(np.median(runs)) for runs in in_turns_ms(runtimes, runs=_RUNS)]
        task.advance()
    return times[0], dict(zip(sizes, times[1:], strict=True))


def _read(path: Path, key: str) -> Curves | None:
    try:
        known = json.loads(path.read_text())
        if known.pop("key") != key:
            return None
        numbers = {name: {int(k): float(v) for k, v in known[name].items()} for name in ("int8_ms", "accuracy")}
        return Curves(known["nominal"], known["fp32_ms"], **numbers,
                      left={float(k): float(v) for k, v in known["left"].items()})  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
