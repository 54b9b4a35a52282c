"""The optimizer of recovery: every tensor moves by the same small fraction of its own norm at each step.

Kernels take orthogonalised momentum (Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon), vectors take Adam's
direction; both are scaled by the norm of what they change (as LARS does: You et al., arXiv 1708.03888). Layers of a
pruned detector differ a hundredfold in scale, and a run has thousands of steps, not hundreds of thousands: measured on
a pruned yolov8n at 320 pixels, 240 steps of 8 bring the held-out loss from 2.29 to 1.06, AdamW's best rate to 1.19.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_BETA, _BETA_SQUARED = 0.9, 0.99
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, as published
_ITERATIONS = 5
LEAST_VECTOR = 1e-3  # size of a value at least: biases that start at zero must be able to move


class RelativeMuon(torch.optim.Optimizer):
    """Muon for kernels, Adam for vectors, each step `lr` times the tensor's norm, which is at least `LEAST_VECTOR`'s.

    Args:
        params: parameters or groups of them.
        lr: relative change per step; about 1e-3 for fine-tuning.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                mean = state["mean"].lerp_(p.grad, 1 - _BETA)
                if p.ndim > 1 and p[0].numel() > 1:  # one value an output is a vector, whatever its shape
                    direction = orthogonal(mean.lerp(p.grad, 1 - _BETA).flatten(1)).view_as(p)
                    size = p.norm()
                else:
                    square = state["square"].mul_(_BETA_SQUARED).addcmul_(p.grad, p.grad, value=1 - _BETA_SQUARED)
                    square = square / (1 - _BETA_SQUARED ** state["step"])
                    direction = mean / (1 - _BETA ** state["step"]) / (square.sqrt() + 1e-12)
                    size = (p.abs().mean() + LEAST_VECTOR) * p.numel() ** 0.5
                p.add_(direction * (size / (direction.norm() + 1e-12)), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix with equal singular values: Newton-Schulz iteration.

    Every step multiplies the matrix from the left by a polynomial of its Gram matrix, and polynomials of one matrix
    commute: they are multiplied with each other first and with the matrix, many times wider, once at the end. For
    yolov8n's kernels that takes 15 ms a step where the plain iteration takes 26, in bfloat16 or not.

    Args:
        matrix: (m, n), float32.

    Returns:
        (m, n) in the dtype of `matrix`; singular values between about 0.7 and 1.2, zero where the matrix is zero.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-12)
    gram = x @ x.T
    product: Tensor | None = None
    for left in reversed(range(_ITERATIONS)):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if left:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x.T if tall else x
