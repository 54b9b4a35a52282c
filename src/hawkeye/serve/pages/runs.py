"""Runs: compression runs as they lie on disk, with their progress and reports."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

from nicegui import run, ui

from hawkeye.serve.pages.layout import Site, chip, empty, heading
from hawkeye.serve.schemas import RunInfo

_EVERY_S = 3.0
_KINDS = {"running": "warn", "finished": "good", "unfinished": ""}
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)")
_COMMAND = "hawkeye optimize yolov8n.pt --data data.yaml --out runs/first"


def build(site: Site) -> None:
    """The page."""
    Runs(site)


class Runs:
    """All runs, the newest first."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.known: list[RunInfo] | None = None
        self.shown_s = 0.0
        heading(site.t("runs.title"), 1).style("margin-bottom: 14px")
        self.place = ui.element("div")
        site.every(_EVERY_S, self.refresh)

    async def refresh(self) -> None:
        """Build it anew where something has changed, and once a minute for the times in words."""
        runs = await run.io_bound(self.site.service.runs)
        if runs is None or (runs == self.known and time.monotonic() - self.shown_s < 60):
            return
        self.known, self.shown_s = runs, time.monotonic()
        self.place.clear()
        with self.place:
            if not runs:
                empty(self.site.t("runs.none"), self.site.t("runs.none.how", command=_COMMAND))
                return
            with ui.element("div").classes("hk-wall"):
                for info in runs:
                    self._card(info)

    def _card(self, info: RunInfo) -> None:
        t = self.site.t
        with ui.element("section").classes("hk-card"):
            with ui.element("div").classes("hk-row").style("margin-bottom: 6px"):
                heading(info.id)
                chip(t(f"runs.{info.state}"), _KINDS[info.state])
                if info.has_report:
                    ui.link(t("runs.report"), f"/pages/report/{quote(info.id, safe='')}", new_tab=True).classes(
                        "hk-grow"
                    )
            ui.label(t("runs.changed", when=_ago(self.site, info.changed))).classes("hk-soft")
            if info.progress is not None:
                bar = ui.linear_progress(info.progress, show_value=False, size="10px")
                bar.props(f'rounded aria-label="{t("runs.progress")}"').style("margin: 8px 0")
                ui.label(f"{info.progress:.0%}").classes("hk-soft")
            if info.note:
                moment = _MOMENT.match(info.note)
                words = t("runs.started", when=f"{moment[1]} {moment[2]} UTC") if moment else info.note
                ui.label(words).classes("hk-soft").style("overflow-wrap: anywhere")
            for line in info.headline:
                ui.label(line).style("margin-top: 6px")
            if info.stages:
                with ui.element("ul").classes("hk-done").props(f'aria-label="{t("runs.stages")}"'):
                    for stage in info.stages:
                        ui.label(t.known("stages", stage)).tag = "li"
            if info.state == "unfinished":
                ui.label(t("runs.go_on")).classes("hk-soft")


def _ago(site: Site, moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return site.t(f"runs.ago.{unit}", n=int(seconds // length))
    return site.t("runs.ago.s", n=int(seconds))
