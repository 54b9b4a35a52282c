"""Batches without Ray: lists, parts, partitions, going on, refusals. The workers here are this process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
import pyarrow.parquet as pq  # noqa: E402

import tiny_ir  # noqa: E402
from hawkeye.errors import ConfigError, DataError, HawkeyeError, ModelError, RunDirError, StorageError, StoreError  # noqa: E402
from hawkeye.predict import predict  # noqa: E402
from hawkeye.runtime.detector import Detector  # noqa: E402
from hawkeye.scale import listing, places, worker  # noqa: E402
from hawkeye.scale.batch import InProcess, batch, costs, describe  # noqa: E402

CONF = 0.5


def png(index: int) -> bytes:
    """A small picture with one square, whose place and colour follow the index."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[8 * (index // 8 % 6) :, 8 * (index % 8) :][:8, :8, index % 3] = 255
    return cv2.imencode(".png", image)[1].tobytes()


def draw(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:05d}.png").write_bytes(png(i))
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows of a batch, in the order of the partitions."""
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ir.stock_folder(tmp_path_factory.mktemp("model"))


def run(model: Path, pictures: Any, out: Path | str, **options: Any) -> Any:
    named = [str(p) for p in pictures] if isinstance(pictures, list) else [str(pictures)]
    return batch(model, named, out=str(out), workers=InProcess(), **{"conf": CONF, **options})


def as_predicted(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `predict` writes it into its JSON lines."""
    boxes = [
        {"class_id": box["class_id"], "name": box["name"], "score": round(box["score"], 4),
         "xyxy": [round(box[side], 2) for side in ("x1", "y1", "x2", "y2")]} for box in row["detections"]
    ]  # fmt: skip
    return {"image": row["image"], "width": row["width"], "height": row["height"], "detections": boxes}


def test_the_same_results_as_predict(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures/deep/er", 20).parents[1]
    run(model, pictures, tmp_path / "out", chunk=7)
    predict(model, pictures, out=tmp_path / "predicted", conf=CONF, draw_pictures=False, engine="sync", threads=1)
    told = [json.loads(line) for line in (tmp_path / "predicted/predictions.jsonl").read_text().splitlines()]
    assert [as_predicted(row) for row in rows(tmp_path / "out")] == told
    assert sum(len(row["detections"]) for row in told) >= 20
    assert [pq.read_metadata(p).num_rows for p in sorted((tmp_path / "out").glob("part-*"))] == [7, 7, 6]


def test_every_kind_of_source_and_no_picture_twice(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 4)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shots/a.png", png(1))
    memory.pipe_file("/shots/b.png", png(2))
    table = pa.table({"name": ["x", "y"], "image": [png(3), png(4)]})
    pq.write_table(table, tmp_path / "bytes.parquet")
    nested = pa.table({"image": [{"bytes": png(5), "path": "five.png"}]})  # as Hugging Face's data sets have it
    pq.write_table(nested, tmp_path / "nested.parquet")
    pq.write_table(pa.table({"path": ["pictures/00000.png", "memory://shots/a.png"]}), tmp_path / "paths.parquet")
    sources = [str(pictures), f"{pictures}/*1.png", f"{pictures}/00002.png", "memory://shots", "memory://shots/*.png",
               *(f"{tmp_path}/{name}.parquet" for name in ("bytes", "nested", "paths"))]  # fmt: skip
    run(model, sources, tmp_path / "out")
    names = [row["image"] for row in rows(tmp_path / "out")]
    assert sorted(names) == sorted([
        *(f"{pictures}/{i:05d}.png" for i in range(4)), "memory:///shots/a.png", "memory:///shots/b.png",
        f"{tmp_path}/bytes.parquet#0", f"{tmp_path}/bytes.parquet#1", f"{tmp_path}/nested.parquet#0",
    ])  # fmt: skip
    assert all(len(row["detections"]) >= 1 for row in rows(tmp_path / "out"))
    memory.rm("/shots", recursive=True)


def test_results_behind_a_url(model: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    pictures = draw(tmp_path / "pictures", 3)
    assert run(model, pictures, "memory://found").report["pictures"] == 3
    with memory.open("/found/part-000000.parquet") as file:
        assert pq.read_table(file).num_rows == 3
    assert run(model, pictures, "memory://found").report["runs"][0]["pictures"] == 3
    memory.rm("/found", recursive=True)


@pytest.mark.parametrize("groups", [[3, 3, 3, 3], [100], [1] * 10, [2, 50, 2]])
def test_rows_of_a_parquet_file_are_read_once_each(groups: list[int], tmp_path: Path) -> None:
    path, total = tmp_path / "x.parquet", sum(groups)
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        numbers = iter(range(total))
        for size in groups:
            writer.write_table(pa.table({"image": [b"%d" % next(numbers) for _ in range(size)]}))
    entries = list(listing.find_entries([str(path)], column=None, chunk=4))
    read = [row for e in entries for row in listing.read_rows(e.address, e.first, e.pictures, None)]
    assert read == [(f"{path}#{i}", b"%d" % i) for i in range(total)]
    assert max(e.pictures for e in entries) <= 16


def test_what_cannot_be_read_is_listed_and_can_be_tried_again(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 30)
    (pictures / "00003.png").write_bytes(png(3)[:60])
    (pictures / "00004.png").write_bytes(b"")
    pq.write_table(pa.table({"image": [png(0), None, b"nothing"]}), tmp_path / "rows.parquet")
    sources = [pictures, tmp_path / "rows.parquet"]
    done = run(model, sources, tmp_path / "out")
    assert (done.report["pictures"], done.report["failed"], done.passed) == (33, 4, False)
    with (tmp_path / "out/failed.csv").open() as file:
        failed = list(csv.reader(file))[1:]
    assert [Path(name).name for name, _ in failed] == ["00003.png", "00004.png", "rows.parquet#1", "rows.parquet#2"]
    assert all(error for _, error in failed)
    assert [row["detections"] for row in rows(tmp_path / "out") if row["error"]] == [None] * 4
    (pictures / "00003.png").write_bytes(png(3))
    assert run(model, sources, tmp_path / "out").report["failed"] == 4  # only where it is asked for
    again = run(model, sources, tmp_path / "out", retry=True)
    assert (again.report["failed"], again.passed) == (3, True)
    assert again.report["runs"][-1]["pictures"] == 33  # both parts


def test_pictures_that_come_later_are_added(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 5)
    run(model, pictures, tmp_path / "out", chunk=3)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("part-*")}
    draw(pictures, 2, first=5)
    done = run(model, pictures, tmp_path / "out")
    assert done.report["pictures"] == 7
    assert [r["pictures"] for r in done.report["runs"]] == [5, 2]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("part-*") if p.name in before} == before
    assert [Path(row["image"]).stem for row in rows(tmp_path / "out")] == [f"{i:05d}" for i in range(7)]


