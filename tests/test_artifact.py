"""The record of a stage: written last and whole, and reused only for the same work on intact files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hawkeye import artifact
from hawkeye.artifact import RECORD, Artifact, ModelSpec, digest, reuse, write_bytes, write_json
from hawkeye.errors import ModelError, StorageError

SPEC = ModelSpec(imgsz=64, names=("cat", "dog"), strides=(8, 16, 32))


def make(root: Path, key: str = "k", **fields: Any) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    (root / "model.pt").write_bytes(b"weights")
    (root / "model.xml").write_text("<net/>")
    (root / "model.bin").write_bytes(b"\1\2\3")
    values: dict[str, Any] = {"name": "pruned", "stage": "prune", "spec": SPEC, "params": 10, "macs": 5 * 10**8}
    files: dict[artifact.Format, Path] = {"pytorch": root / "model.pt", "openvino": root / "model.xml"}
    return Artifact.create(root, files, started=time.perf_counter(), key=key, **{**values, **fields})


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    made = make(tmp_path / "a", details={"widths": {"model.0": [16, 8]}}, parent_sha256="p", config={"flops": 0.7})
    for place in (tmp_path / "a", tmp_path / "a" / RECORD):
        read = Artifact.load(place)
        assert read == made and read.root == tmp_path / "a" and read.sha256 == made.sha256
    assert made.path("openvino") == tmp_path / "a" / "model.xml"
    assert made.gflops == 1.0, "two operations to each multiply-accumulate"
    assert made.files["openvino"].bytes == 6 + 3, "the weights beside an .xml count with it"
    assert made.files["pytorch"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert made.environment["cores"] >= 1 and "numpy" in made.environment["versions"]


def test_anchors_of_the_raw_output() -> None:
    assert SPEC.anchors == 8 * 8 + 4 * 4 + 2 * 2
    assert SPEC.model_copy(update={"imgsz": 640}).anchors == 8400


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    read = Artifact.load(moved)
    assert read.sha256 == made.sha256 and read.intact() and read.path("pytorch").read_bytes() == b"weights"


@pytest.mark.parametrize("changed", ["model.pt", "model.xml", "model.bin"])
def test_identity_follows_every_file(tmp_path: Path, changed: str) -> None:
    made = make(tmp_path / "a")
    assert reuse(tmp_path / "a", "k") == made
    (tmp_path / "a" / changed).write_bytes(b"tampered")
    assert not Artifact.load(tmp_path / "a").intact() and reuse(tmp_path / "a", "k") is None


@pytest.mark.parametrize("lost", ["model.pt", "model.bin", RECORD])
def test_nothing_is_reused_when_a_file_is_lost(tmp_path: Path, lost: str) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / lost).unlink()
    assert reuse(tmp_path / "a", "k") is None


def test_other_work_is_not_reused(tmp_path: Path) -> None:
    make(tmp_path / "a", key="old")
    assert reuse(tmp_path / "a", "new") is None and reuse(tmp_path / "a", "old") is not None
    assert reuse(tmp_path / "nowhere", "old") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema_version": 99}', '{"name": "x"}'],
    ids=["empty", "cut off", "not a record", "from the future", "incomplete"],
)
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / RECORD).write_text(text)
    assert reuse(tmp_path / "a", "k") is None
    with pytest.raises(ModelError, match="run its stage again"):
        Artifact.load(tmp_path / "a")


def test_a_record_with_an_unknown_key(tmp_path: Path) -> None:
    path = make(tmp_path / "a").root / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(ModelError, match="cannot be read"):
        Artifact.load(tmp_path / "a")


def test_an_unfinished_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a finished artefact") as caught:
        Artifact.load(tmp_path)
    assert caught.value.exit_code == 2


def test_a_missing_format_names_what_is_there_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"openvino.*pytorch(.|\n)*hawkeye export"):
        make(tmp_path / "a").path("onnx")


def test_digest_is_the_same_on_every_machine() -> None:
    assert digest("prune", {"b": 1, "a": [1, 2]}) == digest("prune", {"a": [1, 2], "b": 1})
    assert len({digest("a", "b"), digest("ab"), digest("a", "b", None), digest(["a", "b"])}) == 4
    program = "from hawkeye.artifact import digest; print(digest('x', {'k': 1.5}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": "12"})  # fmt: skip
    assert other.stdout.strip() == digest("x", {"k": 1.5})


def test_writing_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "file.json"
    write_json(path, {"a": "ü", "n": None})
    before = path.read_bytes()
    assert json.loads(before) == {"a": "ü", "n": None}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_bytes(path, b"new")
    assert caught.value.exit_code == 2 and "goes on where it was" in str(caught.value)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_other_failures_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output") as caught:
        write_bytes(tmp_path / "file", b"x")
    assert not isinstance(caught.value, StorageError) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_nan(tmp_path: Path, value: float) -> None:
    """Missing is null: NaN is not JSON, and other programs stop at it."""
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"v": value})
    assert not (tmp_path / "x.json").exists()


def test_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the files are hashed: the folder must count as unfinished."""

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "file_sha256", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a")
    assert (tmp_path / "a" / "model.pt").is_file() and not (tmp_path / "a" / RECORD).exists()
