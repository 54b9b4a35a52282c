"""Models: what is served and what could be, switching, rolling back, and A/B on live frames."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

from nicegui import run, ui

from hawkeye.errors import HawkeyeError
from hawkeye.serve.language import Texts, translated
from hawkeye.serve.pages.layout import (
    Site,
    card,
    chip,
    empty,
    heading,
    megabytes,
    number,
    set_html,
    set_text,
    sure,
    table,
    table_html,
)
from hawkeye.serve.schemas import Comparison, ModelInfo

_EVERY_S = 2.0
_KINDS = {"served": "good", "candidate": "warn", "loaded": "", "available": ""}


def build(site: Site) -> None:
    """The page."""
    Models(site)


class Models:
    """All models, and the comparison below them."""

    def __init__(self, site: Site) -> None:
        t, self.site = site.t, site
        self.known: list[ModelInfo] | None = None
        with ui.element("div").classes("hk-bar"):
            heading(t("models.title"), 1)
            if site.may("admin"):
                ui.button(t("models.back"), icon="undo", on_click=self._back).props("outline no-caps")
        with ui.element("div").classes("hk-row").props("role=status") as self.busy:
            ui.spinner(size="sm")
            self.busy_text = ui.label()
        self.busy.set_visibility(False)
        self.place = ui.element("div")
        with card(t("ab.title")):
            ui.label(t("ab.how")).classes("hk-soft").style("margin-bottom: 10px")
            self.controls = ui.element("div").classes("hk-row")
            with self.controls:
                self.candidate = ui.select([], label=t("ab.candidate")).props("outlined dense").classes("hk-field")
                self.every = ui.number(t("ab.every"), value=10, min=1, max=10_000, precision=0).props("outlined dense")
                self.starter = ui.button(t("ab.start"), on_click=self._compare).props("unelevated no-caps")
            self.stopper = ui.button(t("ab.stop"), on_click=self._end).props("outline no-caps")
            self.ab_note = ui.label().classes("hk-soft").props("role=status")
            self.ab_words = ui.label().classes("hk-words")
            self.ab = table()
        site.every(_EVERY_S, self.refresh)

    async def refresh(self) -> None:
        """Bring it up to date."""
        try:
            models = await run.io_bound(self.site.service.models)
        except HawkeyeError as error:
            self.place.clear()
            with self.place:
                empty(self.site.t("models.none"), translated(str(error), self.site.t.language))
            return
        if models is not None and models != self.known:
            self.known = models
            self._build(models)
        self._show_comparison(self.site.service.comparison())

    def _build(self, models: list[ModelInfo]) -> None:
        self.place.clear()
        with self.place, ui.element("div").classes("hk-wall").style("margin-bottom: 16px"):
            for model in models:
                self._card(model)
        others = [model.id for model in models if model.role != "served" and model.why_not is None]
        value = self.candidate.value if self.candidate.value in others else next(iter(others), None)
        self.candidate.set_options(others, value=value)

    def _card(self, model: ModelInfo) -> None:
        t = self.site.t
        with ui.element("section").classes("hk-card").props(f'data-model="{escape(model.id)}"'):
            with ui.element("div").classes("hk-row").style("margin-bottom: 8px"):
                heading(model.id)
                chip(t(f"models.{model.role}"), _KINDS[model.role])
            facts = [
                (t("models.size"), megabytes(model.bytes)),
                (t("models.input"), f"{model.imgsz} × {model.imgsz}" if model.imgsz else "–"),
                (t("models.classes"), f"{len(model.classes)}" if model.classes else "–"),
                (t("models.precision"), model.precision or t("models.precision.unknown")),
                (t("models.created"), (model.created or "–")[:16].replace("T", " ")),
            ]
            table(table_html(("", ""), facts))
            if model.row:
                heading(t("models.row"), 3)
                table(table_html(("", ""), row_figures(t, model.row)))
            else:
                ui.label(t("models.row.none")).classes("hk-soft").style("margin-top: 8px")
            if model.why_not:
                ui.label(f"{t('models.why_not')}: {model.why_not}").classes("hk-words")
            elif model.role != "served" and self.site.may("admin"):
                ui.button(t("models.serve"), on_click=partial(self._serve, model.id)).props(
                    f'outline no-caps aria-label="{t("models.serve")}: {model.id}"'
                ).style("margin-top: 10px")

    # -- switching ----------------------------------------------------------------------------------------------------

    async def _serve(self, model: str) -> None:
        t, service = self.site.t, self.site.service
        if await sure(self.site, t("models.serve.sure", name=model, old=service.served), t("models.serve")):
            await self._work(t("models.switching", name=model), lambda: service.switch_model(model))

    async def _back(self) -> None:
        t, service = self.site.t, self.site.service
        if await sure(self.site, t("models.back.sure", old=service.served), t("models.back")):
            await self._work(t("models.switching", name="…"), service.rollback_model)

    async def _work(self, text: str, work: Any) -> None:
        set_text(self.busy_text, text)
        self.busy.set_visibility(True)
        done, model = await self.site.attempt("admin", work)
        self.busy.set_visibility(False)
        if done:
            self.site.say(self.site.t("models.switched", name=model.id), "positive")
        await self.refresh()

    # -- A/B ----------------------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        t, service = self.site.t, self.site.service
        model, every = self.candidate.value, int(self.every.value or 10)
        if not model:
            self.site.say(t("ab.choose"), "warning")
            return
        set_text(self.busy_text, t("ab.starting", name=model))
        self.busy.set_visibility(True)
        await self.site.attempt("admin", lambda: service.start_comparison(model, every=every))
        self.busy.set_visibility(False)
        await self.refresh()

    async def _end(self) -> None:
        await self.site.attempt("admin", self.site.service.stop_comparison)
        await self.refresh()

    def _show_comparison(self, found: Comparison | None) -> None:
        t, mine = self.site.t, self.site.may("admin")
        self.controls.set_visibility(found is None and mine)
        self.stopper.set_visibility(found is not None and mine)
        if found is None:
            for place in (self.ab_note, self.ab_words):
                set_text(place, "")
            set_html(self.ab, "")
            return
        live = any(info.state == "live" for info in self.site.service.sources())
        note = t("ab.frames", n=f"{found.frames:,}", skipped=f"{found.skipped:,}") if found.frames else (
            t("ab.waiting") if live else t("ab.no_live"))  # fmt: skip
        set_text(self.ab_note, note)
        set_text(self.ab_words, found.error)
        agreement = "–" if found.agreement is None else f"{found.agreement:.1%}"
        rows = [
            (t("ab.network"), f"{number(found.served_ms)} ms", f"{number(found.candidate_ms)} ms"),
            (t("ab.only"), number(found.only_served, 2), number(found.only_candidate, 2)),
            (t("ab.agreement"), agreement, ""),
        ]
        set_html(self.ab, table_html(("", found.served, found.candidate), rows))


def row_figures(t: Texts, row: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader looks for first in a row of report.json (docs/report-schema.md); what is not there is left out."""
    # The runtime that serves it: an INT8 row has the first, a float row the second.
    runtime = next((name for name in ("openvino-int8", "openvino-f32") if _at(row, "latency_ms", name, "p50")), "")
    params, map50, drop = _at(row, "params"), _at(row, "map50"), _at(row, "map50_drop")
    interval = row.get("map50_drop_ci95")
    spread = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if isinstance(interval, list) and len(interval) == 2 else ""
    size = _at(row, "file_bytes", "openvino")
    figures = (
        (t("row.params"), params and f"{params / 1e6:.2f} M"),
        ("GFLOPs", (gflops := _at(row, "gflops")) and f"{gflops:.2f}"),
        ("mAP@0.5", map50 and f"{map50:.3f}"),
        ("mAP@0.5:0.95", (both := _at(row, "map50_95")) and f"{both:.3f}"),
        (t("row.drop"), None if drop is None or row.get("name") == "original" else f"{drop:.1f}{spread}"),
        (t("row.size"), size and megabytes(size)),
        (t("row.latency"), (ms := _at(row, "latency_ms", runtime, "p50")) and f"{ms:.1f} ms"),
        (t("row.speedup"), (times := _at(row, "speedup", runtime)) and f"{times:.2f}"),
    )
    return [(name, text) for name, text in figures if isinstance(text, str)]


def _at(row: Any, *keys: str) -> float | None:
    """A figure deep in a report; None where there is none."""
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return float(row) if isinstance(row, int | float) and not isinstance(row, bool) else None
