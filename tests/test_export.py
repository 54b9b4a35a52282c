"""Exports compute what PyTorch computes, stock Ultralytics reads them, and failures are named."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "onnx", "onnxruntime", "openvino"):
    pytest.importorskip(_package)

import onnx  # noqa: E402
import openvino  # noqa: E402
import yaml  # noqa: E402

import tiny_detector  # noqa: E402
from hawkeye.compress import export as ex  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.torch_runtime import TorchRuntime  # noqa: E402
from hawkeye.config import ExportConfig  # noqa: E402
from hawkeye.errors import ExportError  # noqa: E402
from hawkeye.runtime import ir  # noqa: E402
from hawkeye.runtime.core import core  # noqa: E402
from hawkeye.runtime.head import quicken_  # noqa: E402
from hawkeye.runtime.ir import Ir, read  # noqa: E402

pytestmark = pytest.mark.compress
NAMES = ("dot", "traffic light", "ring")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    return import_original(tiny_detector.fresh(folder / "tiny.pt", NAMES, imgsz=96), imgsz=96, out=folder / "out")


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    return ex.export(original, ExportConfig(), out=tmp_path_factory.mktemp("exported"))


def test_both_formats_compute_what_the_unfused_checkpoint_computes(original, exported):
    canvases = np.random.default_rng(1).random((3, 3, 96, 96), np.float32)
    with torch.no_grad():
        expected = yolo.load_checkpoint(original.path("pytorch")).model(torch.from_numpy(canvases))[0].numpy()
    assert expected.shape == (3, 7, exported.spec.anchors)
    for infer in (ex.onnx_infer(exported.path("onnx")), ex.openvino_infer(exported.path("openvino"))):
        np.testing.assert_allclose(infer(canvases), expected, atol=2e-3)


def test_record_tells_parity_and_that_noise_was_compared(original, exported):
    assert set(exported.details["parity"]) == {"onnx", "openvino"}
    assert "noise" in exported.details["pictures"]
    assert (exported.parent_sha256, exported.params, exported.macs) == (original.sha256, original.params, original.macs)
    assert set(exported.files) == {"pytorch", "onnx", "openvino"}


def test_same_work_is_reused_and_other_settings_are_not(original, exported):
    again = ex.export(original, ExportConfig(), out=exported.root)
    assert again.created == exported.created
    assert ex.export(original, ExportConfig(opset=16), out=exported.root).key != exported.key
    ex.export(original, ExportConfig(), out=exported.root)


def test_metadata_says_what_the_detector_is(exported):
    props = {p.key: p.value for p in onnx.load(exported.path("onnx")).metadata_props}
    beside = yaml.safe_load((exported.path("openvino").parent / "metadata.yaml").read_text())
    assert beside["names"] == dict(enumerate(NAMES))
    assert (beside["stride"], beside["imgsz"], beside["task"]) == (32, [96, 96], "detect")
    assert props["names"] == str(beside["names"])
    assert exported.path("openvino").parent.name == "original_openvino_model"


@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_stock_yolo_predicts_with_the_export(original, exported, fmt):
    from ultralytics import YOLO

    image = np.random.default_rng(2).integers(0, 256, (96, 96, 3), np.uint8)
    best = float(TorchRuntime(original.path("pytorch"), original.spec, 1).infer(image)[4:].max())
    path = exported.path(fmt)
    stock = YOLO(str(path if fmt == "onnx" else path.parent), task="detect")
    result = stock.predict(image, imgsz=96, conf=best * 0.9, verbose=False)[0]
    assert result.names == dict(enumerate(NAMES))
    # Stock lets OpenVINO run in bfloat16 where the CPU has it, so only about three digits agree.
    assert float(result.boxes.conf.max()) == pytest.approx(best, rel=2e-2)


def test_dynamic_export_takes_other_sizes_and_batches(original, tmp_path):
    import onnxruntime

    made = ex.export(original, ExportConfig(dynamic=True), out=tmp_path)
    image = np.random.default_rng(3).random((2, 3, 64, 128), np.float32)
    with torch.no_grad():
        expected = yolo.load_checkpoint(original.path("pytorch")).model(torch.from_numpy(image))[0].numpy()
    session = onnxruntime.InferenceSession(made.path("onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {ex.INPUT: image})[0], expected, atol=2e-3)
    np.testing.assert_allclose(ex.openvino_infer(made.path("openvino"))(image), expected, atol=2e-3)


class _Unknown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_missing_operator_is_named_with_its_layer():
    network = torch.nn.Sequential()
    network.add_module("stem", torch.nn.Conv2d(3, 4, 3))
    network.add_module("block", torch.nn.Sequential(torch.nn.ReLU(), _Unknown()))
    with pytest.raises(ExportError, match=r"block\.1 \(_Unknown\)") as caught:
        ex.to_onnx(network, 32, opset=17, dynamic=False, simplify=False)
    assert "bessel_j0" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "gap", "message"),
    [
        pytest.param(5, 0.02, "scores", id="score above 0.01"),
        pytest.param(2, 0.2, "boxes", id="box above 0.096 pixels"),
        pytest.param(4, np.nan, "scores", id="not a number"),
    ],
)
def test_a_difference_above_the_tolerance_names_the_output(row, gap, message):
    expected = np.zeros((1, 7, 10), np.float32)
    other = expected.copy()
    other[0, row, 3] = gap
    with pytest.raises(ExportError, match=message):
        ex.compare("onnx", expected, other, 960, 0.01)


def test_a_difference_within_the_tolerance_is_recorded():
    expected = np.zeros((1, 7, 10), np.float32)
    other = expected.copy()
    other[0, 2, 3], other[0, 6, 1] = 0.05, 0.005
    assert ex.compare("onnx", expected, other, 960, 0.01) == pytest.approx({"scores": 0.005, "boxes_px": 0.05})


@pytest.mark.realdata
def test_real_yolov8n_exports_within_tolerance_on_real_pictures(real_data, tmp_path):
    config = ExportConfig(imgsz=320, images=real_data / "bccd" / "images" / "train")
    made = ex.export(real_data / "models" / "yolov8n.pt", config, out=tmp_path)
    assert len(made.details["pictures"]) == 4
    for found in made.details["parity"].values():
        assert found["scores"] < 1e-3
        assert found["boxes_px"] < 0.03


def test_the_head_in_a_quicker_order_gives_the_same_boxes_and_scores(exported):
    """In the square and in a rectangle."""
    path, spec = exported.path("openvino"), exported.spec
    for hw in ((96, 96), (64, 96)):
        quick = Ir.open(path, spec).prepared(hw)
        kinds = [node.get_type_name() for node in quick.get_ordered_ops()]
        assert "Softmax" not in kinds
        canvas = np.random.default_rng(2).integers(0, 256, (1, *hw, 3), np.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ir, "quicken_", lambda *_: False)
            stock = Ir.open(path, spec).prepared(hw)
        assert "Softmax" in [node.get_type_name() for node in stock.get_ordered_ops()]
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        got, wanted = (core().compile_model(model, "CPU", options)(canvas)[0] for model in (quick, stock))
        np.testing.assert_allclose(got[:, :4], wanted[:, :4], atol=1e-3)  # pixels
        np.testing.assert_allclose(got[:, 4:], wanted[:, 4:], atol=1e-6)


@pytest.mark.parametrize("foreign", ["cells", "bins", "more classes"])
def test_a_head_that_is_not_the_stock_one_is_left_as_it_is(exported, foreign):
    model, spec = read(exported.path("openvino")), exported.spec
    wanted = {"cells": (1, 2, spec.anchors), "bins": (1, 16, 1, 1)}.get(foreign)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and tuple(node.get_output_shape(0)) == wanted:
            other = openvino.opset13.constant(node.get_data() + np.float32(0.25))
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(other.output(0))
    if foreign == "more classes":
        spec = spec.model_copy(update={"names": (*spec.names, "one more")})
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert not quicken_(model, spec, (96, 96))
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before
    assert quicken_(read(exported.path("openvino")), exported.spec, (96, 96))
