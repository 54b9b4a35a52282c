"""Which detector a request gets, and which boxes live streams get."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

import serve_world as world  # noqa: E402
from hawkeye.detections import Detections  # noqa: E402
from hawkeye.environment import cpu_count  # noqa: E402
from hawkeye.geometry import iou_matrix  # noqa: E402
from hawkeye.runtime.engine import Job  # noqa: E402
from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.models import Models, Pool  # noqa: E402
from hawkeye.serve.schemas import Detecting  # noqa: E402

_IOU = 0.05  # a cell of 8 pixels covers 0.06 of one of 32


def models_of(service: Service) -> Models:
    return service._models


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(world.config_of(tmp_path, iou=_IOU, threads=0))
    service.start()
    yield service
    service.stop()


def overlap(found: Detections) -> float:
    """The largest of any two boxes, whatever their classes."""
    return float((iou_matrix(found.xyxy, found.xyxy) - np.eye(len(found), dtype=np.float32)).max())


def test_live_streams_and_comparisons_get_one_box_for_each_object(service: Service) -> None:
    """A blue bar on something red is two classes in one place: asked for a picture both, counted once."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :32, 2] = 150
    image[:32, :16] = (255, 0, 254)
    asked, _ = service.detect_image(image, Detecting(conf=0.5))
    assert overlap(asked) > _IOU and len(set(asked.class_id)) == 2
    engine, names = models_of(service).engine("tiny")
    engine.submit(Job(image))
    (job,) = engine.collect(30.0)
    engine.close()
    assert names == ("blue", "green", "red")
    compared = models_of(service).detector("tiny")(image)
    for found in (job.found, compared):
        assert found is not None and {0, 2} == set(found[found.score > 0.5].class_id)
        assert overlap(found) <= _IOU


@pytest.mark.skipif(cpu_count() < 2, reason="one core is not shared")
def test_a_picture_that_is_alone_has_all_cores_and_several_share_them(service: Service) -> None:
    pool = models_of(service).pool(None)
    replicas = pool.open_all()
    assert replicas > 1 and service.statistics().queues["requests"] == (0, 2 * replicas)
    with pool.detector(alone=True) as whole:
        pass
    with pool.detector(alone=False) as one, pool.detector(alone=False) as other:
        assert len({id(whole), id(one), id(other)}) == 3
    with pool.detector(alone=True) as again:
        assert again is whole


@pytest.mark.skipif(cpu_count() < 2, reason="one core is not shared")
def test_a_model_that_is_served_no_more_lets_its_replicas_go_when_they_are_idle(service: Service) -> None:
    pool = models_of(service).pool("tiny")
    with pool.detector(alone=False) as detector:
        gone = weakref.ref(detector)
        service.switch_model("other")
        assert len(detector(world.scene())) > 0, "whoever works with one goes on"
        del detector
    gc.collect()
    assert gone() is None
    content = world.png(world.scene())
    for model in ("tiny", "other"):
        assert service.detect(content, Detecting(model=model)).model == model
    service.rollback_model()
    with pool.detector(alone=False) as detector:
        assert len(detector(world.scene())) > 0


def test_requests_at_the_same_time_work_at_the_same_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are replicas meet inside; with one after another the barrier would break."""
    meeting = threading.Barrier(models_of(service).pool(None).open_all())
    inside = Pool.detector

    def meet(self: Pool, *, alone: bool) -> object:
        meeting.wait(30)
        return inside(self, alone=alone)

    monkeypatch.setattr(Pool, "detector", meet)
    content, answers = world.png(world.scene()), list[int]()
    threads = [threading.Thread(target=lambda: answers.append(len(service.detect(content).detections)))
               for _ in range(meeting.parties)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == meeting.parties and len(set(answers)) == 1 and answers[0] > 0


@pytest.mark.parametrize(("settings", "replicas"), [({"workers": 1}, 1), ({"workers": 3}, 3), ({"threads": 1}, 1)])
def test_a_number_of_workers_is_kept(settings: dict[str, int], replicas: int, tmp_path: Path) -> None:
    service = Service(world.config_of(tmp_path, **settings))
    service.start()
    try:
        pool = models_of(service).pool(None)
        assert pool.open_all() == replicas
        assert service.statistics().queues["requests"] == (0, 2 * replicas)
        with pool.detector(alone=True) as one:
            assert one.spec.imgsz == 64
    finally:
        service.stop()
