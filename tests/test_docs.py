"""What the guides show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_ir
from hawkeye.cli import run
from hawkeye.track.rules import Line, Zone, load_rules
from live_fakes import write_video

GUIDE = (Path(__file__).parents[1] / "docs" / "detect-and-count.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the guide names."""
    monkeypatch.chdir(tmp_path)
    tiny_ir.stock_folder(Path("runs/first"), names={0: "person", 1: "bicycle", 2: "car"}, stock_head=True)
    cv2.imwrite("street.jpg", np.full((64, 64, 3), (255, 0, 0), np.uint8))
    write_video(Path("door.mp4"), 6)
    return tmp_path


@pytest.mark.parametrize("code", blocks("python"), ids=["detector", "count"])
def test_python(place: Path, code: str) -> None:
    exec(compile(code, "docs/detect-and-count.md", "exec"), {})


def test_rules(place: Path) -> None:
    (text,) = blocks("toml")
    Path("rules.toml").write_text(text, encoding="utf-8")
    line, zone = load_rules(Path("rules.toml"))
    assert isinstance(line, Line) and line == Line("gate", (0.5, 0.0), (0.5, 1.0), classes=("person", "bicycle"))
    assert isinstance(zone, Zone) and zone.dwell_s == 10


def test_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    hawkeye (.*)$", GUIDE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert run([*command.split(), "--threads", "1"]) == 0, capsys.readouterr().err
    assert Path("found/predictions.jsonl").is_file() and Path("runs/count/counts.json").is_file()
