"""The summed cross-entropy against PyTorch's own, element by element."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from hawkeye.compress.cross_entropy import bernoulli_divergence, cross_entropy  # noqa: E402


def drawn(*shape: int, scale: float = 3.0, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("shape", "why"),
    [((2, 80, 64), "as the head gives them"), ((3, 7, 5), "fewer than one product"), ((1, 67, 3), "with a rest")],
)
@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e4])
def test_value_and_gradient_are_those_of_pytorch(shape, why, scale):
    target = drawn(*shape, seed=1).sigmoid()
    ours, theirs = (drawn(*shape, scale=scale).requires_grad_() for _ in range(2))
    found, expected = cross_entropy(ours, target), F.binary_cross_entropy_with_logits(theirs, target, reduction="sum")
    (3 * found).backward()
    (3 * expected).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5), why
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_half_precision_logits_are_summed_in_full():
    logits = (drawn(2, 8400, 8) - 8).to(torch.bfloat16)
    expected = F.binary_cross_entropy_with_logits(logits.double(), torch.zeros(logits.shape).double(), reduction="sum")
    assert cross_entropy(logits, torch.zeros(logits.shape)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence_is_what_is_above_the_least_cross_entropy():
    student, teacher = drawn(2, 9, 11).requires_grad_(), drawn(2, 9, 11, seed=1).requires_grad_()
    target = teacher.detach().sigmoid()
    found = bernoulli_divergence(student, teacher)
    least = F.binary_cross_entropy(target, target, reduction="sum")
    expected = F.binary_cross_entropy_with_logits(student, target, reduction="sum") - least
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    found.backward()
    assert torch.allclose(student.grad, student.detach().sigmoid() - target, atol=1e-6)
    assert teacher.grad is None
