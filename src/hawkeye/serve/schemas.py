"""What goes into the service and comes out of it, for the API and the pages alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from hawkeye.runtime.stream import State
from hawkeye.track.rules import Anchor, Line, Rule, Zone

Role = Literal["viewer", "operator", "admin"]
Name = Field(min_length=1, max_length=80, pattern=r"^\w[\w.-]*$", examples=["gate-1"])


class Schema(BaseModel):
    """Base: frozen, unknown keys are errors, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RuleSpec(Schema):
    """A line or a zone of a source.

    Attributes:
        kind: "line" (two points) or "zone" (three or more).
        name: unique among the rules of the source.
        points: x, y each: fractions of the picture where all are at most 1, else pixels.
        classes: names of the classes that count; None counts all.
        anchor: the point of a box that must cross or be inside.
        repeat: of a line: count every crossing of a track.
        dwell_s: of a zone: seconds after which a stay is reported.
    """

    kind: Literal["line", "zone"] = Field(examples=["line"])
    name: str = Field(min_length=1, max_length=100, examples=["door"])
    points: tuple[tuple[float, float], ...] = Field(min_length=2, max_length=200, examples=[[[0.5, 0.0], [0.5, 1.0]]])
    classes: tuple[str, ...] | None = Field(default=None, max_length=1000, examples=[None])
    anchor: Anchor = "bottom"
    repeat: bool = False
    dwell_s: float | None = Field(default=None, gt=0, examples=[None])

    def to_rule(self) -> Rule:
        """The rule as the counter takes it.

        Raises:
            ConfigError: a line without length, a polygon that crosses itself, and the like.
        """
        if self.kind == "line":
            from hawkeye.errors import ConfigError

            if len(self.points) != 2:
                raise ConfigError(f"line {self.name!r} has two points", got=len(self.points), expected="2")
            return Line(self.name, *self.points, classes=self.classes, anchor=self.anchor, repeat=self.repeat)
        return Zone(self.name, self.points, classes=self.classes, anchor=self.anchor, dwell_s=self.dwell_s)


class SourceSpec(Schema):
    """A source to be added.

    Attributes:
        address: a file below an allowed folder, the number of a camera, an rtsp:// or http:// address; may hold a
            password, which is never given out again.
        name: short and unique; left out, one is made from the address.
        loop: begin a file again when it ends.
    """

    address: str = Field(min_length=1, max_length=2000, examples=["rtsp://192.168.1.20/stream1"], repr=False)
    name: str | None = Field(default=None, min_length=1, max_length=80, pattern=r"^\w[\w.-]*$", examples=["gate-1"])
    loop: bool = False


class SourceInfo(Schema):
    """How a source does.

    Attributes:
        name, label: its name, and its address without user, password and query.
        kind: pictures, video, camera or url.
        state: of the stream; `words` says the same for people.
        error: what went wrong last, empty if nothing.
        fps_in, fps_done: frames per second that arrive, and that are worked on. nominal_fps: that it states; 0
            where it does not.
        latency_ms: from decoding to the result of the last frame.
        drops: frames that a newer one replaced. lost: frames on which the network failed. damaged: frames
            of a file that could not be decoded.
        width, height: of the picture in pixels.
        now: objects in the picture now, by class; None without data.
        rules: its lines and zones. totals: what each has counted since the service started, see `Counter.totals`.
        decode_ms: processor time of decoding one frame; None before the first, and for a file.
    """

    name: str
    label: str
    kind: str
    state: State
    words: str
    error: str
    loop: bool
    fps_in: float
    nominal_fps: float
    fps_done: float
    latency_ms: float | None
    captured: int
    done: int
    drops: int
    lost: int
    reconnects: int
    width: int | None
    height: int | None
    now: dict[str, int] | None
    rules: tuple[RuleSpec, ...]
    totals: dict[str, dict[str, Any]]
    decode_ms: float | None = None
    damaged: int = 0


class SourceTest(Schema):
    """Whether a source can be opened.

    Attributes:
        ok: a picture came.
        words: what came, or what is wrong and how to mend it.
        jpeg_base64: the picture, 640 pixels wide at most.
    """

    ok: bool
    words: str
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    jpeg_base64: str | None = None


