"""Sweeps without Ray: what is tried, what is stopped, the front, going on, refusals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import finished_run  # noqa: E402
import sweep_fakes  # noqa: E402
from hawkeye import cli  # noqa: E402
from hawkeye.config import Recipe  # noqa: E402
from hawkeye.errors import BoundsError, CheckpointError, ConfigError, DataError, RunDirError  # noqa: E402
from hawkeye.pipeline import Stages, optimize  # noqa: E402
from hawkeye.scale.front import FrontStopper, front  # noqa: E402
from hawkeye.scale.search import apply, make_trials, parse_values  # noqa: E402
from hawkeye.scale.sweep import InProcess, sweep  # noqa: E402


def run(folder: Path, out: Path, space: Any = None, stages: Any = sweep_fakes.stages, **options: Any) -> dict[str, Any]:
    recipe = finished_run.recipe(folder, benchmark={"runs": 3}, **options.pop("recipe", {}))
    space = sweep_fakes.SPACE if space is None else space
    return sweep(recipe, space, out=out, workers=InProcess(), stages=stages, **options).report


def by_changes(report: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row["changes"].values()): row for row in report["rows"] if row["changes"]}


# -- what is tried -----------------------------------------------------------------------------------------------------


def test_all_combinations_or_some_that_the_seed_decides() -> None:
    space = {"prune.flops": [0.5, 0.6], "imgsz": [320, 640], "recover.teacher": ["a/x.pt", "b/y.pt"]}
    trials = make_trials(Recipe(), space)
    assert len({trial.name for trial in trials}) == len(trials) == 8
    assert {(t.recipe.prune.flops, t.recipe.imgsz, str(t.recipe.recover.teacher)) for t in trials} == {
        (f, s, t) for f in (0.5, 0.6) for s in (320, 640) for t in ("a/x.pt", "b/y.pt")
    }
    some = [t.name for t in make_trials(Recipe(), space, limit=3, seed=5)]
    assert some == [t.name for t in make_trials(Recipe(), space, limit=3, seed=5)]
    assert len(some) == 3
    assert {t.name for t in trials} >= set(some)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("prune.flips", 0.5, "no setting"),
        ("flops", 0.5, "no setting"),
        ("prunes.flops", 0.5, "no setting"),
        ("prune.flops", "many", "valid number"),
        ("imgsz", 100, "multiple of 32"),
        ("prune.method", "magic", "method"),
    ],
)
def test_settings_and_values_that_do_not_exist(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply(Recipe(), {key: value})


@pytest.mark.parametrize("key", ["store", "model", "data", "seed", "gates.max_drop", "schema_version"])
def test_what_a_sweep_cannot_vary(key: str) -> None:
    with pytest.raises(ConfigError, match="cannot vary"):
        make_trials(Recipe(), {key: ["a"]})


def test_values() -> None:
    assert parse_values("0.5, 1,obs,1e-3,0.5") == [0.5, 1, "obs", 1e-3]
    for text in ("", "1,,2", ","):
        with pytest.raises(ConfigError, match="empty"):
            parse_values(text)


# -- the front, and what cannot come to it -----------------------------------------------------------------------------


def test_front() -> None:
    points = [(10.0, 0.5), (12.0, 0.6), (11.0, 0.4), (12.0, 0.55), (20.0, 0.6), (5.0, 0.1)]
    assert front(points) == [5, 0, 1]
    assert front([]) == []


def test_a_trial_is_stopped_only_by_one_that_costs_no_more_and_was_clearly_better() -> None:
    stopper = FrontStopper()

    def told(trial: str, part: float, score: float, cost: float = 1.0, group: str = "g") -> bool:
        return stopper.judge(trial, group=group, cost=cost, part=part, score=score)

    assert not told("cheap", 0.5, 1.0)
    assert not told("fast and bad", 0.5, 9.0, cost=0.5)  # less accurate by nature, and perhaps on the front
    assert not told("near", 0.5, 1.05)  # within the noise
    assert not told("other pictures", 0.5, 9.0, group="another size")
    assert not told("young", 0.2, 9.0)
    assert not told("done", 1.0, 9.0)
    assert told("beaten", 0.5, 1.2)
    assert told("dear and beaten", 0.6, 1.2, cost=3.0)
    assert not told("early", 0.4, 1.2)  # nobody was better when as far
    assert set(stopper.stopped) == {"beaten", "dear and beaten"}
    assert "cheap costs no more" in stopper.stopped["beaten"]


# -- whole sweeps ------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_the_front_as_table_and_plot(tmp_path: Path) -> None:
    report = run(tmp_path, tmp_path / "sweep", stop_early=False)
    rows = by_changes(report)
    assert {key for key, row in rows.items() if row["front"]} == {(0.5, "obs"), (0.9, "obs")}
    assert rows[0.9, "obs"]["ms"] == pytest.approx(9.0)
    assert rows[0.9, "obs"]["map50"] == pytest.approx(0.86)
    assert {row["name"] for row in report["rows"] if not row["changes"]} == {"original at 64", "original+int8 at 64"}
    text = (tmp_path / "sweep/report.md").read_text()
    assert text.count("| yes |") == sum(row["front"] for row in report["rows"])
    svg = (tmp_path / "sweep/front.svg").read_text()
    assert svg.startswith("<svg")
    assert "var(" not in svg
    assert "0.9, obs" in svg


def test_trials_are_ordinary_runs(tmp_path: Path) -> None:
    report = run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.6]})
    folder = tmp_path / "sweep" / by_changes(report)[0.6,]["run"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("artifact.json")}
    recipe = finished_run.recipe(tmp_path, prune={"flops": 0.6}, benchmark={"runs": 3})
    assert optimize(recipe, out=folder, stages=sweep_fakes.stages()).finished
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("artifact.json")} == before  # nothing had to be made


def test_what_trials_share_is_made_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SWEEP_CALLS", str(tmp_path / "calls"))
    run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.5, 0.7]})
    calls = [line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines()]
    quantized = [Path(place).name for what, place in calls if what == "quantized"]
    assert (quantized.count("original"), quantized.count("pruned")) == (1, 2)


def test_a_beaten_trial_is_stopped_and_stays_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SWEEP_CALLS", str(tmp_path / "calls"))
    report = run(tmp_path, tmp_path / "sweep", recipe={"seed": 1})
    stopped = [row for row in report["rows"] if row["state"].startswith("stopped")]
    assert stopped
    assert all(row["changes"]["prune.method"] == "l1" and row["ms"] is None for row in stopped)
    assert {key for key, row in by_changes(report).items() if row["front"]} == {(f, "obs") for f in (0.5, 0.9)}
    calls = (tmp_path / "calls").read_text()
    again = run(tmp_path, tmp_path / "sweep", recipe={"seed": 1})
    assert again["rows"] == report["rows"]
    assert (tmp_path / "calls").read_text() == calls  # nothing was done again


def test_more_values_go_on_in_the_same_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SWEEP_CALLS", str(tmp_path / "calls"))
    run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.5, 0.7]})
    before = (tmp_path / "calls").read_text().count("recovered")
    report = run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.5, 0.6, 0.7]})
    assert len(by_changes(report)) == 3
    assert (tmp_path / "calls").read_text().count("recovered") == before + 1


def test_one_trial_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    def stages() -> Stages:
        from dataclasses import replace

        whole = sweep_fakes.stages()

        def prune(base: Any, config: Any, *, out: Path) -> Any:
            if config.flops == 0.5:
                raise BoundsError("no network can be that small", got=0.5)
            return whole.prune(base, config, out=out)

        return replace(whole, prune=prune)

    report = run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.5, 0.7]}, stages)
    rows = by_changes(report)
    assert rows[0.5,]["state"].startswith("failed: no network can be that small")
    assert rows[0.7,]["front"]
    assert by_changes(run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.5, 0.7]}))[0.5,]["front"]  # mended


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    data = finished_run.recipe(tmp_path).data
    for recipe, space, error in (
        ({"skip": ("benchmark",)}, None, ConfigError),
        ({"data": None, "images": tmp_path}, None, ConfigError),
        ({"data": tmp_path / "no.yaml"}, None, DataError),
        ({}, {"prune.flops": [1.5], "prune.params": [1.5]}, BoundsError),
        ({}, {"recover.teacher": [str(tmp_path / "no.pt")]}, CheckpointError),
        ({}, {}, ConfigError),
    ):
        with pytest.raises(error):
            run(tmp_path, out, space, recipe=recipe)
    assert not out.exists()
    (out / "thesis").mkdir(parents=True)
    with pytest.raises(RunDirError, match="holds no sweep"):
        run(tmp_path, out)
    run(tmp_path, tmp_path / "first", {"prune.flops": [0.6]})
    assert data is not None
    (data.parent / "labels/train/00.txt").write_text("")
    with pytest.raises(RunDirError, match=r"(?s)another sweep.*data differ"):
        run(tmp_path, tmp_path / "first", {"prune.flops": [0.6]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "something to vary"),
        (["--flops", "0.5,,0.6"], "empty"),
        (["--flops", "much"], "flops"),
        (["--vary", "recover.lr"], "--vary"),
        (["--vary", "recover.nonsense=1,2"], "no setting"),
        (["--flops", "0.5", "--workers", "0"], "--workers"),
        (["--flops", "0.5", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_bad_options(options: list[str], words: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("ray")
    assert cli.run(["sweep", "x.pt", "--out", str(tmp_path / "o"), *options]) == 2
    assert words in capsys.readouterr().err


_MEASURES = """
import os, sys, time
from hawkeye.scale.sweep import alone_on_this_machine
with alone_on_this_machine():
    if len(sys.argv) > 1 and os.fork() == 0:  # as a worker that loads pictures
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60 if len(sys.argv) > 1 else 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_sweeps_never_measure_at_once_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MEASURES]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    with subprocess.Popen([*command, "long"], start_new_session=True, **options) as first:
        try:
            assert first.stdout is not None and int(first.stdout.readline()) == first.pid
            with subprocess.Popen(command, **options) as second:
                assert second.stdout is not None
                assert not select.select([second.stdout], [], [], 3.0)[0], "it waits"
                first.kill()  # its fork lives on
                assert int(second.stdout.readline()) == second.pid
        finally:
            os.killpg(first.pid, signal.SIGKILL)


def test_the_head_names_what_is_varied(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "sweep", {"prune.flops": [0.6]})
    head = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert head["space"] == {"prune.flops": ["0.6"]}
    assert (tmp_path / "sweep/logs").is_dir()
