"""Widths under several bounds at once: exchange between units of coupled channels, by their curves of damage.

What one unit costs depends on the widths of its neighbours, so this is no textbook knapsack with a table over
capacities. Greedy widths are the start; then channels go from where they matter less to where they matter more for as
long as the summed damage falls and every bound holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

_REACH = 4  # options that one exchange moves a unit by at most: across a width that does not pay, and the next
_GAIN = 1e-9  # of the damage; below that an exchange is rounding
_SLACK = 0.02  # of a bound, by which the sum of two changes may miss it before both are tried together

Costs = Callable[[dict[str, int]], Sequence[float]]


def exchange(
    start: Mapping[str, int], damage: Mapping[str, Mapping[int, float]], costs: Costs, limits: Sequence[float]
) -> dict[str, int]:
    """Widths with the least summed damage that single steps and exchanges of two units lead to.

    Args:
        start: width of each unit; within the limits.
        damage: damage of each unit at every width that it may have.
        costs: what the network costs at these widths, one figure per limit.
        limits: upper bounds.
    """
    widths, bounds = dict(start), np.asarray(limits, float)
    options = {unit: sorted(curve) for unit, curve in damage.items()}
    while (better := _better(widths, options, damage, costs, bounds)) is not None:
        widths |= better
    return widths


def _better(
    widths: dict[str, int],
    options: Mapping[str, Sequence[int]],
    damage: Mapping[str, Mapping[int, float]],
    costs: Costs,
    bounds: np.ndarray,
) -> dict[str, int] | None:
    """The change that helps most among those within the bounds; None where none does."""
    wider, narrower = [], []  # (unit, width)
    for unit, width in widths.items():
        place = options[unit].index(width)
        wider += [(unit, other) for other in options[unit][place + 1 : place + 1 + _REACH]]
        narrower += [(unit, other) for other in options[unit][max(0, place - _REACH) : place]]
    now = np.asarray(costs(widths), float)

    def told(moves: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Damage avoided by each move alone, (n,), and what it adds to the costs, (n, bounds)."""
        less = [damage[unit][widths[unit]] - damage[unit][width] for unit, width in moves]
        more = [np.asarray(costs({**widths, unit: width}), float) - now for unit, width in moves]
        return np.array(less), np.array(more).reshape(len(moves), len(bounds))

    (gain, added), (loss, freed) = told(wider), told(narrower)
    least = _GAIN * max(sum(damage[unit][width] for unit, width in widths.items()), 1e-30)
    # Costs add up but where two units are neighbours: by the sum most pairs are ruled out, the rest is tried.
    room = now + added[:, None, :] + freed[None, :, :] <= bounds * (1 + _SLACK)  # (wider, narrower, bounds)
    pairs = np.argwhere(room.all(-1) & (gain[:, None] + loss[None, :] > least)).tolist()
    changes = [(float(gain[i]), {unit: width}) for i, (unit, width) in enumerate(wider) if gain[i] > least]
    changes += [(float(gain[i] + loss[j]), dict((wider[i], narrower[j])))
                for i, j in pairs if wider[i][0] != narrower[j][0]]  # fmt: skip
    changes.sort(key=lambda change: (-change[0], sorted(change[1].items())))
    fits = (change for _, change in changes if (np.asarray(costs({**widths, **change})) <= bounds).all())
    return next(fits, None)
