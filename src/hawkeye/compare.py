"""One model against another on the same pictures and the same machine: a row against the original, or against the
released model of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from hawkeye.artifact import Artifact, FileRecord
from hawkeye.errors import HawkeyeError, InputError
from hawkeye.progress import say
from hawkeye.records import AccuracyRecord, LatencyRecord, RuntimeName, Saved
from hawkeye.store import open_store
from hawkeye.store_files import shown

# (base, other, folder of both) -> drop of mAP@0.5 in points, and the ends of its 95 % interval.
Interval = Callable[[AccuracyRecord, AccuracyRecord, Path], tuple[float, float, float]]
COMPARISON = "comparison.json"
LATENCY = "latency.json"
# Two records compare only where all of these are equal: the same pictures through the same evaluator.
_SAME = ("dataset_sha256", "split", "images", "imgsz", "conf", "iou", "max_det")


class Comparison(Saved):
    """What a run was compared with.

    Attributes:
        store: where the released model came from.
        version: its version; None where nothing had been released.
        number: of the release, to see whether another one has been made since.
        row: the run's row that was compared.
        released: name of the released model in the records beside this one.
        problems: why a figure is missing.
    """

    schema_version: Literal[1] = 1
    store: str
    version: str | None
    number: int
    row: str
    released: str | None = None
    problems: tuple[str, ...] = ()


def compare(
    candidate: Artifact,
    store: str,
    *,
    evaluate: Callable[[Artifact, RuntimeName], AccuracyRecord] | None,
    benchmark: Callable[[Sequence[Artifact]], object] | None,
    out: Path,
) -> None:
    """Measure the released model of a store as the candidate was: its accuracy, and both latencies in turns.

    Args:
        candidate: the exported row that is to be released.
        store: folder or URL.
        evaluate: measures one model and keeps the record in `out`; None without labels.
        benchmark: measures models in turns and keeps the record in `out`; None where it was left out.
        out: folder of the records.

    Raises:
        StoreError: the store cannot be read.
    """
    opened = open_store(store)
    current = opened.current()
    if current is None:
        say(f"nothing is released in {shown(store)} yet: there is no gate against a released model")
        Comparison(store=shown(store), version=None, number=0, row=candidate.name).save(out / COMPARISON)
        return
    released = as_released(Artifact.load(opened.folder(opened.version(current.version))))
    problems = []
    try:
        if evaluate is not None:
            record = evaluate(released, own_runtime(released))
            say(f"  {current.version} (released): mAP@0.5 {record.map50:.3f}, mAP@0.5:0.95 {record.map50_95:.3f}")
        if benchmark is not None:
            benchmark([openvino_only(candidate), released])
    except InputError as error:  # other classes or another picture size: told, and the gate stays unjudged
        problems.append(" ".join(str(error).split()))
        say(f"cannot be compared with the released model: {error}")
    Comparison(store=shown(store), version=current.version, number=current.number, row=candidate.name,
               released=released.name, problems=tuple(problems)).save(out / COMPARISON)  # fmt: skip


def as_released(artifact: Artifact) -> Artifact:
    """The same model under a name that no row of a run has; INT8 keeps its mark, which chooses the runtime."""
    name = "released+int8" if artifact.name.endswith("+int8") else "released"
    return openvino_only(artifact).model_copy(update={"name": name})


def openvino_only(artifact: Artifact) -> Artifact:
    """The model in the format that is served, so that nothing else is timed."""
    artifact.path("openvino")
    return artifact.model_copy(update={"files": {"openvino": artifact.files["openvino"]}})


def own_runtime(artifact: Artifact) -> RuntimeName:
    """OpenVINO at the model's own precision."""
    return "openvino-int8" if artifact.name.endswith("+int8") else "openvino-f32"


