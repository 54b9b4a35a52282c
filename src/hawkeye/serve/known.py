"""A source as the service knows it, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass

from hawkeye.errors import HawkeyeError
from hawkeye.lane import StreamStatus
from hawkeye.outputs import Result
from hawkeye.runtime.source import Source
from hawkeye.runtime.stream import State, Stream
from hawkeye.serve.schemas import RuleSpec, SourceInfo, SourceSpec

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0  # as a stream that reconnects
_WORDS: dict[State, str] = {
    "connecting": "connecting",
    "live": "live",
    "no data": "no data: connected, but no picture comes",
    "reconnecting": "reconnecting",
    "ended": "ended",
    "failed": "failed",
    "stopped": "stopped",
}


@dataclass
class Known:
    """A source that the service knows, whether or not a session runs.

    Attributes:
        spec: with its final name.
        stream: None while it is not there or is refused; `error` says why.
        next_s: by the steady clock, when it is looked for again; infinite while that is done.
        wait_s: until it is looked for once more, after it was not found the next time.
    """

    spec: SourceSpec
    trusted: bool
    rules: tuple[RuleSpec, ...]
    source: Source
    stream: Stream | None = None
    error: str = ""
    next_s: float = 0.0
    wait_s: float = FIRST_WAIT_S

    def told(self, error: Exception) -> str:
        """What an error says in one line, without where the file lies."""
        if not isinstance(error, HawkeyeError):
            return f"{self.source.label} cannot be opened: {type(error).__name__}"
        address, words = self.spec.address.strip(), str(error).replace("\n ", ";")
        return words.replace(address, self.source.label) if "/" in address else words


def info_of(known: Known, status: StreamStatus | None, result: Result | None) -> SourceInfo:
    """How a source does.

    Args:
        status: of its stream; None where there is none.
        result: its newest.
    """
    status = status or _absent(known)
    decode_ms = known.stream.decode_ms if known.stream else None
    now: dict[str, int] | None = None
    if result is not None and status.state == "live":
        now = {}
        for cls in result.found.class_id.tolist():
            now[result.names[cls]] = now.get(result.names[cls], 0) + 1
    words = _WORDS[status.state] + (f": {status.error}" if status.error and status.state != "live" else "")
    return SourceInfo(
        name=status.name, label=status.source, kind=status.kind, state=status.state, words=words,
        error=status.error, loop=known.spec.loop, fps_in=round(status.fps_in, 2),
        nominal_fps=round(known.stream.nominal_fps if known.stream else 0.0, 2), fps_done=round(status.fps_done, 2),
        latency_ms=None if status.latency_ms is None else round(status.latency_ms, 2), captured=status.captured,
        done=status.done, drops=status.drops, damaged=status.damaged, lost=status.lost, reconnects=status.reconnects,
        width=status.width, height=status.height, now=now, rules=known.rules, totals=status.counts or {},
        decode_ms=None if decode_ms is None else round(decode_ms, 2),
    )  # fmt: skip


def _absent(known: Known) -> StreamStatus:
    """How a source does that is not there."""
    return StreamStatus(
        name=known.source.name, source=known.source.label, kind=known.source.kind, state="reconnecting",
        error=known.error, fps_in=0.0, fps_done=0.0, total=0, captured=0, done=0, drops=0, skipped=0, damaged=0, lost=0,
        reconnects=0, waiting=0, latency_ms=None, width=None, height=None, counts=None,
    )  # fmt: skip
