"""A sweep: many ordinary runs that differ in a few settings, and the front of accuracy and latency that they come to.

    OUT/sweep.json           what is varied, and on which host latency is measured
       /trials/NAME/         an ordinary run of `hawkeye optimize`, to be looked at like any other
       /state/NAME.json      of a trial that was stopped early, and why
       /logs/NAME.log        what it said
       /report.json, report.md, front.svg

First all trials are made and their accuracy is measured, several at once where there is room. Then, one after another
and with nothing else at work, each is finished by the same pipeline on the target host: that is when latency is
measured. What is finished is told by the runs themselves, so a sweep can be killed anywhere and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hawkeye import environment, keys
from hawkeye.artifact import RECORD, Artifact, storage_errors, write_bytes, write_json
from hawkeye.config import Recipe
from hawkeye.errors import ConfigError, HawkeyeError, RunDirError
from hawkeye.pipeline import Stages, check_inputs, make_plan, optimize
from hawkeye.progress import progress, say, watched
from hawkeye.report_plots import alone, require
from hawkeye.report_plots import sweep as plot
from hawkeye.rundir import RUN, RunDir, identity, lock, locked
from hawkeye.scale.front import FrontStopper, front, markdown
from hawkeye.scale.search import Space, Trial, make_trials

HEAD, REPORT = "sweep.json", "report.json"
# Judge(group, cost, part, score) -> whether to stop. What a trial tells about itself while it trains.
Judge = Callable[[str, float, float, float], bool]


class StoppedError(HawkeyeError):
    """The trial was stopped early."""


@dataclass(frozen=True)
class Work:
    """What a machine must know to work on the trials; it goes to other processes.

    Attributes:
        out: the sweep's folder, the same on every machine.
        trials: by name.
        stages: makes what does the work; None takes the public functions.
    """

    out: Path
    trials: dict[str, Trial]
    stages: Callable[[], Stages] | None = None

    def make(self, name: str, judge: Judge) -> None:
        """Make a trial's models and measure their accuracy.

        Raises:
            StoppedError: `judge` said so.
            HawkeyeError: the run failed.
        """
        trial, folder = self.trials[name], self.out / "trials" / name
        stages = self.stages() if self.stages is not None else Stages()
        stages = replace(stages, forecast=lambda *_: None)  # nothing is timed beside other trials

        def watch(part: float, score: float) -> None:
            cost = float(Artifact.load(RunDir(folder).prune).macs)
            group = json.dumps([trial.recipe.imgsz, str(trial.recipe.recover.teacher)])
            if judge(group, cost, part, score):
                raise StoppedError(f"{name} was stopped early")

        with _told(self.out / "logs" / f"{name}.log"), watched(watch):
            optimize(trial.recipe, out=folder, until="original", stages=stages)
            _borrow(folder, trial.recipe, [p for p in (self.out / "trials").iterdir() if p != folder])
            optimize(trial.recipe, out=folder, until="evaluate", stages=stages)

    def measure(self, name: str) -> None:
        """Finish a trial: latency, and its report. Waits until no other sweep measures on this machine."""
        trial, folder = self.trials[name], self.out / "trials" / name
        stages = self.stages() if self.stages is not None else Stages()
        with _told(self.out / "logs" / f"{name}.log"), alone_on_this_machine():
            optimize(trial.recipe, out=folder, stages=stages)


class Workers(Protocol):
    """Where the trials are worked on.

    Attributes:
        host: name of the machine that latency is measured on.
    """

    host: str

    def make(self, work: Work, names: Sequence[str], stopper: FrontStopper | None) -> Iterator[tuple[str, str]]:
        """Make trials; gives name and outcome, "" where it went well."""
        ...

    def measure(self, work: Work, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Finish trials one after another on the target host; gives name and outcome, "" where it went well."""
        ...


