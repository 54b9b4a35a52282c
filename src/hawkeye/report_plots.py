"""The report's plots as inline SVG; the only file that imports Matplotlib.

Colours are CSS variables of the page, so that one drawing serves light and dark. The same data give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hawkeye.errors import MissingExtraError
from hawkeye.report_text import RUNTIME_TITLES, TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins that Matplotlib writes as colours; each becomes a variable of the page's style sheet.
_INK, _SOFT, _LINE, _ACCENT, _SECOND = "#010101", "#010102", "#010103", "#010104", "#010105"
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _ACCENT: "accent", _SECOND: "second"}
_MODELS = {"original": "#010201", "original+int8": "#010202", "pruned": "#010203", "pruned+int8": "#010204"}
_VARIABLES |= {colour: f"s{i}" for i, colour in enumerate(_MODELS.values())}
_MARKERS = {"pytorch-fp32": "s", "onnxruntime": "^", "openvino-f32": "o", "openvino-default": "D", "openvino-int8": "P"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it scales, copies and is read aloud
    "text.parse_math": False,  # class and layer names are not formulas
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "text.color": _INK, "axes.labelcolor": _SOFT, "xtick.color": _SOFT, "ytick.color": _SOFT,
    "axes.edgecolor": _LINE, "grid.color": _LINE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip
# What the variables are where a drawing stands alone.
_COLOURS = {"ink": "#1b1f24", "soft": "#57606a", "line": "#d0d7de", "accent": "#0969da", "second": "#bc4c00",
            "s0": "#57606a", "s1": "#8250df", "s2": "#1a7f37", "s3": "#0969da"}  # fmt: skip
_WIDTH = 5.4  # inches; about as wide as a phone's screen in CSS pixels, so that text stays readable there


def require() -> None:
    """Raise MissingExtraError where Matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("report", "matplotlib") from None


def _draw(name: str, height: float, title: str, paint: Callable[[Figure], None]) -> str:
    """Inline SVG of one figure; `name` keeps its ids apart from those of the other plots on the page."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    # A context would also bring back the backend, so only what is set here is set.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=none)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def accuracy_over_latency(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Every row in every runtime: mAP@0.5 over the median latency; None where no row has both.

    A runtime without an accuracy of its own is drawn at its row's accuracy.
    """
    points = [
        (row["name"], runtime, value["p50"], row["accuracy_by_runtime"].get(runtime, {}).get("map50", row["map50"]))
        for row in rows for runtime, value in row["latency_ms"].items() if value
    ]  # fmt: skip
    points = [point for point in points if point[3] is not None]
    if not points:
        return None

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

        axes = figure.add_subplot()
        for name, runtime, x, y in points:
            axes.plot(x, y, _MARKERS[runtime], color=_MODELS[name], markersize=7.5, alpha=0.9, markeredgewidth=0)
        low, high = min(p[2] for p in points), max(p[2] for p in points)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.25)
        steps = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 3, 5, 7)]
        axes.set_xticks([s for s in steps if low / 1.25 <= s <= high * 1.25])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        spread = max(max(p[3] for p in points) - min(p[3] for p in points), 0.01)
        axes.set_ylim(min(p[3] for p in points) - 0.15 * spread, max(p[3] for p in points) + 0.15 * spread)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("median latency of the network, ms (logarithmic; left is faster)")
        axes.set_ylabel("mAP@0.5")
        names = [name for name in _MODELS if any(p[0] == name for p in points)]
        runtimes = [runtime for runtime in _MARKERS if any(p[1] == runtime for p in points)]
        handles = [Line2D([], [], marker="o", ls="", color=_MODELS[n], label=TITLES[n]) for n in names]
        handles += [Line2D([], [], marker=_MARKERS[r], ls="", color=_SOFT, label=RUNTIME_TITLES[r]) for r in runtimes]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1.0)

    return _draw("latency", 4.1, "mAP@0.5 over median latency, every model in every runtime", paint)


