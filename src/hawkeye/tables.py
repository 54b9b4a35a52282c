"""Plain text for the terminal: aligned tables in which what was not measured is a dash."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from hawkeye.records import LatencyRecord


def run_table(result: dict[str, Any]) -> str:
    """The table of a report: one line per detector."""
    rows = []
    for row in result["rows"]:
        int8 = "openvino-int8" in row["latency_ms"]  # by its runtimes: a version of a store has a name of its own
        latency = row["latency_ms"].get("openvino-int8" if int8 else "openvino-f32")
        size = row["file_bytes"].get("openvino")
        rows.append({
            "model": row["name"],
            "params M": row["params"] / 1e6 if row["params"] is not None else None,
            "GFLOPs": row["gflops"],
            "mAP@0.5": row["map50"],
            "drop": row["map50_drop"],
            "MB": size / 1e6 if size is not None else None,
            "ms p50": latency["p50"] if latency else None,
        })  # fmt: skip
    return table(rows, ("model", "params M", "GFLOPs", "mAP@0.5", "drop", "MB", "ms p50"), digits=3)


def latency_table(record: LatencyRecord) -> str:
    """One line per model and runtime, in milliseconds."""
    rows = [{"model": r.name, "runtime": r.runtime, "precision": r.precision_executed, "p50": r.network.p50,
             "p95": r.network.p95, "p99": r.network.p99, "frame p50": r.frame.p50} for r in record.rows]  # fmt: skip
    return table(rows, ("model", "runtime", "precision", "p50", "p95", "p99", "frame p50"))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str], digits: int = 2) -> str:
    """Aligned text; what was not measured is a dash."""
    cells = [[number(row.get(column), digits) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    wide = shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 10_000
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
             for line in [list(columns), *cells]]  # fmt: skip
    return "\n".join(line[:wide] for line in lines)


def number(value: object, digits: int) -> str:
    """One cell."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) if len(value) <= 4 else " ".join(map(str, value[:4])) + f" +{len(value) - 4}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def as_json(value: object) -> str:
    """Readable JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)
