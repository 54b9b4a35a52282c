"""Widths under bounds: exchanges against brute force, costs with stairs, and the way without a bound on latency."""

from __future__ import annotations

import itertools
import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

from hawkeye.compress import knapsack  # noqa: E402
from hawkeye.compress.allocate import LatencyBound, allocate  # noqa: E402
from hawkeye.compress.groups import Group  # noqa: E402
from hawkeye.errors import BoundsError  # noqa: E402

pytestmark = pytest.mark.compress


def brute_force(damage, fits):
    """The least damage of all combinations that fit."""
    units = list(damage)
    combinations = (dict(zip(units, widths, strict=True)) for widths in itertools.product(*damage.values()))
    return min(sum(damage[u][w] for u, w in widths.items()) for widths in combinations if fits(widths))


@pytest.mark.parametrize("seed", range(20))
def test_exchange_finds_what_brute_force_finds(seed):
    """Four units whose costs depend on their neighbours, three bounds; started at the narrowest widths."""
    draw = random.Random(seed)
    damage = {}
    for unit in "abcd":
        levels = sorted((draw.random() for _ in range(5)), reverse=True)
        damage[unit] = dict(zip((8, 16, 24, 32, 40), [*levels[:-1], 0.0], strict=True))
    stairs = {8: 0.9, 16: 1.0, 24: 2.3, 32: 2.0, 40: 3.1}  # 24 cost more than 32

    def costs(widths):
        a, b, c, d = widths.values()
        return 3 + a * b + b * c + c * d, a + b + c + d, sum(stairs[w] for w in widths.values())

    limits = (2600, 110, 7)

    def fits(widths):
        return all(cost <= limit for cost, limit in zip(costs(widths), limits, strict=True))

    found = knapsack.exchange(dict.fromkeys("abcd", 8), damage, costs, limits)
    assert fits(found)
    total = sum(damage[unit][width] for unit, width in found.items())
    assert total <= 1.02 * brute_force(damage, fits) + 1e-12


class Fixed:
    """A scorer whose channels matter as given, whatever else has gone."""

    def __init__(self, scores):
        self._scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}

    def scores(self, group, alive):
        return torch.where(alive, self._scores[group.name], torch.inf)

    def remove_(self, group, channel):
        return set()

    def refit_(self, keep):
        raise AssertionError("allocation changes no weights")


class Costs:
    """A chain of layers: MACs and parameters are products of neighbouring widths, latency is a sum of stairs."""

    def __init__(self, groups, stairs=None):
        self._groups, self._stairs = list(groups), stairs

    def total(self, widths):
        sizes = [3, *(widths.get(group.name, group.width) for group in self._groups)]
        macs = sum(a * b for a, b in itertools.pairwise(sizes))
        return macs, macs + sum(sizes)

    def ms(self, widths):
        return sum(self._stairs(widths.get(group.name, group.width)) for group in self._groups)


def chain(seed, units=4, width=32):
    draw = random.Random(seed)
    groups = [Group(f"g{i}", width, (f"g{i}",), {}, "alone") for i in range(units)]
    scores = {group.name: [draw.random() ** 3 * 3**i for _ in range(width)] for i, group in enumerate(groups)}
    return groups, scores


def pays(width):
    """Blocks of 16; odd multiples of 8 cost more than the next block, as measured."""
    return width / 16 if width % 16 == 0 else -(-width // 16) * 1.2


def damage_of(scores, kept):
    return sum(sum(values) - sum(values[i] for i in kept[name].tolist()) for name, values in scores.items())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_widths_under_a_latency_bound_are_nearly_the_best_there_are(seed, share):
    groups, scores = chain(seed)
    costs = Costs(groups, pays)
    macs, params = (0.8 * value for value in costs.total({}))
    bound = share * costs.ms({})

    kept = allocate(groups, costs, Fixed(scores), macs=macs, params=params, align=8, latency=LatencyBound(costs, bound))

    widths = {name: len(index) for name, index in kept.items()}
    assert costs.total(widths)[0] <= macs and costs.total(widths)[1] <= params and costs.ms(widths) <= bound
    ranked = {name: sorted(values) for name, values in scores.items()}
    curves = {name: {w: sum(values[: 32 - w]) for w in (8, 16, 24, 32)} for name, values in ranked.items()}

    def fits(tried):
        total = costs.total(tried)
        return total[0] <= macs and total[1] <= params and costs.ms(tried) <= bound

    assert damage_of(scores, kept) <= 1.02 * brute_force(curves, fits) + 1e-9


def test_widths_that_cost_more_than_wider_ones_are_not_chosen():
    groups, scores = chain(1)
    costs = Costs(groups, pays)
    bound = LatencyBound(costs, 0.6 * costs.ms({}))
    kept = allocate(groups, costs, Fixed(scores), macs=1e9, params=1e9, align=8, latency=bound)
    assert {len(index) for index in kept.values()} <= {16, 32}


def test_without_a_latency_bound_widths_are_what_they_were():
    """Golden widths of the greedy way; worked out when it was the only one."""
    groups, scores = chain(3)
    costs = Costs(groups)
    macs, params = costs.total({})
    kept = allocate(groups, costs, Fixed(scores), macs=0.5 * macs, params=0.7 * params, align=8)
    assert [len(index) for index in kept.values()] == GOLDEN
    for name, index in kept.items():
        expected = sorted(range(32), key=lambda i, name=name: scores[name][i])[32 - len(index) :]
        assert index.tolist() == sorted(expected)


GOLDEN = [16, 24, 16, 32]


def test_same_input_gives_same_widths():
    groups, scores = chain(5)
    costs = Costs(groups, pays)
    bound = LatencyBound(costs, 0.55 * costs.ms({}))
    one, two = (allocate(groups, costs, Fixed(scores), macs=1e9, params=1e9, align=8, latency=bound) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_latency_that_no_width_reaches_is_told():
    groups, scores = chain(0)
    costs = Costs(groups, lambda width: 1 + width / 1000)
    with pytest.raises(BoundsError, match="no width can reach this latency"):
        allocate(groups, costs, Fixed(scores), macs=1e9, params=1e9, align=8, latency=LatencyBound(costs, 2.0))
