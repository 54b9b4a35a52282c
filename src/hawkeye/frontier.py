"""The accuracy-latency curve of one detector: what this package makes of it, beside what it has to beat.

The rivals are the original in INT8 at every input size, and a smaller detector likewise where one is given. Ours is
pruned and recovered once, as the recipe says, and its weights are read at every input size too: size costs no training,
and one run says what widths are worth at every latency. What is offered at a latency, pruned or not and at which size,
is chosen on training pictures and judged on others. Every point comes from an ordinary run of the pipeline in a folder
of its own, so a study can be killed and goes on, and has a report. At the end all are timed in turns.
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
from hawkeye.errors import ConfigError
from hawkeye.evaluate import Matches, drop_interval
from hawkeye.progress import say
from hawkeye.records import AccuracyRecord
from hawkeye.report_plots import alone, require
from hawkeye.report_plots import frontier as plot
from hawkeye.rundir import RunDir
from hawkeye.runtime import load_runtime
from hawkeye.timing import in_turns_ms

_NEAR = 1.03  # of a latency: two detectors within the noise of timing count as equally fast
_KINDS = ("stock", "smaller", "ours")
_CHOSEN_ON = 300  # training pictures, as INT8 is judged on; all of COCO's would take the time of many trainings
_WORTH = 1.0  # points of mAP@0.5 that make a difference worth its words

Timer = Callable[[Sequence[tuple[Artifact, Any]], int, int], list[list[float]]]


def time_in_turns(models: Sequence[tuple[Artifact, Any]], runs: int, threads: int) -> list[list[float]]:
    """Milliseconds of (artefact, runtime) pairs."""
    return in_turns_ms([load_runtime(model, name, threads=threads) for model, name in models], runs=runs)


@dataclass(frozen=True)
class Tools:
    """What does the work: the product's, or a test's."""

    stages: pipeline.Stages | None = None
    timer: Timer = time_in_turns


@dataclass
class Point:
    """A detector on the plot."""

    name: str
    kind: str  # of _KINDS
    imgsz: int
    run: RunDir
    artifact: Artifact
    accuracy: AccuracyRecord
    training: float | None = None  # mAP@0.5 on training pictures, by which ours is chosen
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
        ConfigError: no model, no labelled data, or no pruning.
        InputError: a model or the data cannot be used, of the kind that fits.
        HawkeyeError: a point could not be made; what was finished is kept.
    """
    require()
    tools = tools or Tools()
    evaluate = (tools.stages or pipeline.Stages()).evaluate
    if recipe.model is None or recipe.data is None:
        raise ConfigError("accuracy is half of the plot", got=f"model {recipe.model}, data {recipe.data}",
                          expected="a model and labelled data", mend="give MODEL and --data data.yaml")  # fmt: skip
    if "prune" in recipe.skip:
        raise ConfigError("a frontier shows what pruning is worth", got=f"skip = {list(recipe.skip)}",
                          expected="a recipe that prunes", mend="take prune out of --skip")  # fmt: skip
    sizes = sorted({*recipe.search.sizes, recipe.imgsz}, reverse=True)
    bare = recipe.with_(skip=tuple({*recipe.skip, "benchmark", "pictures"}), store=None,
                        quantize=recipe.quantize.with_(mode="ptq"), gates=recipe.gates.with_(row=None))  # fmt: skip
    for model in (recipe.model, *([smaller] if smaller else ())):  # before the hours that the first of them takes
        pipeline.check(bare.with_(model=model), out=out / f"ours-{recipe.imgsz}", stages=tools.stages)
    rest = [size for size in sizes if size != recipe.imgsz]
    # One run makes both at the size of the recipe, the original in INT8 and ours.
    run = _run(f"ours-{recipe.imgsz}", bare, out, tools)
    recovered = run.recover if "recover" not in bare.skip else run.prune
    points = [_point("stock", recipe, run, "original"), *_by_size("stock", recipe.model, bare, rest, out, tools)]
    if smaller:
        points += _by_size("smaller", smaller, bare, sizes, out, tools)
    ours = Artifact.load(recovered).path("pytorch")
    points += [_point("ours", recipe, run, "pruned"), *_by_size("ours", ours, bare, rest, out, tools)]
    points.sort(key=lambda p: (_KINDS.index(p.kind), -p.imgsz))
    for point in points:
        if point.kind != "smaller":
            settings = recipe.stage(recipe.evaluate).with_(split="train", samples=_CHOSEN_ON, imgsz=point.imgsz)
            point.training = evaluate(point.artifact, settings, runtime="openvino-int8",
                                      out=point.run.accuracy / "train").map50  # fmt: skip
    reference = Artifact.load(run.export("original"))
    runs, threads = recipe.benchmark.runs, recipe.benchmark.threads
    say(f"timing {len(points) + 1} detectors in turns")
    times = tools.timer([(reference, "openvino-f32"), *((p.artifact, "openvino-int8") for p in points)], runs, threads)
    for point, values in zip(points, times[1:], strict=True):
        point.times = tuple(values)
    fp32 = AccuracyRecord.load(run.accuracy / "original-openvino-f32.json")
    table = _table(recipe, points, median(times[0]), fp32.map50)
    raw = {"original FP32": times[0], **{point.name: point.times for point in points}}
    write_json(out / "frontier.json", {**table, "raw_ms": raw})
    write_bytes(out / "frontier.svg", alone(plot(table["rows"], table["fp32_ms"], table["fp32_map50"])).encode())
    write_bytes(out / "frontier.md", markdown(table).encode())
    return table


