"""`predict` and `count`: sources in; boxes, tracks and counts out, as files."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hawkeye.artifact import Artifact, make_folder, write_json
from hawkeye.data import read_image, readable
from hawkeye.errors import DataError, HawkeyeError
from hawkeye.lane import StreamStatus
from hawkeye.live import LiveSession
from hawkeye.outputs import DetectionsCsv, EventsCsv, JsonLines, Output, Pictures, Result, Videos
from hawkeye.progress import progress, say
from hawkeye.runtime.choice import EngineKind, open_engine
from hawkeye.runtime.source import Source, check_camera, find_sources, open_source
from hawkeye.runtime.stream import Stream
from hawkeye.track.rules import Rule, Zone
from hawkeye.track.series import check_format

RESULTS = "predictions.jsonl"
EVENTS, COUNTS = "events.csv", "counts.json"
_FEW_FRAMES = 200  # with fewer, measuring which engine is better takes longer than the work
_SHOW_EVERY_S = 0.2
# Everything that appears, where no rule was given. Its centre, because many an object stands on the lower edge.
EVERYWHERE = Zone("picture", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), anchor="centre")


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    Attributes:
        results: the JSON-lines file; see `outputs.JsonLines`.
        pictures: annotated pictures, in the order of the lines; empty where none were asked for.
        videos: annotated videos.
        images: pictures and frames that were looked at.
        skipped: pictures that could not be read.
        detections: how many objects in all.
        streams: how each source ended.
        interrupted: somebody stopped it.
        engine: how the network ran.
    """

    results: Path
    pictures: tuple[Path, ...]
    videos: tuple[Path, ...]
    images: int
    skipped: tuple[Path, ...]
    detections: int
    streams: tuple[StreamStatus, ...]
    interrupted: bool
    engine: str


@dataclass(frozen=True)
class Counting:
    """What `count` did.

    Attributes:
        counts: totals and state of each source, JSON.
        events: one row for each thing counted, CSV.
        series: time series of each source.
        videos: annotated videos; empty where none were asked for.
        streams: how each source ended, with its totals.
        interrupted: somebody stopped it.
        engine: how the network ran.
    """

    counts: Path
    events: Path
    series: tuple[Path, ...]
    videos: tuple[Path, ...]
    streams: tuple[StreamStatus, ...]
    interrupted: bool
    engine: str


def predict(
    source: str | Path | Artifact,
    pictures: str | Path | Sequence[str | Path],
    *,
    out: Path,
    draw_pictures: bool | None = True,
    table: bool = False,
    realtime: bool = False,
    engine: EngineKind = "auto",
    resolution: str | None = None,
    **options: Any,
) -> Prediction:
    """Detect in pictures, videos, cameras and addresses.

    Args:
        source: model, as `Detector` takes it.
        pictures: one source or several; see `runtime.source.find_sources`.
        out: folder for `predictions.jsonl`, annotated pictures in `pictures/` and videos in `videos/`.
        draw_pictures: draw boxes; None leaves out live sources, whose recording would have no end.
        table: also write `detections.csv`.
        realtime: play videos at their own speed, and drop frames as a camera would.
        engine, resolution, options: see `runtime.choice.open_engine`.

    Raises:
        DataError: nothing there, more than 10 % of the pictures cannot be read, or every source failed.
        ModelError: the model cannot be used.
        StorageError: `out` cannot be written.
    """
    sources, much = _sources(pictures)
    make_folder(out)
    runner, names, words = open_engine(source, kind=engine, resolution=resolution, worth_measuring=much, **options)
    drawn, videos = Pictures(out / "pictures"), Videos(out / "videos", live=draw_pictures is True)
    counter = _Total()
    outputs: list[Output] = [JsonLines(out / RESULTS), counter]
    outputs += [DetectionsCsv(out / "detections.csv")] if table else []
    outputs += [] if draw_pictures is False else [drawn, videos]
    session = LiveSession(runner, names, outputs=outputs)
    streams = [Stream(item, realtime=realtime) for item in sources]
    _work(session, streams, "detecting", words)
    return Prediction(
        out / RESULTS, tuple(drawn.files), tuple(videos.files), counter.frames,
        tuple(path for stream in streams for path, _ in stream.skipped), counter.objects, tuple(session.status()),
        session.stopped_early, words,
    )  # fmt: skip


