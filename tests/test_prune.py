"""Pruning: exact surgery, closed-form compensation against brute force, bounds, and checkpoints that are stock."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

from torch import nn  # noqa: E402

from hawkeye.compress import yolo  # noqa: E402
from hawkeye.compress.allocate import Cost, units_of  # noqa: E402
from hawkeye.compress.distance import load_batches  # noqa: E402
from hawkeye.compress.forecast import forecast  # noqa: E402
from hawkeye.compress.groups import SplitC2f, cut_, find_groups, merge_c2f_, split_c2f_  # noqa: E402
from hawkeye.compress.macs import params_and_macs  # noqa: E402
from hawkeye.compress.prune import prune, verify  # noqa: E402
from hawkeye.config import PruneConfig  # noqa: E402
from hawkeye.data import list_images  # noqa: E402
from hawkeye.errors import BoundsError, DataError  # noqa: E402
from hawkeye.scenes import NAMES  # noqa: E402

pytestmark = pytest.mark.compress
SIZE = 96
CONFIG = {"samples": 8, "rounds": 2, "align": 4, "imgsz": SIZE, "separable": False}  # test_separable.py has the other


@pytest.fixture(scope="module")
def dense():
    """A small detector whose BatchNorms do something; not to be changed."""
    torch.manual_seed(0)
    model = yolo.build_detector(NAMES, width=0.125, imgsz=SIZE).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.2, 1.0)
    return model


@pytest.fixture
def split(dense):
    model = copy.deepcopy(dense)
    split_c2f_(model)
    return model


@pytest.fixture(scope="module")
def checkpoint(dense, tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "dense.pt"
    yolo.save_checkpoint(path, dense, names=NAMES)
    return path


@pytest.fixture(scope="module")
def obs(checkpoint, drawn, tmp_path_factory):
    return prune(checkpoint, PruneConfig(data=drawn, **CONFIG), out=tmp_path_factory.mktemp("obs") / "out")


@pytest.fixture(scope="module")
def frames(drawn):
    return next(load_batches(list_images(drawn.parent / "images" / "train"), SIZE))


def raw(model, x):
    """Decoded output and the logits under it: a difference hidden by a sigmoid would show in the logits."""
    with torch.no_grad():
        decoded, parts = model(x)
    return decoded, parts["scores"], parts["boxes"]


def same(one, other):
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(one, other, strict=True))


def kinds(model):
    """Every place in the network with its class; activations are shared in some places and not in others."""
    return [(name, type(module)) for name, module in model.named_modules(remove_duplicate=False)]


def random_keep(groups, align=2, seed=0):
    """Random channels of every free group, equally many in both halves of a C2f."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for unit in units_of(groups):
        width = unit[0].width
        count = int(torch.randint(1, width // align + 1, (), generator=generator)) * align
        for group in unit:
            keep[group.name] = torch.randperm(width, generator=generator)[:count].sort().values.tolist()
    return keep


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_splitting_c2f_is_exact_and_merging_restores_the_stock_network(dense, split, frames):
    assert sum(isinstance(module, SplitC2f) for module in split.modules()) == 8
    assert same(raw(dense, frames), raw(split, frames))
    merge_c2f_(split)
    assert kinds(split) == kinds(dense)
    before, after = dense.state_dict(), split.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_channel_belongs_to_exactly_one_group(split):
    groups = find_groups(split)
    convs = {name: module for name, module in split.named_modules() if isinstance(module, nn.Conv2d)}
    producers = [name for group in groups for name in group.producers]
    assert sorted(producers) == sorted(convs)
    read: dict[str, list[int]] = {}
    for group in groups:
        assert all(convs[name].out_channels == group.width for name in group.producers)
        for name, channels in group.consumers.items():
            assert len(channels) == group.width
            read.setdefault(name, []).extend(channels.flatten().tolist())
    fixed = {"model.0.conv", "model.22.dfl.conv"}  # one reads the picture, one the protected box distributions
    assert read.keys() == convs.keys() - fixed
    for name, channels in read.items():
        assert sorted(channels) == list(range(convs[name].in_channels)), name


@pytest.mark.parametrize(
    ("producer", "coupled", "why"),
    [
        ("model.0.conv", {"model.0.conv"}, "alone"),
        ("model.2.m.0.cv2.conv", {"model.2.m.0.cv2.conv", "model.2.cv1.conv"}, "shortcut"),  # a residual bottleneck
        ("model.12.m.0.cv2.conv", {"model.12.m.0.cv2.conv"}, "concatenated into model.12.cv2.conv"),  # no shortcut
        ("model.9.cv1.conv", {"model.9.cv1.conv"}, "concatenated into model.9.cv2.conv"),  # SPPF reads it four times
        ("model.22.cv3.0.0.conv", {"model.22.cv3.0.0.conv"}, "alone"),  # inside the head, free
    ],
)
def test_what_is_coupled_is_found_and_explained(split, producer, coupled, why):
    group = next(group for group in find_groups(split) if producer in group.producers)
    assert set(group.producers) == coupled
    assert why in group.why
    assert group.protected is None
    if producer == "model.9.cv1.conv":
        assert group.consumers["model.9.cv2.conv"].shape == (group.width, 4)


def test_outputs_are_protected_with_a_reason_and_halves_of_a_c2f_are_partners(split):
    groups = {group.name: group for group in find_groups(split)}
    fixed = {name: group.protected for name, group in groups.items() if group.protected}
    expected = [f"model.22.cv{branch}.{level}.2" for branch in (2, 3) for level in range(3)] + ["model.22.dfl.conv"]
    assert sorted(fixed) == sorted(expected)
    assert "class" in fixed["model.22.cv3.1.2"]
    assert "DFL" in fixed["model.22.dfl.conv"]
    for name, module in split.named_modules():
        if isinstance(module, SplitC2f):
            first = next(g for g in groups.values() if f"{name}.cv0.conv" in g.producers)
            second = next(g for g in groups.values() if f"{name}.cv1.conv" in g.producers)
            assert (first.partner, second.partner) == (second.name, first.name)


@pytest.mark.parametrize("seed", [0, 1])
def test_cut_network_equals_the_dense_one_with_the_same_channels_zeroed(split, frames, seed):
    groups = find_groups(split)
    keep = random_keep(groups, seed=seed)
    zeroed = copy.deepcopy(split)
    for group in groups:
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[keep.get(group.name, slice(None))] = False
        for name in group.producers if group.name in keep else ():
            block = zeroed.get_submodule(name.rpartition(".")[0])
            for tensor in (block.conv.weight, block.bn.weight, block.bn.bias):
                tensor.data[gone] = 0  # SiLU(0) = 0, and so are its maximum, its copies and its sums
    cut_(split, keep, groups)
    assert split.get_submodule("model.0.conv").out_channels == len(keep["model.0.conv"])
    assert not same(raw(zeroed, frames), [torch.zeros(())] * 3)
    assert same(raw(split, frames), raw(zeroed, frames))
    merge_c2f_(split)
    assert not any(isinstance(module, SplitC2f) for module in split.modules())
    assert same(raw(split, frames), raw(zeroed, frames))


def test_cost_model_tells_what_counting_finds_after_the_cut(split):
    groups = find_groups(split)
    cost = Cost(split, groups, SIZE)
    keep = random_keep(groups, seed=3)
    assert cost.total({}) == params_and_macs(split, SIZE)[::-1]
    expected = cost.total({name: len(channels) for name, channels in keep.items()})
    cut_(split, keep, groups)
    merge_c2f_(split)
    assert params_and_macs(split, SIZE)[::-1] == expected


# --- the stage --------------------------------------------------------------------------------------------------------


def check_fractions(made, original, flops, params, align):
    """Within both bounds; and the tighter one is met within one step of `align` channels."""
    reached = (made.details["flops_kept"], made.details["params_kept"])
    loaded = yolo.load_checkpoint(made.path("pytorch")).model
    counted = params_and_macs(loaded, made.spec.imgsz)
    whole = params_and_macs(original, made.spec.imgsz)
    assert reached == (counted[1] / whole[1], counted[0] / whole[0])
    assert (made.params, made.macs) == counted
    assert reached[0] <= flops
    assert reached[1] <= params
    model = copy.deepcopy(original)
    split_c2f_(model)
    groups = find_groups(model)
    cost = Cost(model, groups, made.spec.imgsz)
    start = cost.total({})
    steps = []
    for unit in units_of(groups):
        less = cost.total({group.name: group.width - align for group in unit})
        steps.append([(before - after) / before for before, after in zip(start, less, strict=True)])
    step = np.max(steps, 0)
    assert reached[0] > flops - step[0] or reached[1] > params - step[1]


def check_widths(made, align):
    widths = made.details["widths"]
    assert any(after < before for before, after in widths.values())
    for name, (before, after) in widths.items():
        assert after == before or (after % align == 0 and 0 < after < before), name
    convs = yolo.load_checkpoint(made.path("pytorch")).model
    assert {name: convs.get_submodule(name).out_channels for name in widths} == {n: w[1] for n, w in widths.items()}
    for level in range(3):
        for branch in (2, 3):
            before, after = widths[f"model.22.cv{branch}.{level}.2"]
            assert before == after


def test_obs_is_within_both_bounds_and_no_further_than_one_step(obs, dense):
    check_fractions(obs, dense, 0.7, 0.7, 4)
    check_widths(obs, 4)
    assert (obs.name, obs.stage, obs.spec.names) == ("pruned", "prune", NAMES)
    assert obs.details["pictures"] == 8


@pytest.mark.parametrize("method", ["l1", "bn", "taylor"])
def test_plain_methods_reach_the_bounds_too(checkpoint, dense, drawn, tmp_path, method):
    config = PruneConfig(data=drawn, method=method, flops=0.6, params=0.9, **{**CONFIG, "align": 8})
    made = prune(checkpoint, config, out=tmp_path / "out")
    check_fractions(made, dense, 0.6, 0.9, 8)
    check_widths(made, 8)


def test_result_loads_and_predicts_in_stock_yolo(obs, drawn):
    from ultralytics import YOLO

    stock = YOLO(str(obs.path("pytorch")))
    assert stock.names == dict(enumerate(NAMES))
    assert {type(m).__name__ for m in stock.model.modules()}.isdisjoint({"SplitC2f"})
    picture = list_images(drawn.parent / "images" / "val")[0]
    assert len(stock.predict(picture, imgsz=SIZE, conf=0.0001, verbose=False)[0].boxes) > 0


def test_the_forecast_is_the_drop_on_held_out_pictures(obs):
    told = obs.details["forecast"]
    assert (told["judge"], told["pictures"]) == ("labels", 3)
    assert 0 <= told["before"] <= 1 and 0 <= told["after"] <= 1


class Seer(nn.Module):
    """Finds one box of class 0 in every picture, as surely as it is told."""

    def __init__(self, score):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score), requires_grad=False)

    def forward(self, x):
        raw = torch.zeros(len(x), 4 + len(NAMES), 2)
        raw[:, :4, 0] = torch.tensor([40.0, 40.0, 20.0, 20.0])
        raw[:, 4, 0] = self.score
        return raw


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((0.9, 0.9), (1.0, 1.0)), ((0.9, 0.0), (1.0, 0.0)), ((0.1, 0.1), (None, None))],
)
def test_without_labels_the_original_is_the_judge(obs, drawn, monkeypatch, scores, expected):
    monkeypatch.setattr(yolo, "fused", lambda model: model)
    told = forecast(*map(Seer, scores), obs.spec, PruneConfig(images=drawn.parent / "images" / "val", imgsz=SIZE))
    assert (told["judge"], told["before"], told["after"]) == ("original", *map(pytest.approx, expected))


