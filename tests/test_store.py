"""A model store: releases that are whole or not at all, of which one wins; what lies in it; and who reads it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finished_run
from hawkeye import Detector
from hawkeye.artifact import Artifact, write_bytes, write_json
from hawkeye.cli import run as cli
from hawkeye.compare import Comparison, compare
from hawkeye.diff import diff, differing, draw_differences, side, unmatched
from hawkeye.errors import ConfigError, ModelError, RunDirError, StorageError, StoreError
from hawkeye.evaluate import Matches
from hawkeye.release import AGPL, notice, release, rollback, same_inputs
from hawkeye.store import open_store, released
from hawkeye.store_files import LocalFiles, RemoteFiles, open_files, shown

pytest.importorskip("matplotlib", reason="the report needs the [report] extra")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs: a good detector, and one that misses what is dim. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    assert finished_run.make(folder, "good").passed
    assert not finished_run.make(folder, "dim", floor=0.5).passed
    return folder


@pytest.fixture
def models(tmp_path: Path) -> str:
    return str(tmp_path / "models")


def names(url: str) -> list[str]:
    return [entry.version for entry in open_store(url).history()]


def test_a_release_holds_all_that_a_reader_needs(made: Path, models: str) -> None:
    done = release(made / "good", models)
    version = open_store(models).version("released")
    assert done.fresh and done.version == version and version.passed and version.licence == AGPL
    assert [link.stage for link in version.lineage] == ["original", "prune", "recover", "export", "quantize"]
    chain = [(link.parent_sha256, link.sha256) for link in version.lineage]
    assert chain[0][0] is None and all(a[1] == b[0] for a, b in zip(chain, chain[1:], strict=False))
    assert set(version.files) >= {"model/artifact.json", "report.json", "NOTICE.md", "records/latency.json",
                                  "records/accuracy/original-openvino-f32.npz",
                                  "records/accuracy/pruned+int8-openvino-int8.json"}  # fmt: skip
    place = open_store(models).content(version)
    assert "AGPL-3.0" in (place / "NOTICE.md").read_text()
    everything = b"".join(path.read_bytes() for path in place.rglob("*.json"))
    assert str(made).encode() not in everything, "where things lie on this machine is nobody's business"
    detector = Detector(models)
    assert detector.source == released(models) == place / "model"
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 8:16, 2] = 255
    assert detector.names[detector(image).class_id[0]] == "red"


def test_the_same_again_changes_nothing(made: Path, models: str) -> None:
    release(made / "good", models)
    before = {path: path.read_bytes() for path in Path(models).rglob("*") if path.is_file()}
    again = release(made / "good", models)
    assert not again.fresh
    assert before == {path: path.read_bytes() for path in Path(models).rglob("*") if path.is_file()}


def test_a_missed_gate_releases_nothing_unless_somebody_says_why(made: Path, models: str, capsys: Any) -> None:
    assert cli(["release", str(made / "dim"), "--store", models]) == 3
    assert "max_drop" in capsys.readouterr().out and not Path(models).exists()
    assert cli(["release", str(made / "dim"), "--store", models, "--despite", "the old camera is gone"]) == 0
    version = open_store(models).version("released")
    assert not version.passed and version.despite == "the old camera is gone"
    assert "the old camera is gone" in (open_store(models).content(version) / "NOTICE.md").read_text()


def test_another_row_is_judged_for_itself(made: Path, models: str) -> None:
    done = release(made / "dim", models, row="original+int8")
    assert done.version is not None and done.version.row == "original+int8" and done.version.passed
    with pytest.raises(ConfigError, match="no such row"):
        release(made / "dim", models, row="smallest")


def test_a_licence_of_ones_own() -> None:
    assert "derived work" not in notice("Apache-2.0", {"headline": []}, None)
    assert "derived work" in notice(AGPL, {"headline": []}, None)


# --- judged by what is released


def test_a_run_must_have_been_compared_with_what_is_released_now(made: Path, tmp_path: Path, models: str) -> None:
    folder = tmp_path / "own"
    first = finished_run.make(folder, "first", store=models)
    assert first.passed and first.report["released"]["version"] is None
    release(made / "good", models, row="original")
    with pytest.raises(StoreError, match="not compared with what .* releases now"):
        release(folder / "first", models)
    again = finished_run.make(folder, "first", store=models)
    assert again.report["released"]["version"] == names(models)[0] and again.passed
    assert release(folder / "first", models).fresh


def test_gates_against_the_released_model_of_a_whole_run(tmp_path: Path, models: str) -> None:
    finished_run.make(tmp_path, "first", store=models)
    release(tmp_path / "first", models)
    slow = finished_run.make(tmp_path, "slow", latency_ms=12.0, store=models)
    assert slow.report["gates"]["released_latency"]["value"] == pytest.approx(1.2) and not slow.passed
    assert slow.report["gates"]["released_drop"]["value"] == 0.0
    dim = finished_run.make(tmp_path, "dim", floor=0.5, store=models, gates={"max_drop": 99, "released_drop": 99})
    assert dim.passed
    lost = dim.report["released"]["map50_drop"]
    assert dim.report["gates"]["released_drop"]["value"] > lost > 30, "the interval's upper end"
    skipped = finished_run.make(tmp_path, "fast", store=models, skip=["benchmark"])
    assert "released_latency" not in skipped.report["gates"] and skipped.passed


def test_what_cannot_be_compared_is_told_and_stays_unjudged(made: Path, tmp_path: Path, models: str) -> None:
    release(made / "good", models)
    candidate = Artifact.load(made / "dim" / "4-quantize" / "pruned")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ModelError("another picture size", got=320)

    compare(candidate, models, evaluate=None, benchmark=refuse, out=tmp_path / "records")
    found = Comparison.load(tmp_path / "records" / "comparison.json")
    assert found.version == names(models)[0] and found.problems == ("another picture size got: 320",)
    with pytest.raises(KeyboardInterrupt):  # anything but bad input ends the run, and nothing pretends to be compared
        compare(candidate, models, evaluate=None, benchmark=_interrupt, out=tmp_path / "other")
    assert not (tmp_path / "other" / "comparison.json").exists()


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


# --- back again


def test_rollback_goes_back_step_by_step(made: Path, models: str) -> None:
    rows = ("original", "pruned", "pruned+int8")
    a, b, c = (release(made / "good", models, row=row).version.id for row in rows)  # type: ignore[union-attr]
    assert rollback(models, note="bad at night").version == b
    assert rollback(models).version == a
    with pytest.raises(StoreError, match="no release to go back to"):
        rollback(models)
    assert rollback(models, to=c).version == c
    assert names(models) == [a, b, c, b, a, c], "the log keeps everything"
    with pytest.raises(StoreError, match="released version already"):
        rollback(models, to="released")


def test_changed_content_is_noticed(made: Path, models: str) -> None:
    version = release(made / "good", models).version
    assert version is not None
    place = Path(models) / "versions" / version.id
    bin_file = next(place.rglob("*.bin"))
    original = bin_file.read_bytes()
    bin_file.chmod(0o644)
    bin_file.write_bytes(original[:-1] + b"\x00\xff")
    with pytest.raises(StoreError, match="has been changed"):
        Detector(models)
    assert cli(["list", "--store", models, "--verify"]) == 2
    bin_file.unlink()
    with pytest.raises(StoreError, match="cannot read"):
        released(models)
    bin_file.write_bytes(original)
    released(models)
    head = json.loads((place / "version.json").read_text())
    head["files"]["report.json"]["sha256"] = "0" * 64
    (place / "version.json").chmod(0o644)
    write_json(place / "version.json", head)
    with pytest.raises(StoreError, match="another list of files"):
        released(models)


def test_half_a_version_is_none(made: Path, models: str) -> None:
    release(made / "good", models)
    write_bytes(Path(models) / "versions" / "pruned-000000000000" / "model" / "x", b"half")
    assert len(open_store(models).versions()) == 1
    with pytest.raises(StoreError, match="not finished"):
        open_store(models).version("pruned-000000000000")


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["release", "nowhere", "--store", "s"], "nowhere"),
        (["release", "empty", "--store", "s"], "not the folder of a run"),
        (["list", "--store", "nosuch://x"], "nosuch"),
        (["release", "empty"], "not the folder of a run"),
        (["rollback", "--store", "nowhere"], "nothing is released in nowhere"),
        (["list", "--store", "file"], "cannot read the store"),
        (["diff", "a", "b"], "--store"),
        (["diff", "a", "b", "--store", "nowhere"], "no single version 'a'"),
        (["diff", "a", "b", "--images", "empty"], "--out"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    assert cli(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and words in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_without_a_store_the_recipe_names_it(made: Path, tmp_path: Path, models: str) -> None:
    with pytest.raises(ConfigError, match="no store to release into"):
        release(made / "good")
    finished_run.make(tmp_path, "run", store=models)
    assert release(tmp_path / "run").fresh and len(names(models)) == 1


def test_a_store_that_cannot_be_written(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(StorageError, match="the store"):
        release(made / "good", str(tmp_path / "file" / "models"))
    with pytest.raises(RunDirError):
        release(tmp_path, str(tmp_path / "models"))


@pytest.mark.parametrize(
    ("call", "code"),
    [("fsync", errno.ENOSPC), ("link", errno.EACCES), ("link", errno.EOPNOTSUPP), ("rename", errno.EROFS)],
)
def test_a_disk_that_refuses_loses_nothing(made: Path, models: str, call: str, code: int, monkeypatch: Any) -> None:
    release(made / "good", models, row="original")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)):
            release(made / "good", models)
    assert len(names(models)) == 1
    assert not list(Path(models).rglob(".incoming-*"))
    released(models)
    assert release(made / "good", models).fresh


def test_a_run_whose_file_was_changed_is_not_released(made: Path, tmp_path: Path, models: str) -> None:
    shutil.copytree(made / "dim", tmp_path / "run")
    write_bytes(tmp_path / "run" / "4-quantize" / "pruned" / "pruned+int8.bin", b"other")
    with pytest.raises(ModelError, match="not what was made"):
        release(tmp_path / "run", models)
    shutil.rmtree(tmp_path / "run" / "1-prune")
    with pytest.raises(ModelError, match="not in the run"):
        release(tmp_path / "run", models)


# --- remote


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    pytest.importorskip("fsspec", reason="needs the [store] extra")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://{tmp_path.name}/models"


def test_a_store_behind_a_url(made: Path, remote: str, tmp_path: Path) -> None:
    a = release(made / "good", remote, row="original").version
    b = release(made / "good", remote).version
    assert a is not None and b is not None and names(remote) == [a.id, b.id]
    assert not release(made / "good", remote).fresh
    detector = Detector(remote)
    assert detector.source.is_relative_to(tmp_path / "cache") and detector.source == released(remote)
    next(detector.source.glob("*.bin")).write_bytes(b"damaged in the cache")
    assert Detector(remote).source == detector.source, "fetched again"
    assert rollback(remote).version == a.id
    assert Detector(remote).source != detector.source
    files = open_files(remote)
    with pytest.raises(FileExistsError):
        files.create("releases/000003.json", b"{}")


def test_a_place_where_two_could_win_is_refused(made: Path, remote: str, monkeypatch: Any) -> None:
    from fsspec.implementations.memory import MemoryFileSystem
    from fsspec.spec import AbstractFileSystem

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", AbstractFileSystem.pipe_file)
    with pytest.raises(StoreError, match="only one writer may win"):
        release(made / "good", remote)
    assert names(remote) == []


def test_a_place_that_does_not_answer(remote: str, monkeypatch: Any) -> None:
    files = open_files(remote)
    assert isinstance(files, RemoteFiles)

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise TimeoutError("no route to host")

    monkeypatch.setattr(type(files.fs), "ls", unreachable)
    with pytest.raises(StoreError, match="no route to host"):
        released(remote)


def test_a_foreign_store_writes_nothing_outside_the_cache(made: Path, remote: str) -> None:
    version = release(made / "good", remote).version
    assert version is not None
    fs: Any = open_files(remote)
    head = json.loads(fs.read(f"versions/{version.id}/version.json"))
    head["files"]["../../escape"] = head["files"].pop("report.json")
    fs.fs.pipe_file(f"{fs.root}/versions/{version.id}/version.json", json.dumps(head).encode())
    with pytest.raises(StoreError, match="outside the version"):
        released(remote)


def test_addresses() -> None:
    assert shown("s3://key:secret@bucket/models?token=1") == "s3://***@bucket/models"
    assert isinstance(open_files("file:///tmp/x"), LocalFiles)


# --- what differs


def test_differences_of_two_versions(made: Path, models: str, tmp_path: Path, capsys: Any) -> None:
    release(made / "good", models)
    a, b = side("released", models), side(str(made / "dim"), None)
    found = diff(a, b)
    assert found["drop"] == pytest.approx(33.66, abs=0.01) and found["drop_ci95"][1] > found["drop"]
    assert [round(c["ap50_change"], 1) for c in found["per_class"]] == [-33.7] * 3
    assert found["pictures"][0] == {
        "picture": "00.png",
        "difference": 3,
        "objects": 3,
        "found": [3, 0],
        "false": [0, 0],
    }  # noqa: E501
    assert [p["picture"] for p in found["pictures"]] == sorted(p["picture"] for p in found["pictures"])
    drawn = draw_differences(
        a, b, sorted((made / "data" / "images" / "val").glob("*.png")), out=tmp_path / "o", count=2
    )
    assert len(drawn) == 2 and len(list((tmp_path / "o").glob("*.jpg"))) == 2
    assert drawn[0]["difference"] >= drawn[1]["difference"] > 0
    assert cli(["diff", "released", str(made / "dim"), "--store", models]) == 0
    text = capsys.readouterr().out
    assert "falls by 33.66 points" in text and "00.png" in text and "blue" in text
    assert cli(["diff", "released", "released", "--store", models, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["drop"], same["pictures"]) == (0.0, [])


def test_differing_pictures_count_classes_apart() -> None:
    def matches(class_id: list[int], hit: list[bool]) -> Matches:
        n = len(class_id)
        return Matches(np.zeros(n, np.int32), np.array(class_id, np.int32), np.full(n, 0.9, np.float32),
                       np.array(hit), np.array([[1, 1], [1, 0]], np.int32), np.array(["a", "b"]))  # fmt: skip

    found = differing(matches([0, 1], [True, False]), matches([1, 1], [True, False]))
    assert [(p["picture"], p["difference"]) for p in found] == [("a", 2)], "one class lost, another found"


def test_unmatched_boxes() -> None:
    from hawkeye import Detections

    def boxes(*rows: tuple[float, float, int]) -> Detections:
        xyxy = np.array([[x, 0, x + size, size] for x, size, _ in rows], np.float32).reshape(-1, 4)
        return Detections(xyxy, np.ones(len(rows), np.float32), np.array([cls for *_, cls in rows], np.int32))

    assert unmatched(boxes((0, 10, 0)), boxes((1, 10, 0))) == 0
    assert unmatched(boxes((0, 10, 0)), boxes((1, 10, 1))) == 2, "another class"
    assert unmatched(boxes((0, 10, 0), (1, 10, 0)), boxes((0, 10, 0))) == 1, "each is used once"
    assert unmatched(boxes(), boxes((0, 10, 0))) == 1


def test_what_has_changed_since_a_release(made: Path, models: str) -> None:
    version = release(made / "good", models).version
    assert version is not None
    now = json.loads((made / "good" / "run.json").read_text())
    assert same_inputs(version, now["identity"], {**now["recipe"], "model": "elsewhere.pt", "store": "x"}) == []
    other = {**now["recipe"], "recover": {**now["recipe"]["recover"], "budget": 5.0}, "gates": {"max_drop": 9}}
    assert same_inputs(version, now["identity"], other) == ["recover.budget (3600.0 → 5.0)"]
    unpruned = version.model_copy(update={"recipe": {**version.recipe, "skip": ["prune"]}})
    assert same_inputs(unpruned, now["identity"], {**other, "skip": ["prune"]}) == [], "a stage that neither has"
    changed = same_inputs(version, {**now["identity"], "data": "f" * 64}, now["recipe"])
    assert len(changed) == 1 and changed[0].startswith("the data's content")
