"""INT8: what must be quantized is, what must not is not, and both files see the same objects."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_package)

import onnx  # noqa: E402

import tiny_detector  # noqa: E402
from hawkeye.artifact import Artifact  # noqa: E402
from hawkeye.cli import run  # noqa: E402
from hawkeye.compress import calibrate, yolo  # noqa: E402
from hawkeye.compress import int8_checks as checks  # noqa: E402
from hawkeye.compress import quantize as qu  # noqa: E402
from hawkeye.compress.export import INPUT, export, onnx_infer, openvino_infer  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.quantizers import load  # noqa: E402
from hawkeye.config import ExportConfig, QuantizeConfig  # noqa: E402
from hawkeye.errors import ConfigError, DataError, ExportError, ModelError  # noqa: E402
from hawkeye.runtime.core import core  # noqa: E402

pytestmark = pytest.mark.compress
NAMES = ("dot", "bar", "ring")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(12):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i:02}.png"), cv2.resize(coarse, (80, 60)))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export(tiny_detector.fresh(folder / "tiny.pt", NAMES), ExportConfig(), out=folder / "out")


@pytest.fixture(scope="module")
def int8(exported, pictures, tmp_path_factory):
    return qu.quantize(exported, QuantizeConfig(mode="ptq", images=pictures), out=tmp_path_factory.mktemp("int8"))


def test_all_convolutions_but_dfl_run_in_int8(int8):
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in yolo.build_detector(NAMES, width=0.125).modules())
    assert int8.details["convolutions"] == convolutions
    assert int8.details["int8_convolutions"] == convolutions - 1
    assert int8.name == "original+int8"


def test_decode_holds_softmax_dfl_and_sigmoid_but_no_silu(exported):
    model = core().read_model(exported.path("openvino"))
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    decode = [kinds[name] for name in checks.decode_of_openvino(model)]
    assert [decode.count(kind) for kind in ("SoftMax", "Softmax", "Sigmoid", "Convolution")] in (
        [1, 0, 1, 1],
        [0, 1, 1, 1],
    )
    assert "Swish" not in decode
    assert "Swish" in kinds.values()


def test_no_quantizer_in_either_decode(int8):
    model = core().read_model(int8.path("openvino"))
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert "FakeQuantize" in kinds.values()
    assert "FakeQuantize" not in [kinds[name] for name in checks.decode_of_openvino(model)]
    graph = onnx.load(int8.path("onnx"))
    ops = {node.name: node.op_type for node in graph.graph.node}
    assert "QuantizeLinear" in ops.values()
    assert not {"QuantizeLinear", "DequantizeLinear"} & {ops[name] for name in checks.decode_of_onnx(graph)}


def test_checks_refuse_a_float_network(exported):
    with pytest.raises(ExportError, match="left in float"):
        checks.check_openvino(core().read_model(exported.path("openvino")))
    with pytest.raises(ExportError, match="left in float"):
        checks.check_onnx(onnx.load(exported.path("onnx")))


def test_a_quantized_decode_is_found(exported, pictures):
    import nncf

    from hawkeye.compress.export import INPUT, canvas_of

    model = core().read_model(exported.path("openvino"))
    data = nncf.Dataset(sorted(pictures.iterdir()), lambda path: {INPUT: canvas_of(path, 64)[None]})
    with pytest.raises(ExportError, match="decode was quantized"):
        checks.check_openvino(nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=12))


def test_int8_stays_close_to_float_in_both_runtimes(exported, int8, pictures):
    from hawkeye.compress.export import canvas_of

    canvases = np.stack([canvas_of(path, 64) for path in sorted(pictures.iterdir())[:3]])
    expected = openvino_infer(exported.path("openvino"))(canvases)
    for infer in (openvino_infer(int8.path("openvino")), onnx_infer(int8.path("onnx"))):
        got = infer(canvases)
        assert got.shape == expected.shape
        assert not np.array_equal(got, expected)
        assert np.abs(got[:, :4] - expected[:, :4]).mean() < 1.0  # pixels of 64
        assert np.abs(got[:, 4:] - expected[:, 4:]).max() < 0.02


def test_a_margin_widens_every_range_but_that_of_the_pictures(exported, int8, pictures, tmp_path):
    wide = qu.quantize(exported, QuantizeConfig(images=pictures, mode="ptq", margin=1.5), out=tmp_path)
    narrow, found = (load(made.path("openvino"), exported.path("onnx")).activations for made in (int8, wide))
    assert narrow.keys() == found.keys() and INPUT in found
    for node, item in found.items():
        assert item.zero_point == narrow[node].zero_point
        factor = 1 if node == INPUT else 1.5 / QuantizeConfig().margin
        assert item.scale == pytest.approx(factor * narrow[node].scale, rel=1e-4)


def test_files_shrink_and_the_record_tells_what_was_done(exported, int8):
    assert int8.path("openvino").with_suffix(".bin").stat().st_size < 0.5 * exported.files["openvino"].bytes
    assert int8.details["calibration_images"] == 12
    assert any("12 calibration pictures" in line for line in int8.details["warnings"])
    assert (int8.parent_sha256, int8.params) == (exported.sha256, exported.params)


@pytest.mark.parametrize("fmt", ["onnx", "openvino"])
def test_stock_yolo_predicts_with_int8(int8, fmt):
    from ultralytics import YOLO

    path = int8.path(fmt)
    stock = YOLO(str(path if fmt == "onnx" else path.parent), task="detect")
    result = stock.predict(np.full((64, 64, 3), 80, np.uint8), imgsz=64, conf=1e-6, verbose=False)[0]
    assert result.names == dict(enumerate(NAMES))
    assert len(result.boxes) > 0


@pytest.mark.parametrize("named", ["the folder", "the file"])
def test_inspect_prints_what_each_layer_is_executed_in(int8, named, capsys):
    path = str(int8.root if named == "the folder" else int8.path("openvino"))
    assert run(["inspect", path, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert not [row for row in rows if row["kind"] == "Const"]
    executed = [row["precision"] for row in rows if row["kind"] == "Convolution"]
    count = int8.details["int8_convolutions"]
    assert sum(precision in ("i8", "u8") for precision in executed) == count
    assert executed.count("f32") == 1  # DFL
    assert run(["inspect", path]) == 0
    header, *_, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "precision", "primitive"]
    assert last.startswith(f"convolutions on this CPU: i8 x{count}, f32 x1")


def test_same_work_is_reused(exported, int8, pictures):
    assert qu.quantize(exported, QuantizeConfig(mode="ptq", images=pictures), out=int8.root).created == int8.created


def test_too_few_pictures_are_an_error(exported, pictures, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:9]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="too few pictures"):
        qu.quantize(exported, QuantizeConfig(mode="ptq", images=few), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["auto", "ptq"])
def test_no_pictures_are_an_error(exported, mode, tmp_path):
    (tmp_path / "empty").mkdir()
    for settings, told in (({}, "no pictures to work on"), ({"images": tmp_path / "empty"}, "holds no pictures")):
        with pytest.raises(DataError, match=told):
            qu.quantize(exported, QuantizeConfig(mode=mode, **settings), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unexported_source_is_an_error(exported, pictures, tmp_path):
    original = import_original(exported.path("pytorch"), imgsz=64, out=tmp_path / "original")
    with pytest.raises(ModelError, match="no openvino file"):
        qu.quantize(original, QuantizeConfig(mode="ptq", images=pictures), out=tmp_path / "b")


@pytest.mark.parametrize("mode", ["auto", "ptq", "qat"])
def test_int8_is_not_quantized_again(exported, int8, pictures, mode, tmp_path, capsys):
    shutil.copytree(int8.root, tmp_path / "4-quantize" / "original")
    with pytest.raises(ModelError, match=f"{exported.sha256[:12]}, of the stage export"):
        qu.quantize(Artifact.load(tmp_path / "4-quantize" / "original"), QuantizeConfig(images=pictures, mode=mode),
                    out=tmp_path / "out")  # fmt: skip
    shutil.copytree(exported.root, tmp_path / "3-export" / "original")
    arguments = ["--mode", mode, "--images", str(pictures), "--out", str(tmp_path / "out")]
    assert run(["quantize", str(tmp_path / "4-quantize" / "original"), *arguments]) == 2
    assert f"name {tmp_path}/3-export/original" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def picture_last(exported, folder):
    """A copy of an export whose OpenVINO file takes (1, H, W, 3)."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    shutil.copytree(exported.root, folder)
    process = PrePostProcessor(core().read_model(exported.path("openvino")))
    process.input().tensor().set_layout(openvino.Layout("NHWC"))
    process.input().model().set_layout(openvino.Layout("NCHW"))
    openvino.save_model(process.build(), folder / exported.files["openvino"].path, compress_to_fp16=False)
    return Artifact.load(folder)


