"""What `hawkeye optimize` would do: which stages run, which finished work is used again, and how long it will take.

Loads no torch: whether a stage is reused is told by the same keys that the stages themselves compute (`keys.py`). A
checkpoint's own content is not read beyond its hash, so a checkpoint of another kind is told by the run, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hawkeye import environment, keys
from hawkeye.artifact import RECORD, Artifact, file_sha256, reuse
from hawkeye.compare import LATENCY
from hawkeye.config import Recipe
from hawkeye.data import Dataset, content_digest
from hawkeye.errors import HawkeyeError
from hawkeye.evaluate import finished, record_settings
from hawkeye.pipeline import check_inputs, known_latency, make_plan
from hawkeye.records import AccuracyRecord, LatencyRecord, RuntimeName, load_all
from hawkeye.release import same_inputs
from hawkeye.rundir import RUN, RunDir, check_content, check_owner, identity
from hawkeye.store import open_store

Todo = Literal["reuse", "run"]


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Attributes:
        stage: of the pipeline.
        name: row of the table that it makes or measures; empty for what concerns all.
        todo: whether finished work is used again.
        why: in words.
        seconds: forecast; 0 for what is reused, None where nothing is known.
        basis: what the forecast rests on.
    """

    stage: str
    name: str
    todo: Todo
    why: str
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Plan:
    """Everything a run would do.

    Attributes:
        identity: content hashes of checkpoint and data, picture size, seed.
        steps: in order.
        changes: what differs from the finished run in the folder, or else from the released version of the store;
            empty where neither differs, None where there is nothing to compare with.
        compared: what `changes` is about.
    """

    identity: dict[str, Any]
    steps: tuple[Step, ...]
    changes: tuple[str, ...] | None
    compared: str

    @property
    def seconds(self) -> float:
        """Forecast of all steps that have one."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Steps without a forecast."""
        return tuple(f"{s.stage} {s.name}".strip() for s in self.steps if s.seconds is None)


def make(recipe: Recipe, *, out: Path, until: str | None = None, skip: Sequence[str] = ()) -> Plan:
    """Tell what `optimize` would do with the same arguments; nothing is written.

    Raises:
        InputError: as `optimize` would raise before its work.
    """
    skip = (*recipe.skip, *skip)
    stages = make_plan(until, skip, store=recipe.store is not None)
    recipe = recipe.with_(skip=tuple(sorted(set(skip))))
    dataset = check_inputs(recipe, stages)
    mine = identity(recipe, pruned="prune" in stages)
    check_content(recipe, mine)
    head = check_owner(out)
    same_run = head is None or head["identity"] == mine
    steps = tuple(_Planner(recipe, RunDir(out), stages, dataset, usable=head is not None and same_run).steps())
    changes, compared = _changes(recipe, out, head, mine, steps)
    return Plan(mine, steps, changes, compared)


def _changes(
    recipe: Recipe, out: Path, head: dict[str, Any] | None, mine: dict[str, Any], steps: Sequence[Step]
) -> tuple[tuple[str, ...] | None, str]:
    """What has changed since the work was done last; see `Plan`."""
    found: list[tuple[tuple[str, ...] | None, str]] = []
    if head is not None:
        differs = tuple(name for name in mine if head["identity"].get(name) != mine[name])
        todo = tuple(f"{s.stage} {s.name}".strip() for s in steps if s.todo == "run" and s.stage not in _CHEAP)
        found.append((differs or todo, f"the run in {out}"))
    if recipe.store is not None:
        opened = open_store(recipe.store)
        current = opened.current()
        if current is not None:
            # Of what was rolled back, too: to make and release it once more would undo the rollback.
            for name in dict.fromkeys((current.version, *opened.taken_back())):
                what = "the released version" if name == current.version else "what was rolled back, version"
                told = same_inputs(opened.version(name), mine, recipe.model_dump(mode="json"))
                found.append((tuple(told), f"{what} {name}"))
    # One being as it should is enough: a candidate that was rejected is not made again either.
    return min(found, key=lambda item: len(item[0] or ()), default=(None, "nothing: no run and no release yet"))


