"""What layers cost: keys that cover every network, stairs and what lies between, and real kernels at a tiny size."""

from __future__ import annotations

import copy
import json
import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")
pytest.importorskip("openvino")

import tiny_detector  # noqa: E402
from hawkeye.compress import latency, latency_table, yolo  # noqa: E402
from hawkeye.compress.allocate import units_of  # noqa: E402
from hawkeye.compress.groups import cut_, find_groups, split_c2f_  # noqa: E402
from hawkeye.compress.latency_table import Table, grid, measure_, wanted  # noqa: E402
from hawkeye.compress.layer_models import Shape, layers_ms, network_ms, networks_ms  # noqa: E402
from hawkeye.config import PruneConfig  # noqa: E402
from hawkeye.environment import affinity  # noqa: E402
from hawkeye.errors import BoundsError, ConfigError  # noqa: E402
from hawkeye.scenes import NAMES  # noqa: E402

pytestmark = pytest.mark.compress
LAYER = Shape("conv", 3, 1, 64, 80, 20, 20)


def stairs(shape):
    """Blocks of 16 in and out, by cells; an output layer a little less."""
    work = -(-shape.cin // 16) * -(-shape.cout // 16) * shape.kernel**2 * shape.h * shape.w
    return (0.9 if shape.kind == "output" else 1.0) * work * 1e-6


@pytest.fixture
def table():
    made = Table("int8", 2, None)
    made.put({shape: stairs(shape) for shape in wanted([LAYER], "int8")})
    return made


def profile_of(model, known, imgsz=64):
    """Of a detector whose C2f are split: 10 ms in INT8, 6 at half of the widths."""
    half = copy.deepcopy(model)
    latency.halve_(half)
    wholes = {"int8": latency.Whole(10.0, 6.0), "fp32": latency.Whole(25.0, 15.0)}
    layers, less = latency.layers_of(model, imgsz), latency.layers_of(half, imgsz)
    return latency.Profile(imgsz, layers, less, {"int8": known}, wholes, 0)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["n", "s", "m"])
def test_every_layer_of_every_pruning_has_a_price(scale):
    """Networks built from YAML, cut to random widths: no shape is without a price, and cutting never costs more."""
    model = yolo.build_detector([f"class {i}" for i in range(80)], scale=scale, imgsz=64).eval().requires_grad_(False)
    split_c2f_(model)
    half = copy.deepcopy(model)
    latency.halve_(half)
    groups, groups_of_half, layers = find_groups(model), find_groups(half), latency.layers_of(model, 64)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(part for layer in layers for part in layer.parts) == sorted(n for n in convolutions if "dfl" not in n)
    for precision in ("int8", "fp32"):
        known = Table(precision, 2, None)
        known.put({shape: stairs(shape) for shape in latency.wanted(layers, precision)})
        profile = profile_of(model, known)
        clock = profile.of(model, groups)
        assert clock.ms({}) == pytest.approx(10.0)
        assert profile.of(half, groups_of_half).ms({}) == pytest.approx(6.0)
        for seed in range(3):
            draw = random.Random(seed)
            widths = {}
            for unit in units_of(groups):
                width = max(8, round(unit[0].width * draw.uniform(0.1, 1) / 8) * 8)
                widths |= {group.name: min(width, group.width) for group in unit}
            assert 1.0 < clock.ms(widths) < 10.0


