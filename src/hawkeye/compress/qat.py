"""Quantization-aware training: the calibrated network, fake-quantized, learns to give what the float network gives.

It begins exactly where calibration ends, so it can only be kept if it is better. Ranges come from calibration and no
observer ever moves them; they are trained by gradient or stay. The recipe follows what others agree on (YOLOv6
tools/qat, PaddleSlim ACT): BatchNorm folded, no mosaics, distillation rather than labels alone, a small rate. Theirs is
1e-6 to 3e-5 for Adam; here it is a share of each layer's own size, since one step between two integers is such a share
(docs/results/int8.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hawkeye.artifact import Artifact
from hawkeye.compress import fake_quantize, ranks, yolo
from hawkeye.compress.device import claim
from hawkeye.compress.distance import agreement
from hawkeye.compress.quantizers import Quantization
from hawkeye.compress.recover import all_features, distillation
from hawkeye.compress.training import Batch, Objective, fit_
from hawkeye.config import QuantizeConfig, RecoverConfig
from hawkeye.errors import DataError, DivergenceError
from hawkeye.progress import say

HELD_OUT = 64  # pictures at most that a check looks at


def train(
    source: Artifact,
    quantization: Quantization,
    config: QuantizeConfig,
    learn: tuple[Sequence[Path], Sequence[Path]],
    held_out: Sequence[Path],
    *,
    state: Path,
    change: Callable[[Objective], Objective] = lambda objective: objective,
) -> tuple[Quantization, dict[str, Any]]:
    """Train kernels, biases and ranges behind fake quantization.

    Args:
        source: the float artefact, with its checkpoint.
        quantization: of the calibrated network.
        config: settings.
        learn: labelled and unlabelled pictures to learn from.
        held_out: pictures to judge on.
        state: file to resume from; removed by the caller when its stage is done.
        change: wraps the loss; for tests that let training break down.

    Returns:
        The trained quantizers, and what there is to tell: the curve, the distance from the float network before and
        after, which maps were left in float and why, and whether training gave up. Where nothing better than
        calibration was found, they are the calibrated ones.

    Raises:
        ConfigError: there is no GPU, and one is asked for.
        DataError: no pictures.
    """
    if not any(learn) or not held_out:
        raise DataError("too few pictures to train INT8 on", got=sum(map(len, learn)) + len(held_out),
                        expected="at least 2, one of which is set aside")  # fmt: skip
    claim(config.device)
    loaded = yolo.load_checkpoint(source.path("pytorch"))
    imgsz, device = source.spec.imgsz, config.device
    original = yolo.folded(loaded.model).requires_grad_(False).eval()
    model = fake_quantize.mirror(original, quantization, trained=config.ranges == "trained").requires_grad_(True)
    model.model[-1].dfl.requires_grad_(False)  # type: ignore[index, union-attr]
    if config.ranges == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.endswith(".gain"))
    original.to(device, memory_format=torch.channels_last)
    settings = RecoverConfig.build(
        **{name: getattr(config, name) for name in ("seed", "device", "budget", "steps", "batch", "lr", "labels",
                                                    "holdout", "checks", "save_every")},
        # A calibrated network has something to lose: with a warm-up of four steps its distance from float rose first.
        optimizer="muon", mosaic=0.0, features=1.0, warmup=0.15,
    )  # fmt: skip
    every = all_features(original, device)
    lessons, objective = distillation(model, original, learn, loaded.names, imgsz, every, settings)
    # In float32: bfloat16 rounds as coarsely as INT8 does, and the files that will be judged know nothing of it.
    judge = agreement(original, held_out[:HELD_OUT], imgsz, device, bfloat16=False)
    rescue = _Rescue(quantization, original)
    say(f"quantization-aware training on {len(learn[0])} labelled and {len(learn[1])} unlabelled pictures, judged on "
        f"{min(HELD_OUT, len(held_out))} held-out training pictures")  # fmt: skip
    told: dict[str, Any] = {"pictures": {"labelled": len(learn[0]), "unlabelled": len(learn[1])}, "gave_up": False}
    exact = [name for name in model.state_dict() if name.endswith(".gain")]
    try:
        curve, best, start = fit_(model, lessons, rescue.watch(change(objective)), judge, settings, state=state,
                                  title="quantization-aware training", exact=exact, rescue=rescue,
                                  notes=rescue.excluded)  # fmt: skip
    except DivergenceError as error:
        say(f"{error.summary}: calibration's result stays")
        return quantization, told | {"gave_up": True, "excluded": []}  # what was tried in float is not in what is kept
    trained = fake_quantize.read_back(model.cpu(), quantization)
    kept = trained if best < start else quantization
    # The best may be older than what was tried last.
    excluded = [item for item in rescue.excluded if not kept.activations[item["node"]].on]
    told |= {"curve": curve, "distance_before": start, "distance_after": best, "excluded": excluded,
             "range_change": _range_change(quantization, trained)}  # fmt: skip
    return kept, told


class _Rescue:
    """Finds the map whose quantizer is to blame for a divergence, and leaves it in float from then on.

    To blame is the first whose values are not finite, or the one whose rounding error has grown most since calibration.

    Args:
        quantization: of the calibrated network.
        original: the float network, on its device.
    """

    def __init__(self, quantization: Quantization, original: nn.Module) -> None:
        self.quantization, self.original = quantization, original
        self.excluded: list[dict[str, str]] = []
        self._pixels: Tensor | None = None

    def watch(self, objective: Objective) -> Objective:
        """The same loss; the pictures of the last step are kept."""

        def watched(student: nn.Module, batch: Batch) -> Tensor:
            self._pixels = batch["img"]
            return objective(student, batch)

        return watched

    def __call__(self, model: nn.Module) -> Callable[[nn.Module], None]:
        node, why = ranks.from_first(self._blame(model))  # all must leave out the same
        if node is not None:
            self.excluded.append({"node": node, "why": why})
            say(f"the quantizer of {node} is taken out: {why}")

        def change(network: nn.Module) -> None:
            quantizers = fake_quantize.activation_quantizers(network, self.quantization)
            off = [node for node, quantizer in quantizers.items() if not quantizer.on]
            fake_quantize.exclude_(network, self.quantization, [*off, *(item["node"] for item in self.excluded)])

        return change

    def _blame(self, model: nn.Module) -> tuple[str | None, str]:
        if self._pixels is None or not (now := self._errors(model)):
            return None, ""
        for node, error in now.items():
            if error == math.inf:
                return node, "the first whose values are not finite"
        calibrated = fake_quantize.mirror(self.original, self.quantization, trained=False)
        start = self._errors(calibrated.to(self._pixels.device))
        node = max(now, key=lambda node: now[node] / max(start[node], 1e-12))
        return node, f"rounding takes {now[node]:.2%} of its map's power, {start[node]:.2%} after calibration"

    def _errors(self, model: nn.Module) -> dict[str, float]:
        """Share of each map's power that is lost in its quantizer, in order of execution."""
        assert self._pixels is not None
        quantizers = fake_quantize.activation_quantizers(model, self.quantization)
        on = {node: quantizer for node, quantizer in quantizers.items() if quantizer.on}
        order: dict[str, float] = {}
        of = {id(quantizer): node for node, quantizer in reversed(on.items())}  # shared ones count once

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = inputs[0].float(), output.float()
            error = float((y - x).square().mean() / x.square().mean().clamp_min(1e-12))
            node = of[id(module)]
            order[node] = max(order.get(node, 0.0), error if math.isfinite(error) else math.inf)

        hooks = [quantizer.register_forward_hook(note) for quantizer in {id(q): q for q in on.values()}.values()]
        with torch.no_grad():
            model(self._pixels[:2].float().div(255).contiguous(memory_format=torch.channels_last))
        for hook in hooks:
            hook.remove()
        return order


def _range_change(before: Quantization, after: Quantization) -> dict[str, float]:
    """Smallest and largest factor by which training has changed the activations' ranges."""
    factors = [after.activations[n].scale / a.scale for n, a in before.activations.items()]
    return {"least": round(min(factors), 4), "most": round(max(factors), 4)}
