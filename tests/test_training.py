"""The training loop: its pictures, its guards, going on after a kill."""

from __future__ import annotations

import random
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("lightning_fabric")

from torch import nn  # noqa: E402

from hawkeye.compress import device, training, training_data  # noqa: E402
from hawkeye.compress.training import Source, fit_  # noqa: E402
from hawkeye.config import RecoverConfig  # noqa: E402
from hawkeye.data import load_dataset, split_holdout  # noqa: E402
from hawkeye.errors import DivergenceError  # noqa: E402

pytestmark = pytest.mark.compress


class Net(nn.Module):
    """Trunk with BatchNorm, and a head: laid out as in a detector, `model` being the list of layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def forward(self, x):
        return self.model(x)


class Pictures(torch.utils.data.Dataset):
    """Augmented by noise from all three generators, as real pipelines draw from any of them."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(3, 6, 6)
        return {"img": torch.full((3, 6, 6), float(index)) / 10 + 0.1 * noise}


SOURCE = Source(Pictures(), lambda samples: {"img": torch.stack([s["img"] for s in samples])})


def towards_one(net, batch):
    return ((net(batch["img"]).float() - 1) ** 2).mean()


def judge(net):
    with torch.no_grad():
        return float(((net(torch.linspace(0, 1, 300).view(1, 3, 10, 10)) - 1) ** 2).mean())


class Counting:
    """An objective that does something else at chosen calls, counted from 0, and remembers the weights it met."""

    def __init__(self, **at):
        self.at, self.calls, self.met = {int(k[1:]): v for k, v in at.items()}, 0, []

    def __call__(self, net, batch):
        self.met.append({k: v.detach().clone() for k, v in net.state_dict().items()})
        action = self.at.get(self.calls, self.at.get(-1))
        self.calls += 1
        loss = towards_one(net, batch)
        return loss if action is None else action(loss)


def nan(loss):
    return loss * float("nan")


def killed(loss):
    raise KeyboardInterrupt


def run(tmp_path, objective=towards_one, judged=judge, **settings):
    net = Net()
    defaults = {"optimizer": "adamw", "steps": 12, "batch": 3, "lr": 1e-2, "checks": 4, "save_every": 0}
    config = RecoverConfig(**{**defaults, **settings})
    curve, best, start = fit_(net, SOURCE, objective, judged, config, state=tmp_path / "state.pt", title="test")
    return net, curve, best, start


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_judgement_and_the_curve_tells_it(tmp_path):
    net, curve, best, start = run(tmp_path, steps=60)
    assert start == pytest.approx(judge(Net().eval()))
    assert best < 0.5 * start
    assert best == pytest.approx(judge(net.eval()))
    assert best == min(point["held_out"] for point in curve)
    assert [point["step"] for point in curve] == [0, 15, 30, 45, 60]
    assert curve[0]["loss"] is None
    assert all(point["loss"] > 0 for point in curve[1:])


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    seen, scores = [], iter([5.0, 4.0, 1.0, 3.0, 2.0])

    def judged(net):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return next(scores)

    net, curve, best, start = run(tmp_path, judged=judged)
    assert (best, start, len(curve)) == (1.0, 5.0, 5)
    assert same(net.state_dict(), seen[2])
    assert not same(net.state_dict(), seen[4])


class Slow(Pictures):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_waiting_for_pictures_is_part_of_the_time(tmp_path):
    config = RecoverConfig(optimizer="adamw", steps=10, batch=3, checks=1)
    curve, _, _ = fit_(Net(), Source(Slow(), SOURCE.collate), towards_one, judge, config, state=tmp_path / "state.pt",
                       title="test")  # fmt: skip
    assert curve[-1]["seconds"] > 0.9 * 10 * 3 * 0.05


