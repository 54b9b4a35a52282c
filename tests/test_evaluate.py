"""Accuracy: held against pycocotools, against itself from the stored matches, and against known answers."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import tiny_ir
from hawkeye.config import EvaluateConfig
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, DataError, ModelError
from hawkeye.evaluate import (
    Matches,
    Truth,
    coco_ground_truth,
    coco_map,
    coco_results,
    evaluate,
    match,
    paired_drop,
    weighted_map50,
)

NAMES = ("a", "b", "c", "never")


def random_case(seed: int, pictures: int = 12) -> tuple[list[Detections], list[Truth]]:
    """Labels of classes 0 to 2, and detections that are labels moved a little, wrong classes and inventions."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(pictures):
        count = rng.integers(0, 12)
        low, size = rng.uniform(0, 300, (count, 2)), rng.uniform(10, 150, (count, 2))
        boxes, classes = np.concatenate([low, low + size], 1).astype(np.float32), rng.integers(0, 3, count)
        truth.append(Truth((480, 480), boxes, classes.astype(np.int32)))
        moved = np.repeat(boxes, 2, 0) + rng.normal(0, 8, (2 * count, 4))
        wild = rng.uniform(0, 200, (6, 2))
        xyxy = np.concatenate([moved, np.concatenate([wild, wild + rng.uniform(10, 90, (6, 2))], 1)])
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
        cls = np.concatenate([np.repeat(classes, 2), rng.integers(0, 4, 6)])
        cls = np.where(rng.uniform(size=len(cls)) < 0.15, rng.integers(0, 4, len(cls)), cls)
        score = rng.uniform(0.01, 1, len(cls)).round(2)  # rounded, so that scores tie
        order = np.argsort(-score, kind="stable")
        found.append(
            Detections(xyxy[order].astype(np.float32), score[order].astype(np.float32), cls[order].astype(np.int32))
        )
    return found, truth


