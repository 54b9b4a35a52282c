"""Runtimes and `Detector` on a tiny IR whose answers are known."""

from __future__ import annotations

import shutil
import tracemalloc

import numpy as np
import pytest

import tiny_ir
from hawkeye import environment
from hawkeye.cli import run
from hawkeye.errors import ConfigError, InputError, ModelError
from hawkeye.geometry import Letterbox
from hawkeye.runtime import load_runtime, open_file
from hawkeye.runtime.detector import Detector


def red_square() -> np.ndarray:
    """A 64 x 128 picture, black but for one pure red square that fills one cell of stride 16 in the canvas."""
    image = np.zeros((64, 128, 3), np.uint8)
    image[0:32, 32:64] = (0, 0, 255)
    return image


@pytest.mark.parametrize("form", ["stock", "artifact", "xml", "record"])
def test_detector_finds_the_square(tmp_path, form):
    made = tiny_ir.artifact(tmp_path) if form in ("artifact", "record") else None
    if form in ("stock", "xml"):
        tiny_ir.stock_folder(tmp_path)
    source = {"stock": tmp_path, "artifact": tmp_path, "xml": tmp_path / "tiny.xml", "record": made}[form]
    detector = Detector(source, conf=0.9, threads=1)
    assert (detector.names, detector.spec.strides, detector.spec.imgsz) == (tiny_ir.NAMES, (8, 16, 32), 64)
    assert detector.runtime.name == "openvino-f32"
    assert detector.runtime.precision_hint == "f32"
    found = detector(red_square())
    assert set(found.class_id.tolist()) == {2}
    # The canvas holds the picture at half size, 16 pixels from the top: one cell of stride 16 and four of stride 8.
    boxes = sorted(map(tuple, found.xyxy.tolist()))
    assert boxes == [(32, 0, 48, 16), (32, 0, 64, 32), (32, 16, 48, 32), (48, 0, 64, 16), (48, 16, 64, 32)]
    np.testing.assert_allclose(found.score, 1, atol=1e-5)
    assert set(detector.timings) == {"pre", "network", "post"}
    assert min(detector.timings.values()) > 0


def test_same_picture_same_answer_after_another_size(tmp_path):
    detector = Detector(tiny_ir.stock_folder(tmp_path), conf=0.9, threads=1)
    first = detector(red_square())
    assert len(detector(np.zeros((50, 20, 3), np.uint8))) == 0
    np.testing.assert_array_equal(detector(red_square()).xyxy, first.xyxy)


def test_dynamic_ir_is_made_static(tmp_path):
    path = tiny_ir.save_ir(tmp_path / "tiny.xml", dynamic=True)
    runtime = open_file(path, spec=tiny_ir.SPEC, threads=1)
    assert runtime.infer(np.zeros((64, 64, 3), np.uint8)).shape == (7, tiny_ir.SPEC.anchors)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_one_file_serves_several_sizes(tmp_path, size):
    """At each size the cells are as large as ever in the canvas, so their boxes in the picture scale with 64 / size."""
    detector = Detector(tiny_ir.stock_folder(tmp_path, stock_head=True), imgsz=size, conf=0.9, threads=1)
    assert detector.spec.imgsz == size
    image = np.zeros((2 * size, 2 * size, 3), np.uint8)
    image[32:64, 32:64] = (255, 0, 0)  # one cell of stride 16 in the canvas
    boxes = sorted(map(tuple, detector(image).xyxy.tolist()))
    assert boxes == [(32, 32, 48, 48), (32, 32, 64, 64), (32, 48, 48, 64), (48, 32, 64, 48), (48, 48, 64, 64)]


def test_sizes_that_cannot_be(tmp_path):
    stock = tiny_ir.stock_folder(tmp_path / "stock", stock_head=True)
    for size in (0, 16, 100):
        with pytest.raises(ModelError, match="multiple of 32"):
            Detector(stock, imgsz=size, threads=1)
    with pytest.raises(ModelError, match="export the model with --imgsz 128"):  # its boxes are no known constants
        Detector(tiny_ir.stock_folder(tmp_path / "own"), imgsz=128, threads=1)