def count(
    source: str | Path | Artifact,
    sources: str | Path | Sequence[str | Path],
    *,
    out: Path,
    rules: Sequence[Rule] = (),
    bucket_s: float = 60.0,
    formats: Sequence[str] = ("csv",),
    draw_video: bool = False,
    fps: float = 25.0,
    realtime: bool = False,
    engine: EngineKind = "auto",
    resolution: str | None = None,
    **options: Any,
) -> Counting:
    """Count what crosses lines and enters zones in pictures in order, videos, cameras and addresses.

    Args:
        source: model, as `Detector` takes it.
        sources: one or several; see `runtime.source.find_sources`.
        out: folder for `counts.json`, `events.csv`, a time series for each source, and `videos/`.
        rules: lines and zones for every source; none counts all that appears.
        bucket_s: length of the spans of the time series in seconds.
        formats: of the time series: csv, json, parquet.
        draw_video: annotated videos of all sources, live ones too.
        fps: frames per second of pictures.
        realtime, engine, resolution, options: as `predict`.

    Raises:
        DataError: nothing there, or every source failed.
        ModelError: the model cannot be used.
        ConfigError: a rule does not fit the picture or the model, or there is no such format.
        StorageError: `out` cannot be written.
        EngineError: the network hangs again and again.

    An error on the way loses no counts: `counts.json` and the time series hold what there is, and the error.
    """
    for kind in formats:
        check_format(Path(f"x.{kind}"))
    found, much = _sources(sources)
    make_folder(out)
    # The tracker also wants what is hardly seen: it prolongs tracks and begins none. And it wants one box for each
    # object: "bottle" and "vase" in one place would become two tracks.
    options = {"conf": 0.1, "agnostic": True, **options}
    runner, names, words = open_engine(source, kind=engine, resolution=resolution, worth_measuring=much, **options)
    videos = Videos(out / "videos", live=True)
    outputs: list[Output] = [EventsCsv(out / EVENTS), *([videos] if draw_video else [])]
    session = LiveSession(runner, names, outputs=outputs, bucket_s=bucket_s)
    streams = [Stream(item, realtime=realtime, fps=fps) for item in found]
    try:
        _work(session, streams, "counting", words, rules=rules or (EVERYWHERE,))
    except Exception as error:
        if any(row.done for row in session.status()):
            with suppress(HawkeyeError):  # what ended the work is the error to be told
                _write_counts(session, out, formats, words, error)
        raise
    series = _write_counts(session, out, formats, words)
    return Counting(out / COUNTS, out / EVENTS, series, tuple(videos.files), tuple(session.status()),
                    session.stopped_early, words)  # fmt: skip


def _write_counts(
    session: LiveSession, out: Path, formats: Sequence[str], words: str, error: Exception | None = None
) -> tuple[Path, ...]:
    """Write totals and time series of a session that is over, also of one that an error ended; the series' files."""
    rows = session.status()
    content = {"interrupted": session.stopped_early or error is not None, "engine": words,
               "streams": [asdict(row) for row in rows]}  # fmt: skip
    write_json(out / COUNTS, content if error is None else {**content, "error": str(error)})
    written = []
    for row in rows:
        series = session.series(row.name)
        for kind in formats if series else ():
            written.append(out / f"series{f'-{row.name}' if len(rows) > 1 else ''}.{kind}")
            series.write(written[-1])  # type: ignore[union-attr]
    return tuple(written)


def _sources(named: str | Path | Sequence[str | Path]) -> tuple[list[Source], bool]:
    """The sources that are named, and whether there is enough in them to measure engines first.

    Where none of them can be read, that is told before the model is opened.
    """
    found = find_sources([named] if isinstance(named, str | Path) else named)
    failures, frames = [], 0
    for source in found:
        try:
            if source.kind == "pictures" and len(source.pictures) > 1:
                readable(source.pictures)
            elif source.kind == "pictures":
                read_image(source.pictures[0])
            elif source.kind == "video":
                capture = open_source(source)
                frames += capture.frames
                capture.close()
            elif isinstance(source.target, int):
                check_camera(source.target)
        except DataError as error:
            failures.append(error)
    if len(failures) == len(found):
        raise failures[0]
    frames += sum(len(source.pictures) for source in found)
    return found, frames > _FEW_FRAMES or any(source.live for source in found)


def _work(
    session: LiveSession, streams: Sequence[Stream], title: str, words: str, *, rules: Sequence[Rule] = ()
) -> None:
    """Run a session to its end with a progress bar; a signal ends it early and cleanly."""
    if any(stream.source.kind != "pictures" for stream in streams):
        say(f"engine: {words}")
    shown = [0.0, 0.0]  # when, and how many frames were done
    with stop_on_signals(session), progress(title, sum(stream.total for stream in streams) or None) as task:

        def watch() -> None:
            now = time.monotonic()
            if now - shown[0] < _SHOW_EVERY_S:
                return
            rows = session.status()
            done = sum(row.done + row.skipped + row.damaged + row.lost for row in rows)
            ends = all(row.total or row.state == "failed" for row in rows)
            task.advance(done - shown[1], _note(rows), total=sum(row.total for row in rows) if ends else None)
            shown[:] = [now, done]

        try:
            for stream in streams:
                if session.stopped:  # by a signal
                    raise KeyboardInterrupt
                session.add(stream, rules)
        except BaseException:
            session.close()
            raise
        session.run(watch=watch)
        shown[0] = 0.0
        watch()
    failures = session.failures()
    if failures and len(failures) == len(streams):
        raise failures[0]


def _note(rows: Sequence[StreamStatus]) -> str:
    parts = [f"{sum(row.fps_done for row in rows):.1f} fps", f"queue {sum(row.waiting for row in rows)}",
             f"{sum(row.drops for row in rows)} dropped"]  # fmt: skip
    parts += [f"{row.name}: {row.state}" for row in rows if row.state not in ("live", "ended", "connecting")][:3]
    return ", ".join(parts)


@contextmanager
def stop_on_signals(session: LiveSession) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a session cleanly while the block runs; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def stop(kind: int, _: Any) -> None:
        if session.stopped and kind == signal.SIGINT:
            raise KeyboardInterrupt
        session.stop()

    for kind in before:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Total(Output):
    """Adds up what was found."""

    def __init__(self) -> None:
        self.frames = self.objects = 0

    def write(self, result: Result) -> None:
        self.frames += 1
        self.objects += len(result.found)