def _by_size(kind: str, model: Path, recipe: Recipe, sizes: Sequence[int], out: Path, tools: Tools) -> list[Point]:
    """A detector as it is at each input size, in INT8."""
    recipe = recipe.with_(
        model=model, model_sha256=recipe.model_sha256 if kind == "stock" else None,
        skip=tuple({*recipe.skip, "prune", "recover"}),
    )  # fmt: skip
    at = [recipe.with_(imgsz=size) for size in sizes]
    return [_point(kind, one, _run(f"{kind}-{one.imgsz}", one, out, tools), "original") for one in at]


def _run(name: str, recipe: Recipe, out: Path, tools: Tools) -> RunDir:
    say(f"--- {name}")
    pipeline.optimize(recipe, out=out / name, stages=tools.stages)
    return RunDir(out / name)


def _point(kind: str, recipe: Recipe, run: RunDir, made: str) -> Point:
    """What a run made of its original, or of pruning it, in INT8."""
    return Point(f"{kind} {recipe.imgsz}", kind, recipe.imgsz, run, Artifact.load(run.quantize(made)),
                 AccuracyRecord.load(run.accuracy / f"{made}+int8-openvino-int8.json"))  # fmt: skip


def _table(recipe: Recipe, points: Sequence[Point], fp32_ms: float, fp32_map50: float) -> dict[str, Any]:
    rows = []
    for point in points:
        row: dict[str, Any] = {
            "name": point.name, "kind": point.kind, "imgsz": point.imgsz, "ms": point.ms,
            "times_as_fast": fp32_ms / point.ms, "map50": point.accuracy.map50, "map50_95": point.accuracy.map50_95,
            "params": point.artifact.params, "map50_training": point.training,
        }  # fmt: skip
        if point.kind == "ours":
            row |= _against(point, _best(points, point.ms * _NEAR))
        rows.append(row)
    full, at = points[0], []
    for fraction in recipe.search.fractions:
        budget = fraction * fp32_ms
        # What INT8 alone reaches needs no pruning; otherwise a smaller input, pruning or both may be the better.
        fits = [p for p in points if p.training is not None and p.ms <= budget]
        chosen = full if full in fits else max(fits, key=lambda p: p.training or 0.0, default=None)
        row = {"fraction": fraction, "ms": budget, "ours": chosen.name if chosen else None}
        at.append(row | _against(chosen, _best(points, budget)))
    table = {"schema_version": 3, "imgsz": recipe.imgsz, "fp32_ms": fp32_ms, "fp32_map50": fp32_map50,
             "images": points[0].accuracy.images, "dataset": points[0].accuracy.dataset, "rows": rows, "at": at,
             "threads": recipe.benchmark.threads or environment.cpu_count(),
             "environment": environment.describe()}  # fmt: skip
    return {**table, "words": words(table)}


