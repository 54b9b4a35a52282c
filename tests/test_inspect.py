"""What `hawkeye inspect` tells: figures that add up, couplings in the names of the stock network, curves that fall."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import tiny_detector  # noqa: E402
from hawkeye import cli  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.compress.inspect import inspect  # noqa: E402
from hawkeye.compress.macs import params_and_macs  # noqa: E402
from hawkeye.errors import CheckpointError, ConfigError  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_detector.fresh(tmp_path_factory.mktemp("inspected") / "tiny.pt")


@pytest.fixture(scope="module")
def found(checkpoint):
    return inspect(checkpoint, frames=4)


def test_layers_add_up_to_the_network(found, checkpoint):
    model = yolo.load_checkpoint(checkpoint).model
    layers = found["layers"]
    assert (found["params"], found["macs"]) == params_and_macs(model, 64)
    assert sum(row["params"] for row in layers) == found["params"]
    assert sum(row["macs"] for row in layers) == found["macs"]
    assert found["gflops"] == 2 * found["macs"] / 1e9
    assert sum(row["latency_share"] for row in layers) == pytest.approx(1)
    assert all(0 < row["latency_share"] < 1 for row in layers)
    assert found["latency"]["ms"] > 0
    assert found["imgsz"] == 64  # what it was trained at
    convs = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert [row["name"] for row in layers[:-1]] == list(convs)
    for row in layers[:-1]:
        assert row["shape"] == list(convs[row["name"]].weight.shape)
        assert (row["channels_out"], row["channels_in"]) == tuple(row["shape"][:2])


def test_a_larger_input_costs_more_and_weighs_the_same(found, checkpoint):
    larger = inspect(checkpoint, imgsz=128, frames=1)
    assert larger["params"] == found["params"]
    assert larger["macs"] == 4 * found["macs"]


def test_groups_are_told_in_names_of_the_stock_network(found):
    groups = {group["name"]: group for group in found["groups"]}
    names = {row["name"] for row in found["layers"]}
    told = [name for group in groups.values() for name in (group["name"], *group["layers"], *group["readers"])]
    assert {name.partition("[")[0] for name in told} <= names
    half = groups["model.2.m.0.cv2.conv"]
    assert half["layers"] == ["model.2.m.0.cv2.conv", "model.2.cv1.conv[8:]"]
    assert half["width"] == 8
    assert "shortcut" in half["why"]
    assert "as wide as model.2.cv1.conv[:8]" in half["why"]
    assert "model.2.cv2.conv" in groups["model.2.cv1.conv[:8]"]["why"]
    protected = [name for name, group in groups.items() if group["protected"]]
    assert len(protected) == 7
    assert list(groups)[-7:] == protected
    assert next(iter(groups)) == "model.0.conv"


def test_sensitivity_rises_as_channels_go(checkpoint, drawn):
    result = inspect(checkpoint, sensitivity=True, data=drawn, samples=4, fractions=(0.25, 0.75), frames=1)
    curves = result["sensitivity"]
    assert (curves["pictures"], curves["source"]) == (4, str(drawn))
    free = [group["name"] for group in result["groups"] if not group["protected"]]
    assert sorted(curves["groups"]) == sorted(free)
    widths = {group["name"]: group["width"] for group in result["groups"]}
    for name, (more, less) in curves["groups"].items():
        assert (more["kept"], less["kept"]) == (round(0.75 * widths[name]), round(0.25 * widths[name]))
        assert 0 < more["damage"] < less["damage"]
        assert less["macs_kept"] < more["macs_kept"] < 1
    assert json.loads(json.dumps(result)) == result


def test_without_pictures_scenes_are_drawn_and_that_is_said(checkpoint, capsys):
    curves = inspect(checkpoint, sensitivity=True, samples=2, frames=1)["sensitivity"]
    assert curves["pictures"] == 2
    assert "drawn scenes" in curves["source"]
    assert "drawn scenes" in capsys.readouterr().err


def test_command_prints_tables_or_json(checkpoint, capsys):
    assert cli.run(["inspect", str(checkpoint)]) == 0
    text = capsys.readouterr().out
    assert "latency_share" in text
    assert "PyTorch eager" in text
    assert "head output: one score per class" in text
    assert cli.run(["inspect", str(checkpoint), "--imgsz", "96", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["imgsz"] == 96


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"imgsz": 100}, ConfigError, "multiple of 32"),
        ({"imgsz": 0}, ConfigError, "no such input size"),
        ({"fractions": (0.5, 1.0)}, ConfigError, "between 0 and 1"),
        ({"fractions": ()}, ConfigError, "between 0 and 1"),
        ({"frames": 0}, ConfigError, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(checkpoint, settings, kind, message):
    with pytest.raises(kind, match=message):
        inspect(checkpoint, **settings)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        inspect(tmp_path / "missing.pt")