class InProcess:
    """This process, one trial after another."""

    host = "this machine"

    def make(self, work: Work, names: Sequence[str], stopper: FrontStopper | None) -> Iterator[tuple[str, str]]:
        """See `Workers.make`."""
        for name in names:
            yield name, attempt(lambda name=name: work.make(name, judge_of(name, stopper)))  # type: ignore[misc]

    def measure(self, work: Work, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """See `Workers.measure`."""
        for name in names:
            yield name, attempt(lambda name=name: work.measure(name))  # type: ignore[misc]


def attempt(work: Callable[[], None]) -> str:
    """Do it; returns "" or the first line of what went wrong. One trial that cannot be made does not end a sweep."""
    try:
        work()
    except StoppedError:
        return "stopped"
    except HawkeyeError as error:
        return f"failed: {' '.join(str(error).split())}"
    return ""


def judge_of(name: str, stopper: FrontStopper | None) -> Judge:
    """The judge of one trial."""

    def judge(group: str, cost: float, part: float, score: float) -> bool:
        return stopper is not None and stopper.judge(name, group=group, cost=cost, part=part, score=score)

    return judge


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        out: its folder.
        report: content of report.json.
    """

    out: Path
    report: dict[str, Any]


def sweep(
    base: Recipe,
    space: Space,
    *,
    out: Path,
    workers: Workers,
    limit: int | None = None,
    stop_early: bool = True,
    stages: Callable[[], Stages] | None = None,
) -> SweepResult:
    """Try combinations of settings; started again, it goes on where it was.

    Args:
        base: the recipe that the trials change; it needs labelled data.
        space: values by setting; see `search.make_trials`.
        out: folder of the sweep.
        workers: where trials are worked on.
        limit: trials at most, chosen by the recipe's seed.
        stop_early: end trials that cannot come to the front; see `FrontStopper`.
        stages: makes what does the work, for tests.

    Raises:
        ConfigError, DataError, CheckpointError: the recipe or a value cannot be used; nothing has been written then.
        RunDirError: the folder holds another sweep, or something else.
    """
    require()
    if base.data is None:
        raise ConfigError("a sweep compares accuracy", got="no labelled data", mend="give --data")
    if "benchmark" in base.skip:
        raise ConfigError("a sweep compares latency", got="--skip benchmark", mend="leave that out")
    out = out.absolute()  # other processes have other working directories
    trials = make_trials(base, space, limit=limit, seed=base.seed)
    for recipe in {(t.recipe.recover.teacher, t.recipe.prune): t.recipe for t in trials}.values():
        check_inputs(recipe, make_plan(None, recipe.skip))
    with storage_errors(out), locked(out):
        _open(out, base, space)
        work = Work(out, {trial.name: trial for trial in trials}, stages)
        states = {name: _state(out, name) for name in work.trials}
        stopper = FrontStopper() if stop_early else None
        todo = [name for name, state in states.items() if state == "to do"]
        if todo:
            for name, outcome in _shown("making trials", todo, workers.make(work, todo, stopper)):
                if outcome == "stopped":
                    reason = stopper.stopped.get(name, "") if stopper is not None else ""
                    outcome = f"stopped: {reason}"
                    write_json(out / "state" / f"{name}.json", {"state": outcome})
                states[name] = outcome or "made"
        todo = [name for name, state in states.items() if state == "made"]
        if todo:
            for name, outcome in _shown("measuring latency", todo, workers.measure(work, todo)):
                states[name] = outcome or "measured"
        report = _report(out, work, states, space, workers.host)
    return SweepResult(out, report)


def _open(out: Path, base: Recipe, space: Space) -> None:
    """Begin a sweep, or go on with it; more values may be given later."""
    mine = identity(base, pruned=True)
    mine = {name: mine[name] for name in ("model", "data", "images", "seed")}
    try:
        before = json.loads((out / HEAD).read_text())["identity"]
    except FileNotFoundError:
        names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if names:
            raise RunDirError(f"{out} is not empty and holds no sweep", got=", ".join(names[:5]),
                              mend="name another --out") from None  # fmt: skip
        before = mine
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{out / HEAD} cannot be read", got=error, mend="name another --out") from None
    if before != mine:
        differs = [name for name in mine if mine[name] != before.get(name)]
        raise RunDirError(f"{out} holds another sweep", got=f"{', '.join(differs)} differ",
                          mend="name another --out")  # fmt: skip
    write_json(out / HEAD, {"schema_version": 1, "identity": mine, "recipe": base.model_dump(mode="json"),
                            "space": {key: [str(v) for v in values] for key, values in space.items()}})  # fmt: skip


def _state(out: Path, name: str) -> str:
    """Where a trial is, told by its folder: "to do" may be half done, and is never done twice."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads((out / "state" / f"{name}.json").read_text())["state"])
    return "measured" if (out / "trials" / name / REPORT).is_file() else "to do"


def _shown(title: str, todo: Sequence[str], results: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    with progress(title, len(todo)) as task:
        for name, outcome in results:
            task.advance(note=name)
            if outcome:
                say(f"{name}: {outcome}")
            yield name, outcome


def _borrow(folder: Path, recipe: Recipe, others: Sequence[Path]) -> None:
    """Take over what other trials have made of the very same: hard links, which cost nothing.

    Each stage still looks at the key of what it finds, so a wrong guess here only costs time.
    """
    run, mine = RunDir(folder), json.loads((folder / RUN).read_text())
    config = recipe.stage(recipe.prune)
    wanted = None if run.prune.exists() else keys.prune(Artifact.load(run.original).sha256, config)[-1]
    for other in others:
        try:
            theirs = json.loads((other / RUN).read_text())
        except (OSError, ValueError):
            continue
        if theirs["identity"] != mine["identity"]:
            continue
        stages = [place for place in ("3-export/original", "4-quantize/original")]
        with contextlib.suppress(HawkeyeError):
            if wanted is not None and Artifact.load(other / "1-prune").key == wanted:
                stages.append("1-prune")
        for place in stages:
            if (other / place / RECORD).is_file() and not (folder / place).exists():
                _link(other / place, folder / place)
        for record in sorted((other / "records/accuracy").glob("original*"), key=lambda p: p.suffix == ".json"):
            target = folder / "records/accuracy" / record.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(record, target)


def _link(source: Path, target: Path) -> None:
    """A folder's files once more, all of them or none; stages replace files, and never write into them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".borrow-") as name:
        copy = Path(name) / "copy"
        try:
            shutil.copytree(source, copy, copy_function=os.link)
        except (OSError, shutil.Error):  # another file system
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
        if not target.exists():
            copy.rename(target)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What a trial says goes into its log: several may talk at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


@contextmanager
def alone_on_this_machine() -> Iterator[None]:
    """Wait until no other sweep of this user measures latency here."""
    user = "" if sys.platform == "win32" else f"-{os.getuid()}"  # a folder of each user's own, or one for all
    with (Path(tempfile.gettempdir()) / f"hawkeye-latency{user}.lock").open("w") as file:
        lock(file, wait=True)
        yield


def _report(out: Path, work: Work, states: dict[str, str], space: Space, host: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    where: dict[str, Any] = environment.describe()
    references: dict[str, dict[str, Any]] = {}
    for name, trial in work.trials.items():
        row: dict[str, Any] = {"name": name, "label": _label(trial), "state": states[name], "changes": trial.changes,
                               "run": f"trials/{name}"}  # fmt: skip
        row.update(dict.fromkeys(("map50", "map50_95", "drop", "ms", "times_as_fast", "gflops")))
        if states[name] == "measured":
            table = json.loads((out / "trials" / name / REPORT).read_text())
            judged = table["gates"]["max_drop"]["row"] if "max_drop" in table["gates"] else table["rows"][-1]["name"]
            row.update(_figures(table, judged))
            where = table.get("environment", where)
            for reference in ("original", "original+int8"):
                label = f"{reference} at {trial.recipe.imgsz}"
                references.setdefault(label, {"name": label, "label": label, "state": "measured", "changes": {},
                                              "run": f"trials/{name}", **_figures(table, reference)})  # fmt: skip
        rows.append(row)
    rows += references.values()
    measured = [row for row in rows if row["ms"] is not None and row["map50"] is not None]
    best = {id(measured[i]) for i in front([(row["ms"], row["map50"]) for row in measured])}
    for row in rows:
        row["front"] = id(row) in best
        row["changes"] = {key: str(v) if isinstance(v, Path) else v for key, v in row["changes"].items()}
    report = {"schema_version": 1, "host": host, "rows": rows, "environment": where,
              "space": {key: [str(v) for v in values] for key, values in space.items()}}  # fmt: skip
    write_bytes(out / "front.svg", alone(plot(rows)).encode())
    write_bytes(out / "report.md", markdown(rows, where, host).encode())
    write_json(out / REPORT, report)
    return report


def _label(trial: Trial) -> str:
    return ", ".join(Path(str(v)).stem if isinstance(v, str | Path) else str(v) for v in trial.changes.values())


def _figures(table: dict[str, Any], name: str) -> dict[str, Any]:
    row = next(row for row in table["rows"] if row["name"] == name)
    runtime = "openvino-int8" if name.endswith("+int8") else "openvino-f32"
    latency = row["latency_ms"].get(runtime)
    return {"map50": row["map50"], "map50_95": row.get("map50_95"), "drop": row.get("map50_drop"),
            "gflops": row["gflops"], "ms": latency["p50"] if latency else None,
            "times_as_fast": row["speedup"].get(runtime)}  # fmt: skip