def test_nothing_better_leaves_the_weights_as_they_were(tmp_path):
    scores = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    net, _, best, start = run(tmp_path, judged=lambda net: next(scores))
    assert best == start == 1.0
    assert same(net.state_dict(), Net().state_dict())


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(nan, id="loss is NaN"),
        pytest.param(lambda loss: loss * float("inf"), id="loss is infinite"),
        pytest.param(lambda loss: 1 + torch.sqrt(loss * 0), id="finite loss, infinite gradient"),
    ],
)
def test_divergence_goes_back_to_the_last_good_weights_at_half_the_rate(tmp_path, broken, capsys):
    objective = Counting(_7=broken)
    net, curve, best, start = run(tmp_path, objective)
    _, calm, _, _ = run(tmp_path / "calm")
    checked = 6  # step of the last check before call 7
    assert [p["step"] for p in curve] == [0, 3, 6, 9, 12]
    assert same(objective.met[8], objective.met[checked])
    assert not same(objective.met[7], objective.met[checked])
    assert curve[2]["lr"] == calm[2]["lr"]
    assert curve[3]["lr"] == pytest.approx(calm[3]["lr"] / 2)
    assert "rate halved" in capsys.readouterr().err
    assert best < start
    assert all(torch.isfinite(v).all() for v in net.state_dict().values())


def test_the_rate_is_warmed_up_again_after_a_roll_back(tmp_path):
    settings = {"checks": 12, "warmup": 0.25}
    _, calm, _, _ = run(tmp_path / "calm", **settings)
    _, curve, _, _ = run(tmp_path / "broken", Counting(_6=nan), **settings)
    # There is no check after the step that broke.
    left = {point["step"]: point["lr"] / calm[point["step"]]["lr"] for point in curve}
    assert [left[step] for step in (5, 6)] == [1.0, 1.0]
    assert [left[step] for step in (8, 9, 10, 12)] == pytest.approx([0.5 / 3, 0.5 * 2 / 3, 0.5, 0.5], rel=0.02)


def _spike(loss):
    return loss * 1000 + 1000


def test_spikes_of_the_loss_are_divergence_too(tmp_path, capsys):
    objective = Counting(_30=_spike, _31=_spike, _32=_spike)
    run(tmp_path, objective, steps=40)
    assert "training diverged at step 33" in capsys.readouterr().err
    assert same(objective.met[33], objective.met[30])  # checked at step 30


def test_weights_amid_spikes_are_not_gone_back_to(tmp_path, capsys):
    objective = Counting(_29=_spike, _30=_spike, _31=_spike)
    run(tmp_path, objective, steps=40)  # checked at step 30, after one spike
    assert "training diverged at step 32" in capsys.readouterr().err
    assert same(objective.met[32], objective.met[20])


def test_a_hard_picture_now_and_then_is_not(tmp_path, capsys):
    hard = {f"_{step}": _spike for step in (25, 26, 28, 29, 31, 35)}
    _, curve, _, _ = run(tmp_path, Counting(**hard), steps=40)
    assert "diverged" not in capsys.readouterr().err and curve[-1]["step"] == 40


def test_divergence_for_good_is_an_error_when_nothing_better_was_found(tmp_path, capsys):
    objective = Counting(**{"_-1": nan})
    with pytest.raises(DivergenceError, match="lower lr"):
        run(tmp_path, objective)
    assert objective.calls == 4  # three roll-backs are tried
    said = capsys.readouterr().err
    assert (said.count("rate halved"), said.count("giving up")) == (3, 1)


def test_divergence_for_good_keeps_the_better_weights_found_before(tmp_path):
    net, _, best, start = run(tmp_path, Counting(**{f"_{i}": nan for i in range(6, 12)}))
    assert best < start
    assert judge(net.eval()) == pytest.approx(best)


