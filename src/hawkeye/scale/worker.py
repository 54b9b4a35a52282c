"""One worker of a batch: a detector that turns a part of the list of pictures into a partition of the result.

A partition has one row for each picture of its part, with an error in place of detections where a picture cannot be
read. It is written whole or not at all, and doing a part twice writes the same rows again; so a worker can be killed
at any moment, and whoever takes over its part loses nothing and doubles nothing.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hawkeye import __version__
from hawkeye.artifact import RECORD, Artifact, describe_file, digest
from hawkeye.data import decode_image, read_image
from hawkeye.detections import Detections
from hawkeye.errors import DataError, ModelError
from hawkeye.runtime.detector import BEST, Detector
from hawkeye.scale.listing import Part, read_part, read_rows
from hawkeye.scale.places import Place, is_url, open_place, read_url
from hawkeye.store_files import shown

_READERS_LOCAL, _READERS_REMOTE = 1, 8  # a disk is read while the network computes; an object store mostly waits
_AHEAD = 2  # decoded pictures that wait for each reader
_FEWEST = 16  # a part of at least so many pictures, all of which are gone, says that their place is gone
_METADATA = b"hawkeye"

_BOX = pa.struct([("class_id", pa.int32()), ("name", pa.string()), ("score", pa.float32()),
                  *((side, pa.float32()) for side in ("x1", "y1", "x2", "y2"))])  # fmt: skip
SCHEMA = pa.schema([
    pa.field("image", pa.string(), nullable=False), pa.field("width", pa.int32()), pa.field("height", pa.int32()),
    pa.field("detections", pa.list_(_BOX)), pa.field("error", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What every worker of a batch must know.

    Attributes:
        out: folder or URL of the batch.
        model: file or folder of the model, the same on every machine.
        model_sha256: its content.
        options: as `Detector` takes them.
        column: of Parquet files; None where it tells itself.
    """

    out: str
    model: str
    model_sha256: str
    options: dict[str, Any]
    column: str | None = None

    @property
    def key(self) -> str:
        """Hash of all that decides what is found in a picture."""
        without = {name: value for name, value in self.options.items() if name != "threads"}
        return digest("batch", self.model_sha256, without, __version__)


class Done(NamedTuple):
    """A finished part.

    Attributes:
        number: of the part.
        pictures, objects, failed: how many.
        seconds: that its worker took.
    """

    number: int
    pictures: int
    objects: int
    failed: int
    seconds: float


Load = Callable[[], NDArray[np.uint8]]


class Read(NamedTuple):
    """A picture (H, W, 3) of uint8 BGR, or why there is none."""

    name: str
    image: NDArray[np.uint8] | None
    error: str | None = None
    gone: bool = False


class _GoneError(DataError):
    """A picture that was listed is not there any more."""


