"""What a run must reach before its detector may be released: judged from the figures of the report, nothing measured.

Three kinds: absolute ones, ones relative to the released model of a store, and one per class. A gate that could not be
judged counts as missed: silence must not pass for proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hawkeye.config import GateConfig, Recipe
from hawkeye.errors import ConfigError

GATE_TITLES = {
    "max_drop": "mAP@0.5 lost, points",
    "flops": "FLOPs kept",
    "params": "parameters kept",
    "max_params": "parameters",
    "max_gflops": "GFLOPs",
    "max_bytes": "bytes of the OpenVINO model",
    "class_drop": "AP@0.5 that the worst class lost, points",
    "released_drop": "mAP@0.5 below the released model, upper end of the 95 % interval, points",
    "released_latency": "median latency over the released model's",
    "released_class_drop": "AP@0.5 that the worst class lost against the released model, points",
}
VERDICTS = {True: "passed", False: "missed", None: "could not be judged"}


def target(names: Sequence[str], wanted: str | None = None) -> str:
    """The row that is judged: the one that was asked for, or the most compressed one.

    Raises:
        ConfigError: the run has no such row.
    """
    if wanted is None:
        return next(name for name in ("pruned+int8", "pruned", "original+int8", "original") if name in names)
    if wanted not in names:
        raise ConfigError("the run has no such row", got=wanted, expected=", ".join(names),
                          mend="correct gates.row or --row, or do not skip the stage that makes it")  # fmt: skip
    return wanted


def judge(
    recipe: Recipe | None,
    rows: dict[str, dict[str, Any]],
    row: str,
    *,
    labels: bool,
    timed: bool,
    released: dict[str, Any] | None,
) -> dict[str, dict[str, Any]]:
    """All gates of a run by name: `limit`, `value`, `passed` (None where it could not be judged), `row`, `detail`.

    Args:
        recipe: the run's; None where it is not known, and then nothing can be judged.
        rows: rows of the report by name.
        row: the one that is judged.
        labels: accuracy was to be measured.
        timed: latency was to be measured.
        released: the comparison with the released model, as `compare.read` gives it; None where none was asked for.
    """
    config = recipe.gates if recipe else GateConfig()
    mine, gates = rows[row], {}
    # Who finds nothing can lose nothing: without this, a detector of other classes or pictures would pass.
    blind = "the original finds nothing on these pictures" if rows["original"]["map50"] == 0 else None
    if labels:
        drop = None if blind else mine["map50_drop"]
        gates["max_drop"] = _gate(config.max_drop if recipe else None, drop, row, blind)
    for name, key in (("flops", "gflops"), ("params", "params")) if "pruned" in rows else ():
        before, after = rows["original"][key], rows["pruned"][key]
        kept = after / before if before and after else None
        gates[name] = _gate(getattr(recipe.prune, name) if recipe else None, kept, "pruned")
    sizes = {"max_params": mine["params"], "max_gflops": mine["gflops"], "max_bytes": mine["file_bytes"]["openvino"]}
    for name, value in sizes.items():
        if (limit := getattr(config, name)) is not None:
            gates[name] = _gate(limit, value, row)
    if labels and config.class_drop is not None:
        gates["class_drop"] = _worst_class(config, None if blind else mine["per_class"], row, blind)
    if released is not None and released["version"] is not None:
        gates |= _against_released(config, row, released, labels=labels, timed=timed)
    return gates


def gates_passed(table: dict[str, Any], *, labels: bool) -> bool:
    """Whether every gate was judged and passed.

    Without labels there is no gate on accuracy, which the run says at its start and end. With labels, a gate that is
    missing or was not judged counts as missed.
    """
    gates = dict(table["gates"])
    if labels and "max_drop" not in gates:
        return False
    if not labels:
        gates.pop("max_drop", None)
    return all(gate["passed"] is True for gate in gates.values())


def lines(gates: dict[str, dict[str, Any]]) -> Iterable[str]:
    """One line for each gate, for a terminal."""
    for name, gate in gates.items():
        word = {True: "passed", False: "MISSED", None: "NOT JUDGED"}[gate["passed"]]
        detail = f" ({gate['detail']})" if gate.get("detail") else ""
        yield f"gate {name}: {figure(gate['value'])} (limit {figure(gate['limit'])}) {word}{detail}"


def figure(value: float | None) -> str:
    """A gate's value or limit: counts whole, fractions with three digits, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _against_released(
    config: GateConfig, row: str, released: dict[str, Any], *, labels: bool, timed: bool
) -> dict[str, dict[str, Any]]:
    """Relative gates; a comparison of another row, or one that failed, leaves them unjudged and says why."""
    why = "; ".join(released["problems"]) or None
    if released["row"] != row:
        why, released = f"the run compared {released['row']}, not {row}: set gates.row", {}
    gates = {}
    if labels:
        interval = released.get("map50_drop_ci95")
        value = interval[1] if interval else None
        told = f"{released['map50_drop']:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else why
        gates["released_drop"] = _gate(config.released_drop, value, row, told)
    if timed:
        latency = released.get("latency")
        told = f"{latency['candidate_ms']:.1f} against {latency['released_ms']:.1f} ms" if latency else why
        gates["released_latency"] = _gate(config.released_latency, latency["ratio"] if latency else None, row, told)
    if labels and config.class_drop is not None:
        gates["released_class_drop"] = _worst_class(config, released.get("per_class"), row, why)
    return gates


def _worst_class(
    config: GateConfig, classes: list[dict[str, Any]] | None, row: str, why: str | None = None
) -> dict[str, Any]:
    """The class that fell most, among those with enough objects to tell."""
    known = [c for c in classes or () if c["instances"] >= config.class_objects and c["ap50_change"] is not None]
    if not known:
        why = why or f"no class has {config.class_objects} labelled objects (gates.class_objects)"
        return _gate(config.class_drop, None, row, why)
    worst = min(known, key=lambda c: c["ap50_change"])
    told = f"{worst['name']}; {len(known)} of {len(classes or ())} classes have {config.class_objects} objects"
    return _gate(config.class_drop, 0.0 - worst["ap50_change"], row, told)


def _gate(limit: float | None, value: float | None, row: str, detail: str | None = None) -> dict[str, Any]:
    passed = None if limit is None or value is None else value <= limit
    return {"limit": limit, "value": value, "passed": passed, "row": row, "detail": detail}
