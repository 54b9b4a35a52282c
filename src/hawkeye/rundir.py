"""The folder of a run: which run it belongs to, and where each stage lives in it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hawkeye import __version__
from hawkeye.artifact import digest, file_sha256, storage_errors, write_json
from hawkeye.config import Recipe
from hawkeye.data import content_digest, list_images, load_dataset
from hawkeye.errors import DataError, RunDirError, StorageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

RUN = "run.json"
LOCK = ".lock"
MIN_FREE_BYTES = 1_000_000_000  # four detectors in three formats, optimiser state and records stay well below
# What each part of a run's identity is called where it is given.
_GIVEN_AS = {
    "model": "MODEL", "data": "--data", "images": "--images", "imgsz": "--imgsz", "seed": "--seed",
    "pruned": "--skip prune",
}  # fmt: skip


@dataclass(frozen=True)
class RunDir:
    """Paths inside a run's folder; stages write nowhere else."""

    root: Path

    @property
    def original(self) -> Path:
        """The imported checkpoint."""
        return self.root / "0-original"

    @property
    def teacher(self) -> Path:
        """The imported checkpoint to learn from, where it is not the original."""
        return self.root / "0-teacher"

    @property
    def prune(self) -> Path:
        """The pruned checkpoint."""
        return self.root / "1-prune"

    @property
    def recover(self) -> Path:
        """The pruned checkpoint after distillation."""
        return self.root / "2-recover"

    def export(self, name: str) -> Path:
        """ONNX and OpenVINO of "original" or "pruned"."""
        return self.root / "3-export" / name

    def quantize(self, name: str) -> Path:
        """INT8 of "original" or "pruned"."""
        return self.root / "4-quantize" / name

    @property
    def accuracy(self) -> Path:
        """One accuracy record per model and runtime."""
        return self.root / "records" / "accuracy"

    @property
    def latency(self) -> Path:
        """The latency record."""
        return self.root / "records" / "latency.json"

    @property
    def released(self) -> Path:
        """Records of the released model of a store, measured beside this run's."""
        return self.root / "records" / "released"

    @property
    def pictures(self) -> Path:
        """The same pictures with the boxes of each model."""
        return self.root / "pictures"


def identity(recipe: Recipe, *, pruned: bool) -> dict[str, Any]:
    """What makes two runs the same run: contents, not paths; settings of stages are left to the stages' own keys."""
    data = None
    if recipe.data is not None:
        dataset = load_dataset(recipe.data)
        splits = {name: content_digest(paths) for name, paths in sorted(dataset.splits.items())}
        data = digest(dataset.names, splits)
    return {
        "model": file_sha256(recipe.model) if recipe.model is not None else None,
        "data": data,
        "images": content_digest(list_images(recipe.images)) if recipe.images is not None else None,
        "imgsz": recipe.imgsz,
        "seed": recipe.seed,
        "pruned": pruned,
    }


def open_run(out: Path, recipe: Recipe, *, skip: tuple[str, ...] = ()) -> RunDir:
    """Make the folder of a run, or go on with it: writes run.json, atomically.

    Raises:
        RunDirError: the folder holds another run, or something else.
        StorageError: less than 1 GB free, or no permission.
    """
    check_space(out)
    before = check_owner(out)
    mine = identity(recipe, pruned="prune" not in skip)
    check_content(recipe, mine)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if before is not None and before["identity"] != mine:
        theirs = before["identity"]
        differs = [name for name in mine if theirs.get(name) != mine[name]]
        raise RunDirError(
            f"{out} holds another run",
            got="; ".join(f"{_GIVEN_AS[name]} differs ({_short(mine[name])})" for name in differs),
            expected="; ".join(f"{name} {_short(theirs.get(name))}" for name in differs),
            mend="name another --out, or remove that folder",
        )
    write_json(
        out / RUN,
        {
            "schema_version": 1,
            "key": digest(mine),
            "identity": mine,
            "recipe": recipe.model_dump(mode="json"),
            "skip": sorted(skip),
            "labels": recipe.data is not None,
            "started": before["started"] if before else now,
            "continued": now,
            "hawkeye": __version__,
        },
    )
    return RunDir(out)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system lets go of it when this one ends, however it ends.

    Raises:
        RunDirError: another process works in it.
        StorageError: its file system knows no locks.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as file:
        try:
            lock(file)
        except (BlockingIOError, PermissionError):
            raise RunDirError(f"{out} is in use", got="another process that works in it",
                              mend="wait for it, or name another --out") from None  # fmt: skip
        except OSError as error:
            raise StorageError(f"the file system of {out} cannot lock a file", got=error.strerror,
                               mend="name another --out, on this machine's own disk") from None  # fmt: skip
        yield


def lock(file: IO[Any], *, wait: bool = False) -> None:
    """Lock a file, open for writing, until it is closed or this process ends, however it ends.

    Raises:
        BlockingIOError, PermissionError: another process has it, and `wait` is false; which one, the system chooses.
        OSError: the file system knows no locks, as some network drives do not.
    """
    if sys.platform == "win32":
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                if not wait:
                    raise
            time.sleep(1.0)
    # Not flock: a worker of a killed run, forked from it, would hold that for some seconds more.
    fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def check_content(recipe: Recipe, found: dict[str, Any]) -> None:
    """Hold checkpoint and data against the contents that a recipe asks for.

    Raises:
        DataError: they have been changed.
    """
    for name in ("model", "data", "images"):
        wanted = getattr(recipe, f"{name}_sha256")
        if wanted is not None and found[name] != wanted:
            raise DataError(f"{name} is not what the recipe was written for", got=found[name] or f"no {name}",
                            expected=wanted, mend=f"restore it, or set {name}_sha256 to what was got")  # fmt: skip


def check_owner(out: Path) -> dict[str, Any] | None:
    """The run.json of a folder; None where the folder is missing or empty.

    Raises:
        RunDirError: not a folder, or it holds something that is no run.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise RunDirError(f"{out} is not a folder", got="a file", mend="name another --out")
    try:
        run = json.loads((out / RUN).read_text())
        if not isinstance(run, dict) or not isinstance(run.get("identity"), dict) or "started" not in run:
            raise ValueError("no identity in it")
    except FileNotFoundError:
        # An interrupted first write leaves a hidden temporary file behind, which is nobody's work.
        names = sorted(path.name for path in out.iterdir() if not path.name.startswith((f".{RUN}.", LOCK)))
        if not names:
            return None
        raise RunDirError(f"{out} is not empty and holds no run", got=", ".join(names[:5]),
                          expected=f"a new or empty folder, or one with {RUN}",
                          mend="name another --out") from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise RunDirError(f"{out / RUN} cannot be read", got=error, mend="name another --out") from None
    return run


def check_space(out: Path, *, need: int = MIN_FREE_BYTES) -> None:
    """Refuse to begin hours of work on a full disk.

    Raises:
        StorageError: fewer than `need` bytes free where `out` will be.
    """
    place = out.absolute()
    while not place.exists():
        place = place.parent
    with storage_errors(out):
        free = shutil.disk_usage(place).free
    if free < need:
        raise StorageError(f"too little room for {out}", got=f"{free / 1e9:.2f} GB free",
                           expected=f"{need / 1e9:.0f} GB", mend="free some space or name another --out")  # fmt: skip


def _short(value: object) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else str(value)
