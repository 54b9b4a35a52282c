"""PyTorch as one of the runtimes: what a checkpoint finds before any export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hawkeye import environment
from hawkeye.artifact import ModelSpec
from hawkeye.compress import yolo
from hawkeye.geometry import Size, rectangle
from hawkeye.records import RuntimeName


class TorchRuntime:
    """The network in eager PyTorch, BatchNorm folded, as a `Runtime`.

    Args:
        source: a checkpoint's path, or a model.
        spec: input size, names and strides.
        threads: CPU threads; 0 takes all cores.
    """

    name: RuntimeName = "pytorch-fp32"
    precision_hint = "f32"
    precision_executed = "f32"

    def __init__(self, source: Path | nn.Module, spec: ModelSpec, threads: int = 0) -> None:
        model = yolo.load_checkpoint(source).model if isinstance(source, Path) else source
        self.spec, self.threads, self._model = spec, threads or environment.cpu_count(), yolo.fused(model).float().cpu()

    def canvas_for(self, source_hw: Size) -> Size:
        """See `Runtime.canvas_for`."""
        return rectangle(source_hw, self.spec.imgsz, max(self.spec.strides))

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw output (4 + nc, A) of a (h, w, 3) BGR canvas."""
        if torch.get_num_threads() != self.threads:  # a setting of the whole process, so it is renewed here
            torch.set_num_threads(self.threads)
        pixels = torch.from_numpy(np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)))
        with torch.inference_mode():
            raw: NDArray[np.float32] = self._model(pixels[None].float().div_(255))[0].numpy()
        return raw