class ModelInfo(Schema):
    """A model that can be served.

    Attributes:
        id: its name here.
        role: "served", "candidate" (in an A/B), "loaded" (used by requests) or "available".
        bytes: of its files.
        precision: as it was compiled, once loaded, such as "i8 x57, f32 x7"; None before.
        row: its row in the run's table, as in report.json; None where there is none.
        why_not: why it cannot be opened; None where nothing is known against it.
    """

    id: str
    role: Literal["served", "candidate", "loaded", "available"]
    name: str
    bytes: int | None
    imgsz: int | None
    classes: tuple[str, ...]
    precision: str | None
    created: str | None
    row: dict[str, Any] | None
    why_not: str | None = None


class Comparison(Schema):
    """Two models on the same live frames.

    Attributes:
        every: each n-th frame is looked at by both.
        frames: compared so far. skipped: frames for which the candidate was still busy.
        agreement: share of boxes of both that find a partner of the same class with IoU of at least 0.5; None before
            the first.
        only_served, only_candidate: boxes that the other lacks, per frame.
        served_ms, candidate_ms: median time of the network, last 200 frames.
        error: why the candidate failed on the last frame; empty if it did not.
    """

    served: str
    candidate: str
    every: int
    frames: int
    skipped: int
    agreement: float | None
    only_served: float | None
    only_candidate: float | None
    served_ms: float | None
    candidate_ms: float | None
    error: str


class Box(Schema):
    """One detection; corners in pixels of the picture."""

    class_id: int = Field(examples=[0])
    name: str = Field(examples=["person"])
    score: float = Field(examples=[0.91])
    xyxy: tuple[float, float, float, float] = Field(examples=[[48.1, 33.0, 210.6, 402.9]])
    track_id: int | None = None


class Detected(Schema):
    """What was found in one picture.

    Attributes:
        timings_ms: `decode`, `wait` (for a free detector), `pre`, `network`, `post`, and `total` of all.
    """

    model: str = Field(examples=["pruned+int8"])
    width: int = Field(examples=[1280])
    height: int = Field(examples=[720])
    detections: tuple[Box, ...]
    timings_ms: dict[str, float] = Field(
        examples=[{"decode": 4.1, "wait": 0.0, "pre": 0.4, "network": 9.8, "post": 0.2, "total": 14.5}]
    )


class Failed(Schema):
    """A picture of a batch that could not be used."""

    error: str


class Detecting(Schema):
    """Settings of one request; None is the service's own.

    Attributes:
        conf: detections must score more than this.
        iou: overlap above which the weaker of two boxes is dropped.
        classes: names or numbers of the classes to look for.
        model: id of a model.
    """

    conf: float | None = Field(default=None, ge=0, le=1, examples=[0.25])
    iou: float | None = Field(default=None, ge=0, le=1, examples=[0.7])
    classes: tuple[str, ...] | None = Field(default=None, max_length=1000, examples=[None])
    model: str | None = Field(default=None, max_length=200, examples=[None])


class CountRow(Schema):
    """One span of time of one measure; in JSON, `class_name` is `class`, and `time` is `start` in ISO 8601.

    Attributes:
        start: seconds since 1970 (UTC) at which the span begins. seconds: its length. Where counts are so old that they
            are kept by the minute or hour only, spans are whole ones of these: longer than asked for, if need be.
        rule: name of the line or zone; "" is the whole picture.
        measure: `in`, `out` (line); `enter`, `exit`, `occupancy_mean`, `occupancy_max` (zone); `seen` (new objects),
            `present_mean`, `present_max` (whole picture).
        value: None where there is no data.
        covered: share of the span from which there is data.
    """

    start: float
    seconds: float
    source: str
    rule: str
    class_name: str = Field(serialization_alias="class")
    measure: str
    value: float | None
    covered: float

    @computed_field(json_schema_extra={"format": "date-time"})
    def time(self) -> str:
        """When the span begins, in ISO 8601 (UTC)."""
        return datetime.fromtimestamp(self.start, UTC).isoformat(timespec="seconds")