def test_widths_that_do_not_fit_are_found_out(split):
    groups = find_groups(split)
    channels = {group.name: torch.arange(group.width) for group in groups}
    verify(split, groups, channels, SIZE)
    shortcut = next(group for group in groups if len(group.producers) > 1)
    with pytest.raises(AssertionError, match="was to keep"):
        verify(split, groups, {**channels, shortcut.name: torch.arange(shortcut.width - 1)}, SIZE)
    split.get_submodule(shortcut.producers[1]).out_channels -= 1  # one side of the sum
    with pytest.raises(AssertionError, match=shortcut.name):
        verify(split, groups, channels, SIZE)


def test_kept_features_say_which_channels_of_the_original_each_block_gives(obs):
    model = yolo.load_checkpoint(obs.path("pytorch")).model
    found = obs.details["kept_features"]
    assert {"model.0", "model.9.cv2", "model.15.cv2", "model.18.cv2", "model.21.cv2"} <= found.keys()
    for name, kept in found.items():
        assert len(kept) == model.get_submodule(name).conv.out_channels
        assert kept == sorted(set(kept))
        assert kept[-1] < obs.details["widths"][f"{name}.conv"][0]


def test_one_seed_gives_one_result_and_is_not_computed_again(obs, checkpoint, drawn, tmp_path):
    again = prune(checkpoint, PruneConfig(data=drawn, **CONFIG), out=tmp_path / "out")
    assert again.details == obs.details
    one, two = (yolo.load_checkpoint(made.path("pytorch")).model.state_dict() for made in (obs, again))
    for name in one:  # once, beside other work, a weight differed where widths and figures did not
        torch.testing.assert_close(one[name], two[name], rtol=2e-3, atol=1e-4)
    written = again.path("pytorch").stat().st_mtime_ns
    reused = prune(checkpoint, PruneConfig(data=drawn, **CONFIG), out=tmp_path / "out")
    assert (reused, reused.path("pytorch").stat().st_mtime_ns) == (again, written)


