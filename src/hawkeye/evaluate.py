"""Accuracy of an exported file on labelled pictures, with the runtime's own pre- and post-processing.

mAP is COCO's (101-point interpolation, at most 100 detections per picture and class), computed by faster-coco-eval.
Beside the record lie the matches at overlap 0.5, from which the drop between two models is bootstrapped over pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import environment, keys
from hawkeye.artifact import Artifact, Format, write_bytes
from hawkeye.config import EvaluateConfig
from hawkeye.data import MAX_UNREADABLE, Dataset, content_digest, load_dataset, read_image, read_labels
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, DataError, ModelError
from hawkeye.geometry import Letterbox, iou_matrix
from hawkeye.progress import progress
from hawkeye.records import AccuracyRecord, ClassAccuracy, RuntimeName
from hawkeye.runtime import Runtime, load_runtime

_MAX_PER_CLASS = 100  # COCO's limit of detections per picture and class
# At conf 0.001 every class of a cell above it is a candidate: 30 to 1,500 per picture for yolov8n on COCO, suppressed
# class by class in about 1 ms. A cap this high never touches them, and bounds the time of a broken network.
_MAX_CANDIDATES = 5_000
_RECALL = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Truth:
    """Labels of one picture in pixels."""

    hw: tuple[int, int]
    xyxy: NDArray[np.float32]  # (G, 4)
    class_id: NDArray[np.int32]  # (G,)


@dataclass(frozen=True)
class Matches:
    """What a paired bootstrap needs: D detections with their match at overlap 0.5, and the counts of labels."""

    image: NDArray[np.int32]  # (D,) index of the picture
    class_id: NDArray[np.int32]  # (D,)
    score: NDArray[np.float32]  # (D,)
    hit: NDArray[np.bool_]  # (D,) matches a label of its class by 0.5 or more
    labels: NDArray[np.int32]  # (pictures, classes)
    names: NDArray[np.str_]  # (pictures,) file names, to see that two records hold the same ones

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        buffer = BytesIO()
        np.savez_compressed(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Matches:
        """Read back.

        Raises:
            ModelError: not there, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(**{field.name: content[field.name] for field in fields(cls)})
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise ModelError(f"cannot read the matches {path}", got=error, mend="evaluate again") from None


def evaluate(artifact: Artifact, config: EvaluateConfig, *, runtime: RuntimeName, out: Path) -> AccuracyRecord:
    """Measure one file of an artefact; writes `out/<name>-<runtime>.json` and `.npz`.

    A finished record of the same file, pictures and settings is returned instead of measuring again.

    Raises:
        ConfigError: no data set is given.
        DataError: its class names are not the model's, or too many pictures cannot be read.
        ModelError: the artefact has no file for the runtime, or takes another picture size.
    """
    started = time.perf_counter()
    if config.data is None:
        raise ConfigError("accuracy needs labelled pictures", got="no data set", mend="give --data a data.yaml")
    if config.imgsz not in (None, artifact.spec.imgsz):
        raise ModelError(f"{artifact.name} takes another picture size", got=config.imgsz, expected=artifact.spec.imgsz,
                         mend="leave --imgsz out, or export the model at that size")  # fmt: skip
    dataset = load_dataset(config.data)
    check_names(dataset, artifact.spec.names)
    pictures = keys.evaluation(dataset, config)
    stem = f"{artifact.name}-{runtime}"
    settings = record_settings(artifact, config, runtime, content_digest(pictures))
    done = finished(out, stem, settings)
    if done is not None:
        return done
    opened = load_runtime(artifact, runtime, threads=config.threads)
    found, truth, read = detect_all(opened, config, pictures, title=f"accuracy of {artifact.name}, {runtime}")
    map50, map50_95, per_class = coco_map(found, truth, artifact.spec.names)
    match(found, truth, len(artifact.spec.names), [path.name for path in read]).save(out / f"{stem}.npz")
    record = AccuracyRecord(
        **settings,
        precision_hint=opened.precision_hint,
        dataset=f"{config.data.resolve().parent.name}/{config.data.name}",
        images=len(read),
        skipped=len(pictures) - len(read),
        map50=map50,
        map50_95=map50_95,
        per_class=per_class,
        matches=f"{stem}.npz",
        seconds=round(time.perf_counter() - started, 3),
        environment={**environment.describe(), "precision_executed": opened.precision_executed},
    )
    record.save(out / f"{stem}.json")
    return record


