"""A picture in the browser with boxes on it, and the lines and zones above it; see `static/picture.js`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from hawkeye.detections import Detections
from hawkeye.serve.pages.layout import STATIC, Site
from hawkeye.serve.schemas import RuleSpec, SourceInfo

Points = tuple[tuple[float, float], ...]
Mark = tuple[float, float, float, float, int, str]


class Picture(Element, component=STATIC / "picture.js"):
    """A live or a still picture.

    Args:
        label: what a screen reader says.
        source: name of the source whose newest frames are shown.
        words: `none` and `lost`, shown while there is no picture.
        ratio: width over height until the first picture is there.
    """

    def __init__(self, label: str, *, source: str | None = None, words: dict[str, str] | None = None,
                 ratio: float | None = None) -> None:  # fmt: skip
        super().__init__()
        self._props["label"] = label
        self._props["source"] = source
        self._props["words"] = words or {}
        self._props["ratio"] = ratio
        self._props["rules"] = []
        self._props["chosen"] = None
        self._props["drawing"] = None

    def show(self, **props: Any) -> None:
        """Change properties where they differ: `image`, `boxes`, `rules`, `chosen`, `drawing`, `editable`, `stale`."""
        for name, value in props.items():
            if self._props.get(name) != value:
                self._props[name] = value

    def when(self, event: str, handler: Callable[[dict[str, Any]], Any]) -> None:
        """Call `handler` with the arguments of "pick", "moved", "drawn" or "gaveup"."""

        def call(event_: GenericEventArguments) -> Any:
            return handler(event_.args if isinstance(event_.args, dict) else {})

        self.on(event, call)


def marks(found: Detections, names: Sequence[str], width: int, height: int) -> list[Mark]:
    """Boxes as the browser draws them: corners as fractions of the picture, number of the colour, text."""
    tracks = [None] * len(found) if found.track_id is None else found.track_id.tolist()
    shown: list[Mark] = []
    boxes = (found.xyxy / np.array([width, height, width, height], np.float32)).round(4).tolist()
    for (x1, y1, x2, y2), cls, score, track in zip(
        boxes, found.class_id.tolist(), found.score.tolist(), tracks, strict=True
    ):
        text = f"{names[cls]} {f'{score:.2f}' if track is None else track}"
        shown.append((x1, y1, x2, y2, cls if track is None else track, text))
    return shown


def fractions(rule: RuleSpec, width: int | None, height: int | None) -> Points | None:
    """A rule's points as fractions of the picture; None while they are pixels of a picture of unknown size."""
    if all(v <= 1 for point in rule.points for v in point):
        return rule.points
    if not width or not height:
        return None
    return tuple((min(1.0, x / width), min(1.0, y / height)) for x, y in rule.points)


def drawable(site: Site, info: SourceInfo) -> list[dict[str, object]]:
    """Lines and zones of a source as the picture draws them, each with what it has counted."""
    shown: list[dict[str, object]] = []
    for rule in info.rules:
        points = fractions(rule, info.width, info.height)
        if points is None:
            continue
        total = info.totals.get(rule.name, {})
        keys = ("in", "out") if rule.kind == "line" else ("now",)
        facts = [site.t(f"live.{'inside' if key == 'now' else key}", n=total[key]) for key in keys
                 if total.get(key) is not None]  # fmt: skip
        shown.append({
            "name": rule.name, "kind": rule.kind, "points": [list(point) for point in points],
            "label": " · ".join([rule.name, *facts]), "spoken": rule.name,
        })  # fmt: skip
    return shown
