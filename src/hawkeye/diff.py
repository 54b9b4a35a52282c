"""Two versions of a store, or a version and a run, side by side: figures, classes, and the pictures that tell them
apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import compare, gates
from hawkeye.artifact import Artifact, write_bytes
from hawkeye.data import read_image
from hawkeye.detections import Detections
from hawkeye.errors import DataError, ModelError
from hawkeye.evaluate import Matches
from hawkeye.geometry import iou_matrix
from hawkeye.progress import progress
from hawkeye.records import AccuracyRecord
from hawkeye.release import lineage
from hawkeye.report import collect
from hawkeye.store import MODEL, open_store

CONF = 0.25  # what a user of the detector sees; the records hold everything from 0.001 on
_OVERLAP = 0.5


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        label: name of the version, or folder of the run.
        row: its line of the report's table.
        model: the exported artefact.
        record: its accuracy, with an absolute path of the matches; None where it was not measured.
    """

    label: str
    row: dict[str, Any]
    model: Artifact
    record: AccuracyRecord | None


def side(name: str, store: str | None) -> Side:
    """A version of a store by name, "released" or "previous", or the judged row of a finished run's folder.

    Raises:
        StoreError: no such version.
        ModelError: a name that is no run's folder, and no store is given.
    """
    if (Path(name) / "run.json").is_file():
        run = Path(name)
        table = collect(run)
        recipe = json.loads((run / "run.json").read_text())["recipe"]
        row = gates.target([line["name"] for line in table["rows"]], recipe["gates"].get("row"))
        return _side(name, table, row, lineage(run, row)[-1], run / "records" / "accuracy")
    if store is None:
        raise ModelError("not the folder of a run", got=name, mend="name the store of that version with --store")
    opened = open_store(store)
    version = opened.version(name)
    place = opened.content(version)
    table = json.loads((place / "report.json").read_text())
    return _side(version.id, table, version.row, Artifact.load(place / MODEL), place / "records" / "accuracy")


def _side(label: str, table: dict[str, Any], row: str, model: Artifact, records: Path) -> Side:
    line = next(line for line in table["rows"] if line["name"] == row)
    path = records / f"{row}-{compare.own_runtime(model)}.json"
    record = AccuracyRecord.load(path) if path.is_file() else None
    if record is not None:
        record = record.model_copy(update={"matches": str((records / record.matches).absolute())})
    return Side(label, line, model, record)


def diff(a: Side, b: Side, *, count: int = 10) -> dict[str, Any]:
    """What changes from `a` to `b`, out of their records: nothing is measured.

    Returns:
        `drop` and `drop_ci95` in points of mAP@0.5, `per_class` with `ap50_change`, `pictures` by how much they differ,
        and `notes` on what could not be compared. What is not known is None.
    """
    notes: list[str] = []
    result: dict[str, Any] = {"drop": None, "drop_ci95": None, "per_class": None, "pictures": None, "notes": notes}
    if a.record is None or b.record is None:
        missing = " and ".join(s.label for s in (a, b) if s.record is None)
        notes.append(f"The accuracy of {missing} was not measured.")
        return result
    lost, interval = compare.drop(a.record, b.record, Path(), None, notes, other_size=True)
    result |= {"drop": lost, "drop_ci95": interval}
    if lost is not None:
        result["per_class"] = compare.per_class(a.record, b.record)
        first, second = Matches.load(Path(a.record.matches)), Matches.load(Path(b.record.matches))
        result["pictures"] = differing(first, second)[:count]
    return result


def differing(a: Matches, b: Matches) -> list[dict[str, Any]]:
    """Pictures by how differently two models do in them, the most different first; those without any are left out.

    A picture's difference is the number of objects, class by class, that one finds more of than the other, and of false
    alarms that it raises more of.
    """
    (hits_a, false_a), (hits_b, false_b) = _counts(a), _counts(b)
    difference = np.abs(hits_a - hits_b).sum(axis=1) + np.abs(false_a - false_b).sum(axis=1)
    order = np.argsort(-difference, kind="stable")
    return [
        {
            "picture": str(a.names[i]), "difference": int(difference[i]), "objects": int(a.labels[i].sum()),
            "found": [int(hits_a[i].sum()), int(hits_b[i].sum())],
            "false": [int(false_a[i].sum()), int(false_b[i].sum())],
        }
        for i in order if difference[i]
    ]  # fmt: skip


def _counts(matches: Matches) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hits and false alarms above the usual confidence, each (pictures, classes)."""
    found = []
    for hit in (True, False):
        chosen = (matches.score > CONF) & (matches.hit == hit)
        counts = np.zeros(matches.labels.shape, np.int64)
        np.add.at(counts, (matches.image[chosen], matches.class_id[chosen]), 1)
        found.append(counts)
    return found[0], found[1]


def draw_differences(a: Side, b: Side, pictures: Sequence[Path], *, out: Path, count: int = 10) -> list[dict[str, Any]]:
    """Run both models on pictures and draw those where they differ most, `a` on the left and `b` on the right.

    Returns:
        For each drawn picture `picture`, `difference` (boxes that the other has no counterpart for), `drawn`.

    Raises:
        ModelError: the models know different classes.
        DataError: not one picture can be read.
    """
    from hawkeye.outputs import draw, encode_jpeg
    from hawkeye.runtime.detector import Detector

    one, two = (Detector(side.model, rect=False) for side in (a, b))  # the same input, whatever their files can take
    if one.names != two.names:
        raise ModelError("the two know different classes", got=", ".join(two.names[:5]),
                         expected=", ".join(one.names[:5]))  # fmt: skip
    scored: list[tuple[int, Path]] = []
    skipped = 0
    with progress("compare", len(pictures)) as task:
        for path in pictures:
            try:
                image = read_image(path)
                scored.append((unmatched(one(image), two(image)), path))
            except DataError:
                skipped += 1
            task.advance()
    if not scored:
        raise DataError("not one picture can be read", got=f"{skipped} unreadable", mend="name another --images")
    chosen = sorted((item for item in scored if item[0]), key=lambda item: -item[0])[:count]
    result = []
    for number, (difference, path) in enumerate(chosen, 1):
        image = read_image(path)
        left, right = (draw(image, detector(image), detector.names) for detector in (one, two))
        gap = np.full((image.shape[0], 8, 3), 255, np.uint8)
        target = out / f"{number:02d}-{path.stem}.jpg"
        write_bytes(target, encode_jpeg(np.hstack([left, gap, right])))
        result.append({"picture": path.name, "difference": difference, "drawn": target.name})
    return result


def unmatched(a: Detections, b: Detections) -> int:
    """Boxes of either that have no counterpart in the other: same class, overlap of 0.5 or more, each used once."""
    overlap = iou_matrix(a.xyxy, b.xyxy)  # (A, B)
    overlap[a.class_id[:, None] != b.class_id[None, :]] = 0
    pairs = 0
    while overlap.size and overlap.max() >= _OVERLAP:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        overlap[i, :] = overlap[:, j] = 0
        pairs += 1
    return len(a.score) + len(b.score) - 2 * pairs