@pytest.mark.parametrize("mode", ["auto", "ptq"])
def test_what_does_not_fit_is_told_before_any_work(exported, pictures, mode, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, out = QuantizeConfig(mode=mode, images=pictures), tmp_path / "out"
    with pytest.raises(ConfigError, match="another input size"):
        qu.quantize(exported, config.with_(imgsz=96), out=out)
    with pytest.raises(ModelError, match="another order of channels"):
        qu.quantize(picture_last(exported, tmp_path / "last"), config, out=out)
    if mode != "ptq":  # which trains nothing
        with pytest.raises(ConfigError, match="no GPU"):
            qu.quantize(exported, config.with_(device="cuda"), out=out)
    assert not out.exists()


@pytest.mark.parametrize(("few", "told"), [(None, "no pictures to work on"), (9, "too few pictures to calibrate on")])
def test_missing_pictures_are_told_before_the_export(exported, pictures, few, told, tmp_path, capsys):
    arguments = [str(exported.path("pytorch")), "--out", str(tmp_path / "out")]
    if few:
        (tmp_path / "few").mkdir()
        for path in sorted(pictures.iterdir())[:few]:
            shutil.copy(path, tmp_path / "few")
        arguments += ["--images", str(tmp_path / "few")]
    assert run(["quantize", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "export").exists()


def test_int8_cannot_be_exported_and_the_error_does_not_say_that_it_can(int8, tmp_path, capsys):
    assert run(["export", str(int8.root), "--out", str(tmp_path / "out")]) == 2
    assert "to mend it: name the artefact that it was made from" in capsys.readouterr().err


def test_distance_looks_only_where_something_is_seen():
    a = np.zeros((1, 6, 4), np.float32)
    b = a.copy()
    b[0, 4, 0], b[0, 0, 0], b[0, 5, 1] = 0.8, 3.0, 0.1
    assert checks.distance(a, b) == {"candidates": 1, "mean_score": 0.8, "mean_box_px": 3.0}
    assert checks.distance(a, a)["mean_score"] is None
    assert np.isnan(checks.distance(np.full_like(a, np.nan), b)["mean_score"])


@pytest.mark.parametrize(
    ("score", "box", "refused"),
    [
        (0.02, 2.1, None),
        (0.02, 6.5, "mean_box_px at most 6.4"),
        (0.09, 0.1, "mean_score at most 0.08"),
        (0.0, float("nan"), "mean_box_px"),
        (None, None, None),
    ],
)
def test_runtimes_must_agree_in_scores_and_boxes(score, box, refused):
    found = {"openvino - onnx": {"candidates": 3, "mean_score": score, "mean_box_px": box}}
    if refused is None:
        calibrate.check_agreement(found, 640)
    else:
        with pytest.raises(ExportError, match=rf"openvino and onnx(.|\n)*{refused}"):
            calibrate.check_agreement(found, 640)


def test_agreement_that_is_not_shown_is_a_warning(int8):
    """An untrained network is sure of nothing."""
    assert {pair["candidates"] for pair in int8.details["agreement"].values()} == {0}
    assert any("not shown that they agree" in line for line in int8.details["warnings"])
    assert int8.details["agreement_limit"] == {"mean_score": 0.08, "mean_box_px": 0.64, "confident": 0.25}


@pytest.mark.realdata
@pytest.mark.slow
def test_real_yolov8n_in_int8_sees_what_float_sees(real_data, tmp_path):
    images = real_data / "coco-sample" / "images" / "train2017"
    made = export(real_data / "models" / "yolov8n.pt", ExportConfig(imgsz=320), out=tmp_path / "export")
    int8 = qu.quantize(made, QuantizeConfig(mode="ptq", images=images, samples=40), out=tmp_path / "int8")
    assert (int8.details["int8_convolutions"], int8.details["convolutions"]) == (63, 64)
    for pair in int8.details["agreement"].values():
        assert pair["candidates"] > 10
        assert pair["mean_score"] < 0.12
