"""The accuracy-latency curve of one detector: what this package makes of it, beside what it has to beat.

The rivals are the original in INT8 at every input size, and a smaller detector likewise where one is given. Every point
is an ordinary run of the pipeline in a folder of its own, so a study can be killed and goes on, and every point has a
report. At the end all detectors are timed in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hawkeye import environment, pipeline
from hawkeye.artifact import Artifact, write_bytes, write_json
from hawkeye.config import Recipe
from hawkeye.errors import ConfigError, HawkeyeError
from hawkeye.evaluate import Matches, drop_interval
from hawkeye.lazy import lazy
from hawkeye.progress import say
from hawkeye.records import AccuracyRecord
from hawkeye.report_plots import alone, require
from hawkeye.report_plots import frontier as plot
from hawkeye.rundir import RunDir
from hawkeye.runtime import load_runtime
from hawkeye.timing import in_turns_ms

_NEAR = 1.03  # of a latency: two detectors within the noise of timing count as equally fast
_WORTH = 1.0  # points of mAP@0.5 that make a difference worth its words

Timer = Callable[[Sequence[tuple[Artifact, Any]], int, int], list[list[float]]]


def time_in_turns(models: Sequence[tuple[Artifact, Any]], runs: int, threads: int) -> list[list[float]]:
    """Milliseconds of (artefact, runtime) pairs."""
    return in_turns_ms([load_runtime(model, name, threads=threads) for model, name in models], runs=runs)


@dataclass(frozen=True)
class Tools:
    """What does the work: the product's, or a test's."""

    stages: pipeline.Stages | None = None
    measure: Callable[..., Any] = lazy("hawkeye.compress.search", "measure")
    choose: Callable[..., Any] = lazy("hawkeye.compress.search", "choose")
    apply: Callable[..., Recipe] = lazy("hawkeye.compress.search", "apply")
    timer: Timer = time_in_turns


@dataclass
class Point:
    """A detector on the plot."""

    name: str
    kind: str  # "stock", "smaller" or "ours"
    imgsz: int
    run: RunDir
    artifact: Artifact
    accuracy: AccuracyRecord
    budget_ms: float | None = None
    kept: float = 1.0
    times: tuple[float, ...] = ()

    @property
    def ms(self) -> float:
        """Median latency."""
        return median(self.times)

    @property
    def matches(self) -> Matches:
        """What a paired comparison needs."""
        return Matches.load(self.run.accuracy / self.accuracy.matches)


def frontier(recipe: Recipe, *, out: Path, smaller: Path | None = None, tools: Tools | None = None) -> dict[str, Any]:
    """Draw the curve into `out`: frontier.json, frontier.md and frontier.svg; returns what is in the first.

    Args:
        recipe: as for `optimize`; `search` says which sizes and latencies. Labels are needed.
        out: folder of the study.
        smaller: checkpoint of a smaller detector of the same classes.
        tools: what does the work.

    Raises:
        ConfigError: no model or no labelled data.
        HawkeyeError: a point could not be made; what was finished is kept.
    """
    require()
    tools = tools or Tools()
    if recipe.model is None or recipe.data is None:
        raise ConfigError("a frontier needs a model and labelled data", got=f"{recipe.model}, {recipe.data}",
                          expected="MODEL and --data", mend="accuracy is half of the plot")  # fmt: skip
    points = []
    for kind, model in (("stock", recipe.model), *((("smaller", smaller),) if smaller else ())):
        for size in sorted({*recipe.search.sizes, recipe.imgsz}, reverse=True):
            stock = recipe.with_(
                model=model, imgsz=size, model_sha256=None if kind == "smaller" else recipe.model_sha256,
                skip=("benchmark", "pictures", "prune", "recover"), store=None,
                quantize=recipe.quantize.with_(mode="ptq"),
            )  # fmt: skip
            points.append(_run(f"{kind} {size}", kind, stock, out / f"{kind}-{size}", tools))
    nominal = next(p for p in points if p.kind == "stock" and p.imgsz == recipe.imgsz)
    reference = Artifact.load(nominal.run.export("original"))
    curves = tools.measure(recipe, out=out / "search")
    missed = []
    for fraction in recipe.search.fractions:
        budget = fraction * curves.fp32_ms
        try:
            chosen = tools.choose(curves, recovered=recipe.search.recovered, budget_ms=budget)
        except HawkeyeError as error:
            say(f"1/{1 / fraction:.3g} of the latency is left out: {error.summary}")
            missed.append(fraction)
            continue
        if chosen.kept >= 1:
            say(f"1/{1 / fraction:.3g} of the latency: the stock detector at {chosen.imgsz} is the choice")
            continue
        ours = tools.apply(recipe, chosen, max_drop=recipe.gates.max_drop)
        ours = ours.with_(skip=tuple({*ours.skip, "benchmark", "pictures"}), store=None)
        point = _run(f"ours 1/{1 / fraction:.3g}", "ours", ours, out / f"ours-{fraction:g}", tools)
        point.budget_ms, point.kept = budget, chosen.kept
        points.append(point)
    runs, threads = recipe.benchmark.runs, recipe.benchmark.threads
    say(f"timing {len(points) + 1} detectors in turns")
    times = tools.timer([(reference, "openvino-f32"), *((p.artifact, "openvino-int8") for p in points)], runs, threads)
    for point, values in zip(points, times[1:], strict=True):
        point.times = tuple(values)
    fp32 = AccuracyRecord.load(nominal.run.accuracy / "original-openvino-f32.json")
    table = _table(recipe, points, median(times[0]), fp32.map50, missed)
    raw = {"original FP32": times[0], **{point.name: point.times for point in points}}
    write_json(out / "frontier.json", {**table, "raw_ms": raw})
    write_bytes(out / "frontier.svg", alone(plot(table["rows"], table["fp32_ms"], table["fp32_map50"])).encode())
    write_bytes(out / "frontier.md", markdown(table).encode())
    return table


def _run(name: str, kind: str, recipe: Recipe, folder: Path, tools: Tools) -> Point:
    say(f"--- {name}")
    pipeline.optimize(recipe, out=folder, stages=tools.stages)
    run, made = RunDir(folder), "original" if "prune" in recipe.skip else "pruned"
    return Point(name, kind, recipe.imgsz, run, Artifact.load(run.quantize(made)),
                 AccuracyRecord.load(run.accuracy / f"{made}+int8-openvino-int8.json"))  # fmt: skip


def _table(recipe: Recipe, points: Sequence[Point], fp32_ms: float, fp32_map50: float,
           missed: Sequence[float]) -> dict[str, Any]:  # fmt: skip
    rows = []
    for point in points:
        row: dict[str, Any] = {
            "name": point.name, "kind": point.kind, "imgsz": point.imgsz, "kept": point.kept, "ms": point.ms,
            "times_as_fast": fp32_ms / point.ms, "map50": point.accuracy.map50, "map50_95": point.accuracy.map50_95,
            "params": point.artifact.params, "rival": None, "gain": None, "gain_interval": None,
        }  # fmt: skip
        if point.kind == "ours":
            limit = max(point.ms, point.budget_ms or 0.0) * _NEAR
            rivals = [p for p in points if p.kind != "ours" and p.ms <= limit]
            if rivals:
                rival = max(rivals, key=lambda p: p.accuracy.map50)
                low, high = drop_interval(point.matches, rival.matches)
                row |= {"rival": rival.name, "gain": 100 * (point.accuracy.map50 - rival.accuracy.map50),
                        "gain_interval": (low, high)}  # fmt: skip
        rows.append(row)
    table = {"schema_version": 1, "imgsz": recipe.imgsz, "fp32_ms": fp32_ms, "fp32_map50": fp32_map50,
             "images": points[0].accuracy.images, "dataset": points[0].accuracy.dataset, "rows": rows,
             "missed": list(missed), "threads": recipe.benchmark.threads or environment.cpu_count(),
             "environment": environment.describe()}  # fmt: skip
    return {**table, "words": words(table)}


def words(table: dict[str, Any]) -> list[str]:
    """Which lever pays where."""
    rows, nominal = table["rows"], table["imgsz"]
    stock = sorted((r for r in rows if r["kind"] == "stock"), key=lambda r: -r["imgsz"])
    full = next(r for r in stock if r["imgsz"] == nominal)
    lost = 100 * (table["fp32_map50"] - full["map50"])
    said = [f"Precision: INT8 at {nominal} is {full['times_as_fast']:.1f} times as fast as FP32, "
            f"and costs {lost:.1f} points."]  # fmt: skip
    cheap = [r for r in stock if 100 * (full["map50"] - r["map50"]) <= _WORTH]
    small = min(cheap, key=lambda r: r["ms"])
    if small is not full:
        said.append(f"Input size: down to {small['imgsz']} it costs no more than {_WORTH:g} point and makes INT8 "
                    f"{full['ms'] / small['ms']:.2f} times as fast again; at {stock[-1]['imgsz']} it costs "
                    f"{100 * (full['map50'] - stock[-1]['map50']):.1f} points.")  # fmt: skip
    else:
        said.append(f"Input size: every step below {nominal} costs more than {_WORTH:g} point.")
    smaller = [r for r in rows if r["kind"] == "smaller"]
    wins = [r for r in smaller if all(r["map50"] > s["map50"] for s in stock if s["ms"] <= r["ms"] * _NEAR)]
    if smaller:
        said.append("The smaller detector pays at " + ", ".join(f"{r['imgsz']} ({r['ms']:.1f} ms)" for r in wins) + "."
                    if wins else "The smaller detector pays nowhere.")  # fmt: skip
    for row in rows:
        if row["kind"] != "ours":
            continue
        what = f"{row['name']}: {row['imgsz']} pixels and {row['kept']:.0%} of the latency there, {row['ms']:.1f} ms"
        if row["gain"] is None:
            said.append(f"{what}: no rival is as fast.")
            continue
        low, high = row["gain_interval"]
        verdict = "pays" if low > 0 else "loses" if high < 0 else "cannot be told from the rival"
        interval = f"{row['gain']:+.1f} points [{low:.1f}, {high:.1f}]"
        said.append(f"{what}: {interval} against {row['rival']}: pruning {verdict}.")
    for fraction in table["missed"]:
        said.append(f"1/{1 / fraction:.3g} of the latency: not reached by any size and widths tried.")
    return said


def markdown(table: dict[str, Any]) -> str:
    """The study as a page."""
    lines = [
        f"# Accuracy and latency, {table['images']} pictures of {table['dataset']}",
        "",
        "![plot](frontier.svg)",
        "",
        "| detector | input | latency kept | ms | times as fast | mAP@0.5 | mAP@0.5:0.95 | against the best rival |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| original, FP32 | {table['imgsz']} | | {table['fp32_ms']:.2f} | 1.00 | {table['fp32_map50']:.3f} | | |",
    ]
    for r in sorted(table["rows"], key=lambda r: -r["ms"]):
        gain = "" if r["gain"] is None else \
            f"{r['gain']:+.1f} [{r['gain_interval'][0]:.1f}, {r['gain_interval'][1]:.1f}], {r['rival']}"  # fmt: skip
        lines.append(f"| {r['name']} | {r['imgsz']} | {r['kept']:.0%} | {r['ms']:.2f} | {r['times_as_fast']:.2f} "
                     f"| {r['map50']:.3f} | {r['map50_95']:.3f} | {gain} |")  # fmt: skip
    where = table["environment"]
    lines += ["", *(f"- {line}" for line in table["words"]), ""]
    lines.append(f"{where['cpu']}, {table['threads']} threads, {where['os']}; medians of runs in turns, batch 1.")
    return "\n".join(lines) + "\n"
