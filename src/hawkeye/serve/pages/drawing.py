"""The dialog in which lines and zones of a source are drawn, moved, named and deleted."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nicegui import ui
from pydantic import ValidationError

from hawkeye.errors import ConfigError
from hawkeye.serve.core import Service
from hawkeye.serve.pages.layout import Site, heading
from hawkeye.serve.pages.picture import Picture, Points, drawable, fractions
from hawkeye.serve.problems import NotFound
from hawkeye.serve.schemas import RuleSpec, SourceInfo

_EVERY_S = 1.0
_MIDDLE: dict[str, Points] = {
    "line": ((0.3, 0.5), (0.7, 0.5)),
    "zone": ((0.35, 0.35), (0.65, 0.35), (0.65, 0.65), (0.35, 0.65)),
}


def edit_rules(site: Site, source: str) -> None:
    """Open the dialog."""
    t = site.t
    with site.dialog() as dialog, ui.element("div").classes("hk-dialog wide"):
        with ui.element("div").classes("hk-row").style("margin-bottom: 12px"):
            heading(t("live.edit.of", name=source))
            ui.button(icon="close", on_click=dialog.close).props(f'flat dense round aria-label="{t("close")}"').classes(
                "hk-grow"
            )
        Editor(site, source)
    dialog.props("maximized").on("hide", dialog.delete)
    dialog.open()


class Editor:
    """The picture with what can be done to its lines and zones beside it."""

    def __init__(self, site: Site, source: str) -> None:
        t, self.site, self.source = site.t, site, source
        self.drawing: str | None = None
        self.chosen: str | None = None
        self.shown_rules: object = None
        with ui.element("div").classes("hk-side"):
            with ui.element("div"):
                words = {"none": t("live.no_picture"), "lost": t("live.lost")}
                self.picture = Picture(t("live.picture", name=source), source=source, words=words)
                self.picture.when("drawn", self._drawn)
                self.picture.when("moved", self._moved)
                self.picture.when("pick", lambda args: self._choose(str(args.get("name"))))
                self.picture.when("gaveup", lambda _: self._draw(None))
                self.help = ui.label().classes("hk-soft").style("margin-top: 8px").props("role=status")
            with ui.element("div"):
                with ui.element("div").classes("hk-row"):
                    self.buttons = {
                        kind: ui.button(t(f"draw.{kind}"), on_click=lambda kind=kind: self._toggle(kind)).props(
                            "outline no-caps"
                        )
                        for kind in ("line", "zone")
                    }
                ui.label(t("draw.keyboard")).classes("hk-soft").style("margin-top: 8px")
                with ui.element("div").classes("hk-row"):
                    for kind in ("line", "zone"):
                        ui.button(t(f"draw.middle.{kind}"), on_click=lambda kind=kind: self._middle(kind)).props(
                            "flat dense no-caps"
                        )
                self.panel = ui.element("div").style("margin-top: 12px")
        self._draw(None)
        self.refresh()
        site.every(_EVERY_S, self.refresh)

    def refresh(self) -> None:
        """Bring lines, zones and totals up to date."""
        try:
            info = self.site.service.source(self.source)
        except NotFound:
            self.help.set_text(self.site.t("live.gone"))
            return
        known = info.width is not None
        self.picture.show(rules=drawable(self.site, info), chosen=self.chosen, editable=known)
        for button in self.buttons.values():
            button.set_enabled(known)
        if not known:
            self.help.set_text(self.site.t("draw.wait"))
        elif self.help.text == self.site.t("draw.wait"):
            self._draw(None)
        if self.shown_rules != (info.rules, self.chosen):
            self.shown_rules = (info.rules, self.chosen)
            self._show_panel(info)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _toggle(self, kind: str) -> None:
        self._draw(None if self.drawing == kind else kind)

    def _draw(self, kind: str | None) -> None:
        self.drawing = kind
        self.picture.show(drawing=kind)
        for name, button in self.buttons.items():
            button.props(f'aria-pressed="{"true" if name == kind else "false"}"')
            button.props(remove="outline" if name == kind else "unelevated")
            button.props("unelevated" if name == kind else "outline")
        self.help.set_text(self.site.t(f"draw.{kind}.how" if kind else "draw.move.how"))

    async def _drawn(self, args: dict[str, Any]) -> None:
        kind = "zone" if args.get("kind") == "zone" else "line"
        self._draw(None)
        if (points := _points(args)) is not None:
            await self._add(kind, points)

    async def _middle(self, kind: str) -> None:
        await self._add(kind, _MIDDLE[kind])

    async def _add(self, kind: str, points: Points) -> None:
        names = {rule.name for rule in self.site.service.rules(self.source)}
        name = next(n for i in range(1, 1000) if (n := f"{self.site.t(f'draw.kind.{kind}').lower()}-{i}") not in names)
        await self._save({"kind": kind, "name": name, "points": points})

    async def _moved(self, args: dict[str, Any]) -> None:
        rule, points = self._rule(str(args.get("name"))), _points(args)
        if rule is not None and points is not None:
            await self._save({**rule.model_dump(), "points": points}, quiet=True)

    # -- one rule -----------------------------------------------------------------------------------------------------

    def _rule(self, name: str) -> RuleSpec | None:
        return next((rule for rule in self.site.service.rules(self.source) if rule.name == name), None)

    def _choose(self, name: str | None) -> None:
        if self.chosen != name:
            self.chosen = name
            self.refresh()

    async def _save(self, values: dict[str, Any], *, instead: str | None = None, quiet: bool = False) -> bool:
        """See `put_rule`; whether it worked, and tells."""
        t, done = self.site.t, False
        try:
            spec = RuleSpec.model_validate(values)
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            self.site.say(t(f"draw.bad.{field if field in ('name', 'dwell_s') else 'points'}"), "negative")
        else:
            done, _ = await self.site.attempt(
                "operator", lambda: put_rule(self.site.service, self.source, spec, instead=instead), source=self.source
            )
        self.chosen = values["name"] if done else self.chosen
        self.shown_rules = None
        self.refresh()
        if done and not quiet:
            self.site.say(t("draw.saved", name=values["name"]), "positive")
        return done

    async def _delete(self, name: str) -> None:
        done, _ = await self.site.attempt(
            "operator", lambda: self.site.service.remove_rule(self.source, name), source=self.source
        )
        if done:
            self.chosen = None
            self.refresh()
            self.site.say(self.site.t("draw.deleted", name=name))

    def _show_panel(self, info: SourceInfo) -> None:
        t, rules = self.site.t, info.rules
        self.panel.clear()
        with self.panel:
            heading(t("live.rules"), 3)
            if not rules:
                ui.label(t("draw.none")).classes("hk-soft")
            for rule in rules:
                title = f"{t(f'draw.kind.{rule.kind}')}: {rule.name}"
                with ui.expansion(title, value=rule.name == self.chosen, group="rules",
                                  on_value_change=lambda e, name=rule.name: self._open(name, e.value)):  # fmt: skip
                    self._form(rule, fractions(rule, info.width, info.height))
            if rules:
                ui.label(t("draw.moved")).classes("hk-soft").style("margin-top: 8px")

    def _open(self, name: str, on: bool) -> None:
        if on:
            self.chosen = name
            self.picture.show(chosen=name)
            if isinstance(self.shown_rules, tuple):
                self.shown_rules = (self.shown_rules[0], name)  # opened by hand: the panel shows it already

    def _form(self, rule: RuleSpec, points: Points | None) -> None:
        t = self.site.t
        with ui.element("div").classes("hk-form"):
            name = ui.input(t("name"), value=rule.name).props("outlined dense maxlength=100")
            classes = ui.select(list(self.site.service.names), label=t("draw.classes"), multiple=True, with_input=True,
                                value=list(rule.classes or ())).props(
                f'outlined dense use-chips hint="{t("draw.classes.all")}"')  # fmt: skip
            anchor = ui.select({key: t(f"draw.anchor.{key}") for key in ("bottom", "centre")}, value=rule.anchor,
                               label=t("draw.anchor")).props("outlined dense")  # fmt: skip
            repeat = ui.checkbox(t("draw.repeat"), value=rule.repeat) if rule.kind == "line" else None
            dwell = None
            if rule.kind == "zone":
                dwell = ui.number(t("draw.dwell"), value=rule.dwell_s, min=0).props("outlined dense clearable")

            fields = [self._fields(i + 1, point) for i, point in enumerate(points or ())]

            def values() -> dict[str, Any]:
                typed = tuple((x.value / 100, y.value / 100) for x, y in fields if None not in (x.value, y.value))
                return {
                    "kind": rule.kind, "name": (name.value or "").strip(),
                    "points": typed if len(typed) == len(rule.points) else rule.points,
                    "classes": tuple(classes.value) or None, "anchor": anchor.value,
                    "repeat": bool(repeat and repeat.value), "dwell_s": (dwell.value or None) if dwell else None,
                }  # fmt: skip

            async def save() -> None:
                await self._save(values(), instead=rule.name)

            async def turn() -> None:
                new = values()
                await self._save({**new, "points": new["points"][::-1]}, instead=rule.name)

            if rule.kind == "line":
                ui.button(t("draw.turn"), icon="swap_vert", on_click=turn).props("flat dense no-caps")
            with ui.element("div").classes("hk-row"):
                ui.button(t("delete"), on_click=lambda: self._delete(rule.name)).props("flat no-caps color=negative")
                ui.button(t("save"), on_click=save).props("unelevated no-caps").classes("hk-grow")

    def _fields(self, number: int, point: tuple[float, float]) -> tuple[ui.number, ui.number]:
        """Where a point is, in per cent of the picture from its left and upper edge."""
        t = self.site.t
        with ui.element("div").classes("hk-point"):
            ui.label(t("draw.point", n=number)).classes("hk-soft")
            x, y = (
                ui.number(t(f"draw.{axis}"), value=round(100 * value, 1), min=0, max=100, step=0.5, suffix="%").props(
                    f'outlined dense aria-label="{t("draw.point", n=number)}, {t(f"draw.{axis}")}"'
                )
                for axis, value in zip(("across", "down"), point, strict=True)
            )
        return x, y


def put_rule(service: Service, source: str, rule: RuleSpec, *, instead: str | None = None) -> None:
    """Set a line or zone of a source, in the place of the one named `instead` if that has another name.

    Raises:
        NotFound: no such source.
        ConfigError: the new name is taken, or see `Service.set_rule`; all stays as it was.
    """
    if instead in (None, rule.name):
        service.set_rule(source, rule)
        return
    if any(known.name == rule.name for known in service.rules(source)):
        raise ConfigError("there is a line or zone of this name", got=rule.name, mend="give it another name")
    service.set_rule(source, rule)  # first: where it is refused, the old one must still be there
    with suppress(NotFound):  # somebody else has removed it meanwhile
        service.remove_rule(source, instead)


def _points(args: dict[str, Any]) -> Points | None:
    """Points from the browser, which may send anything; None where they are none."""
    try:
        points = tuple((float(x), float(y)) for x, y in args["points"])
    except (KeyError, TypeError, ValueError):
        return None
    inside = all(0 <= v <= 1 for point in points for v in point)
    return points if inside and 2 <= len(points) <= 200 else None
