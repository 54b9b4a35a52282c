"""The record that flows through every stage: one model, its files, and where it came from.

A stage writes its files into its own folder and `artifact.json` last, atomically. A folder without it is unfinished
work: the same command goes on from there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from hawkeye import environment
from hawkeye.errors import ModelError, StorageError

Format = Literal["pytorch", "onnx", "openvino"]
RECORD = "artifact.json"


class Record(BaseModel):
    """Base of everything that is written as JSON and read back."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Record):
    """What a runtime must know to use the network.

    Attributes:
        imgsz: side of the square input in pixels.
        names: class names by index.
        strides: pixels per cell of each output level.
        task: always "detect".
    """

    imgsz: int
    names: tuple[str, ...]
    strides: tuple[int, ...]
    task: Literal["detect"] = "detect"

    @property
    def anchors(self) -> int:
        """Number of candidate boxes A in the raw output (4 + nc, A) of the square."""
        return self.anchors_of((self.imgsz, self.imgsz))

    def anchors_of(self, canvas_hw: tuple[int, int]) -> int:
        """The same for a canvas of that height and width in pixels."""
        return sum((canvas_hw[0] // stride) * (canvas_hw[1] // stride) for stride in self.strides)


class FileRecord(Record):
    """A file (or, for OpenVINO, an .xml with its .bin) of an artefact, relative to the artefact's folder."""

    path: str
    sha256: str
    bytes: int


class Artifact(Record):
    """One model after one stage.

    Attributes:
        name: "original", "pruned", "original+int8" or "pruned+int8".
        stage: the stage that made it.
        files: by format.
        params: parameters of the network as trained (BatchNorm unfused).
        macs: multiply-accumulates at the input size, batch 1; GFLOPs are 2 * macs / 1e9.
        parent_sha256: sha256 of the artefact that it was made from; None for an original.
        key: reuse key: the same key means the same work.
        config: the stage's settings.
        details: what else the stage has to tell (widths, differences, counts), JSON-ready.
    """

    schema_version: Literal[1] = 1
    name: str
    stage: str
    files: dict[Format, FileRecord]
    spec: ModelSpec
    params: int
    macs: int
    parent_sha256: str | None = None
    key: str = ""
    config: dict[str, Any] = {}
    details: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    seed: int = 0
    seconds: float = 0.0
    created: str = ""

    _root: Path = PrivateAttr(default=Path())

    @property
    def root(self) -> Path:
        """Folder that holds the files."""
        return self._root

    @property
    def gflops(self) -> float:
        """2 * MACs at the input size, in billions."""
        return 2 * self.macs / 1e9

    @property
    def sha256(self) -> str:
        """Identity of the artefact: hash over its files' hashes."""
        return digest(*(f"{fmt}:{record.sha256}" for fmt, record in sorted(self.files.items())))

    def path(self, fmt: Format) -> Path:
        """Absolute path of the file in one format.

        Raises:
            ModelError: the artefact has no such file.
        """
        if fmt not in self.files:
            exportable = "pytorch" in self.files  # INT8 holds no checkpoint
            raise ModelError(f"{self.root} has no {fmt} file", got=sorted(self.files), expected=fmt,
                             mend=f"run `hawkeye export {self.root}`" if exportable else
                             "name the artefact that it was made from")  # fmt: skip
        return self._root / self.files[fmt].path

    @classmethod
    def load(cls, folder: Path) -> Artifact:
        """Read `artifact.json` of a folder.

        Raises:
            ModelError: no record there, or one that cannot be read.
        """
        path = folder / RECORD if folder.name != RECORD else folder
        try:
            artifact = cls.model_validate_json(path.read_text())
        except OSError:
            below = sorted(p.parent.relative_to(folder).as_posix()
                           for pattern in (f"*/{RECORD}", f"*/*/{RECORD}") for p in folder.glob(pattern))  # fmt: skip
            mend = f"name a folder below it, such as {', '.join(below[:8])}" if below else \
                "name the folder of a stage, or run that stage again"  # fmt: skip
            raise ModelError(f"{folder} is not a finished artefact", got=f"no {RECORD} there", mend=mend) from None
        except ValidationError as error:
            raise ModelError(
                f"{path} cannot be read", got=error.errors()[0]["msg"], mend="run its stage again"
            ) from None
        artifact._root = path.parent
        return artifact

    @classmethod
    def create(cls, root: Path, files: Mapping[Format, Path], *, started: float, **fields: Any) -> Artifact:
        """Hash the files, describe the machine, and write the record: the stage is done when this returns."""
        records = {fmt: describe_file(path, root) for fmt, path in files.items()}
        artifact = cls(
            files=records,
            environment=environment.describe(),
            seconds=round(time.perf_counter() - started, 3),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **fields,
        )
        artifact._root = root
        write_json(root / RECORD, artifact.model_dump(mode="json"))
        return artifact

    def intact(self) -> bool:
        """Whether every file is there with the recorded content."""
        try:
            return all(describe_file(self._root / r.path, self._root).sha256 == r.sha256 for r in self.files.values())
        except OSError:
            return False


def reuse(folder: Path, key: str) -> Artifact | None:
    """The finished artefact in `folder` if it was made by exactly this work and is still intact."""
    if not (folder / RECORD).is_file():
        return None
    try:
        artifact = Artifact.load(folder)
    except ModelError:
        return None
    return artifact if artifact.key == key and artifact.intact() else None


def digest(*parts: object) -> str:
    """Hash of a few values; the same values give the same hash on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path, root: Path) -> FileRecord:
    """Record of a file; an OpenVINO .xml counts together with the .bin beside it."""
    sha, size = file_sha256(path), path.stat().st_size
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml":
        sha, size = digest(sha, file_sha256(weights)), size + weights.stat().st_size
    return FileRecord(path=path.relative_to(root).as_posix(), sha256=sha, bytes=size)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refusing disk into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM):
            raise
        raise StorageError(f"cannot write {path}", got=error.strerror,
                           mend="free some space or name another --out, then start the same command again: "
                           "it goes on where it was") from error  # fmt: skip


def make_folder(path: Path) -> None:
    """Make a folder for results where there is none yet, before any work is done for them.

    Raises:
        StorageError: a file is in its way, or the disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}", got=error.strerror, mend="name another --out") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and survives a power cut."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
