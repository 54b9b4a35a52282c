"""report.html: one page with everything inside, made from what report.json holds and the run's pictures.

Nothing is loaded from anywhere and nothing runs. Class names, file names and layer names come from strangers: every
text is escaped, and the page's own policy forbids scripts and requests as a second wall.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hawkeye import report_plots
from hawkeye.gates import GATE_TITLES, figure
from hawkeye.report_text import (
    FORMAT_TITLES,
    NOTHING,
    RUNTIME_TITLES,
    TITLES,
    best_runtime,
    method_lines,
    show,
    show_drop,
    show_seconds,
    subject,
)

MAX_PAIRS = 12  # pictures are stored inside the page, so their number is bounded
Picture = tuple[str, bytes, bytes]  # stem, original.jpg, compressed.jpg

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f8;--card:#fff;--ink:#1a1f26;--soft:#56616d;--line:#d8dde3;--accent:#0b6e99;
--second:#b4560a;--good:#17713f;--bad:#b42318;--warn:#8a5a00;--s0:#6b7280;--s1:#b4560a;--s2:#7c4dbe;--s3:#0b6e99}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--card:#1b2128;--ink:#e8ecf0;--soft:#a3aeb9;--line:#38424d;
--accent:#58b7e0;--second:#f0a15a;--good:#5cc98a;--bad:#ff8a7d;--warn:#e6b450;--s0:#a3aeb9;--s1:#f0a15a;--s2:#b79af0;
--s3:#58b7e0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 8px}
h2{font-size:1.1rem;margin:0 0 10px}
.lead{font-size:1.22rem;line-height:1.45;max-width:66ch;margin:0 0 20px}
.lead p{margin:0 0 .5em}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0 0 16px;min-width:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 16px}
.tiles .card{margin:0;padding:12px 14px}
.tiles b{display:block;font-size:1.5rem;line-height:1.2}
.tiles span,.soft{color:var(--soft);font-size:.86rem}
.two{display:grid;gap:0 16px}
@media(min-width:900px){.two{grid-template-columns:1fr 1fr;align-items:start}}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:5px 8px;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{font-size:.86rem;vertical-align:bottom}
tbody th{font-weight:400;color:var(--soft);overflow-wrap:anywhere}
.matrix tbody th{overflow-wrap:normal}
.gates td{white-space:nowrap}.gates td:last-child{white-space:normal}
tr.group th{padding-top:12px;font-weight:600;color:var(--ink);text-align:left;border-bottom-color:var(--soft)}
.sub{display:block;color:var(--soft);font-size:.8rem;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
svg{display:block;width:100%;height:auto;max-width:620px;margin:0 auto}
svg text{font-family:inherit!important}
.bar{position:relative;display:block;height:10px;min-width:70px;background:linear-gradient(var(--line),var(--line))
center/1px 100% no-repeat}
.bar i{position:absolute;top:0;height:100%;border-radius:2px;background:var(--good)}
.bar i.bad{background:var(--bad)}
td.wide{width:26%}th[scope=col]{width:17.5%}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:8px;margin:0 0 14px}
figure{margin:0}
figcaption{font-size:.82rem;color:var(--soft);overflow-wrap:anywhere}
.pair img{display:block;width:100%;height:auto;border-radius:6px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
ul{margin:0;padding-left:1.2em;font-size:.92rem}
summary{cursor:pointer;color:var(--accent);font-size:.92rem;padding:6px 0}
@media(max-width:560px){main{padding:16px 10px 32px}.card{padding:12px 10px}.lead{font-size:1.08rem}
table{font-size:.8rem}th,td{padding:4px 3px}thead th{font-size:.76rem}.sub{font-size:.7rem;white-space:normal}
.pair{grid-template-columns:1fr}dl{grid-template-columns:1fr;gap:0}dd{margin:0 0 8px}}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def pictures(folder: Path) -> list[Picture]:
    """The first pairs <stem>-original.jpg, <stem>-compressed.jpg of a folder; a half of a pair is left out."""
    pairs: list[Picture] = []
    for first in sorted(folder.glob("*-original.jpg")):
        stem = first.name.removesuffix("-original.jpg")
        second = first.with_name(f"{stem}-compressed.jpg")
        if second.is_file() and len(pairs) < MAX_PAIRS:
            pairs.append((stem, first.read_bytes(), second.read_bytes()))
    return pairs


def render(result: dict[str, Any], pairs: Sequence[Picture]) -> str:
    """The page."""
    accuracy = result["method"]["accuracy"]
    title = "Hawkeye compression report" + (f" · {accuracy['dataset']}" if accuracy else "")
    parts = [
        f'<div class="lead">{"".join(f"<p>{escape(s)}</p>" for s in result["headline"])}</div>',
        _tiles(result),
        _card("The table", _table(result["rows"])),
        '<div class="two">',
        _card("Gates", _gates(result)),
        _card("Missing", _list(result["missing"])) if result["missing"] else "",
        _card("Notes", _list(result["notes"])) if result["notes"] else "",
        "</div>",
        '<div class="two"><div>',
        _plot("Accuracy over latency", report_plots.accuracy_over_latency(result["rows"]),
              "No model has both an accuracy and a latency yet."),
        _plot("Recovery", report_plots.curves(result["curve"]), "Nothing was trained in this run."),
        "</div><div>",
        _card("Classes", _classes(result["rows"])),
        "</div></div>",
        _card("The same pictures", _pairs(pairs)),
        '<div class="two">',
        _plot("Widths of the layers", report_plots.widths(result["widths"]), "Nothing was pruned in this run."),
        "<div>",
        _card("Method and machine",
              f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in method_lines(result))}</dl>"),
        _card("Time", _stages(result["stages"])),
        "</div></div>",
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>'


def _plot(title: str, svg: str | None, otherwise: str) -> str:
    return _card(title, svg or f'<p class="soft">{escape(otherwise)}</p>')


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _tiles(result: dict[str, Any]) -> str:
    """The four figures that people ask for first; a tile without a figure is left out."""
    original, row = result["rows"][0], subject(result["rows"])
    if row is None:
        return ""
    tiles: list[tuple[str, str]] = []
    runtime = best_runtime(row)
    if runtime and row["speedup"].get(runtime):
        tiles.append((f"{row['speedup'][runtime]:.2f}×", "speed of the FP32 original, both in OpenVINO"))
    if row["map50_drop"] is not None:
        ci = row["map50_drop_ci95"]
        interval = f" (95 % CI {-ci[1]:+.2f} to {-ci[0]:+.2f})" if ci else ""
        tiles.append((f"{-row['map50_drop']:+.2f}", f"points of mAP@0.5{interval}"))
    sizes = original["file_bytes"].get("openvino"), row["file_bytes"].get("openvino")
    if sizes[0] and sizes[1]:
        tiles.append((f"{100 * (sizes[1] / sizes[0] - 1):+.0f} %", "size of the OpenVINO files"))
    if row["gflops"] and original["gflops"]:
        tiles.append((f"{100 * (row['gflops'] / original['gflops'] - 1):+.0f} %", "GFLOPs (2 × MACs)"))
    text = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{text.replace("-", "−")}</div>' if tiles else ""


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Models as columns, so that the table fits a phone."""

    def line(title: str, cells: Sequence[str]) -> str:
        return f"<tr><th scope=row>{escape(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    def group(title: str) -> str:
        return f'<tr class="group"><th colspan="{len(rows) + 1}">{escape(title)}</th></tr>'

    def latency(row: dict[str, Any], key: str, runtime: str) -> str:
        value = row[key].get(runtime)
        if value is None:
            return NOTHING
        speed = row["speedup"].get(runtime) if key == "latency_ms" else None
        return (f'{value["p50"]:.1f}<span class="sub">{value["p95"]:.1f} · {value["p99"]:.1f}</span>'
                + (f'<span class="sub">{speed:.2f}×</span>' if speed else ""))  # fmt: skip

    def drop(row: dict[str, Any]) -> str:
        value, _, interval = show_drop(row).partition(" ")
        return escape(value) + (f'<span class="sub">{escape(interval)}</span>' if interval else "")

    body = [
        line("Parameters, M", [show(r["params"], 2, 1e-6) for r in rows]),
        line("GFLOPs", [show(r["gflops"], 2) for r in rows]),
        line("mAP@0.5", [show(r["map50"], 3) for r in rows]),
        line("mAP@0.5:0.95", [show(r["map50_95"], 3) for r in rows]),
        line("Points of mAP@0.5 lost [95 % CI]", [drop(r) for r in rows]),
        group("File, MB"),
    ]
    for fmt in FORMAT_TITLES:
        if any(fmt in row["file_bytes"] for row in rows):
            body.append(line(FORMAT_TITLES[fmt], [show(r["file_bytes"].get(fmt), 2, 1e-6) for r in rows]))
    blocks = (("latency_ms", "Network alone, ms: p50, then p95 · p99, then times the speed of OpenVINO FP32"),
              ("frame_latency_ms", "Whole frame, ms: p50, then p95 · p99"))  # fmt: skip
    for key, title in blocks:
        body.append(group(title))
        for runtime in RUNTIME_TITLES:
            if any(runtime in row[key] for row in rows):
                body.append(line(RUNTIME_TITLES[runtime], [latency(r, key, runtime) for r in rows]))
    head = "".join(f"<th scope=col>{escape(TITLES[row['name']])}</th>" for row in rows)
    table = f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _gates(result: dict[str, Any]) -> str:
    if not result["gates"]:
        return '<p class="soft">This run has no gates.</p>'
    words = {True: ("good", "✓ passed"), False: ("bad", "✗ missed"), None: ("warn", "? not judged: counts as missed")}
    body = ""
    for name, gate in result["gates"].items():
        kind, word = words[gate["passed"]]
        body += (f"<tr><th scope=row>{escape(GATE_TITLES[name])}, {escape(TITLES[gate['row']])}</th>"
                 f"<td>{figure(gate['value'])}</td><td>≤ {figure(gate['limit'])}</td>"
                 f'<td class="{kind}">{word}</td><td>{escape(gate["detail"] or "")}</td></tr>')  # fmt: skip
    return f'<div class="scroll"><table class="gates"><tbody>{body}</tbody></table></div>'


