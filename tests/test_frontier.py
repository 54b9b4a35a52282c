"""Input size and widths together, and the curve beside its rivals: choices on known curves, a study of fake runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hawkeye import cli
from hawkeye.artifact import Artifact, write_bytes
from hawkeye.config import EvaluateConfig, Recipe, SearchConfig
from hawkeye.errors import BoundsError, ConfigError, InputError
from hawkeye.evaluate import Matches
from hawkeye.frontier import Tools, frontier, markdown, words
from hawkeye.records import AccuracyRecord
from pipeline_fakes import Bench

pytest.importorskip("matplotlib")

MS = {320: 4.0, 480: 7.0, 640: 11.0}
MAP = {320: 0.40, 480: 0.52, 640: 0.56}


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search() -> Any:
    for name in ("torch", "ultralytics", "nncf", "torch_pruning"):
        pytest.importorskip(name)
    from hawkeye.compress import search

    return search


@pytest.fixture
def curves(search: Any) -> Any:
    return search.Curves(640, 28.0, dict(MS), dict(MAP), {0.8: 0.9, 0.5: 0.4})


@pytest.mark.compress
def test_expected_accuracy_is_the_sizes_times_what_recovery_does_not_win_back(curves: Any) -> None:
    assert curves.expected(640, 1.0, 0.7) == 0.56
    assert curves.expected(640, 0.8, 0.0) == pytest.approx(0.56 * 0.9)
    assert curves.expected(480, 0.8, 0.7) == pytest.approx(0.52 * (1 - 0.3 * 0.1))
    assert curves.expected(640, 0.9, 0.0) == pytest.approx(0.56 * 0.95)  # between what was tried
    assert curves.expected(640, 0.5, 1.0) == 0.56


@pytest.mark.compress
@pytest.mark.parametrize(
    ("budget", "recovered", "size", "kept"),
    [
        (20.0, 0.7, 640, 1.0),  # INT8 alone is within it
        (9.9, 0.7, 640, 0.9),  # a little pruning beats a smaller input
        (7.0, 0.0, 480, 1.0),  # pruning that is not recovered from loses to a smaller input
        (7.0, 1.0, 640, 7 / 11),  # and wins where it costs nothing
        (3.4, 0.7, 320, 0.85),  # nothing is pruned further than was tried
    ],
)
def test_the_most_accurate_choice_within_a_latency(
    search: Any, curves: Any, budget: float, recovered: float, size: int, kept: float
) -> None:
    chosen = search.choose(curves, recovered=recovered, budget_ms=budget)
    assert (chosen.imgsz, chosen.kept) == (size, pytest.approx(kept))
    assert chosen.ms <= budget + 1e-9


@pytest.mark.compress
def test_the_fastest_choice_within_a_drop(search: Any, curves: Any) -> None:
    assert search.choose(curves, recovered=0.0, max_drop=0.0).ms == 11.0  # nothing to give away
    assert search.choose(curves, recovered=0.7, max_drop=4.1).imgsz == 480
    wide = search.choose(curves, recovered=0.7, max_drop=50.0)
    assert (wide.imgsz, wide.kept) == (320, 0.5)
    assert search.choose(curves, recovered=0.7, max_drop=-1.0) == search.Choice(640, 1.0, 11.0, 0.0)


@pytest.mark.compress
def test_a_latency_out_of_reach_is_told_with_the_nearest(search: Any, curves: Any) -> None:
    with pytest.raises(BoundsError, match=r"at least 2.00 ms \(0.071 of FP32, 0.182 of INT8\)"):
        search.choose(curves, recovered=0.7, budget_ms=1.9)


@pytest.mark.compress
@pytest.mark.parametrize(
    ("bound", "of", "size", "pruned"), [(0.9, "int8", 640, True), (0.25, "fp32", 480, False), (None, "int8", 640, True)]
)
def test_a_recipe_gets_size_and_bound(
    search: Any, curves: Any, tmp_path: Path, monkeypatch: Any, bound: float | None, of: str, size: int, pruned: bool
) -> None:
    monkeypatch.setattr(search, "measure", lambda recipe, *, out: curves)
    recipe = Recipe(search=SearchConfig(recovered=0.7 if size == 640 else 0.0))
    recipe = recipe.with_(prune=recipe.prune.with_(latency=bound, latency_of=of))
    made, chosen = search.settle(recipe, out=tmp_path)
    assert made.imgsz == chosen.imgsz == size
    assert ("prune" in made.skip) is not pruned
    if pruned:
        assert (made.prune.latency, made.prune.latency_of) == (chosen.kept, "int8")
        assert made.prune.flops == made.prune.params == 1.0
    assert made.gates.max_drop == pytest.approx(1.5 - 100 * (MAP[640] - MAP[size]))


@pytest.mark.compress
@pytest.mark.slow
def test_a_small_detector_is_measured_and_read_back(search: Any, drawn: Path, tmp_path: Path) -> None:
    import tiny_detector

    settings = SearchConfig(sizes=(64, 96), kept=(0.8,), samples=8, rounds=1)
    recipe = Recipe(model=tiny_detector.fresh(tmp_path / "m.pt"), data=drawn, imgsz=96, search=settings)
    try:
        measured = search.measure(recipe, out=tmp_path / "search")
    except BoundsError as error:  # an untrained network may find nothing at all
        assert "finds something" in str(error)
        return
    assert set(measured.int8_ms) == set(measured.accuracy) == {64, 96} and set(measured.left) == {0.8}
    assert min(measured.fp32_ms, *measured.int8_ms.values()) > 0
    assert search.measure(recipe, out=tmp_path / "search") == measured


def test_a_plan_needs_a_number(capsys: Any) -> None:
    assert cli.run(["plan", "m.pt", "--data", "d.yaml", "--out", "o", "--imgsz", "auto"]) == 2
    assert "--imgsz auto" in capsys.readouterr().err


# --- the study --------------------------------------------------------------------------------------------------------

SIZES = {64: (4.0, 0.40), 96: (7.0, 0.52), 128: (11.0, 0.56)}  # input size: ms in INT8, mAP@0.5


class Study:
    """Fake runs whose accuracy and latency follow size and widths.

    Args:
        ours: what pruning adds at its size.
        training: the same on training pictures.
    """

    def __init__(self, ours: float, training: float = -0.02) -> None:
        self.ours, self.training, self.bench = ours, training, Bench()

    def tools(self) -> Tools:
        def evaluate(artifact: Artifact, config: EvaluateConfig, *, runtime: Any, out: Path) -> AccuracyRecord:
            record = self.bench.evaluate(artifact, config, runtime=runtime, out=out)
            assert config.imgsz is not None
            on_training = out.name == "train"
            assert (config.split, config.samples) == (("train", 300) if on_training else ("val", None))
            kind = kind_of(out.parents[2 if on_training else 1].name, artifact.name)
            added = {True: self.training, False: self.ours}[on_training] if kind == "ours" else 0
            value = SIZES[config.imgsz][1] + added
            hits(round(value * 100)).save(out / record.matches)
            record = record.model_copy(update={"map50": value, "map50_95": value / 2, "images": 100})
            record.save(out / f"{artifact.name}-{runtime}.json")
            return record

        def timer(models: Any, runs: int, threads: int) -> list[list[float]]:
            first, *rest = models
            assert first[1] == "openvino-f32" and {name for _, name in rest} == {"openvino-int8"}
            folders = [(a.root.parents[1].name, a.name) for a, _ in rest]
            self.timed = [(kind_of(folder, name), int(folder.split("-")[1])) for folder, name in folders]
            ms = [SIZES[size][0] * (0.75 if kind == "ours" else 1) for kind, size in self.timed]
            return [[28.0] * runs, *([value] * runs for value in ms)]

        return Tools(stages=replace(self.bench.stages(), evaluate=evaluate), timer=timer)


def kind_of(folder: str, row: str) -> str:
    """Whose detector a row of a run is; the run that prunes holds the stock one too."""
    return "stock" if folder == "ours-128" and row.startswith("original") else folder.split("-")[0]


def hits(share: int) -> Matches:
    """One object in each of 100 pictures, the first `share` of them found."""
    pictures = np.arange(100, dtype=np.int32)
    return Matches(image=pictures, class_id=np.zeros(100, np.int32), score=np.linspace(1, 0.5, 100, dtype=np.float32),
                   hit=pictures < share, labels=np.ones((100, 1), np.int32),
                   names=np.array([f"{i}.jpg" for i in pictures]))  # fmt: skip


@pytest.fixture
def recipe(project: Any) -> Recipe:
    made: Recipe = project(imgsz=128)
    return made.with_(search=SearchConfig(sizes=(64, 96), fractions=(0.5, 0.3, 0.22, 0.1)))


@pytest.mark.parametrize(("ours", "verdict"), [(0.08, "pays"), (-0.3, "loses"), (-0.04, "cannot be told")])
def test_the_curve_is_told_beside_its_rivals(recipe: Recipe, tmp_path: Path, ours: float, verdict: str) -> None:
    table = frontier(recipe, out=tmp_path / "study", tools=Study(ours).tools())
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["stock 128", "stock 96", "stock 64", "ours 128", "ours 96", "ours 64"]
    point = rows["ours 128"]
    assert point["ms"] == 8.25 and point["rival"] == "stock 96"  # the most accurate as fast; stock 128 takes 11 ms
    assert point["gain"] == pytest.approx(100 * (SIZES[128][1] + ours - SIZES[96][1]))
    assert point["gain_interval"][0] <= point["gain"] <= point["gain_interval"][1]
    at = [(row["ms"], row["ours"], row["rival"]) for row in table["at"]]
    assert at == [
        (14.0, "stock 128", "stock 128"),  # INT8 alone is within 1/2
        (pytest.approx(8.4), "ours 128", "stock 96"),
        (pytest.approx(6.16), "ours 96", "stock 64"),
        (pytest.approx(2.8), None, None),
    ]
    assert table["at"][0]["gain"] == 0 and table["at"][1]["gain"] == point["gain"] and table["at"][3]["gain"] is None
    assert table["words"][0] == "Precision: INT8 at 128 is 2.5 times as fast as FP32, and costs 0.0 points."
    assert table["words"][1].startswith("Input size: every step below 128 costs more")
    told = table["words"][2:]
    assert told[0] == "0.5 of the latency, 14.0 ms: INT8 alone is as fast; nothing is pruned."
    assert "ours 128 has" in told[1] and verdict in told[1]
    assert told[3].startswith("0.1 of the latency, 2.8 ms: not reached")
    kept = json.loads((tmp_path / "study" / "frontier.json").read_text())
    assert kept["words"] == table["words"] and len(kept["raw_ms"]["stock 64"]) == recipe.benchmark.runs
    page = (tmp_path / "study" / "frontier.md").read_text()
    assert page == markdown(table) and "| ours 128 | 128 | 8.25 | 3.39 |" in page
    svg = (tmp_path / "study" / "frontier.svg").read_text()
    assert svg.startswith("<svg") and "var(--" not in svg


def test_what_is_offered_at_a_latency_is_chosen_on_training_pictures(recipe: Recipe, tmp_path: Path) -> None:
    """Pruned or not: where a smaller input finds more of them, nothing is pruned, whatever is found elsewhere."""
    table = frontier(recipe, out=tmp_path / "study", tools=Study(0.08, training=-0.05).tools())
    assert [row["ours"] for row in table["at"]] == ["stock 128", "stock 96", "ours 96", None]
    assert (table["at"][1]["rival"], table["at"][1]["gain"]) == ("stock 96", 0.0)
    assert "stock 96 is chosen, and is the best rival; nothing is pruned" in " ".join(table["words"])
    assert {row["name"]: row["map50_training"] for row in table["rows"]}["ours 96"] == pytest.approx(0.47)


def test_ours_is_pruned_and_recovered_once(recipe: Recipe, tmp_path: Path) -> None:
    study = Study(0.01)
    frontier(recipe, out=tmp_path / "study", tools=study.tools())
    assert [line for line in study.bench.worked if line.startswith(("prune", "recover"))] == [
        "prune pruned",
        "recover pruned",
    ]


def test_a_study_goes_on_where_it_was(recipe: Recipe, tmp_path: Path) -> None:
    first, second = Study(0.01), Study(0.01)
    frontier(recipe, out=tmp_path / "study", tools=first.tools())
    frontier(recipe, out=tmp_path / "study", tools=second.tools())
    assert [line for line in second.bench.worked if line != "report"] == []
    assert first.timed == [(kind, size) for kind in ("stock", "ours") for size in (128, 96, 64)]


def test_a_smaller_detector_is_a_rival(recipe: Recipe, tmp_path: Path) -> None:
    write_bytes(tmp_path / "small.pt", b"other weights")
    table = frontier(recipe, out=tmp_path / "study", smaller=tmp_path / "small.pt", tools=Study(0.01).tools())
    assert [row["kind"] for row in table["rows"]].count("smaller") == 3
    assert any("smaller detector" in line for line in words(table))


@pytest.mark.parametrize(("content", "names"), [(None, ()), (b"weights of other classes", ("car", "boat"))])
def test_a_smaller_detector_that_is_none_is_told_before_anything_is_done(
    recipe: Recipe, tmp_path: Path, content: bytes | None, names: tuple[str, ...]
) -> None:
    path = tmp_path / "small.pt"
    if content is not None:
        write_bytes(path, content)
    study = Study(0.01)
    tools, known = study.tools(), study.bench.stages().class_names
    tools = replace(tools, stages=replace(tools.stages, class_names=lambda p: names if p == path else known(p)))
    with pytest.raises(InputError):
        frontier(recipe, out=tmp_path / "study", smaller=path, tools=tools)
    assert study.bench.worked == []


@pytest.mark.parametrize(
    ("option", "word"),
    [("--imgsz=auto", "--imgsz"), ("--int8=qat", "--int8"), ("--store=models", "--store"), ("--skip=prune", "--skip")],
)
def test_an_option_that_a_frontier_cannot_follow_is_told(option: str, word: str, capsys: Any) -> None:
    assert cli.run(["frontier", "m.pt", "--data", "d.yaml", "--out", "o", option]) == 2
    assert word in capsys.readouterr().err


def test_a_size_is_chosen_for_a_run_that_can_be_made(recipe: Recipe, tmp_path: Path, capsys: Any) -> None:
    words = ["optimize", str(recipe.model), "--data", str(recipe.data), "--out", str(tmp_path / "o"), "--imgsz", "auto"]
    assert cli.run([*words, "--skip", "recovr"]) == 2
    assert "recovr" in capsys.readouterr().err
    assert cli.run([*words, "--skip", "prune"]) == 2
    assert "a run that prunes" in capsys.readouterr().err
    assert cli.run([*words, "--until", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert not list(tmp_path.glob("o*"))


def test_a_frontier_needs_labels(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labelled data"):
        frontier(recipe.with_(data=None, images=tmp_path), out=tmp_path / "study", tools=Study(0.0).tools())


def test_a_frontier_needs_pruning(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what pruning is worth"):
        frontier(recipe.with_(skip=("prune",)), out=tmp_path / "study", tools=Study(0.0).tools())
