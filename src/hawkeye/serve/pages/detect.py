"""Detect: drop pictures or a video, choose among what was found with sliders, see two models side by side."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from functools import partial
from html import escape
from pathlib import Path

from nicegui import events, ui

from hawkeye.detections import Detections
from hawkeye.serve.pages import shots
from hawkeye.serve.pages.layout import Site, card, heading, number, set_html, set_text, table, table_html
from hawkeye.serve.pages.picture import Picture, marks
from hawkeye.serve.pages.shots import Shot

_MAX_SHOTS, _MAX_BYTES = 20, 100_000_000  # of one page; the oldest are forgotten first
_SHOWN_ROWS = 200
_FIRST, _AGAIN = 5, 10  # passes of each of two models when they are first seen side by side, and on demand
_AROUND_BYTES = 1000  # what a form puts around a file
_ORIGINAL = "original"  # as runs name it
_HEADER = """<div class="hk-drop-head"><q-icon name="add_photo_alternate" size="40px" aria-hidden="true"></q-icon>
<b>{drop}</b><q-btn unelevated no-caps color="primary" label="{choose}" @click="props.pickFiles">
<q-uploader-add-trigger></q-uploader-add-trigger></q-btn><span class="hk-soft">{limits}</span></div>"""
_ACCEPT = "image/*,video/*"


def build(site: Site) -> None:
    """The page."""
    Bench(site)


class _Slider(ui.slider):
    """Is moved in the browser at once: the server's answer to an earlier key must not put it back."""

    LOOPBACK = False


