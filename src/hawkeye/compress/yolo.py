"""The door to Ultralytics: checkpoints, fresh detectors, its loss. Nothing else imports it.

Supported are YOLOv8-style detectors: Conv, C2f, SPPF, Bottleneck, Concat, Upsample and a Detect head with DFL.
"""

from __future__ import annotations

import atexit
import copy
import datetime
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2

from hawkeye import __version__, artifact
from hawkeye.artifact import ModelSpec
from hawkeye.compress.checkpoint_file import HINT, check_file
from hawkeye.compress.cross_entropy import cross_entropy
from hawkeye.compress.filters import Filters, merge_filters_, split_filters_
from hawkeye.errors import CheckpointError, ConfigError, MissingExtraError


def _quiet_() -> None:
    """Keep Ultralytics off the network, pip and the terminal, and out of the user's home; before its import."""
    os.environ.setdefault("YOLO_OFFLINE", "1")  # no telemetry, no look-ups
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    if "YOLO_CONFIG_DIR" not in os.environ:
        folder, owner = tempfile.mkdtemp(prefix="hawkeye-ultralytics-"), os.getpid()
        os.environ["YOLO_CONFIG_DIR"] = folder
        atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


_quiet_()
_opencv_threads = cv2.getNumThreads()
try:
    import torch
    from torch import Tensor, nn
    from ultralytics import __version__ as ultralytics_version
    from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
    from ultralytics.data.augment import Mosaic as Mosaic  # for `training_data`
    from ultralytics.data.dataset import YOLODataset as YOLODataset
    from ultralytics.nn.modules import SPPF, Bottleneck, C2f, Concat, Conv, Detect, DWConv
    from ultralytics.nn.modules.block import DFL
    from ultralytics.nn.tasks import DetectionModel, torch_safe_load, yaml_model_load
    from ultralytics.utils.loss import v8DetectionLoss
except ImportError as error:
    raise MissingExtraError("compress", error.name or "ultralytics") from error
if os.environ["YOLO_VERBOSE"].lower() == "false":
    logging.getLogger("ultralytics").setLevel(logging.ERROR)  # its warnings go to stdout, where our JSON goes
cv2.setNumThreads(_opencv_threads)  # Ultralytics switches OpenCV to one thread for the whole process

_BLOCKS = (Conv, DWConv, C2f, SPPF, Bottleneck, Concat, Detect, DFL, DetectionModel)
_SUPPORTED = "a YOLOv8 detector: Conv, C2f, SPPF, Bottleneck and a Detect head"


