"""What is written of a stream: pictures and videos with boxes, JSON lines, CSV.

Files grow as `NAME.part` and get their name when they are closed, so that a finished name is a finished file; what a
killed process leaves behind is still readable, up to the last second.
"""

from __future__ import annotations

import colorsys
import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import storage_errors, write_bytes
from hawkeye.detections import Detections
from hawkeye.errors import StorageError
from hawkeye.runtime.source import Source
from hawkeye.runtime.stream import Frame, State
from hawkeye.track.counting import CountEvent
from hawkeye.track.rules import Line, Rule

_FLUSH_S = 1.0
_LONGEST_STILL_S = 1.0  # a recording shows the last picture for at most this long where frames are missing


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """All that is known of one frame.

    Attributes:
        frame: the picture, its stream, number and time.
        source: where it is from.
        found: detections in its pixels; with `track_id` where objects are tracked.
        names: class names by index.
        events: what was counted at this frame.
        rules: lines and zones in pixels of this picture.
        totals: of the counter, see `Counter.totals`; empty where nothing is counted.
        rate: frames per second that the stream has, for recordings.
    """

    frame: Frame
    source: Source
    found: Detections
    names: tuple[str, ...]
    events: tuple[CountEvent, ...] = ()
    rules: tuple[Rule, ...] = ()
    totals: Mapping[str, Mapping[str, Any]] | None = None
    rate: float = 25.0

    def annotated(self) -> NDArray[np.uint8]:
        """A copy of the picture with boxes, rules and counts."""
        canvas = draw(self.frame.image, self.found, self.names)
        draw_rules_(canvas, self.rules, self.totals or {})
        return canvas


class Output:
    """Takes results one after another; each kind overrides what it needs.

    Raises (all methods):
        StorageError: the disk refused.
    """

    def write(self, result: Result) -> None:
        """One frame."""

    def count(self, source: Source, events: Sequence[CountEvent]) -> None:
        """What was counted at a frame, or when a source ended."""

    def state(self, source: Source, time_s: float, state: State, error: str) -> None:
        """A live source went silent, came back or broke; any source failed."""

    def skip(self, source: Source, picture: Path, error: str) -> None:
        """A picture of a source could not be read."""

    def close(self, *, finished: bool) -> None:
        """Finish the files; where the work broke off, they keep their `.part`."""