def read(
    run: Path,
    row: str,
    file: FileRecord | None,
    accuracy: dict[tuple[str, RuntimeName], AccuracyRecord],
    *,
    wanted: bool,
    interval: Interval | None,
    notes: list[str],
) -> dict[str, Any] | None:
    """The comparison of a run as the report shows it; None where the run names no store.

    Args:
        run: folder of the run.
        row: the judged row.
        file: its OpenVINO file as it is now.
        accuracy: records of the run by name and runtime.
        wanted: whether the run's recipe names a store.
        interval: what computes the confidence interval.
        notes: notes are added here.
    """
    if not wanted:
        return None
    folder = run / "records" / "released"
    if (folder / COMPARISON).is_file():
        made = Comparison.load(folder / COMPARISON)
    else:
        made = Comparison(store="", version="", number=0, row=row, problems=("the comparison has not been made yet",))
    result: dict[str, Any] = {
        "store": made.store, "version": made.version, "row": made.row, "number": made.number,
        "problems": list(made.problems), "map50": None, "map50_drop": None, "map50_drop_ci95": None, "latency": None,
        "per_class": None,
    }  # fmt: skip
    if made.version is None:
        notes.append(f"Nothing was released in {made.store} yet, so no gate compares with a released model.")
    if made.released is None:
        return result
    runtime: RuntimeName = "openvino-int8" if made.row.endswith("+int8") else "openvino-f32"
    theirs_runtime: RuntimeName = "openvino-int8" if made.released.endswith("+int8") else "openvino-f32"
    theirs_path = folder / f"{made.released}-{theirs_runtime}.json"
    mine = accuracy.get((made.row, runtime))
    if mine is not None and theirs_path.is_file():
        theirs = AccuracyRecord.load(theirs_path)
        # `drop` looks for both files of matches in one folder.
        theirs = theirs.model_copy(update={"matches": f"../released/{theirs.matches}"})
        result["map50"] = theirs.map50
        lost, ci = drop(theirs, mine, run / "records" / "accuracy", interval, notes, other_size=True)
        result |= {"map50_drop": lost, "map50_drop_ci95": ci, "per_class": per_class(theirs, mine)}
    if file is not None and (folder / LATENCY).is_file():
        result["latency"] = _ratio(LatencyRecord.load(folder / LATENCY), made, file, runtime, theirs_runtime)
    return result


def _ratio(
    record: LatencyRecord, made: Comparison, file: FileRecord, mine: RuntimeName, theirs: RuntimeName
) -> dict[str, Any] | None:
    rows = {(r.name, r.runtime): r for r in record.rows}
    candidate, released = rows.get((made.row, mine)), rows.get((made.released or "", theirs))
    if candidate is None or released is None or candidate.file_sha256 != file.sha256:
        return None
    first, second = candidate.network.p50, released.network.p50
    return {"candidate_ms": first, "released_ms": second, "ratio": first / second}


def drop(
    base: AccuracyRecord,
    other: AccuracyRecord,
    folder: Path,
    interval: Interval | None,
    notes: list[str],
    *,
    other_size: bool = False,
) -> tuple[float | None, list[float] | None]:
    """Points of mAP@0.5 lost from `base` to `other`, and the 95 % interval of the paired bootstrap over pictures.

    Args:
        base: what is compared with.
        other: what is judged.
        folder: where the files of matches of both lie.
        interval: what computes the interval; `hawkeye.evaluate.paired_drop` when left out.
        notes: why something is missing is added here.
        other_size: the models may take pictures of different sizes.
    """
    same = [key for key in _SAME if not (other_size and key == "imgsz")]
    differing = [key for key in same if getattr(base, key) != getattr(other, key)]
    if differing:
        notes.append(f"{other.name} was evaluated unlike {base.name} ({', '.join(differing)} differ): no drop is given.")  # fmt: skip # noqa: E501
        return None, None
    lost = 100 * (base.map50 - other.map50)
    if other.name == base.name and other.file_sha256 == base.file_sha256:
        return 0.0, [0.0, 0.0]
    if not all((folder / r.matches).is_file() for r in (base, other)):
        notes.append(f"{other.name}: the matches of its evaluation are gone, so its drop has no confidence interval.")
        return lost, None
    if interval is None:
        from hawkeye.evaluate import paired_drop

        interval = paired_drop
    try:
        paired, low, high = interval(base, other, folder)
    except HawkeyeError as error:
        notes.append(f"{other.name}: no confidence interval of its drop: {error.summary}.")
        return lost, None
    if abs(paired - lost) > 0.05:
        notes.append(f"{other.name}: the bootstrap puts its drop at {paired:.2f} points, the evaluator at {lost:.2f}.")
    return lost, [low, high]


def per_class(base: AccuracyRecord | None, record: AccuracyRecord | None) -> list[dict[str, Any]] | None:
    """Accuracy of each class, with its change against `base` in points of AP@0.5 (positive is better)."""
    if record is None:
        return None
    comparable = base is not None and [c.name for c in base.per_class] == [c.name for c in record.per_class]
    before = [c.ap50 for c in base.per_class] if base and comparable else [None] * len(record.per_class)
    return [
        {**c.model_dump(), "ap50_change": None if c.ap50 is None or old is None else 100 * (c.ap50 - old)}
        for c, old in zip(record.per_class, before, strict=True)
    ]