@dataclass(frozen=True)
class Checkpoint:
    """A trained detector.

    Attributes:
        model: DetectionModel of stock blocks but for `Filters`, FP32, eval mode, BatchNorm unfused, no gradients.
        names: class names by index.
        strides: pixels per cell of each output level.
        imgsz: side in pixels that it was trained at.
        path: the file.
    """

    model: DetectionModel
    names: tuple[str, ...]
    strides: tuple[int, ...]
    imgsz: int
    path: Path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a YOLOv8 detection checkpoint.

    A .pt is a pickle, so only a file that the user names is ever read, and only classes of torch.nn and Ultralytics
    are reconstructed (`weights_only` with an allow-list): any other content is refused, not executed.

    Raises:
        CheckpointError: missing, not a checkpoint, truncated, another task, another family, fused or quantized.
    """
    path = Path(path)
    check_file(path)
    try:
        content, _ = torch_safe_load(str(path), safe_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for foreign files; all mean the same here
        got = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        raise CheckpointError(f"{path} cannot be read as a checkpoint", got=got, expected=_SUPPORTED,
                              mend=HINT) from error  # fmt: skip
    if content.get("modelopt"):
        raise CheckpointError(f"{path} is quantized", got="a quantization-aware checkpoint", expected="FP32 weights",
                              mend="give the checkpoint from before quantization")  # fmt: skip
    model = content.get("ema") or content.get("model")
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{path} holds no network", got=sorted(map(str, content))[:8], expected=_SUPPORTED,
                              mend=HINT)  # fmt: skip
    _check_model(path, model)
    model = model.float().eval().requires_grad_(False)
    split_filters_(model)
    args = {**DEFAULT_CFG_DICT, **(content.get("train_args") or {})}
    model.args, model.task = args, "detect"
    for module in model.modules():
        if isinstance(module, nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None  # weights saved before torch 1.11 lack it
    imgsz = args["imgsz"] if isinstance(args["imgsz"], int) else max(args["imgsz"])
    model.names = dict(enumerate(_names(path, model)))
    return Checkpoint(model, tuple(model.names.values()), _strides(model), int(imgsz), path)


def _check_model(path: Path, model: nn.Module) -> None:
    """Refuse what the stages cannot compress, by name."""
    layers = getattr(model, "model", None)
    head = layers[-1] if isinstance(layers, nn.Sequential) else None
    kind = type(model).__name__ if head is None else f"{type(model).__name__} with a {type(head).__name__} head"
    if type(model) is not DetectionModel or not isinstance(head, Detect):
        raise CheckpointError(f"{path} is trained for another task", got=kind, expected=_SUPPORTED, mend=HINT)
    if type(head) is not Detect or getattr(head, "one2one_cv2", None) is not None:
        raise CheckpointError(f"{path} has a head that is not supported", got=f"{kind}, end-to-end or special",
                              expected="a Detect head with one branch, as in YOLOv8", mend=HINT)  # fmt: skip
    foreign = {type(m).__name__ for m in model.modules()
               if type(m) not in _BLOCKS and not type(m).__module__.startswith("torch.nn.modules")}  # fmt: skip
    if foreign:
        raise CheckpointError(f"{path} is built of blocks that are not supported", got=", ".join(sorted(foreign)),
                              expected=_SUPPORTED, mend=HINT)  # fmt: skip
    if head.reg_max < 2:
        raise CheckpointError(f"{path} has a head without DFL", got=f"reg_max={head.reg_max}", expected="2 or more")
    if any(isinstance(m, Conv) and not isinstance(getattr(m, "bn", None), nn.BatchNorm2d) for m in model.modules()):
        raise CheckpointError(f"{path} is fused", got="convolutions without BatchNorm", expected="as trained",
                              mend="give the checkpoint from before `fuse()`")  # fmt: skip


def _names(path: Path | str, model: DetectionModel) -> tuple[str, ...]:
    names = model.names
    values = [names[i] for i in sorted(names)] if isinstance(names, dict) else list(names)
    if len(values) != model.model[-1].nc:
        raise CheckpointError(f"class names of {path} do not fit its head", got=len(values),
                              expected=model.model[-1].nc)  # fmt: skip
    return tuple(map(str, values))


def _strides(model: DetectionModel) -> tuple[int, ...]:
    return tuple(int(s) for s in model.model[-1].stride.tolist())


def save_checkpoint(path: Path, model: DetectionModel, *, names: Sequence[str], imgsz: int | None = None,
                    extra: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Write a checkpoint in the stock format: half-precision weights, whole or not at all.

    Stock `YOLO(path)` loads, predicts, validates, exports and trains it. Half precision rounds the weights, so what
    is measured afterwards is to be read back from the file.

    Args:
        path: file to write.
        model: unfused detector; it is copied, not changed.
        names: class names by index.
        imgsz: side in pixels to record as the training size; unchanged when left out.
        extra: further entries of the checkpoint's dictionary.
    """
    copied = copy.deepcopy(model).cpu()
    merge_filters_(copied)
    if hasattr(copied, "criterion"):
        del copied.criterion
    copied = copied.half().eval().to(memory_format=torch.contiguous_format).requires_grad_(True)
    args = dict(_args(model)) | ({} if imgsz is None else {"imgsz": imgsz}) | {"task": "detect"}
    copied.names, copied.args = dict(enumerate(names)), args
    content = {
        "epoch": -1,
        "best_fitness": None,
        "model": copied,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": args,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": ultralytics_version,
        "hawkeye": __version__,
        **(extra or {}),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    artifact.write_bytes(Path(path), buffer.getvalue())


def _args(model: DetectionModel) -> dict[str, Any]:
    args = getattr(model, "args", None) or {}
    return {**DEFAULT_CFG_DICT, **(args if isinstance(args, dict) else vars(args))}


def build_detector(names: Sequence[str], *, scale: str = "n", depth: float | None = None, width: float | None = None,
                   reg_max: int = 16, imgsz: int = 640) -> DetectionModel:  # fmt: skip
    """A fresh YOLOv8 of Ultralytics' own definition, in training mode, with its usual initial weights.

    Args:
        names: class names by index.
        scale: n, s, m, l or x.
        depth, width: multipliers instead of the scale's own.
        reg_max: bins of the box distribution.
        imgsz: side in pixels that is recorded as the training size.

    Raises:
        ConfigError: no such scale.
    """
    definition = yaml_model_load("yolov8n.yaml")
    if scale not in definition["scales"]:
        raise ConfigError("no such YOLOv8", got=scale, expected=" ".join(definition["scales"]))
    own_depth, own_width, limit = definition["scales"][scale]
    values = [depth or own_depth, width or own_width, limit]
    definition.update(nc=len(names), scales={scale: values}, scale=scale, reg_max=reg_max)
    model = DetectionModel(definition, nc=len(names), verbose=False)
    model.names, model.args, model.task = dict(enumerate(names)), {**DEFAULT_CFG_DICT, "imgsz": imgsz}, "detect"
    return model


def transfer_head(model: DetectionModel, names: Sequence[str]) -> DetectionModel:
    """A copy for other classes: the last 1x1 class convolutions are new, everything else is kept.

    Returned in training mode with gradients asked for, ready to be fine-tuned.
    """
    model = copy.deepcopy(model).train().requires_grad_(True)
    head = model.model[-1]
    head.dfl.requires_grad_(False)  # fixed by definition: it computes an expectation
    boxes = [branch[-1].bias.detach().clone() for branch in head.cv2]
    for branch in head.cv3:
        old = branch[-1]
        branch[-1] = nn.Conv2d(old.in_channels, len(names), 1).to(old.weight.device)
    head.nc, head.no = len(names), len(names) + 4 * head.reg_max
    head.bias_init()
    for branch, bias in zip(head.cv2, boxes, strict=True):
        branch[-1].bias.data.copy_(bias)  # bias_init resets the trained boxes too
    model.nc, model.yaml = len(names), {**model.yaml, "nc": len(names)}
    model.names = dict(enumerate(names))
    return model


def spec_of(model: DetectionModel, imgsz: int) -> ModelSpec:
    """What a runtime must know.

    Raises:
        ConfigError: imgsz is no multiple of the coarsest stride.
    """
    strides = _strides(model)
    if imgsz % max(strides):
        raise ConfigError(
            "the input size does not fit the network", got=imgsz, expected=f"a multiple of {max(strides)}"
        )
    return ModelSpec(imgsz=imgsz, names=_names("the network", model), strides=strides)


def block_outputs(model: DetectionModel) -> dict[str, str]:
    """Modules whose maps other blocks and the head read, each with the name of its last convolution."""
    ends = {
        f"model.{i}" + ".cv2" * hasattr(block, "cv2"): block
        for i, block in enumerate(model.model[:-1])
        if isinstance(block, (Conv, nn.Sequential)) or hasattr(block, "cv2")
    }  # a C2f may be split or not
    return {name: f"{name}.1.conv" if isinstance(block, nn.Sequential) else f"{name}.conv"  # a separated one is a pair
            for name, block in ends.items()}  # fmt: skip


def fused(model: DetectionModel) -> DetectionModel:
    """A copy for inference: BatchNorm folded; maps (B, 3, H, W) RGB in [0, 1] to (B, 4 + nc, A) and nothing else."""
    model = copy.deepcopy(model).eval().requires_grad_(False).fuse(verbose=False)
    model.model[-1].export = True
    for module in model.modules():
        if isinstance(module, C2f):
            module.forward = module.forward_split  # one Split in exported graphs; chunk() becomes slices in float
    return model


class _Frozen:
    """A block whose BatchNorm keeps its statistics: folded into the kernel on the fly, with the same gradients.

    A kernel is small and a map is large: scaling the kernel instead saves passes over memory, a fifth of a training
    step on two cores.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) to (B, c', H', W')."""
        assert self.bn.running_var is not None and self.bn.running_mean is not None
        scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
        bias = self.bn.bias - self.bn.running_mean * scale
        kernel = self.conv.weight * scale.view(-1, 1, 1, 1)
        if x.device.type == "cpu" and self.conv.groups > 1 and self.conv.stride != (1, 1):
            # oneDNN has no bfloat16 gradient for these but its reference code: 10 ms against 0.7 at 64 x 80 x 80.
            with torch.autocast("cpu", enabled=False):
                out: Tensor = self.act(self.conv._conv_forward(x.float(), kernel, bias))
        else:
            out = self.act(self.conv._conv_forward(x, kernel, bias))
        return out


class _FrozenConv(_Frozen, Conv):
    pass


class _FrozenDWConv(_Frozen, DWConv):
    pass


_FROZEN: dict[type, type] = {Conv: _FrozenConv, DWConv: _FrozenDWConv}


def freeze_statistics_(model: DetectionModel, frozen: bool = True) -> None:
    """Switch a model between the stock blocks and faster ones for training with BatchNorm's statistics as they are."""
    kinds = _FROZEN if frozen else {fast: stock for stock, fast in _FROZEN.items()}
    for module in model.modules():
        module.__class__ = kinds.get(type(module), type(module))
        if isinstance(module, nn.SiLU):
            module.inplace = not frozen  # in place, autograd clones the input first


def depthwise_and_pointwise(inputs: int, outputs: int, kernel: int, stride: int,
                            filters: int = 1) -> tuple[Filters | DWConv, Conv]:  # fmt: skip
    """Two fresh blocks in place of one; the depthwise one has no activation."""
    bank = [DWConv(inputs, inputs, kernel, stride, act=False) for _ in range(filters)]
    return (Filters(bank) if filters > 1 else bank[0]), Conv(filters * inputs, outputs, 1)


def folded(model: DetectionModel) -> DetectionModel:
    """A copy with BatchNorm folded into the convolutions."""
    return copy.deepcopy(model).fuse(verbose=False)


def settings(**changes: Any) -> Any:
    """Ultralytics' settings of a training, with some of them changed."""
    return get_cfg(overrides=changes)


def detection_loss(model: DetectionModel) -> Callable[[Any, dict[str, Tensor]], Tensor]:
    """Ultralytics' YOLOv8 loss with the gains that the model was trained with (box 7.5, class 0.5, DFL 1.5 by default).

    Returns:
        A function of the network's raw output (the dict of train mode, or the (decoded, dict) of eval mode) and a
        batch of `training_data.collate`; gives the scalar loss per picture. Stock training multiplies it by the batch
        size.
    """
    gains = settings(**{k: v for k, v in _args(model).items() if k in ("box", "cls", "dfl")})
    # The criterion reads only these from a model; a stand-in leaves the caller's model.args as they are.
    stand_in: Any = SimpleNamespace(args=gains, model=model.model, parameters=model.parameters)
    criterion: Any = None

    def loss(preds: Any, batch: dict[str, Tensor]) -> Tensor:
        nonlocal criterion
        if criterion is None:  # it stays on the device that the network is on, and that may not be settled before
            criterion = v8DetectionLoss(stand_in)
            criterion.bce = cross_entropy  # whose sum is taken anyway
        raw = criterion.parse_output(preds)
        parts, _ = criterion.loss(raw, batch)
        return parts.sum() / raw["boxes"].shape[0]

    return loss
