"""Fake quantization in PyTorch: the network as INT8 will compute it, with gradients that go straight through.

Every element-wise step is one of torch's vectorized operators. Its own `fake_quantize_*` operators compute the same,
but on CPUs element by element: forward and backward over a map of 3.3 million bfloat16 values took one core 55 ms with
a frozen and 107 ms with a trained range, these 4 and 7 ms. A whole training step with trained ranges takes 1.21 times
a plain one, 1.58 with torch's operators, 1.99 with torchao's, 2.55 with NNCF's (docs/results/qat-speed.md).
Ranges can be trained as in LSQ (Esser et al., arXiv 1902.08153); their logarithms are, as in TQT (Jain et al.,
arXiv 1903.08066), so that one rate suits layers whose ranges differ by orders of magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hawkeye.compress.export import INPUT
from hawkeye.compress.optimizer import LEAST_VECTOR
from hawkeye.compress.quantizers import LEVELS, Quantization
from hawkeye.errors import ExportError

# The optimizer moves a value near zero by the learning rate times LEAST_VECTOR. A range then moves by about the rate
# times itself in a step, as kernels do.
_PACE = 1 / LEAST_VECTOR


class _RoundThrough(torch.autograd.Function):
    """clamp(round(x / scale), low, high) * scale; rounding has gradient one, clamping has none where it clamps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale  # not times its reciprocal: the largest weights lie on the edge between two integers
        result = steps.round().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(steps, result, scale)
        ctx.bounds = (low - 0.5, high + 0.5)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (gradient,) = gradients
        steps, result, scale = ctx.saved_tensors
        # One vectorized pass; a comparison and a product would be three.
        passed = torch.ops.aten.hardtanh_backward(gradient, steps, *ctx.bounds)
        to_scale = None
        if ctx.needs_input_grad[1]:
            # d result / d scale is round(x / scale) - x / scale inside, and the bound outside.
            to_scale = _total(gradient, result, scale) / scale - _total(passed, steps, scale)
        return passed, to_scale, None, None


