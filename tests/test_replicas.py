"""Replicas: one network for several threads at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import tiny_ir
from hawkeye.environment import cpu_count
from hawkeye.runtime.detector import Detector

pytestmark = pytest.mark.skipif(cpu_count() < 2, reason="one core is not shared")


def test_replicas_find_what_the_detector_finds_all_at_the_same_time(tmp_path: Path) -> None:
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    detector = Detector(folder, imgsz=128, conf=0.45)
    replicas = detector.replicas()
    assert len(replicas) > 1
    dice = np.random.default_rng(0)
    pictures = [dice.integers(0, 256, (*hw, 3), np.uint8) for hw in ((90, 160), (160, 90), (100, 100)) for _ in "abc"]
    expected = [detector(image) for image in pictures]
    wrong: list[int] = []
    start = threading.Barrier(len(replicas))

    def work(replica: Detector) -> None:
        start.wait(30)
        for number in [*range(len(pictures))] * 20:
            found = replica(pictures[number])
            if not (np.array_equal(found.xyxy, expected[number].xyxy) and len(found)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_replica_has_its_own_settings_canvas_and_timings(tmp_path: Path) -> None:
    detector = Detector(tiny_ir.stock_folder(tmp_path), conf=0.9)
    first, second = detector.replicas()[:2]
    first.conf = 0.0
    picture = np.full((64, 64, 3), 128, np.uint8)
    assert len(first(picture)) > len(second(picture)) == len(detector(picture))
    assert first.timings is not second.timings


@pytest.mark.parametrize("rect", [True, False])
def test_replicas_take_the_square_too_which_is_compiled_when_it_comes(tmp_path: Path, rect: bool) -> None:
    detector = Detector(tiny_ir.stock_folder(tmp_path, stock_head=True), imgsz=128, rect=rect, conf=0.45)
    replica = detector.replicas()[0]
    dice = np.random.default_rng(0)
    for hw in ((100, 100), (90, 160)):
        image = dice.integers(0, 256, (*hw, 3), np.uint8)
        assert np.array_equal(replica(image).xyxy, detector(image).xyxy)
