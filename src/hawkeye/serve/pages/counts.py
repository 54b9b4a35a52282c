"""Counts over time: any range, spans from seconds to days, gaps shown as gaps, and export."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from hawkeye.serve import export
from hawkeye.serve.pages.layout import Site, card, empty, heading, number, set_html, set_text, table, table_html
from hawkeye.serve.schemas import CountRow

_RANGES = {"5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
_BUCKETS = (1, 10, 60, 300, 900, 3600, 21_600, 86_400)
_POINTS = 400  # of a series; more cannot be told apart on a screen
_MOST_POINTS = 3000
_SERIES = 8  # classes that are drawn; the table has all
_EVERY_S = 10.0
_ASK_S = 5.0
_PICTURE = ("seen", "present_mean", "present_max")
_LINE = ("in", "out")
_ZONE = ("enter", "exit", "occupancy_mean", "occupancy_max")
_ADDED = frozenset({"in", "out", "enter", "exit", "seen"})  # measures that are summed; the others are levels
_COLOURS = ["#2f8fc4", "#e08a2e", "#3fa673", "#9a6dd7", "#d35d6e", "#8f9b2f", "#3bb5b5", "#c26bb0"]
_INK = "getComputedStyle(document.body).getPropertyValue('--soft').trim()"
_GRID = "getComputedStyle(document.body).getPropertyValue('--line').trim()"
_WHEN = "(e) => emit(e.target.value ? new Date(e.target.value).getTime() / 1000 : null)"


async def build(site: Site) -> None:
    """The page."""
    done, counted = await site.attempt("viewer", site.service.store.counted)
    Counts(site, counted if done else {})


class Counts:
    """The controls, the chart and the table below it.

    Args:
        counted: what there are counts of, see `Store.counted`.
    """

    def __init__(self, site: Site, counted: Mapping[str, Mapping[str, str]]) -> None:
        t, self.site, self.counted = site.t, site, counted
        self.custom: dict[str, float | None] = {"from": None, "to": None}
        heading(t("counts.title"), 1).style("margin-bottom: 14px")
        present = [info.name for info in site.sources()]
        sources = {name: name for name in present} | self._removed(filter(site.sees, counted), present)
        if not sources:
            empty(t("counts.none"), t("counts.none.how"))
            return
        with card(), ui.element("div").classes("hk-bar").style("margin: 0"):
            self.source = ui.select(
                sources, value=next(iter(sources)), label=t("counts.source"), on_change=self._source_changed
            )
            self.where = ui.select({"": t("whole_picture")}, value="", label=t("counts.where"),
                                   on_change=self._where_changed)  # fmt: skip
            self.measure = ui.select({}, label=t("counts.measure"), on_change=self.refresh)
            ranges = {key: t(f"counts.unit.{key[-1]}", n=key[:-1]) for key in _RANGES}
            self.range = ui.select({**ranges, "": t("counts.custom")}, value="1h", label=t("counts.range"),
                                   on_change=self._range_changed)  # fmt: skip
            buckets = {size: _size(site, size) for size in _BUCKETS}
            self.bucket = ui.select({0: t("counts.auto"), **buckets}, value=0, label=t("counts.bucket"),
                                    on_change=self.refresh)  # fmt: skip
            for select in (self.source, self.where, self.measure, self.range, self.bucket):
                select.props("outlined dense").classes("hk-field")
            with ui.element("div").classes("hk-row") as self.dates:
                for key in ("from", "to"):
                    field = ui.input(t(f"counts.{key}")).props("outlined dense type=datetime-local stack-label")
                    field.on("change", partial(self._date, key), js_handler=_WHEN)
            self.dates.set_visibility(False)
            self.live = ui.checkbox(t("counts.live"), value=True)
        with card():
            self.note = ui.label().classes("hk-soft").props("role=status")
            self.chart = ui.echart(_options([], [], bars=False)).classes("hk-chart")
            self.chart.props(f'role=img aria-label="{t("counts.chart")}"')
        with ui.element("div").classes("hk-side"):
            with card():
                self.table = table()
            with card(t("counts.export")), ui.element("div").classes("hk-row"):
                for kind in export.FORMATS:
                    label = "Parquet" if kind == "parquet" else kind.upper()
                    ui.button(label, on_click=partial(self._export, kind)).props(
                        "outline dense no-caps padding='4px 12px'"
                    )
        self._source_changed()
        site.every(_EVERY_S, self._tick)

    # -- controls -----------------------------------------------------------------------------------------------------

    def _removed(self, names: Iterable[str], present: Container[str]) -> dict[str, str]:
        return {name: self.site.t("counts.removed", name=name) for name in names if name not in present}

    def _present(self) -> dict[str, str]:
        """Kinds of the lines and zones that the source has now."""
        return {rule.name: rule.kind for info in self.site.sources() if info.name == self.source.value
                for rule in info.rules}  # fmt: skip

    def _source_changed(self) -> None:
        present = self._present()
        rules = {name: name for name in present} | self._removed(self.counted.get(self.source.value, ()), present)
        where = self.where.value if self.where.value in rules else ""
        self.where.set_options({"": self.site.t("whole_picture"), **rules}, value=where)
        self._where_changed()

    def _where_changed(self) -> None:
        kind = {**self.counted.get(self.source.value, {}), **self._present()}.get(self.where.value or "")
        measures = _LINE if kind == "line" else _ZONE if kind == "zone" else _PICTURE
        value = self.measure.value if self.measure.value in measures else measures[0]
        self.measure.set_options({name: self.site.t(f"measure.{name}") for name in measures}, value=value)
        ui.timer(0, self.refresh, once=True)

    def _range_changed(self) -> None:
        self.dates.set_visibility(not self.range.value)
        ui.timer(0, self.refresh, once=True)

    async def _date(self, key: str, event: Any) -> None:
        self.custom[key] = float(event.args) if isinstance(event.args, int | float) else None
        await self.refresh()

    async def _tick(self) -> None:
        if self.live.value and self.range.value:
            await self.refresh()

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _span(self) -> tuple[float, float, int] | None:
        """Start, end and length of the spans in seconds; None while the range is not complete."""
        now = time.time()
        if self.range.value:
            start, end = now - _RANGES[self.range.value], now
        else:
            first, last = self.custom["from"], self.custom["to"]
            if first is None:
                return None
            start, end = first, now if last is None else last
        if end <= start:
            set_text(self.note, self.site.t("counts.order"))
            return None
        wanted = int(self.bucket.value or 0)
        limit = _MOST_POINTS if wanted else _POINTS
        fitting = next((size for size in _BUCKETS if (end - start) / size <= limit), _BUCKETS[-1])
        return start, end, max(wanted, fitting)

    async def _read(self, *, everything: bool = False) -> list[CountRow] | None:
        span = self._span()
        source = self.source.value
        if span is None or source is None:
            return None
        start, end, bucket = span
        more = {} if everything else {"rule": self.where.value or "", "measure": self.measure.value}
        if (offset := await _offset(end)) is None:
            return None  # nobody looks any more
        done, rows = await self.site.attempt(
            "viewer",
            lambda: self.site.service.counts(start=start, end=end, bucket_s=bucket, source=source,
                                             utc_offset_s=offset, **more),
            source=source,
        )  # fmt: skip
        return rows if done else None

    async def refresh(self) -> None:
        """Read and draw anew."""
        rows = await self._read()
        if rows is None:
            return
        t, bars = self.site.t, self.measure.value in _ADDED
        by_class: dict[str, list[CountRow]] = {}
        for row in rows:
            by_class.setdefault(row.class_name, []).append(row)
        every = by_class.get("all", [])
        totals = {name: _summary(series, bars) for name, series in by_class.items()}
        classes = sorted((name for name in by_class if name != "all"), key=lambda name: -(totals[name][0] or 0))
        shown = classes[:_SERIES] or list(by_class)
        series = [(_class_text(self.site, name), [(row.start, row.value) for row in by_class[name]]) for name in shown]
        gaps = _gaps(every)
        self.chart.options.clear()
        self.chart.options.update(_options(series, gaps, bars=bars, gap=t("counts.gap")))
        self.chart.update()
        head = (t("class"), t("counts.sum" if bars else "counts.mean"), t("counts.most"))
        cells = [
            (_class_text(self.site, name), number(totals[name][0], 0 if bars else 2), number(totals[name][1], 0))
            for name in (*classes, *(["all"] if every else []))
        ]
        set_html(self.table, table_html(head, cells) if cells else table_html(("",), ((t("counts.none"),),)))
        self._say(every, bool(gaps))

    def _say(self, every: Sequence[CountRow], gaps: bool) -> None:
        t, span = self.site.t, self._span()
        if span is None:
            return
        if not every:
            set_text(self.note, t("counts.none"))
            return
        seconds = every[0].seconds
        covered = sum(row.covered for row in every) / len(every)
        words = [
            f"{t('counts.bucket')} {_size(self.site, int(seconds))}",
            t("counts.covered", percent=f"{covered:.0%}"[:-1]),
        ]
        if self.bucket.value and seconds > self.bucket.value:
            words[0] = t("counts.shorter", bucket=_size(self.site, int(seconds)))
        if gaps:
            words.append(t("counts.gaps"))
        set_text(self.note, " · ".join(words))

    async def _export(self, kind: str) -> None:
        rows = await self._read(everything=True)
        if rows is None:
            return
        done, content = await self.site.attempt("viewer", lambda: export.write(rows, kind))
        if done:
            ui.download.content(content, f"counts-{self.source.value}.{kind}", export.FORMATS[kind])


async def _offset(at: float) -> int | None:
    """Seconds by which the clock of the browser is ahead of UTC at a time; None where it does not answer."""
    try:
        minutes = await ui.run_javascript(f"return new Date({at * 1e3:.0f}).getTimezoneOffset()", timeout=_ASK_S)
    except TimeoutError:
        return None
    return -60 * min(1440, max(-1440, round(minutes))) if isinstance(minutes, int | float) else None


def _class_text(site: Site, name: str) -> str:
    return site.t("all") if name == "all" else name


def _size(site: Site, seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return site.t(f"counts.unit.{unit}", n=seconds // length)
    return site.t("counts.unit.s", n=seconds)


def _summary(series: Sequence[CountRow], added: bool) -> tuple[float | None, float | None]:
    """Sum (or mean, weighted by how much is known) and the largest value."""
    known = [(row.value, row.covered) for row in series if row.value is not None]
    if not known:
        return None, None
    weight = sum(share for _, share in known)
    total = sum(value for value, _ in known)
    mean = sum(value * share for value, share in known) / weight if weight else None
    return (total if added else mean), max(value for value, _ in known)


def _gaps(series: Sequence[CountRow]) -> list[tuple[float, float]]:
    """Beginning and end of each stretch without data, in seconds."""
    gaps: list[tuple[float, float]] = []
    for row in series:
        if row.value is not None:
            continue
        if gaps and gaps[-1][1] == row.start:
            gaps[-1] = (gaps[-1][0], row.start + row.seconds)
        else:
            gaps.append((row.start, row.start + row.seconds))
    return gaps


def _options(
    series: Sequence[tuple[str, Sequence[tuple[float, float | None]]]],
    gaps: Sequence[tuple[float, float]],
    *,
    bars: bool,
    gap: str = "",
) -> dict[str, Any]:
    """What ECharts draws. A span without data has no point, and is shaded."""
    axis = {"axisLabel": {":color": _INK}, "axisLine": {"lineStyle": {":color": _GRID}},
            "splitLine": {"lineStyle": {":color": _GRID}}}  # fmt: skip
    drawn: list[dict[str, Any]] = []
    for name, points in series:
        data = [[at * 1e3, value] for at, value in points]
        common = {"name": name, "data": data, "animation": False}
        drawn.append({**common, "type": "bar", "stack": "all", "barMaxWidth": 26} if bars else
                     {**common, "type": "line", "step": "end", "showSymbol": False, "connectNulls": False})  # fmt: skip
    if drawn and gaps:
        drawn[0]["markArea"] = {
            "silent": True, "itemStyle": {"color": "rgba(128,136,146,0.22)"}, "label": {":color": _INK, "fontSize": 11},
            "data": [[{"xAxis": a * 1e3, "name": gap if b - a > 0.12 * _width(series) else ""}, {"xAxis": b * 1e3}]
                     for a, b in gaps],
        }  # fmt: skip
    return {
        "color": _COLOURS,
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 8, "containLabel": True},
        "legend": {"type": "scroll", "top": 0, "textStyle": {":color": _INK}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "time",
            **axis,
            "splitLine": {"show": False},
            "axisLabel": {":color": _INK, "hideOverlap": True},
        },
        "yAxis": {"type": "value", "minInterval": 1 if bars else 0, **axis},
        "series": drawn,
    }


def _width(series: Sequence[tuple[str, Sequence[tuple[float, float | None]]]]) -> float:
    times = [at for _, points in series for at, _ in points]
    return (max(times) - min(times)) if times else 0.0
