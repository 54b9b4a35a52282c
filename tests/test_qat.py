"""Fake quantization is what INT8 computes, and training behind it never ends worse than calibration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_package)

import onnx  # noqa: E402
import openvino  # noqa: E402
from openvino import opset13  # noqa: E402

from hawkeye.compress import calibrate, fake_quantize, int8_checks, qat, quantizers, training, yolo  # noqa: E402
from hawkeye.compress.fake_quantize import FakeQuantize  # noqa: E402
from hawkeye.compress.quantize import quantize  # noqa: E402
from hawkeye.compress.sensitivity import sensitivity  # noqa: E402
from hawkeye.config import QuantizeConfig  # noqa: E402
from hawkeye.data import training_images  # noqa: E402
from hawkeye.errors import ModelError  # noqa: E402
from hawkeye.runtime.core import core  # noqa: E402
from hawkeye.scenes import NAMES  # noqa: E402
from tiny_detector import settings  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def ptq(tiny_exported, tiny_scenes, tmp_path_factory):
    return quantize(tiny_exported, QuantizeConfig(mode="ptq", data=tiny_scenes), out=tmp_path_factory.mktemp("ptq"))


@pytest.fixture(scope="module")
def record(tiny_exported, ptq):
    """As training starts from it: with the float kernels."""
    return quantizers.read(quantizers.read_ir(ptq.path("openvino")), onnx.load(tiny_exported.path("onnx")))


@pytest.fixture(scope="module")
def float_network(tiny_exported):
    return yolo.folded(yolo.load_checkpoint(tiny_exported.path("pytorch")).model).eval().requires_grad_(False)


def trained(tiny_exported, record, tiny_scenes, folder, **more):
    pictures, _ = training_images(tiny_scenes, None)
    change = more.pop("change", None)
    return qat.train(tiny_exported, record, settings(tiny_scenes, **more), (pictures[4:], []), pictures[:4],
                     state=folder / "state.pt", **({"change": change} if change else {}))  # fmt: skip


def openvino_fake_quantize(x, low, high, levels):
    parameter = opset13.parameter(list(x.shape), np.float32)
    low, high = (opset13.constant(np.asarray(value, np.float32)) for value in (low, high))
    node = opset13.fake_quantize(parameter, low, high, low, high, levels)
    # The reference implementation of the operator, not the CPU plug-in's fused one.
    return core().compile_model(openvino.Model([node], [parameter]), "CPU",
                                         {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]  # fmt: skip


@pytest.mark.parametrize(
    ("zero_point", "scale"),
    [(14, 0.02), (0, 0.004), (255, 0.5), (128, 1e-3), (3, 30.0)],
    ids=["SiLU", "pictures", "only negative", "symmetric", "wide"],
)
def test_fake_quantize_of_maps_is_openvinos(zero_point, scale):
    low, high = -zero_point * scale, (255 - zero_point) * scale
    rng = np.random.default_rng(0)
    x = rng.uniform(2 * low - high, 2 * high - low, (1, 3, 16, 17)).astype(np.float32)
    x.flat[:6] = 0, low, high, low - scale, high + scale, 1e30
    mine = FakeQuantize(torch.tensor(scale), -zero_point, 255 - zero_point, trained=False)(torch.from_numpy(x))
    theirs = openvino_fake_quantize(x, low, high, 256)
    ties = np.abs(np.abs(x / scale) % 1 - 0.5) < 1e-3  # there either neighbour is right
    assert ties.mean() < 0.02
    np.testing.assert_allclose(mine.numpy()[~ties], theirs[~ties], atol=1e-4 * scale, rtol=1e-5)
    assert mine.flatten()[0] == 0


def test_fake_quantize_of_kernels_is_openvinos():
    rng = np.random.default_rng(0)
    kernel = (
        rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
        * np.array([1e-3, 0.1, 1, 10, 1], np.float32)[:, None, None, None]
    )
    scale = np.abs(kernel).reshape(5, -1).max(1) / 127
    scale[4] *= 0.5  # clips
    wide = scale.reshape(5, 1, 1, 1)
    mine = FakeQuantize(torch.from_numpy(wide), -127, 127, trained=False)(torch.from_numpy(kernel)).numpy()
    theirs = openvino_fake_quantize(kernel, -127 * wide, 127 * wide, 255)
    ties = np.abs(np.abs(kernel / wide) % 1 - 0.5) < 1e-3
    np.testing.assert_allclose((mine / wide)[~ties], (theirs / wide)[~ties], atol=1e-3)
    assert np.abs(mine[4]).max() < np.abs(kernel[4]).max()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_go_straight_through_and_are_torchs_own(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator).mul(3).to(kind).requires_grad_()
    gradient = torch.randn(2, 3, 8, 8, generator=generator).to(kind)
    quantizer = FakeQuantize(torch.tensor(0.02), -14, 241, trained=True)
    quantizer(x).backward(gradient)
    twin, scale = x.detach().float().requires_grad_(), torch.tensor([0.02], requires_grad=True)
    reference = torch._fake_quantize_learnable_per_tensor_affine(twin, scale, torch.tensor([14.0]), 0, 255, 1.0)
    reference.backward(gradient.float())
    inside = (x.detach().float() > -14.4 * 0.02) & (x.detach().float() < 241.4 * 0.02)
    assert torch.equal(x.grad[inside], gradient[inside])
    assert 0.05 < (x.grad == 0).float().mean() < 0.6
    exact = kind is torch.float32
    if exact:
        assert torch.equal(x.grad, twin.grad)
    wanted = scale.grad.item() * 0.02 * fake_quantize._PACE  # through the exponential
    assert quantizer.gain.grad.item() == pytest.approx(wanted, rel=1e-3 if exact else 0.1)


def test_gradient_of_a_kernels_scales_is_torchs_own():
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    start = torch.tensor([0.01, 0.02, 0.005, 0.03])
    quantizer = FakeQuantize(start.reshape(-1, 1, 1, 1), -127, 127, trained=True)
    quantizer(kernel).square().sum().backward()
    twin, scale = kernel.detach().clone().requires_grad_(), start.clone().requires_grad_()
    torch._fake_quantize_learnable_per_channel_affine(
        twin, scale, torch.zeros(4), 0, -127, 127, 1.0
    ).square().sum().backward()
    torch.testing.assert_close(kernel.grad, twin.grad)
    torch.testing.assert_close(
        quantizer.gain.grad.flatten(), scale.grad * start * fake_quantize._PACE, rtol=1e-3, atol=1e-3
    )


def test_folding_batchnorm_changes_nothing(tiny_exported, float_network):
    unfolded = yolo.load_checkpoint(tiny_exported.path("pytorch")).model
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(float_network(x)[0], unfolded(x)[0], atol=2e-3, rtol=1e-3)


def test_mirror_without_its_quantizers_is_the_float_network(float_network, record):
    everything = record.without(list(record.activations))
    assert set(everything.in_float()) == set(record.convolutions)
    biases = {node: replace(conv, bias=float_network.get_submodule(conv.module).bias.numpy())
              for node, conv in everything.convolutions.items()}  # fmt: skip
    mirror = fake_quantize.mirror(float_network, replace(everything, convolutions=biases), trained=False)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mirror(x)[0], float_network(x)[0], atol=1e-4, rtol=1e-4)


def test_record_covers_every_convolution_but_dfl_and_shared_ranges_stay_shared(record):
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in yolo.build_detector(NAMES, width=0.125).modules())
    assert len(record.convolutions) == convolutions - 1
    assert all(conv.reads for conv in record.convolutions.values())
    # The halves of a C2f and what its bottlenecks give meet in one concatenation.
    assert record.activations["/model.2/m.0/Add"].group == record.activations["/model.2/cv1/act/Mul"].group
    for activation in record.activations.values():
        first = record.activations[activation.group]
        assert (activation.scale, activation.zero_point) == (first.scale, first.zero_point)


def test_calibration_corrects_biases(tiny_exported, record, float_network):
    """NNCF sees no bias in what OpenVINO's ONNX reader makes of one, and then corrects none, without a word."""
    model = quantizers.read_ir(tiny_exported.path("openvino"))
    assert quantizers.fold_constants_(model) == len(record.convolutions)
    x = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    before = core().compile_model(str(tiny_exported.path("openvino")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    after = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(before(x)[0], after(x)[0])
    moved = [not np.allclose(conv.bias, float_network.get_submodule(conv.module).bias.numpy(), atol=1e-4)
             for conv in record.convolutions.values()]  # fmt: skip
    assert sum(moved) > 0.5 * len(moved)


def test_torch_openvino_and_onnx_hold_the_same_integers(tiny_exported, ptq, record, tiny_scenes):
    agreement = ptq.details["agreement"]
    for pair in ("openvino - onnx", "torch - openvino", "torch - onnx"):
        assert agreement[pair]["candidates"] > 20
        assert agreement[pair]["mean_score"] < 0.01
    graph = onnx.load(ptq.path("onnx"))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    again = quantizers.load(ptq.path("openvino"), tiny_exported.path("onnx"))
    for node, conv in record.convolutions.items():
        np.testing.assert_array_equal(conv.integers(), again.convolutions[node].integers())
        np.testing.assert_array_equal(conv.integers(), tensors[f"{conv.module}.weight"])
    assert int8_checks.executed_precisions(ptq.path("onnx"))["f32"] == 1  # OpenVINO reads it as INT8 as well


def test_kernels_in_torch_are_the_integers_of_the_files(float_network, record):
    mirror = fake_quantize.mirror(float_network, record, trained=False)
    for node, layer, quantizer in fake_quantize.kernel_quantizers(mirror, record):
        integers = (layer.weight.detach() / quantizer.scale).round().numpy()
        np.testing.assert_array_equal(integers, record.convolutions[node].integers())


def test_changed_ranges_and_kernels_are_written_back(tiny_exported, ptq, record, tmp_path):
    node, name = "/model.1/act/Mul", "/model.2/cv1/conv/Conv"
    changed = record.without(["/model.0/act/Mul"])
    changed.activations[node] = replace(changed.activations[node], scale=changed.activations[node].scale * 1.25)
    conv = changed.convolutions[name]
    changed.convolutions[name] = replace(conv, kernel=conv.kernel * 0.5, bias=conv.bias + 1, scale=conv.scale * 0.75)
    model = quantizers.read_ir(ptq.path("openvino"))
    quantizers.write_openvino_(model, changed)
    openvino.save_model(model, tmp_path / "changed.xml", compress_to_fp16=False)
    found = quantizers.load(tmp_path / "changed.xml", tiny_exported.path("onnx"))
    assert found.activations[node].scale == pytest.approx(changed.activations[node].scale, rel=1e-5)
    assert found.activations[node].zero_point == record.activations[node].zero_point
    np.testing.assert_allclose(found.convolutions[name].bias, conv.bias + 1, rtol=1e-5)
    np.testing.assert_allclose(found.convolutions[name].scale, conv.scale * 0.75, rtol=1e-5)
    # Not those of the float file, which training leaves behind.
    np.testing.assert_array_equal(found.convolutions[name].integers(), changed.convolutions[name].integers())
    assert "/model.0/act/Mul" not in found.activations
    assert "/model.1/conv/Conv" not in found.convolutions
    assert int8_checks.check_openvino(model, changed.in_float())[0] == 2
    assert int8_checks.executed_precisions(tmp_path / "changed.xml")["f32"] == 2


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/model.0/act/Mul", "model.0"),
        ("/model.2/m.0/Add", "model.2.m.0"),
        ("/model.10/Resize", "model.10"),
        ("/model.22/cv2.0/cv2.0.1/act/Mul", "model.22.cv2.0.1"),
        ("/model.22/cv3.2/cv3.2.0/act/Mul", "model.22.cv3.2.0"),
    ],
)
def test_module_of_a_node(node, module):
    assert fake_quantize.module_of(node) == module


