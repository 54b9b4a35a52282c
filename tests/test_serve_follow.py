"""The service serves what its model store has released."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

import finished_run  # noqa: E402
from hawkeye.errors import ModelError  # noqa: E402
from hawkeye.release import release, rollback  # noqa: E402
from hawkeye.serve.config import ServeConfig  # noqa: E402
from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.follow import Follower  # noqa: E402


@pytest.fixture
def models(tmp_path: Path) -> str:
    """A store with one release."""
    store = str(tmp_path / "models")
    finished_run.make(tmp_path, "first", gates={"max_drop": 100})
    release(tmp_path / "first", store)
    return store


def release_another(tmp_path: Path, store: str) -> str:
    done = release(tmp_path / "first", store, row="original+int8", despite="a test of following")
    assert done.version is not None
    return done.version.id


class Kept:
    """The part of the service's store that is used."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def documents(self, kind: str) -> dict[str, Any]:
        return dict(self.kept)

    def put(self, kind: str, name: str, body: Any) -> None:
        self.kept[name] = dict(body)


def test_each_new_entry_of_the_log_is_served_once(models: str, tmp_path: Path) -> None:
    served: list[str] = []
    kept: Any = Kept()
    follower = Follower(models, 1.0, served.append, kept)
    first = follower.look()
    assert first is not None
    assert follower.look() is None  # what is chosen by hand stays meanwhile
    second = release_another(tmp_path, models)
    assert follower.look() == second
    rollback(models)
    assert follower.look() == first
    assert served == [first, second, first]
    assert Follower(models, 1.0, served.append, kept).look() is None  # a restart remembers


def test_a_version_that_cannot_be_served_is_tried_again(models: str) -> None:
    answers: list[Any] = [ModelError("no memory"), None]

    def switch(version: str) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    kept: Any = Kept()
    follower = Follower(models, 1.0, switch, kept)
    with pytest.raises(ModelError):
        follower.look()
    assert follower.look() is not None


@pytest.mark.parametrize(("model", "every_s"), [(None, 1.0), ("runs/first", 1.0)])
def test_what_is_no_store_is_not_followed(model: str | None, every_s: float) -> None:
    kept: Any = Kept()
    follower = Follower(model, every_s, lambda version: None, kept)
    follower.start()
    follower.stop()
    assert follower._thread.ident is None


def test_a_running_service_follows_a_release_and_a_rollback(models: str, tmp_path: Path) -> None:
    config = ServeConfig(model=models, state=tmp_path / "state", runs=tmp_path, follow_s=0.05, threads=1)
    service = Service(config)
    service.start()
    try:
        first = service.served
        second = release_another(tmp_path, models)

        def waits_for(version: str) -> None:
            deadline = time.monotonic() + 60
            while service.served != version:
                assert time.monotonic() < deadline
                time.sleep(0.02)

        waits_for(second)
        rollback(models)
        waits_for(first)
    finally:
        service.stop()