class Worker:
    """See the head of this file. For one thread.

    Raises:
        ModelError: the model is not there, or not what the batch was begun with.
    """

    def __init__(self, job: Job) -> None:
        found = model_sha256(Path(job.model))
        if found != job.model_sha256:
            raise ModelError(f"{job.model} has been changed since the batch began", got=found,
                             expected=job.model_sha256, mend="restore it, or name another --out")  # fmt: skip
        self.job, self.place = job, open_place(job.out)
        self.detector = Detector(job.model, **job.options)
        cv2.setNumThreads(1)  # workers share the cores among them; OpenCV would take all of them in each
        pa.array([])  # imports pandas, where that is installed: a second that belongs to the start

    def __call__(self, part: Part) -> Done:
        """Work on a part and write its partition.

        Raises:
            StoreError, StorageError: the place of the pictures or of the result refuses.
            DataError: none of the pictures is there any more.
        """
        began = time.perf_counter()
        rows: list[dict[str, Any]] = []
        gone = objects = failed = 0
        tries = Tries(self.place, part)
        for read in self._careful(part, tries) if tries.careful else self._pictures(part):
            found = None if read.image is None else self.detector(read.image)
            rows.append(_row(read, found, self.detector.names))
            objects += 0 if found is None else len(found)
            failed += found is None
            gone += read.gone
        if gone == len(rows) >= _FEWEST:
            raise DataError("the pictures are gone", got=f"none of {len(rows)} is there, such as {rows[0]['image']}",
                            mend="bring them back, then start the same command again to go on")  # fmt: skip
        done = Done(part.number, len(rows), objects, failed, round(time.perf_counter() - began, 3))
        write_partition(self.place, part, rows, done, self.job.key)
        tries.over()
        return done

    def _careful(self, part: Part, tries: Tries) -> Iterator[Read]:
        """The pictures of a part one by one, each named before it is touched."""
        for index, (name, load) in enumerate(_loaders(self.place, part, self.job.column)):
            if tries.deadly(index):
                yield Read(name, None, f"cannot work on {name}\n  got: the worker died each time")
                continue
            tries.at(index)
            yield _read(name, load)

    def _pictures(self, part: Part) -> Iterator[Read]:
        """The pictures of a part in order, read and decoded ahead in threads."""
        with ThreadPoolExecutor(_READERS_REMOTE, thread_name_prefix="read") as pool:
            waiting: deque[Future[Read]] = deque()
            for name, load in _loaders(self.place, part, self.job.column):
                waiting.append(pool.submit(_read, name, load))
                if len(waiting) > _AHEAD * (_READERS_REMOTE if is_url(name) else _READERS_LOCAL):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class Tries:
    """How often a part was begun, so that a picture that kills every worker is found instead of tried for ever.

    Two workers may die of other things. The third goes picture by picture and says beforehand which one is next; a
    picture that two have died of since is listed as one that could not be read.
    """

    def __init__(self, place: Place, part: Part) -> None:
        self._place, self._name = place, f"try-{part.number:06d}.json"
        try:
            with place.open(self._name) as file:
                told = json.load(file)
            self._began, self._next, self._deaths = int(told["began"]), told["next"], Counter(told["deaths"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            self._began, self._next, self._deaths = 0, None, Counter[str]()
        if self._next is not None:
            self._deaths[str(self._next)] += 1
        self._began, self._next = self._began + 1, None
        self._save()

    @property
    def careful(self) -> bool:
        """Whether to go picture by picture."""
        return self._began > 2

    def deadly(self, index: int) -> bool:
        """Whether a picture has killed two workers that were on it alone."""
        return self._deaths[str(index)] >= 2

    def at(self, index: int) -> None:
        """This picture is next."""
        self._next = index
        self._save()

    def over(self) -> None:
        """The part is done."""
        self._place.remove(self._name)

    def _save(self) -> None:
        told = {"began": self._began, "next": self._next, "deaths": self._deaths}
        self._place.write(self._name, json.dumps(told).encode())


def _loaders(place: Place, part: Part, column: str | None) -> Iterator[tuple[str, Load]]:
    """Names of a part's pictures, and how each is read."""
    for entry in read_part(place, part):
        if entry.first < 0:
            yield entry.address, partial(_from_url if is_url(entry.address) else _from_path, entry.address)
            continue
        rows = 0
        try:
            for name, content in read_rows(entry.address, entry.first, entry.pictures, column):
                rows += 1
                yield name, partial(_from_row, name, content)
        except DataError as error:  # damaged in the middle: the rows that are left are listed as such
            for row in range(entry.first + rows, entry.first + entry.pictures):
                yield f"{entry.address}#{row}", partial(_refuse, error)


def _from_path(path: str) -> NDArray[np.uint8]:
    if not os.path.exists(path):  # noqa: PTH110  # for millions
        raise _GoneError(f"cannot read {path}", got="no such file")
    return read_image(Path(path))


def _from_url(url: str) -> NDArray[np.uint8]:
    return decode_image(read_url(url), shown(url))


def _from_row(name: str, content: bytes | None) -> NDArray[np.uint8]:
    if content is None:
        raise DataError(f"cannot read {name}", got="nothing in this row", expected="the bytes of a picture file")
    return decode_image(content, name)


def _refuse(error: DataError) -> NDArray[np.uint8]:
    raise error


def _read(name: str, load: Load) -> Read:
    try:
        return Read(name, load())
    except DataError as error:
        return Read(name, None, str(error), isinstance(error, _GoneError))


def _row(read: Read, found: Detections | None, names: tuple[str, ...]) -> dict[str, Any]:
    if found is None or read.image is None:
        return {"image": read.name, "width": None, "height": None, "detections": None, "error": read.error}
    boxes = [
        {"class_id": int(cls), "name": names[cls], "score": score, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
        for cls, score, (x1, y1, x2, y2) in zip(found.class_id, found.score, found.xyxy, strict=True)
    ]
    height, width = read.image.shape[:2]
    return {"image": read.name, "width": width, "height": height, "detections": boxes, "error": None}


def write_partition(place: Place, part: Part, rows: list[dict[str, Any]], done: Done, key: str) -> None:
    """Write a partition, whole or not at all; its footer says how it came about."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    facts = "\n".join([key, *map(str, done)])
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA: facts.encode()}), buffer, compression="zstd")
    place.write(part.file, buffer.getvalue())


def finished(place: Place, part: Part, key: str) -> Done | None:
    """What the partition of a part says of itself; None where it is not there, damaged, or of other work."""
    try:
        with place.open(part.file) as file:
            footer = pq.read_metadata(file)
        told, *figures = (footer.metadata or {}).get(_METADATA, b"").decode().split("\n")
        number, pictures, objects, failed = (int(text) for text in figures[:4])
        done = Done(number, pictures, objects, failed, float(figures[4]))
    except (FileNotFoundError, pa.ArrowException, OSError, ValueError, IndexError):
        return None
    whole = (told, done.number, footer.num_rows) == (key, part.number, part.pictures)
    return done if whole else None


def failures(place: Place, part: Part) -> list[tuple[str, str]]:
    """Names of the pictures of a partition that could not be read, and why."""
    with place.open(part.file) as file:
        table = pq.read_table(file, columns=["image", "error"])
    rows = table.filter(pa.compute.is_valid(table.column("error")))
    return list(zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True))


def model_sha256(model: Path) -> str:
    """Content of what `Detector` would open.

    Raises:
        ModelError: nothing usable there, or a file that is not what its record says.
    """
    for place in (".", *BEST) if model.is_dir() else ():
        if (model / place / RECORD).is_file():
            artifact = Artifact.load(model / place)
            if not artifact.intact():
                raise ModelError(f"{artifact.root} is not what its record says", got="files with another content",
                                 mend="run its stage again")  # fmt: skip
            return artifact.sha256
    files = [model] if model.is_file() else sorted(model.glob("*.xml")) or sorted(model.glob("*.onnx"))
    if len(files) != 1:
        raise ModelError(f"{model} holds no model that can be chosen", got=[file.name for file in files] or "none",
                         expected="a finished run, an artefact, or one .xml or .onnx file")  # fmt: skip
    try:
        return describe_file(files[0], files[0].parent).sha256
    except FileNotFoundError as error:
        raise ModelError(f"{files[0]} is not complete", got=f"no {error.filename}") from None