def test_dynamic_ir_takes_another_size(tmp_path):
    # Its boxes belong to 64 pixels, so that only the refusal can be right: shapes no longer fit.
    path = tiny_ir.save_ir(tmp_path / "tiny.xml", dynamic=True)
    with pytest.raises(ModelError, match="128"):
        open_file(path, spec=tiny_ir.SPEC, threads=1, imgsz=128)


@pytest.mark.parametrize(
    ("hw", "canvas"),
    [((144, 256), (96, 128)), ((256, 144), (128, 96)), ((256, 192), (128, 96)), ((256, 256), (128, 128))],
)
def test_the_input_takes_the_shape_of_the_picture(tmp_path, hw, canvas):
    """The same boxes as in the square: a cell of stride 16 of each canvas lies on the same pixels of the picture."""
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    detector = Detector(folder, imgsz=128, conf=0.9, threads=1)
    square = Detector(folder, imgsz=128, rect=False, conf=0.9, threads=1)
    image = np.zeros((*hw, 3), np.uint8)
    top, left = Letterbox.fit(hw, canvas).top, Letterbox.fit(hw, canvas).left
    y, x = 2 * (32 - top), 2 * (32 - left)  # one cell of stride 16 in the canvas
    image[y : y + 32, x : x + 32] = (255, 0, 0)
    assert detector.prepare(hw) == canvas
    assert square.prepare(hw) == (128, 128)
    boxes = sorted(map(tuple, detector(image).xyxy.tolist()))
    assert boxes == [(x, y, x + 16, y + 16), (x, y, x + 32, y + 32), (x, y + 16, x + 16, y + 32),
                     (x + 16, y, x + 32, y + 16), (x + 16, y + 16, x + 32, y + 32)]  # fmt: skip
    raw = detector.runtime.infer(np.zeros((*canvas, 3), np.uint8))
    assert raw.shape == (7, detector.spec.anchors_of(canvas))


def test_the_answer_does_not_depend_on_the_pictures_before(tmp_path):
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    pictures = [np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
                for hw in ((90, 160), (160, 90), (120, 160), (100, 100), (90, 160), (50, 300))]  # fmt: skip
    one = Detector(folder, imgsz=128, conf=0.45, threads=1)
    for image in pictures[::-1] + pictures:
        expected = Detector(folder, imgsz=128, conf=0.45, threads=1)(image)
        found = one(image)
        assert len(found) and found.xyxy.tolist() == expected.xyxy.tolist()
        assert found.score.tolist() == expected.score.tolist()


def test_a_graph_that_is_tied_to_the_square_gets_squares_and_says_so_once(tmp_path, caplog):
    """Never a wrong box: its boxes are constants that nobody knows, so that it cannot take another shape."""
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    xml = folder / "tiny.xml"
    wide = np.zeros((90, 160, 3), np.uint8)
    wide[:45] = (255, 0, 0)
    tiny_ir.save_ir(xml, imgsz=128)
    (folder / "metadata.yaml").write_text((folder / "metadata.yaml").read_text().replace("64", "128"))
    detector = Detector(folder, conf=0.9, threads=1)
    assert not caplog.records
    assert [detector.prepare((90, 160)), detector.prepare((160, 90)), detector.prepare((90, 160))] == [(128, 128)] * 3
    (record,) = caplog.records
    assert "takes square pictures only" in record.getMessage() and str(xml) in record.getMessage()
    expected = Detector(folder, rect=False, conf=0.9, threads=1)(wide)
    assert len(expected) and detector(wide).xyxy.tolist() == expected.xyxy.tolist()


def test_shapes_come_from_the_file_that_was_opened(tmp_path):
    """Another model takes its place meanwhile: the shapes that are compiled later must not be of that one."""
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    detector = Detector(folder, imgsz=128, conf=0.9, threads=1, cache=False)
    tiny_ir.save_ir(folder / "tiny.xml", stock_head=True, floor=0.5)
    image = np.full((90, 160, 3), 255, np.uint8)
    assert len(detector(image)) > 0
    assert len(Detector(folder, imgsz=128, conf=0.9, threads=1, cache=False)(image)) == 0


def test_memory_does_not_grow_with_frames(tmp_path):
    detector = Detector(tiny_ir.stock_folder(tmp_path), conf=0.9, threads=1)
    image = red_square()
    tracemalloc.start()
    try:
        for _ in range(50):  # what is made once
            detector(image)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            detector(image)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 4096  # 200 lists of boxes would be 100 KiB


