"""How the service does: latencies by stage, processor, memory, the log's tail, and what holds it up, in words."""

from __future__ import annotations

import bisect
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from hawkeye.environment import cpu_count
from hawkeye.serve.schemas import Histogram, SourceInfo, Statistics

STAGES = ("decode", "wait", "pre", "network", "post", "total", "live_network", "live")
BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)
_LOG_LINES, _RECENT, _SAMPLE_S = 200, 1000, 1.0
_CORE_MS = 900.0  # each source is decoded by one core; in a second this much is all of it, with some waiting
_LOGGERS = ("hawkeye", "uvicorn.error")
_SECRETS = re.compile(r"(?<=://)[^/\s@]+@|(?i:(?<=token=)|(?<=bearer )|(?<=password=)|(?<=secret=))[^\s&;,'\"]+")


def redact(text: str) -> str:
    """A text without users and passwords of addresses, and without tokens."""
    return _SECRETS.sub("…", text)


class _Tail(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(redact(self.format(record)).partition("\n")[0][:500])


class _Stage:
    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ms = 0.0
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def percentile(self, share: float) -> float | None:
        values = sorted(self.recent)
        return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else None


class Metrics:
    """Counters and histograms; safe to use from several threads.

    Attributes:
        requests: pictures that were asked about. rejected: those for which there was no place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages = {name: _Stage() for name in STAGES}
        self._tail = _Tail()
        self._process = psutil.Process()
        self._sampled, self._times = (-_SAMPLE_S, 0.0, 0.0), psutil.cpu_times()
        self.requests = self.rejected = 0

    def start(self) -> None:
        """Begin to listen to the log."""
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._tail)
        if logging.getLogger("hawkeye").level == logging.NOTSET:
            logging.getLogger("hawkeye").setLevel(logging.INFO)
        self.processor()

    def stop(self) -> None:
        """Listen no more."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._tail)

    def observe(self, timings_ms: Mapping[str, float]) -> None:
        """Add the latencies of one picture by stage; stages that are not known are left out."""
        with self._lock:
            for name, value in timings_ms.items():
                if (stage := self._stages.get(name)) is not None:
                    stage.counts[bisect.bisect_left(BOUNDS_MS, value)] += 1
                    stage.sum_ms += value
                    stage.recent.append(value)

    def count(self, *, requests: int = 0, rejected: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.requests += requests
            self.rejected += rejected

    def typical_ms(self, stage: str) -> float | None:
        """Median of the last 1000 of a stage."""
        with self._lock:
            return self._stages[stage].percentile(0.5)

    def processor(self) -> tuple[float, float]:
        """Per cent of one core that this process takes, and of all cores that everybody takes; anew once a second."""
        with self._lock:
            now = time.monotonic()
            if now - self._sampled[0] >= _SAMPLE_S:
                before, self._times = self._times, psutil.cpu_times()
                self._sampled = (now, self._process.cpu_percent(), _busy_percent(before, self._times))
            return self._sampled[1:]

    def statistics(
        self, *, sources: Sequence[SourceInfo], queues: Mapping[str, tuple[int, int]], history: str, started: float
    ) -> Statistics:
        """Everything for the page "System"; see `Statistics`."""
        own, system = self.processor()
        with self._lock:
            stages = {
                name: Histogram(bounds_ms=BOUNDS_MS, counts=tuple(stage.counts), p50_ms=stage.percentile(0.5),
                                p99_ms=stage.percentile(0.99))
                for name, stage in self._stages.items()
            }  # fmt: skip
        return Statistics(
            uptime_s=time.time() - started if started else 0.0, cpu_percent=own, cpu_system_percent=system,
            cores=cpu_count(), rss_bytes=self._process.memory_info().rss,
            memory_bytes=psutil.virtual_memory().total, stages=stages, queues=dict(queues),
            drops=sum(s.drops for s in sources), lost=sum(s.lost for s in sources), rejected=self.rejected,
            requests=self.requests, why_slow=why_slow(sources, stages, system, queues), history=history,
            log=tuple(self._tail.lines),
        )  # fmt: skip

    def exposition(self, statistics: Statistics, sources: Sequence[SourceInfo]) -> bytes:
        """The same in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self, statistics, sources))
        return generate_latest(registry)

    def sums(self) -> dict[str, tuple[list[int], float]]:
        """Counts of each histogram and the sum in milliseconds, by stage."""
        with self._lock:
            return {name: (list(stage.counts), stage.sum_ms) for name, stage in self._stages.items()}


def _busy_percent(before: Any, after: Any) -> float:
    """What all cores did between two `psutil.cpu_times()`.

    `psutil.cpu_percent()` remembers the time before by thread, and each question may come from another thread here.
    """
    spent = {name: max(0.0, value - getattr(before, name)) for name, value in after._asdict().items()}
    total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)  # `user` and `nice` hold those
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return min(100.0, 100.0 * (total - idle) / total) if total > 0 else 0.0


def why_slow(
    sources: Sequence[SourceInfo],
    stages: Mapping[str, Histogram],
    system_percent: float,
    queues: Mapping[str, tuple[int, int]],
) -> tuple[str, ...]:
    """What holds the service up, in words; empty when nothing does."""
    found = []
    for source in sources:
        where = "camera or network" if source.kind in ("camera", "url") else "the file"
        if source.state in ("reconnecting", "no data"):
            found.append(f"{source.name}: {where} gives nothing ({source.error or source.words})")
        elif source.nominal_fps and source.state == "live" and source.fps_in < 0.7 * source.nominal_fps:
            rates = f"{source.fps_in:.1f} of {source.nominal_fps:.0f} frames per second"
            if source.decode_ms is not None and source.decode_ms * source.nominal_fps > _CORE_MS:
                found.append(
                    f"{source.name}: decoding gives {rates}: it takes {source.decode_ms:.0f} ms of a core each"
                )
            elif system_percent > 85:
                found.append(f"{source.name}: {rates} are read: the processor is full")
            else:
                found.append(f"{source.name}: {where} gives {rates}")
        if source.state == "live" and source.fps_in > 2 and source.fps_done < 0.8 * source.fps_in:
            what = "the processor is full" if system_percent > 85 else "the detector is the slowest step"
            found.append(f"{source.name}: {source.fps_done:.1f} of {source.fps_in:.1f} frames per second looked at: "
                         f"{what}")  # fmt: skip
    decode, network = stages["decode"].p50_ms, stages["network"].p50_ms
    if decode is not None and network is not None and decode > network:
        found.append(f"requests: decoding takes {decode:.0f} ms, the detector {network:.0f} ms: send smaller pictures")
    waiting, room = queues.get("requests", (0, 0))
    if room and waiting >= room:
        found.append("requests: every place is taken; more are turned away")
    if system_percent > 95 and not found:
        found.append("the processor is full")
    return tuple(found)


class _Collector:
    """Makes Prometheus' families of what is known, at each scrape."""

    def __init__(self, metrics: Metrics, statistics: Statistics, sources: Sequence[SourceInfo]) -> None:
        self._metrics, self._statistics, self._sources = metrics, statistics, sources

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Any:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        stages = HistogramMetricFamily("hawkeye_stage_seconds", "Time of each stage.", labels=["stage"])
        for name, (counts, total_ms) in self._metrics.sums().items():
            running, buckets = 0, []
            for bound, count in zip((*(f"{b / 1e3:g}" for b in BOUNDS_MS), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            stages.add_metric([name], buckets, total_ms / 1e3)
        yield stages
        facts = self._statistics
        yield CounterMetricFamily("hawkeye_requests", "Pictures that were asked about.", value=facts.requests)
        yield CounterMetricFamily("hawkeye_rejected", "Pictures for which there was no place.", value=facts.rejected)
        yield GaugeMetricFamily("hawkeye_uptime_seconds", "Since the start.", value=facts.uptime_s)
        yield GaugeMetricFamily("hawkeye_resident_memory_bytes", "Of this process.", value=facts.rss_bytes)
        yield GaugeMetricFamily("hawkeye_history_on", "Whether counts are written.", value=facts.history == "on")
        queues = GaugeMetricFamily("hawkeye_queue_length", "What waits.", labels=["queue"])
        for name, (length, _) in facts.queues.items():
            queues.add_metric([name], length)
        yield queues
        for kind, family, field, help_ in (
            (GaugeMetricFamily, "up", "state", "Whether frames come."),
            (GaugeMetricFamily, "fps", "fps_done", "Frames per second that are looked at."),
            (CounterMetricFamily, "frames", "done", "Frames that were looked at."),
            (CounterMetricFamily, "dropped_frames", "drops", "Frames that a newer one replaced."),
            (CounterMetricFamily, "lost_frames", "lost", "Frames on which the network failed."),
            (CounterMetricFamily, "reconnects", "reconnects", "How often it was opened again."),
        ):
            metric = kind(f"hawkeye_source_{family}", help_, labels=["source"])
            for source in self._sources:
                value = getattr(source, field)
                metric.add_metric([source.name], float(value == "live") if field == "state" else value)
            yield metric
