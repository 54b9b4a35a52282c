"""Pictures and videos of the page "Detect": what each model finds in them, filtered anew without asking the network.

A model is asked once for all it sees down to `WEAKEST`; the sliders then only choose among that.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.data import MAX_PIXELS
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.outputs import draw, encode_jpeg
from hawkeye.runtime.detector import class_indices
from hawkeye.runtime.source import VIDEO_SUFFIXES, find_sources, open_source
from hawkeye.serve.core import Service
from hawkeye.serve.export import plain
from hawkeye.serve.pictures import decode_picture
from hawkeye.serve.schemas import Detecting

WEAKEST, LOOSEST = 0.05, 0.9  # lowest score and highest overlap that the sliders offer
MAX_FRAMES = 200  # of a video that are looked at, evenly spread
SHOWN_PX = 1280
_PATIENCE_S = 10.0
_QUALITY = 85
_ASKED = Detecting(conf=WEAKEST, iou=LOOSEST)


@dataclass
class Pass:
    """What one model has found.

    Attributes:
        found: for each frame, all down to `WEAKEST`.
        timings_ms: of each frame, by stage.
        again_ms: time of the network in further passes over one frame.
    """

    names: tuple[str, ...]
    found: list[Detections] = field(default_factory=list)
    timings_ms: list[dict[str, float]] = field(default_factory=list)
    again_ms: list[float] = field(default_factory=list)

    def typical_ms(self) -> dict[str, float]:
        """Median of each stage over the frames; of the network over further passes where there were any."""
        stages = list(self.timings_ms[0]) if self.timings_ms else []
        typical = {stage: statistics.median(row[stage] for row in self.timings_ms) for stage in stages}
        if self.again_ms:
            typical["network"] = statistics.median(self.again_ms)
        return typical


@dataclass(eq=False)
class Shot:
    """One picture or video.

    Attributes:
        id: cannot be guessed; the browser gets the frames under it.
        content: of a picture file. path: of a video file.
        jpegs: the frames for the browser, `SHOWN_PX` wide at most. times_s: when each is; one 0.0 of a picture.
        every: each n-th frame of the video is looked at.
        passes: by the model's id.
    """

    name: str
    content: bytes = b""
    path: Path | None = None
    width: int = 0
    height: int = 0
    every: int = 1
    jpegs: list[bytes] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    passes: dict[str, Pass] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def __post_init__(self) -> None:
        _KNOWN[self.id] = self

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return len(self.content) + sum(map(len, self.jpegs))

    def forget(self) -> None:
        """Let go of its file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def images(self, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """The frames that are looked at, with their times; (H, W, 3) BGR.

        Raises:
            DataError: no picture, no video, or too large.
        """
        if self.path is None:
            yield 0.0, decode_picture(self.content, max_pixels)
            return
        [source] = find_sources([self.path])
        capture = open_source(source)
        try:
            self.every = max(1, -(-capture.frames // MAX_FRAMES))
            for index in range(MAX_FRAMES * self.every):
                if (shot := capture.read()) is None:
                    break
                if index % self.every == 0:
                    yield shot.time_s or 0.0, shot.image
        finally:
            capture.close()


# The browser asks for frames by address, so that moving a slider does not send the picture again.
_KNOWN: WeakValueDictionary[str, Shot] = WeakValueDictionary()


def frame_of(shot: str, frame: int) -> bytes | None:
    """A frame as JPEG; None where there is none."""
    known = _KNOWN.get(shot)
    return known.jpegs[frame] if known is not None and 0 <= frame < len(known.jpegs) else None


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def look(service: Service, shot: Shot, model: str, *, told: Callable[[int], bool] = lambda done: True) -> Pass:
    """Let a model look at every frame; the result is also in `shot.passes`. Waits for the network.

    Args:
        told: called with the number of frames done; False ends it early.

    Raises:
        DataError: no picture, no video, or too large.
        ModelError, NotFound, Busy: see `Service.detect`.
    """
    how = _ASKED.model_copy(update={"model": model})
    names = next((info.classes for info in service.models() if info.id == model), ()) or service.names
    done = Pass(names)
    first = not shot.jpegs
    for time_s, image in shot.images(service.config.max_pixels):
        if shot.path is None:
            answer = service.detect(shot.content, how, patience_s=_PATIENCE_S)
            found, timings = _detections([box.model_dump() for box in answer.detections]), answer.timings_ms
        else:
            found, timings = service.detect_image(image, how, patience_s=_PATIENCE_S)
        done.found.append(found)
        done.timings_ms.append(timings)
        if first:
            shot.height, shot.width = image.shape[:2]
            shot.jpegs.append(_shown(image))
            shot.times_s.append(time_s)
        if not told(len(done.found)) or len(done.found) == len(shot.jpegs) and not first:
            break
    if not done.found:
        raise DataError(f"{shot.name} holds no pictures", expected="a video with at least one frame")
    shot.passes[model] = done
    return done


def look_again(service: Service, shot: Shot, models: Sequence[str], frame: int, times: int) -> None:
    """Let the models look at one frame again, in turns so that none has the quieter moment; times of the network.

    Raises:
        DataError, ModelError, NotFound, Busy: see `look`.
    """
    image = next(image for i, (_, image) in enumerate(shot.images(service.config.max_pixels)) if i == frame)
    for _ in range(times):
        for model in models:
            how = Detecting(model=model)
            timings = service.detect_image(image, how, patience_s=_PATIENCE_S)[1]
            shot.passes[model].again_ms.append(timings["network"])


def choose(found: Detections, *, conf: float, iou: float, classes: Sequence[int] | None = None) -> Detections:
    """Those above a score, without the weaker of two of a class that overlap by more than `iou`, best first."""
    keep = found.score > conf
    if classes is not None:
        keep &= np.isin(found.class_id, classes)
    found = found[np.flatnonzero(keep)]
    if not len(found):
        return found
    boxes: Any = np.column_stack([found.xyxy[:, :2], found.xyxy[:, 2:] - found.xyxy[:, :2]]).astype(np.float64)
    scores: Any = found.score
    ids: Any = found.class_id
    kept = cv2.dnn.NMSBoxesBatched(boxes, scores, ids, 0.0, iou)
    return found[np.asarray(kept, np.intp).reshape(-1)]


def wanted(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Indices of those classes that a model knows; None where none was chosen."""
    known = [name for name in classes if name in names]
    return list(class_indices(known, names)) if classes else None


def as_json(shot: Shot, model: str, chosen: Sequence[Detections], settings: dict[str, Any]) -> bytes:
    """Everything that was found, with what was asked for, as JSON."""
    done = shot.passes[model]
    frames = [
        {"time_s": round(time_s, 3), "timings_ms": {k: round(v, 3) for k, v in timings.items()},
         "detections": found.to_records(done.names)}
        for time_s, timings, found in zip(shot.times_s, done.timings_ms, chosen, strict=False)
    ]  # fmt: skip
    about = {"file": shot.name, "model": model, "width": shot.width, "height": shot.height, **settings}
    if shot.path is not None:
        about["every"] = shot.every
    return json.dumps({**about, "frames": frames}, indent=1, ensure_ascii=False).encode()


def as_csv(shot: Shot, model: str, chosen: Sequence[Detections]) -> bytes:
    """One row for each object: time, class, score, box in pixels."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("file", "time_s", "class_id", "name", "score", "x1", "y1", "x2", "y2"))
    for time_s, found in zip(shot.times_s, chosen, strict=False):
        for row in found.to_records(shot.passes[model].names):
            rows.writerow((plain(shot.name), f"{time_s:.3f}", row["class_id"], plain(row["name"]), row["score"],
                           *row["xyxy"]))  # fmt: skip
    return text.getvalue().encode()


def as_picture(shot: Shot, model: str, frame: int, found: Detections) -> bytes:
    """One frame with its boxes as JPEG; a picture in its full size, a video's frame as it is shown."""
    names = shot.passes[model].names
    if shot.path is None:
        return encode_jpeg(draw(decode_picture(shot.content, MAX_PIXELS), found, names))
    image = np.asarray(cv2.imdecode(np.frombuffer(shot.jpegs[frame], np.uint8), cv2.IMREAD_COLOR), np.uint8)
    factor = image.shape[1] / shot.width
    return encode_jpeg(draw(image, Detections(found.xyxy * np.float32(factor), found.score, found.class_id), names))


def _shown(image: NDArray[np.uint8]) -> bytes:
    height, width = image.shape[:2]
    if max(width, height) > SHOWN_PX:
        factor = SHOWN_PX / max(width, height)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(image, _QUALITY)


def _detections(rows: Sequence[dict[str, Any]]) -> Detections:
    if not rows:
        return Detections.empty()
    return Detections(
        np.array([row["xyxy"] for row in rows], np.float32), np.array([row["score"] for row in rows], np.float32),
        np.array([row["class_id"] for row in rows], np.int32),
    )  # fmt: skip
