"""The first command of each role's page works as it stands there, and what the pages name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import finished_run
import tiny_ir
from hawkeye import cli, pipeline

DOCS = Path(__file__).parents[1] / "docs"


def first_command(page: str) -> list[str]:
    """The first command of a page, without `hawkeye`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    before, _, _ = text.partition("\n## ")
    return re.findall(r"^    hawkeye (.*)$", before, re.MULTILINE)[0].split()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the commands name."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("street.jpg", np.full((48, 64, 3), (255, 0, 0), np.uint8))
    return tmp_path


def test_model_engineer(place: Path, monkeypatch: Any) -> None:
    finished_run.draw(place)
    Path("yolov8n.pt").write_text("0.0")
    monkeypatch.setattr(pipeline, "Stages", lambda: finished_run.stages(report=finished_run.plain_report))
    assert cli.run([*first_command("model-engineer.md"), "--imgsz", "64"]) == 0
    assert Path("runs/first/report.json").is_file()


def test_operator(place: Path) -> None:
    tiny_ir.stock_folder(Path("runs/first"))
    assert cli.run(first_command("operator.md")) == 0
    assert Path("found/predictions.jsonl").is_file()
    assert Path("found/pictures/street.jpg.jpg").is_file()


def test_platform_engineer(place: Path) -> None:
    tiny_ir.artifact(Path("runs/first/3-export/original"))
    assert cli.run(first_command("platform-engineer.md")) == 0
    assert Path("served/hawkeye/1/model.xml").is_file()
    assert Path("served/config.json").is_file()


@pytest.mark.parametrize("page", ["model-engineer.md", "operator.md", "platform-engineer.md", "scale.md"])
def test_pages_name_commands_and_options_that_exist(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for command, rest in re.findall(r"(?:^    |`)hawkeye ([a-z]+)([^`\n]*)", text, re.MULTILINE):
        assert command in cli.COMMANDS, command
        module, _, function = cli.COMMANDS[command][0].partition(":")
        code = Path(cli.__file__).parents[1] / f"{module.replace('.', '/')}.py"
        known = code.read_text(encoding="utf-8") + (code.parent / "options.py").read_text(encoding="utf-8")
        for option in re.findall(r"--([a-z-]+)", rest):
            assert re.search(rf"\b{option.removeprefix('no-').replace('-', '_')}\b", known), f"{command} --{option}"


@pytest.mark.parametrize("page", ["model-engineer.md", "operator.md", "platform-engineer.md", "scale.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), target


def test_the_readme_in_chinese_has_all_that_the_english_one_has() -> None:
    english, chinese = ((DOCS.parent / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def commands(text: str) -> list[str]:
        return [line.partition(" #")[0].strip() for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE)]

    def links(text: str) -> set[str]:
        found = set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}
        return {"a picture" if link.startswith("docs/images/") else link for link in found}  # of pages in its language

    assert commands(chinese) == commands(english)
    assert links(chinese) == links(english)
    assert chinese.count("\n## ") == english.count("\n## ")
    assert re.findall(r"^\| (`.*?) \|", english, re.MULTILINE) == [
        row.replace("、", ", ") for row in re.findall(r"^\| (`.*?) \|", chinese, re.MULTILINE)
    ]