def test_classes_by_name_and_index(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32], image[32:] = (0, 0, 255), (255, 0, 0)
    folder = tiny_ir.stock_folder(tmp_path)
    assert set(Detector(folder, conf=0.9, threads=1)(image).class_id.tolist()) == {0, 2}
    assert set(Detector(folder, conf=0.9, threads=1, classes=["red"])(image).class_id.tolist()) == {2}
    assert set(Detector(folder, conf=0.9, threads=1, classes=["0", 1])(image).class_id.tolist()) == {0}
    assert len(Detector(folder, conf=0.9, threads=1, classes=[])(image)) == 0
    with pytest.raises(ConfigError, match="did you mean 'red'"):
        Detector(folder, threads=1, classes=["reed"])
    for wrong in ("3", -1, "²"):
        with pytest.raises(ConfigError, match="no class"):
            Detector(folder, threads=1, classes=[wrong])


@pytest.mark.parametrize(
    "wrong", [{"conf": 1.5}, {"iou": -0.1}, {"conf": float("nan")}, {"threads": -1}, {"max_det": 0}]
)
def test_settings_that_cannot_be(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Detector(tiny_ir.stock_folder(tmp_path), **wrong)


def test_compiled_networks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HAWKEYE_CACHE", str(tmp_path / "cache"))
    first = Detector(tiny_ir.stock_folder(tmp_path / "m"), conf=0.9, threads=1)
    kept = list((tmp_path / "cache").rglob("*.blob"))
    assert len(kept) == 1
    again = Detector(tmp_path / "m", conf=0.9, threads=1)
    assert again.runtime.precision_executed == first.runtime.precision_executed
    np.testing.assert_array_equal(again(red_square()).xyxy, first(red_square()).xyxy)
    assert list((tmp_path / "cache").rglob("*.blob")) == kept
    # Other weights at the same place are another network.
    tiny_ir.save_ir(tmp_path / "m/tiny.xml", stock_head=True)
    assert len(Detector(tmp_path / "m", conf=0.9, threads=1)(red_square())) == 5
    assert len(list((tmp_path / "cache").rglob("*.blob"))) == 2
    for blob in (tmp_path / "cache").rglob("*.blob"):  # damaged: compiled anew
        blob.chmod(0o600)
        blob.write_bytes(b"damaged")
    assert len(Detector(tmp_path / "m", conf=0.9, threads=1)(red_square())) == 5
    Detector(tmp_path / "m", threads=2, cache=False)
    assert len(list((tmp_path / "cache").rglob("*.blob"))) == 2


@pytest.mark.parametrize("place", ["off", "/proc/no/such/folder", "{file}/below"])
def test_no_cache_where_none_can_be(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAWKEYE_CACHE", place.format(file=tmp_path / "file"))
    assert environment.cache_dir("openvino") is None
    assert len(Detector(tiny_ir.stock_folder(tmp_path / "m"), conf=0.9, threads=1)(red_square())) == 5


def test_run_folder_gives_its_best(tmp_path):
    """The classes tell which of a run's models was opened."""
    best_first = ["4-quantize/pruned", "3-export/pruned", "4-quantize/original", "3-export/original"]
    for folder in best_first:
        tiny_ir.artifact(tmp_path / folder, names=(folder, "b", "c"))
    for folder in best_first:
        assert Detector(tmp_path, threads=1).names[0] == folder
        (tmp_path / folder / "artifact.json").unlink()  # begun, not finished
    with pytest.raises(ModelError, match="no model that can be chosen"):
        Detector(tmp_path, threads=1)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "tiny.xml").write_text("<net"), "not an OpenVINO model"),
        (lambda f: (f / "tiny.bin").unlink(), "has no weights"),
        (lambda f: (f / "metadata.yaml").write_text("a: [1"), "cannot be read"),
        (lambda f: tiny_ir.stock_folder(f, task="segment"), "not a detector"),
        (lambda f: tiny_ir.stock_folder(f, args={"nms": True}), "nms=False"),
        (lambda f: tiny_ir.stock_folder(f, end2end=True), "nms=False"),
        (lambda f: tiny_ir.stock_folder(f, names={0: "one"}), "detector's output"),
        (lambda f: tiny_ir.stock_folder(f, imgsz=[128, 128]), "does not take pictures of 128"),
        (lambda f: tiny_ir.stock_folder(f, imgsz=[64, 96]), "not square"),
        (lambda f: (f / "metadata.yaml").unlink(), "does not tell its classes"),
        (lambda f: shutil.copy(f / "tiny.xml", f / "other.xml"), "can be chosen"),
    ],
)  # fmt: skip
def test_unusable_models_say_why(tmp_path, break_it, message):
    folder = tiny_ir.stock_folder(tmp_path / "model")
    break_it(folder)
    with pytest.raises(ModelError, match=message):
        Detector(folder, threads=1)