class _Text:
    """A text file that grows as `NAME.part`; made with the first line, or when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self._file: TextIO | None = None
        self._flushed_s = 0.0

    def open(self) -> TextIO:
        if self._file is None:
            with storage_errors(self.path):
                self.part.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.part.open("w", encoding="utf-8", newline="")
        return self._file

    def flush(self) -> None:
        now = time.monotonic()
        if self._file is not None and now - self._flushed_s > _FLUSH_S:
            self._flushed_s = now
            self._file.flush()

    def close(self, *, finished: bool) -> None:
        if self._file is None and not finished:
            return
        with storage_errors(self.path):
            self.open().close()
            if finished:
                self.part.replace(self.path)


class JsonLines(Output):
    """One JSON object per frame or skipped picture, and one for each time that a live source went silent or came back.

    A picture: `image`, `width`, `height`, `detections`; a skipped one: `image`, `error`. A frame: `source`, `frame`,
    `time_s`, `width`, `height`, `detections`. A detection: `class_id`, `name`, `score`, `xyxy` in pixels, and
    `track_id` where tracked. A change: `source`, `time_s`, `state`, `error`; there is no data from "no data" or
    "reconnecting" until "live".
    """

    def __init__(self, path: Path) -> None:
        self._text = _Text(path)

    def write(self, result: Result) -> None:
        """See `Output.write`."""
        frame = result.frame
        height, width = frame.image.shape[:2]
        where = ({"image": str(frame.path)} if frame.path else
                 {"source": result.source.label, "frame": frame.index, "time_s": round(frame.time_s, 3)})  # fmt: skip
        self._line({**where, "width": width, "height": height, "detections": result.found.to_records(result.names)})

    def state(self, source: Source, time_s: float, state: State, error: str) -> None:
        """See `Output.state`."""
        self._line({"source": source.label, "time_s": round(time_s, 3), "state": state, "error": error})

    def skip(self, source: Source, picture: Path, error: str) -> None:
        """See `Output.skip`."""
        self._line({"image": str(picture), "error": error})

    def close(self, *, finished: bool) -> None:
        """See `Output.close`."""
        self._text.close(finished=finished)

    def _line(self, value: dict[str, Any]) -> None:
        with storage_errors(self._text.path):
            self._text.open().write(json.dumps(value, ensure_ascii=False) + "\n")
            self._text.flush()


class _Csv(Output):
    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self._text = _Text(path)

    def close(self, *, finished: bool) -> None:
        """See `Output.close`."""
        if finished:
            self._rows([])  # an empty table still has its header
        self._text.close(finished=finished)

    def _rows(self, rows: Sequence[Sequence[Any]]) -> None:
        with storage_errors(self._text.path):
            file = self._text.open()
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(self.columns)
            writer.writerows(rows)
            self._text.flush()


class DetectionsCsv(_Csv):
    """One row per detection; corners in pixels."""

    columns = ("source", "frame", "time_s", "class_id", "name", "score", "x1", "y1", "x2", "y2", "track_id")

    def write(self, result: Result) -> None:
        """See `Output.write`."""
        frame = result.frame
        where = (str(frame.path or result.source.label), frame.index, round(frame.time_s, 3))
        self._rows([
            (*where, row["class_id"], row["name"], row["score"], *row["xyxy"], row.get("track_id", ""))
            for row in result.found.to_records(result.names)
        ])  # fmt: skip


class EventsCsv(_Csv):
    """One row per thing counted; see `CountEvent`."""

    columns = ("source", "time_s", "rule", "kind", "class", "track_id", "seconds")

    def count(self, source: Source, events: Sequence[CountEvent]) -> None:
        """See `Output.count`."""
        self._rows([
            (source.label, round(e.time_s, 3), e.rule, e.kind, e.class_name, e.track_id,
             "" if e.seconds is None else round(e.seconds, 3)) for e in events
        ])  # fmt: skip


class Pictures(Output):
    """A picture with boxes for each frame: at its own place below the folder, as .jpg.

    Attributes:
        files: what was written, in order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: list[Path] = []

    def write(self, result: Result) -> None:
        """See `Output.write`."""
        path = result.frame.path
        if path is None:
            return
        place = path.relative_to(result.source.base)
        # The whole name stays in it: a.png and a.jpg of one folder must not end in one file.
        target = self._folder / place.with_name(place.name + ".jpg")
        write_bytes(target, encode_jpeg(result.annotated()))
        self.files.append(target)


class Videos(Output):
    """A video (.mp4, MPEG-4 part 2) with boxes for each stream that is not of single pictures.

    Attributes:
        files: what was written.
    """

    def __init__(self, folder: Path, *, live: bool) -> None:
        self._folder, self._live = folder, live
        self._open: dict[str, _Recording] = {}
        self.files: list[Path] = []

    def write(self, result: Result) -> None:
        """See `Output.write`."""
        if result.source.kind == "pictures" or (result.source.live and not self._live):
            return
        name = result.source.name
        if name not in self._open:
            self._open[name] = _Recording(self._folder / f"{name}.mp4", result)
        self._open[name].write(result)

    def close(self, *, finished: bool) -> None:
        """See `Output.close`."""
        for recording in self._open.values():
            self.files.append(recording.close(finished=finished))
        self._open.clear()


