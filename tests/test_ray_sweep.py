"""Sweeps on Ray: killed at random moments, on two nodes; latency on one machine, one trial at a time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("matplotlib")

import finished_run  # noqa: E402
import sweep_fakes  # noqa: E402
from hawkeye.errors import ConfigError  # noqa: E402
from test_ray_batch import TIMEOUT_S, nothing_left_behind  # noqa: E402, F401  # a fixture
from test_sweep import by_changes, run  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes_everywhere(tmp_path: Path, monkeypatch: Any) -> Iterator[None]:
    """Ray's processes find the stages, and note what they do."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("SWEEP_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SWEEP_PAUSE_S", "0.1")
    yield


def one_at_a_time(calls: Path) -> int:
    """How often latency was measured; never twice at once."""
    spans = [line.split()[0] for line in calls.read_text().splitlines() if line.startswith(("begins", "ends"))]
    # A killed measurement has no end; two ends in a row are of two that ran at once.
    assert all((a, b) != ("ends", "ends") for a, b in zip(spans, spans[1:], strict=False))
    return spans.count("ends")


def front_of(report: dict[str, Any]) -> set[tuple[Any, ...]]:
    return {tuple(row["changes"].values()) for row in report["rows"] if row["front"] and row["changes"]}


def test_killed_at_random_moments_a_sweep_goes_on(tmp_path: Path) -> None:
    finished_run.recipe(tmp_path)  # draws the data
    out, chance = tmp_path / "sweep", random.Random(4)
    command = [sys.executable, str(HERE / "sweep_fakes.py"), str(tmp_path), str(out), "2"]
    begun = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_S
        want = begun + chance.randint(1, 2)
        while len(list(out.glob("trials/*/1-prune/artifact.json"))) < want and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = len(list(out.glob("trials/*/1-prune/artifact.json")))
        assert begun >= 1
    recovered = len(list(out.glob("trials/*/2-recover/artifact.json")))
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ})
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert front_of(report) == {(f, "obs") for f in (0.5, 0.9)}
    assert {row["state"].partition(":")[0] for row in report["rows"]} <= {"measured", "stopped"}
    names = [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("recovered")]
    assert len(names) >= len(set(names)) >= recovered
    finished = [row for row in report["rows"] if row["changes"] and row["state"] == "measured"]
    assert one_at_a_time(tmp_path / "calls") >= len(finished) >= 2


def test_two_nodes_share_a_sweep_and_one_of_them_measures(tmp_path: Path, monkeypatch: Any) -> None:
    from ray.cluster_utils import Cluster

    from hawkeye.scale.ray_sweep import RayTrials
    from hawkeye.scale.sweep import sweep

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                                                           "object_store_memory": 100 * 2**20})  # fmt: skip
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        with pytest.raises(ConfigError, match="no machine of the cluster"), RayTrials(2, 1, cluster.address, "nobody"):
            pass
        recipe = finished_run.recipe(tmp_path, benchmark={"runs": 3})
        # Both nodes have this machine's name and address, so the second one is named by its number.
        with RayTrials(2, 1, cluster.address, second.node_id) as workers:
            done = sweep(recipe, {"prune.flops": [0.5, 0.9]}, out=tmp_path / "sweep", workers=workers,
                         stages=sweep_fakes.stages)  # fmt: skip
    finally:
        cluster.shutdown()
    assert front_of(done.report) == {(0.5,), (0.9,)}
    assert one_at_a_time(tmp_path / "calls") == 2
    alone = run(tmp_path, tmp_path / "alone", {"prune.flops": [0.5, 0.9]})
    told, expected = by_changes(done.report), by_changes(alone)
    for key, row in expected.items():
        assert {k: told[key][k] for k in ("map50", "ms", "gflops", "front")} == {
            k: row[k] for k in ("map50", "ms", "gflops", "front")
        }
