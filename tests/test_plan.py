"""`hawkeye plan`: it says what `optimize` then does, on what its forecast rests, and whether anything has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import finished_run
from hawkeye.artifact import Artifact, write_bytes, write_json
from hawkeye.cli import run as cli
from hawkeye.config import Recipe
from hawkeye.errors import BoundsError, ConfigError, DataError
from hawkeye.pipeline import optimize
from hawkeye.plan import Plan, make
from hawkeye.records import AccuracyRecord, LatencyRecord
from hawkeye.release import release, rollback

pytest.importorskip("matplotlib", reason="the report needs the [report] extra")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A folder of its own with data, checkpoint, and a finished run `run`."""
    place = tmp_path_factory.mktemp("plan")
    shutil.copytree(base, place, dirs_exist_ok=True)
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    finished_run.make(place)
    return place


def todo(plan: Plan, what: str = "run") -> list[str]:
    return [f"{s.stage} {s.name}".strip() for s in plan.steps if s.todo == what]


def plan_of(folder: Path, out: str = "run", **changes: Any) -> Plan:
    return make(finished_run.recipe(folder, **changes), out=folder / out)


def worked(folder: Path, recipe: Recipe, out: str = "run") -> list[str]:
    """What `optimize` really does: the stages whose records are new."""

    def stamps() -> dict[Path, int]:
        places = [*(folder / out).rglob("artifact.json"), *(folder / out).glob("records/accuracy/*-openvino-*.json")]
        return {path: path.stat().st_mtime_ns for path in places}

    before = stamps()
    optimize(recipe, out=folder / out, stages=finished_run.stages())
    found = []
    for path, stamp in stamps().items():
        if before.get(path) == stamp:
            continue
        if path.name == "artifact.json":
            artifact = Artifact.load(path.parent)
            found.append(f"{artifact.stage} {artifact.name}")
        else:
            record = AccuracyRecord.load(path)
            found.append(f"evaluate {record.name} {record.runtime}")
    return found


def of_openvino(steps: list[str]) -> set[str]:
    """Without what the stand-ins copy, and what is made anew each time."""
    return {s for s in steps if "pytorch" not in s and "onnx" not in s and s not in ("report", "pictures", "benchmark")}


def test_a_finished_run_has_nothing_to_do(folder: Path) -> None:
    plan = plan_of(folder)
    assert todo(plan) == ["pictures", "report"]
    assert plan.changes == () and plan.seconds == 0 and plan.unknown == ()


CHANGES = [
    pytest.param({"recover": {"budget": "5m"}}, id="a setting of one stage"),
    pytest.param({"prune": {"flops": 0.6}}, id="a setting of an early stage"),
    pytest.param({"quantize": {"samples": 11}}, id="a setting of a late stage"),
    pytest.param({"evaluate": {"conf": 0.01}}, id="only the evaluator"),
    pytest.param({"gates": {"max_drop": 9.0}}, id="a gate changes no model"),
]


@pytest.mark.parametrize("changes", CHANGES)
def test_the_plan_is_what_the_run_then_does(folder: Path, changes: dict[str, Any]) -> None:
    recipe = finished_run.recipe(folder, **changes)
    planned = make(recipe, out=folder / "run")
    assert of_openvino(todo(planned)) == set(worked(folder, recipe))
    assert of_openvino(todo(make(recipe, out=folder / "run"))) == set(), "and afterwards nothing is left"


def test_a_damaged_file_is_planned_to_be_made_again(folder: Path) -> None:
    write_bytes(folder / "run" / "2-recover" / "pruned.pt", b"damaged")
    plan = plan_of(folder)
    assert todo(plan)[:1] == ["recover pruned"] and "benchmark" in todo(plan)
    assert {"export original", "prune pruned", "evaluate original openvino-f32"} <= set(todo(plan, "reuse"))
    assert plan.changes and "recover pruned" in plan.changes


def test_an_unfinished_run_goes_on(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "4-quantize" / "pruned")
    (folder / "run" / "records" / "latency.json").unlink()
    assert todo(plan_of(folder)) == ["quantize pruned+int8", "evaluate pruned+int8 openvino-int8", "benchmark",
                                     "pictures", "report"]  # fmt: skip


