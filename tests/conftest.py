"""What all tests share: which of them this machine can run, the real data, and a small drawn data set."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import browsing

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hawkeye.artifact import Artifact
    from hawkeye.config import Recipe
    from hawkeye.serve.core import Service
    from hawkeye.serve.security import Security

# Tiny networks are slower on many threads, and the machine may be shared. Set before NumPy or torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HAWKEYE_CACHE", "off")  # tests leave nothing in the user's home

_ROOT = Path(__file__).resolve().parents[1]


def _real_data() -> tuple[Path | None, str]:
    """The folder with real weights and pictures, or None; and where it was looked for."""
    named = os.environ.get("HAWKEYE_DATA")
    place = Path(named).expanduser() if named else _ROOT.parent / "shared" / "data"
    return place if place.is_dir() else None, f"HAWKEYE_DATA={named}" if named else "../shared/data (HAWKEYE_DATA)"


def _compress_missing() -> str | None:
    absent = [name for name in ("torch", "ultralytics", "nncf") if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(absent)}: pip install 'hawkeye[compress]'" if absent else None


def pytest_report_header() -> list[str]:
    data, where = _real_data()
    compress = _compress_missing()
    return [
        f"tier browser: {f'left out, {browsing.missing()}' if browsing.missing() else 'runs'}",
        f"tier compress: {'left out, ' + compress if compress else 'runs'}",
        f"tier realdata: {'runs' if data else f'left out, no folder {where}; see CONTRIBUTING.md'}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("compress") and (missing := _compress_missing()):
        pytest.skip(missing)
    if item.get_closest_marker("cuda"):
        import torch  # its files are of the compress tier, too

        if not torch.cuda.is_available():
            pytest.skip("torch finds no GPU")
    reason = None
    if item.get_closest_marker("realdata") and _real_data()[0] is None:
        reason = f"no folder with the real data: {_real_data()[1]}; see CONTRIBUTING.md"
    if item.get_closest_marker("browser"):
        reason = browsing.missing()
    if reason is not None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{reason} (CI=true: nothing may be left out)", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `models/`, `coco-sample/`, `bccd/` and more; only for tests marked `realdata`."""
    data = _real_data()[0]
    assert data is not None, "mark the test with @pytest.mark.realdata"
    return data


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml of a drawn data set: 8 training and 4 validation pictures of 128 pixels. Not to be changed."""
    from hawkeye.scenes import draw_dataset

    return draw_dataset(tmp_path_factory.mktemp("drawn") / "scenes", train=8, val=4, imgsz=128, seed=7)


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml of what `tiny_exported` has been made for: 16 training and 2 validation pictures. Not to be changed."""
    from hawkeye.scenes import draw_dataset

    return draw_dataset(tmp_path_factory.mktemp("tiny") / "scenes", train=16, val=2, imgsz=96, seed=1)


@pytest.fixture(scope="session")
def tiny_exported(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny detector with its checkpoint, ONNX and OpenVINO files; for tests marked `compress`."""
    import tiny_detector

    return tiny_detector.exported(tiny_scenes, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over a small project in the test's folder, for the stages of `pipeline_fakes`."""
    import pipeline_fakes

    return pipeline_fakes.project(tmp_path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, str]]:
    """The app of a service that is served over HTTP, and its address; its source "roll" shows a rolling ball."""
    from follower_ir import run_folder, save_video
    from hawkeye.serve.app import build_app
    from hawkeye.serve.config import ServeConfig
    from hawkeye.serve.core import Service
    from hawkeye.serve.schemas import SourceSpec

    folder = tmp_path_factory.mktemp("pages")
    media = folder / "media"
    media.mkdir()
    save_video(media / "roll.mp4")
    service = Service(ServeConfig(model=str(run_folder(folder / "run")), state=folder / "state", runs=folder / "runs",
                                  media=media, networks=("127.0.0.0/8",), threads=1))  # fmt: skip
    service.start()
    service.add_source(SourceSpec(address="roll.mp4", name="roll", loop=True))
    app = build_app(service)
    with browsing.serving(app) as address:
        yield app, address


@pytest.fixture(scope="module")
def service(pages: tuple[FastAPI, str]) -> Service:
    """The core of what `pages` serves."""
    return pages[0].state.service


@pytest.fixture(scope="module")
def security(pages: tuple[FastAPI, str]) -> Security:
    """Who may reach `pages`."""
    return pages[0].state.security


@pytest.fixture(scope="module")
def browser(pages: tuple[FastAPI, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsing.Browser]:
    """Chromium; only for tests marked `browser`."""
    made = browsing.Browser(pages[1], tmp_path_factory.mktemp("downloads"))
    yield made
    made.close()