@pytest.fixture(scope="module")
def coarse(record):
    """Kernels on 4 bits or so, one scale a layer: there is much to win."""
    convolutions = {node: replace(conv, scale=conv.scale.max(keepdims=True) * 8)
                    for node, conv in record.convolutions.items()}  # fmt: skip
    return replace(record, convolutions=convolutions)


def test_training_brings_int8_nearer_to_float(tiny_exported, coarse, tiny_scenes, tmp_path):
    record = coarse
    after, told = trained(tiny_exported, record, tiny_scenes, tmp_path, steps=16, checks=4)
    assert told["distance_after"] < 0.9 * told["distance_before"]
    assert not told["gave_up"]
    assert told["excluded"] == []
    moved = [not np.array_equal(after.convolutions[n].kernel, c.kernel) for n, c in record.convolutions.items()]
    assert sum(moved) > 0.9 * len(moved)
    assert told["range_change"]["least"] != told["range_change"]["most"]
    zero_points = {n: a.zero_point for n, a in after.activations.items()}
    assert zero_points == {n: a.zero_point for n, a in record.activations.items()}


def test_frozen_ranges_do_not_move(tiny_exported, record, tiny_scenes, tmp_path):
    after, _ = trained(tiny_exported, record, tiny_scenes, tmp_path, ranges="frozen")
    for node, activation in record.activations.items():
        assert after.activations[node].scale == pytest.approx(activation.scale, rel=1e-6)
    for node, conv in record.convolutions.items():
        np.testing.assert_allclose(after.convolutions[node].scale, conv.scale, rtol=1e-6)


