"""Gates judged from figures: absolute, against the released model, per class; and how CI is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hawkeye.config import GateConfig, Recipe
from hawkeye.errors import ConfigError
from hawkeye.gates import GATE_TITLES, gates_passed, judge, lines, target
from hawkeye.report_text import markdown_table
from hawkeye.summary import job_summary, junit_xml

ROW = "pruned+int8"


def line(name: str, **changes: Any) -> dict[str, Any]:
    """A line of the report's table."""
    small = name.startswith("pruned")
    classes = [
        {"name": "person", "instances": 400, "ap50": 0.6, "ap50_95": 0.4, "ap50_change": -1.0},
        {"name": "a<b & |c|", "instances": 50, "ap50": 0.5, "ap50_95": 0.3, "ap50_change": -6.5},
        {"name": "rare", "instances": 3, "ap50": 0.1, "ap50_95": 0.1, "ap50_change": -60.0},
        {"name": "never", "instances": 0, "ap50": None, "ap50_95": None, "ap50_change": None},
    ]
    return {"name": name, "params": 700 if small else 1000, "gflops": 6.9 if small else 10.0, "map50": 0.5,
            "map50_drop": 1.0, "map50_drop_ci95": [0.1, 2.0], "file_bytes": {"openvino": 3_000_000},
            "latency_ms": {"openvino-int8": {"p50": 10.0, "p95": 11.0, "p99": 12.0}}, "per_class": classes,
            **changes}  # fmt: skip


def judged(*, labels: bool = True, timed: bool = True, released: Any = None, row: str = ROW, mine: Any = None,
           **gates: Any) -> dict[str, dict[str, Any]]:  # fmt: skip
    rows = {
        name: line(name, **(mine or {} if name == row else {})) for name in ("original", "original+int8", "pruned", ROW)
    }  # noqa: E501
    return judge(Recipe(gates=GateConfig(**gates)), rows, row, labels=labels, timed=timed, released=released)


def released(**changes: Any) -> dict[str, Any]:
    return {"version": "v", "number": 1, "row": ROW, "problems": [], "map50_drop": 0.4, "map50_drop_ci95": [-0.5, 1.4],
            "latency": {"candidate_ms": 10.5, "released_ms": 10.0, "ratio": 1.05},
            "per_class": [{"name": "person", "instances": 400, "ap50_change": -2.5}], **changes}  # fmt: skip


# gates, the gate in question, its verdict
ABSOLUTE = [
    pytest.param({}, "max_drop", True, id="within the drop"),
    pytest.param({"max_drop": 0.9}, "max_drop", False, id="beyond the drop"),
    pytest.param({}, "flops", True, id="the bound of pruning"),
    pytest.param({"max_params": 700}, "max_params", True, id="as many as allowed"),
    pytest.param({"max_params": 699}, "max_params", False, id="one parameter too many"),
    pytest.param({"max_gflops": 6.8}, "max_gflops", False, id="too much computation"),
    pytest.param({"max_bytes": 2_999_999}, "max_bytes", False, id="a byte too many"),
    pytest.param({"class_drop": 7.0}, "class_drop", True, id="the worst class is within; the rare one is chance"),
    pytest.param({"class_drop": 6.0}, "class_drop", False, id="a class fell too far"),
    pytest.param({"class_drop": 7.0, "class_objects": 3}, "class_drop", False, id="asked for, rare ones count"),
    pytest.param({"class_drop": 70.0, "class_objects": 1000}, "class_drop", None, id="no class has enough objects"),
]


@pytest.mark.parametrize(("gates", "name", "passed"), ABSOLUTE)
def test_absolute_and_per_class(gates: dict[str, Any], name: str, passed: bool | None) -> None:
    found = judged(**gates)
    assert found[name]["passed"] is passed
    assert gates_passed({"gates": found}, labels=True) is (passed is True)


RELATIVE = [
    pytest.param({}, {}, {"released_drop": True, "released_latency": True}, id="as good as the released one"),
    pytest.param({"released_drop": 1.3}, {}, {"released_drop": False, "released_latency": True},
                 id="the interval's upper end counts, not the middle"),
    pytest.param({"released_latency": 1.04}, {}, {"released_drop": True, "released_latency": False}, id="slower"),
    pytest.param({}, {"map50_drop_ci95": None}, {"released_drop": None, "released_latency": True}, id="no interval"),
    pytest.param({}, {"latency": None}, {"released_drop": True, "released_latency": None}, id="not timed"),
    pytest.param({}, {"row": "original"}, {"released_drop": None, "released_latency": None}, id="another row compared"),
    pytest.param({"class_drop": 2.0}, {}, {"released_class_drop": False}, id="a class fell against the released one"),
    pytest.param({"class_drop": 3.0}, {"per_class": None}, {"released_class_drop": None}, id="classes not compared"),
]  # fmt: skip


