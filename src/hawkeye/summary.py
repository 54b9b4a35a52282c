"""A run's outcome for continuous integration: its gates as JUnit XML, and a job summary in Markdown."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from hawkeye.gates import GATE_TITLES, VERDICTS, figure
from hawkeye.report_text import (
    NOTHING,
    TITLES,
    best_runtime,
    gate_table,
    markdown_table,
    one_line,
    show,
    show_drop,
)


def junit_xml(table: dict[str, Any], *, name: str) -> bytes:
    """One test case for each gate: a miss is a failure, what could not be judged an error.

    The elements are those that GitHub, GitLab and Jenkins read; there is no official schema.

    Args:
        table: content of report.json.
        name: of the run.
    """
    gates = table["gates"]
    missed = sum(gate["passed"] is False for gate in gates.values())
    unjudged = sum(gate["passed"] is None for gate in gates.values())
    counts = {"tests": str(len(gates)), "failures": str(missed), "errors": str(unjudged)}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"hawkeye gates of {_text(name)}", **counts})
    for key, gate in gates.items():
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"hawkeye.gates.{gate['row']}", "name": key})
        told = f"{GATE_TITLES[key]}: {figure(gate['value'])}, limit {figure(gate['limit'])}"
        if gate["passed"] is True:
            ElementTree.SubElement(case, "system-out").text = _text(told)
            continue
        kind = "failure" if gate["passed"] is False else "error"
        problem = ElementTree.SubElement(case, kind, {"message": f"{_text(told)}: {VERDICTS[gate['passed']]}"})
        problem.text = _text(gate["detail"] or "")
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def job_summary(table: dict[str, Any]) -> str:
    """Verdict, gates and the table's main columns, as the summary of a CI job."""
    passed = all(gate["passed"] is True for gate in table["gates"].values())
    lines = [f"## Hawkeye: {'every gate is passed' if passed else 'a gate is missed'}", ""]
    if not table["gates"]:
        lines[0] = "## Hawkeye: no gate was asked for"
    lines += [" ".join(one_line(sentence) for sentence in table["headline"]), "", *gate_table(table)]
    lines += markdown_table(
        ["", "params, M", "GFLOPs", "mAP@0.5", "drop, points [95 % CI]", "OpenVINO, MB", "p50, ms"],
        [[TITLES[row["name"]], show(row["params"], 2, 1e-6), show(row["gflops"], 2), show(row["map50"], 3),
          show_drop(row), show(row["file_bytes"].get("openvino"), 2, 1e-6), _p50(row)] for row in table["rows"]],
    )  # fmt: skip
    for title, items in (("Notes", table["notes"]), ("Missing", table["missing"])):
        if items:
            lines += [f"<details><summary>{title}</summary>", "", *(f"- {one_line(i)}" for i in items), "", "</details>", ""]  # fmt: skip # noqa: E501
    return "\n".join(lines)


def _p50(row: dict[str, Any]) -> str:
    runtime = best_runtime(row)
    return show(row["latency_ms"][runtime]["p50"], 1) if runtime else NOTHING


def _text(value: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(char for char in value if char >= " " or char in "\t\n")
