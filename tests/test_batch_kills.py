"""Batches that are killed, and workers that die: nothing is lost, nothing is there twice."""

from __future__ import annotations

import csv
import io
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

import tiny_ir  # noqa: E402
from hawkeye.scale import worker  # noqa: E402
from hawkeye.scale.batch import InProcess, batch  # noqa: E402
from test_batch import CONF, draw, rows  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ir.stock_folder(tmp_path_factory.mktemp("model"))


def test_killed_at_random_moments_nothing_is_lost_and_nothing_doubled(model: Path, tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "pictures", 400), tmp_path / "out"
    call = f"batch(sys.argv[1], [sys.argv[2]], out=sys.argv[3], workers=InProcess(), chunk=5, conf={CONF})"
    code = f"import sys; from hawkeye.scale.batch import InProcess, batch; {call}"
    command = [sys.executable, "-c", code, str(model), str(pictures)]
    chance, cut = random.Random(7), 0
    for _ in range(12):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(out.glob("part-*")))
        deadline = time.monotonic() + 60
        while len(list(out.glob("part-*"))) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        cut += process.wait() == -signal.SIGKILL
    assert cut >= 3
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    names = [Path(row["image"]).name for row in rows(out)]
    assert names == [f"{i:05d}.png" for i in range(400)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    strip = [{**row, "image": Path(row["image"]).name} for row in rows(out)]
    assert strip == [{**row, "image": Path(row["image"]).name} for row in rows(tmp_path / "whole")]
    assert not list(out.glob("try-*"))


class Dying(InProcess):
    """A worker that dies whenever it meets a certain picture, and is started again, as Ray does it."""

    def __init__(self) -> None:
        self.deaths = 0

    def run(self, job: Any, parts: Any) -> Iterator[Any]:
        class Killer(worker.Worker):
            def __init__(self, job: Any) -> None:
                super().__init__(job)
                detect = self.detector

                def deadly(image: Any) -> Any:
                    if image.shape[0] == 13:
                        raise MemoryError
                    return detect(image)

                deadly.names = detect.names  # type: ignore[attr-defined]
                self.detector = deadly  # type: ignore[assignment]

        for part in parts:
            while True:
                try:
                    yield Killer(job)(part)
                    break
                except MemoryError:
                    self.deaths += 1


def test_a_picture_that_kills_every_worker_is_found_and_listed(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 9)
    cv2.imwrite(str(pictures / "00004.png"), np.zeros((13, 13, 3), np.uint8))
    workers = Dying()
    done = batch(model, [str(pictures)], out=str(tmp_path / "out"), workers=workers, conf=CONF, chunk=6)
    assert (done.report["pictures"], done.report["failed"], workers.deaths) == (9, 1, 4)
    failed = list(csv.reader(io.StringIO((tmp_path / "out/failed.csv").read_text())))[1]
    assert failed[0].endswith("00004.png")
    assert "the worker died" in failed[1]