def test_the_average_takes_ranges_over_as_they_are(tiny_exported, record, tiny_scenes, tmp_path, monkeypatch):
    """An average of scales is the scale of none of the networks that were averaged."""
    apart, seen, follow = set(), [], training._Loop._follow

    def watched(loop):
        follow(loop)
        slow, fast = loop.average.state_dict(), loop.raw.state_dict()
        apart.update(name for name in fast if not torch.equal(slow[name], fast[name]))
        seen.append({name: value.clone() for name, value in fast.items() if name.endswith(".gain")})

    monkeypatch.setattr(training._Loop, "_follow", watched)
    trained(tiny_exported, record, tiny_scenes, tmp_path, steps=3)
    assert any(not torch.equal(seen[0][name], seen[-1][name]) for name in seen[0])  # they do move
    assert any(name.endswith("weight.original") for name in apart)
    assert not apart & seen[0].keys()


def breaking(steps):
    """Wraps a loss so that it is not a number at some of its calls."""
    calls = iter(range(10**6))

    def change(objective):
        def broken(student, batch):
            loss = objective(student, batch)
            return loss * math.nan if next(calls) in steps else loss

        return broken

    return change


def test_after_a_nan_one_map_is_left_in_float_and_named(tiny_exported, ptq, coarse, tiny_scenes, tmp_path):
    after, told = trained(tiny_exported, coarse, tiny_scenes, tmp_path, steps=16, checks=4, change=breaking({3}))
    assert len(told["excluded"]) == 1
    node = told["excluded"][0]["node"]
    assert "%" in told["excluded"][0]["why"]
    assert not told["gave_up"]
    assert told["distance_after"] < told["distance_before"]
    assert not after.activations[node].on
    model = quantizers.read_ir(ptq.path("openvino"))
    quantizers.write_openvino_(model, after)
    kept, _ = int8_checks.check_openvino(model, after.in_float())
    assert kept == 1 + len(after.in_float())
    assert set(coarse.readers(node)) <= set(after.in_float())