def record_settings(artifact: Artifact, config: EvaluateConfig, runtime: RuntimeName, content: str) -> dict[str, Any]:
    """What makes two evaluations the same: the file, the pictures by their content hash, and the evaluator.

    Raises:
        ModelError: the artefact has no file for the runtime.
    """
    fmt = file_format(runtime)
    artifact.path(fmt)
    return {
        "name": artifact.name, "artifact_sha256": artifact.sha256, "file_sha256": artifact.files[fmt].sha256,
        "format": fmt, "runtime": runtime, "dataset_sha256": content, "split": config.split,
        "imgsz": artifact.spec.imgsz, "conf": config.conf, "iou": config.iou, "max_det": config.max_det,
        "threads": config.threads or environment.cpu_count(),
    }  # fmt: skip


def file_format(runtime: RuntimeName) -> Format:
    """Which of an artefact's files a runtime opens."""
    if runtime == "pytorch-fp32":
        return "pytorch"
    return "onnx" if runtime == "onnxruntime" else "openvino"


def check_names(dataset: Dataset, names: Sequence[str]) -> None:
    """Hold the data set's classes against the model's.

    Raises:
        DataError: they differ.
    """
    if dataset.names == tuple(names):
        return
    if len(dataset.names) != len(names):
        got, expected = f"{len(dataset.names)} classes", f"{len(names)} classes, as the model has"
    else:
        index = next(i for i, pair in enumerate(zip(dataset.names, names, strict=True)) if pair[0] != pair[1])
        got, expected = f"class {index} is {dataset.names[index]!r}", f"{names[index]!r}, as the model has it"
    raise DataError(f"class names of {dataset.yaml} differ from the model's", got=got, expected=expected,
                    mend="use the data.yaml that the model was trained with")  # fmt: skip


def detect_all(
    runtime: Runtime, config: EvaluateConfig, pictures: Sequence[Path], *, title: str
) -> tuple[list[Detections], list[Truth], list[Path]]:
    """Detections and labels of every picture that can be read, in pixels, and those pictures.

    Raises:
        DataError: more than 10 % cannot be read, or a label cannot be used.
    """
    size, classes = runtime.spec.imgsz, len(runtime.spec.names)
    canvas: NDArray[np.uint8] = np.empty((size, size, 3), np.uint8)
    found: list[Detections] = []
    truth: list[Truth] = []
    read: list[Path] = []
    skipped: list[Path] = []
    with progress(title, len(pictures)) as task:
        for path in pictures:
            try:
                image = read_image(path)
            except DataError:
                skipped.append(path)
                if len(skipped) > MAX_UNREADABLE * len(pictures):
                    raise DataError("too many pictures cannot be read", got=f"{len(skipped)}, such as {skipped[:3]}",
                                    expected=f"at most {MAX_UNREADABLE:.0%} of {len(pictures)}",
                                    mend="remove or replace them") from None  # fmt: skip
                task.advance()
                continue
            height, width = image.shape[:2]
            letterbox = Letterbox.fit((height, width), size)
            letterbox.apply_(image, canvas)
            dets = decode(runtime.infer(canvas), conf=config.conf, iou=config.iou, max_det=config.max_det,
                          max_candidates=_MAX_CANDIDATES, multi_label=True)  # fmt: skip
            found.append(Detections(letterbox.to_source(dets.xyxy), dets.score, dets.class_id))
            truth.append(to_truth(read_labels(path, classes), (height, width)))
            read.append(path)
            task.advance()
    return found, truth, read