def test_who_finds_nothing_can_lose_nothing() -> None:
    gates = judged(row="original", mine={"map50": 0.0, "map50_drop": 0.0}, class_drop=7.0)
    assert gates["max_drop"]["passed"] is None and gates["class_drop"]["passed"] is None
    assert not gates_passed({"gates": gates}, labels=True)
    assert "finds nothing" in next(iter(lines(gates)))


@pytest.mark.parametrize(("gates", "changes", "verdicts"), RELATIVE)
def test_against_the_released_model(gates: Any, changes: Any, verdicts: dict[str, bool | None]) -> None:
    found = judged(released=released(**changes), **gates)
    assert {name: found[name]["passed"] for name in verdicts} == verdicts


def test_a_first_release_has_nothing_to_be_compared_with() -> None:
    assert not [name for name in judged(released=released(version=None)) if name.startswith("released")]
    assert not [name for name in judged(released=None) if name.startswith("released")]


def test_a_comparison_that_failed_says_why() -> None:
    found = judged(released=released(problems=["other classes"], map50_drop_ci95=None, latency=None))
    assert {found[name]["detail"] for name in ("released_drop", "released_latency")} == {"other classes"}
    assert gates_passed({"gates": found}, labels=True) is False


def test_without_labels_only_what_needs_none_is_judged() -> None:
    found = judged(labels=False, released=released(), class_drop=1.0, max_bytes=10)
    assert set(found) == {"flops", "params", "max_bytes", "released_latency"}
    assert set(judged(labels=False, timed=False, released=released())) == {"flops", "params"}


def test_what_was_not_measured_is_missed() -> None:
    assert judged(mine={"map50_drop": None})["max_drop"]["passed"] is None
    assert judged(mine={"params": None}, max_params=5)["max_params"]["passed"] is None
    rows = {"original": line("original"), ROW: line(ROW)}
    unknown = judge(None, rows, ROW, labels=True, timed=True, released=None)
    assert unknown["max_drop"]["passed"] is None, "without a recipe there is no limit to pass"


def test_the_row_that_is_judged() -> None:
    assert target(("original", "original+int8")) == "original+int8"
    assert target(("original", "pruned+int8", "pruned"), "pruned") == "pruned"
    with pytest.raises(ConfigError, match="no such row"):
        target(("original",), "pruned")


def test_junit_has_a_case_for_each_gate(tmp_path: Path) -> None:
    gates = judged(class_drop=6.0, max_params=700, mine={"map50_drop": None})
    root = ElementTree.fromstring(junit_xml({"gates": gates}, name="run \x00 <1>"))
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "1")
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {"max_drop": ["error"], "flops": ["system-out"], "params": ["system-out"],
                     "max_params": ["system-out"], "class_drop": ["failure"]}  # fmt: skip
    assert "a<b & |c|" in (suite.find("testcase[@name='class_drop']/failure").text or "")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("gates", "words"),
    [({}, "every gate is passed"), ({"max_drop": 0.1}, "a gate is missed"), (None, "no gate was asked for")],
)
def test_job_summary(gates: dict[str, Any] | None, words: str) -> None:
    found = {} if gates is None else judged(class_drop=9.0, **gates)
    table = {"headline": ["It is <b>fast</b>."], "rows": [line(ROW)], "gates": found, "notes": ["a | b"], "missing": []}
    text = job_summary(table)
    assert words in text.splitlines()[0]
    assert "<b>" not in text and "a \\| b" in text
    header = next(i for i, t in enumerate(text.splitlines()) if t.startswith("|  | params"))
    assert text.splitlines()[header + 2].count("|") == text.splitlines()[header].count("|")


def test_every_gate_has_a_title_and_a_line() -> None:
    found = judged(released=released(), class_drop=1.0, max_params=1, max_gflops=1.0, max_bytes=1)
    assert set(found) == set(GATE_TITLES)
    text = "\n".join(lines(found))
    assert "gate max_params: 700 (limit 1) MISSED" in text and "10.5 against 10.0 ms" in text
    assert markdown_table(["a"], [["|"]])[2] == "| \\| |"
