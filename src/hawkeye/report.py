"""What a run achieved, in one table: reads the records of a run folder, writes report.json, report.md and report.html.

A pure reader: it measures nothing, and a figure that nobody measured is null, never 0. docs/report-schema.md
describes report.json field by field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from hawkeye import compare, gates
from hawkeye.artifact import RECORD, Artifact, Format, write_bytes, write_json
from hawkeye.compare import Interval
from hawkeye.config import Recipe
from hawkeye.errors import ConfigError, RunDirError
from hawkeye.records import AccuracyRecord, LatencyRecord, LatencyRow, RuntimeName, load_all
from hawkeye.report_text import headline, markdown, quantization_notes, recovery_notes, runtime_notes

SCHEMA_VERSION = 1
ROWS = ("original", "original+int8", "pruned", "pruned+int8")
# Later folders hold later versions of the same model, so the last file of a format is the one that counts.
FOLDERS = (
    "0-original", "1-prune", "2-recover",
    "3-export/original", "3-export/pruned", "4-quantize/original", "4-quantize/pruned",
)  # fmt: skip
_FORMAT_OF: dict[str, Format] = {
    "pytorch-fp32": "pytorch", "onnxruntime": "onnx",
    "openvino-f32": "openvino", "openvino-default": "openvino", "openvino-int8": "openvino",
}  # fmt: skip
_FLOAT_RUNTIMES = ("pytorch-fp32", "onnxruntime", "openvino-f32", "openvino-default")
_INT8_RUNTIMES = ("onnxruntime", "openvino-int8")


def report(run: Path, *, interval: Interval | None = None) -> dict[str, Any]:
    """Write report.json, report.md and report.html of a run folder, and return what report.json holds.

    Args:
        run: folder of `hawkeye optimize`, finished or not.
        interval: what computes the confidence interval of a drop; `hawkeye.evaluate.paired_drop` when left out.

    Raises:
        RunDirError: not the folder of a run.
        ModelError: a record that cannot be read.
        MissingExtraError: Matplotlib is not installed; nothing is written then.
        StorageError: the disk refused.
    """
    from hawkeye import report_html, report_plots

    report_plots.require()
    result = collect(run, interval=interval)
    page = report_html.render(result, report_html.pictures(run / "pictures"))
    write_bytes(run / "report.md", markdown(result).encode())
    write_bytes(run / "report.html", page.encode())
    write_json(run / "report.json", result)
    return result


def collect(run: Path, *, interval: Interval | None = None, row: str | None = None) -> dict[str, Any]:
    """What report.json holds, without writing anything, judged for `row`; see `report` for the errors."""
    recipe, head = _read_run(run)
    artifacts = [Artifact.load(run / folder) for folder in FOLDERS if (run / folder / RECORD).is_file()]
    folder, latency_path = run / "records" / "accuracy", run / "records" / "latency.json"
    records = load_all(AccuracyRecord, folder)
    latency = LatencyRecord.load(latency_path) if latency_path.is_file() else None
    if not (artifacts or records or latency or head):
        raise RunDirError(f"{run} is not the folder of a run", got="neither run.json nor any record",
                          mend="name the folder given to `hawkeye optimize --out`")  # fmt: skip
    skip = set(head.get("skip") or ())
    notes: list[str] = []
    missing: list[str] = []
    accuracy = {(r.name, r.runtime): r for r in records if _current(r, artifacts, "accuracy", notes)}
    timed = {(r.name, r.runtime): r for r in (latency.rows if latency else ()) if _current(r, artifacts, "latency", notes)}  # fmt: skip # noqa: E501
    wanted = {"accuracy", "latency"}
    if head.get("labels") is False:
        wanted.discard("accuracy")
        notes.append("No labelled pictures were given, so accuracy was not measured and no gate on it exists.")
    if "benchmark" in skip:
        wanted.discard("latency")
        notes.append("The benchmark was left out on request.")
    names = [n for n in ROWS if not ("prune" in skip and "pruned" in n) and not ("quantize" in skip and "int8" in n)]
    rows = [_row(name, artifacts, accuracy, timed, folder, interval, wanted, missing, notes) for name in names]
    judged = gates.target(names, row or (recipe.gates.row if recipe else None))
    against = compare.read(run, judged, _files(judged, artifacts).get("openvino"), accuracy,
                           wanted=bool(recipe and recipe.store), interval=interval, notes=notes)  # fmt: skip
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "headline": [],
        "rows": rows,
        "gates": gates.judge(
            recipe,
            {line["name"]: line for line in rows},
            judged,
            labels="accuracy" in wanted,
            timed="latency" in wanted,
            released=against,
        ),
        "released": against,
        "environment": _environment(artifacts, records, latency, notes),
        "method": _method(recipe, head, accuracy, latency),
        "widths": next((a.details["widths"] for a in reversed(artifacts) if "widths" in a.details), None),
        "curve": next((a.details["curve"] for a in reversed(artifacts) if "curve" in a.details), None),
        "int8": {a.name: a.details["story"] for a in artifacts if "story" in a.details},
        "stages": _stages(run, artifacts, records, latency),
        "missing": missing,
        "notes": notes,
    }
    notes += runtime_notes(rows, list(timed.values()), list(accuracy.values()))
    notes += recovery_notes(result["curve"])
    notes += quantization_notes(result["int8"])
    result["headline"] = headline(result)
    return result


def _read_run(run: Path) -> tuple[Recipe | None, dict[str, Any]]:
    """The recipe of a run and the whole of run.json; (None, {}) where the run has none."""
    path = run / "run.json"
    if not path.is_file():
        return None, {}
    mend = "name the folder of a run of this version of Hawkeye"
    try:
        head = json.loads(path.read_text())
        if not isinstance(head, dict) or head.get("schema_version") != 1:
            raise RunDirError(f"{path} is not a run of this version", expected="schema_version 1", mend=mend)
        return Recipe.build(**head["recipe"]), head
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise RunDirError(f"{path} cannot be read", got=error, mend=mend) from None


def _files(name: str, artifacts: list[Artifact]) -> dict[str, Any]:
    """The files of a model by format; a later stage's file replaces an earlier one's."""
    return {fmt: record for a in artifacts if a.name == name for fmt, record in a.files.items()}


def _current(record: AccuracyRecord | LatencyRow, artifacts: list[Artifact], kind: str, notes: list[str]) -> bool:
    """Whether a record was measured on the file that lies in the run now; an outdated one is left out and told of."""
    file = _files(record.name, artifacts).get(_FORMAT_OF[record.runtime])
    if file is None or file.sha256 == record.file_sha256:
        return True
    notes.append(f"The {kind} of {record.name} in {record.runtime} was measured on another version of its file: left out.")  # fmt: skip # noqa: E501
    return False


def _row(
    name: str,
    artifacts: list[Artifact],
    accuracy: dict[tuple[str, RuntimeName], AccuracyRecord],
    timed: dict[tuple[str, RuntimeName], LatencyRow],
    folder: Path,
    interval: Interval | None,
    wanted: set[str],
    missing: list[str],
    notes: list[str],
) -> dict[str, Any]:
    """One line of the table."""
    int8 = name.endswith("+int8")
    # INT8 keeps the network's shape, so its size in parameters and GFLOPs is its float parent's.
    own = [a for a in artifacts if a.name == name.removesuffix("+int8")] or [a for a in artifacts if a.name == name]
    files = _files(name, artifacts)
    record = accuracy.get((name, "openvino-int8" if int8 else "openvino-f32"))
    base = accuracy.get(("original", "openvino-f32"))
    drop, ci = compare.drop(base, record, folder, interval, notes) if base and record else (None, None)
    expected = _INT8_RUNTIMES if int8 else _FLOAT_RUNTIMES
    runtimes = [r for r in get_args(RuntimeName) if r in expected or (name, r) in timed]
    reference = timed.get(("original", "openvino-f32"))
    rows_of = {runtime: timed.get((name, runtime)) for runtime in runtimes}
    row: dict[str, Any] = {
        "name": name,
        "params": own[-1].params if own else None,
        "gflops": own[-1].gflops if own else None,
        "map50": record.map50 if record else None,
        "map50_95": record.map50_95 if record else None,
        "map50_drop": drop,
        "map50_drop_ci95": ci,
        "file_bytes": {
            fmt: files[fmt].bytes if fmt in files else None
            for fmt in get_args(Format) if fmt in files or not (int8 and fmt == "pytorch")
        },
        "latency_ms": {runtime: r.network.model_dump() if r else None for runtime, r in rows_of.items()},
        "frame_latency_ms": {runtime: r.frame.model_dump() if r else None for runtime, r in rows_of.items()},
        "speedup": {
            key: reference.network.p50 / r.network.p50 if r and reference else None for key, r in rows_of.items()
        },
        "throughput_fps": {runtime: r.throughput_fps if r else None for runtime, r in rows_of.items()},
        "peak_rss_bytes": {runtime: r.peak_rss_bytes if r else None for runtime, r in rows_of.items()},
        "start_s": {runtime: r.start_s if r else None for runtime, r in rows_of.items()},
        "accuracy_by_runtime": {
            runtime: {"map50": r.map50, "map50_95": r.map50_95} for (n, runtime), r in accuracy.items() if n == name
        },
        "per_class": compare.per_class(base, record),
    }  # fmt: skip
    accurate = ("map50", "map50_95", "map50_drop", "map50_drop_ci95") if "accuracy" in wanted else ()
    plain = ["params", "gflops", *accurate]
    missing += [f"{name}: {key}" for key in plain if row[key] is None]
    nested = ["file_bytes", *(("latency_ms",) if "latency" in wanted else ())]
    missing += [f"{name}: {key}.{part}" for key in nested for part, value in row[key].items() if value is None]
    return row


def _environment(
    artifacts: list[Artifact], records: list[AccuracyRecord], latency: LatencyRecord | None, notes: list[str]
) -> dict[str, Any] | None:
    """The machine of the latencies; where there are none, of the accuracies, and then of the last stage."""
    found = [latency.environment] if latency else []
    found += [r.environment for r in records] + [a.environment for a in reversed(artifacts)]
    cpus = list(dict.fromkeys(str(env.get("cpu")) for env in found if env.get("cpu")))
    if len(cpus) > 1:
        notes.append(f"Parts of this run ran on different processors: {', '.join(cpus)}. Latencies are of the first.")
    return found[0] if found else None


def _method(
    recipe: Recipe | None,
    head: dict[str, Any],
    accuracy: dict[tuple[str, RuntimeName], AccuracyRecord],
    latency: LatencyRecord | None,
) -> dict[str, Any]:
    """How the figures came about."""
    keys = ("dataset", "dataset_sha256", "split", "images", "skipped", "imgsz", "conf", "iou", "max_det", "threads")
    first = accuracy.get(("original", "openvino-f32")) or next(iter(accuracy.values()), None)
    return {
        "started": head.get("started"),
        "seed": recipe.seed if recipe else None,
        "prune": recipe.prune.method if recipe else None,
        "recover_budget_s": recipe.recover.budget if recipe else None,
        "gflops": "2 x multiply-accumulates of one picture at the input size",
        "accuracy": {key: getattr(first, key) for key in keys} if first else None,
        "latency": {
            "imgsz": latency.imgsz, "batch": latency.batch, "threads": latency.threads,
            "frame_hw": list(latency.frame_hw), "runs": min((len(r.network_ms) for r in latency.rows), default=0),
            "precision": [
                {"name": r.name, "runtime": r.runtime, "hint": r.precision_hint, "executed": r.precision_executed}
                for r in latency.rows
            ],
        } if latency else None,
    }  # fmt: skip


def _stages(
    run: Path, artifacts: list[Artifact], records: list[AccuracyRecord], latency: LatencyRecord | None
) -> list[dict[str, Any]]:
    """How long everything took."""
    stages: list[dict[str, Any]] = [
        {"folder": a.root.relative_to(run).as_posix(), "stage": a.stage, "name": a.name, "seconds": a.seconds}
        for a in artifacts
    ]
    if records:
        stages.append({"folder": "records/accuracy", "stage": "evaluate", "name": f"{len(records)} evaluations",
                       "seconds": sum(r.seconds for r in records)})  # fmt: skip
    if latency:
        stages.append({"folder": "records", "stage": "benchmark", "name": f"{len(latency.rows)} rows",
                       "seconds": latency.seconds})  # fmt: skip
    return stages
