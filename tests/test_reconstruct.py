"""Convolutions fitted to changed maps: the closed-form optimum, and nothing else in the network moves."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from hawkeye.compress.reconstruct import Reconstruction  # noqa: E402

pytestmark = pytest.mark.compress


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x))


class _Net(nn.Module):
    """A map, what is done to it, and two convolutions that read it: one with BatchNorm behind it, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _Block(3, 6, 1)
        self.act: nn.Module = nn.SiLU()
        self.second = _Block(6, 5, 2)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.act(self.first(x))
        return self.second(x), self.last(x)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    original = _Net().eval()
    changed = copy.deepcopy(original)
    changed.act = nn.Hardtanh()
    return original, changed


def batches(seed: int, count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.rand(2, 3, 24, 24, generator=generator) - 2 for _ in range(count)]


def error(networks, of: int, seed: int) -> float:
    original, changed = networks
    with torch.no_grad():
        return sum(float((original(b)[of] - changed(b)[of]).square().mean()) for b in batches(seed))


def test_readers_come_nearer_on_pictures_that_they_were_not_fitted_on(networks):
    original, changed = networks
    before = [error(networks, of, seed=1) for of in (0, 1)]
    Reconstruction(original, ["second.conv", "last"], batches(0)).fit_(changed, ["second.conv", "last"])
    after = [error(networks, of, seed=1) for of in (0, 1)]
    assert all(now < 0.7 * then for now, then in zip(after, before, strict=True)), (before, after)
    assert all(torch.equal(value, changed.state_dict()[name]) for name, value in original.state_dict().items()
               if name.startswith("first")), "only what is named moves"  # fmt: skip


def test_no_other_weights_are_better_where_they_were_fitted(networks):
    """At every output position, so that the optimum is that of the maps themselves; damping costs next to nothing."""
    original, changed = networks
    Reconstruction(original, ["last"], batches(0), positions=10_000).fit_(changed, ["last"])
    fitted = error(networks, 1, seed=0)
    torch.manual_seed(1)
    for _ in range(20):
        for value in (changed.last.weight.data, changed.last.bias.data):
            step = 0.05 * torch.randn_like(value)
            value += step
            assert error(networks, 1, seed=0) > fitted * 0.999
            value -= step
    with torch.no_grad():
        missing = sum(float((original(b)[1] - changed(b)[1]).mean()) for b in batches(0))
    assert abs(missing) < 1e-4, "biases follow the mean"


def test_what_has_not_changed_stays(networks):
    original, _ = networks
    same = copy.deepcopy(original)
    Reconstruction(original, ["second.conv", "last"], batches(0)).fit_(same, ["second.conv", "last"])
    for name, value in original.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert not any(module._forward_hooks for network in (original, same) for module in network.modules())
