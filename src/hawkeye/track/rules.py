"""What is to be counted: lines that are crossed and zones that are entered, given on the command line or in a file.

Coordinates are pixels, or fractions of the picture where all of a rule's numbers are at most 1. A file:

    [[line]]
    name = "gate"
    start = [0.5, 0.0]
    end = [0.5, 1.0]
    classes = ["person", "bicycle"]

    [[zone]]
    name = "yard"
    points = [[0.1, 0.5], [0.4, 0.5], [0.4, 0.9], [0.1, 0.9]]
    dwell_s = 10.0
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from hawkeye.errors import ConfigError

Point = tuple[float, float]
Anchor = Literal["bottom", "centre"]

_MAX_RULES, _MAX_POINTS, _MAX_FILE_BYTES = 100, 200, 1_000_000
_MIN_LENGTH_PX = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line across which objects are counted.

    Direction: someone who walks from `start` to `end` sees "in" as crossing from the left hand to the right hand. So
    a line drawn from left to right counts as "in" what moves down, one drawn from top to bottom what moves left.

    Attributes:
        name: of this rule; unique among the rules.
        start: x, y.
        end: x, y. Only what passes between `start` and `end` counts.
        classes: names of the classes that count; None counts all.
        anchor: the point of the box that must cross: the middle of its lower edge, or its centre.
        repeat: count every crossing. Off: a track counts once in each direction, however often it comes and goes.
    """

    name: str
    start: Point
    end: Point
    classes: tuple[str, ...] | None = None
    anchor: Anchor = "bottom"
    repeat: bool = False

    def __post_init__(self) -> None:
        _check_rule(self, "line", (self.start, self.end))
        if not isinstance(self.repeat, bool):
            raise ConfigError(f"repeat of line {self.name!r} is unclear", got=self.repeat, expected="true or false")
        if self.start == self.end:
            raise ConfigError(f"line {self.name!r} has no length", got=_text((self.start, self.end)),
                              expected="two different points")  # fmt: skip

    def scaled(self, width: int, height: int) -> Line:
        """The same line in pixels of a picture of `width` x `height`.

        Raises:
            ConfigError: it reaches outside the picture, or is shorter than 2 pixels there.
        """
        start, end = _to_pixels(self, "line", (self.start, self.end), width, height)
        if math.dist(start, end) < _MIN_LENGTH_PX:
            raise ConfigError(f"line {self.name!r} is too short in a picture of {width} x {height}",
                              got=_text((start, end)), expected=f"at least {_MIN_LENGTH_PX:g} pixels")  # fmt: skip
        return replace(self, start=start, end=end)


@dataclass(frozen=True, slots=True)
class Zone:
    """A polygon that objects enter and leave.

    Attributes:
        name: of this rule; unique among the rules.
        points: corners in order, at least three; the last is joined to the first.
        classes: names of the classes that count; None counts all.
        anchor: the point of the box that must be inside: the middle of its lower edge, or its centre.
        dwell_s: seconds inside after which a stay is reported as it happens; None never.
    """

    name: str
    points: tuple[Point, ...]
    classes: tuple[str, ...] | None = None
    anchor: Anchor = "bottom"
    dwell_s: float | None = None

    def __post_init__(self) -> None:
        _check_rule(self, "zone", self.points)
        if not 3 <= len(self.points) <= _MAX_POINTS:
            raise ConfigError(f"zone {self.name!r} is no polygon", got=f"{len(self.points)} points",
                              expected=f"3 to {_MAX_POINTS}")  # fmt: skip
        _check_polygon(self.name, self.points)
        if self.dwell_s is not None and not (isinstance(self.dwell_s, int | float) and self.dwell_s > 0):
            raise ConfigError(f"dwell_s of zone {self.name!r} is no time", got=self.dwell_s, expected="more than 0 s")

    def scaled(self, width: int, height: int) -> Zone:
        """The same zone in pixels of a picture of `width` x `height`.

        Raises:
            ConfigError: it reaches outside the picture.
        """
        return replace(self, points=_to_pixels(self, "zone", self.points, width, height))


Rule = Line | Zone


