"""Live: a wall of sources with boxes, tracks, lines and zones, how each does, and what it counts."""

from __future__ import annotations

from nicegui import run, ui

from hawkeye.serve.language import translated
from hawkeye.serve.pages.drawing import edit_rules
from hawkeye.serve.pages.layout import (
    Site,
    chip,
    counts_of,
    empty,
    heading,
    set_html,
    set_text,
    sure,
    table,
    table_html,
)
from hawkeye.serve.pages.picture import Picture, drawable
from hawkeye.serve.problems import NotFound
from hawkeye.serve.schemas import SourceInfo, SourceSpec, SourceTest

_EVERY_S = 1.0
_HOUR_EVERY = 5  # the last hour is read from the disk, so less often
_KINDS = {"live": "good", "ended": "", "stopped": "", "failed": "bad", "connecting": "warn", "no data": "bad",
          "reconnecting": "warn"}  # fmt: skip
_STALE = ("no data", "reconnecting", "failed")


def build(site: Site) -> None:
    """The page."""
    t = site.t
    with ui.element("div").classes("hk-bar"):
        heading(t("live.title"), 1)
        if site.may("operator"):
            ui.button(t("live.add"), icon="add", on_click=lambda: add_source(site)).props("unelevated no-caps")
    wall = Wall(site)
    wall.show()
    site.every(_EVERY_S, wall.refresh)


class Wall:
    """All cards; they come and go with their sources, and only what has changed is sent."""

    def __init__(self, site: Site) -> None:
        self.site = site
        with ui.element("div") as self.nothing:
            empty(site.t("live.none"), site.t("live.none.how"))
        self.place = ui.element("div").classes("hk-wall hk-sources")
        self.cards: dict[str, Card] = {}
        self.round = 0

    def show(self) -> None:
        """Bring the cards up to what there is."""
        infos = {info.name: info for info in self.site.sources()}
        for name in [name for name in self.cards if name not in infos]:
            self.cards.pop(name).box.delete()
        for name, info in infos.items():
            if name not in self.cards:
                with self.place:
                    self.cards[name] = Card(self.site, info)
                self.round = 0  # its last hour is to be read
            self.cards[name].show(info)
        self.nothing.set_visibility(not infos)

    async def refresh(self) -> None:
        """Once a second."""
        self.show()
        if self.round % _HOUR_EVERY == 0:
            for name, card in list(self.cards.items()):
                try:
                    card.hour = await run.io_bound(self.site.service.seen, name) or {}
                except NotFound:
                    continue
        self.round += 1


class Card:
    """One source."""

    def __init__(self, site: Site, info: SourceInfo) -> None:
        t, self.site, self.name = site.t, site, info.name
        self.hour: dict[str, int] = {}
        self.box = ui.element("section").classes("hk-card hk-source").props(f'data-source="{info.name}"')
        with self.box:
            with ui.element("div").classes("hk-row").style("margin-bottom: 8px"):
                heading(info.name)
                self.state = chip("")
                if site.may("operator"):
                    ui.button(t("live.edit"), icon="polyline", on_click=lambda: edit_rules(site, self.name)).props(
                        "flat dense no-caps"
                    ).classes("hk-grow")
                    ui.button(icon="delete", on_click=self._remove).props(
                        f'flat dense round aria-label="{t("live.remove")} {info.name}"'
                    ).tooltip(t("live.remove"))
            words = {"none": t("live.no_picture"), "lost": t("live.lost")}
            ratio = info.width / info.height if info.width and info.height else None
            with ui.element("div").classes("hk-beside"):
                with ui.element("div"):
                    self.picture = Picture(t("live.picture", name=info.name), source=info.name, words=words,
                                           ratio=ratio)  # fmt: skip
                    with ui.element("div").classes("hk-facts"):
                        self.facts = [ui.label() for _ in range(4)]
                    self.words = ui.label().classes("hk-words")
                with ui.element("div"):
                    self.counts = table()
                    self.rules = table()

    def show(self, info: SourceInfo) -> None:
        """Bring it up to date."""
        t = self.site.t
        set_text(self.state, t(f"state.{info.state}"))
        self.state.classes(replace=f"hk-chip {_KINDS.get(info.state, '')}".strip())
        all_of_them = info.fps_done >= 0.95 * info.fps_in
        facts = (
            t("live.fps" if all_of_them else "live.fps.of", done=f"{info.fps_done:.1f}", into=f"{info.fps_in:.1f}"),
            "" if info.latency_ms is None else t("live.latency", ms=f"{info.latency_ms:.0f}"),
            t("live.drops", n=f"{info.drops:,}"),
            info.label if info.label != info.name else "",
        )
        for label, fact in zip(self.facts, facts, strict=True):
            set_text(label, fact)
        words = "" if info.state == "live" else translated(info.error, t.language)
        set_text(self.words, words)  # what is over is in the log
        self.picture.show(rules=drawable(self.site, info), stale=info.state in _STALE)
        seen = counts_of({**dict.fromkeys(self.hour, 0), **(info.now or {})})
        seen.sort(key=lambda pair: (-self.hour.get(pair[0], 0), -pair[1], pair[0]))
        rows: list[tuple[object, ...]] = [
            (name, "–" if info.now is None else now, self.hour.get(name, 0)) for name, now in seen
        ]
        rows = rows or [(t("live.nobody"), "", "")]
        set_html(self.counts, table_html((t("class"), t("live.now"), t("live.hour")), rows))
        set_html(self.rules, _totals(self.site, info))

    async def _remove(self) -> None:
        t = self.site.t
        if await sure(self.site, t("live.remove.sure", name=self.name), t("live.remove")):
            done, _ = await self.site.attempt(
                "operator", lambda: self.site.service.remove_source(self.name), source=self.name
            )
            if done:
                self.site.say(t("live.removed", name=self.name))


