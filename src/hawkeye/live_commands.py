"""The commands that use a detector: options to arguments, then the public function, then a short answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from hawkeye.cli import EXIT_INTERRUPTED
from hawkeye.errors import ConfigError
from hawkeye.options import Out, Rect, Threads
from hawkeye.tables import table

if TYPE_CHECKING:
    from hawkeye.lane import StreamStatus
    from hawkeye.predict import Counting, Prediction

_SOURCES = ("Pictures, folders, patterns such as 'shots/*.jpg', videos, numbers of cameras, rtsp:// or http:// "
            "addresses; several at once.")  # fmt: skip
Sources = Annotated[str, Parameter(help=_SOURCES)]
ModelPath = Annotated[Path, Parameter(help="Folder of a run or an artefact, an .xml or an .onnx file.")]
Iou = Annotated[float, Parameter(help="Overlap above which the weaker of two boxes is dropped.")]
Classes = Annotated[str | None, Parameter(help="Only these classes, with commas: names or numbers.")]
Resolution = Annotated[
    str | None,
    Parameter(help="fixed:640, fixed:320 or another size, adaptive, or tiles. Left out, the model's own size."),
]
EngineName = Annotated[
    Literal["auto", "sync", "async"],
    Parameter(help="sync: one frame at a time, the least delay. async: several in flight, the most frames per second; "
              "for fixed resolutions only. auto: measure both here and keep the better."),
]  # fmt: skip
Realtime = Annotated[bool, Parameter(help="Play videos at their own speed, and drop frames as a camera would.",
                                     negative=())]  # fmt: skip


def predict(
    *sources: Sources,
    model: ModelPath,
    out: Out = Path("runs/predict"),
    conf: Annotated[float, Parameter(help="Detections must score more than this.")] = 0.25,
    iou: Iou = 0.7,
    classes: Classes = None,
    resolution: Resolution = None,
    rect: Rect = True,
    engine: EngineName = "auto",
    threads: Threads = None,
    realtime: Realtime = False,
    pictures: Annotated[
        bool | None,
        Parameter(help="Draw the boxes, into pictures or videos. Left out: not for cameras and addresses."),
    ] = None,
    csv: Annotated[bool, Parameter(help="Also write detections.csv.", negative=())] = False,
) -> int:
    """Find objects in pictures, videos and live streams: predictions.jsonl, and pictures or videos with boxes.

    Files give every frame, in order. Cameras and addresses give their newest frame; the others are dropped and counted.
    Ctrl-C ends it cleanly, with all files closed.

    For example:

        hawkeye predict street.jpg --model runs/first --out found

        hawkeye predict pictures/ --model runs/first/4-quantize/pruned --conf 0.4 --no-pictures

        hawkeye predict video.mp4 rtsp://user:password@camera/1 0 --model runs/first --classes person,car
    """
    from hawkeye import predict as module

    done = module.predict(model, sources, out=out, conf=conf, iou=iou, threads=threads or 0,
                          classes=named_classes(classes), resolution=resolution, rect=rect, engine=engine,
                          realtime=realtime, draw_pictures=pictures, table=csv)  # fmt: skip
    what = "pictures" if all(stream.kind == "pictures" for stream in done.streams) else "frames"
    _tell_streams(done.streams)
    print(f"{done.detections} objects in {done.images} {what}")
    for path in (*done.videos, done.results):
        print(path)
    return _exit_code(done)


def count(
    *sources: Sources,
    model: ModelPath,
    out: Out = Path("runs/count"),
    line: Annotated[
        tuple[str, ...],
        # A hyphen is let in so that a number below 0 is told as such.
        Parameter(
            help="x1,y1,x2,y2[:name] in pixels or fractions of the picture; may be given again.",
            negative=(),
            allow_leading_hyphen=True,
        ),
    ] = (),
    zone: Annotated[
        tuple[str, ...],
        Parameter(
            help="x1,y1,x2,y2,x3,y3,…[:name], a polygon; may be given again.", negative=(), allow_leading_hyphen=True
        ),
    ] = (),
    rules: Annotated[Path | None, Parameter(help="File with lines and zones (.toml).")] = None,
    conf: Annotated[
        float, Parameter(help="Detections must score more than this. Low, because weak ones prolong tracks.")
    ] = 0.1,
    iou: Iou = 0.7,
    classes: Classes = None,
    resolution: Resolution = None,
    rect: Rect = True,
    engine: EngineName = "auto",
    threads: Threads = None,
    realtime: Realtime = False,
    fps: Annotated[float, Parameter(help="Frames per second of a folder of pictures.")] = 25.0,
    every: Annotated[str, Parameter(help="Length of the spans of the time series, such as 1s, 1m or 1h.")] = "1m",
    series: Annotated[str, Parameter(help="Formats of the time series, with commas: csv, json, parquet.")] = "csv",
    video: Annotated[bool, Parameter(help="Also write videos with boxes, lines and counts.", negative=())] = False,
) -> int:
    """Count what crosses lines and enters zones: counts.json, events.csv, and counts over time.

    Without --line, --zone and --rules it counts whatever appears in the picture. "in" of a line is the crossing from
    the left hand to the right hand of one who walks from its first point to its second. Ctrl-C ends it cleanly, with
    all counts written.

    For example:

        hawkeye count door.mp4 --model runs/first --line 0.5,0,0.5,1:door --classes person

        hawkeye count rtsp://camera/1 --model runs/first --zone 0.1,0.5,0.9,0.5,0.9,1,0.1,1:yard --every 1m

        hawkeye count 0 --model runs/first --rules rules.toml --video --resolution adaptive
    """
    from hawkeye import predict as module
    from hawkeye.track.rules import parse_rules

    wanted = parse_rules(line, zone, rules)
    formats = [kind.lstrip(".") for kind in _list("--series", series, "csv, json or parquet")]
    if not 0 < fps <= 1000:
        raise ConfigError("--fps cannot be used", got=fps, expected="more than 0, at most 1000")
    done = module.count(model, sources, out=out, rules=wanted, bucket_s=_seconds(every), formats=formats,
                        draw_video=video, fps=fps, conf=conf, iou=iou, threads=threads or 0,
                        classes=named_classes(classes), resolution=resolution, rect=rect, engine=engine,
                        realtime=realtime)  # fmt: skip
    _tell_streams(done.streams)
    rows = [{"source": stream.name, "rule": name, **total} for stream in done.streams
            for name, total in (stream.counts or {}).items()]  # fmt: skip
    columns = [name for name in ("in", "out", "enter", "exit", "max") if any(name in row for row in rows)]
    print(table(rows, ("source", "rule", *columns)))
    if video and (still := [stream.name for stream in done.streams if stream.kind == "pictures"]):
        print(f"no video of {', '.join(still)}: it has pictures; `hawkeye predict` draws boxes into them")
    for path in (*done.videos, *done.series, done.events, done.counts):
        print(path)
    return _exit_code(done)


def named_classes(classes: str | None) -> list[str] | None:
    """Classes that --classes names; None where it was left out.

    Raises:
        ConfigError: it names none.
    """
    return None if classes is None else _list("--classes", classes, "names or numbers of classes")


def _list(option: str, text: str, expected: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ConfigError(f"{option} names nothing", got=repr(text), expected=f"{expected}, with commas",
                          mend=f"leave {option} out")  # fmt: skip
    return found


def _seconds(text: str) -> float:
    from hawkeye.track.series import SHORTEST_S

    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = text[:-1], text[-1:]
    try:
        value = float(number) * units[unit] if unit in units else float(text)
    except ValueError:
        value = 0.0
    if not SHORTEST_S <= value < float("inf"):
        raise ConfigError("--every is no span of time that can be used", got=text,
                          expected=f"such as 1s, 1m or 1h, at least {SHORTEST_S:g}s")  # fmt: skip
    return value


def _tell_streams(streams: Sequence[StreamStatus]) -> None:
    """What a person should know of sources that did not go well."""
    for stream in streams:
        facts = [f"{count} {what}" for count, what in (
            (stream.drops, "frames dropped"), (stream.skipped, "pictures could not be read"),
            (stream.damaged, "frames damaged"), (stream.lost, "frames without a result"),
            (stream.reconnects, "attempts to connect again")) if count]  # fmt: skip
        if stream.state == "stopped" and stream.total:
            seen = stream.done + stream.skipped + stream.damaged + stream.lost
            facts.insert(0, f"{seen} of {stream.total} frames were looked at")
        elif _cut(stream) and not stream.error:
            facts.append(f"it ended {_cut(stream)} frames before what it states")
        facts += [stream.error] if stream.error else []
        if facts:
            print(f"{stream.name}: {stream.state}; {', '.join(facts)}")


def _cut(stream: StreamStatus) -> int:
    """Frames that a file states to hold and that are not at its end; containers know the number within one or so."""
    missing = stream.total - stream.captured - stream.skipped - stream.damaged
    return missing if stream.state == "ended" and missing > 1 else 0


def _exit_code(done: Prediction | Counting) -> int:
    """0 done; 1 some source failed, or gave no result for more than a tenth of its frames; 130 stopped before the end.

    A live source has no end but that.
    """
    from hawkeye.data import MAX_UNREADABLE  # here, as it imports OpenCV

    if done.interrupted and not all(stream.total == 0 or stream.state == "ended" for stream in done.streams):
        return EXIT_INTERRUPTED

    def bad(stream: StreamStatus) -> bool:
        missing = stream.lost + stream.damaged + _cut(stream)
        return stream.state == "failed" or missing > MAX_UNREADABLE * max(1, stream.total, stream.done + missing)

    return int(any(bad(stream) for stream in done.streams))