def test_a_damaged_partition_is_made_again(model: Path, tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "pictures", 6), tmp_path / "out"
    run(model, pictures, out, chunk=2)
    whole = rows(out)
    (out / "part-000001.parquet").write_bytes(b"PAR1")
    (out / "part-000002.parquet").unlink()
    assert run(model, pictures, out).report["runs"][-1]["pictures"] == 4
    assert rows(out) == whole


def test_another_model_or_other_settings_are_refused(model: Path, tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "pictures", 2), tmp_path / "out"
    run(model, pictures, out)
    other = tiny_ir.stock_folder(tmp_path / "other", stock_head=True)
    for changed, options in ((other, {}), (model, {"conf": 0.7}), (model, {"classes": ["red"]})):
        with pytest.raises(RunDirError, match="holds another batch"):
            run(changed, pictures, out, **options)
    assert run(model, pictures, out, threads=2).report["pictures"] == 2  # threads change nothing


def test_a_model_that_changes_meanwhile(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    job = worker.Job(str(tmp_path), str(copy), worker.model_sha256(copy), {"conf": CONF})
    tiny_ir.save_ir(copy / "tiny.xml", floor=0.3)
    with pytest.raises(ModelError, match="has been changed"):
        worker.Worker(job)


def test_an_artefact_that_is_not_what_its_record_says(tmp_path: Path) -> None:
    made = tiny_ir.artifact(tmp_path / "m")
    assert worker.model_sha256(made.root) == made.sha256
    tiny_ir.save_ir(made.path("openvino"), floor=0.3)
    with pytest.raises(ModelError, match="not what its record says"):
        worker.model_sha256(made.root)


def test_pictures_that_are_gone_are_no_result(model: Path, tmp_path: Path) -> None:
    pictures, out = draw(tmp_path / "pictures", 40), tmp_path / "out"
    run(model, pictures, out)
    away = pictures.rename(tmp_path / "away")
    for part in out.glob("part-*"):
        part.unlink()
    draw(pictures, 1, first=99)
    with pytest.raises(DataError, match="the pictures are gone"):  # as when a disk was not mounted
        run(model, pictures, out)
    assert not list(out.glob("part-*"))
    for path in away.iterdir():
        path.rename(pictures / path.name)
    assert run(model, pictures, out).report["pictures"] == 41


@pytest.mark.parametrize(
    ("sources", "error", "words"),
    [
        (["nowhere/"], DataError, "nothing to look at"),
        (["memory://nowhere"], DataError, "nothing to look at"),
        (["nonsense://x"], StoreError, "not an address"),
        (["readme.txt"], DataError, "no pictures"),
        (["numbers.parquet"], DataError, "no column of pictures"),
        (["text.parquet"], DataError, "not a Parquet file"),
        (["http://127.0.0.1:1/x.png"], DataError, "Cannot connect"),
    ],
)
def test_sources_that_cannot_be_used(
    sources: list[str], error: type[HawkeyeError], words: str, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "_PAUSE_S", 0.0)
    Path("readme.txt").write_text("no picture")
    Path("text.parquet").write_text("no table")
    pq.write_table(pa.table({"image": [1, 2]}), "numbers.parquet")
    with pytest.raises(error, match=words):
        run(model, sources, tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))