def _totals(site: Site, info: SourceInfo) -> str:
    """What each line and zone has counted since the service started, by class where there are several."""
    t, tables = site.t, []
    for kind, columns in (("line", ("in", "out")), ("zone", ("now", "enter", "exit"))):
        rows: list[tuple[object, ...]] = []
        for rule in (rule for rule in info.rules if rule.kind == kind):
            total = info.totals.get(rule.name, {})
            rows.append((rule.name, *("–" if total.get(key) is None else total[key] for key in columns)))
            by_class = total.get("by_class") or {}
            if len(by_class) > 1:
                rows += [
                    (f"\u2003{name}", *(counts.get(key, "") for key in columns)) for name, counts in by_class.items()
                ]
        if rows:
            tables.append(table_html((t(f"live.{kind}s"), *(t(f"live.total.{key}") for key in columns)), rows))
    return "".join(tables)


def add_source(site: Site) -> None:
    """The dialog that tests and adds a source."""
    t = site.t
    with site.dialog() as dialog, ui.element("div").classes("hk-dialog hk-form"):
        heading(t("live.add"))
        address = ui.input(t("live.address")).props(
            f'outlined autofocus autocomplete=off hint="{t("live.address.hint")}"'
        )
        name = ui.input(t("name")).props(f'outlined autocomplete=off hint="{t("live.name.hint")}"')
        loop = ui.checkbox(t("live.loop"))
        result = ui.element("div").classes("hk-test").props("role=status")

        def spec() -> SourceSpec | None:
            if not (address.value or "").strip():
                site.say(t("live.address.empty"), "warning")
                return None
            try:
                return SourceSpec(
                    address=address.value.strip(), name=(name.value or "").strip() or None, loop=loop.value
                )
            except ValueError:
                site.say(t("live.name.hint"), "warning")
                return None

        def busy(text: str) -> None:
            result.clear()
            with result, ui.element("div").classes("hk-row"):
                ui.spinner(size="sm")
                ui.label(text)

        async def test() -> None:
            if (wanted := spec()) is None:
                return
            principal = site.who()
            if principal is not None and principal.sources is not None:  # it shows whatever address is named
                site.say(t("live.test.held"), "warning")
                return
            busy(t("live.testing"))
            buttons_enabled(False)
            done, answer = await site.attempt("operator", lambda: site.service.test_source(wanted))
            buttons_enabled(True)
            result.clear()
            if done:
                with result:
                    _show_test(site, answer)

        async def add() -> None:
            if (wanted := spec()) is None:
                return
            principal = site.who()
            if principal is not None and principal.sources is not None and wanted.name not in principal.sources:
                site.say(t("live.add.held", names=", ".join(principal.sources)), "warning")
                return
            busy(t("live.adding"))
            buttons_enabled(False)
            done, answer = await site.attempt("operator", lambda: site.service.add_source(wanted))
            buttons_enabled(True)
            result.clear()
            if done:
                site.say(t("live.added", name=answer.name), "positive")
                dialog.close()

        with ui.element("div").classes("hk-row"):
            tester = ui.button(t("live.test"), on_click=test).props("outline no-caps")
            ui.button(t("cancel"), on_click=dialog.close).props("flat no-caps").classes("hk-grow")
            adder = ui.button(t("live.add"), on_click=add).props("unelevated no-caps")
        address.on("keydown.enter", test)

        def buttons_enabled(on: bool) -> None:
            tester.set_enabled(on)
            adder.set_enabled(on)

    dialog.on("hide", dialog.delete)
    dialog.open()


def _show_test(site: Site, answer: SourceTest) -> None:
    good = "good" if answer.ok else "bad"
    ui.label(site.t(f"live.test.{'ok' if answer.ok else 'bad'}")).classes(f"hk-{good}").style("font-weight: 650")
    ui.label(translated(answer.words, site.t.language)).style("overflow-wrap: anywhere")
    if answer.jpeg_base64:
        ui.html(f'<img alt="" src="data:image/jpeg;base64,{answer.jpeg_base64}">')
