"""Counts on real videos with yolov8n in INT8, by `count` and by the service, against what a person counts.

By eye, from every fourth frame or closer:

- person-bicycle-car-detection: a white car leaves to the left (until frame 40), somebody with a bicycle comes from
  above and leaves to the right (115 to 165), somebody walks in from the left and out above (292 to 364), a grey car
  comes from below and leaves to the left (332 to 405), another bicycle goes from above to the right (343 to 421).
- one-by-one-person-detection: six people, one after another, come in from below, stand at the table, and leave to
  the right (60 to 199, 227 to 450, 502 to 700, 746 to 870, 920 to 1204, 1234 to 1364).
- bottle-detection: three bottles stand there. The left one is taken (209) and put back (330 to 395), the left and the
  middle one are taken (523 to 535), the middle one is put back (655 to 730), then the left one (815 to 875), the right
  one is taken (945) and put back (1035 to 1090). Three stay. So seven appear; nothing crosses the gap between two.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import browsing
from hawkeye.data import read_image
from hawkeye.predict import count
from hawkeye.runtime.detector import Detector
from hawkeye.track.rules import Line, Rule, Zone

pytestmark = [pytest.mark.compress, pytest.mark.realdata, pytest.mark.slow]

PICTURE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
CASES: dict[str, tuple[tuple[Rule, ...], dict[str, dict[str, Any]]]] = {
    "person-bicycle-car-detection.mp4": (
        (
            Line("left", (0.12, 0.0), (0.12, 0.9), classes=("car", "person")),  # "in" is to the left
            Line("right", (0.92, 0.0), (0.92, 0.6), classes=("person",)),
        ),
        {
            "left": {"in": 2, "out": 1, "by_class": {"car": {"in": 2, "out": 0}, "person": {"in": 0, "out": 1}}},
            "right": {"in": 0, "out": 2},
        },
    ),
    "one-by-one-person-detection.mp4": (
        (
            Line("right", (0.85, 0.1), (0.85, 1.0), classes=("person",), anchor="centre"),
            Zone("room", PICTURE, classes=("person",), anchor="centre"),
        ),
        {"right": {"in": 0, "out": 6}, "room": {"enter": 6, "exit": 6, "max": 1}},
    ),
    "bottle-detection.mp4": (
        (
            Line("gap", (0.33, 0.0), (0.33, 1.0), classes=("bottle",)),
            Zone("shelf", PICTURE, classes=("bottle",), anchor="centre"),
        ),
        {"gap": {"in": 0, "out": 0}, "shelf": {"enter": 7, "exit": 7, "max": 3}},
    ),
}


@pytest.fixture(scope="module")
def int8(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """yolov8n in INT8 as `hawkeye optimize` calibrates it, on training pictures."""
    from hawkeye import ExportConfig, QuantizeConfig, export, quantize

    folder = tmp_path_factory.mktemp("int8")
    float32 = export(real_data / "models/yolov8n.pt", ExportConfig(), out=folder / "export")
    config = QuantizeConfig(mode="ptq", images=real_data / "coco-sample/images/train2017")
    return quantize(float32, config, out=folder / "int8").root


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_a_person(real_data, int8, tmp_path, name):
    rules, expected = CASES[name]
    done = count(int8, real_data / "videos" / name, out=tmp_path, rules=rules, engine="sync")
    (status,) = done.streams
    assert (status.state, status.done, status.lost) == ("ended", status.captured, 0)
    assert {rule: {key: status.counts[rule][key] for key in want} for rule, want in expected.items()} == expected


def test_the_service_finds_and_counts_the_same(real_data, int8, tmp_path):
    """Over HTTP: pictures against `Detector`; a real video, played at its own speed, against the truth above."""
    pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    from hawkeye.serve.app import build_app
    from hawkeye.serve.config import ServeConfig
    from hawkeye.serve.core import Service

    name = "person-bicycle-car-detection.mp4"
    rules, expected = CASES[name]
    service = Service(ServeConfig(model=str(int8), state=tmp_path / "state", media=real_data / "videos"))
    service.start()
    detector = Detector(int8, conf=0.25, iou=0.7)
    with (
        browsing.serving(build_app(service, pages=False)) as address,
        httpx.Client(base_url=f"{address}/v1", timeout=30) as client,
    ):
        boxes = 0
        for path in sorted((real_data / "coco-sample/images/val2017").glob("*.jpg"))[:5]:
            answer = client.post("/detect", content=path.read_bytes()).raise_for_status().json()
            found = detector(read_image(path))
            assert [box["name"] for box in answer["detections"]] == [detector.names[i] for i in found.class_id]
            np.testing.assert_allclose([box["xyxy"] for box in answer["detections"]], found.xyxy, atol=0.01)
            np.testing.assert_allclose([box["score"] for box in answer["detections"]], found.score, atol=1e-4)
            boxes += len(found)
        assert boxes > 10
        client.post("/sources", json={"address": name, "name": "street"}).raise_for_status()
        for rule in rules:
            body = {"kind": "line", "name": rule.name, "points": [rule.start, rule.end], "classes": rule.classes}
            client.put("/sources/street/rules", json=body).raise_for_status()
        end = time.monotonic() + 60  # it takes 38 s
        while (info := client.get("/sources/street").json())["state"] != "ended":
            assert time.monotonic() < end, info
            time.sleep(0.5)
        assert info["lost"] == 0
        totals = info["totals"]
        assert {rule: {key: totals[rule][key] for key in want} for rule, want in expected.items()} == expected