def _classes(rows: Sequence[dict[str, Any]]) -> str:
    """Change of each class against the original, the largest loss first."""
    row = subject(rows)
    classes = [c for c in (row["per_class"] or () if row else ()) if c["ap50_change"] is not None]
    if row is None or not classes:
        return '<p class="soft">Not measured.</p>'
    classes.sort(key=lambda c: (c["ap50_change"], c["name"]))
    reach = max(abs(c["ap50_change"]) for c in classes) or 1.0
    absent = len(row["per_class"]) - len(classes)
    lines = [_class_line(c, reach) for c in classes]
    head = "<thead><tr><th>class</th><th>objects</th><th>AP@0.5</th><th>change</th><td></td></tr></thead>"

    def table(part: Sequence[str]) -> str:
        return f'<div class="scroll"><table>{head}<tbody>{"".join(part)}</tbody></table></div>'

    shown = lines if len(lines) <= 20 else lines[:10] + lines[-6:]
    text = f'<p class="soft">{escape(TITLES[row["name"]])} against the original, points of AP@0.5. '
    text += "A class with few objects moves by chance."
    text += f" Classes without an object in these pictures: {absent}." if absent else ""
    text += " The ten largest losses and the six largest gains:</p>" if len(shown) < len(lines) else "</p>"
    rest = (
        f"<details><summary>All {len(lines)} classes</summary>{table(lines)}</details>"
        if len(shown) < len(lines)
        else ""
    )
    return text + table(shown) + rest