def _total(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of a * b over all that shares one scale, in float32."""
    dims = [d for d in range(a.ndim) if like.ndim == 0 or like.shape[d] == 1]
    return (a * b).sum(dims, keepdim=like.ndim > 0, dtype=torch.float32)


class FakeQuantize(nn.Module):
    """Rounds to the integers from `low` to `high` times a scale.

    Args:
        scale: size of one step: no dimension for one scale, (O, 1, 1, 1) for one per output channel of a kernel.
        low, high: smallest and largest integer.
        trained: whether the scale may be trained.
    """

    def __init__(self, scale: Tensor, low: int, high: int, *, trained: bool) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("start", scale.clone())
        self.register_buffer("on", torch.tensor(True))
        self.gain = nn.Parameter(torch.zeros_like(scale), requires_grad=trained)

    start: Tensor
    on: Tensor

    @property
    def scale(self) -> Tensor:
        """Size of one step now."""
        return self.start * (_PACE * self.gain).exp()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _RoundThrough.apply(x, self.scale, self.low, self.high) if self.on else x
        return result


def _quantize_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.input_quantizer(inputs[0]), *inputs[1:]) if isinstance(inputs[0], Tensor) else inputs


def _quantize_output(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    quantized: Tensor = module.output_quantizer(output)  # looked up, not bound: a deep copy uses its own
    return quantized


def mirror(model: nn.Module, quantization: Quantization, *, trained: bool) -> nn.Module:
    """A copy of a network with folded BatchNorm that computes what the INT8 files compute.

    Args:
        model: of `yolo.folded`.
        quantization: quantizers of the file that was exported from it; biases are taken from there as well.
        trained: whether ranges may be trained.

    Raises:
        ExportError: a quantizer sits where the network has no module.
    """
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    shared: dict[str, FakeQuantize] = {}
    for name, conv in quantization.convolutions.items():
        layer = modules.get(conv.module)
        if not isinstance(layer, nn.Conv2d) or layer.bias is None or layer.weight.shape != conv.kernel.shape:
            raise ExportError("a quantized convolution is not in the network", got=f"{name} ({conv.module})")
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(conv.kernel)))
            layer.bias.copy_(torch.from_numpy(conv.bias.copy()))
        scale = torch.from_numpy(conv.scale.reshape(-1, 1, 1, 1).astype(np.float32))
        quantizer = FakeQuantize(scale, -conv.limit, conv.limit, trained=trained)
        parametrize.register_parametrization(layer, "weight", quantizer)
    for activation in quantization.activations.values():
        group = quantization.activations[activation.group]
        if group.node not in shared:
            zero = group.zero_point
            shared[group.node] = FakeQuantize(torch.tensor(group.scale, dtype=torch.float32), -zero, LEVELS - 1 - zero,
                                              trained=trained)  # fmt: skip
        if activation.node == INPUT:
            model.add_module("input_quantizer", shared[group.node])
            model.register_forward_pre_hook(_quantize_input)
            continue
        module = modules.get(module_of(activation.node))
        if module is None:
            raise ExportError("a quantizer sits where the network has no module", got=activation.node)
        module.add_module("output_quantizer", shared[group.node])
        module.register_forward_hook(_quantize_output)
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = False  # in place, autograd clones the input first
    exclude_(model, quantization, [])
    return model


def module_of(node: str) -> str:
    """Name of the module that computes an ONNX node: /model.22/cv2.0/cv2.0.1/act/Mul is of model.22.cv2.0.1."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()  # the exporter repeats the name of a Sequential before that of its parts
        parts.append(part)
    if parts and parts[-1] == "act":
        parts.pop()  # one SiLU serves all blocks, so the map is the block's
    return ".".join(parts)


def activation_quantizers(model: nn.Module, quantization: Quantization) -> dict[str, FakeQuantize]:
    """The fake quantizers of a mirrored network's maps by node; maps that share a range share one."""
    return {
        node: model.get_submodule("input_quantizer" if node == INPUT else f"{module_of(node)}.output_quantizer")
        for node in quantization.activations
    }  # type: ignore[misc]


def kernel_quantizers(model: nn.Module, quantization: Quantization) -> Iterator[tuple[str, nn.Conv2d, FakeQuantize]]:
    """Each quantized convolution's node, module and fake quantizer."""
    for name, conv in quantization.convolutions.items():
        layer = model.get_submodule(conv.module)
        yield name, layer, layer.parametrizations.weight[0]  # type: ignore[misc]


def exclude_(model: nn.Module, quantization: Quantization, nodes: Collection[str]) -> None:
    """Leave some maps, and with them the kernels that read them, in float; the others as the record has them."""
    left = quantization.without(nodes)
    for node, quantizer in activation_quantizers(model, quantization).items():
        quantizer.on.fill_(left.activations[node].on)
    in_float = left.in_float()
    for name, _, quantizer in kernel_quantizers(model, quantization):
        quantizer.on.fill_(name not in in_float)


def read_back(model: nn.Module, quantization: Quantization) -> Quantization:
    """The quantizers of a mirrored network as a record, with kernels and biases as they are now."""
    quantizers = activation_quantizers(model, quantization)
    activations = {
        node: replace(item, on=bool(quantizers[node].on), scale=float(quantizers[node].scale.detach()))
        for node, item in quantization.activations.items()
    }
    convolutions = dict(quantization.convolutions)
    for name, layer, quantizer in kernel_quantizers(model, quantization):
        kernel: Any = layer.parametrizations.weight.original
        assert layer.bias is not None
        convolutions[name] = replace(
            convolutions[name],
            kernel=kernel.detach().cpu().contiguous().numpy().copy(),
            bias=layer.bias.detach().cpu().numpy().copy(),
            scale=quantizer.scale.detach().cpu().reshape(-1).numpy().copy(),
        )
    return Quantization(activations, convolutions)
