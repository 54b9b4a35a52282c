"""Progress that is told in a file, for who looks from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawkeye import progress as module
from hawkeye.progress import PROGRESS, progress, told_in
from hawkeye.serve.runs import Runs


def test_a_task_stands_in_a_file_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_TELL_EVERY_S", 0.0)
    run = tmp_path / "first"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with told_in(run):
        assert not (run / PROGRESS).exists()
        with progress("recover", 40) as task:
            task.advance(10, "loss 0.5")
            assert json.loads((run / PROGRESS).read_text()) == {"progress": 0.25, "note": "recover: loss 0.5"}
            [info] = Runs(tmp_path).list()
            assert (info.state, info.progress, info.note) == ("running", 0.25, "recover: loss 0.5")
        assert not (run / PROGRESS).exists()
        with pytest.raises(ZeroDivisionError), progress("export", None) as task:
            task.advance(1)
            assert json.loads((run / PROGRESS).read_text())["progress"] is None
            raise ZeroDivisionError
        assert not (run / PROGRESS).exists()
    with progress("elsewhere", 4):
        assert not (run / PROGRESS).exists()


def test_a_folder_that_is_gone_stops_nobody(tmp_path: Path):
    with told_in(tmp_path / "gone"), progress("recover", 4) as task:
        task.advance()


def test_what_was_done_before_is_not_counted_as_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("recover", 100.0, done=40.0) as task:
        for _ in range(2):
            now[0] += 60
            task.advance(10.0)
    # 10 a minute: 50 left is 300 s, and not the 60 s that 50 in one minute would say.
    assert capsys.readouterr().err.splitlines() == ["recover: 50%, 300 s left ", "recover: 60%, 240 s left "]