def _best(points: Sequence[Point], ms: float) -> Point | None:
    """The most accurate rival of at most this latency."""
    rivals = [p for p in points if p.kind != "ours" and p.ms <= ms]
    return max(rivals, key=lambda p: p.accuracy.map50, default=None)


def _against(point: Point | None, rival: Point | None) -> dict[str, Any]:
    """Points of mAP@0.5 above a rival, with the interval of a paired comparison; None where either is missing."""
    if point is None or rival is None:
        return {"rival": rival.name if rival else None, "gain": None, "gain_interval": None}
    if point is rival:
        return {"rival": rival.name, "gain": 0.0, "gain_interval": (0.0, 0.0)}
    gain = 100 * (point.accuracy.map50 - rival.accuracy.map50)
    return {"rival": rival.name, "gain": gain, "gain_interval": drop_interval(point.matches, rival.matches)}


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
    for row in table["at"]:
        what = f"{row['fraction']:.3g} of the latency, {row['ms']:.1f} ms"
        if row["ours"] is None:
            said.append(f"{what}: not reached by any size tried.")
        elif row["gain"] is None:
            said.append(f"{what}: {row['ours']}; no rival is as fast.")
        elif row["ours"] == f"stock {nominal}":
            said.append(f"{what}: INT8 alone is as fast; nothing is pruned.")
        elif row["ours"] == row["rival"]:
            said.append(f"{what}: {row['ours']} is chosen, and is the best rival; nothing is pruned.")
        else:
            low, high = row["gain_interval"]
            what_for = "pruning" if row["ours"].startswith("ours") else "the choice"
            verdict = "pays" if low > 0 else "loses" if high < 0 else "cannot be told from the rival"
            said.append(f"{what}: {row['ours']} has {row['gain']:+.1f} points [{low:.1f}, {high:.1f}] against "
                        f"{row['rival']}: {what_for} {verdict}.")  # fmt: skip
    return said


def markdown(table: dict[str, Any]) -> str:
    """The study as a page."""
    lines = [
        f"# Accuracy and latency, {table['images']} pictures of {table['dataset']}",
        "",
        "![plot](frontier.svg)",
        "",
        "| detector | input | ms | times as fast | mAP@0.5 | mAP@0.5:0.95 | against the best rival |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| original, FP32 | {table['imgsz']} | {table['fp32_ms']:.2f} | 1.00 | {table['fp32_map50']:.3f} | | |",
    ]
    for r in sorted(table["rows"], key=lambda r: -r["ms"]):
        gain = "" if r.get("gain") is None else \
            f"{r['gain']:+.1f} [{r['gain_interval'][0]:.1f}, {r['gain_interval'][1]:.1f}], {r['rival']}"  # fmt: skip
        lines.append(f"| {r['name']} | {r['imgsz']} | {r['ms']:.2f} | {r['times_as_fast']:.2f} "
                     f"| {r['map50']:.3f} | {r['map50_95']:.3f} | {gain} |")  # fmt: skip
    where = table["environment"]
    lines += ["", *(f"- {line}" for line in table["words"]), ""]
    lines.append(f"{where['cpu']}, {table['threads']} threads, {where['os']}; medians of runs in turns, batch 1.")
    return "\n".join(lines) + "\n"