def widths(layers: Mapping[str, Sequence[int]] | None) -> str | None:
    """Channels of every layer before and after pruning; None where nothing was pruned."""
    if not layers:
        return None
    names = list(layers)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(names))
        axes.barh(places, [layers[n][0] for n in names], height=0.78, color=_LINE, label="before")
        axes.barh(places, [layers[n][1] for n in names], height=0.5, color=_ACCENT, label="after")
        top = max(layers[n][0] for n in names)
        for place, name in enumerate(names):
            before, after = layers[name]
            text = f"{before}" if before == after else f"{before} → {after}"
            axes.text(before + 0.01 * top, place, text, va="center", fontsize=8, color=_SOFT)
        axes.set_yticks(places, [n if len(n) <= 32 else f"…{n[-31:]}" for n in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, top * 1.14)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("channels")
        figure.legend(loc="outside upper right", ncols=2)

    return _draw("widths", 0.9 + 0.165 * len(names), "Channels of every layer before and after pruning", paint)


def curves(curve: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Loss and score over the steps of recovery; None where nothing was trained."""
    series = {
        key: [(p["step"], p[key]) for p in curve or () if p.get(key) is not None and p.get("step") is not None]
        for key in ("loss", "held_out", "agreement", "map50")
    }
    series = {key: values for key, values in series.items() if values}
    if not series:
        return None
    titles = {
        "loss": "loss",
        "held_out": "loss on held-out\ntraining pictures",
        "agreement": "agreement with\nthe original",
        "map50": "mAP@0.5 on held-out\ntraining pictures",
    }

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(series), 1, sharex=True, squeeze=False)
        for axes, (key, values) in zip(grid[:, 0], series.items(), strict=True):
            steps, heights = zip(*values, strict=True)
            marker = "o" if len(values) <= 40 else ""
            axes.plot(steps, heights, marker=marker, ms=3.5, lw=1.6, color=_ACCENT if key == "loss" else _SECOND)
            axes.set_ylabel(titles[key])
        grid[-1, 0].set_xlabel("training step")

    return _draw("curves", 0.8 + 1.5 * len(series), "Recovery: loss and score over training steps", paint)


def frontier(rows: Sequence[Mapping[str, Any]], fp32_ms: float, fp32_map50: float) -> str:
    """mAP@0.5 over latency: this package's detectors and the stock ones they have to beat, in INT8."""
    kinds = {
        "stock": ("original in INT8, by input size", "original+int8", "o"),
        "smaller": ("smaller detector in INT8, by input size", "original", "s"),
        "ours": ("pruned and recovered, in INT8", "pruned+int8", "P"),
    }

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.add_subplot()
        axes.plot([fp32_ms], [fp32_map50], "D", color=_INK, label="original in FP32")
        for kind, (label, name, marker) in kinds.items():
            points = sorted((row["ms"], row["map50"], row["imgsz"]) for row in rows if row["kind"] == kind)
            if points:
                axes.plot(
                    [p[0] for p in points], [p[1] for p in points], marker=marker, color=_MODELS[name], label=label
                )
                # The curves lie close together: sizes above one, below the others.
                place, side = ((-4, 4), "right") if kind == "ours" else ((4, -10), "left")
                for x, y, size in points:
                    axes.annotate(str(size), (x, y), place, textcoords="offset points", fontsize=7, color=_SOFT,
                                  ha=side)  # fmt: skip
        axes.set_xscale("log")  # equal ratios of speed are equally far apart
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("median latency, ms (left is faster)")
        axes.set_ylabel("mAP@0.5")
        figure.legend(loc="outside lower center", ncols=2)

    return _draw("frontier", 4.4, "mAP@0.5 over latency, beside the stock detectors", paint)


def sweep(rows: Sequence[Mapping[str, Any]]) -> str:
    """mAP@0.5 over latency of the trials of a sweep, and the front that none of them beats as a line."""
    points = [row for row in rows if row["ms"] is not None and row["map50"] is not None]
    best = sorted((row for row in points if row["front"]), key=lambda row: row["ms"])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([r["ms"] for r in points], [r["map50"] for r in points], "o", color=_SOFT, label="trials")
        axes.plot([r["ms"] for r in best], [r["map50"] for r in best], "o-", color=_ACCENT, label="front")
        for row in best:
            axes.annotate(row["label"], (row["ms"], row["map50"]), (4, -9), textcoords="offset points", fontsize=7,
                          color=_INK)  # fmt: skip
        axes.set_xlabel("median latency of the network, ms (left is faster)")
        axes.set_ylabel("mAP@0.5")
        figure.legend(loc="outside lower center", ncols=2)

    return _draw("sweep", 4.4, "mAP@0.5 over latency of all trials, and their front", paint)


def allocation(rows: Sequence[Mapping[str, Any]]) -> str:
    """mAP@0.5 of networks of one latency whose widths were chosen in several ways, before and after training."""
    places = range(len(rows), 0, -1)  # the first on top

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import FixedLocator

        axes = figure.add_subplot()
        for place, row in zip(places, rows, strict=True):
            axes.plot([row["raw"], row["after"]], [place, place], "-", color=_LINE)
        axes.plot([row["raw"] for row in rows], places, "o", color=_SOFT, label="as pruned")
        axes.plot([row["after"] for row in rows], places, "o", color=_ACCENT, label="trained")
        axes.yaxis.set_major_locator(FixedLocator(list(places)))
        axes.set_yticklabels([row["way"] for row in rows])
        axes.set_xlabel("mAP@0.5")
        axes.set_ylabel("widths by")
        figure.legend(loc="outside lower center", ncols=2)

    return _draw("allocation", 1.4 + 0.35 * len(rows), "mAP@0.5 at equal latency, by how widths are chosen", paint)


def alone(svg: str) -> str:
    """A drawing of the report's as a file of its own: with colours, size and background."""
    svg = re.sub(r"var\(--(\w+)\)", lambda found: _COLOURS[found[1]], svg)
    return svg.replace("<svg ", '<svg style="background:#ffffff;font-family:sans-serif" ', 1)
