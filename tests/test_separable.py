"""Depthwise-separable convolutions: the fit against what it minimises, exact surgery, and all stages behind."""

from __future__ import annotations

import copy
import importlib
import shutil
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

from torch import nn  # noqa: E402

import tiny_detector  # noqa: E402
from hawkeye.compress import latency, yolo  # noqa: E402
from hawkeye.compress.allocate import Cost, units_of  # noqa: E402
from hawkeye.compress.distance import load_batches  # noqa: E402
from hawkeye.compress.filters import Filters  # noqa: E402
from hawkeye.compress.groups import cut_, depthwise, find_groups, merge_c2f_, split_c2f_  # noqa: E402
from hawkeye.compress.latency_table import Table, wanted  # noqa: E402
from hawkeye.compress.layer_models import Shape, layers_ms  # noqa: E402
from hawkeye.compress.macs import params_and_macs  # noqa: E402
from hawkeye.compress.prune import prune  # noqa: E402
from hawkeye.compress.saliency import Moments, collect  # noqa: E402
from hawkeye.compress.separable import backbone, choose, convolutions, factorize, of_head, separate_  # noqa: E402
from hawkeye.config import ExportConfig, PruneConfig, QuantizeConfig  # noqa: E402
from hawkeye.data import list_images  # noqa: E402
from hawkeye.errors import BoundsError, ConfigError  # noqa: E402
from hawkeye.scenes import NAMES  # noqa: E402

pytestmark = pytest.mark.compress
SIZE = 96
HEAD = [f"model.22.cv{branch}.{level}.{i}" for branch in (2, 3) for level in range(3) for i in range(2)]
NECK = [f"model.{layer}" for layer in ("12.m.0.cv1", "12.m.0.cv2", "15.m.0.cv1", "15.m.0.cv2", "16", "18.m.0.cv1",
                                       "18.m.0.cv2", "19", "21.m.0.cv1", "21.m.0.cv2")]  # fmt: skip
DENSE = [*NECK, *HEAD]
CONFIG = {"samples": 8, "rounds": 2, "align": 4, "imgsz": SIZE, "separable": True}


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


@pytest.fixture(scope="module")
def frames(drawn):
    return next(load_batches(list_images(drawn.parent / "images" / "train"), SIZE))


@pytest.fixture(scope="module")
def separated(dense, frames):
    """The same detector with another head, its C2f split; not to be changed."""
    model = copy.deepcopy(dense)
    fits = {name: by_filters[place % 2] for place, (name, by_filters) in enumerate(fits_of(model, frames).items())}
    separate_(model, fits)
    split_c2f_(model)
    return model, fits


def fits_of(model, frames):
    """Fits of the head's convolutions that may be separated, with one and two filters a channel."""
    names = of_head(model)
    known = collect(model, [f"{name}.conv" for name in names], [frames])
    return {n: factorize(model.get_submodule(n).conv.weight, known[f"{n}.conv"], 2) for n in names}


