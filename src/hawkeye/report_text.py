"""The report in words: the headline, the notes, and report.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hawkeye.gates import GATE_TITLES, VERDICTS, figure
from hawkeye.records import AccuracyRecord, LatencyRow

NOTHING = "–"
TITLES = {
    "original": "original",
    "original+int8": "original + INT8",
    "pruned": "pruned",
    "pruned+int8": "pruned + INT8",
}
RUNTIME_TITLES = {
    "pytorch-fp32": "PyTorch FP32",
    "onnxruntime": "ONNX Runtime",
    "openvino-f32": "OpenVINO FP32",
    "openvino-default": "OpenVINO default",
    "openvino-int8": "OpenVINO INT8",
}
FORMAT_TITLES = {"pytorch": "PyTorch", "onnx": "ONNX", "openvino": "OpenVINO"}


def show(value: float | None, digits: int = 1, scale: float = 1.0) -> str:
    """A number for a reader; a dash where there is none."""
    return NOTHING if value is None else f"{value * scale:.{digits}f}"


def show_drop(row: dict[str, Any]) -> str:
    """`1.3 [0.4, 2.2]`, or a dash; the original is the reference."""
    if row["map50_drop"] is None or row["name"] == "original":
        return NOTHING if row["map50_drop"] is None else "reference"
    ci = row["map50_drop_ci95"]
    return f"{row['map50_drop']:.2f}" + (f" [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else f" [{NOTHING}]")


def show_seconds(seconds: float) -> str:
    """`0.4 s`, `95 s` or `12.5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def subject(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that the report is about: the most compressed one with anything known about it."""
    by_name = {row["name"]: row for row in rows}
    for name in ("pruned+int8", "pruned", "original+int8"):
        row = by_name.get(name)
        if row and (row["map50"] is not None or best_runtime(row) or any(row["file_bytes"].values())):
            return row
    return None


def best_runtime(row: dict[str, Any]) -> str | None:
    """The runtime that a row is meant for: OpenVINO at the row's own precision, where it was timed."""
    runtime = "openvino-int8" if row["name"].endswith("+int8") else "openvino-f32"
    return runtime if row["latency_ms"].get(runtime) else None


def headline(result: dict[str, Any]) -> list[str]:
    """What was gained and what was lost, in sentences that claim no more than the figures do."""
    rows = {row["name"]: row for row in result["rows"]}
    row, original = subject(result["rows"]), rows["original"]
    if row is None:
        return ["No compressed detector has been made or measured in this run yet."]
    sentences = [_gain(row, original), _loss(row, original, result)]
    if row["name"] == "pruned+int8" and "original+int8" in rows:
        sentences.append(_rival(row, rows["original+int8"]))
    sentences.append(_verdict(result))
    return [sentence for sentence in sentences if sentence]


def _gain(row: dict[str, Any], original: dict[str, Any]) -> str:
    parts = []
    runtime = best_runtime(row)
    speed = row["speedup"].get(runtime) if runtime else None
    if runtime and speed is not None:
        before, after = original["latency_ms"]["openvino-f32"]["p50"], row["latency_ms"][runtime]["p50"]
        word = f"{speed:.2f} times as fast as" if speed >= 1 else f"slower than ({speed:.2f} times the speed of)"
        parts.append(f"runs {word} the FP32 original in OpenVINO (median {before:.1f} → {after:.1f} ms)")
    sizes = original["file_bytes"].get("openvino"), row["file_bytes"].get("openvino")
    if sizes[0] and sizes[1]:
        change = 100 * (1 - sizes[1] / sizes[0])
        word = "smaller" if change >= 0 else "larger"
        parts.append(f"takes {abs(change):.0f} % {word} files ({sizes[0] / 1e6:.3g} → {sizes[1] / 1e6:.3g} MB)")
    if row["gflops"] and original["gflops"] and row["name"].startswith("pruned"):
        parts.append(f"needs {100 * row['gflops'] / original['gflops']:.0f} % of its computation")
    if not parts:
        return f"The detector {TITLES[row['name']]} has been made, but its speed and size are not known yet."
    return (
        f"The detector {TITLES[row['name']]} "
        + (", ".join(parts[:-1]) + " and " if parts[1:] else "")
        + parts[-1]
        + "."
    )


def _loss(row: dict[str, Any], original: dict[str, Any], result: dict[str, Any]) -> str:
    drop, ci = row["map50_drop"], row["map50_drop_ci95"]
    if drop is None:
        return "What this costs in accuracy has not been measured."
    word = "loses" if drop >= 0 else "gains"
    images = result["method"]["accuracy"]["images"]
    text = f"It {word} {abs(drop):.2f} points of mAP@0.5 "
    text += f"({original['map50']:.3f} → {row['map50']:.3f} on {images} pictures"
    if ci is None:
        return text + "; how much of that is chance is not known)."
    low, high = (ci[0], ci[1]) if drop >= 0 else (-ci[1], -ci[0])
    text += f"; 95 % confidence interval {low:.2f} to {high:.2f})."
    if ci[0] <= 0 <= ci[1]:
        text += " The interval holds zero: on these pictures the change cannot be told from chance."
    if ci[1] - ci[0] > 3:
        text += " The interval is wide: more pictures would be needed for a sharper answer."
    return text


def _rival(row: dict[str, Any], rival: dict[str, Any]) -> str:
    """INT8 alone is the honest rival: say what pruning adds to it."""
    one, two = best_runtime(row), best_runtime(rival)
    if not one or not two or row["map50"] is None or rival["map50"] is None:
        return ""
    mine, other = row["latency_ms"][one]["p50"], rival["latency_ms"][two]["p50"]
    text = f"INT8 without pruning takes {other:.1f} ms at mAP@0.5 {rival['map50']:.3f}"
    if mine >= other and row["map50"] <= rival["map50"]:
        return text + ": it is as fast and as accurate, so pruning brought nothing here."
    cost = 100 * (rival["map50"] - row["map50"])
    word = f"costs {cost:.2f}" if cost >= 0 else f"brings {-cost:.2f}"
    change = 100 * (1 - mine / other)
    speed = f"saves {change:.0f} % of the time" if change >= 0 else f"takes {-change:.0f} % more time"
    return text + f": pruning {speed} and {word} points against it."


def _verdict(result: dict[str, Any]) -> str:
    missed = [f"{GATE_TITLES[name]} {figure(g['value'])} (limit {figure(g['limit'])})"
              for name, g in result["gates"].items() if g["passed"] is False]  # fmt: skip
    unjudged = [GATE_TITLES[name] for name, g in result["gates"].items() if g["passed"] is None]
    text = f"Missed: {'; '.join(missed)}." if missed else ""
    if unjudged:
        text += f" Could not be judged, which counts as missed: {'; '.join(unjudged)}."
    gate = result["gates"].get("max_drop")
    row = next((r for r in result["rows"] if gate and r["name"] == gate["row"]), None)
    if gate and row and gate["passed"] and row["map50_drop_ci95"] and row["map50_drop_ci95"][1] > gate["limit"]:
        text += f" The limit of {gate['limit']:g} points is kept, but the confidence interval reaches beyond it."
    return text.strip() or ("Every gate is passed." if result["gates"] else "")


def runtime_notes(rows: list[dict[str, Any]], timed: list[LatencyRow], accuracy: list[AccuracyRecord]) -> list[str]:
    """Whether the runtimes agree, what ran at another precision than asked, and where INT8 did not pay."""
    notes = []
    for row in rows:
        # The default hint may compute in bfloat16, so it has no part in the question whether the exports are right.
        values = {r: v["map50"] for r, v in row["accuracy_by_runtime"].items() if r != "openvino-default"}
        if len(values) > 1:
            spread = 100 * (max(values.values()) - min(values.values()))
            names = ", ".join(RUNTIME_TITLES[r] for r in values)
            notes.append(f"{TITLES[row['name']]}: mAP@0.5 differs by {spread:.2f} points between {names}.")
    for item in timed:
        if item.precision_hint == "f32" and "f16" in item.precision_executed:  # f16 or bf16
            notes.append(f"{TITLES.get(item.name, item.name)} in {RUNTIME_TITLES[item.runtime]} was asked for f32 "
                         f"and ran in {item.precision_executed}.")  # fmt: skip
    p50 = {(item.name, item.runtime): item.network.p50 for item in timed}
    for name in ("original", "pruned"):
        before, after = p50.get((name, "onnxruntime")), p50.get((f"{name}+int8", "onnxruntime"))
        if before and after and after >= before:
            notes.append(
                f"ONNX Runtime runs {TITLES[f'{name}+int8']} slower than FP32 here ({before:.1f} → {after:.1f} ms)."
            )
    skipped = max((record.skipped for record in accuracy), default=0)
    if skipped:
        notes.append(f"{skipped} pictures could not be read and were skipped in every evaluation.")
    return notes


def recovery_notes(curve: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Says it where training has found nothing better than what it began with."""
    held_out = [point["held_out"] for point in curve or () if point.get("held_out") is not None]
    if len(held_out) < 2 or min(held_out[1:]) < held_out[0]:
        return []
    return [f"Recovery found no weights that are better on held-out training pictures (loss {held_out[0]:.4f} before, "
            f"{min(held_out[1:]):.4f} at best): those of before were kept. A network as close as this one to its "
            "original may do without (--skip recover), or takes a lower learning rate."]  # fmt: skip


def quantization_notes(stories: dict[str, list[dict[str, Any]]]) -> list[str]:
    """How each INT8 model came about, step by step, as judged on held-out training pictures."""
    return [f"{TITLES[name]} on held-out training pictures, {quantization_step(step)}."
            for name, story in stories.items() for step in story]  # fmt: skip


def quantization_step(step: dict[str, Any]) -> str:
    """One step on the way to INT8 in words."""
    if "kept" in step:
        return f"kept {step['kept']}: {step['why']}"
    parts = [f"{step['step']}: {step['why']}"]
    if "map50" in step:
        drop = f" (drop {step['drop']:.2f} points)" if "drop" in step else ""
        parts.append(f"mAP@0.5 {step['map50']:.3f}{drop}")
    if "judged_drop" in step:
        parts.append(f"drop on {step['judged_pictures']} training pictures {step['judged_drop']:.2f} points")
    if "fidelity" in step and step["step"] != "float":
        parts.append(f"fidelity to float {step['fidelity']:.3f}")
    if "distance" in step:
        parts.append(f"mean score difference from float {step['distance']:.4f}")
    if "latency_ms" in step:
        ratio = f", {step['latency_ratio']:.2f} times calibration's" if "latency_ratio" in step else ""
        parts.append(f"{step['latency_ms']:.1f} ms{ratio}")
    if step.get("float_layers"):
        parts.append(f"in float: {', '.join(step['float_layers'])}")
    return "; ".join(parts)


def one_line(text: object) -> str:
    """Text that cannot break a Markdown table or start HTML."""
    cleaned = " ".join(str(text).split())
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        cleaned = cleaned.replace(char, entity)
    return cleaned


def markdown(result: dict[str, Any]) -> str:
    """report.md."""
    rows = result["rows"]
    runtimes = [r for r in RUNTIME_TITLES if any(r in row["latency_ms"] for row in rows)]
    formats = [f for f in FORMAT_TITLES if any(f in row["file_bytes"] for row in rows)]
    lines = ["# Compression report", "", " ".join(one_line(sentence) for sentence in result["headline"]), ""]
    lines += markdown_table(
        ["", "params, M", "GFLOPs", "mAP@0.5", "mAP@0.5:0.95", "drop, points [95 % CI]"]
        + [f"{FORMAT_TITLES[f]}, MB" for f in formats],
        [
            [TITLES[row["name"]], show(row["params"], 2, 1e-6), show(row["gflops"], 2), show(row["map50"], 3),
             show(row["map50_95"], 3), show_drop(row), *(show(row["file_bytes"].get(f), 2, 1e-6) for f in formats)]
            for row in rows
        ],
    )  # fmt: skip
    lines += ["Latency of the network alone at batch 1, ms: p50 / p95 / p99 (times the speed of the original in OpenVINO FP32).", ""]  # fmt: skip # noqa: E501
    lines += markdown_table(
        ["", *(RUNTIME_TITLES[r] for r in runtimes)],
        [[TITLES[row["name"]], *(_latency(row, r) for r in runtimes)] for row in rows],
    )
    lines += gate_table(result)
    for title, items in (("Notes", result["notes"]), ("Missing", result["missing"])):
        if items:
            lines += [f"## {title}", "", *(f"- {one_line(item)}" for item in items), ""]
    lines += ["## Method and machine", "", *(f"- {one_line(k)}: {one_line(v)}" for k, v in method_lines(result)), ""]
    return "\n".join(lines)


def gate_table(result: dict[str, Any]) -> list[str]:
    """The gates as lines of Markdown; none where there is no gate."""
    if not result["gates"]:
        return []
    return markdown_table(
        ["gate", "of", "limit", "value", "", ""],
        [[GATE_TITLES[name], TITLES[g["row"]], figure(g["limit"]), figure(g["value"]), VERDICTS[g["passed"]],
          g["detail"] or ""]
         for name, g in result["gates"].items()],
    )  # fmt: skip


def markdown_table(header: list[str], body: list[list[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(header) - 1)
    return ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(map(one_line, r)) + " |" for r in body), ""]


def _latency(row: dict[str, Any], runtime: str) -> str:
    value = row["latency_ms"].get(runtime)
    if value is None:
        return NOTHING
    speed = row["speedup"].get(runtime)
    return f"{value['p50']:.1f} / {value['p95']:.1f} / {value['p99']:.1f}" + (f" ({speed:.2f}×)" if speed else "")


def method_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """How and where the figures came about, as pairs of title and text."""
    method, machine, lines = result["method"], result["environment"] or {}, []
    if accuracy := method["accuracy"]:
        lines.append(("Data set", f"{accuracy['dataset']}, split {accuracy['split']}, {accuracy['images']} pictures"))
        evaluator = f"input {accuracy['imgsz']} px, confidence ≥ {accuracy['conf']:g}, NMS IoU {accuracy['iou']:g}, "
        evaluator += f"at most {accuracy['max_det']} boxes, {_threads(accuracy['threads'])}"
        lines.append(("Evaluator", evaluator))
        lines.append(("Accuracy", "measured on the exported OpenVINO model; the drop is against the original in "
                      "OpenVINO FP32 on the same pictures, its interval a paired bootstrap over pictures"))  # fmt: skip
    if latency := method["latency"]:
        height, width = latency["frame_hw"]
        benchmark = f"batch {latency['batch']}, input {latency['imgsz']} px, {_threads(latency['threads'])}, "
        benchmark += f"{latency['runs']} timed frames per row in turns, frames of {width} × {height} px"
        lines.append(("Benchmark", benchmark))
        groups: dict[str, list[str]] = {}
        for p in latency["precision"]:
            key = f"{RUNTIME_TITLES[p['runtime']]} (hint {p['hint']}, ran in {p['executed']})"
            groups.setdefault(key, []).append(TITLES.get(p["name"], p["name"]))
        lines.append(("Precision", "; ".join(f"{key}: {', '.join(names)}" for key, names in groups.items())))
    lines.append(("GFLOPs", method["gflops"]))
    if method["prune"]:
        lines.append(("Pruning", f"method {method['prune']}, training budget "
                      f"{show_seconds(method['recover_budget_s'])}, seed {method['seed']}"))  # fmt: skip
    if machine:
        memory = machine.get("memory_bytes")
        lines.append(("Machine", f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores, "
                      f"{', '.join(machine.get('instruction_sets', [])) or 'instruction sets unknown'}"
                      + (f", {memory / 2**30:.0f} GiB" if memory else "")))  # fmt: skip
        lines.append(("System", f"{machine.get('os', 'unknown')}, Python {machine.get('python', 'unknown')}"))
        lines.append(("Versions", ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items())))
    if method["started"]:
        lines.append(("Started", str(method["started"])))
    return lines


def _threads(count: int) -> str:
    return "all cores" if count == 0 else f"{count} thread{'s' if count > 1 else ''}"