def test_a_new_folder_runs_everything_and_forecasts_from_its_neighbours(folder: Path) -> None:
    place = folder / "run" / "1-prune" / "artifact.json"
    write_json(place, {**json.loads(place.read_text()), "seconds": 77.0})
    path = folder / "run" / "records" / "accuracy" / "pruned-openvino-f32.json"
    record = AccuracyRecord.load(path)
    record.model_copy(update={"seconds": 6.0, "images": 3}).save(path)  # 2 s a picture, and there are 12
    plan = plan_of(folder, "next", benchmark={"runs": 120}, recover={"budget": "30m"})
    steps = {f"{s.stage} {s.name}".strip(): s for s in plan.steps}
    assert not todo(plan, "reuse") and plan.changes is None
    assert (steps["prune pruned"].seconds, steps["prune pruned"].basis) == (77.0, "run on this processor")
    assert steps["evaluate pruned openvino-f32"].seconds == 24.0
    assert (steps["recover pruned"].seconds, steps["recover pruned"].basis) == (1800.0, "the stated budget")
    assert steps["benchmark"].seconds == pytest.approx(6.0 / 60 * 120)
    assert plan.seconds == pytest.approx(sum(s.seconds or 0 for s in plan.steps)) and plan.unknown == ()


def test_a_forecast_names_another_processor_and_what_it_does_not_know(folder: Path) -> None:
    path = folder / "run" / "records" / "latency.json"
    record = LatencyRecord.load(path)
    record.model_copy(update={"environment": {**record.environment, "cpu": "Other 9000"}}).save(path)
    benchmark = next(s for s in plan_of(folder).steps if s.stage == "benchmark")
    assert benchmark.todo == "run" and "another processor, Other 9000" in benchmark.basis
    shutil.rmtree(folder / "run")
    plan = plan_of(folder, quantize={"mode": "ptq"})
    assert "prune pruned" in plan.unknown and "recover pruned" not in plan.unknown
    assert plan.seconds == 3600.0
    trained = next(s for s in plan_of(folder, quantize={"budget": "10m"}).steps if s.stage == "quantize")
    assert (trained.seconds, trained.basis) == (600.0, "the stated budget, which it may not need")
    fixed = plan_of(folder, recover={"steps": 10})
    assert "recover pruned" in fixed.unknown, "a number of steps says nothing about time"


def test_the_comparison_is_forecast_from_an_earlier_one(folder: Path) -> None:
    models = str(folder / "models")
    assert "compare" in plan_of(folder, store=models).unknown
    release(folder / "run", models)
    finished_run.make(folder, store=models)
    step = next(s for s in plan_of(folder, "next", store=models).steps if s.stage == "compare")
    assert step.basis == "run on this processor"
    assert step.seconds is not None and step.seconds > 6.0, "both measurements"


def test_a_stage_left_out_here_or_there_is_the_same_run(folder: Path) -> None:
    """--skip and the recipe's `skip` say the same, to the plan and to what is recorded."""
    recipe = finished_run.recipe(folder)
    optimize(recipe, out=folder / "int8", skip=["prune", "pictures"], stages=finished_run.stages())
    release(folder / "int8", str(folder / "models"))
    other = finished_run.recipe(folder, skip=["pictures", "prune"], store=str(folder / "models"))
    assert make(other, out=folder / "elsewhere").changes == ()


def test_skips_of_the_recipe_and_of_the_command(folder: Path) -> None:
    plan = plan_of(folder, "int8", skip=["prune", "benchmark"])
    assert not [s for s in plan.steps if "pruned" in s.name or s.stage in ("prune", "recover", "benchmark")]
    both = make(finished_run.recipe(folder, skip=["prune"]), out=folder / "x", skip=["pictures"])
    assert [s.stage for s in both.steps][-2:] == ["benchmark", "report"]
    assert [s.stage for s in make(finished_run.recipe(folder), out=folder / "x", until="prune").steps][-1] == "prune"


# --- changed or not


def test_a_machine_with_other_cores_measures_no_accuracy_again(folder: Path) -> None:
    assert not [step for step in todo(plan_of(folder, evaluate={"threads": 7})) if step.startswith("evaluate")]


def test_changed_data_and_a_changed_checkpoint(folder: Path) -> None:
    label = folder / "data" / "labels" / "train" / "00.txt"
    original = label.read_bytes()
    label.write_bytes(b"")
    assert plan_of(folder).changes == ("data",)
    label.write_bytes(original)
    assert plan_of(folder).changes == ()
    (folder / "model-0.0.pt").write_text("0.00")
    recipe = finished_run.recipe(folder)
    (folder / "model-0.0.pt").write_text("0.00")
    assert make(recipe, out=folder / "run").changes == ("model",)


def test_pinned_content(folder: Path) -> None:
    plan = plan_of(folder)
    pins = {"model_sha256": plan.identity["model"], "data_sha256": plan.identity["data"]}
    assert plan_of(folder, **pins).changes == ()
    recipe = finished_run.recipe(folder, **pins)
    assert optimize(recipe, out=folder / "run", stages=finished_run.stages()).finished
    (folder / "data" / "images" / "val" / "00.png").unlink()
    with pytest.raises(DataError, match="not what the recipe was written for"):
        plan_of(folder, **pins)
    with pytest.raises(DataError, match="data_sha256"):
        optimize(recipe, out=folder / "new", stages=finished_run.stages())
    assert not (folder / "new" / "run.json").exists()


