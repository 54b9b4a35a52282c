"""Hardswish instead of SiLU: which blocks get it, and that every stage behind carries it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "torch_pruning", "nncf", "openvino", "onnxruntime"):
    pytest.importorskip(_package)

from torch import nn  # noqa: E402
from ultralytics import YOLO  # noqa: E402

import tiny_detector  # noqa: E402
from hawkeye.compress import activations, recover, yolo  # noqa: E402
from hawkeye.compress.distance import agreement  # noqa: E402
from hawkeye.compress.export import export, openvino_infer  # noqa: E402
from hawkeye.compress.groups import merge_c2f_, split_c2f_  # noqa: E402
from hawkeye.compress.inspect import inspect  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.prune import prune  # noqa: E402
from hawkeye.compress.quantize import quantize  # noqa: E402
from hawkeye.config import ExportConfig, PruneConfig, QuantizeConfig, RecoverConfig  # noqa: E402
from hawkeye.data import split_holdout, training_images  # noqa: E402
from hawkeye.runtime.ir import read  # noqa: E402

pytestmark = pytest.mark.compress
FIRST = "model.0"


@pytest.fixture(scope="module")
def original(tiny_scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    return import_original(tiny_detector.checkpoint(tiny_scenes, folder), imgsz=64, out=folder / "out")


@pytest.fixture(scope="module")
def pruned(original, tiny_scenes, tmp_path_factory):
    """Cut late, so that there is a trunk to share; the first block is the only one that may be changed for nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "candidates", lambda _model: {FIRST: [FIRST]})
        config = PruneConfig(data=tiny_scenes, method="l1", flops=0.97, params=0.97, separable=False, hardswish=1e9)

        def late(groups, cost, scorer, **bounds):
            group = next(g for g in groups if g.name == "model.22.cv3.0.0.conv")
            return {group.name: torch.arange(group.width // 2)}

        return prune(original, config, out=tmp_path_factory.mktemp("pruned"), allocator=late)


def settings(**changes):
    return RecoverConfig(**{"steps": 4, "labels": 0.001, "batch": 4, "lr": 1e-2, "checks": 2, "holdout": 0.2,
                            **changes})  # fmt: skip


@pytest.fixture
def split():
    """A detector whose blocks have statistics of their own, and whose C2f are split."""
    torch.manual_seed(0)
    model = yolo.build_detector(("a", "b"), width=0.125).eval()
    for block in model.modules():
        if isinstance(block, nn.BatchNorm2d):
            block.running_mean.normal_(0, 0.3)
            block.weight.data.uniform_(0.5, 1.5)
            block.bias.data.normal_(0, 0.5)
    split_c2f_(model)
    return model


def test_blocks_change_that_cost_the_least_for_the_size_of_their_maps(split):
    """By made-up costs: what a value of the map costs decides, and the sum stays within the limit."""
    names = activations.candidates(split)
    assert sorted(names["model.2.m.0.cv2"]) == ["model.2.cv0", "model.2.cv1", "model.2.m.0.cv2"], "halves, shortcut"
    costs = dict.fromkeys(names, 1.0) | {"model.0": 0.4, "model.1": 0.3, "model.9.cv1": 0.05, "model.22.cv3.0.1": 0.3}
    seen = []

    def judge(network):
        (first,) = {unit for unit, blocks in names.items() for name in blocks
                    if not isinstance(network.get_submodule(name).act, nn.SiLU)}  # fmt: skip
        return costs[first]

    found = activations.simplify_(split, names, judge, 64, 0.72, seen.append)
    # Maps of model.0 have 32 x 32 values a channel, those of model.9.cv1 2 x 2: the cheapest, and yet the dearest.
    assert found == {"model.0": 0.4, "model.1": 0.3} and activations.of(split) == list(found)
    assert sum(seen) == len(names)
    assert isinstance(split.get_submodule("model.2.cv1").act, nn.SiLU), "an activation that others share stays"
    assert activations.simplify_(split, {}, lambda _: 1.0, 64, 0.5) == {}


@pytest.mark.parametrize("one", [None, "model.2.m.0.cv2", "model.9.cv1", "model.15.cv2"])
def test_the_slope_disappears_in_the_weights(split, one):
    """In one place (a shortcut, one that is pooled and joined, one that three layers read), and everywhere."""
    units = activations.candidates(split)
    changed = [name for unit, blocks in units.items() if one in (None, unit) for name in blocks]
    apart = copy.deepcopy(split)
    for name in changed:
        apart.get_submodule(name).act = activations._Sloped()
    judge = {unit: 0.0 if one in (None, unit) else 1.0 for unit in units}
    activations.simplify_(split, units, lambda network: judge[_tried(network, units)], 64, 0.5)
    assert sorted(activations.of(split)) == sorted(changed)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = apart(pixels)[0], split(pixels)[0]
        merge_c2f_(split)
        whole = split(pixels)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_made_like_another_has_its_weights_too(split):
    """The teacher of a shared trunk: the same blocks, the same weights; a unit of which one block is named stays."""
    before = copy.deepcopy(split)
    merge_c2f_(before)
    units = activations.candidates(split)
    judge = {unit: float(unit not in ("model.0", "model.2.m.0.cv2")) for unit in units}
    activations.simplify_(split, units, lambda network: judge[_tried(network, units)], 64, 0.5)
    merge_c2f_(split)
    names = activations.of(split)
    assert sorted(names) == ["model.0", "model.2.cv1", "model.2.m.0.cv2"]
    made = activations.like(before, names)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in split.state_dict().items())
    assert activations.gain(split, before, "model.2.m.0.cv2") == activations.SLOPE
    assert activations.gain(split, made, "model.2.m.0.cv2") == activations.gain(split, before, "model.2.cv2") == 1.0
    assert activations.of(activations.like(before, ["model.0", "model.2.cv1"])) == ["model.0"]


def _tried(network, units):
    (unit,) = {unit for unit, blocks in units.items() for name in blocks
               if isinstance(network.get_submodule(name).act, activations._Sloped)}  # fmt: skip
    return unit


def test_a_checkpoint_keeps_them_and_stock_ultralytics_runs_it(original, pruned):
    assert pruned.details["hardswish"].keys() == {FIRST}
    loaded = yolo.load_checkpoint(pruned.path("pytorch")).model
    assert activations.of(loaded) == [FIRST]
    assert pruned.params < original.params
    stock = YOLO(pruned.path("pytorch"))
    assert isinstance(stock.model.model[0].act, nn.Hardswish)
    stock.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
    kinds = {row["name"]: row["kind"] for row in inspect(pruned.path("pytorch"), imgsz=64, frames=1)["layers"]}
    assert kinds["model.0.conv"] == "convolution, BatchNorm, Hardswish"
    assert kinds["model.1.conv"] == "convolution, BatchNorm, SiLU"


def test_a_shared_trunk_has_the_students_activations(original, pruned, tiny_scenes, tmp_path):
    """They are computed once for both, and the judgement is against the original as it is."""
    config = settings(data=tiny_scenes)
    result = recover.recover(pruned, config, teacher=original, out=tmp_path / "out")
    labelled, _ = training_images(tiny_scenes, None)
    _, held = split_holdout(labelled, config.holdout, config.seed)
    whole = yolo.folded(yolo.load_checkpoint(original.path("pytorch")).model).eval()
    judge = agreement(whole, held, 64, "cpu")
    before = judge(yolo.folded(yolo.load_checkpoint(pruned.path("pytorch")).model).eval())
    assert result.details["held_out_before"] == pytest.approx(before, rel=0.05)  # in bfloat16
    recovered = yolo.load_checkpoint(result.path("pytorch")).model
    assert activations.of(recovered) == [FIRST]
    mine, wanted = recovered.model[0].state_dict(), yolo.load_checkpoint(pruned.path("pytorch")).model.model[0]
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in mine.items())
    after = judge(yolo.folded(recovered).eval())
    assert result.details["held_out_after"] == pytest.approx(after, rel=0.05)


def test_int8_puts_its_quantizer_behind_it(pruned, tiny_scenes, tmp_path):
    """PyTorch behind the same quantizers agrees with both files, or quantize would not have made them."""
    exported = export(pruned, ExportConfig(), out=tmp_path / "exported")
    config = QuantizeConfig(data=tiny_scenes, samples=12, mode="ptq")
    made = quantize(exported, config, out=tmp_path / "int8")
    model = read(made.path("openvino"))
    (node,) = [op for op in model.get_ordered_ops() if op.get_type_name() == "HSwish"]
    assert node.input_value(0).get_node().get_type_name() == "Add"
    assert {port.get_node().get_type_name() for port in node.output(0).get_target_inputs()} == {"FakeQuantize"}
    canvas = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    assert np.isfinite(openvino_infer(made.path("openvino"))(canvas)).all()
