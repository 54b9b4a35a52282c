"""The capacity model of docs/scale.md: the simulation meets what it is calibrated against, and the table is its own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import benchmark_programs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> Any:
    return benchmark_programs.load("cluster")


def rate(cluster: Any, pictures: int = 200_000, **options: Any) -> float:
    settings = {"machines": 1, "workers": 1, "picture_s": 0.05, "slowdown": 0.1, "driver_s": 0.0, **options}
    return float(pictures / cluster.simulate(cluster.Cluster(**settings), pictures)[0])


def test_one_worker_and_two_are_as_measured(cluster: Any) -> None:
    assert rate(cluster) == pytest.approx(20.0)
    assert rate(cluster, workers=2) == pytest.approx(2 * 20.0 / 1.1)


def test_machines_add_up_until_something_is_full(cluster: Any) -> None:
    assert rate(cluster, machines=10) == pytest.approx(10 * rate(cluster))
    assert rate(cluster, machines=10, picture_bytes=1e5, link_bytes_s=1e7) == pytest.approx(100.0, rel=0.02), "the link"
    assert rate(cluster, machines=10, chunk=10, driver_s=0.1) == pytest.approx(100.0, rel=0.02), "the driver"
    assert rate(cluster, machines=150) == pytest.approx(2 / 3 * 150 * 20.0, rel=0.02), "200 parts in two rounds"


def test_what_dead_machines_had_is_done_by_others(cluster: Any) -> None:
    settings = cluster.Cluster(20, 2, 0.05, 0.0, deaths_per_hour=4.0)
    seconds, again = cluster.simulate(settings, 400_000)
    assert again > 0 and seconds > 400_000 * 0.05 / 40
    with pytest.raises(RuntimeError, match="every machine died"):
        cluster.simulate(cluster.Cluster(1, 1, 0.05, 0.0, deaths_per_hour=1000.0), 400_000)


def test_the_table_of_the_page_is_what_its_command_prints() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    command = re.search(r"^    (python benchmarks/cluster\.py (?!.*RATE).*)$", page, re.M)
    assert command is not None
    words = [sys.executable, *shlex.split(command[1])[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) > 5
    assert "\n".join(table) in page
