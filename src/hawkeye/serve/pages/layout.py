"""What all pages share: the frame around them, language and colours, tables, and how errors are told."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from nicegui import run, ui
from nicegui.element import Element
from starlette.requests import Request

from hawkeye import __version__
from hawkeye.errors import HawkeyeError
from hawkeye.serve.core import Service
from hawkeye.serve.language import Texts, preferred, translated
from hawkeye.serve.schemas import Role, SourceInfo
from hawkeye.serve.security import LOCAL, Principal

STATIC = Path(__file__).parents[1] / "static"
ASSETS = "/assets"  # where STATIC is
PAGES = ("live", "detect", "counts", "models", "runs", "system")
_COOKIE = "document.cookie='{name}={value};path=/;max-age=31536000;SameSite=Lax';location.reload()"
_SIGN_OUT = "() => fetch('/v1/session', {method: 'DELETE'}).then(() => location.assign('/'))"
_THEMES = {"auto": (None, "contrast"), "light": (False, "light_mode"), "dark": (True, "dark_mode")}


@dataclass
class Site:
    """One visit of one page.

    Attributes:
        service: what the pages show.
        t: texts in the visitor's language.
        who: asks again at every use, so that a token that was taken back ends with the next click; None then.
        overlay: where dialogs are put, so that they outlive what they were opened from.
    """

    service: Service
    t: Texts
    who: Callable[[], Principal | None]
    theme: str = "auto"
    overlay: Element | None = None

    def may(self, role: Role) -> bool:
        """Whether the visitor has this role or a higher one."""
        principal = self.who()
        return principal is not None and principal.may(role)

    def sees(self, source: str) -> bool:
        """Whether the visitor may see this source."""
        principal = self.who()
        return principal is not None and principal.sees(source)

    def sources(self) -> list[SourceInfo]:
        """The sources that the visitor may see."""
        return [info for info in self.service.sources() if self.sees(info.name)]

    def say(self, text: str, kind: Literal["info", "positive", "warning", "negative"] = "info") -> None:
        """Tell something in passing; what is wrong stays for longer."""
        assert self.overlay is not None
        bad = kind == "negative"
        with self.overlay:  # the button that was pressed may be gone by now
            ui.notify(
                text, type=kind, multi_line=bad, timeout=12_000 if bad else 5_000, close_button="✕" if bad else False
            )

    @contextmanager
    def dialog(self) -> Iterator[ui.dialog]:
        """A dialog to be filled, opened, and deleted when it is hidden."""
        assert self.overlay is not None
        with self.overlay, ui.dialog() as dialog:
            yield dialog

    def every(self, seconds: float, refresh: Callable[[], Any]) -> None:
        """Refresh the page now and again, for as long as the visitor may see it."""

        async def tick() -> None:
            if self.who() is None:  # signed out elsewhere, or the token was taken back
                timer.cancel()
                ui.navigate.to("/")  # and from there to where one signs in
            elif inspect.isawaitable(done := refresh()):
                await done

        timer = ui.timer(seconds, tick)

    async def attempt(self, role: Role, work: Callable[[], Any], *, source: str | None = None) -> tuple[bool, Any]:
        """Do something that may wait or go wrong in a thread; whether it worked, and its result. Tells what is wrong.

        Args:
            role: needed for it.
            source: whose it is, if it is a source's.
        """
        if not self.may(role) or (source is not None and not self.sees(source)):
            self.say(self.t("denied"), "negative")
            return False, None
        try:
            return True, await run.io_bound(work)
        except HawkeyeError as error:
            self.say(f"{self.t('failed')}: {translated(str(error), self.t.language)}", "negative")
            return False, None


def visit(service: Service, request: Request, who: Callable[[], Principal | None]) -> Site:
    """The site as this request wants it: language and colours from cookies, else as the browser prefers."""
    language = preferred(request.cookies.get("hawkeye_language"), request.headers.get("accept-language", ""))
    theme = request.cookies.get("hawkeye_theme", "auto")
    return Site(service, Texts(language), who, theme if theme in _THEMES else "auto")


@contextmanager
def frame(site: Site, active: str) -> Iterator[None]:
    """The page around its content."""
    t = site.t
    client = ui.context.client
    dark, icon = _THEMES[site.theme]
    client.page = copy.copy(client.page)  # NiceGUI has these per page; here they are per visit
    client.page.language, client.page.dark = t.html_lang, dark
    ui.page_title(f"{t(f'nav.{active}')} · Hawkeye")
    ui.add_head_html(f'<link rel="stylesheet" href="{ASSETS}/hawkeye.css?v={__version__}">')
    with ui.element("header").classes("hk-head"):
        with ui.link(target="/").classes("hk-brand"):
            ui.element("img").props(f'src="{ASSETS}/favicon.svg" alt="" width=26 height=26')
            ui.label("Hawkeye")
        with ui.element("nav").classes("hk-nav").props(f'aria-label="{t("nav")}"'):
            for name in PAGES:
                link = ui.link(t(f"nav.{name}"), f"/{name}" if name != "live" else "/")
                if name == active:
                    link.props('aria-current="page"')
        with ui.element("div").classes("hk-tools"):
            other = "en" if t.language == "zh" else "zh"
            following = list(_THEMES)[(list(_THEMES).index(site.theme) + 1) % len(_THEMES)]
            ui.button(t("language.other")).props(f'flat dense no-caps aria-label="{t("language")}" lang="{other}"').on(
                "click", js_handler=f"() => {{{_COOKIE.format(name='hawkeye_language', value=other)}}}"
            )
            ui.button(icon=icon).props(f'flat dense round aria-label="{t(f"theme.{site.theme}")}"').tooltip(
                t(f"theme.{site.theme}")
            ).on("click", js_handler=f"() => {{{_COOKIE.format(name='hawkeye_theme', value=following)}}}")
            principal = site.who()
            if principal is not None and principal != LOCAL:
                words = f"{t('sign_out')}: {principal.name}, {t(f'role.{principal.role}')}"
                ui.button(icon="logout").props(f'flat dense round aria-label="{escape(words)}"').tooltip(words).on(
                    "click", js_handler=_SIGN_OUT
                )
    main, site.overlay = ui.element("main").classes("hk-main"), ui.element("div")
    with main:
        yield
    ui.skip_link(t("skip"), target=main)


@contextmanager
def card(title: str = "") -> Iterator[Element]:
    """A box with a heading."""
    with ui.element("section").classes("hk-card") as box:
        if title:
            heading(title)
        yield box


def heading(text: str, level: Literal[1, 2, 3] = 2) -> ui.label:
    """A heading of the page (1), a card (2) or a part of one (3)."""
    label = ui.label(text)
    label.tag = f"h{level}"
    return label


def empty(title: str, text: str) -> None:
    """What stands where there is nothing yet."""
    with ui.element("div").classes("hk-card hk-empty"):
        heading(title)
        ui.label(text)


def tile(title: str) -> tuple[ui.label, ui.label]:
    """A figure with its name above and a remark below; both are returned to be filled."""
    with ui.element("div").classes("hk-card hk-tile"):
        ui.label(title).classes("hk-soft")
        value = ui.label()
        value.tag = "b"
        remark = ui.label()
        remark.tag = "span"
    return value, remark


def chip(text: str, kind: str = "") -> ui.label:
    """A state in words; `kind` is good, warn, bad or nothing."""
    return ui.label(text).classes(f"hk-chip {kind}".strip())


def table_html(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[int] = (0,)) -> str:
    """A table as HTML; every text in it is escaped.

    Args:
        left: columns that hold words rather than figures.
    """

    def cells(tag: str, row: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=left' if i in left else ''}>{escape(str(cell))}</{tag}>" for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    header = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return f"<table>{header}<tbody>{body}</tbody></table>"


def table(content: str = "") -> ui.html:
    """A place for what `table_html` makes."""
    return ui.html(content).classes("hk-table hk-scroll")


def set_text(label: ui.label, text: str) -> None:
    """Change a label where it differs, so that nothing is sent for nothing."""
    if label.text != text:
        label.set_text(text)


def set_html(place: ui.html, content: str) -> None:
    """Change a table where it differs."""
    if place.content != content:
        place.set_content(content)


async def sure(site: Site, text: str, yes: str) -> bool:
    """Ask before something that cannot be undone."""
    with site.dialog() as dialog, ui.element("div").classes("hk-dialog"):
        ui.label(text)
        with ui.element("div").classes("hk-row").style("margin-top: 14px"):
            ui.button(site.t("cancel"), on_click=lambda: dialog.submit(False)).props("flat no-caps").classes("hk-grow")
            ui.button(yes, on_click=lambda: dialog.submit(True)).props("unelevated no-caps autofocus")
    answer = bool(await dialog)
    dialog.delete()
    return answer


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}" if digits else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """A size in MB or GB."""
    if value is None:
        return "–"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def counts_of(found: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Classes with their counts, the most frequent first."""
    return sorted((found or {}).items(), key=lambda pair: (-pair[1], pair[0]))