@pytest.mark.parametrize(
    ("scores", "rolled_back"),
    [
        pytest.param([1.0, 0.9, 1.6, 0.8, 0.7], [2], id="far below the start, at once"),
        pytest.param([1.0, float("nan"), 0.9, 0.8, 0.7], [1], id="not a number"),
        pytest.param([1.0, 1.2, 1.3, 1.1, 0.9], [], id="below, on the way back"),
        pytest.param([1.0, 1.2, 1.2, 1.2, 0.9], [3], id="a small fall that lasts into the second half"),
        pytest.param([1.0, 0.8, 0.9, 1.1, 0.9], [3], id="a small fall in the second half"),
        pytest.param([1.0, 0.9, 0.95, 0.99, 0.8], [], id="worse than the best, not than the start"),
        pytest.param([1.0, 0.9, 1.6, 1.1, 0.8], [2], id="the first check afterwards has no other to be judged by"),
        pytest.param([1.0, 0.9, 0.9, 0.9, 1.2], [], id="at the end there is nothing to go back for"),
    ],
)
def test_a_fall_below_the_start_is_divergence_where_there_is_a_rescue(tmp_path, scores, rolled_back):
    """Calibration's result must not be lost; a judgement that only passes below it must not cost a layer."""
    seen, rescued = [], []

    def judged(net):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return scores[len(seen) - 1]

    def rescue(net):
        rescued.append(len(seen) - 1)
        return lambda network: network.model[2].bias.data.fill_(7.0)

    config = RecoverConfig(optimizer="adamw", steps=12, batch=3, lr=1e-2, checks=4, save_every=0)
    net = Net()
    curve, best, _ = fit_(net, SOURCE, towards_one, judged, config, state=tmp_path / "state.pt", title="test",
                          rescue=rescue)  # fmt: skip
    assert rescued == rolled_back
    assert [i for i, point in enumerate(curve) if point.get("rolled_back")] == rolled_back
    kept = min((s, i) for i, s in enumerate(scores) if s == s and i not in rolled_back)
    assert best == kept[0]
    assert same(net.state_dict(), seen[kept[1]])
    _, calm, _, _ = run(tmp_path / "calm")
    for i, point in enumerate(curve):
        assert point["lr"] == pytest.approx(calm[i]["lr"] * 0.5 ** sum(r < i for r in rolled_back))


def test_a_roll_back_ends_at_weights_no_worse_than_the_start(tmp_path):
    scores, objective = iter([1.0, 0.9, 1.1, 1.2, 0.8]), Counting()
    config = RecoverConfig(optimizer="adamw", steps=12, batch=3, lr=1e-2, checks=4, save_every=0)
    fit_(Net(), SOURCE, objective, lambda net: next(scores), config, state=tmp_path / "state.pt", title="test",
         rescue=lambda net: lambda network: None)  # fmt: skip
    assert same(objective.met[9], objective.met[3])  # judged 1.2 at step 9, 1.1 at 6, 0.9 at 3


def test_falls_for_good_are_an_error_when_nothing_better_was_found(tmp_path, capsys):
    config = RecoverConfig(optimizer="adamw", steps=40, batch=3, lr=1e-2, checks=20, save_every=0)
    scores = iter([1.0, *[1.6] * 30])
    with pytest.raises(DivergenceError, match="diverges"):
        fit_(Net(), SOURCE, towards_one, lambda net: next(scores), config, state=tmp_path / "state.pt", title="test",
             rescue=lambda net: lambda network: None)  # fmt: skip
    said = capsys.readouterr().err
    assert (said.count("rate halved"), said.count("giving up")) == (3, 1)


def test_head_stays_as_it_is_while_it_is_frozen(tmp_path):
    objective = Counting()
    run(tmp_path, objective, head_frozen=0.5)
    head, trunk, begin = "model.2.weight", "model.0.weight", objective.met[0]
    for step in range(1, 7):  # steps 0 to 5 are the first half
        assert torch.equal(objective.met[step][head], begin[head])
        assert torch.equal(objective.met[step]["model.2.bias"], begin["model.2.bias"])
        assert not torch.equal(objective.met[step][trunk], begin[trunk])
    assert not torch.equal(objective.met[7][head], begin[head])


def test_the_head_is_frozen_for_a_while_after_a_roll_back(tmp_path):
    objective = Counting(_7=nan)
    run(tmp_path, objective, steps=24, checks=8)
    head, trunk, begin = "model.2.weight", "model.0.weight", objective.met[8]
    for step in (9, 10):  # a tenth of 24 steps
        assert torch.equal(objective.met[step][head], begin[head])
        assert not torch.equal(objective.met[step][trunk], begin[trunk])
    assert not torch.equal(objective.met[12][head], begin[head])


@pytest.mark.parametrize("freeze", [True, False])
def test_batchnorm_statistics_move_only_where_asked(tmp_path, freeze):
    objective = Counting()
    run(tmp_path, objective, freeze_bn=freeze)
    assert torch.equal(objective.met[-1]["model.1.running_mean"], objective.met[0]["model.1.running_mean"]) == freeze