class AlertSpec(Schema):
    """A rule that tells somebody.

    Attributes:
        source: None is every source.
        rule: name of a line or zone; None is the whole picture.
        class_name: None is all classes.
        measure: what is watched: crossings of a line (`in`, `out`), entries of a zone (`enter`, `exit`), objects in
            the zone or picture now (`occupancy`), or a source without data (`silent`).
        threshold: it fires at this many or more. For crossings and entries: within `duration_s`.
        duration_s: for `occupancy` and `silent`: how long it must last; for the others the length of the window.
        url: where the webhook is posted; it may hold a password, which is never given out again.
        secret: key of the signature; write-only.
        mqtt_topic: where it is published, if the service has an MQTT broker.
    """

    name: str = Field(min_length=1, max_length=80, pattern=r"^\w[\w.-]*$", examples=["crowded"])
    source: str | None = None
    rule: str | None = None
    class_name: str | None = Field(default=None, examples=["person"])
    measure: Literal["in", "out", "enter", "exit", "occupancy", "silent"] = "occupancy"
    threshold: float = Field(default=1, ge=0, le=1e9)
    duration_s: float = Field(default=10, ge=0, le=86_400)
    url: str | None = Field(default=None, max_length=2000, examples=["https://example.com/hook"], repr=False)
    secret: str | None = Field(default=None, min_length=16, max_length=200, repr=False)
    mqtt_topic: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^#+\x00]+$")


class AlertInfo(Schema):
    """An alert and how it does; `url` without password and query.

    Attributes:
        firing: names of the sources for which it is on.
        waiting: messages that were not delivered yet. error: why the last attempt failed.
    """

    name: str
    source: str | None
    rule: str | None
    class_name: str | None
    measure: str
    threshold: float
    duration_s: float
    url: str | None
    mqtt_topic: str | None
    firing: tuple[str, ...]
    fired: int
    delivered: int
    waiting: int
    error: str


class Histogram(Schema):
    """Latencies of one stage since the start.

    Attributes:
        bounds_ms: upper bounds; `counts` has one more entry, for what is above the last.
        p50_ms, p99_ms: of the last 1000; None before the first.
    """

    bounds_ms: tuple[float, ...]
    counts: tuple[int, ...]
    p50_ms: float | None
    p99_ms: float | None


class Statistics(Schema):
    """How the service does.

    Attributes:
        stages: histograms: `decode`, `wait`, `pre`, `network`, `post`, `total` of requests; of live frames
            `live_network`, and `live` from frame to result.
        queues: name -> (waiting, capacity).
        cpu_percent: of one core, of this process. cpu_system_percent: of the whole machine.
        why_slow: what holds it up, in words; empty when nothing does.
        history: "on", or why counts are not kept now.
        log: the last lines.
    """

    uptime_s: float
    cpu_percent: float
    cpu_system_percent: float
    cores: int
    rss_bytes: int
    memory_bytes: int
    stages: dict[str, Histogram]
    queues: dict[str, tuple[int, int]]
    drops: int
    lost: int
    rejected: int
    requests: int
    why_slow: tuple[str, ...]
    history: str
    log: tuple[str, ...]


class RunInfo(Schema):
    """A compression run on disk.

    Attributes:
        id: name of its folder.
        state: "running" (written to within the last minutes), "finished" (has a report) or "unfinished".
        stages: names of the finished ones.
        changed: seconds since 1970 of the newest file.
        progress: 0 to 1 of the stage at work, where it says so.
        headline: of the report.
    """

    id: str
    state: Literal["running", "finished", "unfinished"]
    stages: tuple[str, ...]
    changed: float
    progress: float | None
    note: str
    headline: tuple[str, ...]
    has_report: bool


class TokenInfo(Schema):
    """A token, without the token.

    Attributes:
        sources: names of the sources that it may see; None is all.
    """

    name: str
    role: Role
    sources: tuple[str, ...] | None = None
    created: float | None = None