@pytest.fixture(scope="module")
def pruned(dense, drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("separable")
    yolo.save_checkpoint(folder / "dense.pt", dense, names=NAMES)
    return prune(folder / "dense.pt", PruneConfig(data=drawn, **CONFIG), out=folder / "out")


def moments(inputs=5, outputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(inputs * 9, inputs * 9, generator=generator, dtype=torch.float64)
    fisher = torch.rand(outputs, generator=generator, dtype=torch.float64) + 0.1
    return Moments(torch.randn(inputs * 9, generator=generator, dtype=torch.float64), root @ root.T, fisher)


def kernel(depth, point):
    """The kernel (o, i, k) that these filters (r, i, k) and this pointwise factor (o, r * i) stand for."""
    return torch.einsum("ori,rik->oik", point.unflatten(1, depth.shape[:2]), depth)


def lost_by(weight, known, depth, point):
    """Weighted output energy of the difference, over that of the whole; the ridge of the fit left out."""
    weight = weight.double().flatten(1)
    error = weight - kernel(depth, point).flatten(1)
    energy, left = (torch.einsum("o,od,de,oe->", known.fisher, a, known.cov, a) for a in (weight, error))
    return float(left / energy)


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_a_kernel_that_is_separable_is_found_exactly():
    generator = torch.Generator().manual_seed(1)
    depth, point = torch.randn(1, 5, 9, generator=generator), torch.randn(6, 5, generator=generator)
    weight = kernel(depth, point).view(6, 5, 3, 3)
    (fit,) = factorize(weight, moments())
    assert fit.lost < 1e-9
    assert torch.allclose(kernel(fit.depthwise, fit.pointwise).view(6, 5, 3, 3), weight.double(), atol=1e-4)


@pytest.mark.parametrize("filters", [1, 2, 3])
def test_no_factor_can_be_improved_and_the_loss_is_what_it_says(filters):
    weight, known = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(2)), moments()
    fits = factorize(weight, known, filters)
    assert [fit.depthwise.shape for fit in fits] == [(count, 5, 9) for count in range(1, filters + 1)]
    assert all(more.lost < 0.8 * fewer.lost for fewer, more in zip(fits, fits[1:], strict=False))
    depth, point, _, lost, damage, _ = fits[-1]
    assert lost == pytest.approx(lost_by(weight, known, depth, point), rel=0.05)
    assert 0.05 < lost < 1
    energy = torch.einsum(
        "o,od,de,oe->", known.fisher, *[weight.double().flatten(1), known.cov, weight.double().flatten(1)]
    )
    assert damage == pytest.approx(lost * float(energy), rel=0.05)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        # The pointwise factor was fitted last, to the optimum; the newest filters one sweep before.
        step = 0.02 * torch.randn(point.shape, generator=generator, dtype=torch.float64) * point.abs().mean()
        assert lost_by(weight, known, depth, point + step) > lost_by(weight, known, depth, point) - 1e-4
        step = torch.zeros_like(depth)
        step[-1] = 0.2 * torch.randn(depth[0].shape, generator=generator, dtype=torch.float64) * depth.abs().mean()
        assert lost_by(weight, known, depth + step, point) > lost_by(weight, known, depth, point)


def test_every_filter_gives_a_map_of_variance_one():
    """So that one range fits all of them, however little the second one adds."""
    known = moments()
    fit = factorize(torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(4)), known, 2)[-1]
    assert torch.allclose(fit.moments.cov.diagonal(), torch.ones(10, dtype=torch.float64), rtol=0.02)


def test_what_the_inputs_are_decides_the_fit():
    """Filters are fitted to what the convolution reads: fitted to white noise they lose more of it."""
    weight, known = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3)), moments()
    white = Moments(known.mean, torch.eye(45, dtype=torch.float64), known.fisher)
    depth, point, *_ = factorize(weight, white)[0]
    assert factorize(weight, known)[0].lost < 0.8 * lost_by(weight, known, depth, point)


def test_channels_that_are_never_active_do_no_harm():
    known = moments()
    known.cov[:9] = known.cov[:, :9] = 0
    for depth, point, _, lost, *_ in factorize(torch.randn(6, 5, 3, 3), known, 2):
        assert torch.isfinite(depth).all() and torch.isfinite(point).all() and lost < 1


def test_factors_of_a_map_that_hardly_varies_fit_into_half_precision():
    known = moments()
    known.cov *= 1e-14
    for depth, point, *_ in factorize(torch.randn(6, 5, 3, 3), known, 2):
        assert max(depth.abs().max(), point.abs().max()) < 1000


# --- the network ------------------------------------------------------------------------------------------------------


def test_those_that_can_be_separated_are_found(dense, separated):
    assert (convolutions(dense), of_head(dense)) == (DENSE, HEAD)
    assert of_head(separated[0]) == [] and convolutions(separated[0]) == NECK


@pytest.mark.parametrize("name", ["model.22.cv3.0.0", "model.22.cv3.0.1"])
def test_mean_outputs_stay_and_blocks_are_stock(dense, separated, frames, name):
    """With one filter a channel, and with two."""
    model, fits = separated
    assert fits.keys() == set(HEAD)
    assert all(0 <= fit.lost < 1 for fit in fits.values())
    allowed = {type(module) for module in dense.modules()}
    head = model.model[-1]
    assert {type(m).__name__ for m in head.modules() if type(m) not in allowed} == {"DWConv", "Identity", "Filters"}
    known = collect(dense, [f"{name}.conv"], [frames])[f"{name}.conv"]
    block, (first, second) = dense.get_submodule(name), model.get_submodule(name)
    patch = known.mean.view(1, -1, 3, 3).float()  # read without padding: one output, of the mean input
    whole = block.bn(nn.functional.conv2d(patch, block.conv.weight))
    filters = first if isinstance(first, Filters) else [first]
    middle = torch.cat([f.bn(nn.functional.conv2d(patch, f.conv.weight, groups=patch.shape[1])) for f in filters], 1)
    assert torch.allclose(second.bn(second.conv(middle)), whole, atol=1e-4)


