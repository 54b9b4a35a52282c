"""What people get wrong at the command line: models, rules, places. Each is one clear error."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_ir
from hawkeye.artifact import write_bytes
from hawkeye.cli import run
from hawkeye.errors import ConfigError, StorageError
from hawkeye.live import LiveSession
from hawkeye.outputs import JsonLines
from hawkeye.predict import count
from hawkeye.runtime.stream import Stream
from hawkeye.track.rules import parse_rules
from live_fakes import NAMES, FakeCapture, FakeNetwork, engine, file_of, picture, source, until, write_video


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_ir.stock_folder(tmp_path / "model", stock_head=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "segment"}, "not a detector"),
        ({"names": {0: "one"}}, "detector's output"),
        ({"task": "pose"}, "not a"),
    ],
)
def test_a_model_of_another_task_or_class_count(tmp_path, capsys, change, message):
    model = tiny_ir.stock_folder(tmp_path / "m", **change)
    cv2.imwrite(str(tmp_path / "x.png"), picture(1))
    assert run(["predict", str(tmp_path / "x.png"), "--model", str(model), "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--line", "0,0,1000,0"], "outside"),
        (["--line", "0.5,0,0.5"], "four numbers"),
        (["--line", "a,b,c,d"], "x1,y1,x2,y2"),
        (["--zone", "0,0,1,1"], "pairs of numbers"),
        (["--line", "0,0,1,1:a", "--line", "0,1,1,0:a"], "same name"),
        (["--rules", "none.toml"], "none.toml"),
        (["--classes", "rad"], "did you mean 'red'"),
        (["--every", "soon"], "--every"),
        (["--series", "xls"], "xls"),
        (["--fps", "0"], "--fps"),
        (["--fps", "inf"], "--fps"),
        (["--classes", " , "], "--classes names nothing"),
        (["--series", ""], "--series names nothing"),
        (["--every", "0.0000001"], "at least 0.1s"),
        (["--line", "-0.1,0,1,1"], "expected: coordinates of at least 0"),
        (["--zone", "-0.1,0,1,1,0,1", "--video"], "expected: coordinates of at least 0"),
        (["--line", "--video"], "--line cannot be read"),
        (["--conf", "7"], "conf"),
        (["--resolution", "huge"], "no resolution"),
        (["--engine", "async", "--resolution", "adaptive"], "--engine"),
    ],
)
def test_what_a_tired_operator_types(model, tmp_path, capsys, options, words):
    video = write_video(tmp_path / "v.mp4", 4)
    out = tmp_path / "out"
    assert run(["count", str(video), "--model", str(model), "--out", str(out), "--threads", "1", *options]) == 2
    text = capsys.readouterr().err
    assert text.replace("engine: ", "").count("error: ") == 1
    assert words in text
    assert not list(out.rglob("*")) or not (out / "counts.json").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/none"])
@pytest.mark.parametrize("command", ["predict", "count"])
def test_a_folder_for_results_that_cannot_be(model, tmp_path, monkeypatch, capsys, command, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    assert run([command, str(write_video(tmp_path / "v.mp4", 2)), "--model", str(model), "--out", place]) == 2
    assert "cannot make the folder" in capsys.readouterr().err
    assert Path("file").read_text() == "kept"


def test_a_run_that_was_stopped_says_how_far_it_came(capsys):
    from hawkeye.live_commands import _tell_streams

    session = LiveSession(engine(FakeNetwork(delay_s=0.02)), NAMES)
    session.add(Stream(source("v"), open_=file_of(500)))
    session.start()
    until(lambda: session.status()[0].done > 2)
    session.stop()
    _tell_streams(session.status())
    assert f"v: stopped; {session.status()[0].done} of 500 frames were looked at\n" == capsys.readouterr().out


def test_no_source_and_no_model(model, tmp_path, capsys):
    assert run(["predict", "--model", str(model)]) == 2
    assert "no source was named" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "x.png"), picture(1))
    assert run(["predict", str(tmp_path / "x.png"), "--model", str(tmp_path / "none")]) == 2
    assert "there is no model" in capsys.readouterr().err
    assert run(["predict", str(tmp_path / "x.png"), "--model", str(tmp_path / "x.png")]) == 2
    assert "to mend it: name a run's folder" in capsys.readouterr().err


def test_a_disk_that_refuses_is_one_clear_error(tmp_path):
    """/dev/full takes every byte and then says that the disk is full."""

    class Full(JsonLines):
        def __init__(self) -> None:
            super().__init__(tmp_path / "o.jsonl")
            self._text._file = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    session = LiveSession(engine(), NAMES, outputs=[Full()])
    session.add(Stream(source(), open_=file_of(5)))
    with pytest.raises(StorageError, match="o.jsonl"):
        session.run()


def test_what_was_begun_keeps_its_part_when_everything_failed(tmp_path):
    def broken(_):
        return FakeCapture([picture(1), RuntimeError("x")], frames=5)

    session = LiveSession(engine(), NAMES, outputs=[JsonLines(tmp_path / "o.jsonl")])
    session.add(Stream(source(), open_=broken))
    session.run()
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl.part"]


def test_counting_pictures_in_order(model, tmp_path):
    for number in range(12):
        image = np.zeros((64, 64, 3), np.uint8)
        image[16:32, 16:32, 2] = 255
        write_bytes(tmp_path / "f" / f"{number:03}.png", cv2.imencode(".png", image)[1].tobytes())
    done = count(model, tmp_path / "f", out=tmp_path / "o", conf=0.8, threads=1, fps=4.0, agnostic=True, iou=0.01)
    (status,) = done.streams
    assert status.counts["picture"]["enter"] >= 1
    assert status.done == 12
    with pytest.raises(ConfigError, match="class"):
        count(model, tmp_path / "f", out=tmp_path / "o", threads=1,
              rules=[rule_of("elephant")])  # fmt: skip


def rule_of(name: str):
    from dataclasses import replace

    return replace(parse_rules(["0.5,0,0.5,1"])[0], classes=(name,))