def to_truth(labels: NDArray[np.float32], hw: tuple[int, int]) -> Truth:
    """Labels (G, 5) as fractions of the picture to corners in pixels."""
    scale = np.array([hw[1], hw[0]], np.float64)
    centre, size = labels[:, 1:3] * scale, labels[:, 3:5] * scale
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    return Truth(hw, xyxy, labels[:, 0].astype(np.int32))


def coco_map(
    found: Sequence[Detections], truth: Sequence[Truth], names: Sequence[str]
) -> tuple[float, float, tuple[ClassAccuracy, ...]]:
    """mAP@0.5, mAP@0.5:0.95 and the same per class, as COCO defines them.

    Raises:
        DataError: there is not one label.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not any(len(t.class_id) for t in truth):
        raise DataError("accuracy cannot be measured", got="no labels at all", expected="labelled pictures")
    silent = {"print_function": lambda *_: None}
    ground = COCO(coco_ground_truth(truth, names), **silent)
    rows = coco_results(found)
    counts = np.bincount(np.concatenate([t.class_id for t in truth]), minlength=len(names))
    if not rows:  # faster-coco-eval refuses an empty list; no detections mean no hits
        zero = tuple(ClassAccuracy(name=n, instances=int(c), ap50=0.0 if c else None, ap50_95=0.0 if c else None)
                     for n, c in zip(names, counts, strict=True))  # fmt: skip
        return 0.0, 0.0, zero
    judge = COCOeval_faster(ground, ground.loadRes(rows), iouType="bbox", **silent)
    judge.evaluate()
    judge.accumulate()
    precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]  # (10 overlaps, 101 recalls, classes)
    per_class = tuple(
        ClassAccuracy(
            name=name,
            instances=int(counts[i]),
            ap50=float(precision[0, :, i].mean()) if counts[i] else None,
            ap50_95=float(precision[:, :, i].mean()) if counts[i] else None,
        )
        for i, name in enumerate(names)
    )
    seen = precision[:, :, counts > 0]
    return float(seen[0].mean()), float(seen.mean()), per_class


def coco_ground_truth(truth: Sequence[Truth], names: Sequence[str]) -> dict[str, Any]:
    """Labels in COCO's format; picture, class and label numbers start at 1, as 0 means "none" to COCO's matcher."""
    annotations: list[dict[str, Any]] = []
    for image, item in enumerate(truth, 1):
        for box, cls in zip(item.xyxy.astype(float), item.class_id, strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(cls) + 1,
                                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    return {
        "info": {},
        "images": [{"id": i, "height": t.hw[0], "width": t.hw[1], "file_name": str(i)} for i, t in enumerate(truth, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def coco_results(found: Iterable[Detections]) -> list[dict[str, Any]]:
    """Detections in COCO's format."""
    return [
        {"image_id": image, "category_id": int(cls) + 1, "score": float(score),
         "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]}
        for image, dets in enumerate(found, 1)
        for box, score, cls in zip(dets.xyxy, dets.score, dets.class_id, strict=True)
    ]  # fmt: skip


def match(found: Sequence[Detections], truth: Sequence[Truth], classes: int, names: Sequence[str]) -> Matches:
    """Match detections to labels at overlap 0.5 as COCO does: best score first, each to its best label still free."""
    parts = []
    labels = np.zeros((len(truth), classes), np.int32)
    for image, (dets, item) in enumerate(zip(found, truth, strict=True)):
        labels[image] = np.bincount(item.class_id, minlength=classes)
        for cls in np.unique(dets.class_id):
            mine = np.flatnonzero(dets.class_id == cls)
            mine = mine[np.argsort(-dets.score[mine], kind="stable")][:_MAX_PER_CLASS]
            overlap = iou_matrix(dets.xyxy[mine], item.xyxy[item.class_id == cls])  # (D, G)
            hit = np.zeros(len(mine), bool)
            for row in range(len(mine) if overlap.shape[1] else 0):
                best = overlap[row].argmax()
                if overlap[row, best] >= 0.5:
                    hit[row] = True
                    overlap[:, best] = -1
            parts.append((np.full(len(mine), image), np.full(len(mine), cls), dets.score[mine], hit))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    return Matches(columns[0].astype(np.int32), columns[1].astype(np.int32), columns[2].astype(np.float32),
                   columns[3].astype(bool), labels, np.array(list(names), dtype=np.str_))  # fmt: skip


def weighted_map50(matches: Matches, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """mAP@0.5 for R weightings of the pictures at once: weights (R, pictures) to (R,).

    A weight of 2 counts a picture twice. Classes without labels under a weighting are left out of its mean.
    """
    total = np.zeros(len(weights))
    counted = np.zeros(len(weights))
    labels = weights @ matches.labels  # (R, classes)
    for cls in np.flatnonzero(matches.labels.sum(axis=0)):
        mine = np.flatnonzero(matches.class_id == cls)
        mine = mine[np.argsort(-matches.score[mine], kind="stable")]
        hit = matches.hit[mine]
        if hit.any():
            last = int(np.flatnonzero(hit)[-1]) + 1  # what follows the last hit cannot raise precision any more
            mine, hit = mine[:last], hit[:last]
            weight = weights[:, matches.image[mine]]  # (R, n)
            hits = np.cumsum(weight * hit, axis=1)
            precision = hits / np.maximum(np.cumsum(weight, axis=1), 1e-12)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(labels[:, cls, None], 1e-12)
            for r in np.flatnonzero(labels[:, cls]):
                # Sums of weights are whole numbers, so a recall that equals a level is at most a rounding away from it.
                at = np.searchsorted(recall[r], _RECALL - 1e-12, side="left")
                total[r] += precision[r, at[at < last]].sum() / len(_RECALL)
        counted += labels[:, cls] > 0
    return total / np.maximum(counted, 1)


def paired_drop(
    base: AccuracyRecord, other: AccuracyRecord, folder: Path, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Points of mAP@0.5 lost from `base` to `other`, and the bounds of its 95 % confidence interval.

    Both models are judged on the same resampled pictures each time, so what makes a picture hard cancels out.

    Args:
        folder: where the records' .npz files lie.

    Raises:
        ModelError: the records are of different pictures.
    """
    first, second = Matches.load(folder / base.matches), Matches.load(folder / other.matches)
    if base.dataset_sha256 != other.dataset_sha256 or not np.array_equal(first.names, second.names):
        raise ModelError("two records of different pictures cannot be compared", got=other.dataset,
                         expected=base.dataset, mend="evaluate both on the same data")  # fmt: skip
    low, high = drop_interval(first, second, resamples=resamples, seed=seed)
    return (base.map50 - other.map50) * 100, low, high


def drop_interval(first: Matches, second: Matches, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % confidence interval of the points of mAP@0.5 lost from one to the other, on equal pictures."""
    count = len(first.names)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    # In portions, so that weights x detections of the commonest class stay small in memory.
    drops = np.concatenate([weighted_map50(first, part) - weighted_map50(second, part)
                            for part in np.array_split(weights, max(1, resamples // 50))])  # fmt: skip
    low, high = np.percentile(drops * 100, [2.5, 97.5])
    return float(low), float(high)


def finished(out: Path, stem: str, settings: dict[str, Any]) -> AccuracyRecord | None:
    """The record of exactly this evaluation with these versions, if it was made before."""
    path = out / f"{stem}.json"
    if not path.is_file():
        return None
    try:
        record = AccuracyRecord.load(path)
        Matches.load(out / record.matches)
    except ModelError:
        return None
    # How many threads worked does not change what is found, and a pipeline's next machine may have others.
    told = {name: value for name, value in settings.items() if name != "threads"}
    same = json.loads(record.model_dump_json(include=set(told))) == json.loads(json.dumps(told))
    return record if same and record.environment.get("versions") == environment.versions() else None