class _Recording:
    """One video of fixed size and rate; frames that came late or not at all are shown as stills."""

    def __init__(self, path: Path, first: Result) -> None:
        self._path, self._part = path, path.with_name(f"{path.stem}.part.mp4")
        height, width = first.frame.image.shape[:2]
        self._size = (max(2, width // 2 * 2), max(2, height // 2 * 2))  # the codec wants even sides
        self._rate = first.rate
        self._live = first.source.live
        self._start_s, self._frames = first.frame.time_s, 0
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._part.touch()
        self._writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), self._rate,
                                       self._size)  # fmt: skip
        if not self._writer.isOpened():
            raise StorageError(f"cannot write {path}", got="the video cannot be begun",
                               mend="name another --out, or leave the video out with --no-pictures")  # fmt: skip

    def write(self, result: Result) -> None:
        image = result.annotated()
        if (image.shape[1], image.shape[0]) != self._size:
            image = np.asarray(cv2.resize(image, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        copies = 1
        if self._live:
            due = (result.frame.time_s - self._start_s) * self._rate + 1
            missing = due - self._frames
            if missing > _LONGEST_STILL_S * self._rate:
                self._start_s += (missing - 1) / self._rate
                missing = 1
            copies = round(missing)
        for _ in range(max(0, copies)):
            self._writer.write(image)
        self._frames += max(0, copies)

    def close(self, *, finished: bool) -> Path:
        self._writer.release()
        with storage_errors(self._path):
            if self._part.stat().st_size == 0:
                raise StorageError(f"cannot write {self._path}", got="an empty video", mend="free some space")
            return self._part.replace(self._path) if finished else self._part


def draw(image: NDArray[np.uint8], found: Detections, names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of a picture (H, W, 3) BGR with boxes, class names and scores; strokes grow with the picture.

    Tracked objects have a colour and a number each, others the colour of their class.
    """
    canvas = image.copy()
    stroke, _ = _pen(canvas)
    ids = [None] * len(found) if found.track_id is None else found.track_id.tolist()
    for box, score, cls, track in zip(found.xyxy, found.score, found.class_id, ids, strict=True):
        x1, y1, x2, y2 = (int(round(float(v))) for v in box)
        colour = _colour(int(cls) if track is None else track)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, stroke, cv2.LINE_AA)
        _label_(canvas, f"{names[cls]} {f'{score:.2f}' if track is None else track}", (x1, y1), colour)
    return canvas


def draw_rules_(
    canvas: NDArray[np.uint8], rules: Sequence[Rule], totals: Mapping[str, Mapping[str, Any]]
) -> None:  # fmt: skip
    """Draw lines and zones, in pixels, with what they have counted, into a picture (H, W, 3) BGR."""
    stroke, _ = _pen(canvas)
    for number, rule in enumerate(rules):
        colour, total = _colour(number + 3), totals.get(rule.name, {})
        if isinstance(rule, Line):
            points = np.array([rule.start, rule.end], np.float32).round().astype(np.int32)
            text = f"{rule.name}: in {total.get('in', 0)}, out {total.get('out', 0)}"
        else:
            points = np.array(rule.points, np.float32).round().astype(np.int32)
            text = f"{rule.name}: {total.get('now', 0)} inside, {total.get('enter', 0)} entered"
        cv2.polylines(canvas, [points], not isinstance(rule, Line), colour, 2 * stroke, cv2.LINE_AA)
        x, y = (int(v) for v in points.mean(axis=0))
        _label_(canvas, text, (x, y), colour)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """JPEG bytes of a picture (H, W, 3) BGR."""
    content: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return content


def _label_(canvas: NDArray[np.uint8], text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Text on a filled box above a corner, kept inside the picture."""
    _, scale = _pen(canvas)
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    top = max(0, corner[1] - height - below - 2)
    left = max(0, min(corner[0], canvas.shape[1] - width - 2))
    cv2.rectangle(canvas, (left, top), (left + width + 2, top + height + below + 2), colour, cv2.FILLED)
    ink = (255, 255, 255) if sum(colour) < 380 else (0, 0, 0)
    cv2.putText(canvas, text, (left + 1, top + height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)


def _pen(canvas: NDArray[np.uint8]) -> tuple[int, float]:
    stroke = max(1, round((canvas.shape[0] + canvas.shape[1]) / 600))
    return stroke, max(0.4, stroke / 3)


def _colour(cls: int) -> tuple[int, int, int]:
    """A BGR colour per class or track; steps of the golden ratio keep neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb(cls * 0.618034 % 1.0, 0.75, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)
