"""Releases that are killed at every step, and several at once: whole or not there, and one of them wins."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hawkeye import store_files
from hawkeye.errors import StoreError
from hawkeye.release import release
from hawkeye.store import open_store, released

pytest.importorskip("matplotlib", reason="the report needs the [report] extra")
from test_store import made, models, names  # noqa: E402, F401  # the first two are fixtures

FORK = multiprocessing.get_context("fork")


# --- interrupted


def _die_at(count: int) -> None:
    """Kill this process at its `count`-th step that reaches the disk."""
    left = [count]

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    os.link = counted(os.link)
    os.rename = counted(os.rename)
    shutil.copyfile = counted(shutil.copyfile)


def _release_and_die(run: Path, url: str, count: int) -> None:
    _die_at(count)
    release(run, url)


def test_killed_at_every_step_it_is_whole_or_not_there(made: Path, models: str) -> None:  # noqa: F811
    before = release(made / "dim", models, despite="to have something before").version
    assert before is not None
    codes = []
    for count in range(1, 200):
        child = FORK.Process(target=_release_and_die, args=(made / "good", models, count))
        child.start()
        child.join()
        codes.append(child.exitcode)
        opened = open_store(models)
        for version in opened.versions():
            opened.verify(version)  # raises where a version is not whole
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        released(models)
        if len(names(models)) == 1:
            assert names(models) == [before.id]
    assert codes[-1] == 0 and len(codes) > 20, "it was not killed often"
    assert len(set(names(models))) == 2 and len(names(models)) == 2, "one release, however often it was started"
    for path in Path(models).rglob(".incoming-*"):
        os.utime(path, (0, 0))
    release(made / "dim", models, row="original", despite="x")  # the next release tidies up after the killed ones
    assert not list((Path(models) / "versions").glob(".incoming-*"))


def test_killed_at_random_moments(made: Path, models: str) -> None:  # noqa: F811
    """A whole process, from outside, as a power cut would do it."""
    code = f"from hawkeye.release import release\nfrom pathlib import Path\nrelease(Path({str(made / 'good')!r}), {models!r})"  # noqa: E501
    for delay in np.random.default_rng(0).uniform(0.4, 1.0, 4):
        child = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(delay)
        child.kill()
        child.wait()
        opened = open_store(models)
        for version in opened.versions():
            opened.verify(version)
        assert len(opened.history()) <= 1
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(names(models)) == 1


# --- two at once


def _race(run: Path, url: str, row: str, barrier: Any, results: Any) -> None:
    point = open_store(url).point  # imported before the start
    assert point
    real = store_files.LocalFiles.publish

    def publish(self: Any, folder: str, source: Path, last: str) -> None:
        barrier.wait()  # all have read the log by now
        real(self, folder, source, last)

    store_files.LocalFiles.publish = publish  # type: ignore[method-assign]
    try:
        results.put((row, release(run, url, row=row, despite="a race").entry.number))  # type: ignore[union-attr]
    except StoreError as error:
        results.put((row, str(error)))


def test_of_several_at_once_one_wins(made: Path, models: str) -> None:  # noqa: F811
    rows = ("original", "original+int8", "pruned", "pruned+int8")
    barrier, results = FORK.Barrier(len(rows)), FORK.Queue()
    children = [FORK.Process(target=_race, args=(made / "good", models, row, barrier, results)) for row in rows]
    for child in children:
        child.start()
    got = dict(results.get(timeout=60) for _ in rows)
    for child in children:
        child.join()
    won = [row for row, result in got.items() if result == 1]
    assert len(won) == 1
    lost = [result for row, result in got.items() if row not in won]
    assert all("another release came first" in text and "optimize" in text for text in lost)
    assert len(names(models)) == 1 and names(models)[0].startswith(won[0].replace("+", "-"))
    assert len(open_store(models).versions()) == len(rows), "what lost is kept, and not released"