def test_checkpoints_hold_stock_blocks_and_compute_the_same(separated, frames, tmp_path):
    """Two filters a channel are one stock block in a file, also of other widths, and parallel ones when it is read."""
    model = copy.deepcopy(separated[0])
    groups = find_groups(model)
    cut_(model, {"model.22.cv3.0.0.1.conv": range(1, 9)}, groups)
    merge_c2f_(model)
    model.half().float()  # as files have it
    yolo.save_checkpoint(tmp_path / "two.pt", model, names=NAMES)
    assert isinstance(model.get_submodule("model.22.cv3.0.1")[0], Filters), "the model itself is not changed"
    stock = torch.load(tmp_path / "two.pt", weights_only=False)["model"].float().eval()
    assert not any(isinstance(module, Filters) for module in stock.modules())
    wide = stock.get_submodule("model.22.cv3.0.1")[0].conv
    assert (wide.in_channels, wide.out_channels, wide.groups) == (8, 16, 8)
    again = yolo.load_checkpoint(tmp_path / "two.pt").model
    assert isinstance(again.get_submodule("model.22.cv3.0.1")[0], Filters)
    assert params_and_macs(stock, SIZE) == params_and_macs(again, SIZE) == params_and_macs(model, SIZE)
    with torch.no_grad():
        raw = model(frames)[1]["scores"]
        assert torch.allclose(stock(frames)[1]["scores"], raw, atol=1e-4)
        assert torch.equal(again(frames)[1]["scores"], raw)


def test_depthwise_channels_go_with_those_that_they_filter(separated):
    model = separated[0]
    groups = find_groups(model)
    of = {name: group for group in groups for name in group.producers}
    assert of["model.22.cv3.0.1.0.0.conv"].name == "model.22.cv3.0.0.1.conv"
    assert "depthwise" in of["model.22.cv3.0.1.0.0.conv"].why
    assert of["model.22.cv3.0.1.0.0.conv"] is of["model.22.cv3.0.1.0.1.conv"], "both filters of a channel go"
    assert of["model.22.cv3.0.1.0.0.conv"].consumers["model.22.cv3.0.1.1.conv"].shape == (32, 2)
    assert of["model.22.cv3.0.0.0.conv"] is of["model.15.cv2.conv"]  # the neck's map, read by both branches
    assert not any(depthwise(model.get_submodule(name)) for group in groups for name in group.consumers)


