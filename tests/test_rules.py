"""Lines and zones: what is read from the command line and from files, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hawkeye.errors import ConfigError
from hawkeye.track.rules import Line, Zone, check_rules, load_rules, parse_line, parse_rules, parse_zone

SQUARE = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9))


def test_fractions_and_pixels() -> None:
    assert parse_line("0.5,0,0.5,1:gate") == Line("gate", (0.5, 0.0), (0.5, 1.0))
    scaled = parse_line("0.5,0,0.5,1").scaled(640, 480)
    assert (scaled.start, scaled.end) == ((320.0, 0.0), (320.0, 480.0))
    assert scaled.scaled(640, 480) == scaled
    assert parse_line("320, 0, 320, 480 : a gate").scaled(640, 480) == Line("a gate", (320, 0), (320, 480))
    zone = parse_zone("0.1,0.1,0.9,0.1,0.9,0.9,0.1,0.9:yard").scaled(100, 200)
    assert [round(v, 6) for point in zone.points for v in point] == [10, 20, 90, 20, 90, 180, 10, 180]


def test_names_are_given_where_there_are_none() -> None:
    rules = parse_rules(["0,0,1,1", "0,1,1,0:x"], ["0,0,1,0,1,1"])
    assert [rule.name for rule in rules] == ["line1", "x", "zone1"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("0.5,0,0.5", "four numbers"),
        ("0.5,0,0.5,1,1", "four numbers"),
        ("", "cannot be read"),
        ("0.5;0;0.5;1", "cannot be read"),
        ("0.5,0,0.5,one", "cannot be read"),
        ("0.5,0.5,0.5,0.5:gate", "no length"),
        ("-1,0,5,5", "outside the picture"),
        ("nan,0,1,1", "outside the picture"),
        ("inf,0,1,1", "outside the picture"),
        ("0.5,0,320,480", "mixes pixels and fractions"),
        ("0,0,1,1:" + "x" * 101, "needs a name"),
        ("0,0,1,1:a\x1bb", "needs a name"),
    ],
)
def test_lines_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_line(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("0,0,1,0,1", "pairs of numbers"),
        ("0,0,1,1", "pairs of numbers"),
        ("0,0,1,1,1,0,0,1", "crosses itself"),  # a bow tie
        ("0,0,1,0,0.5,0,0.2,1", "crosses itself"),  # back along its own side
        ("0,0,0.5,0.5,1,1", "crosses itself|no area"),
        ("0,0,0,0,1,1", "twice in a row"),
        ("0,0,1,0,1,1,0,0", "twice in a row"),
        ("0,0,1,0,1,-1", "outside the picture"),
    ],
)
def test_zones_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_zone(text)


@pytest.mark.parametrize("line", [(641, 0, 10, 10), (10, 10, 20, 481)])
def test_a_line_outside_the_picture(line: tuple[int, ...]) -> None:
    rule = parse_line(",".join(map(str, line)) + ":gate")
    with pytest.raises(ConfigError, match=re.escape("line 'gate' lies outside the picture")):
        rule.scaled(640, 480)


def test_a_line_that_vanishes_in_a_small_picture() -> None:
    with pytest.raises(ConfigError, match="too short"):
        parse_line("0.5,0.5,0.501,0.5").scaled(640, 480)


def test_two_rules_of_one_name() -> None:
    with pytest.raises(ConfigError, match="same name"):
        parse_rules(["0,0,1,1:a"], ["0,0,1,0,1,1:a"])
    with pytest.raises(ConfigError, match="too many"):
        check_rules(Line(str(i), (0, 0), (1, 1)) for i in range(101))


def test_a_concave_zone_is_fine() -> None:
    assert len(parse_zone("0,0,1,0,1,1,0.5,0.3,0,1").points) == 5


def test_rules_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("""
[[line]]
name = "gate"
start = [0.5, 0]
end = [0.5, 1.0]
classes = ["person", "car"]
anchor = "centre"
repeat = true

[[zone]]
name = "yard"
points = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
dwell_s = 10
""")
    gate = Line("gate", (0.5, 0.0), (0.5, 1.0), ("person", "car"), "centre", True)
    assert load_rules(path) == (gate, Zone("yard", SQUARE, dwell_s=10))
    assert parse_rules(["0,0,1,1"], file=path)[0].name == "line1"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "holds no rules"),
        ("[[line]\n", "not TOML"),
        ("[line]\nname = 'a'", "not a list of tables"),
        ("line = 3", "not a list of tables"),
        ("[[lines]]\nname = 'a'", "what is no rule"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]", "lacks end"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1]\ncolour = 'red'", "unknown keys"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1, 1]", "no points"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = 5", "no points"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = '11'", "no points"),
        ("[[line]]\nname = 3\nstart = [0, 0]\nend = [1, 1]", "needs a name"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1]\nclasses = 'person'", "no list of names"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1]\nclasses = []", "no list of names"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1]\nanchor = 'top'", "anchor"),
        ("[[line]]\nname = 'a'\nstart = [0, 0]\nend = [1, 1]\nrepeat = 'yes'", "repeat"),
        ("[[zone]]\nname = 'a'\npoints = [[0, 0], [1, 1]]", "no polygon"),
        ("[[zone]]\nname = 'a'\npoints = 7", "no points"),
        ("[[zone]]\nname = 'a'\npoints = [[0, 0], [1, 0], [1, 1]]\ndwell_s = 0", "dwell_s"),
        ("[[zone]]\nname = 'a'\npoints = [[0, 0], [1, 0], [1, 1]]\ndwell_s = '5'", "dwell_s"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_rules(path)


def test_files_that_are_not_there_or_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_rules(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_rules(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"\xff\xfe\x00" * 10)
    with pytest.raises(ConfigError, match="not TOML"):
        load_rules(tmp_path / "video.mp4")
    (tmp_path / "large.toml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="too large"):
        load_rules(tmp_path / "large.toml")