def test_impossible_bound_is_told_before_measuring_with_the_nearest_possible(checkpoint, dense, drawn, tmp_path):
    with pytest.raises(BoundsError, match="at least --flops") as caught:
        prune(checkpoint, PruneConfig(data=drawn, flops=0.01, **CONFIG), out=tmp_path / "out")
    assert not (tmp_path / "out" / "artifact.json").exists()
    flops, params = map(float, re.findall(r"at least --flops ([\d.]+) and --params ([\d.]+)", str(caught.value))[0])
    config = PruneConfig(data=drawn, method="l1", flops=flops, params=max(params, 0.5), **CONFIG)
    made = prune(checkpoint, config, out=tmp_path / "nearest")  # what is called possible is possible
    assert made.details["flops_kept"] <= flops
    assert 0.01 < flops < 0.5


@pytest.mark.parametrize("bounds", [{"flops": 1.0}, {"params": 1.5}, {"flops": 1.0, "params": 1.0}])
def test_bound_of_one_or_more_leaves_nothing_to_prune(checkpoint, drawn, tmp_path, bounds):
    with pytest.raises(BoundsError, match="--skip prune"):
        prune(checkpoint, PruneConfig(data=drawn, **bounds), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unlabelled_pictures_serve_obs_but_not_taylor(checkpoint, dense, drawn, tmp_path):
    images = drawn.parent / "images" / "train"
    with pytest.raises(DataError, match="taylor needs labels"):
        prune(checkpoint, PruneConfig(images=images, method="taylor", **CONFIG), out=tmp_path / "taylor")
    config = PruneConfig(images=images, flops=0.85, params=0.85, **{**CONFIG, "rounds": 1})
    check_fractions(prune(checkpoint, config, out=tmp_path / "obs"), dense, 0.85, 0.85, 4)
