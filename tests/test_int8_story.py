"""The way to INT8: calibration, layers in float, training; the better is kept and the story is told."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_package)

import tiny_detector  # noqa: E402
from hawkeye import keys  # noqa: E402
from hawkeye.compress import calibrate, quantizers  # noqa: E402
from hawkeye.compress.quantize import quantize  # noqa: E402
from hawkeye.config import QuantizeConfig  # noqa: E402
from hawkeye.data import load_dataset  # noqa: E402
from hawkeye.errors import DataError  # noqa: E402
from hawkeye.scenes import draw_dataset  # noqa: E402
from tiny_detector import settings  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("story") / "scenes", train=16, val=2, imgsz=96, seed=1)


@pytest.fixture(scope="module")
def exported(scenes, tmp_path_factory):
    return tiny_detector.exported(scenes, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def after_qat(exported, scenes, tmp_path_factory):
    return quantize(exported, settings(scenes, steps=8), out=tmp_path_factory.mktemp("trained"))


def test_a_tiny_network_through_calibration_training_and_export(after_qat, exported):
    told = after_qat.details
    assert [step["step"] for step in told["story"]] == ["float", "ptq", "qat", "kept"]
    assert told["int8_convolutions"] == told["convolutions"] - 1
    pairs = [told["agreement"][pair]["mean_score"] for pair in ("openvino - onnx", "torch - openvino", "torch - onnx")]
    assert max(pairs) < calibrate.AGREEMENT
    assert after_qat.name == "original+int8"
    assert after_qat.path("openvino").is_file()
    assert after_qat.path("onnx").is_file()
    assert not (after_qat.root / "steps").exists()
    assert not list(after_qat.root.glob("training/*"))


def test_auto_goes_on_while_the_gate_is_missed(exported, scenes, tmp_path):
    """A gate that cannot be reached: calibration, layers in float while the latency allows, training, the best kept."""
    config = settings(scenes, mode="auto", steps=2, checks=1, max_drop=-100.0, max_slowdown=1000.0)
    made = quantize(exported, config, out=tmp_path / "free")
    story = made.details["story"]
    assert [step["step"] for step in story[:2]] == ["float", "ptq"]
    assert [step["step"] for step in story[-2:]] == ["qat", "kept"]
    tried = [step for step in story if step["step"] == "float layers"]
    assert tried
    assert all(step["float_layers"] for step in tried)
    assert {"fidelity", "latency_ms", "distance", "judged_drop"} <= set(story[1])
    best = max((s for s in story if "distance" in s), key=lambda s: (s["fidelity"], -s["distance"]))
    assert made.details["kept"] == best["step"]
    assert story[0]["fidelity"] == pytest.approx(1.0, abs=0.01)


def test_too_few_pictures_beside_those_set_aside_are_an_error(exported, scenes, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in load_dataset(scenes).split("train")[:10]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="too few pictures"):
        quantize(exported, QuantizeConfig(images=few), out=tmp_path / "out")
    assert len(keys.quantize("", QuantizeConfig(images=few, mode="ptq"))[0]) == 10


def test_auto_without_labels_and_seven_bits_with_one_scale_a_layer(exported, scenes, tmp_path):
    config = QuantizeConfig(images=scenes.parent / "images" / "train", weight_bits=7, per_channel=False)
    made = quantize(exported, config, out=tmp_path / "out")
    assert made.details["kept"] == "ptq"
    assert "without labels" in made.details["story"][-1]["why"]
    found = quantizers.load(made.path("openvino"), exported.path("onnx"))
    assert {conv.limit for conv in found.convolutions.values()} == {64}
    assert {conv.scale.size for conv in found.convolutions.values()} == {1}
    assert made.details["weight_bits"] == 7