def test_cut_network_equals_the_same_with_zeroed_channels_and_costs_what_was_said(separated, frames):
    model = copy.deepcopy(separated[0])
    groups = find_groups(model)
    cost = Cost(model, groups, SIZE)
    assert cost.total({}) == params_and_macs(model, SIZE)[::-1]
    generator = torch.Generator().manual_seed(4)
    keep = {}
    for unit in units_of(groups):
        for group in unit:
            drawn = torch.randperm(group.width, generator=generator)[: max(2, group.width // 2)]
            keep[group.name] = drawn.sort().values
    zeroed = copy.deepcopy(model)
    for group in groups:
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[keep.get(group.name, slice(None))] = False
        for name in group.producers if group.name in keep else ():
            block = zeroed.get_submodule(name.rpartition(".")[0])
            for tensor in (block.conv.weight, block.bn.weight, block.bn.bias):
                tensor.data[gone] = 0
    cut_(model, {name: index.tolist() for name, index in keep.items()}, groups)
    with torch.no_grad():
        assert torch.allclose(model(frames)[1]["scores"], zeroed(frames)[1]["scores"], rtol=1e-4, atol=1e-4)
        assert torch.allclose(model(frames)[1]["boxes"], zeroed(frames)[1]["boxes"], rtol=1e-4, atol=1e-4)
    expected = cost.total({name: len(index) for name, index in keep.items()})
    merge_c2f_(model)
    assert params_and_macs(model, SIZE)[::-1] == expected


@pytest.fixture
def priced(dense, frames, monkeypatch):
    """`choose` over four blocks of the head, the distance given by a function of the names that are separated."""
    fits = fits_of(dense, frames)
    names = list(fits)[8:12]
    damages = dict(zip(names, (30.0, 1.0, 0.5, 9.0), strict=True))
    known = {name: [fits[name][0]._replace(damage=damages[name])] for name in names}
    module = importlib.import_module("hawkeye.compress.separable")
    monkeypatch.setattr(module, "of_head", lambda _model: names)
    monkeypatch.setattr(module, "separate_", lambda model, some: setattr(model, "separated", list(some)))
    monkeypatch.setattr(module, "find_groups", lambda _model: [])
    monkeypatch.setattr(module, "Cost", lambda *_: None)
    # With the backbone whole the bounds cannot be reached.
    monkeypatch.setattr(module, "held", lambda _groups, layers: layers)

    def allocate(layers, *_args, **_options):
        if layers:
            raise BoundsError("not reachable")
        return {}

    monkeypatch.setattr(module, "allocate", allocate)
    monkeypatch.setattr(module, "ObsScorer", lambda *_: SimpleNamespace(refit_=lambda _: None))
    monkeypatch.setattr(module, "cut_", lambda *_: None)

    def chosen(distance, advance=lambda _: None):
        found, whole = choose(dense, known, {}, lambda trial: distance(trial.separated), imgsz=SIZE, macs=0, params=0,
                              align=8, advance=advance)  # fmt: skip
        assert not whole
        return list(found)

    return names, damages, chosen


def test_those_are_separated_that_do_less_harm_than_channels_would(priced):
    """Against every subset, with made-up damages, and a price of channels that rises with what they have to pay for."""
    names, damages, chosen = priced
    saves = dict(zip(names, (5.0, 3.0, 4.0, 1.0), strict=True))

    def distance(subset):
        return sum(damages[name] for name in subset) + max(0.0, 10 - sum(saves[name] for name in subset)) ** 2

    subsets = [[n for i, n in enumerate(names) if mask >> i & 1] for mask in range(2 ** len(names))]
    done = []
    assert chosen(distance, done.append) == min(subsets, key=distance) == names[1:3]
    assert sum(done) == 2 * len(names)


def test_what_was_tried_first_is_tried_again_unless_it_was_hopeless(priced):
    names, _, chosen = priced
    tried = []

    def distance(subset):
        """The most damaged one is worth putting back only when the least damaged one has been."""
        tried.append(tuple(subset))
        back = [name not in subset for name in names]
        return 10 + (1.0 if back[0] and not back[2] else -2.0 * back[0]) - back[2] + 5 * back[1] + back[3]

    assert chosen(distance) == [names[1], names[3]]
    assert len(tried) == len(set(tried)), "no network is built twice"
    assert sum(names[1] not in subset for subset in tried) == 1, "half as far again is not tried a second time"


@pytest.mark.parametrize("kept", [0.999, 0.5])
def test_of_the_networks_that_are_tried_the_nearest_is_chosen(dense, frames, kept):
    """All are within the bounds: what is not separated has channels pay for it."""
    model = copy.deepcopy(dense)
    split_c2f_(model)
    names = convolutions(model)
    readers = {name for group in find_groups(model) for name in group.consumers}
    known = collect(model, sorted(readers.union(f"{name}.conv" for name in names)), [frames])
    fits = {n: factorize(model.get_submodule(n).conv.weight, known[f"{n}.conv"], 2) for n in names}
    params, macs = params_and_macs(model, SIZE)
    with torch.no_grad():
        wanted = dense(frames)[1]["scores"]
    distances = {}

    def judge(network):
        reached = params_and_macs(network, SIZE)
        assert reached[0] <= kept * params and reached[1] <= kept * macs
        with torch.no_grad():
            distance = float((network(frames)[1]["scores"] - wanted).square().sum())  # never below zero
        distances[layers_alike(network) >= backbone(dense), filters(network)] = distance
        return distance

    def layers_alike(network):
        """How many leading layers have all of their channels."""
        short = [name for name, module in network.named_modules()
                 if isinstance(module, nn.Conv2d) and name in known
                 and module.out_channels < model.get_submodule(name).out_channels]  # fmt: skip
        return min((int(name.split(".")[1]) for name in short), default=len(network.model))

    def filters(network):
        """Filters a channel of each block; 0 of one that is whole."""
        firsts = [getattr(network.get_submodule(name), "0", None) for name in names]
        return tuple(len(first) if isinstance(first, Filters) else int(first is not None) for first in firsts)

    chosen, whole = choose(model, fits, known, judge, imgsz=SIZE, macs=kept * macs, params=kept * params, align=4)
    assert whole == (kept > 0.9), "half of this network cannot come from neck and head without harm"
    best = min((tried for held, tried in distances if held == whole), key=lambda tried: distances[whole, tried])
    assert {name: len(fit.depthwise) for name, fit in chosen.items()} == {
        name: count for name, count in zip(names, best, strict=True) if count
    }
    assert len(distances) > len(names) and {0, 1, 2} == {count for _, tried in distances for count in tried}
    assert convolutions(model) == names, "the network is not changed"


def test_steps_keep_their_size_over_what_is_left_to_do():
    """Equal ratios: what halves the way in logarithms halves the number of steps, and the farther bound decides."""
    rounds = importlib.import_module("hawkeye.compress.prune")._rounds
    config = PruneConfig(images="x", rounds=6)
    assert rounds(config, (100, 100), (100, 100), (64.0, 64.0)) == 6
    assert rounds(config, (100, 100), (64, 80), (64.0, 64.0)) == 3
    assert rounds(config, (100, 100), (50, 60), (64.0, 64.0)) == 1
    assert rounds(PruneConfig(images="x", method="l1"), (100, 100), (100, 100), (64.0, 64.0)) == 1


def test_moments_behind_a_filter_are_those_that_are_measured(dense, frames):
    """With every position drawn, which happens once each, they are the same."""
    name = "model.22.cv3.1.0"
    known = collect(dense, [f"{name}.conv"], [frames], positions=10_000)
    fit = factorize(dense.get_submodule(name).conv.weight, known[f"{name}.conv"], 2)[1]
    behind = copy.deepcopy(dense)
    block = behind.get_submodule(name)
    inputs = block.conv.in_channels
    kernels = fit.depthwise.float().view(2, inputs, 1, 3, 3)
    with torch.no_grad():
        maps = []
        handle = block.register_forward_pre_hook(lambda _m, args: maps.append(args[0]))
        behind(frames)
        handle.remove()
        seen = torch.cat([nn.functional.conv2d(maps[0], kernel, padding=1, groups=inputs) for kernel in kernels], 1)
        seen = seen.transpose(0, 1).flatten(1).double()
    assert torch.allclose(fit.moments.mean, seen.mean(1), rtol=1e-3, atol=1e-4 * float(seen.std()))
    assert torch.allclose(fit.moments.cov, torch.cov(seen, correction=0), rtol=1e-3, atol=1e-4 * float(seen.var()))


# --- the stages behind ------------------------------------------------------------------------------------------------


def test_pruning_with_such_a_head_keeps_the_bounds_and_loads_as_stock(pruned, drawn):
    from ultralytics import YOLO

    assert pruned.details["flops_kept"] <= 0.7 and pruned.details["params_kept"] <= 0.7
    separated = pruned.details["separated"]
    assert separated.keys() <= set(DENSE) and separated
    model = yolo.load_checkpoint(pruned.path("pytorch")).model
    assert (pruned.params, pruned.macs) == params_and_macs(model, SIZE)
    assert convolutions(model) == [name for name in DENSE if name not in separated]
    for name in DENSE:
        last = model.get_submodule(f"{name}.1.conv" if name in separated else f"{name}.conv")
        assert pruned.details["widths"][f"{name}.conv"][1] == last.out_channels
    stock = YOLO(str(pruned.path("pytorch")))
    picture = list_images(drawn.parent / "images" / "val")[0]
    assert len(stock.predict(picture, imgsz=SIZE, conf=0.0001, verbose=False)[0].boxes) > 0


def test_a_detector_that_has_such_a_head_already_is_pruned_on(pruned, drawn, tmp_path):
    config = PruneConfig(data=drawn, **{**CONFIG, "flops": 0.9, "params": 0.9})
    made = prune(pruned.path("pytorch"), config, out=tmp_path / "out")
    assert made.details["separated"].keys() <= set(DENSE) - set(pruned.details["separated"])
    assert made.details["flops_kept"] <= 0.9 and made.details["params_kept"] <= 0.9


def test_it_is_quantized_whole_and_read_back(pruned, drawn, tmp_path):
    pytest.importorskip("nncf")
    from hawkeye.compress import quantizers
    from hawkeye.compress.export import export
    from hawkeye.compress.quantize import quantize

    exported = export(pruned, ExportConfig(), out=tmp_path / "export")
    images = tmp_path / "pictures"
    for split in ("train", "val"):
        shutil.copytree(drawn.parent / "images" / split, images / split)
    int8 = quantize(exported, QuantizeConfig(images=images, mode="ptq"), out=tmp_path / "int8")
    convs = [m for m in yolo.load_checkpoint(pruned.path("pytorch")).model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(depthwise(conv) for conv in convs) == sum(
        found["filters"] for found in pruned.details["separated"].values()
    )
    assert int8.details["convolutions"] == len(convs)
    assert int8.details["int8_convolutions"] == len(convs) - 1  # all but DFL
    record = quantizers.load(int8.path("openvino"), exported.path("onnx"))
    assert len(record.convolutions) == len(convs) - 1


# --- its price --------------------------------------------------------------------------------------------------------


def test_a_depthwise_layer_is_priced_by_its_one_width():
    layer = Shape("depthwise", 3, 1, 64, 64, 20, 20)
    known = Table("int8", 2, None)
    shapes = wanted([layer], "int8")
    assert {(shape.cin, shape.cout) for shape in shapes} == {(width, width) for width in range(8, 65, 8)}
    known.put({shape: shape.cout * 1e-3 for shape in shapes})
    assert known.ms(layer._replace(cin=24, cout=24)) == pytest.approx(0.024)
    assert known.ms(layer._replace(cin=20, cout=20)) == pytest.approx(0.032)  # padded to the next block
    with pytest.raises(ConfigError):
        known.ms(layer._replace(cin=128, cout=128))


def test_depthwise_kernels_are_measured_and_cost_less_than_full_ones():
    full, depth = (Shape(kind, 3, 1, 64, 64, 40, 40) for kind in ("conv", "depthwise"))
    for precision in ("int8", "fp32"):
        found = layers_ms([full, depth], precision, threads=1, runs=5)
        assert 0 < found[depth] < found[full]


def test_the_table_covers_a_separable_network_at_every_width(separated):
    model = separated[0]
    groups, layers = find_groups(model), latency.layers_of(model, SIZE)
    assert sum(layer.shape.kind == "depthwise" for layer in layers) == 18  # half of the twelve have two filters
    half = copy.deepcopy(model)
    latency.halve_(half)
    known = Table("int8", 2, None)
    known.put({shape: 1e-6 * shape.cin * shape.cout for shape in latency.wanted(layers, "int8")})
    profile = latency.Profile(SIZE, layers, latency.layers_of(half, SIZE), {"int8": known},
                              {"int8": latency.Whole(10.0, 6.0)}, 0)  # fmt: skip
    widths = {group.name: min(8, group.width) for unit in units_of(groups) for group in unit}
    assert profile.of(model, groups).ms(widths) < profile.of(model, groups).ms({}) == pytest.approx(10.0)


def test_a_bound_on_latency_holds_with_such_a_head(dense, drawn, tmp_path, monkeypatch):
    """The original is the measure, whatever the head that widths are chosen with."""
    prune_module = importlib.import_module("hawkeye.compress.prune")  # the package has a function of that name

    def known(model, imgsz, **_options):
        split = copy.deepcopy(model)
        split_c2f_(split)
        half = copy.deepcopy(split)
        latency.halve_(half)
        layers = latency.layers_of(split, imgsz)
        made = Table("int8", 1, None)
        made.put({shape: 1e-6 * shape.cin * shape.cout * shape.h for shape in latency.wanted(layers, "int8")})
        assert sum(layer.shape.kind == "depthwise" for layer in layers) == 12
        return latency.Profile(imgsz, layers, latency.layers_of(half, imgsz), {"int8": made},
                               {"int8": latency.Whole(8.0, 4.0)}, 0)  # fmt: skip

    monkeypatch.setattr(prune_module, "profile", known)
    monkeypatch.setattr(prune_module, "whole_ms", lambda model, imgsz, **_options: {"int8": 10.0, "fp32": 20.0})
    model = tiny_detector.fresh(tmp_path / "tiny.pt", NAMES, width=0.25)
    lifted = {**CONFIG, "flops": 1, "params": 1, "align": 8}
    made = prune(model, PruneConfig(data=drawn, latency=0.6, **lifted), out=tmp_path / "out")
    assert made.details["latency"]["predicted_ms"] <= 6.0 and made.details["latency"]["original_ms"] == 10.0
    assert any(after < before for before, after in made.details["widths"].values())
    # What the head alone reaches needs no channel to go.
    made = prune(model, PruneConfig(data=drawn, latency=0.9, **lifted), out=tmp_path / "head-alone")
    assert made.details["latency"]["predicted_ms"] == pytest.approx(8.0)
    assert all(after == before for before, after in made.details["widths"].values())
