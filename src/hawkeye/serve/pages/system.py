"""System: latencies, queues, drops, processor, memory, the log's tail, and why it is slow, in words."""

from __future__ import annotations

from typing import Any

from nicegui import run, ui

from hawkeye.serve.language import translated
from hawkeye.serve.pages.layout import (
    Site,
    card,
    heading,
    megabytes,
    number,
    set_html,
    set_text,
    table,
    table_html,
    tile,
)
from hawkeye.serve.schemas import Histogram, Statistics

_EVERY_S = 2.0
_INK = "getComputedStyle(document.body).getPropertyValue('--soft').trim()"
_GRID = "getComputedStyle(document.body).getPropertyValue('--line').trim()"
_COLOURS = ["#2f8fc4", "#e08a2e", "#3fa673", "#9a6dd7", "#d35d6e", "#8f9b2f", "#3bb5b5", "#c26bb0"]


def build(site: Site) -> None:
    """The page."""
    System(site)


class System:
    """Tiles, then details."""

    def __init__(self, site: Site) -> None:
        t, self.site = site.t, site
        heading(t("system.title"), 1).style("margin-bottom: 14px")
        with card(t("system.slow")):
            self.slow = ui.element("div").props("role=status")
        self.slow_shown: tuple[str, ...] | None = None
        with ui.element("div").classes("hk-tiles"):
            self.cpu = tile(t("system.cpu"))
            self.memory = tile(t("system.memory"))
            self.uptime = tile(t("system.uptime"))
            self.drops = tile(t("system.drops"))
            self.requests = tile(t("system.requests"))
            self.history = tile(t("system.history"))
        with card(t("system.latency")):
            self.chart = (
                ui.echart(_options({})).classes("hk-chart").props(f'role=img aria-label="{t("system.latency.share")}"')
            )
            self.stages = table()
        with ui.element("div").classes("hk-two"):
            with card(t("system.queues")):
                self.queues = table()
            with card(t("system.sources")):
                self.sources = table()
        with card(t("system.log")):
            self.log = ui.label().classes("hk-log").props("tabindex=0")
            self.log.tag = "pre"
        site.every(_EVERY_S, self.refresh)

    async def refresh(self) -> None:
        """Bring it up to date."""
        facts = await run.io_bound(self.site.service.statistics)
        if facts is not None:
            self._show(facts)

    def _show(self, facts: Statistics) -> None:
        t = self.site.t
        # As the API has it: words that name sources are for those who see every source, the log for operators of them.
        principal = self.site.who()
        whole = principal is not None and principal.sources is None
        why_slow = facts.why_slow if whole else ()
        if why_slow != self.slow_shown:
            self.slow_shown = why_slow
            self.slow.clear()
            with self.slow:
                for words in why_slow or (t("system.fine" if whole else "system.hidden"),):
                    ui.label(_sentence(translated(words, t.language))).classes(
                        "hk-warn" if why_slow else "hk-good" if whole else "hk-soft"
                    )
        _fill(self.cpu, f"{facts.cpu_percent:.0f} %",
              t("system.cpu.of", cores=facts.cores, percent=f"{facts.cpu_system_percent:.0f}"))  # fmt: skip
        _fill(self.memory, megabytes(facts.rss_bytes), t("system.memory.of", total=megabytes(facts.memory_bytes)))
        _fill(self.uptime, _duration(self.site, facts.uptime_s), "")
        _fill(self.drops, f"{facts.drops:,}", t("system.drops.of", lost=f"{facts.lost:,}"))
        _fill(self.requests, f"{facts.requests:,}", t("system.requests.of", rejected=f"{facts.rejected:,}"))
        kept = facts.history == "on"
        _fill(self.history, "✓" if kept else "✕", t("system.history.on") if kept else
              f"{t('system.history.off')}: {translated(facts.history, t.language)}")  # fmt: skip
        measured = {t.known("stage", name): stage for name, stage in facts.stages.items() if sum(stage.counts)}
        options = _options(measured)
        if options["series"] != self.chart.options.get("series"):
            self.chart.options.clear()
            self.chart.options.update(options)
            self.chart.update()
        self.chart.set_visibility(bool(measured))
        rows = [(name, f"{sum(stage.counts):,}", number(stage.p50_ms), number(stage.p99_ms))
                for name, stage in measured.items()]  # fmt: skip
        head = (t("system.stage"), t("system.times"), "p50 ms", "p99 ms")
        set_html(self.stages, table_html(head, rows) if rows else table_html(("",), ((t("system.none"),),)))
        queues = [(t.known("queue", name), waiting, capacity) for name, (waiting, capacity) in facts.queues.items()]
        set_html(self.queues, table_html((t("system.queue"), t("system.waiting"), t("system.capacity")), queues))
        sources = [(info.name, t(f"state.{info.state}"), f"{info.fps_done:.1f} / {info.fps_in:.1f}", f"{info.drops:,}")
                   for info in self.site.sources()]  # fmt: skip
        head = (t("counts.source"), t("system.state"), "fps", t("system.drops"))
        nothing = table_html(("",), ((t("live.none"),),))
        set_html(self.sources, table_html(head, sources, left=(0, 1)) if sources else nothing)
        log = "\n".join(facts.log[::-1]) or t("system.log.none")
        set_text(self.log, log if whole and self.site.may("operator") else t("system.hidden"))


def _fill(place: tuple[ui.label, ui.label], value: str, remark: str) -> None:
    set_text(place[0], value)
    set_text(place[1], remark)


def _sentence(text: str) -> str:
    """With a capital where it is no name of a source, which stands before a colon."""
    return text if ": " in text or "：" in text else text[:1].upper() + text[1:]


def _duration(site: Site, seconds: float) -> str:
    parts: list[str] = []
    rest = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= length or (unit == "s" and not parts):
            parts.append(site.t(f"counts.unit.{unit}", n=rest // length))
            rest %= length
    return " ".join(parts[:2])


def _options(stages: dict[str, Histogram]) -> dict[str, Any]:
    """Share of the measurements per range of latency, one line for each stage."""
    axis = {"axisLabel": {":color": _INK}, "axisLine": {"lineStyle": {":color": _GRID}},
            "splitLine": {"lineStyle": {":color": _GRID}}}  # fmt: skip
    bounds = next(iter(stages.values())).bounds_ms if stages else ()
    labels = [f"≤ {bound:g}" for bound in bounds] + ([f"> {bounds[-1]:g}"] if bounds else [])
    series = [
        {"name": name, "type": "bar", "animation": False,
         "data": [round(100 * count / sum(stage.counts), 1) for count in stage.counts]}
        for name, stage in stages.items()
    ]  # fmt: skip
    return {
        "color": _COLOURS,
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 28, "containLabel": True},
        "legend": {"type": "scroll", "top": 0, "textStyle": {":color": _INK}},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "category",
            "data": labels,
            "name": "ms",
            "nameLocation": "middle",
            "nameGap": 26,
            "nameTextStyle": {":color": _INK},
            **axis,
        },
        "yAxis": {
            "type": "value",
            "axisLabel": {":color": _INK, "formatter": "{value} %"},
            "splitLine": axis["splitLine"],
        },
        "series": series,
    }
