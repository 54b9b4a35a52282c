"""Steps relative to each tensor's own norm, in orthogonal directions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hawkeye.compress.optimizer import RelativeMuon, orthogonal  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.mark.parametrize("shape", [(8, 8), (4, 36), (36, 4)])
def test_singular_values_become_about_equal_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    inside = u.T @ found @ v.T
    assert ((inside.diagonal() > 0.5) & (inside.diagonal() < 1.3)).all()
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 0.1


def test_nothing_to_follow_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (5, 7), (9,)], ids=["kernel", "matrix", "vector"])
def test_a_step_is_the_same_fraction_of_small_and_large_tensors(scale, shape):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(scale * torch.randn(shape, generator=generator).abs().add(0.5))
    before = parameter.detach().clone()
    parameter.grad = torch.randn(shape, generator=generator)
    RelativeMuon([parameter], lr=1e-2).step()
    moved = (parameter.detach() - before).norm() / before.norm()
    assert moved == pytest.approx(1e-2, rel=0.2 if scale >= 1 else 2)


def test_it_finds_the_minimum_of_a_badly_scaled_problem():
    generator = torch.Generator().manual_seed(0)
    wanted, scales = torch.randn(6, 6, generator=generator), torch.logspace(0, 3, 6)
    parameter = torch.nn.Parameter(torch.randn(6, 6, generator=generator))
    optimizer = RelativeMuon([parameter], lr=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimizer.zero_grad()
        (scales * (parameter - wanted).square()).sum().backward()
        optimizer.step()
    assert (parameter - wanted).abs().max() < 0.05


def test_state_comes_back():
    def run(split):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))]
        optimizer = RelativeMuon(parameters, lr=1e-2)
        for step in range(6):
            if step == split:
                saved = optimizer.state_dict()
                optimizer = RelativeMuon(parameters, lr=1e-2)
                optimizer.load_state_dict(saved)
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
            optimizer.step()
        return parameters

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(3), strict=True))
