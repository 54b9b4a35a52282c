"""Optimal brain surgeon: statistics, scores and compensation against NumPy's least squares by brute force."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

from torch import nn  # noqa: E402

from hawkeye.compress import saliency, yolo  # noqa: E402
from hawkeye.compress.groups import Group  # noqa: E402
from hawkeye.compress.saliency import Moments, ObsScorer, StaticScorer, collect, sampled_loss  # noqa: E402

pytestmark = pytest.mark.compress


class Block(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class Chain:
    """Convolution `first` (5 channels) read by `second`, `repeat` times as after a concatenation, and it by `last`."""

    def __init__(self, kernel: int, repeat: int) -> None:
        rng = np.random.default_rng(kernel * 10 + repeat)
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.first, self.model.second = Block(3, 5, 1), Block(5 * repeat, 4, kernel)
        self.model.last = nn.Conv2d(4, 2, 1)
        self.model.requires_grad_(False)
        index = torch.arange(5 * repeat).view(repeat, 5).T
        self.groups = [
            Group("first.conv", 5, ("first.conv",), {"second.conv": index}, ""),
            Group("second.conv", 4, ("second.conv",), {"last": torch.arange(4)[:, None]}, ""),
        ]
        self.rows, self.moments = {}, {}
        for name in ("second.conv", "last"):
            conv = self.model.get_submodule(name)
            d = conv.weight[0].numel()
            x = rng.normal(size=(400, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)  # correlated, off centre
            mean, centred = x.mean(0), x - x.mean(0)
            cov = centred.T @ centred / len(x)
            fisher = rng.uniform(0.5, 2.0, conv.out_channels)
            self.moments[name] = Moments(*map(torch.from_numpy, (mean, cov, fisher)))
            damping = 1e-2 * cov.diagonal().mean() + 1e-12  # as further samples: least squares sees the same problem
            self.rows[name] = np.concatenate([centred / np.sqrt(len(x)), np.sqrt(damping) * np.eye(d)])
        self.scorer = ObsScorer(self.model, self.groups, self.moments)

    def columns(self, channel: int) -> list[int]:
        """Columns of `second`'s flat weight that read a channel of `first`."""
        area = self.model.second.conv.kernel_size[0] ** 2
        return [int(c) * area + k for c in self.groups[0].consumers["second.conv"][channel] for k in range(area)]

    def best(self, name: str, gone: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Least-squares weights without some inputs, and the squared error of each output."""
        x = self.rows[name]
        weight = self.model.get_submodule(name).weight.double().flatten(1).numpy()
        kept = np.setdiff1d(np.arange(x.shape[1]), gone)
        found = np.zeros_like(weight)
        found[:, kept] = np.linalg.lstsq(x[:, kept], x @ weight.T, rcond=None)[0].T
        return found, ((x @ (weight - found).T) ** 2).sum(0)


@pytest.fixture(params=[(1, 1), (3, 1), (1, 2), (3, 4)], ids=["1x1", "3x3", "1x1 twice", "3x3 four times"])
def chain(request):
    return Chain(*request.param)


def test_scores_are_the_brute_force_rise_of_the_error_through_every_removal(chain):
    group, alive, gone = chain.groups[0], torch.ones(5, dtype=torch.bool), []
    fisher = chain.moments["second.conv"].fisher.numpy()
    for _ in range(3):
        scores = chain.scorer.scores(group, alive)
        so_far = chain.best("second.conv", gone)[1]
        for channel in range(5):
            if alive[channel]:
                rise = fisher @ (chain.best("second.conv", gone + chain.columns(channel))[1] - so_far)
                assert float(scores[channel]) == pytest.approx(rise, rel=1e-6)
            else:
                assert scores[channel] == torch.inf
        channel = int(scores.argmin())
        assert chain.scorer.remove_(group, channel) == {"first.conv", "second.conv"}
        alive[channel] = False
        gone += chain.columns(channel)


def test_outputs_that_nobody_reads_any_more_do_not_count(chain):
    chain.scorer.remove_(chain.groups[1], 2)
    fisher = chain.moments["second.conv"].fisher.numpy().copy()
    fisher[2] = 0
    scores = chain.scorer.scores(chain.groups[0], torch.ones(5, dtype=torch.bool))
    expected = [fisher @ chain.best("second.conv", chain.columns(channel))[1] for channel in range(5)]
    assert scores.numpy() == pytest.approx(np.array(expected), rel=1e-6)


def test_refit_is_the_least_squares_optimum_and_keeps_the_mean(chain):
    conv, norm = chain.model.second.conv, chain.model.second.bn
    before, last = conv.weight.double().flatten(1).clone(), chain.model.last.weight.clone()
    gone = chain.columns(1) + chain.columns(4)
    expected, error = chain.best("second.conv", gone)
    chain.scorer.refit_({"first.conv": torch.tensor([0, 2, 3])})
    after = conv.weight.double().flatten(1)
    assert after.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    zeroed = before.numpy().copy()
    zeroed[:, gone] = 0
    x = chain.rows["second.conv"]
    reached = ((x @ (before - after).numpy().T) ** 2).sum(0)
    assert (reached <= ((x @ (before.numpy() - zeroed).T) ** 2).sum(0) + 1e-9).all()
    assert reached == pytest.approx(error, rel=1e-3)
    mean = chain.moments["second.conv"].mean  # BatchNorm sees the same mean deviation as before
    assert (after @ mean - norm.running_mean.double()).numpy() == pytest.approx((before @ mean).numpy(), abs=1e-4)
    assert torch.equal(chain.model.last.weight, last)  # all of its inputs are kept


def test_refit_moves_the_mean_into_a_bias_where_there_is_no_batchnorm(chain):
    last, mean = chain.model.last, chain.moments["last"].mean
    before = last.weight.double().flatten(1) @ mean + last.bias.double()
    chain.scorer.refit_({"second.conv": torch.tensor([0, 3])})
    after = last.weight.double().flatten(1) @ mean + last.bias.double()
    assert after.numpy() == pytest.approx(before.numpy(), abs=1e-4)
    assert (last.weight[:, 1:3] == 0).all()


@pytest.mark.parametrize("fold", [1, 10**6])
def test_greedy_removal_and_one_refit_agree(chain, monkeypatch, fold):
    monkeypatch.setattr(saliency, "_FOLD", fold)
    for channel in (3, 0):
        chain.scorer.remove_(chain.groups[0], channel)
    followed = chain.scorer._weight["second.conv"].clone()
    chain.scorer.refit_({"first.conv": torch.tensor([1, 2, 4])})
    assert chain.model.second.conv.weight.double().flatten(1).numpy() == pytest.approx(followed.numpy(), abs=1e-5)


def test_collected_covariance_is_that_of_all_patches_when_all_are_drawn():
    torch.manual_seed(1)
    model = yolo.build_detector(("a", "b"), width=0.125, imgsz=64).eval().requires_grad_(False)
    batches = [torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64)]
    names, counted = ["model.1.conv", "model.22.cv3.0.0.conv", "model.22.cv3.0.2"], []
    moments = collect(model, names, batches, positions=10**6, advance=counted.append)
    assert counted == [2, 1]
    for name in names:
        conv, seen = model.get_submodule(name), []
        handle = conv.register_forward_hook(lambda _m, inputs, _o, seen=seen: seen.append(inputs[0]))
        for batch in batches:
            model(batch)
        handle.remove()
        patches = [nn.functional.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride) for x in seen]
        x = torch.cat([p.transpose(1, 2).flatten(0, 1) for p in patches]).double()
        assert torch.allclose(moments[name].mean, x.mean(0), atol=1e-4)
        assert torch.allclose(moments[name].cov, torch.cov(x.T, correction=0), atol=1e-4)
        assert moments[name].fisher.shape == (conv.out_channels,)
        assert (moments[name].fisher > 0).all()
        assert not conv._forward_hooks


def test_covariance_survives_a_mean_far_above_the_deviation():
    """Nearly constant features, as behind a pooling: rounding must not make a variance negative."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            z = self.conv(x)
            return None, {"scores": z.flatten(2), "boxes": z.repeat(1, 4, 1, 1).flatten(2)}

    torch.manual_seed(0)
    batches = [5 + 1e-3 * torch.randn(2, 3, 16, 16, dtype=torch.float64) for _ in range(4)]
    moments = collect(Detector(), ["conv"], [batch.float() for batch in batches], positions=10**6)["conv"]
    x = torch.cat([batch.float().double().flatten(2).transpose(1, 2).flatten(0, 1) for batch in batches])
    assert torch.allclose(moments.cov, torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-10)
    assert torch.allclose(moments.mean, x.mean(0))


def test_sampled_gradients_have_the_closed_form_fisher_matrix_as_their_mean_square():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([[[1.0], [-3.0]]], requires_grad=True)  # (1, 2 classes, 1 anchor)
    boxes = torch.randn(1, 4 * 3, 1, generator=generator, requires_grad=True)  # 3 bins a side
    drawn = []
    for _ in range(4000):
        grads = torch.autograd.grad(sampled_loss({"scores": scores, "boxes": boxes}, generator), (scores, boxes))
        drawn.append((grads[0].flatten(), grads[1].view(4, 3)))
    score = torch.stack([g[0] for g in drawn])
    soft = (scores.detach().flatten() / 2).sigmoid()
    assert torch.allclose(score.square().mean(0), soft * (1 - soft), rtol=1e-5)
    box = torch.stack([g[1] for g in drawn])  # (draws, 4, 3)
    confidence = scores.detach().sigmoid().max()
    q = boxes.detach().view(4, 3).softmax(-1)
    expected = confidence * (torch.diag_embed(q) - q[:, :, None] * q[:, None, :])
    assert torch.allclose((box[..., :, None] * box[..., None, :]).mean(0), expected, atol=0.02)


@pytest.mark.parametrize("method", ["l1", "bn"])
def test_plain_measures_rank_by_size_relative_to_their_layer(method):
    block = Block(3, 4, 1).requires_grad_(False)
    sizes = torch.tensor([0.1, 0.4, 0.2, 0.3])
    block.conv.weight.copy_(sizes[:, None, None, None].expand(4, 3, 1, 1))
    block.bn.weight.copy_(-sizes)
    model = nn.Module()
    model.only = block
    group = Group("only.conv", 4, ("only.conv",), {}, "")
    scorer = StaticScorer(model, [group], method)
    alive = torch.tensor([True, True, True, False])
    assert torch.allclose(scorer.scores(group, alive)[:3].float(), sizes[:3] / sizes.mean())
    assert scorer.scores(group, alive)[3] == torch.inf
    assert scorer.remove_(group, 0) == set()