@pytest.mark.parametrize("seed", range(3))
def test_same_as_pycocotools(seed, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    found, truth = random_case(seed)
    map50, map50_95, per_class = coco_map(found, truth, NAMES)
    ground = coco.COCO()
    ground.dataset = coco_ground_truth(truth, NAMES)
    ground.createIndex()
    judge = cocoeval.COCOeval(ground, ground.loadRes(coco_results(found)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert (map50, map50_95) == pytest.approx((judge.stats[1], judge.stats[0]), abs=1e-6)
    assert 0.2 < map50 < 0.95  # the case is neither trivial nor hopeless
    precision = judge.eval["precision"][:, :, :, 0, -1]
    for i, row in enumerate(per_class[:3]):
        assert (row.ap50, row.ap50_95) == pytest.approx((precision[0, :, i].mean(), precision[..., i].mean()), abs=1e-6)
    assert (per_class[3].ap50, per_class[3].instances) == (None, 0)


@pytest.mark.parametrize("seed", range(3))
def test_stored_matches_give_the_same_map(seed, tmp_path):
    found, truth = random_case(seed, pictures=25)
    match(found, truth, 4, [str(i) for i in range(25)]).save(tmp_path / "m.npz")
    stored = Matches.load(tmp_path / "m.npz")
    assert weighted_map50(stored, np.ones((1, 25)))[0] == pytest.approx(coco_map(found, truth, NAMES)[0], abs=1e-3)


def test_a_weight_is_a_repeated_picture():
    found, truth = random_case(9)
    weights = np.random.default_rng(0).integers(0, 3, len(found))
    weights[0] = 3
    repeated = np.repeat(np.arange(len(found)), weights)
    names = [str(i) for i in range(len(found))]
    weighted = weighted_map50(match(found, truth, 4, names), weights[None].astype(float))[0]
    expected = coco_map([found[i] for i in repeated], [truth[i] for i in repeated], NAMES)[0]
    assert weighted == pytest.approx(expected, abs=5e-3)  # ties between repeats may fall in another order


def test_no_detections_and_no_labels():
    _, truth = random_case(0)
    assert coco_map([Detections.empty()] * len(truth), truth, NAMES)[:2] == (0, 0)
    nothing = [Truth((10, 10), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))]
    with pytest.raises(DataError, match="no labels"):
        coco_map([Detections.empty()], nothing, NAMES)
    assert weighted_map50(match([Detections.empty()] * len(truth), truth, 4, ["x"] * len(truth)),
                          np.ones((2, len(truth)))).tolist() == [0, 0]  # fmt: skip


def squares(folder: Path, count: int = 6, names: tuple[str, ...] = tiny_ir.NAMES) -> Path:
    """Pictures with one coloured square each that the tiny network finds exactly; the last one is labelled wrongly."""
    (folder / "images/val").mkdir(parents=True)
    (folder / "labels/val").mkdir(parents=True)
    for number in range(count):
        image = np.zeros((64, 64, 3), np.uint8)
        cls = number % 3
        image[32:64, 0:32, cls] = 255
        cv2.imwrite(str(folder / f"images/val/{number}.png"), image)
        label = cls if number < count - 1 else (cls + 1) % 3
        (folder / f"labels/val/{number}.txt").write_text(f"{label} 0.25 0.75 0.5 0.5\n")
    content = {"path": ".", "train": "images/val", "val": "images/val", "names": list(names)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def test_evaluate_writes_a_record_and_reuses_it(tmp_path):
    made = tiny_ir.artifact(tmp_path / "model")
    config = EvaluateConfig(data=squares(tmp_path / "data"), threads=1)
    out = tmp_path / "records"
    record = evaluate(made, config, runtime="openvino-f32", out=out)
    assert record == type(record).load(out / "original-openvino-f32.json")
    assert (record.images, record.skipped, record.precision_hint, record.threads) == (6, 0, "f32", 1)
    assert [row.instances for row in record.per_class] == [3, 2, 1]  # the last red one is labelled blue
    # The full-size box is one of the 21 of its colour (16 + 4 + 1); it has the best score with the others.
    assert 0 < record.map50 < 1
    stored = Matches.load(out / record.matches)
    assert stored.hit.sum() == 5
    assert weighted_map50(stored, np.ones((1, 6)))[0] == pytest.approx(record.map50, abs=1e-3)
    before = (out / "original-openvino-f32.json").stat().st_mtime_ns
    assert evaluate(made, config, runtime="openvino-f32", out=out) == record
    assert (out / "original-openvino-f32.json").stat().st_mtime_ns == before
    (tmp_path / "data/labels/val/0.txt").write_text("1 0.25 0.75 0.5 0.5\n")
    assert evaluate(made, config, runtime="openvino-f32", out=out).dataset_sha256 != record.dataset_sha256


def test_some_of_the_pictures_are_enough_where_that_is_asked_for(tmp_path):
    made = tiny_ir.artifact(tmp_path / "model")
    config = EvaluateConfig(data=squares(tmp_path / "data"), threads=1, samples=4)
    found = {seed: evaluate(made, config.with_(seed=seed), runtime="openvino-f32", out=tmp_path / str(seed))
             for seed in range(4)}  # fmt: skip
    assert {record.images for record in found.values()} == {4}
    assert len({record.dataset_sha256 for record in found.values()}) > 1
    again = evaluate(made, config, runtime="openvino-f32", out=tmp_path / "again")
    assert again.dataset_sha256 == found[0].dataset_sha256
    assert evaluate(made, config.with_(samples=100), runtime="openvino-f32", out=tmp_path / "all").images == 6


def test_unreadable_pictures_are_counted(tmp_path):
    made = tiny_ir.artifact(tmp_path / "model")
    config = EvaluateConfig(data=squares(tmp_path / "data", count=20), threads=1)
    (tmp_path / "data/images/val/3.png").write_bytes(b"broken")
    record = evaluate(made, config, runtime="openvino-f32", out=tmp_path / "out")
    assert (record.images, record.skipped) == (19, 1)
    for number in (4, 5):
        (tmp_path / f"data/images/val/{number}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="too many"):
        evaluate(made, config, runtime="openvino-f32", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"), [(("blue", "green", "pink"), "class 2 is 'pink'"), (("a",), "1 classes")]
)
def test_other_class_names(tmp_path, names, message):
    config = EvaluateConfig(data=squares(tmp_path / "data", names=names), threads=1)
    with pytest.raises(DataError, match=message):
        evaluate(tiny_ir.artifact(tmp_path / "m"), config, runtime="openvino-f32", out=tmp_path / "out")


def test_wrong_requests(tmp_path):
    made = tiny_ir.artifact(tmp_path / "m")
    with pytest.raises(ConfigError, match="labelled pictures"):
        evaluate(made, EvaluateConfig(), runtime="openvino-f32", out=tmp_path)
    with pytest.raises(ModelError, match="another picture size"):
        config = EvaluateConfig(data=squares(tmp_path / "data"), imgsz=128)
        evaluate(made, config, runtime="openvino-f32", out=tmp_path)


def test_paired_drop(tmp_path):
    config = EvaluateConfig(data=squares(tmp_path / "data"), threads=1)
    out = tmp_path / "records"
    record = evaluate(tiny_ir.artifact(tmp_path / "m"), config, runtime="openvino-f32", out=out)
    assert paired_drop(record, record, out, resamples=50) == (0, 0, 0)
    found, truth = random_case(1, pictures=40)
    names = [str(i) for i in range(40)]
    match(found, truth, 4, names).save(out / "good.npz")
    weak = [dets[dets.class_id != 0] for dets in found]
    match(weak, truth, 4, names).save(out / "weak.npz")
    good = record.model_copy(update={"matches": "good.npz", "map50": coco_map(found, truth, NAMES)[0]})
    worse = record.model_copy(update={"matches": "weak.npz", "map50": coco_map(weak, truth, NAMES)[0]})
    drop, low, high = paired_drop(good, worse, out, resamples=200, seed=1)
    assert 5 < low < drop < high
    assert (drop, low, high) == paired_drop(good, worse, out, resamples=200, seed=1)
    with pytest.raises(ModelError, match="different pictures"):
        paired_drop(record, good, out)


def test_bootstrap_is_quick(tmp_path):
    """1,000 resamples of 200 pictures with 300 detections each, both models: far below half a minute."""
    rng = np.random.default_rng(0)
    count = 60_000
    matches = Matches(np.repeat(np.arange(200), 300).astype(np.int32), rng.integers(0, 80, count).astype(np.int32),
                      rng.uniform(0, 1, count).astype(np.float32), rng.uniform(size=count) < 0.03,
                      rng.integers(0, 2, (200, 80)).astype(np.int32), np.arange(200).astype(str))  # fmt: skip
    started = time.process_time()
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=100).astype(float)
    weighted_map50(matches, weights)
    assert time.process_time() - started < 1.5  # a tenth of 1,000, one of two models