def _class_line(item: dict[str, Any], reach: float) -> str:
    change = item["ap50_change"]
    width = 50 * abs(change) / reach
    side = f"left:{50 - width:.1f}%" if change < 0 else "left:50%"
    bar = f'<span class="bar"><i class="{"bad" if change < 0 else ""}" style="{side};width:{width:.1f}%"></i></span>'
    return (f"<tr><th scope=row>{escape(item['name'])}</th><td>{item['instances']}</td><td>{show(item['ap50'], 3)}</td>"
            f'<td>{change:+.1f}</td><td class="wide">{bar}</td></tr>')  # fmt: skip


def _pairs(pairs: Sequence[Picture]) -> str:
    if not pairs:
        return '<p class="soft">This run holds no pictures.</p>'
    text = ""
    for stem, *both in pairs:
        text += '<div class="pair">'
        for title, content in zip(("original", "compressed"), both, strict=True):
            source = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
            label = f"{title} · {stem}"
            text += (f'<figure><img loading="lazy" alt="{escape(label)}" src="{source}">'
                     f"<figcaption>{escape(label)}</figcaption></figure>")  # fmt: skip
        text += "</div>"
    return text


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    if not stages:
        return '<p class="soft">No stage is done.</p>'
    body = "".join(
        f"<tr><th scope=row>{escape(s['stage'])}: {escape(TITLES.get(s['name'], s['name']))}</th>"
        f"<td>{show_seconds(s['seconds'])}</td></tr>" for s in stages
    )  # fmt: skip
    total = show_seconds(sum(s["seconds"] for s in stages))
    return f"<table><tbody>{body}<tr><th scope=row>together</th><td>{total}</td></tr></tbody></table>"