def test_a_file_that_is_not_there_is_told_as_such(tmp_path, capsys):
    assert run(["inspect", str(tmp_path / "nowhere.xml")]) == 2
    told = capsys.readouterr().err
    assert "there is no model" in told and "no such file" in told
    assert "weights" not in told


def test_wrong_requests(tmp_path):
    made = tiny_ir.artifact(tmp_path)
    with pytest.raises(ModelError, match="not INT8"):
        load_runtime(made, "openvino-int8", threads=1)
    with pytest.raises(ModelError, match="no onnx file"):
        load_runtime(made, "onnxruntime", threads=1)
    with pytest.raises(ModelError, match="there is no model"):
        Detector(tmp_path / "none")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="hawkeye export"):
        Detector(tmp_path / "x.pt")


@pytest.mark.parametrize("image", [None, np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_not_a_picture(tmp_path, image):
    detector = Detector(tiny_ir.stock_folder(tmp_path), threads=1)
    with pytest.raises(InputError, match="picture"):
        detector(image)


def test_wrong_canvas(tmp_path):
    runtime = load_runtime(tiny_ir.artifact(tmp_path), "openvino-f32", threads=1)
    with pytest.raises(ModelError, match="canvas"):
        runtime.infer(np.zeros((32, 64, 3), np.uint8))


def test_precisions_and_throughput(tmp_path):
    from hawkeye.runtime.openvino import execution_precisions, throughput

    made = tiny_ir.artifact(tmp_path)
    rows = execution_precisions(made.path("openvino"), threads=1)
    assert sum(row["kind"].startswith("Convolution") for row in rows) == 3
    assert {row["precision"] for row in rows if row["kind"].startswith("Convolution")} == {"f32"}
    assert load_runtime(made, "openvino-f32", threads=1).precision_executed == "f32 x3"
    assert throughput(made.path("openvino"), made.spec, runtime="openvino-f32", threads=1, seconds=0.05) > 0


@pytest.mark.compress
def test_onnx_agrees_with_its_own_graph(tmp_path):
    """A tiny ONNX graph with stock metadata: the mean of the picture's channels as scores."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    nodes, parts, constants = [], [], []
    for stride in (8, 16, 32):
        side = 64 // stride
        y, x = np.divmod(np.arange(side * side), side)
        box = np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.full_like(x, stride), np.full_like(x, stride)])
        constants += [
            numpy_helper.from_array(box[None].astype(np.float32), f"box{stride}"),
            numpy_helper.from_array(np.array([1, 3, side * side]), f"shape{stride}"),
        ]
        nodes += [
            helper.make_node(
                "AveragePool", ["images"], [f"p{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            ),
            helper.make_node("Reshape", [f"p{stride}", f"shape{stride}"], [f"s{stride}"]),
            helper.make_node("Concat", [f"box{stride}", f"s{stride}"], [f"o{stride}"], axis=1),
        ]
        parts.append(f"o{stride}")
    nodes.append(helper.make_node("Concat", parts, ["output0"], axis=2))
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 7, 84])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata = {"names": "{0: 'red', 1: 'green', 2: 'blue'}", "imgsz": "[64, 64]", "stride": "32", "task": "detect"}
    helper.set_model_props(model, metadata)
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    detector = Detector(path, conf=0.9, threads=1)
    assert detector.names == ("red", "green", "blue")
    found = detector(red_square())
    assert set(found.class_id.tolist()) == {0}
    assert len(found) == 5
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="not an ONNX model"):
        Detector(path)
    helper.set_model_props(model, {**metadata, "task": "classify"})
    onnx.save(model, path)
    with pytest.raises(ModelError, match="not a detector"):
        Detector(path)
