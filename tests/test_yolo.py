"""The door to Ultralytics: checkpoints round trips, refusals, counting, the loss, training pictures."""

from __future__ import annotations

import copy
import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from hawkeye.compress import training_data, yolo  # noqa: E402
from hawkeye.compress.macs import params_and_macs  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.torch_runtime import TorchRuntime  # noqa: E402
from hawkeye.errors import CheckpointError, ConfigError, DataError  # noqa: E402

pytestmark = pytest.mark.compress
NAMES = ("dot", "bar", "ring")


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return yolo.build_detector(NAMES, width=0.125, imgsz=96).eval()


@pytest.fixture
def checkpoint(tiny, tmp_path):
    path = tmp_path / "tiny.pt"
    yolo.save_checkpoint(path, tiny, names=NAMES)
    return path


def pictures(folder: Path, count: int, labels: bool) -> list[Path]:
    """Noise with a white square, which is class 1 and takes a quarter of each side."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        image = rng.integers(0, 80, (60, 80, 3), np.uint8)
        image[15:30, 20:40] = 255
        paths.append(folder / "images" / f"{i}.png")
        cv2.imwrite(str(paths[-1]), image)
        if labels:
            (folder / "labels" / f"{i}.txt").write_text("1 0.375 0.375 0.25 0.25\n")
    return paths


def test_saved_checkpoint_reads_back_with_weights_rounded_to_half(tiny, checkpoint):
    loaded = yolo.load_checkpoint(checkpoint)
    assert (loaded.names, loaded.strides, loaded.imgsz) == (NAMES, (8, 16, 32), 96)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    for name, tensor in tiny.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded.model.state_dict()[name], expected), name
    assert next(tiny.parameters()).dtype == torch.float32  # what was given is not changed


def test_saved_checkpoint_loads_and_predicts_in_stock_yolo(checkpoint):
    from ultralytics import YOLO

    stock = YOLO(str(checkpoint))
    assert stock.names == dict(enumerate(NAMES))
    image = np.full((96, 96, 3), 90, np.uint8)
    raw = TorchRuntime(checkpoint, yolo.spec_of(yolo.load_checkpoint(checkpoint).model, 96), 1).infer(image)
    best = float(raw[4:].max())
    found = stock.predict(image, imgsz=96, conf=best * 0.999, verbose=False)[0].boxes
    assert float(found.conf.max()) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path, whole: None, "no such checkpoint", id="missing"),
        pytest.param(lambda path, whole: path.mkdir(), "a folder", id="folder"),
        pytest.param(lambda path, whole: path.write_bytes(b""), "impossible size", id="empty"),
        pytest.param(lambda path, whole: path.write_bytes(b"\x89PNG not weights"), "starts with", id="picture"),
        pytest.param(lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "truncated", id="truncated"),
        pytest.param(lambda path, whole: path.write_bytes(_zip()), "zip archive of", id="other zip"),
        pytest.param(lambda path, whole: torch.save([1, 2], path), "cannot be read", id="a list"),
        pytest.param(lambda path, whole: torch.save({"model": {"a": torch.ones(1)}}, path), "no network", id="weights"),
        pytest.param(lambda path, whole: torch.save({"model": _Evil()}, path), "cannot be read", id="foreign class"),
    ],
)
def test_what_is_no_checkpoint_is_refused(checkpoint, tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # where a pickle that is executed would leave its mark
    path = tmp_path / "other.pt"
    make(path, checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match=message):
        yolo.load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


class _Evil:
    """A pickle that would create a file beside the test when it is executed."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("definition", "kind", "message"),
    [
        ("yolov8n-seg.yaml", "SegmentationModel", "another task"),
        ("yolov8n-cls.yaml", "ClassificationModel", "another task"),
        ("yolov8n-pose.yaml", "PoseModel", "another task"),
        ("yolo11n.yaml", "DetectionModel", "blocks that are not supported"),
        ("yolov10n.yaml", "DetectionModel", "head that is not supported"),
    ],
)
def test_other_tasks_and_families_are_refused_by_name(tmp_path, definition, kind, message):
    from ultralytics.nn import tasks

    path = tmp_path / "other.pt"
    model = getattr(tasks, kind)(definition, verbose=False)
    torch.save({"model": model.half(), "train_args": {}}, path)
    with pytest.raises(CheckpointError, match=message):
        yolo.load_checkpoint(path)