def test_a_cut_network_costs_what_its_widths_were_said_to_cost():
    model = yolo.build_detector(NAMES, width=0.25, imgsz=64).eval().requires_grad_(False)
    split_c2f_(model)
    groups, layers = find_groups(model), latency.layers_of(model, 64)
    known = Table("int8", 2, None)
    known.put({shape: stairs(shape) for shape in latency.wanted(layers, "int8")})
    profile = profile_of(model, known)
    widths = {group.name: max(8, group.width // 2) for unit in units_of(groups) for group in unit}
    small = copy.deepcopy(model)
    cut_(small, {name: list(range(width)) for name, width in widths.items()}, find_groups(small))
    told = profile.of(model, groups).ms(widths)
    assert profile.of(small, find_groups(small)).ms({}) == pytest.approx(told)


def test_measured_widths_are_multiples_of_8_where_a_block_matters_and_hold_the_whole_width():
    assert grid(80) == (8, 16, 24, 32, 40, 48, 56, 64, 72, 80)
    assert grid(100)[-2:] == (96, 100)
    assert {w for w in grid(512) if w > 256} == set(range(288, 513, 32))
    assert grid(128, "fp32") == (16, 32, 48, 64, 128)
    few, many = wanted([LAYER], "fp32"), wanted([LAYER], "int8")
    assert set(few) <= set(many) and len(many) == 8 * 10
    assert {s.cout for s in wanted([LAYER], "int8", fixed=[LAYER])} == {80}
    assert {s.cin for s in wanted([LAYER._replace(cin=3)], "int8")} == {3}


# --- looking up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cin", "cout", "like"),
    [
        (64, 80, (64, 80)),  # measured
        (24, 40, (24, 40)),  # measured: 24 is no 32
        (60, 80, (64, 80)),  # padded to the next block
        (4, 4, (16, 16)),
    ],
)
def test_a_width_that_was_not_measured_costs_the_block_that_it_is_padded_to(table, cin, cout, like):
    expected = stairs(LAYER._replace(cin=like[0], cout=like[1]))
    assert table.ms(LAYER._replace(cin=cin, cout=cout)) == pytest.approx(expected)


def test_between_measured_widths_costs_are_interpolated():
    layer = LAYER._replace(cin=512, cout=16)
    table = Table("int8", 2, None)
    table.put({shape: stairs(shape) for shape in wanted([layer], "int8")})
    low, high = (table.ms(layer._replace(cin=cin)) for cin in (448, 480))
    assert table.ms(layer._replace(cin=464)) == pytest.approx((low + high) / 2)


def test_a_layer_that_nobody_measured_is_told(table):
    for other in (LAYER._replace(h=40, w=40), LAYER._replace(cout=160)):
        with pytest.raises(ConfigError, match="hawkeye profile"):
            table.ms(other)


# --- measuring and keeping --------------------------------------------------------------------------------------------


def test_a_killed_measurement_goes_on_and_damage_is_measured_again(tmp_path, monkeypatch):
    asked = []

    def fake(shapes, precision, *, threads, runs):
        asked.extend(shapes)
        return {shape: stairs(shape) for shape in shapes}

    monkeypatch.setattr(latency_table, "layers_ms", fake)
    shapes = wanted([LAYER], "int8")
    first = [shape for shape in shapes if shape.cin <= 32]
    assert measure_(Table("int8", 2, tmp_path), first) == len(first)
    again = Table("int8", 2, tmp_path)
    assert measure_(again, shapes) == len(shapes) - len(first)
    assert sorted(asked) == shapes  # nothing twice, since wider layers take longer
    assert Table("int8", 2, tmp_path).sha256 == again.sha256
    assert len(Table("int8", 1, tmp_path)) == len(Table("fp32", 2, tmp_path)) == 0  # other threads, other precision
    content = json.loads(again.path.read_text())
    for damaged in (again.path.read_text()[:100], json.dumps({**content, "cpu": "another"}), "[]"):
        again.path.write_text(damaged)
        assert len(Table("int8", 2, tmp_path)) == 0


def test_what_another_process_disturbed_is_measured_again_and_stairs_stay(monkeypatch):
    asked = []

    def fake(shapes, precision, *, threads, runs):
        first = not asked
        asked.append(list(shapes))
        disturbed = {s: 5.0 if first and s.cout == 56 else 1.0 for s in shapes}  # for as long as the first model runs
        return {s: stairs(s) * disturbed[s] * (1.6 if s.cout == 24 else 1.0) for s in shapes}  # 24 cost more than 32

    monkeypatch.setattr(latency_table, "layers_ms", fake)
    table, shapes = Table("int8", 2, None), wanted([LAYER], "int8")
    measure_(table, shapes)
    assert {shape.cout for shape in latency_table.suspects(table, shapes)} == {24}
    for shape in shapes:
        assert table.ms(shape) == pytest.approx(stairs(shape) * (1.6 if shape.cout == 24 else 1.0))
    again = [shape for group in asked[8:] for shape in group]
    assert {shape.cout for shape in again} == {24, 56} and len(again) < len(shapes)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_real_kernels_are_told_apart(precision):
    """Layers that share a model: each has a cost, and sixteen times the work takes longer."""
    shapes = [Shape("conv", 3, 1, 64, cout, 40, 40) for cout in (16, 256)] + [Shape("output", 3, 1, 64, 80, 40, 40)]
    found = layers_ms(shapes, precision, threads=1, runs=5)
    assert set(found) == set(shapes)
    assert found[shapes[0]] < found[shapes[1]]


def test_int8_layers_run_in_int8():
    from hawkeye.compress.layer_models import _model

    nodes = network_ms(_model([LAYER], "int8"), threads=1, runs=1)
    kernels = [node.kernel for node in nodes if node.kind == "Convolution"]
    assert len(kernels) == 1 and kernels[0].endswith("I8")


def test_a_profile_tells_which_widths_do_not_pay():
    from hawkeye.tables import as_json

    def price(shape):  # 24 channels cost more than 32
        return stairs(shape) * (2.5 if shape.cout == 24 else 1)

    model = yolo.build_detector(NAMES, width=0.25, imgsz=64).eval().requires_grad_(False)
    split_c2f_(model)
    layers = latency.layers_of(model, 64)
    known = Table("int8", 2, None)
    known.put({shape: price(shape) for shape in latency.wanted(layers, "int8")})
    told = latency.summary(profile_of(model, known))
    rows = {row["layer"]: row for row in told["layers"]}
    assert 24 in rows["model.3.conv"]["poor_widths"] and 32 not in rows["model.3.conv"]["poor_widths"]
    assert rows["model.22.cv2.0.2"]["poor_widths"] == []  # its outputs stay
    assert told["network"]["fp32"]["total"] == 25.0 and "model.3.conv" in as_json(told)


@pytest.mark.slow
def test_a_small_network_is_profiled_as_a_whole():
    model = yolo.build_detector(NAMES, width=0.0625, imgsz=64).eval().requires_grad_(False)
    made = latency.profile(model, 64, threads=1, precisions=("int8",), runs=2)
    assert made.measured == len(made.tables["int8"]) == len(latency.wanted(made.layers, "int8"))
    whole = made.wholes["int8"]
    assert min(whole.total, whole.half) > 0
    split = copy.deepcopy(model)
    split_c2f_(split)
    clock = made.of(split, find_groups(split))
    assert clock.ms({}) == pytest.approx(whole.total)
    assert made.wholes["fp32"].total > 0


def test_a_network_with_another_activation_is_another_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWKEYE_CACHE", str(tmp_path))
    monkeypatch.setattr(latency, "networks_of", lambda *_: {"int8": None, "fp32": None})
    monkeypatch.setattr(latency, "networks_ms", lambda networks, **_: [[float(next(clock))] for _ in networks])
    clock = iter(range(1, 100))
    model = yolo.build_detector(NAMES, width=0.0625, imgsz=64).eval()
    layers = latency.layers_of(model, 64)
    stock = latency._wholes(model, model, layers, 64, 1)
    simpler = copy.deepcopy(model)
    simpler.model[0].act = torch.nn.Hardswish()
    assert latency._wholes(simpler, simpler, layers, 64, 1) != stock
    assert latency._wholes(model, model, layers, 64, 1) == stock


@pytest.mark.skipif(affinity() < 2, reason="a network of one thread takes all cores here")
def test_threads_fewer_than_the_cores_are_not_tied_to_the_first_ones():
    from hawkeye.compress.layer_models import _model, _request

    compiled = _request(_model([LAYER], "fp32"), 1).get_compiled_model()
    assert not compiled.get_property("ENABLE_CPU_PINNING")


def test_the_forecast_is_told_in_words(monkeypatch, tmp_path, capsys):
    from hawkeye.compress.original import import_original

    made = import_original(tiny_detector.fresh(tmp_path / "small.pt"), imgsz=64, out=tmp_path / "original")
    monkeypatch.setattr(latency, "networks_ms", lambda networks, **_: [[20.0], [13.0]])
    monkeypatch.setattr(latency, "networks_of", lambda *_: {"int8": None})
    assert latency.forecast(made, made) == pytest.approx(0.65)
    assert "0.65 of the original's in INT8, 13.0 ms instead of 20.0" in capsys.readouterr().err


def test_networks_take_turns():
    from hawkeye.compress.layer_models import _model

    small, large = (_model([LAYER._replace(cout=cout)], "fp32") for cout in (8, 512))
    times = networks_ms([small, large], threads=1, runs=4)
    assert [len(runs) for runs in times] == [4, 4] and min(times[0]) < min(times[1])


# --- pruning by it ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_profile(monkeypatch):
    """Pruning measures nothing: every layer costs its stairs."""
    from hawkeye.compress import prune

    def profile(model, imgsz, *, threads, precisions):
        split = copy.deepcopy(model)
        split_c2f_(split)
        layers = latency.layers_of(split, imgsz)
        known = Table("int8", 2, None)
        known.put({shape: stairs(shape) for shape in latency.wanted(layers, "int8")})
        return profile_of(split, known, imgsz)

    monkeypatch.setattr(prune, "profile", profile)
    monkeypatch.setattr(prune, "whole_ms", lambda *_args, **_options: {"int8": 10.0, "fp32": 25.0})
    return prune.prune


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return tiny_detector.fresh(tmp_path_factory.mktemp("detector") / "small.pt", width=0.25)


LIFTED = {"flops": 1.0, "params": 1.0, "samples": 8, "rounds": 2, "imgsz": 64, "separable": False}


@pytest.mark.parametrize(
    ("method", "kept", "of"),
    [("l1", 0.7, "int8"), ("l1", 0.24, "fp32"), pytest.param("obs", 0.8, "int8", marks=pytest.mark.slow)],
)
def test_latency_alone_is_a_bound_that_pruning_keeps(small_profile, detector, drawn, tmp_path, method, kept, of):
    config = PruneConfig(data=drawn, method=method, latency=kept, latency_of=of, **LIFTED)
    made = small_profile(detector, config, out=tmp_path / "out")
    told = made.details["latency"]
    assert 0.85 * kept < told["kept"] <= kept
    assert (told["of"], told["original_ms"]) == (of, 10.0 if of == "int8" else 25.0)
    if method == "l1":  # the same each time, as obs is (test_prune.py), whose damage takes long to measure
        again = small_profile(detector, config, out=tmp_path / "again")
        assert again.details["groups"] == made.details["groups"]


@pytest.mark.parametrize(
    ("kept", "words"), [(0.02, "at least --latency"), (1.04, "--skip prune"), (1.0, "leaves nothing to prune")]
)
def test_a_latency_that_cannot_be_met_is_told_with_the_nearest(small_profile, detector, drawn, tmp_path, kept, words):
    config = PruneConfig(data=drawn, latency=kept, latency_of="int8", **LIFTED)
    with pytest.raises(BoundsError, match=words):
        small_profile(detector, config, out=tmp_path / "out")