def parse_line(text: str, *, name: str = "line") -> Line:
    """A line from `x1,y1,x2,y2[:name]`; `name` serves where the text has none.

    Raises:
        ConfigError: not four numbers, or a line that cannot be.
    """
    numbers, given = _split(text, "--line", "x1,y1,x2,y2[:name]")
    if len(numbers) != 4:
        raise ConfigError("--line needs four numbers", got=f"{len(numbers)} in {text!r}", expected="x1,y1,x2,y2[:name]",
                          mend="for example --line 0.5,0,0.5,1:gate")  # fmt: skip
    return Line(given or name, (numbers[0], numbers[1]), (numbers[2], numbers[3]))


def parse_zone(text: str, *, name: str = "zone") -> Zone:
    """A zone from `x1,y1,x2,y2,x3,y3,…[:name]`; `name` serves where the text has none.

    Raises:
        ConfigError: an odd count of numbers, fewer than six, or a polygon that crosses itself.
    """
    numbers, given = _split(text, "--zone", "x1,y1,x2,y2,x3,y3,…[:name]")
    if len(numbers) < 6 or len(numbers) % 2:
        raise ConfigError("--zone needs pairs of numbers, at least three", got=f"{len(numbers)} numbers in {text!r}",
                          expected="x1,y1,x2,y2,x3,y3,…[:name]",
                          mend="for example --zone 0.1,0.1,0.9,0.1,0.9,0.9:yard")  # fmt: skip
    return Zone(given or name, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read the `[[line]]` and `[[zone]]` tables of a TOML file; see the top of this module.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, a missing value, or a rule that cannot be.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is too large for a file of rules", got=f"{path.stat().st_size} bytes",
                              expected=f"at most {_MAX_FILE_BYTES}")  # fmt: skip
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the rules in {path}", got=error.strerror, expected="a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML", got=error, expected="[[line]] and [[zone]] tables") from None
    if unknown := set(tables) - {"line", "zone"}:
        raise ConfigError(f"{path} holds what is no rule", got=", ".join(sorted(unknown)),
                          expected="[[line]] and [[zone]] tables only")  # fmt: skip
    rules: list[Rule] = []
    for kind, build in (("line", Line), ("zone", Zone)):
        rows = tables.get(kind, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError(f"{path}: {kind} is not a list of tables", got=type(rows).__name__,
                              expected=f"[[{kind}]], in double brackets")  # fmt: skip
        rules += [_from_table(build, kind, row, path) for row in rows]
    if not rules:
        raise ConfigError(f"{path} holds no rules", expected="[[line]] or [[zone]] tables")
    return check_rules(rules)


def check_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules as they are, or an error.

    Raises:
        ConfigError: two rules of one name, or more than 100 rules.
    """
    found = tuple(rules)
    names = [rule.name for rule in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError("two rules have the same name", got=", ".join(twice), expected="a name for each",
                          mend="name them: --line 0.5,0,0.5,1:gate")  # fmt: skip
    if len(found) > _MAX_RULES:
        raise ConfigError("too many rules", got=len(found), expected=f"at most {_MAX_RULES}")
    return found


def parse_rules(lines: Sequence[str] = (), zones: Sequence[str] = (), file: Path | None = None) -> tuple[Rule, ...]:
    """All rules of a command: from `--line`, `--zone` and a file. Those without a name become line1, zone2 and so on.

    Raises:
        ConfigError: as `parse_line`, `parse_zone`, `load_rules` and `check_rules`.
    """
    given: list[Rule] = [parse_line(text, name=f"line{i}") for i, text in enumerate(lines, 1)]
    given += [parse_zone(text, name=f"zone{i}") for i, text in enumerate(zones, 1)]
    return check_rules([*given, *(load_rules(file) if file else ())])


def _split(text: str, option: str, form: str) -> tuple[list[float], str]:
    numbers, _, name = text.partition(":")
    try:
        return [float(number) for number in numbers.split(",")], name.strip()
    except ValueError:
        raise ConfigError(f"{option} cannot be read", got=repr(text), expected=form,
                          mend="numbers with commas between them, and a name after a colon") from None  # fmt: skip


def _from_table(build: type[Line] | type[Zone], kind: str, row: dict[str, Any], path: Path) -> Rule:
    known = [field.name for field in fields(build)]
    label = f"{path}: [[{kind}]] {row.get('name', '')!r}"
    if unknown := sorted(set(row) - set(known)):
        raise ConfigError(f"{label} has unknown keys", got=", ".join(unknown), expected=", ".join(known))
    needed = [name for name in ("name", "start", "end", "points") if name in known]
    if missing := [name for name in needed if name not in row]:
        raise ConfigError(f"{label} lacks {', '.join(missing)}", expected=", ".join(needed))
    values = dict(row)
    try:
        for key in {"start", "end"} & set(values):
            values[key] = _point(values[key])
        if "points" in values:
            values["points"] = tuple(_point(point) for point in values["points"])
    except (TypeError, ValueError):
        raise ConfigError(f"{label}: these are no points", got=values.get("points", values.get("start")),
                          expected="pairs of numbers, such as [0.5, 1.0]") from None  # fmt: skip
    if isinstance(values.get("classes"), list):
        values["classes"] = tuple(values["classes"])
    return build(**values)


def _point(value: Any) -> Point:
    if isinstance(value, str) or any(isinstance(v, bool | str) for v in value):
        raise ValueError
    x, y = value
    return float(x), float(y)


def _check_rule(rule: Rule, kind: str, points: Sequence[Point]) -> None:
    if not isinstance(rule.name, str) or not rule.name.strip() or len(rule.name) > 100 or not rule.name.isprintable():
        raise ConfigError(f"a {kind} needs a name", got=repr(rule.name), expected="1 to 100 printable characters")
    numbers = [v for point in points for v in point]
    if not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise ConfigError(f"{kind} {rule.name!r} lies outside the picture", got=_text(points),
                          expected="coordinates of at least 0")  # fmt: skip
    if max(numbers, default=0) > 1 and any(0 < v < 1 for v in numbers):
        raise ConfigError(f"{kind} {rule.name!r} mixes pixels and fractions", got=_text(points),
                          expected="all of one sort: fractions are from 0 to 1")  # fmt: skip
    if rule.anchor not in ("bottom", "centre"):
        raise ConfigError(f"anchor of {kind} {rule.name!r} is unknown", got=rule.anchor, expected="bottom or centre")
    if rule.classes is not None and (
        not isinstance(rule.classes, tuple) or not rule.classes or not all(isinstance(c, str) for c in rule.classes)
    ):
        raise ConfigError(f"classes of {kind} {rule.name!r} are no list of names", got=rule.classes,
                          expected='such as ["person"]; leave it out to count all')  # fmt: skip


def _to_pixels(rule: Rule, kind: str, points: Sequence[Point], width: int, height: int) -> tuple[Point, ...]:
    if all(v <= 1 for point in points for v in point):
        return tuple((x * width, y * height) for x, y in points)
    if any(x > width or y > height for x, y in points):
        raise ConfigError(f"{kind} {rule.name!r} lies outside the picture", got=_text(points),
                          expected=f"x up to {width}, y up to {height}, or fractions from 0 to 1")  # fmt: skip
    return tuple(points)


def _check_polygon(name: str, points: Sequence[Point]) -> None:
    count = len(points)
    sides = [(points[i], points[(i + 1) % count]) for i in range(count)]
    if any(a == b for a, b in sides):
        raise ConfigError(f"zone {name!r} names a corner twice in a row", got=_text(points),
                          expected="each corner once; the last is joined to the first by itself")  # fmt: skip
    for i in range(count):
        for j in range(i + 1, count):
            neighbours = j == i + 1 or (i == 0 and j == count - 1)
            if not neighbours and touch(*sides[i], *sides[j]):
                raise ConfigError(f"zone {name!r} crosses itself", got=_text(points),
                                  expected="corners in the order in which one walks around it")  # fmt: skip
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in sides) / 2
    if abs(area) < 1e-9:
        raise ConfigError(f"zone {name!r} has no area", got=_text(points), expected="corners that are not in a row")


def touch(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the segments a-b and c-d have a point in common."""

    def turn(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    def between(p: Point, q: Point, r: Point) -> bool:
        return min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(p[1], q[1])

    abc, abd, cda, cdb = turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)
    if abc * abd < 0 and cda * cdb < 0:
        return True
    return any(
        value == 0 and between(p, q, r)
        for value, p, q, r in ((abc, a, b, c), (abd, a, b, d), (cda, c, d, a), (cdb, c, d, b))
    )


def _text(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
