"""A batch: millions of pictures through one detector a worker, into Parquet partitions, restartable at any moment.

    OUT/batch.json               which model and settings; written first, so that a folder never holds two batches
       /pictures-0001.parquet    the list of pictures, a row group for each part; a later call may add another list
       /part-000000.parquet      one row for each picture of that part
       /report.json, report.md, failed.csv

What is done is told by the partitions alone. The workers are a constructor argument: Ray's (`ray_batch.py`), or a
test's own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hawkeye import __version__, environment
from hawkeye.artifact import storage_errors
from hawkeye.data import MAX_UNREADABLE
from hawkeye.errors import ConfigError, RunDirError, StoreError
from hawkeye.progress import progress, say
from hawkeye.rundir import locked
from hawkeye.runtime.detector import Detector, local
from hawkeye.scale.listing import Part, find_entries, known, manifests, pack, read_parts, write_manifest
from hawkeye.scale.places import Place, is_url, open_place
from hawkeye.scale.worker import Done, Job, Worker, failures, finished, model_sha256

HEAD = "batch.json"
MAX_CHUNK = 1000  # pictures a part: what a killed worker has to do again
_SMALLEST_CHUNK, _PARTS_EACH = 16, 16  # so that all workers have work until the end


class Workers(Protocol):
    """Who does the work.

    Attributes:
        count: workers.
        machines: that they run on; known once `run` has given its first result.
    """

    count: int
    machines: int

    def run(self, job: Job, parts: Sequence[Part]) -> Iterator[Done]:
        """Work on all parts, in any order."""
        ...


class InProcess:
    """The one worker is this process: what the others are measured against."""

    count = machines = 1

    def run(self, job: Job, parts: Sequence[Part]) -> Iterator[Done]:
        """See `Workers.run`."""
        return map(Worker(job), parts)


@dataclass(frozen=True)
class BatchResult:
    """What a batch came to.

    Attributes:
        out: its folder or URL.
        report: content of report.json.
        passed: not more than 10 % of the pictures could not be read.
    """

    out: str
    report: dict[str, Any]
    passed: bool


def batch(
    source: str | Path,
    pictures: Sequence[str],
    *,
    out: str,
    workers: Workers,
    threads: int = 1,
    chunk: int | None = None,
    column: str | None = None,
    retry: bool = False,
    price: float | None = None,
    **options: Any,
) -> BatchResult:
    """Detect in any number of pictures; started again, it goes on where it was.

    Args:
        source: model, as `Detector` takes it.
        pictures: see `listing.find_entries`. Those that an earlier call has listed are not looked at twice.
        out: folder or URL.
        workers: who does the work.
        threads: CPU threads of each worker.
        chunk: pictures in a part; left out, up to 1000, fewer where there are few. Kept from the first call on.
        column: of Parquet files, where it does not tell itself.
        retry: do the parts again in which pictures could not be read.
        price: of one machine for an hour, in any currency, for the report.
        options: as `Detector` takes them: conf, iou, imgsz, rect, classes.

    Raises:
        DataError: there are no pictures, or they are gone.
        ModelError: the model cannot be used, or is not the one that the batch was begun with.
        RunDirError: the folder holds another batch, or something else.
        StoreError, StorageError: a place does not answer, or refuses.
    """
    if chunk is not None and not 1 <= chunk <= 1_000_000:
        raise ConfigError("--chunk cannot be used", got=chunk, expected="1 to 1,000,000")
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError("--price cannot be used", got=price, expected="0 or more")
    model = local(source).absolute()
    options = {**options, "threads": threads}
    names = Detector(model, **options).names  # tells every mistake before anything is written
    job = Job(out if is_url(out) else str(Path(out).absolute()), str(model), model_sha256(model), options, column)
    place = open_place(job.out)
    with storage_errors(Path(out)), nullcontext() if is_url(out) else locked(Path(out)):
        head = _open(place, job, names)
        parts = _list(place, head, pictures, workers.count, chunk)
        done = {part.number: told for part in parts if (told := finished(place, part, job.key)) is not None}
        if retry:
            done = {number: told for number, told in done.items() if not told.failed}
        todo = [part for part in parts if part.number not in done]
        if done:
            say(f"going on: {sum(d.pictures for d in done.values()):,} of {sum(p.pictures for p in parts):,} pictures "
                "are done")  # fmt: skip
        began = time.monotonic()
        working = _work(workers, job, todo, done) if todo else 0.0
        run = {"pictures": sum(part.pictures for part in todo), "seconds": round(time.monotonic() - began, 3),
               "working_seconds": round(working, 3), "workers": workers.count, "threads": threads,
               "machines": workers.machines, "environment": environment.describe()}  # fmt: skip
        report = _report(place, parts, done, run if todo else None, price)
    return BatchResult(out, report, report["failed"] <= MAX_UNREADABLE * report["pictures"])


def _open(place: Place, job: Job, names: Sequence[str]) -> dict[str, Any]:
    """Begin a batch, or go on with it."""
    head = {"schema_version": 1, "key": job.key, "model_sha256": job.model_sha256, "names": list(names),
            "options": {name: value for name, value in job.options.items() if name != "threads"},
            "column": job.column, "hawkeye": __version__}  # fmt: skip
    before = _read_json(place, HEAD)
    if before is None:
        others = [name for name in place.names() if not name.startswith(".")]
        if others:
            raise RunDirError(f"{job.out} is not empty and holds no batch", got=", ".join(others[:5]),
                              expected=f"a new or empty folder, or one with {HEAD}",
                              mend="name another --out")  # fmt: skip
        return head
    differs = [name for name in ("model_sha256", "options", "column", "hawkeye") if before.get(name) != head[name]]
    if differs:
        raise RunDirError(f"{job.out} holds another batch", got="; ".join(f"{n} {head[n]}" for n in differs),
                          expected="; ".join(f"{n} {before.get(n)}" for n in differs),
                          mend="name another --out, or give the model and settings that it was begun with")  # fmt: skip
    return before


def _list(place: Place, head: dict[str, Any], pictures: Sequence[str], workers: int, chunk: int | None) -> list[Part]:
    """List what is not listed yet, then read all parts."""
    say("listing the pictures")
    size = head.get("chunk") or chunk or MAX_CHUNK
    seen = known(place)
    fresh = []
    for entry in find_entries(pictures, column=head["column"], chunk=size):
        if (entry.address, entry.first) not in seen:
            seen.add((entry.address, entry.first))
            fresh.append(entry)
    if "chunk" not in head:
        if chunk is None and all(entry.first < 0 for entry in fresh):
            size = max(_SMALLEST_CHUNK, min(MAX_CHUNK, math.ceil(len(fresh) / (_PARTS_EACH * workers))))
        head = {**head, "chunk": size}
        _write_json(place, HEAD, head)
    if fresh:
        write_manifest(place, f"pictures-{len(manifests(place)) + 1:04d}.parquet", pack(fresh, size))
    return read_parts(place)


def _work(workers: Workers, job: Job, todo: Sequence[Part], done: dict[int, Done]) -> float:
    """Have everything done, with progress; returns the seconds from the first result on, started workers only."""
    began = first = time.monotonic()
    pictures = failed = before = 0
    with progress("detecting", sum(part.pictures for part in todo)) as task:
        for result in workers.run(job, todo):
            now = time.monotonic()
            if not pictures:
                first = max(began, now - result.seconds)  # starting the workers is no work
            done[result.number] = result
            pictures, failed = pictures + result.pictures, failed + result.failed
            unread = f", {failed} cannot be read" if failed else ""
            task.advance(pictures - before, f"{pictures / max(now - first, 1e-9):.1f} pictures/s{unread}")
            before = pictures
    return time.monotonic() - first


def _report(
    place: Place, parts: Sequence[Part], done: dict[int, Done], run: dict[str, Any] | None, price: float | None
) -> dict[str, Any]:
    """Write report.json, report.md and failed.csv out of the partitions.

    Raises:
        StoreError: a part was reported as done and its partition is not there.
    """
    missing = [part.file for part in parts if part.number not in done]
    if missing:
        raise StoreError("the batch is not whole", got=f"no {missing[0]}", mend="start the same command again")
    before = _read_json(place, "report.json") or {}
    runs = [*before.get("runs", []), *([run] if run else [])]
    pictures, objects = sum(d.pictures for d in done.values()), sum(d.objects for d in done.values())
    failed = sum(d.failed for d in done.values())
    seconds = sum(d.seconds for d in done.values())
    last = runs[-1] if runs else None
    report: dict[str, Any] = {
        "schema_version": 1, "pictures": pictures, "objects": objects, "failed": failed, "partitions": len(parts),
        "worker_seconds": round(seconds, 3), **costs(pictures, seconds, last, price), "runs": runs,
    }  # fmt: skip
    bad = [row for part in parts if done[part.number].failed for row in failures(place, part)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "error"), *((name, error.replace("\n", " ")) for name, error in bad)])
    place.write("failed.csv", text.getvalue().encode())
    place.write("report.md", describe(report).encode())
    _write_json(place, "report.json", report)
    return report


def costs(pictures: int, worker_seconds: float, run: dict[str, Any] | None, price: float | None) -> dict[str, Any]:
    """What a million pictures take, from the time that workers really worked; None where nothing is known.

    Time that killed workers lost is not in it, and neither is that of starting.
    """
    hours = worker_seconds / 3600 * 1e6 / pictures if pictures else None
    machine = hours / (run["workers"] / run["machines"]) if hours is not None and run else None
    return {
        "pictures_per_second": run["pictures"] / run["working_seconds"] if run and run["working_seconds"] else None,
        "core_hours_per_million": hours * run["threads"] if hours is not None and run else None,
        "machine_hours_per_million": machine,
        "price_per_machine_hour": price,
        "cost_per_million": machine * price if machine is not None and price is not None else None,
    }


def describe(report: dict[str, Any]) -> str:
    """The report as Markdown."""

    def show(value: float | None, digits: int = 2) -> str:
        return "not known" if value is None else f"{value:,.{digits}f}"

    run = report["runs"][-1] if report["runs"] else None
    lines = [
        "# Batch", "",
        f"| | |\n|---|---:|\n| pictures | {report['pictures']:,} |\n| objects | {report['objects']:,} |",
        f"| could not be read | {report['failed']:,} (failed.csv) |\n| partitions | {report['partitions']:,} |",
        f"| pictures per second, last call | {show(report['pictures_per_second'], 1)} |",
        f"| core hours per million pictures | {show(report['core_hours_per_million'])} |",
        f"| machine hours per million pictures | {show(report['machine_hours_per_million'])} |",
        f"| cost per million pictures | {show(report['cost_per_million'])} |",
        "",
    ]  # fmt: skip
    if report["price_per_machine_hour"] is None:
        lines += ["The cost needs `--price`, what one machine costs for an hour.", ""]
    if run:
        where = run["environment"]
        lines += [f"Last call: {run['workers']} workers of {run['threads']} threads on {run['machines']} machines; "
                  f"{where['cpu']}, {where['cores']} cores.", ""]  # fmt: skip
    return "\n".join(lines)


def _read_json(place: Place, name: str) -> dict[str, Any] | None:
    try:
        with place.open(name) as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunDirError(f"{name} of the batch is damaged", got=error, mend="name another --out") from None
    if not isinstance(value, dict):
        raise RunDirError(f"{name} of the batch is damaged", got=type(value).__name__, mend="name another --out")
    return value


def _write_json(place: Place, name: str, value: dict[str, Any]) -> None:
    place.write(name, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
