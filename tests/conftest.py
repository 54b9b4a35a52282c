"""What all tests share: which of them this machine can run, the real data, and a small drawn data set."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

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
        f"tier compress: {'left out, ' + compress if compress else 'runs'}",
        f"tier realdata: {'runs' if data else f'left out, no folder {where}; see CONTRIBUTING.md'}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("compress") and (missing := _compress_missing()):
        pytest.skip(missing)
    if item.get_closest_marker("realdata") and _real_data()[0] is None:
        reason = f"no folder with the real data: {_real_data()[1]}; see CONTRIBUTING.md"
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