class Bench:
    """What was dropped, what was found, and the controls."""

    def __init__(self, site: Site) -> None:
        t, self.site = site.t, site
        self.shots: list[Shot] = []
        self.current: Shot | None = None
        self.halt = False
        self.turn = asyncio.Lock()  # one file after another, however many are dropped at once
        self.folder: Path | None = None
        ui.context.client.on_delete(self._forget)
        megabytes = f"{site.service.config.max_body_bytes / 1e6:.0f}"
        heading(t("detect.title"), 1).style("margin-bottom: 14px")
        upload = ui.upload(
            multiple=True, auto_upload=True,
            max_file_size=site.service.config.max_body_bytes - _AROUND_BYTES,
            on_upload=self._take,
            on_rejected=lambda: site.say(t("detect.rejected", mb=megabytes), "warning"),
        )  # fmt: skip
        upload.props(f'accept="{_ACCEPT}" flat bordered hide-upload-btn').classes("hk-drop")
        words = {"drop": t("detect.drop"), "choose": t("detect.choose"),
                 "limits": f"{t('detect.limits', mb=megabytes)} {t('detect.private')}"}  # fmt: skip
        upload.add_slot("header", _HEADER.format(**{name: escape(text) for name, text in words.items()}))
        self.upload = upload
        with ui.element("div").classes("hk-row").props("role=status") as self.busy:
            ui.spinner(size="sm")
            self.busy_text = ui.label()
            self.stop = ui.button(t("detect.stop"), on_click=self._stop).props("flat dense no-caps")
        self.busy.set_visibility(False)
        with ui.element("div").classes("hk-side") as self.results:
            with ui.element("div"):
                self.verdict = ui.label().classes("hk-verdict").props("role=status")
                with ui.element("div") as self.pictures:
                    self.sides = [Side(), Side()]
                self.frame = _Slider(min=0, max=1, value=0, on_change=lambda: self.show()).props(
                    f'snap aria-label="{t("detect.frames")}"'
                )
                self.frame_text = ui.label().classes("hk-soft")
                self.note = ui.label().classes("hk-soft")
            with ui.element("div"):
                self._controls()
        self.results.set_visibility(False)

    def _controls(self) -> None:
        t, service = self.site.t, self.site.service
        models = [info.id for info in service.models() if info.why_not is None]
        with card(), ui.element("div").classes("hk-form"):
            self.file = ui.select([], label=t("detect.file"), on_change=self._pick).props("outlined dense")
            self.model = ui.select(models, value=service.served, label=t("detect.model"),
                                   on_change=self._models_changed).props("outlined dense")  # fmt: skip
            # What was gained is the first thing that a user wants to see.
            first = _ORIGINAL if _ORIGINAL in models and service.served != _ORIGINAL else ""
            self.beside = ui.select({"": t("detect.beside.none"), **{name: name for name in models}}, value=first,
                                    label=t("detect.beside"), on_change=self._models_changed).props(
                "outlined dense")  # fmt: skip
            self.conf = self._slider(t("detect.conf"), shots.WEAKEST, 0.95, service.config.conf)
            self.iou = self._slider(t("detect.iou"), 0.1, shots.LOOSEST, service.config.iou)
            self.classes = ui.select(list(service.names), label=t("detect.classes"), multiple=True, with_input=True,
                                     on_change=lambda: self.show()).props("outlined dense use-chips")  # fmt: skip
        with card():
            self.times = table()
            ui.button(t("detect.again"), icon="timer", on_click=self._again).props("flat dense no-caps")
        with card(t("detect.save")), ui.element("div").classes("hk-row"):
            for kind in ("json", "csv", "jpg"):
                text = t("detect.picture") if kind == "jpg" else kind.upper()
                ui.button(text, on_click=partial(self._save, kind)).props("outline dense no-caps padding='4px 12px'")

    def _slider(self, text: str, low: float, high: float, value: float) -> ui.slider:
        with ui.element("div").classes("hk-slider"):
            ui.label(text).classes("hk-label hk-soft")
            slider = _Slider(min=low, max=high, step=0.01, value=value, on_change=lambda: self.show()).props(
                f'aria-label="{text}"'
            )
            output = ui.label().bind_text_from(slider, "value", lambda v: f"{v:.2f}")
            output.tag = "output"
        return slider

    # -- files --------------------------------------------------------------------------------------------------------

    async def _take(self, event: events.UploadEventArguments) -> None:
        file = event.file
        if file.size() > self.site.service.config.max_body_bytes:
            return
        shot = Shot(Path(file.name).name[:120])
        async with self.turn:
            if shots.is_video(shot.name):
                if self.folder is None:
                    self.folder = Path(tempfile.mkdtemp(prefix="hawkeye-"))
                shot.path = self.folder / f"{shot.id}{Path(shot.name).suffix.lower()}"  # never the client's name
                await file.save(shot.path)
            else:
                shot.content = await file.read()
            if not await self._look(shot, self.model.value):
                shot.forget()
                return
            self._keep(shot)

    def _keep(self, shot: Shot) -> None:
        taken = {known.name for known in self.shots}
        stem, n = shot.name, 2
        while shot.name in taken:
            shot.name, n = f"{stem} ({n})", n + 1
        self.shots.append(shot)
        while len(self.shots) > 1 and (len(self.shots) > _MAX_SHOTS or sum(s.bytes for s in self.shots) > _MAX_BYTES):
            self.shots.pop(0).forget()
        self.upload.reset()
        self.file.set_options([known.name for known in self.shots], value=shot.name)
        self._pick()

    async def _look(self, shot: Shot, model: str) -> bool:
        """Let a model look at a shot, with progress; whether it worked."""
        self.halt = False
        total = 0

        def told(done: int) -> bool:
            nonlocal total
            total = done
            return not self.halt

        def progress() -> None:
            t = self.site.t
            video = t("detect.working.video", name=shot.name, done=total, total=len(shot.jpegs) or shots.MAX_FRAMES)
            set_text(self.busy_text, t("detect.working", name=shot.name) if shot.path is None else video)

        self.busy.set_visibility(True)
        self.stop.set_visibility(shot.path is not None)
        progress()
        timer = ui.timer(0.3, progress)
        try:
            # Whoever may see the pages may ask the API to detect, too.
            done, _ = await self.site.attempt("viewer", lambda: shots.look(self.site.service, shot, model, told=told))
        finally:
            timer.cancel()
            self.busy.set_visibility(False)
        return done

    def _stop(self) -> None:
        self.halt = True

    def _forget(self) -> None:
        self.halt = True
        self.shots = []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _pick(self) -> None:
        shot = next((shot for shot in self.shots if shot.name == self.file.value), None)
        if shot is None or shot is self.current:
            return
        self.current = shot
        self.results.set_visibility(True)
        last = len(shot.jpegs) - 1
        self.frame.props(f"max={max(1, last)}")
        self.frame.set_value(0)
        for element in (self.frame, self.frame_text):
            element.set_visibility(last > 0)
        ui.timer(0, self._models_changed, once=True)

    async def _models_changed(self) -> None:
        shot = self.current
        if shot is None:
            return
        models = self._chosen_models()
        for model in models:
            if model not in shot.passes and not await self._look(shot, model):
                self.beside.set_value("")
                return
        self.show()
        # One pass each says little: what comes first warms caches up. Therefore both again, in turns.
        if len(models) > 1 and any(not shot.passes[model].again_ms for model in models):
            await self._measure(_FIRST)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _chosen_models(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.model.value, self.beside.value) if name))

    def _filtered(self, shot: Shot, model: str, frame: int) -> Detections:
        done = shot.passes[model]
        if frame >= len(done.found):
            return Detections.empty()
        classes = shots.wanted(self.classes.value or (), done.names)
        return shots.choose(done.found[frame], conf=self.conf.value, iou=self.iou.value, classes=classes)

    def show(self) -> None:
        """Filter and draw anew."""
        t, shot = self.site.t, self.current
        models = self._chosen_models()
        if shot is None or any(model not in shot.passes for model in models):
            return
        frame = min(int(self.frame.value), len(shot.jpegs) - 1)
        self.pictures.classes(replace="hk-two" if len(models) > 1 else "")
        image = f"/pages/shot/{shot.id}/{frame}"
        for side, model in zip(self.sides, [*models, None], strict=False):
            side.box.set_visibility(model is not None)
            if model is None:
                continue
            done, found = shot.passes[model], self._filtered(shot, model, frame)
            text = t("detect.found.one") if len(found) == 1 else t("detect.found", n=len(found))
            hidden = int((done.found[frame].score <= self.conf.value).sum()) if frame < len(done.found) else 0
            set_text(side.title, model)
            network = done.typical_ms().get("network")
            set_text(side.facts, f"{text} · {t('detect.network', ms=number(network))}")
            side.picture.show(image=image, boxes=marks(found, done.names, shot.width, shot.height),
                              label=f"{shot.name}, {model}: {text}")  # fmt: skip
            set_html(side.table, self._table(found, done.names))
            remark = t("detect.wide", shown=_SHOWN_ROWS, n=len(found)) if len(found) > _SHOWN_ROWS else ""
            set_text(side.note, remark or (t("detect.weak", n=hidden) if hidden else ""))
        set_text(self.frame_text, t("detect.frame", s=f"{shot.times_s[frame]:.2f}"))
        set_text(self.note, t("detect.every", n=shot.every, frames=len(shot.jpegs)) if shot.every > 1 else "")
        self._show_times(shot, models)

    def _table(self, found: Detections, names: tuple[str, ...]) -> str:
        t = self.site.t
        if not len(found):
            return table_html(("",), ((t("detect.none"),),))
        rows = [(row["name"], f"{row['score']:.2f}", ", ".join(f"{v:.0f}" for v in row["xyxy"]))
                for row in found[slice(_SHOWN_ROWS)].to_records(names)]  # fmt: skip
        return table_html((t("class"), t("detect.score"), t("detect.box")), rows)

    def _show_times(self, shot: Shot, models: list[str]) -> None:
        t = self.site.t
        typical = [shot.passes[model].typical_ms() for model in models]
        stages = [
            stage for stage in ("decode", "wait", "pre", "network", "post") if any(stage in row for row in typical)
        ]
        rows = [(t(f"stage.{stage}"), *(number(row.get(stage)) for row in typical)) for stage in stages]
        rows.append((t("stage.total"), *(number(sum(row[s] for s in stages if s in row)) for row in typical)))
        set_html(self.times, table_html(("ms", *models), rows))
        verdict = ""
        passes = min(len(shot.passes[model].again_ms) for model in models)
        if len(typical) == 2 and passes and all(row.get("network") for row in typical):
            (fast, fast_ms), (slow, slow_ms) = sorted(
                zip(models, (row["network"] for row in typical), strict=True), key=lambda pair: pair[1])  # fmt: skip
            verdict = f"{fast}: {t('detect.faster', factor=f'{slow_ms / fast_ms:.1f}', other=slow)}"
        set_text(self.verdict, " · ".join(s for s in (verdict, t("detect.median", n=passes) if passes else "") if s))

    async def _again(self) -> None:
        await self._measure(_AGAIN)

    async def _measure(self, times: int) -> None:
        shot = self.current
        if shot is None:
            return
        models, frame = self._chosen_models(), min(int(self.frame.value), len(shot.jpegs) - 1)
        self.busy.set_visibility(True)
        self.stop.set_visibility(False)
        set_text(self.busy_text, self.site.t("detect.working", name=shot.name))
        await self.site.attempt("viewer", lambda: shots.look_again(self.site.service, shot, models, frame, times))
        self.busy.set_visibility(False)
        self.show()

    async def _save(self, kind: str) -> None:
        shot, model = self.current, self.model.value
        if shot is None or model not in shot.passes:
            return
        frame = min(int(self.frame.value), len(shot.jpegs) - 1)
        settings = {"conf": self.conf.value, "iou": self.iou.value, "classes": self.classes.value or None}
        chosen = [self._filtered(shot, model, i) for i in range(len(shot.passes[model].found))]

        def work() -> bytes:
            if kind == "json":
                return shots.as_json(shot, model, chosen, settings)
            return (
                shots.as_csv(shot, model, chosen)
                if kind == "csv"
                else shots.as_picture(shot, model, frame, chosen[frame])
            )

        done, content = await self.site.attempt("viewer", work)
        if done:
            media = {"json": "application/json", "csv": "text/csv", "jpg": "image/jpeg"}[kind]
            ui.download.content(content, f"{Path(shot.name).stem}.{kind}", media)


class Side:
    """One model's picture, figures and table."""

    def __init__(self) -> None:
        with ui.element("section").classes("hk-card") as self.box:
            self.title = heading("")
            self.facts = ui.label().classes("hk-soft").style("margin-bottom: 8px")
            self.picture = Picture("")
            self.table = table().style("margin-top: 8px; max-height: 420px; overflow-y: auto")
            self.note = ui.label().classes("hk-soft")
