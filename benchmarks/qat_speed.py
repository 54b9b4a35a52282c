"""Time of a training step with fake quantization, per picture, by how the fake quantization is done.

    python benchmarks/qat_speed.py yolov8n.pt --images pictures/

The step is that of quantization-aware training: the teacher's pass, the student's, distillation, gradients, in bfloat16
where the step allows it. Rows: no fake quantization; ours with ranges trained and frozen; torch's own operators with
both; torchao's PT2E and NNCF's PyTorch backend, each where it is installed and can be run. Rows take turns.
Run it on an idle machine. Prints JSON; a row that could not be run says why.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye import environment
from hawkeye.compress import fake_quantize, yolo
from hawkeye.compress.calibrate import calibrate
from hawkeye.compress.distance import distillation_loss
from hawkeye.compress.export import export
from hawkeye.compress.fake_quantize import FakeQuantize
from hawkeye.compress.quantizers import Quantization, load
from hawkeye.config import ExportConfig, QuantizeConfig
from hawkeye.data import list_images, sample


class Native(FakeQuantize):
    """torch.fake_quantize_per_*_affine."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.detach()
        if scale.ndim == 0:
            return torch.fake_quantize_per_tensor_affine(x, float(scale), -self.low, 0, self.high - self.low)
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, scale.flatten(), zero, 0, self.low, self.high)


class NativeTrained(FakeQuantize):
    """torch._fake_quantize_learnable_per_*_affine."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if scale.ndim == 0:
            zero = torch.tensor([float(-self.low)])
            return torch._fake_quantize_learnable_per_tensor_affine(
                x.float(), scale.reshape(1), zero, 0, self.high - self.low, 1.0
            )
        zero = torch.zeros(len(scale))
        return torch._fake_quantize_learnable_per_channel_affine(x, scale.flatten(), zero, 0, self.low, self.high, 1.0)


def mirrored(model: nn.Module, quantization: Quantization, kind: type[FakeQuantize], *, trained: bool) -> nn.Module:
    made = fake_quantize.mirror(model, quantization, trained=trained)
    for module in made.modules():
        if isinstance(module, FakeQuantize):
            module.__class__ = kind
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("dfl" not in name and (trained or not name.endswith(".gain")))
    return made


def plain(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.SiLU()  # stock blocks share one, which torchao cannot tell apart
    made.requires_grad_(True)
    made.model[-1].dfl.requires_grad_(False)
    return made


def torchao(model: nn.Module, pixels: Tensor) -> nn.Module:
    """PT2E: quantizers of torchao's X86 back end on an exported graph."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    class Raw(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            raw = self.network(x)
            return (raw["scores"], raw["boxes"], *raw["feats"])

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    graph = torch.export.export(Raw(plain(model).train()), (pixels,)).module()
    prepared = prepare_qat_pt2e(graph, quantizer)

    class AsDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prepared = prepared

        def train(self, mode: bool = True) -> nn.Module:
            return self  # an exported graph has no modes

        def forward(self, x: Tensor) -> dict[str, Any]:
            scores, boxes, *feats = self.prepared(x)
            return {"scores": scores, "boxes": boxes, "feats": feats}

    return AsDict()


def with_nncf(model: nn.Module, pixels: Tensor) -> nn.Module:
    """NNCF's PyTorch back end."""
    import nncf

    network = plain(model).eval()
    network(pixels[:1])  # the head makes its anchors at the first pass, which NNCF must not trace
    return nncf.quantize(network, nncf.Dataset([pixels[:1]]), subset_size=1)


def step(student: nn.Module, teacher: nn.Module, pixels: Tensor, kept: list[Tensor], *, bfloat16: bool) -> float:
    """Milliseconds per picture."""
    began = time.perf_counter()
    student.zero_grad(set_to_none=True)
    student.train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = teacher(pixels)[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        got = student(pixels)
        loss = distillation_loss(got if isinstance(got, dict) else got[1], wanted, 1.0, kept)
    loss.backward()
    return 1e3 * (time.perf_counter() - began) / len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of at least 10 pictures to calibrate on")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each row, after one that is not")
    parser.add_argument("--skip", default="", help="rows to leave out, with commas: nncf, torchao")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = export(args.model, ExportConfig(imgsz=args.imgsz, images=args.images), out=work / "export")
        pictures = sample(list_images(args.images), 12, 0)
        made = calibrate(source, QuantizeConfig(), pictures, out=work / "int8", key="")
        quantization = load(made.path("openvino"), source.path("onnx"))
    teacher = yolo.folded(yolo.load_checkpoint(args.model).model).requires_grad_(False).eval()
    teacher.to(memory_format=torch.channels_last)
    kept = [torch.arange(branch[0].conv.in_channels) for branch in teacher.model[-1].cv2]
    pixels = torch.rand(args.batch, 3, args.imgsz, args.imgsz).contiguous(memory_format=torch.channels_last)
    rows: dict[str, tuple[Callable[[], nn.Module], bool]] = {
        "plain step": (lambda: plain(teacher), True),
        "ours, ranges trained": (lambda: mirrored(teacher, quantization, FakeQuantize, trained=True), True),
        "ours, ranges frozen": (lambda: mirrored(teacher, quantization, FakeQuantize, trained=False), True),
        "torch fake_quantize_*": (lambda: mirrored(teacher, quantization, Native, trained=False), True),
        "torch _fake_quantize_learnable_*": (
            lambda: mirrored(teacher, quantization, NativeTrained, trained=True), True),
        "torchao PT2E": (lambda: torchao(teacher, pixels), False),
        "NNCF for PyTorch": (lambda: with_nncf(teacher, pixels), False),
    }  # fmt: skip
    for word in filter(None, args.skip.split(",")):
        rows = {title: row for title, row in rows.items() if word.strip().lower() not in title.lower()}
    students: dict[str, tuple[nn.Module, bool]] = {}
    result: dict[str, Any] = {}
    for title, (build, bfloat16) in rows.items():
        try:
            student = build().to(memory_format=torch.channels_last)
            first = step(student, teacher, pixels, kept, bfloat16=bfloat16)
        except Exception as error:  # a library that is missing or refuses is a result here
            result[title] = {"could not run": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        students[title] = (student, bfloat16)
        result[title] = {"first_step_ms": round(first, 1), "bfloat16": bfloat16}
    times: dict[str, list[float]] = {title: [] for title in students}
    for _ in range(args.steps):
        for title, (student, bfloat16) in students.items():
            times[title].append(step(student, teacher, pixels, kept, bfloat16=bfloat16))
    base = statistics.median(times["plain step"])
    for title, taken in times.items():
        ms = statistics.median(taken)
        result[title] |= {"ms_per_picture": round(ms, 1), "times_plain": round(ms / base, 2)}
    print(json.dumps({"rows": result, "batch": args.batch, "imgsz": args.imgsz, "threads": torch.get_num_threads(),
                      "environment": environment.describe()}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
