"""Batches on Ray: killed drivers and workers, twenty thousand pictures, two nodes; nothing is lost or left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

import tiny_ir  # noqa: E402
from hawkeye import cli  # noqa: E402
from hawkeye.scale.batch import InProcess, batch  # noqa: E402
from test_batch import CONF, draw, png, rows, run  # noqa: E402

TIMEOUT_S = 600  # the machine may be busy with other things


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ir.stock_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a process of Ray's; those of others on this machine are not counted."""
    before = ray_processes()
    yield
    deadline = time.monotonic() + 30
    while (left := ray_processes() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def ray_processes() -> set[tuple[int, str]]:
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [process.info["name"]])
        if "raylet" in words or "gcs_server" in words or words.startswith("ray::"):
            found.add((process.pid, words[:60]))
    return found


class Command:
    """`hawkeye batch` in a process of its own."""

    def __init__(self, model: Path, pictures: Path, out: Path, *options: str) -> None:
        words = ["batch", pictures, "--model", model, "--out", out, "--conf", CONF, *options]
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hawkeye.cli", *map(str, words)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_for_parts(self, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(self.out.glob("part-*"))) < count:
            assert self.process.poll() is None, self.process.stdout.read()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> str:
        """Wait for a good end; returns what was said."""
        said, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, said
        return said

    def workers(self) -> list[psutil.Process]:
        """Processes that have a detector in them."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if "_Actor" in " ".join(p.cmdline())]


def same_rows(a: Path, b: Path) -> bool:
    """Whether two batches hold the same rows, whatever parts they are in."""

    def by_name(out: Path) -> list[Any]:
        return sorted(rows(out), key=lambda row: str(row["image"]))

    return by_name(a) == by_name(b)


def test_killed_drivers_and_workers_lose_nothing(model: Path, tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "pictures", 1500), tmp_path / "out"
    chance = random.Random(3)
    options = ("--chunk", "3", "--workers", "2")
    first = Command(model, pictures, out, *options)
    first.wait_for_parts(chance.randint(1, 60))
    first.process.kill()
    first.process.communicate()

    second = Command(model, pictures, out, *options)
    second.wait_for_parts(len(list(out.glob("part-*"))) + chance.randint(1, 60))
    victims = second.workers()
    assert victims
    os.kill(chance.choice(victims).pid, signal.SIGKILL)
    said = second.end()
    assert "going on" in said
    assert "Traceback" not in said
    assert [Path(row["image"]).name for row in rows(out)] == [f"{i:05d}.png" for i in range(1500)]
    run(model, pictures, tmp_path / "alone", chunk=500)
    assert same_rows(out, tmp_path / "alone")
    assert not list(out.glob("try-*"))


def test_twenty_thousand_pictures_and_an_interruption(model: Path, tmp_path: Path) -> None:
    kinds, count = [png(i) for i in range(144)], 20_000
    for number in range(4):  # two files of ordinary row groups, and two of one large one
        mine = range(number * count // 4, (number + 1) * count // 4)
        table = pa.table({"id": list(mine), "image": [kinds[i % 144] for i in mine]})
        (tmp_path / "tables").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"tables/{number}.parquet", row_group_size=700 if number % 2 else None)
    out = tmp_path / "out"
    first = Command(model, tmp_path / "tables", out, "--workers", "2")
    first.wait_for_parts(6)
    first.process.send_signal(signal.SIGINT)
    said, _ = first.process.communicate(timeout=TIMEOUT_S)
    assert first.process.returncode == 130, said
    assert "start the same command again" in said
    Command(model, tmp_path / "tables", out, "--workers", "2").end()
    found = rows(out)
    names = {f"{tmp_path}/tables/{number}.parquet#{row}" for number in range(4) for row in range(count // 4)}
    assert len(found) == count
    assert {row["image"] for row in found} == names
    # Every picture shows one square, and the square's place and colour follow the row's number.
    run(model, draw(tmp_path / "kinds", 144), tmp_path / "reference", chunk=144)
    expected = [row["detections"] for row in rows(tmp_path / "reference")]
    for row in found:
        file, _, place = row["image"].rpartition("#")
        index = int(Path(file).stem) * count // 4 + int(place)
        assert row["detections"] == expected[index % 144], row["image"]


def test_two_nodes_share_a_batch(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from ray.cluster_utils import Cluster

    from hawkeye.scale.ray_batch import RayWorkers

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pictures = draw(tmp_path / "pictures", 200)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                                                           "object_store_memory": 100 * 2**20})  # fmt: skip
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        workers = RayWorkers(2, 1, cluster.address)
        done = batch(model, [str(pictures)], out=str(tmp_path / "out"), workers=workers, conf=CONF, chunk=10)
        assert workers.machines == done.report["runs"][0]["machines"] == 2
    finally:
        cluster.shutdown()
    batch(model, [str(pictures)], out=str(tmp_path / "alone"), workers=InProcess(), conf=CONF, chunk=10)
    assert same_rows(tmp_path / "out", tmp_path / "alone")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_answers(address: str, model: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = ["batch", str(draw(tmp_path / "p", 1)), "--model", str(model), "--out", str(out), "--workers", "1"]
    assert cli.run([*words, "--address", address]) == 2
    assert f"no Ray cluster answers at {address}" in capsys.readouterr().err
    assert not list(out.glob("part-*"))


def test_what_a_worker_refuses_is_the_error_of_the_command(model: Path, tmp_path: Path, capsys: Any) -> None:
    pictures = draw(tmp_path / "pictures", 1)
    code = cli.run(["batch", str(pictures), "--model", str(model), "--out", str(tmp_path / "out"), "--workers", "1",
                    "--address", "127.0.0.1:1", "--threads", "0"])  # fmt: skip
    assert code == 2
    assert "--threads" in capsys.readouterr().err
