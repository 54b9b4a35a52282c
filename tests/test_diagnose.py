"""diagnose finds the stage that is broken on purpose, and the pictures that differ."""

from __future__ import annotations

import shutil
import time

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_package)

import tiny_detector  # noqa: E402
from hawkeye.artifact import Artifact, digest  # noqa: E402
from hawkeye.cli import run  # noqa: E402
from hawkeye.compress import diagnose as module  # noqa: E402
from hawkeye.compress import quantizers  # noqa: E402
from hawkeye.compress.diagnose import diagnose  # noqa: E402
from hawkeye.compress.export import export  # noqa: E402
from hawkeye.compress.quantize import quantize  # noqa: E402
from hawkeye.config import EvaluateConfig, ExportConfig, QuantizeConfig  # noqa: E402
from hawkeye.data import label_path, load_dataset  # noqa: E402
from hawkeye.errors import DataError, ModelError  # noqa: E402
from hawkeye.evaluate import detect_all  # noqa: E402
from hawkeye.runtime import load_runtime  # noqa: E402
from hawkeye.scenes import NAMES, draw_dataset  # noqa: E402

pytestmark = pytest.mark.compress


def label(network, pictures):
    """Give pictures what the network finds as labels: then it is right by definition."""
    found, _, _ = detect_all(network, EvaluateConfig(conf=0.3, max_det=5), pictures, title="labels")
    for path, objects in zip(pictures, found, strict=True):
        height, width = cv2.imread(str(path)).shape[:2]
        size = np.array([width, height, width, height])
        x1, y1, x2, y2 = (np.clip(objects.xyxy, 0, size) / size).T
        rows = np.stack([objects.class_id, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        label_path(path).write_text("".join(f"{int(r[0])} " + " ".join(f"{v:.6f}" for v in r[1:]) + "\n" for r in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folders: data, the exported float network, and INT8."""
    root = tmp_path_factory.mktemp("diagnose")
    data = draw_dataset(root / "scenes", train=14, val=6, imgsz=96, seed=1)
    path = tiny_detector.checkpoint(data, root)
    exported = export(path, ExportConfig(data=data, tolerance=0.1), out=root / "3-export" / "original")
    label(load_runtime(exported, "pytorch-fp32"), load_dataset(data).split("val"))
    int8 = quantize(exported, QuantizeConfig(mode="ptq", data=data), out=root / "4-quantize" / "original")
    return data, exported, int8


def stages(found):
    return [row["stage"] for row in found["stages"]]


def test_a_sound_model_is_found_sound_up_to_int8(made):
    data, exported, _ = made
    found = diagnose(exported, data=data)
    assert stages(found) == ["PyTorch", "ONNX", "OpenVINO"]
    assert found["stages"][0]["map50"] > 0.9
    assert found["first_fall"] is None
    assert found["spread"] is None
    assert "nothing is wrong" in found["advice"][0]


def test_ranges_spoilt_on_purpose_are_found_at_int8(made, tmp_path):
    data, exported, int8 = made
    folder = tmp_path / "4-quantize" / "original"
    shutil.copytree(int8.root, folder)
    shutil.copytree(exported.root, tmp_path / "3-export" / "original")
    record = quantizers.load(int8.path("openvino"), exported.path("onnx"))
    for activation in record.activations.values():
        activation.scale *= 40
    model = quantizers.read_ir(int8.path("openvino"))
    quantizers.write_openvino_(model, record)
    import openvino

    openvino.save_model(model, folder / int8.files["openvino"].path, compress_to_fp16=False)
    found = diagnose(Artifact.load(folder), data=data)
    assert stages(found) == ["PyTorch", "ONNX", "OpenVINO", "OpenVINO INT8", "ONNX Runtime INT8"]
    assert found["first_fall"] == "OpenVINO INT8"
    row = found["stages"][3]
    assert row["change"] < -30
    assert row["ci95"][1] < 0
    assert any("--mode qat" in line for line in found["advice"])
    assert found["stages"][2]["score_difference"] < 1e-3 < row["score_difference"]


def test_pictures_of_another_brightness_are_told(made, tmp_path):
    data, _, int8 = made
    shutil.copytree(data.parent, tmp_path / "scenes")
    for path in (tmp_path / "scenes" / "images" / "val").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path)) // 6)
    found = diagnose(int8, data=tmp_path / "scenes" / "data.yaml", samples=4)
    assert any("brightness" in line for line in found["advice"])
    assert found["spread"]["evaluation"]["brightness"]["mean"] < found["spread"]["calibration"]["brightness"]["mean"]
    assert found["spread"]["calibration"]["pictures"] == int8.details["calibration_images"]


def test_other_pictures_than_those_calibrated_on_are_told(made, tmp_path, capsys):
    """One that differs; and too few, where the rest of the work is not lost."""
    data, _, int8 = made
    shutil.copytree(data.parent, tmp_path / "scenes")
    copied = tmp_path / "scenes" / "data.yaml"
    first, *_, last = load_dataset(copied).split("train")
    first.rename(first.with_name("renamed" + first.suffix))  # the same pictures, in another order
    same = diagnose(int8, data=copied, samples=4)
    assert not any("other pictures" in line or "unknown" in line for line in same["advice"])
    cv2.imwrite(str(last), 255 - cv2.imread(str(last)))
    changed = diagnose(int8, data=copied, samples=4)
    assert any("calibrated on other pictures" in line for line in changed["advice"])
    assert changed["spread"]["calibration"]["pictures"] == 14
    for path in load_dataset(copied).split("train")[9:]:
        path.unlink()
    assert run(["diagnose", str(int8.root), "--data", str(copied), "--samples", "4"]) == 0
    printed = capsys.readouterr().out
    assert "OpenVINO INT8" in printed
    assert "calibration pictures are unknown: too few pictures to calibrate on" in printed


class OfBgr(module._Swapped):
    """Finds nothing in pictures that are redder than blue."""

    def infer(self, canvas):
        seen = self._runtime.infer(np.ascontiguousarray(canvas[..., ::-1]))
        return seen if canvas[..., 0].sum() > canvas[..., 2].sum() else np.zeros_like(seen)


def test_a_network_of_bgr_pictures_is_told(made, tmp_path, monkeypatch):
    data, exported, _ = made
    shutil.copytree(data.parent, tmp_path / "scenes")
    pictures = load_dataset(tmp_path / "scenes" / "data.yaml").split("val")
    for path in pictures:
        cv2.imwrite(str(path), (cv2.imread(str(path)) * [0.0, 1.0, 1.0]).astype(np.uint8))  # no blue
    real = load_runtime(exported, "pytorch-fp32")
    label(real, pictures)
    monkeypatch.setattr(module, "load_runtime", lambda artifact, name: OfBgr(real))
    found = diagnose(exported, data=tmp_path / "scenes" / "data.yaml")
    assert any("trained on BGR" in line for line in found["advice"])


def test_a_parent_that_is_not_there_or_wrong_is_an_error(made, tmp_path):
    data, exported, int8 = made
    lonely = tmp_path / "a" / "b" / "c"
    shutil.copytree(int8.root, lonely)
    with pytest.raises(ModelError, match="not to be found"):
        diagnose(Artifact.load(lonely), data=data)
    assert stages(diagnose(Artifact.load(lonely), data=data, original=exported, samples=2))[0] == "PyTorch"
    with pytest.raises(ModelError, match="not what the INT8 model was made from"):
        diagnose(Artifact.load(lonely), data=data, original=int8)
    bare = Artifact.create(tmp_path / "bare", {}, started=time.perf_counter(), name="original", stage="export",
                           spec=exported.spec, params=1, macs=1, key=digest("x"))  # fmt: skip
    with pytest.raises(ModelError, match="nothing to compare"):
        diagnose(bare, data=data)


def test_other_classes_are_an_error(made, tmp_path):
    data, exported, _ = made
    other = draw_dataset(tmp_path / "other", train=2, val=2, imgsz=64, seed=0)
    other.write_text(other.read_text().replace(NAMES[0], "something"))
    with pytest.raises(DataError, match="differ from the model's"):
        diagnose(exported, data=other)


def test_the_command_prints_a_table_and_advice(made, capsys):
    data, _, int8 = made
    assert run(["diagnose", str(int8.root), "--data", str(data), "--samples", "3"]) == 0
    printed = capsys.readouterr().out
    assert "OpenVINO INT8" in printed
    assert "calibration (" in printed
    assert "\n- " in printed
    for wrong in (["--samples", "0"], ["--data", "nowhere.yaml"], ["--images", "nowhere"]):
        assert run(["diagnose", str(int8.root), "--data", str(data), *wrong]) == 2
    assert run(["diagnose", str(int8.path("onnx")), "--data", str(data)]) == 2