def test_a_killed_training_goes_on_to_the_same_end(tiny_exported, coarse, tiny_scenes, tmp_path):
    whole, told = trained(tiny_exported, coarse, tiny_scenes, tmp_path, steps=6, change=breaking({1}), save_every=0.0)
    (tmp_path / "state.pt").unlink()
    calls = iter(range(10**6))

    def killed(objective):
        def until(student, batch):
            call = next(calls)
            if call == 4:
                raise KeyboardInterrupt
            return objective(student, batch) * (math.nan if call == 1 else 1.0)

        return until

    with pytest.raises(KeyboardInterrupt):
        trained(tiny_exported, coarse, tiny_scenes, tmp_path, steps=6, change=killed, save_every=0.0)
    again, after = trained(tiny_exported, coarse, tiny_scenes, tmp_path, steps=6, save_every=0.0)
    assert [c["held_out"] for c in after["curve"]] == pytest.approx([c["held_out"] for c in told["curve"]], rel=1e-4)
    assert [n for n, a in again.activations.items() if a.on] == [n for n, a in whole.activations.items() if a.on]
    assert len(told["excluded"]) == 1
    assert after["excluded"] == told["excluded"]


def test_the_map_that_is_not_finite_is_the_one_to_blame(float_network, record):
    model = fake_quantize.mirror(float_network, record, trained=True)
    rescue = qat._Rescue(record, float_network)
    rescue._pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    broken = record.convolutions["/model.4/cv1/conv/Conv"].module
    with torch.no_grad():
        model.get_submodule(broken).bias[0] = math.nan
    rescue(model)(model)
    assert rescue.excluded == [{"node": "/model.4/cv1/act/Mul", "why": "the first whose values are not finite"}]
    assert not fake_quantize.activation_quantizers(model, record)["/model.4/cv1/act/Mul"].on


