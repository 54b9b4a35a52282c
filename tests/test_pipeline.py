"""The order of the stages, going on after a kill, gates, and every mistake in the input told before work begins."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hawkeye.artifact import RECORD, Artifact, write_bytes
from hawkeye.config import EvaluateConfig, PruneConfig, Recipe
from hawkeye.demo import Steps, demo
from hawkeye.errors import BoundsError, CheckpointError, ConfigError, DataError, InputError, RunDirError, StorageError
from hawkeye.gates import gates_passed
from hawkeye.pipeline import STAGES, RunResult, Stages, optimize
from hawkeye.plan import make
from hawkeye.rundir import check_space, open_run
from pipeline_fakes import Bench, Killed


def work(stage: str, *names: str) -> list[str]:
    return [f"{stage} {name}" for name in names]


ALL = [
    *work("original", "original"), *work("prune", "pruned"), *work("recover", "pruned"),
    *work("export", "original", "pruned"), *work("quantize", "original+int8", "pruned+int8"),
    *work("evaluate", *(f"{n} {r}" for n in ("original", "pruned")
                        for r in ("openvino-f32", "onnxruntime", "pytorch-fp32"))),
    *work("evaluate", "original+int8 openvino-int8", "pruned+int8 openvino-int8"),
    "benchmark original pruned original+int8 pruned+int8", "report",
]  # fmt: skip


def test_every_stage_works_once_in_order_and_never_again(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    result = optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ALL
    assert (result.passed, result.finished, bench.drawn) == (True, True, ("original", "pruned+int8"))
    bench.worked.clear()
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ["report"]


def test_other_runtimes_are_measured_where_they_are_asked_for(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    recipe = project().with_(evaluate=EvaluateConfig(also=()))
    optimize(recipe, out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == [line for line in ALL if not line.endswith(("onnxruntime", "pytorch-fp32"))]
    steps = make(recipe, out=tmp_path / "other").steps
    rows = (("original", "f32"), ("pruned", "f32"), ("original+int8", "int8"), ("pruned+int8", "int8"))
    assert [s.name for s in steps if s.stage == "evaluate"] == [f"{row} openvino-{how}" for row, how in rows]


@pytest.mark.parametrize("where", [s for s in ALL if not s.startswith(("benchmark", "report", "evaluate"))])
def test_a_killed_run_goes_on_where_it_was(project: Any, tmp_path: Path, where: str) -> None:
    bench = Bench(die_in=where)
    with pytest.raises(Killed):
        optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ALL[: ALL.index(where) + 1]
    bench.worked.clear()
    bench.die_in = None
    assert optimize(project(), out=tmp_path / "run", stages=bench.stages()).passed
    assert bench.worked == ALL[ALL.index(where) :]


def test_a_kill_between_two_evaluations_keeps_the_first(project: Any, tmp_path: Path) -> None:
    bench = Bench(die_in="evaluate pruned-openvino-f32")
    with pytest.raises(Killed):
        optimize(project(), out=tmp_path / "run", stages=bench.stages())
    bench.die_in = None
    bench.worked.clear()
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ALL[ALL.index("evaluate pruned openvino-f32") :]


def test_a_changed_setting_redoes_its_stage_and_what_follows(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    bench.worked.clear()
    recipe = project()
    optimize(recipe.with_(recover=recipe.recover.with_(budget="5m")), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == [
        *work("recover", "pruned"), *work("export", "pruned"), *work("quantize", "pruned+int8"),
        *work("evaluate", "pruned openvino-f32", "pruned onnxruntime", "pruned pytorch-fp32",
              "pruned+int8 openvino-int8"),
        "benchmark original pruned original+int8 pruned+int8", "report",
    ]  # fmt: skip


def test_damaged_files_and_records_are_made_again(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    bench.worked.clear()
    (tmp_path / "run" / "2-recover" / "pruned.pytorch").write_text("damaged")
    (tmp_path / "run" / "records" / "latency.json").write_text("{")
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ["recover pruned", "benchmark original pruned original+int8 pruned+int8", "report"]


def test_until_stops_and_the_same_command_without_it_goes_on(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    result = optimize(project(), out=tmp_path / "run", until="recover", stages=bench.stages())
    assert (result.finished, result.passed, result.report) == (False, False, {})
    assert bench.worked == ALL[:3]
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ALL


def test_skip_recover_exports_the_pruned_one_as_it_is(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    optimize(project(), out=tmp_path / "run", skip=["recover"], stages=bench.stages())
    assert bench.worked == [line for line in ALL if line != "recover pruned"]
    pruned, exported = (Artifact.load(tmp_path / "run" / place) for place in ("1-prune", "3-export/pruned"))
    assert exported.parent_sha256 == pruned.sha256


def test_skip_prune_compresses_by_int8_alone_even_with_a_bound_of_one(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    recipe = project(prune=PruneConfig(flops=1.0))
    assert optimize(recipe, out=tmp_path / "run", skip=["prune"], stages=bench.stages()).passed
    assert not [line for line in bench.worked if "pruned" in line]
    assert bench.drawn == ("original", "original+int8")
    with pytest.raises(RunDirError, match="--skip prune"):
        optimize(project(), out=tmp_path / "run", stages=bench.stages())


def test_a_missed_gate_still_writes_everything(project: Any, tmp_path: Path) -> None:
    bench = Bench(drop=0.03)
    result = optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert (result.passed, result.finished) == (False, True)
    assert bench.worked == ALL


@pytest.mark.parametrize(
    ("gates", "labels", "passed"),
    [
        ({"max_drop": True}, True, True),
        ({"max_drop": None}, True, False),  # not judged must not pass silently
        ({}, True, False),  # nor must a gate that is not there
        ({"max_drop": None}, False, True),  # without labels there is no such gate
        ({"max_drop": None, "flops": False}, False, False),
        ({"max_drop": True, "flops": False}, True, False),
    ],
)
def test_gates(gates: dict[str, Any], labels: bool, passed: bool) -> None:
    table = {"gates": {name: {"passed": value} for name, value in gates.items()}}
    assert gates_passed(table, labels=labels) is passed


def test_without_labels_nothing_is_evaluated_and_the_user_is_told(project: Any, tmp_path: Path, capsys: Any) -> None:
    bench = Bench()
    recipe = project(data=None, images=tmp_path / "loose")
    assert optimize(recipe, out=tmp_path / "run", stages=bench.stages()).passed
    assert not [line for line in bench.worked if line.startswith("evaluate")]
    assert "accuracy is not measured" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "--seed differs"),
        ({"imgsz": 96}, "--imgsz differs"),
        ({"model": "other.pt"}, "MODEL differs"),
        ({"images": "loose"}, "--images differs"),
        ({"data": None, "images": "loose"}, "--data differs"),
    ],
)
def test_a_folder_of_another_run_is_refused_untouched(
    project: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    write_bytes(tmp_path / "other.pt", b"other weights")
    optimize(project(), out=tmp_path / "run", until="original", stages=Bench().stages())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    changes = {key: tmp_path / value if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(RunDirError, match=words):
        optimize(project(**changes), out=tmp_path / "run", stages=Bench().stages())
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_the_same_data_in_another_place_is_the_same_run(project: Any, tmp_path: Path) -> None:
    bench = Bench()
    optimize(project(), out=tmp_path / "run", stages=bench.stages())
    (tmp_path / "d").rename(tmp_path / "moved")
    bench.worked.clear()
    optimize(project(data=tmp_path / "moved" / "data.yaml"), out=tmp_path / "run", stages=bench.stages())
    assert bench.worked == ["report"]


def test_a_run_folder_that_is_none_is_refused(project: Any, tmp_path: Path) -> None:
    write_bytes(tmp_path / "busy" / "thesis.txt", b"text")
    write_bytes(tmp_path / "odd" / "run.json", b"{")
    for name, words in (("busy", "thesis.txt"), ("odd", "cannot be read"), ("model.pt", "not a folder")):
        with pytest.raises(RunDirError, match=words):
            optimize(project(), out=tmp_path / name, stages=Bench().stages())
    assert sorted(p.name for p in (tmp_path / "busy").iterdir()) == ["thesis.txt"]


def test_two_processes_in_one_folder_are_refused(project: Any, tmp_path: Path) -> None:
    recipe, bench = project(), Bench()
    program = ("import sys, pathlib, hawkeye.rundir as rundir\n"
               "with rundir.locked(pathlib.Path(sys.argv[1])): print('in', flush=True); input()")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(RunDirError, match="in use"):
            optimize(recipe, out=tmp_path / "run", stages=bench.stages())
        other.kill()
    assert optimize(recipe, out=tmp_path / "run", stages=bench.stages()).finished  # a dead one's lock is no lock


def test_an_interrupted_first_write_does_not_lock_the_folder(project: Any, tmp_path: Path) -> None:
    write_bytes(tmp_path / "run" / ".run.json.abc", b"{")
    assert open_run(tmp_path / "run", project()).root == tmp_path / "run"


def _spoil(kind: str, root: Path) -> None:
    """Break one thing in the project."""
    d = root / "d"
    if kind == "labels outside":
        write_bytes(d / "labels" / "train" / "0.txt", b"0 1.5 0.5 0.2 0.2\n")
    elif kind == "class out of range":
        write_bytes(d / "labels" / "val" / "0.txt", b"7 0.5 0.5 0.2 0.2\n")
    elif kind == "missing path":
        (d / "data.yaml").write_text("train: images/nope\nval: images/val\nnames: [ball, box]\n")
    elif kind == "no val":
        (d / "data.yaml").write_text("train: images/train\nnames: [ball, box]\n")
    elif kind == "wrong count":
        (d / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 3\nnames: [ball, box]\n")
    elif kind == "other names":
        (d / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [ball, cat]\n")
    elif kind == "more names":
        (d / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [ball, box, cat]\n")
    elif kind == "unreadable":
        write_bytes(d / "images" / "train" / "0.png", b"no picture")
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("labels outside", r"outside the picture"),
        ("class out of range", r"class out of range"),
        ("missing path", r"does not exist"),
        ("no val", r"no 'val' pictures"),
        ("wrong count", r"nc: 3"),
        ("other names", r"class 1 is 'cat'[\s\S]*class 1 is 'box'"),
        ("more names", r"3 classes[\s\S]*2 classes"),
        ("unreadable", r"1 of 5"),
    ],
)
def test_bad_data_is_told_before_anything_is_written(project: Any, tmp_path: Path, kind: str, words: str) -> None:
    _spoil(kind, tmp_path)
    with pytest.raises(DataError, match=words):
        optimize(project(), out=tmp_path / "run", stages=Bench().stages())
    assert not (tmp_path / "run").exists()


def test_a_few_unreadable_pictures_are_counted(project: Any, tmp_path: Path, capsys: Any) -> None:
    picture = (tmp_path / "d" / "images" / "train" / "1.png").read_bytes()
    for i in range(10, 20):
        write_bytes(tmp_path / "d" / "images" / "train" / f"{i}.png", picture)
    _spoil("unreadable", tmp_path)
    optimize(project(), out=tmp_path / "run", until="original", stages=Bench().stages())
    assert "1 of 15 pictures cannot be read" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "options", "error", "words"),
    [
        ({"prune": PruneConfig(flops=1.0)}, {}, BoundsError, "--skip prune"),
        ({"prune": PruneConfig(params=1.2)}, {}, BoundsError, "--params"),
        ({"model": None}, {}, ConfigError, "no model"),
        ({"model": Path("nowhere.pt")}, {}, CheckpointError, "nowhere.pt"),
        ({"data": None}, {}, DataError, "neither --data nor --images"),
        ({"data": Path("nowhere.yaml")}, {}, DataError, "nowhere.yaml"),
        ({"images": Path("nowhere")}, {}, DataError, "nowhere"),
        ({}, {"until": "lunch"}, ConfigError, "lunch"),
        ({}, {"until": "prune", "skip": ["prune"]}, ConfigError, "--until"),
        ({}, {"skip": ["report"]}, ConfigError, "report"),
    ],
)
def test_bad_settings(project: Any, tmp_path: Path, changes: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        optimize(project(**changes), out=tmp_path / "run", stages=Bench().stages(), **options)
    assert isinstance(caught.value, InputError)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_none_leaves_nothing_behind(project: Any, tmp_path: Path) -> None:
    def refuse(path: Path) -> tuple[str, ...]:
        raise CheckpointError("truncated")

    with pytest.raises(CheckpointError):
        optimize(project(), out=tmp_path / "run", stages=replace(Bench().stages(), class_names=refuse))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_is_told_and_keeps_no_half_stage(project: Any, tmp_path: Path) -> None:
    def full(artifact: Artifact, config: Any, *, out: Path) -> Artifact:
        write_bytes(out / "half.pt", b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        optimize(project(), out=tmp_path / "run", stages=replace(Bench().stages(), prune=full))
    assert not (tmp_path / "run" / "1-prune" / RECORD).exists()


def test_too_little_room_is_told_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="GB free"):
        check_space(tmp_path / "new" / "run", need=10**18)


def test_demo_keeps_what_is_finished_and_uses_the_users_own(project: Any, tmp_path: Path) -> None:
    calls: list[Any] = []

    def draw(out: Path, **kwargs: Any) -> Path:
        calls.append("draw")
        return tmp_path / "d" / "data.yaml"

    def train(data: Path, *, imgsz: int, budget: float, out: Path) -> Path:
        calls.append(("train", imgsz, budget))
        write_bytes(out / "weights" / "best.pt", b"trained")
        return out / "weights" / "best.pt"

    def run(recipe: Recipe, *, out: Path) -> RunResult:
        calls.append((recipe.model.name if recipe.model else None, recipe.imgsz, recipe.gates.max_drop))
        return RunResult(out, True, {}, True)

    steps = Steps(draw=draw, train=train, optimize=run)
    for _ in range(2):
        demo(out=tmp_path / "demo", train_budget="2m", steps=steps)
    assert calls == ["draw", ("train", 320, 120.0), ("best.pt", 320, 5.0), "draw", ("best.pt", 320, 5.0)]
    calls.clear()
    demo(out=tmp_path / "mine", model=tmp_path / "model.pt", data=tmp_path / "d" / "data.yaml", steps=steps)
    assert calls == [("model.pt", 640, 1.5)]
    with pytest.raises(ConfigError, match="--data"):
        demo(out=tmp_path / "mine", model=tmp_path / "model.pt", steps=steps)
    with pytest.raises(ConfigError, match="--budget"):
        demo(out=tmp_path / "mine", train_budget="2m", budget="soon", steps=steps)


def test_the_plan_names_every_stage() -> None:
    assert set(STAGES) < {*Stages.__dataclass_fields__}


def test_latency_is_forecast_once_before_training(project: Any, tmp_path: Path) -> None:
    bench = Bench(die_in="recover pruned")
    with pytest.raises(Killed):
        optimize(project(), out=tmp_path / "run", stages=bench.stages())
    assert bench.forecasts == [("original", "pruned")]
    again = Bench()
    optimize(project(), out=tmp_path / "run", stages=again.stages())
    assert again.forecasts == [("original", "pruned")]  # it goes on with training, and says what for
    optimize(project(), out=tmp_path / "run", stages=(done := Bench()).stages())
    optimize(project(), out=tmp_path / "bare", skip=["recover"], stages=(bare := Bench()).stages())
    assert (done.forecasts, bare.forecasts) == ([], [])


@pytest.mark.parametrize(
    ("forecast", "floor", "stops"),
    [
        ({"before": 0.5, "after": 0.01}, 0.05, True),
        ({"before": 0.5, "after": 0.03}, 0.05, False),
        ({"before": 0.5, "after": 0.0}, 0.0, False),  # as asked
        ({"before": 0.0, "after": 0.0}, 0.05, False),  # the original finds nothing: nothing is known
        ({"before": None, "after": None}, 0.05, False),
    ],
)
def test_a_hopeless_forecast_ends_the_run_before_training(
    project: Any, tmp_path: Path, forecast: Any, floor: float, stops: bool
) -> None:
    bench, recipe = Bench(), project()
    recipe = recipe.with_(prune=recipe.prune.with_(floor=floor))
    known = {"forecast": forecast, "flops_kept": 0.4, "params_kept": 0.5}
    stages = bench.stages()
    pruned = stages.prune

    def prune(*arguments: Any, **options: Any) -> Artifact:
        made = pruned(*arguments, **options)
        told = made.model_copy(update={"details": known})
        told._root = made.root
        return told

    stages = replace(stages, prune=prune)
    if not stops:
        assert optimize(recipe, out=tmp_path / "run", until="recover", stages=stages).finished is False
        assert "recover pruned" in bench.worked
        return
    with pytest.raises(BoundsError, match=r"hopeless(.|\n)*--flops 0.70 --params 0.75"):
        optimize(recipe, out=tmp_path / "run", stages=stages)
    timed = recipe.with_(prune=recipe.prune.with_(flops=1.0, params=1.0, latency=0.3))
    known["latency"] = {"kept": 0.3}
    with pytest.raises(BoundsError, match=r"hopeless(.|\n)*such as --latency 0.65;"):
        optimize(timed, out=tmp_path / "timed", stages=stages)
    of_fp32 = timed.with_(prune=timed.prune.with_(latency_of="fp32"))  # which INT8 has a part in
    with pytest.raises(BoundsError, match=r"hopeless(.|\n)*by a larger --latency;"):
        optimize(of_fp32, out=tmp_path / "of-fp32", stages=stages)
    assert "recover pruned" not in bench.worked
    optimize(recipe, out=tmp_path / "run", skip=["recover"], stages=stages)  # nothing is trained, so nothing is lost