def test_fused_checkpoint_is_refused(tiny, tmp_path):
    torch.save({"model": copy.deepcopy(tiny).fuse(verbose=False)}, tmp_path / "fused.pt")
    with pytest.raises(CheckpointError, match="is fused"):
        yolo.load_checkpoint(tmp_path / "fused.pt")


def test_count_agrees_with_a_sum_over_layers_by_hand():
    conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
    depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert params_and_macs(torch.nn.Sequential(conv, depthwise), 32) == (
        3 * 8 * 9 + 8 + 8 * 9 + 8,
        16 * 16 * 8 * 3 * 9 + 16 * 16 * 8 * 9,
    )


def test_runtime_agrees_with_the_unfused_network_and_takes_bgr(tiny):
    canvas = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    spec = yolo.spec_of(tiny, 96)
    raw = TorchRuntime(tiny, spec, threads=1).infer(canvas)
    rgb = torch.from_numpy(canvas[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = tiny(rgb)[0][0].numpy()
    assert raw.shape == (7, spec.anchors)
    np.testing.assert_allclose(raw, expected, atol=1e-3)


def test_input_size_must_fit_the_strides(tiny):
    with pytest.raises(ConfigError, match="multiple of 32"):
        yolo.spec_of(tiny, 100)


def test_transferred_head_keeps_boxes_and_starts_classes_anew(tiny):
    other = yolo.transfer_head(tiny, ("a", "b"))
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before, after = tiny(image)[0], other.eval()(image)[0]
    assert after.shape[1] == 6
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert tiny.model[-1].nc == 3
    assert float(after[:, 4:].max()) < 0.1  # the usual prior: hardly anything is an object


def test_loss_equals_stock_and_teaches_a_fresh_detector(tmp_path):
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    model = yolo.build_detector(NAMES, width=0.125, imgsz=64)
    data = training_data.training_set(pictures(tmp_path, 4, True), NAMES, 64, mosaic=0, augment=False, labelled=True)
    batch = training_data.collate([data[i] for i in range(4)])
    image = batch["img"].float() / 255
    loss = yolo.detection_loss(model)
    stock = copy.deepcopy(model)
    stock.args = get_cfg()
    expected = stock.init_criterion()(stock(image), batch)[0].sum() / 4
    assert loss(model(image), batch).item() == pytest.approx(expected.item(), rel=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(model(image), batch).backward()
        optimizer.step()
    with torch.no_grad():
        raw = model.eval()(image)[0][0]
    assert raw[4:].max(1).values.argmax() == 1  # the class of the square
    centre_x, centre_y, width, height = raw[:4, raw[5].argmax()].tolist()
    assert (centre_x, centre_y) == pytest.approx((24, 26), abs=4)
    assert (width, height) == pytest.approx((16, 12), abs=5)


def test_training_pictures_carry_their_labels_in_rgb(tmp_path):
    paths = pictures(tmp_path, 3, True)
    image = cv2.imread(str(paths[0]))
    image[...] = (10, 20, 200)  # red, in OpenCV's order
    cv2.imwrite(str(paths[0]), image)
    data = training_data.training_set(paths, NAMES, 64, mosaic=0, augment=False, labelled=True)
    sample = data[0]
    assert sample["img"].dtype == torch.uint8
    assert sample["img"][:, 32, 32].tolist() == [200, 20, 10]
    # 80 x 60 lies in 64 x 64 as 64 x 48 below 8 pixels of padding
    np.testing.assert_allclose(sample["bboxes"], [[0.375, (0.375 * 48 + 8) / 64, 0.25, 0.25 * 48 / 64]], atol=1e-4)
    assert sample["cls"].tolist() == [[1]]


@pytest.mark.parametrize("labelled", [True, False])
def test_augmented_pictures_write_nothing_beside_the_data(tmp_path, labelled):
    paths = pictures(tmp_path, 5, labelled)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    data = training_data.training_set(paths, NAMES, 64, mosaic=1, augment=True, labelled=labelled)
    batch = training_data.collate([data[i] for i in range(5)])
    assert batch["img"].shape == (5, 3, 64, 64)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert (len(batch["cls"]) > 0) == labelled
    assert len(batch["bboxes"]) == len(batch["cls"]) == len(batch["batch_idx"])


def test_labels_beyond_the_classes_are_an_error(tmp_path):
    with pytest.raises(DataError, match="class out of range"):
        training_data.training_set(pictures(tmp_path, 1, True), ("only",), 64, mosaic=0, augment=False, labelled=True)


def test_import_copies_counts_and_is_not_done_twice(checkpoint, tmp_path):
    first = import_original(checkpoint, imgsz=96, out=tmp_path / "out")
    assert first.path("pytorch").read_bytes() == checkpoint.read_bytes()
    assert (first.params, first.macs) == params_and_macs(yolo.load_checkpoint(checkpoint).model, 96)
    assert import_original(checkpoint, imgsz=96, out=tmp_path / "out").created == first.created
    assert import_original(checkpoint, imgsz=128, out=tmp_path / "out").macs > first.macs


@pytest.mark.realdata
def test_real_yolov8n_has_its_published_size(real_data):
    loaded = yolo.load_checkpoint(real_data / "models" / "yolov8n.pt")
    params, macs = params_and_macs(loaded.model, 640)
    assert params == 3_157_200
    assert 2 * macs / 1e9 == pytest.approx(8.7, abs=0.1)
    assert (len(loaded.names), loaded.strides, loaded.imgsz) == (80, (8, 16, 32), 640)


def test_folding_computes_the_same(tiny):
    generator = torch.Generator().manual_seed(0)
    for module in tiny.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.normal_(generator=generator)
            module.weight.data[0] = 0.0  # a dead channel
    pixels = torch.rand(1, 3, 96, 96, generator=generator)
    with torch.no_grad():
        assert torch.allclose(yolo.folded(tiny)(pixels)[0], tiny(pixels)[0], rtol=1e-3, atol=1e-3)


def test_frozen_statistics_compute_the_same_outputs_and_gradients(tiny):
    for module in tiny.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
    twin, pixels = copy.deepcopy(tiny), torch.rand(1, 3, 96, 96)
    yolo.freeze_statistics_(twin)
    outputs = []
    for model in (tiny, copy.deepcopy(twin)):
        model.requires_grad_(True)
        raw = model(pixels)[1]
        (raw["scores"].square().mean() + raw["boxes"].square().mean()).backward()
        outputs.append((raw["scores"], {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (scores, gradients), (same_scores, same_gradients) = outputs
    assert torch.allclose(scores, same_scores, rtol=1e-3, atol=1e-4)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same_gradients[name], rtol=1e-2, atol=1e-3 * float(gradient.abs().max())), name
    yolo.freeze_statistics_(twin, False)
    assert [type(m) for m in twin.modules()] == [type(m) for m in tiny.modules()]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_block_has_the_same_gradients_under_autocast(stride):
    block, _ = yolo.depthwise_and_pointwise(16, 16, 3, stride)
    block.eval()
    frozen = torch.nn.Sequential(copy.deepcopy(block))
    yolo.freeze_statistics_(frozen)
    pixels = torch.rand(2, 16, 12, 12)
    block(pixels).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        frozen(pixels).float().square().mean().backward()
    wanted, got = block.conv.weight.grad, frozen[0].conv.weight.grad
    assert torch.allclose(got, wanted, rtol=5e-2, atol=2e-2 * float(wanted.abs().max()))