def test_training_that_never_holds_gives_calibrations_result_back(tiny_exported, record, tiny_scenes, tmp_path):
    after, told = trained(tiny_exported, record, tiny_scenes, tmp_path, steps=20, change=breaking(range(10**6)))
    assert told["gave_up"]
    assert told["excluded"] == []  # of what is kept
    assert after is record


def test_sensitivity_orders_layers_by_what_float_would_gain(tiny_exported, record, tiny_scenes):
    spoilt = replace(record, activations=dict(record.activations))
    node = "/model.22/cv3.0/cv3.0.1/act/Mul"
    spoilt.activations[node] = replace(spoilt.activations[node], scale=spoilt.activations[node].scale / 50)
    layers = sensitivity(tiny_exported, spoilt, training_images(tiny_scenes, None)[0][:2])
    assert layers[0].name == "/model.22/cv3.0/cv3.0.2/Conv"
    assert layers[0].in_float == (layers[0].name,)
    assert layers[0].gain > 3 * max(0.0, layers[1].gain)


@pytest.mark.parametrize(
    ("sets", "asked", "bits", "told"),
    [
        (("avx2", "avx512_vnni"), None, 8, None),
        (("avx2", "amx_int8"), None, 8, None),
        (("avx2", "fma"), None, 7, "7 bits"),
        (("avx2", "fma"), 8, 8, "may overflow"),
        (("avx2", "avx_vnni"), 7, 7, None),
        (("asimd", "asimddp", "i8mm"), None, 8, None),
        (("asimd",), None, 7, "7 bits"),
        ((), None, 8, "does not tell the CPU's instruction sets: weights get 8 bits"),
        ((), 7, 7, None),
    ],
)
def test_cpus_without_vnni_get_seven_bits_or_a_warning(monkeypatch, sets, asked, bits, told):
    monkeypatch.setattr(calibrate.environment, "instruction_sets", lambda: sets)
    lines, chosen = calibrate.cpu_notes(1000, asked)
    assert chosen == bits
    assert (told is None and lines == []) or (told is not None and told in " ".join(lines))


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 1, 64, 64), (1, 4, 64, 64)], ids=["last", "grey", "alpha"])
def test_another_order_of_channels_is_an_error(shape):
    parameter = opset13.parameter(list(shape), np.float32)
    with pytest.raises(ModelError, match="another order of channels"):
        calibrate.check_input(openvino.Model([opset13.relu(parameter)], [parameter]))
