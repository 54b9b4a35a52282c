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
            moved = [p for p in group["params"] if p.grad is not None]
            for kernels in (True, False):
                # One value an output is a vector, whatever its shape.
                if params := [p for p in moved if (p.ndim > 1 and p[0].numel() > 1) == kernels]:
                    self._step_(params, kernels, group["lr"])

    def _step_(self, params: list[Tensor], kernels: bool, lr: float) -> None:
        """Tensors of one kind together: Python's own time for each of them would be half of the step's."""
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                names = ("mean",) if kernels else ("mean", "square")
                self.state[p].update({name: torch.zeros_like(p) for name in names})
        means = [self.state[p]["mean"] for p in params]
        torch._foreach_lerp_(means, grads, 1 - _BETA)
        if kernels:
            directions = [_orthogonal_kernel(d) for d in torch._foreach_lerp(means, grads, 1 - _BETA)]
            sizes = torch._foreach_norm(params)
        else:  # without Adam's corrections of its means, which are factors, and the length is given below
            squares = [self.state[p]["square"] for p in params]
            torch._foreach_mul_(squares, _BETA_SQUARED)
            torch._foreach_addcmul_(squares, grads, grads, 1 - _BETA_SQUARED)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, 1e-12)
            directions = torch._foreach_div(means, roots)
            sides = [p.numel() ** 0.5 for p in params]
            sizes = torch._foreach_div(torch._foreach_norm(params, 1), sides)
            torch._foreach_add_(sizes, [LEAST_VECTOR * side for side in sides])
        lengths = torch._foreach_norm(directions)
        torch._foreach_add_(lengths, 1e-12)
        torch._foreach_mul_(directions, torch._foreach_div(sizes, lengths))
        torch._foreach_add_(params, directions, alpha=-lr)


def _orthogonal_kernel(kernel: Tensor) -> Tensor:
    """`orthogonal` of a kernel's rows, (outputs, inputs, ...); a view of it where memory is channels-last."""
    rows = kernel.movedim(1, -1)
    return orthogonal(rows.flatten(1)).view(rows.shape).movedim(-1, 1)


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