def test_check_against_the_run_and_the_released_version(folder: Path, capsys: Any) -> None:
    models = str(folder / "models")
    recipe = folder / "recipe.toml"
    recipe.write_text(f'model = "{folder}/model-0.0.pt"\ndata = "{folder}/data/data.yaml"\nimgsz = 64\n')

    def check(out: str, *more: str) -> int:
        return cli(["plan", "--config", str(recipe), "--out", str(folder / out), "--store", models, "--check", *more])

    assert check("other") == 4, "there is nothing to compare with yet"
    assert "nothing: no run and no release yet" in capsys.readouterr().out
    assert check("run") == 0, "done here, and whether it was released is another question"
    release(folder / "run", models)
    assert check("other") == 0, "on a machine that never saw the run, the released version tells"
    assert "unchanged since the released version pruned-int8-" in capsys.readouterr().out
    assert check("other", "--budget", "5m") == 4
    assert "recover.budget (3600.0 → 300.0)" in capsys.readouterr().out
    (folder / "data" / "labels" / "train" / "00.txt").write_bytes(b"")
    assert check("other") == 4
    assert "the data's content" in capsys.readouterr().out
    assert check("run", "--json") == 4
    assert json.loads(capsys.readouterr().out)["changed"] is True


def test_a_rollback_stays_until_something_changes(folder: Path) -> None:
    """On a machine that never saw the runs; a pipeline that made the same again would undo the rollback."""
    models = str(folder / "models")

    def changes(budget: str) -> tuple[tuple[str, ...] | None, str]:
        plan = plan_of(folder, "other", store=models, recover={"budget": budget})
        return plan.changes, plan.compared

    for number, budget in enumerate(("1h", "2h", "3h")):
        finished_run.make(folder, f"run-{number}", recover={"budget": budget})
        version = release(folder / f"run-{number}", models, row=("original", "pruned", "pruned+int8")[number]).version
    assert changes("2h")[0], "an older version is no reason to make nothing"
    rollback(models)
    rollback(models)
    assert version is not None
    assert changes("3h") == ((), f"what was rolled back, version {version.id}")
    assert changes("2h")[0] == () and changes("1h")[0] == ()
    assert changes("4h")[0] == ("recover.budget (3600.0 → 14400.0)",), "told against what is released"


def test_the_command_tells_hashes_forecast_and_reasons(folder: Path, capsys: Any) -> None:
    arguments = ["plan", str(folder / "model-0.0.pt"), "--data", str(folder / "data" / "data.yaml"), "--imgsz", "64"]
    assert cli([*arguments, "--out", str(folder / "new"), "--budget", "20m"]) == 0
    text = capsys.readouterr().out
    assert "the stated budget" in text and 'model_sha256 = "' in text and "forecast: 20." in text
    assert not (folder / "new").exists()
    assert cli([*arguments, "--out", str(folder / "run"), "--data", "nowhere.yaml"]) == 2


def test_mistakes_are_told_as_the_run_would_tell_them(folder: Path) -> None:
    recipe = finished_run.recipe(folder)
    for changes, error in (
        ({"prune": {"flops": 1.0}}, BoundsError),
        ({"model": None}, ConfigError),
        ({"data": folder / "no.yaml"}, DataError),
        ({"gates": {"row": "pruned"}, "skip": ["prune"]}, ConfigError),
    ):
        with pytest.raises(error):
            make(finished_run.recipe(folder, **changes), out=folder / "x")
    with pytest.raises(ConfigError, match="--until"):
        make(recipe, out=folder / "x", until="lunch")


def test_no_torch_is_loaded(folder: Path) -> None:
    code = (
        "import sys\nfrom hawkeye.cli import run\n"
        f"run(['plan', {str(folder / 'model-0.0.pt')!r}, '--data', {str(folder / 'data' / 'data.yaml')!r}, "
        f"'--imgsz', '64', '--out', {str(folder / 'run')!r}])\n"
        "assert not {'torch', 'ultralytics', 'nncf', 'openvino'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reuse" in done.stdout


def test_plan_of_a_step_is_a_value() -> None:
    from hawkeye.plan import Step

    step = Step("prune", "pruned", "run", "why", None, "")
    assert Plan({}, (step, replace(step, seconds=2.0)), None, "").unknown == ("prune pruned",)
