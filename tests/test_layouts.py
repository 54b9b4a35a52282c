"""Model repositories: what a server would load, loaded back and held against the detector."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import tiny_ir
from hawkeye import cli, layouts
from hawkeye.artifact import Artifact
from hawkeye.config import ServingConfig
from hawkeye.errors import ConfigError, ExportError, ModelError, RunDirError
from hawkeye.geometry import iou_matrix
from hawkeye.runtime import serving
from hawkeye.runtime.detector import Detector

SIZES = [(64, 64), (48, 64), (480, 640), (33, 700), (1080, 1920), (7, 5), (100, 37), (1, 1)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_ir.artifact(tmp_path_factory.mktemp("artifact"))


def picture(hw: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Soft patches of colour: a resize that is off by half a pixel gives other scores."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def agree(ours: Any, theirs: Any, conf: float) -> None:
    """Each finds what the other finds, but for what lies at the threshold."""
    assert (np.diff(theirs.score) <= 0).all()
    overlap = iou_matrix(ours.xyxy, theirs.xyxy)
    overlap *= ours.class_id[:, None] == theirs.class_id[None, :]
    overlap *= np.abs(ours.score[:, None] - theirs.score[None, :]) < 0.005
    for best, found in ((overlap.max(1, initial=0), ours), (overlap.max(0, initial=0), theirs)):
        assert (best[found.score > conf + 0.005] > 0.98).all()


@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_a_served_graph_finds_what_the_detector_finds(hw: tuple[int, int], artifact: Artifact, tmp_path: Path) -> None:
    config = ServingConfig(conf=0.55)
    serving.save(artifact.path("openvino"), artifact.spec, config, tmp_path / "model.xml")
    detect, detector = serving.load(tmp_path / "model.xml"), Detector(artifact, conf=0.55, threads=1)
    for seed in range(3):
        agree(detector(picture(hw, seed)), detect(picture(hw, seed)), 0.55)


@pytest.mark.parametrize(("options"), [{"max_det": 5}, {"conf": 0.999}, {"iou": 0.05, "conf": 0.3}], ids=str)
def test_thresholds_are_in_the_graph(options: dict[str, Any], artifact: Artifact, tmp_path: Path) -> None:
    config = ServingConfig(**{"conf": 0.3, **options})
    serving.save(artifact.path("openvino"), artifact.spec, config, tmp_path / "model.xml")
    found = serving.load(tmp_path / "model.xml")(picture((480, 640)))
    expected = Detector(artifact, threads=1, **config.model_dump())(picture((480, 640)))
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.score, expected.score, atol=0.005)


def test_a_repository_for_openvino_model_server(artifact: Artifact, tmp_path: Path) -> None:
    import openvino

    from hawkeye.runtime.core import core

    version = layouts.write(artifact, "ovms", ServingConfig(), out=tmp_path / "served", name="door")
    assert version == tmp_path / "served/door/1"
    assert sorted(path.name for path in version.iterdir()) == ["model.bin", "model.xml"]
    head = json.loads((tmp_path / "served/config.json").read_text())
    (entry,) = [item["config"] for item in head["model_config_list"]]
    assert (entry["name"], entry["base_path"]) == ("door", "door")
    assert (tmp_path / "served" / entry["base_path"] / "1/model.xml").is_file()
    model = core().read_model(version / "model.xml")
    assert [port.get_any_name() for port in model.inputs] == ["image"]
    assert str(model.input().partial_shape) == "[1,?,?,3]"
    assert model.input().element_type == openvino.Type.u8
    assert str(model.get_parameters()[0].get_layout()) == "[N,H,W,C]"  # or encoded pictures are refused
    assert [port.get_any_name() for port in model.outputs] == ["boxes", "scores", "classes"]
    assert (tmp_path / "served/door/labels.txt").read_text().split() == list(tiny_ir.NAMES)


def test_versions(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "served"
    first = layouts.write(artifact, "ovms", ServingConfig(), out=out)
    assert layouts.write(artifact, "ovms", ServingConfig(), out=out) == first  # the same is no new version
    second = layouts.write(artifact, "ovms", ServingConfig(conf=0.5), out=out)
    assert (first.name, second.name) == ("1", "2")
    tuned = json.loads((out / "config.json").read_text())
    tuned["model_config_list"][0]["config"]["nireq"] = 4
    (out / "config.json").write_text(json.dumps(tuned))
    layouts.write(artifact, "ovms", ServingConfig(), out=out, name="second")
    entries = [item["config"] for item in json.loads((out / "config.json").read_text())["model_config_list"]]
    assert [(e["name"], e.get("nireq")) for e in entries] == [("hawkeye", 4), ("second", None)]
    assert not list(out.rglob(".new-*"))


def test_what_cannot_be_served(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no onnx file"):
        layouts.write(artifact, "triton", ServingConfig(), out=tmp_path / "t")
    with pytest.raises(ConfigError, match="--name"):
        layouts.write(artifact, "ovms", ServingConfig(), out=tmp_path / "t", name="../up")
    for content in ("nonsense", "[]", '{"a": 1}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunDirError, match="name another --out"):
            layouts.write(artifact, "ovms", ServingConfig(), out=tmp_path)
    with pytest.raises(ModelError, match="no exported model"):
        layouts.find_artifact(tmp_path)


def test_a_graph_that_finds_something_else_is_no_version(artifact: Artifact, tmp_path: Path) -> None:
    other = tiny_ir.save_ir(tmp_path / "other.xml", floor=0.3)
    serving.save(other, artifact.spec, ServingConfig(), tmp_path / "model.xml")
    with pytest.raises(ExportError, match="something else"):
        layouts.check(serving.load(tmp_path / "model.xml"), artifact, "ovms", ServingConfig())


def test_the_command(artifact: Artifact, tmp_path: Path, capsys: Any) -> None:
    assert cli.run(["export", str(artifact.root), "--layout", "ovms", "--out", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "s/hawkeye/1")
    assert cli.run(["export", str(artifact.root), "--layout", "ovms", "--out", str(tmp_path / "s"), "--conf", "2"]) == 2


# -- with the real exporter


@pytest.mark.compress
@pytest.mark.parametrize("hw", SIZES[1:5], ids=str)
def test_both_layouts_of_a_real_network(hw: tuple[int, int], exported: Artifact, tmp_path: Path) -> None:
    from hawkeye.compress import serving_onnx

    config = ServingConfig(conf=0.02)
    image = picture(hw)
    detector = Detector(exported, runtime="onnxruntime", conf=0.02, threads=1)
    assert len(detector(image)) > 3
    version = layouts.write(exported, "triton", config, out=tmp_path / "triton", name="tiny")
    agree(detector(image), serving_onnx.load(version / "model.onnx")(image), 0.02)
    version = layouts.write(exported, "ovms", config, out=tmp_path / "ovms", name="tiny")
    agree(detector(image), serving.load(version / "model.xml")(image), 0.02)


@pytest.mark.compress
def test_a_repository_for_triton(exported: Artifact, tmp_path: Path) -> None:
    import onnx

    version = layouts.write(exported, "triton", ServingConfig(), out=tmp_path, name="tiny")
    assert [path.name for path in version.iterdir()] == ["model.onnx"]
    text = (tmp_path / "tiny/config.pbtxt").read_text()
    assert 'name: "tiny"' in text
    told = {name: (kind, [int(n) for n in dims.split(",")]) for name, kind, dims in re.findall(
        r'name: "(\w+)"\s+data_type: TYPE_(\w+)\s+dims: \[([^]]+)\]', text)}  # fmt: skip
    kinds = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT, "INT32": onnx.TensorProto.INT32}
    graph = onnx.load(version / "model.onnx").graph
    for value in [*graph.input, *graph.output]:
        kind, dims = told.pop(value.name)
        tensor = value.type.tensor_type
        assert tensor.elem_type == kinds[kind]
        assert [d.dim_value or -1 for d in tensor.shape.dim] == dims
    assert not told


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch = pytest.importorskip("torch")
    from hawkeye.compress import export, yolo
    from hawkeye.config import ExportConfig

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = yolo.build_detector(tiny_ir.NAMES, width=0.125, imgsz=64)
    with torch.no_grad():  # scores that differ from cell to cell, so that there is something to find
        for branch in model.model[-1].cv3:
            branch[-1].weight.mul_(12)
            branch[-1].bias.fill_(-2)
    yolo.save_checkpoint(folder / "tiny.pt", model, names=tiny_ir.NAMES, imgsz=64)
    return export.export(folder / "tiny.pt", ExportConfig(), out=folder / "export")