# They are made anew each time, or depend on what else the machine does.
_CHEAP = ("compare", "pictures", "report")


@dataclass
class _Planner:
    """Walks through the stages as the pipeline does, with artefacts that are there and None for those to be made."""

    recipe: Recipe
    run: RunDir
    stages: Sequence[str]
    dataset: Dataset | None
    usable: bool
    made: dict[str, Artifact | None] = field(default_factory=dict)

    def steps(self) -> Iterator[Step]:
        for stage in self.stages:
            # Stages without a method of their own are made anew each time.
            walk = getattr(self, f"_{stage}", None)
            yield from walk() if walk else self._small(stage)

    def _original(self) -> Iterator[Step]:
        assert self.recipe.model is not None  # check_inputs saw to it
        key = keys.original(self.recipe.model, self.recipe.imgsz)
        yield self._step("original", "original", self.run.original, key)

    def _prune(self) -> Iterator[Step]:
        base = self.made["original"]
        key = keys.prune(base.sha256, self.recipe.stage(self.recipe.prune))[-1] if base else None
        yield self._step("prune", "pruned", self.run.prune, key)

    def _recover(self) -> Iterator[Step]:
        source, teacher, config = self.made["pruned"], self.made["original"], self.recipe.stage(self.recipe.recover)
        if config.teacher is not None:
            teacher = reuse(self.run.teacher, keys.original(config.teacher, self.recipe.imgsz)) if self.usable else None
        key = keys.recover(source.sha256, teacher.sha256, config)[-1] if source and teacher else None
        stated = config.budget if config.steps is None else None
        yield self._step("recover", "pruned", self.run.recover, key, stated=stated)

    def _export(self) -> Iterator[Step]:
        config = self.recipe.stage(self.recipe.export)
        for name, source in list(self.made.items()):
            key = None
            if source:
                key = keys.export(file_sha256(source.path("pytorch")), name, self.recipe.imgsz, config)[-1]
            yield self._step("export", name, self.run.export(name), key)

    def _quantize(self) -> Iterator[Step]:
        config = self.recipe.stage(self.recipe.quantize)
        for name, source in list(self.made.items()):
            key = keys.quantize(source.sha256, config)[-1] if source else None
            # What `auto` will have to do is not known beforehand.
            limit = config.budget if config.mode != "ptq" and config.steps is None else None
            yield self._step("quantize", f"{name}+int8", self.run.quantize(name), key, limit=limit)

    def _evaluate(self) -> Iterator[Step]:
        if self.dataset is None:
            return
        config = self.recipe.stage(self.recipe.evaluate)
        pictures = keys.evaluation(self.dataset, config)
        content = content_digest(pictures)
        for name, artifact in self.made.items():
            runtimes: tuple[RuntimeName, ...] = ("openvino-f32", *config.also)
            for runtime in ("openvino-int8",) if name.endswith("+int8") else runtimes:
                done = artifact and finished(
                    self.run.accuracy, f"{name}-{runtime}",
                    record_settings(artifact, config, runtime, content),
                )  # fmt: skip
                if done:
                    yield Step("evaluate", f"{name} {runtime}", "reuse", "measured on this very file", 0.0, "")
                    continue
                seconds, basis = self._earlier_accuracy(name, runtime, len(pictures))
                why = "not measured yet" if artifact else "its model is made anew"
                yield Step("evaluate", f"{name} {runtime}", "run", why, seconds, basis)

    def _benchmark(self) -> Iterator[Step]:
        config = self.recipe.stage(self.recipe.benchmark)
        models = [a for a in self.made.values() if a is not None]
        whole = len(models) == len(self.made)
        if whole and known_latency(self.run.latency, models, config.imgsz, config.runs, config.frame):
            yield Step("benchmark", "", "reuse", "measured on these very files and this processor", 0.0, "")
            return
        why = "not measured on these files and this processor yet" if whole else "a model is made anew"
        for place in self._earlier():
            record = _load_latency(place.latency)
            if record is not None:
                per_frame = record.seconds / max(1, max((len(r.network_ms) for r in record.rows), default=1))
                yield Step("benchmark", "", "run", why, per_frame * config.runs, _told(place, record.environment))
                return
        yield Step("benchmark", "", "run", why, None, "nothing like it was done before")

    def _small(self, stage: str) -> Iterator[Step]:
        """Stages that are made anew each time and take seconds."""
        yield Step(stage, "", "run", "made anew each time", 0.0, "")

    def _compare(self) -> Iterator[Step]:
        for place in self._earlier():
            latency = _load_latency(place.released / LATENCY)
            try:
                records = [AccuracyRecord.load(path) for path in place.released.glob("released*-*.json")]
            except HawkeyeError:
                continue
            if latency is not None or records:
                seconds = sum(r.seconds for r in records) + (latency.seconds if latency else 0.0)
                basis = _told(place, latency.environment if latency else records[0].environment)
                yield Step(
                    "compare", "", "run", "what was measured of the released model is used again", seconds, basis
                )
                return
        yield Step("compare", "", "run", "not done yet", None, "nothing like it was done before")

    def _step(self, stage: str, name: str, folder: Path, key: str | None, *, stated: float | None = None,
              limit: float | None = None) -> Step:  # fmt: skip
        done = reuse(folder, key) if key is not None and self.usable else None
        self.made[name] = done
        if done is not None:
            return Step(stage, name, "reuse", "same input, same settings", 0.0, "")
        if key is None:
            why = "what it starts from is made anew"
        elif self.usable and (folder / RECORD).is_file():
            why = "input, settings or version of Hawkeye have changed, or a file has"
        else:
            why = "not done yet"
        if stated is not None:
            return Step(stage, name, "run", why, stated, "the stated budget")
        seconds, basis = self._earlier_stage(folder)
        if seconds is None and limit is not None:
            seconds, basis = limit, "the stated budget, which it may not need"
        return Step(stage, name, "run", why, seconds, basis)

    def _earlier(self) -> Iterator[RunDir]:
        """Runs whose records tell how long things take: this folder, and then its neighbours, the newest first."""
        yield self.run
        parent = self.run.root.absolute().parent
        found = [p.parent for p in parent.glob(f"*/{RUN}") if p.parent != self.run.root.absolute()]
        yield from (RunDir(p) for p in sorted(found, key=lambda p: (p / RUN).stat().st_mtime, reverse=True))

    def _earlier_stage(self, folder: Path) -> tuple[float | None, str]:
        for place in self._earlier():
            try:
                done = Artifact.load(place.root / folder.relative_to(self.run.root))
            except HawkeyeError:
                continue
            return done.seconds, _told(place, done.environment)
        return None, "nothing like it was done before"

    def _earlier_accuracy(self, name: str, runtime: str, pictures: int) -> tuple[float | None, str]:
        for place in self._earlier():
            try:
                records = [r for r in load_all(AccuracyRecord, place.accuracy) if (r.name, r.runtime) == (name, runtime)]  # fmt: skip # noqa: E501
            except HawkeyeError:
                continue
            for record in records:
                per_picture = record.seconds / max(1, record.images)
                return per_picture * pictures, _told(place, record.environment)
        return None, "nothing like it was done before"


def _told(place: RunDir, machine: dict[str, Any]) -> str:
    cpu = machine.get("cpu")
    where = "this processor" if cpu == environment.cpu_model() else f"another processor, {cpu}"
    return f"{place.root.name} on {where}"


def _load_latency(path: Path) -> LatencyRecord | None:
    try:
        return LatencyRecord.load(path) if path.is_file() else None
    except HawkeyeError:
        return None
