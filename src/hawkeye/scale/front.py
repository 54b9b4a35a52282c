"""Accuracy against latency: which trials nothing else beats, which ones cannot come to that, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hawkeye.report_text import markdown_table

_MARGIN = 1.1  # a rival must be clearly better: judgements on few pictures are noisy
_GRACE = 0.3  # share of the training before which nothing is stopped


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (latency, accuracy) that no other beats in one and equals in the other, fastest first."""
    kept: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            kept.append(index)
            best = points[index][1]
    return kept


@dataclass
class FrontStopper:
    """Early stopping that leaves the front alone.

    Halving by accuracy would end every fast trial, as those are less accurate by nature. So a trial is stopped only
    where another one, of the same teacher and input size, costs no more and was clearly better when it was as far.

    Attributes:
        stopped: why, by trial.
    """

    stopped: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _costs: dict[str, tuple[str, float]] = field(default_factory=dict)

    def judge(self, trial: str, *, group: str, cost: float, part: float, score: float) -> bool:
        """Take in a judgement; True where the trial should be stopped.

        Args:
            trial: its name.
            group: judgements of one group can be compared.
            cost: known from pruning on, such as multiply-accumulates.
            part: of the training that is done.
            score: lower is better.
        """
        self._costs[trial] = (group, cost)
        self._seen.setdefault(trial, []).append((part, score))
        if part < _GRACE or part >= 1:
            return False
        for rival, (its_group, its_cost) in self._costs.items():
            if rival == trial or its_group != group or its_cost > cost:
                continue
            best = min((s for p, s in self._seen[rival] if p <= part + 1e-6), default=None)
            if best is not None and best * _MARGIN < score:
                self.stopped[trial] = (
                    f"{rival} costs no more and was better after {part:.0%} ({best:.4g} < {score:.4g})"
                )
                return True
        return False


def markdown(rows: Sequence[dict[str, Any]], where: dict[str, Any], host: str) -> str:
    """The front and all trials as a page."""

    def cells(row: dict[str, Any]) -> list[str]:
        figures = [f"{row[key]:.{digits}f}" if row.get(key) is not None else ""
                   for key, digits in (("map50", 3), ("map50_95", 3), ("drop", 1), ("ms", 2), ("times_as_fast", 2),
                                       ("gflops", 2))]  # fmt: skip
        return ["yes" if row["front"] else "", row["name"], *figures, row["state"]]

    header = ["front", "trial", "mAP@0.5", "mAP@0.5:0.95", "drop, points", "ms", "times as fast", "GFLOPs", "state"]
    ordered = sorted(rows, key=lambda row: (not row["front"], row.get("ms") is None, row.get("ms") or 0.0))
    lines = ["# Sweep", "", "![accuracy over latency](front.svg)", ""]
    lines += markdown_table(header, [cells(row) for row in ordered])
    lines += [f"Latency was measured on {host}, one trial at a time: {where.get('cpu', 'unknown')}, "
              f"{where.get('cores', '?')} cores, batch 1. The state says why a trial has no figures.", ""]  # fmt: skip
    return "\n".join(lines)