def test_mistakes_are_told_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(RunDirError, match="holds no batch"):
        run(model, pictures, tmp_path / "other")
    for options, kind in (({"chunk": 0}, ConfigError), ({"price": -1.0}, ConfigError), ({"conf": 7}, ConfigError),
                          ({"classes": ["unicorn"]}, ConfigError)):  # fmt: skip
        with pytest.raises(kind):
            run(model, pictures, tmp_path / "out", **options)
    with pytest.raises(ModelError):
        run(tmp_path / "nowhere", pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Refusing(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """An object store that may be read and not written, once it is full."""

    protocol = "refusing"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    room = 3

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if "part-" in path:
            if Refusing.room == 0:
                raise PermissionError(13, "Forbidden", path)
            Refusing.room -= 1
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_a_place_that_refuses_loses_nothing(model: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    pictures = draw(tmp_path / "pictures", 10)
    with pytest.raises(StorageError, match=r"(?s)refusing://found cannot be written.*goes on where it was"):
        run(model, pictures, "refusing://found", chunk=2)
    Refusing.room = 99
    done = run(model, pictures, "refusing://found", chunk=2)
    assert [r["pictures"] for r in done.report["runs"]] == [4]  # of 10: three parts of two are there already
    assert done.report["pictures"] == 10


def test_a_folder_that_cannot_be_written(model: Path, tmp_path: Path, capsys: Any) -> None:
    from hawkeye import cli

    pictures = draw(tmp_path / "pictures", 1)
    # Root may write everywhere but there: the kernel's own files are in nobody's hands.
    code = cli.run(["batch", str(pictures), "--model", str(model), "--out", "/sys/hawkeye", "--workers", "1"])
    assert code == 2
    assert "error: cannot write" in capsys.readouterr().err


def test_a_service_that_says_slow_down_is_asked_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(places, "_PAUSE_S", 0.0)
    answers = iter([TimeoutError("slow down"), ConnectionError("once more"), b"content"])

    def ask() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert places._patiently(ask) == b"content"


# -- report ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_worker_of_one_thread_is_tied_to_no_core(model: Path) -> None:
    """OpenVINO by itself ties threads to cores from the first one on: all workers would share that one."""
    mine, tid = os.sched_getaffinity(0), threading.get_native_id()
    if len(mine) == 1:
        pytest.skip("needs two cores")
    detector, picture = Detector(model, threads=1), np.zeros((64, 64, 3), np.uint8)
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(os.sched_getaffinity(tid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(500):
        detector(picture)
    over.set()
    watcher.join()
    assert len(seen) > 100 and all(cores == mine for cores in seen)


def test_cost_of_a_million() -> None:
    call = {"pictures": 1000, "working_seconds": 50.0, "workers": 4, "machines": 2, "threads": 3}
    told = costs(1000, 3600.0, call, 0.5)  # 3.6 s of a worker for each picture
    assert told["pictures_per_second"] == pytest.approx(20)
    assert told["core_hours_per_million"] == pytest.approx(3000)
    assert told["machine_hours_per_million"] == pytest.approx(500)  # two workers on each machine
    assert told["cost_per_million"] == pytest.approx(250)
    assert set(costs(0, 0.0, None, None).values()) == {None}


def test_the_report_names_what_is_not_known() -> None:
    report = {"pictures": 0, "objects": 0, "failed": 0, "partitions": 0, **costs(0, 0.0, None, None), "runs": []}
    assert "not known" in describe(report)
    assert "--price" in describe(report)


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("ray", ["batch", "x", "--model", "m", "--out", "o"], "scale"),
        ("pyarrow", ["batch", "x", "--model", "m", "--out", "o"], "scale"),
        ("fsspec", ["list", "--store", "s3://bucket/models"], "store"),
    ],
)
def test_a_missing_extra_is_one_line(package: str, words: list[str], extra: str, tmp_path: Path) -> None:
    """As on a machine without it: the package cannot be imported."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\", "
                                            f"name='{package}')")  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "hawkeye.cli", *words], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2
    assert f"pip install 'hawkeye[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
