"""Recovery: its loss, that it helps what is broken and leaves alone what is whole, and which pictures it reads."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import tiny_detector  # noqa: E402
from hawkeye.artifact import Artifact  # noqa: E402
from hawkeye.compress import recover as recovery  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.compress.distance import distillation_loss  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.prune import prune  # noqa: E402
from hawkeye.compress.recover import recover, train  # noqa: E402
from hawkeye.compress.trunk import SharedTrunk, outputs_of, untouched  # noqa: E402
from hawkeye.config import PruneConfig, RecoverConfig  # noqa: E402
from hawkeye.data import load_dataset  # noqa: E402
from hawkeye.errors import ConfigError, DataError, ModelError  # noqa: E402
from hawkeye.progress import watched  # noqa: E402
from hawkeye.scenes import NAMES, draw_dataset  # noqa: E402

pytestmark = pytest.mark.compress
REG_MAX, CLASSES, ANCHORS = 4, 3, 10
KEPT = (torch.tensor([0, 2]), torch.tensor([1, 2, 3]))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("recover") / "scenes", train=24, val=4, imgsz=96, seed=1)


@pytest.fixture(scope="module")
def original(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    path = tiny_detector.checkpoint(scenes, folder)
    return import_original(path, imgsz=64, out=folder / "out")


@pytest.fixture(scope="module")
def pruned(original, scenes, tmp_path_factory):
    config = PruneConfig(data=scenes, method="l1", flops=0.6, params=0.6, separable=False)
    return prune(original, config, out=tmp_path_factory.mktemp("pruned"))


def settings(**changes):
    # A random original contradicts the labels, so they get little weight here.
    return RecoverConfig(
        **{"steps": 6, "labels": 0.001, "batch": 4, "lr": 1e-2, "ema": 0.9, "checks": 2, "holdout": 0.2, **changes}
    )


def weights(result):
    return yolo.load_checkpoint(result.path("pytorch")).model.state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def outputs(seed: int, scale: float = 1.0, channels: tuple[int, int] = (4, 5)):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    return {"scores": draw(2, CLASSES, ANCHORS), "boxes": draw(2, 4 * REG_MAX, ANCHORS),
            "feats": [draw(2, c, 3, 3) for c in channels]}  # fmt: skip


def detached(raw):
    return {"scores": raw["scores"].detach().clone(), "boxes": raw["boxes"].detach().clone(),
            "feats": [f.detach().clone() for f in raw["feats"]]}  # fmt: skip


def as_student(teacher):
    raw = detached(teacher)
    raw["feats"] = [f[:, index].clone() for f, index in zip(raw["feats"], KEPT, strict=True)]
    for tensor in (raw["scores"], raw["boxes"], *raw["feats"]):
        tensor.requires_grad_()
    return raw


def test_loss_and_its_gradient_are_zero_where_both_agree():
    teacher = detached(outputs(0))
    student = as_student(teacher)
    loss = distillation_loss(student, teacher, 1.0, KEPT)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for tensor in (student["scores"], student["boxes"], *student["feats"]):
        assert float(tensor.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("part", ["scores", "boxes", "feats"])
def test_every_part_that_differs_costs_and_is_pulled_back(part):
    teacher = detached(outputs(0))
    student = as_student(teacher)
    moved = student["feats"][1] if part == "feats" else student[part]
    with torch.no_grad():
        moved += torch.randn(moved.shape, generator=torch.Generator().manual_seed(1))
    loss = distillation_loss(student, teacher, 1.0, KEPT)
    loss.backward()
    assert loss.item() > 0.01
    for name in {"scores", "boxes"} - {part}:
        assert float(student[name].grad.abs().max()) < 1e-6
    with torch.no_grad():
        moved -= 0.1 * moved.grad
    assert distillation_loss(student, teacher, 1.0, KEPT).item() < loss.item()


def test_features_count_by_their_weight_only():
    teacher = detached(outputs(0))
    student = as_student(teacher)
    with torch.no_grad():
        student["feats"][0] += 1
    one, two = (distillation_loss(student, teacher, w, KEPT).item() for w in (1.0, 2.0))
    assert distillation_loss(student, teacher, 0.0, ()).item() == pytest.approx(0, abs=1e-6)
    assert two == pytest.approx(2 * one, rel=1e-4)


def test_loss_is_that_of_the_definition():
    """Classes: sum of Bernoulli divergences; boxes: divergence of each side, by confidence; both per confidence."""
    teacher, student = detached(outputs(0)), detached(outputs(1))
    p, q = teacher["scores"].sigmoid(), student["scores"].sigmoid()
    unit = max(1.0, float(p.amax(1).sum()))
    classes = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
    boxes = 0.0
    for picture in range(2):
        for anchor in range(ANCHORS):
            for side in range(4):
                rows = slice(side * REG_MAX, (side + 1) * REG_MAX)
                t = teacher["boxes"][picture, rows, anchor].softmax(0)
                s = student["boxes"][picture, rows, anchor].softmax(0)
                boxes += float(p[picture, :, anchor].max() * (t * (t / s).log()).sum())
    assert distillation_loss(student, teacher, 0.0, ()).item() == pytest.approx((classes + boxes) / unit, rel=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 100.0, 1e4])
def test_loss_and_gradient_stay_finite_in_extreme_logits(scale, kind):
    teacher = {"scores": (outputs(0, scale)["scores"]).to(kind).detach(),
               "boxes": outputs(0, scale)["boxes"].to(kind).detach(), "feats": []}  # fmt: skip
    student = outputs(1, scale)
    loss = distillation_loss({**student, "feats": []}, teacher, 1.0, ())
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(student["scores"].grad).all()
    assert torch.isfinite(student["boxes"].grad).all()


def test_teacher_that_sees_nothing_gives_no_nan():
    teacher = {
        "scores": torch.full((1, 2, 5), -1e4),
        "boxes": torch.zeros(1, 16, 5),
        "feats": [torch.zeros(1, 2, 2, 2)],
    }
    student = {"scores": torch.zeros(1, 2, 5), "boxes": torch.ones(1, 16, 5), "feats": [torch.zeros(1, 2, 2, 2)]}
    loss = distillation_loss(student, teacher, 1.0, [torch.arange(2)])
    assert torch.isfinite(loss)
    assert loss > 0  # the student sees something


@pytest.mark.parametrize(("labelled", "read"), [(1, 1), (3, 2), (4, 2)])
def test_half_of_the_labelled_pictures_of_a_step_are_compared_with_their_labels(labelled, read):
    raw = {"boxes": torch.zeros(4, 16, 5), "scores": torch.zeros(4, 2, 5), "feats": [torch.zeros(4, 2, 2, 2)]}
    rows = torch.arange(labelled).repeat_interleave(2)  # two objects a picture
    batch = {"img": torch.zeros(4, 3, 8, 8), "labelled": torch.arange(4) < labelled, "batch_idx": rows,
             "cls": rows[:, None] + 0.5, "bboxes": rows[:, None] + torch.zeros(1, 4)}  # fmt: skip
    seen = []

    def detection(mine, labels):
        seen.append((mine, labels))
        return torch.tensor(1.0)

    recovery._labelled_loss(detection, raw, batch)
    ((mine, labels),) = seen
    assert {len(mine["boxes"]), len(mine["scores"]), len(mine["feats"][0])} == {read}
    assert labels["batch_idx"].tolist() == rows[: 2 * read].tolist()
    assert labels["cls"].shape == (2 * read, 1)
    assert labels["bboxes"].shape == (2 * read, 4)


def test_distilling_the_original_into_itself_is_harmless(original, pruned, scenes, tmp_path):
    """A recipe that damages a perfect student would hide what it mends in a damaged one."""
    itself = recover(original, settings(data=scenes, labels=0.0, steps=10, lr=1e-3, checks=10), teacher=original,
                     out=tmp_path / "itself")  # fmt: skip
    broken = recover(pruned, settings(data=scenes, labels=0.0, steps=1, checks=1), teacher=original,
                     out=tmp_path / "broken")  # fmt: skip
    assert abs(itself.details["held_out_before"]) < 0.01 * broken.details["held_out_before"]  # bfloat16 rounds
    worst = max(point["held_out"] for point in itself.details["curve"])
    assert worst < 0.02 * broken.details["held_out_before"]
    before, after = weights(original), weights(itself)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nets = [yolo.load_checkpoint(a.path("pytorch")).model for a in (original, itself)]
    with torch.no_grad():
        wanted, got = (net(pixels)[0] for net in nets)
    assert before.keys() == after.keys()
    assert float((wanted[:, 4:] - got[:, 4:]).abs().max()) < 0.01  # scores
    assert float((wanted[:, :4] - got[:, :4]).abs().max()) < 0.64  # boxes: a hundredth of the picture


def test_recovery_of_a_pruned_network_lowers_the_held_out_judgement(pruned, original, scenes, tmp_path):
    result = recover(pruned, settings(data=scenes, steps=40, lr=5e-3), teacher=original, out=tmp_path)
    details = result.details
    assert details["held_out_after"] < 0.8 * details["held_out_before"]
    assert details["held_out_after"] == min(point["held_out"] for point in details["curve"])
    assert (result.name, result.stage, result.parent_sha256) == ("pruned", "recover", pruned.sha256)
    assert (result.params, result.macs) == (pruned.params, pruned.macs)
    shapes = {name: value.shape for name, value in weights(pruned).items()}
    assert {name: value.shape for name, value in weights(result).items()} == shapes
    assert not (tmp_path / "training").exists() or not list((tmp_path / "training").iterdir())


def test_two_runs_with_one_seed_are_the_same_to_the_bit_and_a_finished_one_is_reused(
    pruned, original, scenes, tmp_path
):
    a, b, other = (
        recover(pruned, settings(data=scenes, seed=seed, steps=8), teacher=original, out=tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(other))
    changed = (tmp_path / "a" / "recovered.pt").stat().st_mtime_ns
    again = recover(pruned, settings(data=scenes, steps=8, save_every=5), teacher=original, out=tmp_path / "a")
    assert again.sha256 == a.sha256
    assert (tmp_path / "a" / "recovered.pt").stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    ("labelled", "unlabelled"), [(False, True), (True, True)], ids=["without a label", "labelled and unlabelled"]
)
def test_pictures_without_labels_are_enough_and_can_join_labelled_ones(
    pruned, original, scenes, tmp_path, labelled, unlabelled
):
    extra = tmp_path / "extra"
    extra.mkdir()
    for i, path in enumerate(load_dataset(scenes).split("train")[:10]):
        shutil.copy(path, extra / f"extra-{i}.jpg")
    config = settings(data=scenes if labelled else None, images=extra, steps=8)
    result = recover(pruned, config, teacher=original, out=tmp_path / "out")
    assert result.details["pictures"] == {
        "labelled": 19 if labelled else 0,
        "unlabelled": 8,
        "held_out": 7 if labelled else 2,
    }
    assert result.details["held_out_after"] < result.details["held_out_before"]


def test_validation_pictures_are_never_read(pruned, original, tmp_path):
    data = draw_dataset(tmp_path / "scenes", train=12, val=12, imgsz=96, seed=1)
    for path in load_dataset(data).split("val"):
        path.write_bytes(b"no picture")  # reading any would be an error
        path.chmod(0)
    config = settings(data=data, images=tmp_path / "scenes" / "images", steps=2, checks=1)
    result = recover(pruned, config, teacher=original, out=tmp_path / "out")
    pictures = result.details["pictures"]
    assert pictures["labelled"] + pictures["unlabelled"] + pictures["held_out"] == 24  # 12, with and without labels


def test_one_picture_is_too_few(pruned, original, scenes, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(load_dataset(scenes).split("train")[0], tmp_path / "one")
    with pytest.raises(DataError, match="too few pictures"):
        recover(pruned, settings(images=tmp_path / "one"), teacher=original, out=tmp_path / "out")
    assert not (tmp_path / "out" / "artifact.json").exists()


def test_features_need_to_know_which_channels_were_kept(pruned, original, scenes, tmp_path):
    foreign = pruned.model_copy(update={"details": {}})
    with pytest.raises(ModelError, match="channels it has kept"):
        recover(foreign, settings(data=scenes), teacher=original, out=tmp_path / "a")
    result = recover(foreign, settings(data=scenes, features=0.0, steps=2, checks=1), teacher=original,
                     out=tmp_path / "b")  # fmt: skip
    assert "kept_features" not in result.details


def test_training_leaves_a_stock_checkpoint_that_is_kept(scenes, tmp_path):
    fresh = yolo.build_detector(NAMES, width=0.125, imgsz=64)
    path = train(fresh, data=scenes, imgsz=64, budget=0.5, out=tmp_path)
    assert yolo.load_checkpoint(path).names == NAMES
    assert not (tmp_path / "training.pt").exists()
    stamp = path.stat().st_mtime_ns
    assert train(fresh, data=scenes, imgsz=64, budget=0.5, out=tmp_path).stat().st_mtime_ns == stamp


def test_training_gives_a_checkpoint_the_classes_of_the_data(scenes, tmp_path):
    other = tiny_detector.fresh(tmp_path / "other.pt", ("a", "b"))
    path = train(other, data=scenes, imgsz=64, budget=0.5, out=tmp_path / "out")
    assert yolo.load_checkpoint(path).names == NAMES


@pytest.mark.slow
def test_two_processes_train_as_one_and_a_run_goes_on_with_another_number(pruned, original, scenes, tmp_path):
    config = settings(data=scenes, labels=0.0, steps=8, checks=1, save_every=0)
    alone = weights(recover(pruned, config, teacher=original, out=tmp_path / "alone"))
    others = weights(recover(pruned, config.with_(seed=1), teacher=original, out=tmp_path / "others"))
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, sys
from pathlib import Path
from hawkeye.artifact import Artifact
from hawkeye.compress import training
from hawkeye.compress.recover import recover
from hawkeye.config import RecoverConfig

stop = int(sys.argv[1])
update = training._Loop.update
def counted(loop, *args):
    if loop.step == stop:
        os._exit(9)
    return update(loop, *args)
training._Loop.update = counted
config = RecoverConfig.model_validate_json({config.model_dump_json()!r})
recover(Artifact.load(Path({str(pruned.root)!r})), config, teacher=Artifact.load(Path({str(original.root)!r})),
        out=Path({str(tmp_path / "shared")!r}))
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert subprocess.run([*command, "5"], env=environment, capture_output=True).returncode != 0
    assert not (tmp_path / "shared" / "artifact.json").exists()
    saved = next((tmp_path / "shared" / "training").glob("*.pt"))
    assert torch.load(saved, weights_only=True)["step"] in (4, 5)
    halfway = tmp_path / "other" / "training"
    halfway.mkdir(parents=True)
    (halfway / saved.name).write_bytes(saved.read_bytes())
    done = subprocess.run([*command, "-1"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    together = weights(Artifact.load(tmp_path / "shared"))
    mixed = weights(recover(pruned, config, teacher=original, out=tmp_path / "other"))  # two processes, then one
    start = weights(pruned)

    def moved(state):
        return torch.cat([(state[k].float() - start[k].float()).flatten() for k in start if "num_batches" not in k])

    def alike(state):
        return float(torch.nn.functional.cosine_similarity(moved(state), moved(alone), dim=0))

    # Orthogonal steps magnify bfloat16's rounding, so the way is close, not the same; other pictures lead elsewhere.
    for state in (together, mixed):
        assert alike(state) > max(0.8, alike(others) + 0.1)
        assert moved(state).norm() == pytest.approx(float(moved(alone).norm()), rel=0.1)


def test_another_network_teaches_scores_and_boxes(pruned, original, scenes, tmp_path):
    wide = tiny_detector.fresh(tmp_path / "wide.pt", width=0.25, seed=1)
    teacher = import_original(wide, imgsz=64, out=tmp_path / "teacher")
    config = settings(data=scenes, teacher=wide, steps=6, checks=2)
    seen = []
    with watched(lambda part, judgement: seen.append((part, judgement))):
        made = recover(pruned, config, teacher=teacher, out=tmp_path / "out")
    assert made.details["held_out_after"] < made.details["held_out_before"]
    assert [part for part, _ in seen] == [0.5, 1.0]
    assert [judgement for _, judgement in seen] == [point["held_out"] for point in made.details["curve"][1:]]
    # Named on the command line of `recover`, it is known by not being what was pruned: its channels are not those kept.
    known = recover(pruned, config.with_(teacher=None), teacher=teacher, out=tmp_path / "known")
    assert same(weights(known), weights(made))
    # An artefact that does not tell what it was pruned from still tells widths.
    old = pruned.model_copy(update={"details": {k: v for k, v in pruned.details.items() if k != "pruned_from"}})
    old._root = pruned.root
    known = recover(old, config.with_(teacher=None), teacher=teacher, out=tmp_path / "old")
    assert same(weights(known), weights(made))
    # What was pruned is no other, however it is named.
    short = config.with_(steps=2, checks=1)
    named, plain = (recover(pruned, short.with_(teacher=path), teacher=original, out=tmp_path / f"itself-{bool(path)}")
                    for path in (original.path("pytorch"), None))  # fmt: skip
    assert same(weights(named), weights(plain))
    # Of the same widths and other training is another: its layers go with other ones behind them.
    twin = tiny_detector.fresh(tmp_path / "twin.pt", width=0.0625, seed=2)
    taught = import_original(twin, imgsz=64, out=tmp_path / "twin")
    made = recover(pruned, short.with_(teacher=twin), teacher=taught, out=tmp_path / "by-twin")
    known = recover(pruned, short.with_(teacher=None), teacher=taught, out=tmp_path / "known-twin")
    assert same(weights(known), weights(made))
    other = import_original(tiny_detector.fresh(tmp_path / "other.pt", NAMES[:2]), imgsz=64, out=tmp_path / "other")
    with pytest.raises(ModelError, match="does not fit"):
        recover(pruned, config, teacher=other, out=tmp_path / "refused")


def test_the_teacher_goes_on_from_the_trunk_that_the_student_has_computed(original):
    teacher = yolo.load_checkpoint(original.path("pytorch")).model
    student = copy.deepcopy(teacher).eval()
    with torch.no_grad():
        student.model[9].cv2.conv.weight.mul_(1.5)
    assert untouched(teacher, teacher) == len(teacher.model) - 1
    narrower = copy.deepcopy(student)
    narrower.model[9].cv2.conv.weight = torch.nn.Parameter(student.model[9].cv2.conv.weight[:4])
    assert untouched(student, teacher) == untouched(teacher, teacher), "other values alone are no cut"
    assert untouched(narrower, teacher) == 9
    before = copy.deepcopy(student.state_dict())
    folded = yolo.folded(teacher).requires_grad_(False).eval()
    trunk = SharedTrunk(student, folded, 9)
    assert "model.8.cv2" in trunk and "model.9.cv2" not in trunk
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), outputs_of(student, trunk.maps) as found:
        mine = student(pixels)[1]
        theirs, wanted = trunk.teach(found)[1], folded(pixels)[1]
    for name in ("scores", "boxes"):
        torch.testing.assert_close(theirs[name], wanted[name])
        assert not torch.allclose(mine[name], wanted[name])
    trunk.release_(student)
    assert same(before, student.state_dict())


def test_what_pruning_has_not_touched_stays_as_it_is_and_the_rest_learns(original, scenes, tmp_path):
    def late(groups, cost, scorer, **bounds):
        chosen = [g for g in groups if not g.protected and all(int(p.split(".")[1]) > 14 for p in g.producers)]
        return {group.name: torch.arange(group.width // 2) for group in chosen}

    config = PruneConfig(data=scenes, method="l1", flops=0.9, params=0.9, separable=False)
    source = prune(original, config, out=tmp_path / "pruned", allocator=late)
    longer = settings(data=scenes, steps=12, lr=3e-3)
    result = recover(source, longer, teacher=original, out=tmp_path / "kept")
    before, after, first = (weights(artifact) for artifact in (source, result, original))
    layers = {name: int(name.split(".")[1]) for name in after}
    assert all(torch.equal(after[name], first[name]) for name, layer in layers.items() if layer < 15)
    assert any(not torch.equal(after[name], before[name]) for name, layer in layers.items() if layer > 15)
    everything = longer.model_copy(update={"trunk": "trained"})
    moved = weights(recover(source, everything, teacher=original, out=tmp_path / "trained"))
    assert any(not torch.equal(moved[name], first[name]) for name, layer in layers.items() if layer < 15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_done(original, pruned, scenes, tmp_path):
    with pytest.raises(ConfigError, match="no GPU"):
        prune(original, PruneConfig(data=scenes, device="cuda"), out=tmp_path / "pruned")
    with pytest.raises(ConfigError, match="no GPU"):
        recover(pruned, settings(data=scenes, device="cuda"), teacher=original, out=tmp_path / "recovered")