@pytest.mark.parametrize(
    ("kills", "save_every"),
    [
        pytest.param([5], 0, id="once"),
        pytest.param([1, 1, 4, 3], 0, id="again and again"),
        pytest.param([0, 7], 0, id="before the first step, and right after a check"),
        pytest.param([7], 60, id="before anything was saved"),
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path, kills, save_every):
    whole, curve, best, _ = run(tmp_path / "whole")
    for after in kills:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", Counting(**{f"_{after}": killed}), save_every=save_every)
    rest = Counting()
    net, again, best_again, _ = run(tmp_path / "cut", rest, save_every=save_every)
    assert rest.calls == 12 - (0 if save_every else sum(kills))  # what was done is not done again
    assert same(whole.state_dict(), net.state_dict())
    assert best_again == best
    assert [{**p, "seconds": 0} for p in again] == [{**p, "seconds": 0} for p in curve]


def test_a_killed_run_remembers_its_roll_backs(tmp_path):
    whole, curve, *_ = run(tmp_path / "whole", Counting(_2=nan, _4=nan))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Counting(_2=nan, _4=nan, _7=killed))
    net, again, *_ = run(tmp_path / "cut")
    assert [p["lr"] for p in again] == [p["lr"] for p in curve]
    assert same(whole.state_dict(), net.state_dict())


def test_pictures_of_a_step_depend_on_seed_and_step_only():
    def steps(seed, first, count):
        return list(islice(training._batches(10, 3, seed, first, 0, 1), count))

    assert steps(0, 5, 4) == steps(0, 0, 9)[5:]
    assert steps(0, 0, 4) != steps(1, 0, 4)
    keys = [key for batch in steps(0, 0, 30) for key, _ in batch]
    assert len(set(keys)) == len(keys)


def test_every_picture_is_met_once_an_epoch_over_all_ranks():
    ranks = [list(islice(training._batches(12, 6, 0, 0, rank, 3), 4)) for rank in range(3)]
    for epoch in (0, 1):
        met = [index for batches in ranks for batch in batches[2 * epoch : 2 * epoch + 2] for _, index in batch]
        assert sorted(met) == list(range(12))


def test_a_step_meets_the_same_pictures_with_any_number_of_ranks():
    def met(world):
        ranks = [next(training._batches(12, 6, 0, 4, rank, world)) for rank in range(world)]
        return sorted(key for batch in ranks for key in batch)

    assert met(1) == met(2) == met(3)


def test_fewer_pictures_than_a_batch_fill_it_by_repetition():
    (batch,) = islice(training._batches(2, 5, 0, 0, 0, 1), 1)
    assert sorted({index for _, index in batch}) == [0, 1]
    assert len(batch) == 5


def test_a_sample_does_not_depend_on_what_was_read_before(drawn):
    dataset = load_dataset(drawn)

    def keyed():
        data = training_data.training_set(
            dataset.split("train"), dataset.names, 64, mosaic=1.0, augment=True, labelled=True
        )
        return training._Keyed(data)

    fresh = [keyed()[7 + i, i] for i in range(8)]
    used = keyed()
    for i in range(24):
        used[i, i % 8]
    for i, sample in enumerate(fresh):
        again = used[7 + i, i]
        assert all(torch.equal(sample[name], again[name]) for name in ("img", "cls", "bboxes"))
    assert len({int(sample["img"].long().sum()) for sample in fresh}) == 8


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(100, 0.1, 10), (5, 0.1, 1), (1000, 0.3, 64)],
    ids=["a tenth", "at least one", "at most 64"],
)
def test_holdout_is_disjoint_complete_and_repeatable(count, share, held):
    pictures = [Path(f"{i:04}.jpg") for i in range(count)]
    learn, judged = split_holdout(pictures, share, seed=3)
    assert len(judged) == held
    assert sorted(learn + judged) == pictures
    assert split_holdout(pictures[::-1], share, seed=3) == (learn, judged)
    assert split_holdout(pictures, share, seed=4) != (learn, judged)


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    device.claim("cpu")
    device.claim("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    device.claim("cuda")
    assert chosen == [0, 3]


@pytest.mark.parametrize(("cores", "processes", "expected"), [(2, 1, 1), (16, 1, 8), (16, 4, 3), (2, 8, 1)])
def test_a_gpu_has_as_many_loaders_as_there_are_cores_to_spare(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(device.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert device.loaders("cuda") == expected
    assert device.loaders("cpu") == 1
