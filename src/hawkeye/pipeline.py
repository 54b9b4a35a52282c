"""The ordered stages of one run, its gates, and going on after an interruption.

Every stage is a plain function that returns what is already finished; so a run that was killed anywhere goes on when
the same command is started again. The stages are a constructor argument: tests give their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hawkeye import __version__, environment
from hawkeye.artifact import RECORD, Artifact, storage_errors, write_bytes
from hawkeye.compare import LATENCY
from hawkeye.config import PruneConfig, Recipe
from hawkeye.data import Dataset, check_labels, list_images, load_dataset, read_image, readable, sample
from hawkeye.errors import BoundsError, CheckpointError, ConfigError, DataError, HawkeyeError
from hawkeye.gates import gates_passed, target
from hawkeye.lazy import lazy, load
from hawkeye.progress import say, told_in
from hawkeye.records import AccuracyRecord, LatencyRecord, RuntimeName
from hawkeye.rundir import RunDir, check_owner, check_space, locked, open_run
from hawkeye.store import open_store

STAGES = (
    "original", "prune", "recover", "export", "quantize", "evaluate", "benchmark", "compare", "pictures", "report",
)  # fmt: skip
SKIPPABLE = ("prune", "recover", "benchmark", "pictures")
_PICTURES = 6


def class_names(checkpoint: Path) -> tuple[str, ...]:
    """Class names of a detector checkpoint; reads it whole, so it also tells whether it can be used.

    Raises:
        CheckpointError: not a detector checkpoint, truncated, or of another task.
    """
    return tuple(load("hawkeye.compress.yolo").load_checkpoint(checkpoint).names)


def draw_pictures(pictures: Sequence[Path], before: Artifact, after: Artifact, *, out: Path) -> None:
    """Draw what two models find in the same pictures, as `<stem>-original.jpg` and `<stem>-compressed.jpg` in `out`."""
    from hawkeye.outputs import draw, encode_jpeg
    from hawkeye.runtime.detector import Detector

    for stale in out.glob("*.jpg"):
        stale.unlink()
    for artifact, word in ((before, "original"), (after, "compressed")):
        detector = Detector(artifact.root)
        for path in pictures:
            image = read_image(path)
            write_bytes(out / f"{path.stem}-{word}.jpg", encode_jpeg(draw(image, detector(image), detector.names)))


@dataclass(frozen=True)
class Stages:
    """What does the work: the public functions, or a test's."""

    class_names: Callable[[Path], tuple[str, ...]] = class_names
    original: Callable[..., Artifact] = field(default=lazy("hawkeye.compress.original", "import_original"))
    prune: Callable[..., Artifact] = field(default=lazy("hawkeye.compress.prune", "prune"))
    forecast: Callable[[Artifact, Artifact], object] = field(default=lazy("hawkeye.compress.latency", "forecast"))
    recover: Callable[..., Artifact] = field(default=lazy("hawkeye.compress.recover", "recover"))
    export: Callable[..., Artifact] = field(default=lazy("hawkeye.compress.export", "export"))
    quantize: Callable[..., Artifact] = field(default=lazy("hawkeye.compress.quantize", "quantize"))
    evaluate: Callable[..., AccuracyRecord] = field(default=lazy("hawkeye.evaluate", "evaluate"))
    benchmark: Callable[..., LatencyRecord] = field(default=lazy("hawkeye.benchmark", "benchmark"))
    pictures: Callable[..., object] = draw_pictures
    compare: Callable[..., None] = field(default=lazy("hawkeye.compare", "compare"))
    report: Callable[[Path], dict[str, Any]] = field(default=lazy("hawkeye.report", "report"))


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        out: the run's folder.
        passed: every gate was judged and passed; False while the run has not reached its report.
        report: content of report.json; empty where `until` ended the run before it.
        finished: whether the report was reached.
    """

    out: Path
    passed: bool
    report: dict[str, Any]
    finished: bool


def optimize(
    recipe: Recipe, *, out: Path, until: str | None = None, skip: Sequence[str] = (), stages: Stages | None = None
) -> RunResult:
    """Compress a trained detector and prove it: all stages in order, each one only where it is not done yet.

    Args:
        recipe: the run's whole description; `model` and one of `data` and `images` must be there.
        out: the run's folder; new, empty, or of the same run.
        until: end after this stage.
        skip: stages to leave out beside the recipe's: prune, recover, benchmark, pictures.
        stages: what does the work.

    Returns:
        The report and whether the gates passed. Without labels no accuracy is measured and no gate on it exists.

    Raises:
        InputError: the model, the data, a setting or the folder cannot be used; nothing has been written then.
        HawkeyeError: a stage failed; what was finished before it is kept.
    """
    stages = stages or Stages()
    plan = check(recipe, out=out, until=until, skip=skip, stages=stages)
    skip = (*recipe.skip, *skip)
    recipe = recipe.with_(skip=tuple(sorted(set(skip))))  # so that what is recorded is the whole description
    if recipe.data is None:
        say("no --data: accuracy is not measured, and there is no gate on it; give --data to have it judged")
    with storage_errors(out), locked(out), told_in(out):
        left_out = tuple(name for name in SKIPPABLE if name in skip)
        job = _Job(recipe, open_run(out, recipe, skip=left_out), stages, plan)
        for number, name in enumerate(plan, 1):
            say(f"[{number}/{len(plan)}] {name}")
            getattr(job, name)()
    if plan[-1] != "report":
        say(f"stopped after {plan[-1]}, as asked; start the same command without --until to go on")
    return RunResult(out, job.passed, job.table, plan[-1] == "report")


def make_plan(until: str | None, skip: Sequence[str], *, store: bool = False) -> tuple[str, ...]:
    """The stages to go through, in order; with a store, its released model is compared with.

    Raises:
        ConfigError: a name that is no stage, or that cannot be left out.
    """
    for name in skip:
        if name not in SKIPPABLE:
            raise ConfigError("--skip cannot leave this out", got=name, expected=", ".join(SKIPPABLE))
    # Without pruning there is no damage to recover from.
    left_out = {*skip, "recover"} if "prune" in skip else set(skip)
    if not store:
        left_out.add("compare")
    plan = tuple(name for name in STAGES if name not in left_out)
    if until is None:
        return plan
    if until not in plan:
        raise ConfigError("--until names no stage of this run", got=until, expected=", ".join(plan))
    return plan[: plan.index(until) + 1]


def check(recipe: Recipe, *, out: Path, until: str | None = None, skip: Sequence[str] = (),
          stages: Stages | None = None) -> tuple[str, ...]:  # fmt: skip
    """Tell every mistake in what `optimize` would be given, before hours of work, and before anything is written.

    Returns:
        The stages to go through.

    Raises:
        InputError: of the kind that fits.
    """
    stages = stages or Stages()
    plan = make_plan(until, (*recipe.skip, *skip), store=recipe.store is not None)
    check_space(out)
    check_owner(out)
    dataset = check_inputs(recipe, plan)
    assert recipe.model is not None  # check_inputs saw to it
    names = stages.class_names(recipe.model)
    if dataset is not None and dataset.names != names:
        check_names(dataset, names)
    return plan


def check_inputs(recipe: Recipe, plan: Sequence[str]) -> Dataset | None:
    """Everything that can be told of a recipe without torch and without its folder; returns the labelled data.

    Raises:
        InputError: of the kind that fits.
    """
    if recipe.model is None:
        raise ConfigError("no model", expected="the checkpoint (.pt) of a trained detector",
                          mend="hawkeye optimize MODEL ..., or `model` in the recipe")  # fmt: skip
    if not recipe.model.is_file():
        raise CheckpointError("no such checkpoint", got=recipe.model, expected="a .pt file of a trained detector")
    if "prune" in plan:
        check_bounds(recipe)
    teacher = recipe.recover.teacher
    if "recover" in plan and teacher is not None and not teacher.is_file():
        raise CheckpointError("no such teacher", got=teacher, expected="a .pt file of a trained detector")
    target(row_names(plan), recipe.gates.row)
    if recipe.store is not None:
        open_store(recipe.store).current()  # before hours of work, not after them
    return check_data(recipe)


def row_names(plan: Sequence[str]) -> tuple[str, ...]:
    """Rows of the table that a run makes."""
    return ("original", "original+int8", *(("pruned", "pruned+int8") if "prune" in plan else ()))


def check_bounds(recipe: Recipe) -> None:
    """Pruning needs a bound to reach.

    Raises:
        BoundsError: a bound of 1.0 or more, unless it is lifted by one on latency.
    """
    for option, value in recipe.prune.useless():
        raise BoundsError(f"{option} leaves nothing to prune", got=value, expected="a fraction below 1",
                          mend=f"{option} 0.7 keeps seven tenths; --skip prune compresses by INT8 alone")  # fmt: skip


def check_forecast(pruned: Artifact, config: PruneConfig) -> None:
    """Hours of training are not begun on a network that has lost nearly everything.

    Raises:
        BoundsError: what is left is below `floor`.
    """
    told = pruned.details.get("forecast") or {}
    before, after = told.get("before"), told.get("after")
    if not before or after >= config.floor * before:  # where the original finds nothing, nothing can be told
        return
    # Half way back to the original, by the bounds that were given.
    kept = {name: pruned.details[f"{name}_kept"] for name in ("flops", "params") if getattr(config, name) < 1}
    if "latency" in pruned.details and config.latency_of == "int8":
        kept["latency"] = pruned.details["latency"]["kept"]
    numbers = " ".join(f"--{name} {(1 + part) / 2:.2f}" for name, part in kept.items())
    advice = f"prune less, such as {numbers}" if kept else "prune less, by a larger --latency"
    if config.method != "obs":
        advice += ", or --method obs, which compensates for what it removes"
    raise BoundsError("the forecast is hopeless: pruning has left hardly anything to recover",
                      got=f"mAP@0.5 {after:.3f} of {before:.3f} on held-out training pictures, before training",
                      expected=f"at least {config.floor:.0%} of it",
                      mend=f"{advice}; prune.floor = 0 in a recipe trains anyway")  # fmt: skip


def check_data(recipe: Recipe) -> Dataset | None:
    """Read everything that will be needed of the data; None without labels.

    Raises:
        DataError: no pictures, too many unreadable ones, or labels that are none.
    """
    if recipe.data is None and recipe.images is None:
        raise DataError("no pictures to work on", got="neither --data nor --images",
                        expected="a data.yaml, a folder of unlabelled pictures, or both")  # fmt: skip
    groups: list[tuple[str, Sequence[Path]]] = []
    dataset = None
    if recipe.data is not None:
        dataset = load_dataset(recipe.data)
        groups = [("train", dataset.split("train"))]
        if recipe.evaluate.split != "train":
            groups.append((recipe.evaluate.split, dataset.split(recipe.evaluate.split)))
        check_labels(dataset)
    if recipe.images is not None:
        pictures = list_images(recipe.images)
        if not pictures:
            raise DataError("the folder holds no pictures", got=recipe.images, mend="name another --images")
        groups.append((str(recipe.images), pictures))
    for name, paths in groups:
        bad = readable(paths)[1]
        if bad:
            say(f"{name}: {len(bad)} of {len(paths)} pictures cannot be read and are left out, such as {bad[0]}")
    return dataset


def check_names(dataset: Dataset, names: tuple[str, ...]) -> None:
    """The data's classes must be the checkpoint's, in the same order: the pruned net keeps its outputs.

    Raises:
        DataError: they are not.
    """
    if dataset.names == names:
        return
    if len(dataset.names) != len(names):
        got, expected = f"{len(dataset.names)} classes", f"{len(names)} classes"
    else:
        at = next(i for i, (ours, theirs) in enumerate(zip(dataset.names, names, strict=True)) if ours != theirs)
        got, expected = f"class {at} is {dataset.names[at]!r}", f"class {at} is {names[at]!r}"
    raise DataError(f"the classes of {dataset.yaml} are not the checkpoint's", got=got, expected=expected,
                    mend="use the data.yaml that the model was trained with, or train it on this data")  # fmt: skip


class _Job:
    """One method per stage; each leaves in `made` and `int8` what the next ones need."""

    def __init__(self, recipe: Recipe, run: RunDir, stages: Stages, plan: tuple[str, ...]) -> None:
        self.recipe, self.run, self.stages, self.plan = recipe, run, stages, plan
        self.made: dict[str, Artifact] = {}  # "original" and "pruned" as PyTorch, then as exported
        self.int8: dict[str, Artifact] = {}
        self.table: dict[str, Any] = {}
        self.passed = False

    @property
    def models(self) -> list[Artifact]:
        """All rows of the table."""
        return [*self.made.values(), *self.int8.values()]

    def original(self) -> None:
        self.made["original"] = self.stages.original(self.recipe.model, imgsz=self.recipe.imgsz, out=self.run.original)

    def prune(self) -> None:
        config = self.recipe.stage(self.recipe.prune)
        self.made["pruned"] = self.stages.prune(self.made["original"], config, out=self.run.prune)
        if "recover" in self.plan:
            check_forecast(self.made["pruned"], config)
            if "latency" not in self.made["pruned"].details and not (self.run.recover / RECORD).is_file():
                self.stages.forecast(self.made["original"], self.made["pruned"])

    def recover(self) -> None:
        config, teacher = self.recipe.stage(self.recipe.recover), self.made["original"]
        if config.teacher is not None:
            teacher = self.stages.original(config.teacher, imgsz=self.recipe.imgsz, out=self.run.teacher)
        self.made["pruned"] = self.stages.recover(self.made["pruned"], config, teacher=teacher, out=self.run.recover)

    def export(self) -> None:
        config = self.recipe.stage(self.recipe.export)
        self.made = {name: self.stages.export(a, config, out=self.run.export(name)) for name, a in self.made.items()}

    def quantize(self) -> None:
        config = self.recipe.stage(self.recipe.quantize)
        self.int8 = {
            name: self.stages.quantize(a, config, out=self.run.quantize(name)) for name, a in self.made.items()
        }

    def evaluate(self) -> None:
        if self.recipe.data is None:
            say("not measured: there are no labels (--data)")
            return
        config = self.recipe.stage(self.recipe.evaluate)
        rows: list[tuple[Artifact, RuntimeName]] = []
        for artifact in self.made.values():
            rows += [(artifact, "openvino-f32"), *((artifact, runtime) for runtime in config.also)]
        rows += [(artifact, "openvino-int8") for artifact in self.int8.values()]
        for artifact, runtime in rows:
            record = self.stages.evaluate(artifact, config, runtime=runtime, out=self.run.accuracy)
            say(f"  {artifact.name} in {runtime}: mAP@0.5 {record.map50:.3f}, mAP@0.5:0.95 {record.map50_95:.3f}")

    def benchmark(self) -> None:
        config = self.recipe.stage(self.recipe.benchmark)
        if known_latency(self.run.latency, self.models, config.imgsz, config.runs, config.frame) is None:
            self.stages.benchmark(self.models, config, out=self.run.latency)

    def compare(self) -> None:
        assert self.recipe.store is not None  # or it were not in the plan
        name = target([a.name for a in self.models], self.recipe.gates.row)
        out, config = self.run.released, self.recipe.stage(self.recipe.benchmark)

        def evaluate(model: Artifact, runtime: RuntimeName) -> AccuracyRecord:
            # The released model may take another picture size: that is a part of what is compared.
            settings = self.recipe.stage(self.recipe.evaluate).with_(imgsz=None)
            return self.stages.evaluate(model, settings, runtime=runtime, out=out)

        def benchmark(models: Sequence[Artifact]) -> None:
            if known_latency(out / LATENCY, models, config.imgsz, config.runs, config.frame) is None:
                self.stages.benchmark(models, config, out=out / LATENCY)

        self.stages.compare(
            next(a for a in self.models if a.name == name),
            self.recipe.store,
            evaluate=evaluate if self.recipe.data is not None else None,
            benchmark=benchmark if "benchmark" in self.plan else None,
            out=out,
        )

    def pictures(self) -> None:
        if self.recipe.data is not None:
            paths: Sequence[Path] = load_dataset(self.recipe.data).split(self.recipe.evaluate.split)
        else:
            assert self.recipe.images is not None  # `check` saw to it
            paths = list_images(self.recipe.images)
        chosen = sample(readable(paths)[0], _PICTURES, self.recipe.seed)
        after = list(self.int8.values())[-1]  # pruned + INT8, or INT8 alone where nothing was pruned
        self.stages.pictures(chosen, self.made["original"], after, out=self.run.pictures)

    def report(self) -> None:
        self.table = self.stages.report(self.run.root)
        self.passed = gates_passed(self.table, labels=self.recipe.data is not None)


def known_latency(
    path: Path, models: Sequence[Artifact], imgsz: int | None, runs: int, frame: tuple[int, int]
) -> LatencyRecord | None:
    """The latencies of exactly these files on this machine, if they were measured before."""
    if not path.is_file():
        return None
    try:
        record = LatencyRecord.load(path)
    except HawkeyeError:  # damaged: then it is simply measured again
        return None
    made_by = record.environment.get("versions", {}).get("hawkeye"), record.environment.get("cpu")
    settings = (record.imgsz, record.frame_hw, *made_by)
    files = {artifact.name: {f.sha256 for f in artifact.files.values()} for artifact in models}
    rows = all(row.file_sha256 in files.get(row.name, ()) and len(row.network_ms) >= runs for row in record.rows)
    same = settings == (imgsz, frame, __version__, environment.cpu_model())
    return record if rows and same and {row.name for row in record.rows} == set(files) else None
