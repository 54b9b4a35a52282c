"""`Service`: everything that the service can do, without HTTP. The API and the pages both call it, from any thread.

Methods answer at once unless their docstring says that they may wait; call those from a worker thread, such as with
`nicegui.run.io_bound` or `asyncio.to_thread`. Nothing here knows who asks: whoever calls checks the role first
(`security.Principal`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections
from hawkeye.live import Notice
from hawkeye.outputs import Result
from hawkeye.serve.alerts import Alerts, check
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.follow import Follower
from hawkeye.serve.live import LiveSources
from hawkeye.serve.metrics import Metrics
from hawkeye.serve.models import Models
from hawkeye.serve.runs import Runs
from hawkeye.serve.schemas import (
    AlertInfo,
    AlertSpec,
    Comparison,
    CountRow,
    Detected,
    Detecting,
    Failed,
    ModelInfo,
    RuleSpec,
    RunInfo,
    SourceInfo,
    SourceSpec,
    SourceTest,
    Statistics,
)
from hawkeye.serve.store import Store


class Service:
    """The service without HTTP.

    Args:
        config: see `config.ServeConfig`.

    Attributes:
        config: as given.
        store: what lasts: sources, rules, counts, alerts, tokens.
        metrics: histograms and counters.
        started: seconds since 1970, 0 before `start`.

    Raises:
        StorageError: the store cannot be opened.
        ModelError: no model, or one that cannot be used.

    Example:
        >>> service = Service(load_config(model="runs/first"))
        >>> service.start()
        >>> service.add_source(SourceSpec(address="door.mp4", name="door"), trusted=True)
        >>> service.set_rule("door", RuleSpec(kind="line", name="gate", points=((0.5, 0), (0.5, 1))))
        >>> service.stop()
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.started = 0.0
        self.metrics = Metrics()
        self.store = Store(config.state / "hawkeye.sqlite3", config)
        self._models = Models(config, self.store, self.metrics)
        self._alerts = Alerts(config, self.store)
        self._live = LiveSources(config, self.store, self._models, self.metrics, self._alerts)
        self._runs = Runs(config.runs)
        self._follower = Follower(config.model, config.follow_s, self.switch_model, self.store)
        self._lock = threading.RLock()  # changes of what is served, one after another
        self._ready = False

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the model, open the sources that were there before, begin to count. May wait for seconds.

        Raises:
            ModelError: the model cannot be used.
        """
        self.started = time.time()
        self.metrics.start()
        self._models.start()
        self._alerts.start()
        self._live.start()
        self._follower.start()
        self._ready = True

    def stop(self) -> None:
        """Let go of everything, with all counts written; within about three seconds."""
        self._ready = False
        self._follower.stop()
        self._live.stop()
        self._alerts.stop()
        self._models.stop()
        self.store.close()
        self.metrics.stop()

    def ready(self) -> tuple[bool, str]:
        """Whether detection works now, and why not. History that cannot be written does not count against it."""
        if not self._ready:
            return False, "starting or stopping"
        error = self._live.error
        return (False, error) if error else (True, "ready")

    # -- sources ------------------------------------------------------------------------------------------------------

    def sources(self) -> list[SourceInfo]:
        """Every source and how it does, in the order in which they were added."""
        return self._live.sources()

    def source(self, name: str) -> SourceInfo:
        """One source.

        Raises:
            NotFound: none of this name.
        """
        return self._live.source(name)

    def add_source(self, spec: SourceSpec, *, trusted: bool = False) -> SourceInfo:
        """Take a source and remember it. May wait for the resolution of its host's name.

        Args:
            trusted: named by the configuration or the command line: files anywhere are fine.

        Raises:
            ConfigError: the name is taken, too many sources, or an address that is not allowed; says how to allow it.
            DataError: nothing there.
        """
        with self._lock:
            return self._live.add(spec, trusted=trusted)

    def test_source(self, spec: SourceSpec) -> SourceTest:
        """Open a source, read one picture and close it. May wait for ten seconds; never raises for a bad source."""
        return self._live.test(spec)

    def remove_source(self, name: str) -> None:
        """Stop a source and forget it; its counts stay.

        Raises:
            NotFound: none of this name.
        """
        with self._lock:
            self._live.remove(name)

    def latest(self, name: str) -> Result | None:
        """The newest result of a source with its picture; None before the first.

        Raises:
            NotFound: none of this name.
        """
        return self._live.latest(name)

    def jpeg(self, name: str, *, width: int = 0, drawn: bool = True) -> tuple[int, bytes] | None:
        """Number and JPEG of the newest frame, encoded once however many look at it; None before the first.

        May wait some milliseconds for the encoder.

        Args:
            width: of the picture in pixels, never enlarged; 0 is the source's own.
            drawn: with boxes, tracks, lines and zones.

        Raises:
            NotFound: none of this name.
        """
        return self._live.jpeg(name, width=width, drawn=drawn)

    def subscribe(self, size: int = 256) -> queue.Queue[Notice]:
        """A queue of what happens on all sources; when it is full, the oldest is dropped. See `live.Notice`."""
        return self._live.subscribe(size)

    def unsubscribe(self, subscriber: queue.Queue[Notice]) -> None:
        """End a subscription."""
        self._live.unsubscribe(subscriber)

    # -- rules --------------------------------------------------------------------------------------------------------

    def rules(self, source: str) -> tuple[RuleSpec, ...]:
        """Lines and zones of a source.

        Raises:
            NotFound: no such source.
        """
        return self._live.rules(source)

    def set_rule(self, source: str, rule: RuleSpec) -> tuple[RuleSpec, ...]:
        """Add a line or zone, or move the one of the same name; takes effect with the next frame.

        The stream stays connected. Totals of the other rules stay; those of a rule that moved begin anew.

        Returns:
            All rules of the source.

        Raises:
            NotFound: no such source.
            ConfigError: a rule that cannot be, or that names a class that the model does not know.
        """
        with self._lock:
            return self._live.set_rule(source, rule)

    def remove_rule(self, source: str, rule: str) -> tuple[RuleSpec, ...]:
        """Remove a line or zone; its history stays.

        Raises:
            NotFound: no such source or rule.
        """
        with self._lock:
            return self._live.remove_rule(source, rule)

    # -- models -------------------------------------------------------------------------------------------------------

    def models(self) -> list[ModelInfo]:
        """What is served and what could be, the served one first. Reads folders: may wait some milliseconds."""
        return self._models.infos()

    @property
    def served(self) -> str:
        """Id of the model that is served."""
        return self._models.served

    @property
    def names(self) -> tuple[str, ...]:
        """Class names of the served model by index."""
        return self._models.names

    def names_of(self, model: str) -> tuple[str, ...]:
        """Class names of a model by index. Waits for its compilation where it is not in memory.

        Raises:
            NotFound: none of this id.
            ModelError: cannot be opened.
        """
        return self._models.pool(model).names

    def switch_model(self, model: str) -> ModelInfo:
        """Serve another model. May wait for seconds while it is compiled; the old one works on meanwhile, then drains.

        No frame of a live stream is dropped. For a model with other classes sources are opened and counted anew.

        Raises:
            NotFound: none of this id.
            ModelError: cannot be opened, or rules name classes that it does not know; the old one stays.
        """
        with self._lock:
            return self._live.switch(model)

    def rollback_model(self) -> ModelInfo:
        """Serve the model before this one again; see `switch_model`.

        Raises:
            ConfigError: there was none before.
        """
        with self._lock:
            return self._live.switch(self._models.previous())

    def start_comparison(self, model: str, *, every: int = 10) -> Comparison:
        """A/B: from now on each n-th live frame is also looked at by another model. May wait for its compilation.

        Raises:
            NotFound: none of this id.
            ModelError: cannot be opened.
            ConfigError: the served model itself.
        """
        with self._lock:
            return self._live.compare(model, every)

    def comparison(self) -> Comparison | None:
        """The A/B that runs, or None."""
        return self._live.comparison()

    def stop_comparison(self) -> Comparison | None:
        """End the A/B; what it found."""
        with self._lock:
            return self._live.stop_comparison()

    # -- pictures -----------------------------------------------------------------------------------------------------

    def detect(self, content: bytes, how: Detecting | None = None, *, patience_s: float = 0.0) -> Detected:
        """Detect in a picture file's bytes. Waits for the network.

        Args:
            content: JPEG, PNG, WebP, BMP or TIFF; held against the limits before it is decoded.
            how: thresholds, classes, and a model that need not be the served one.
            patience_s: how long to wait for a place if all are taken; the pages take some seconds.

        Raises:
            Busy: all places are taken.
            DataError: no picture, or too large.
            ConfigError: a class that the model does not know.
            NotFound: no such model.
        """
        return self._models.detect(content, how or Detecting(), patience_s=patience_s)

    def detect_batch(self, contents: Sequence[bytes], how: Detecting | None = None) -> list[Detected | Failed]:
        """Detect in several pictures, one after another in one place; see `detect`. One bad picture is one `Failed`."""
        return self._models.detect_batch(contents, how or Detecting())

    def detect_image(self, image: NDArray[np.uint8], how: Detecting | None = None, *,
                     patience_s: float = 0.0) -> tuple[Detections, dict[str, float]]:  # fmt: skip
        """Detect in a picture (H, W, 3) of uint8 BGR, such as a frame of a video; see `detect`.

        Returns:
            detections in its pixels, and milliseconds by stage.
        """
        return self._models.detect_image(image, how or Detecting(), patience_s=patience_s)

    # -- counts -------------------------------------------------------------------------------------------------------

    def counts(
        self,
        *,
        start: float,
        end: float,
        bucket_s: float = 60.0,
        source: str | None = None,
        rule: str | None = None,
        class_name: str | None = None,
        measure: str | None = None,
        utc_offset_s: int = 0,
    ) -> list[CountRow]:
        """Counts over time from the store, each measure of each rule and class in each span; gaps have no value.

        May wait for the disk. What was counted within the last second may be missing.

        Args:
            start, end: seconds since 1970 (UTC).
            bucket_s: length of the spans, whole seconds; spans begin at whole multiples of it.
            source, rule, class_name, measure: only these; None is all. The class "all" is the sum of all; the rule ""
                is the whole picture.

        Raises:
            ConfigError: an empty range, or more than 50,000 spans.
        """
        return self.store.counts(start=start, end=end, bucket_s=bucket_s, source=source, rule=rule,
                                 class_name=class_name, measure=measure, utc_offset_s=utc_offset_s)  # fmt: skip

    def seen(self, source: str, *, seconds: float = 3600.0) -> dict[str, int]:
        """How many different objects of each class a source has shown in the last hour."""
        now = time.time()
        return self.store.total(source, "", "seen", now - seconds, now + 1)

    # -- alerts -------------------------------------------------------------------------------------------------------

    def alerts(self) -> list[AlertInfo]:
        """Every alert and how it does."""
        return self._alerts.list()

    def set_alert(self, spec: AlertSpec) -> AlertInfo:
        """Add an alert, or change the one of the same name. May wait for the resolution of its host's name.

        Raises:
            NotFound: no such source.
            ConfigError: nowhere to tell, an address that is not allowed, or nothing that could ever be counted so.
        """
        with self._lock:
            check(spec, {info.name: info.rules for info in self.sources()}, self.names)
            return self._alerts.set(spec)

    def remove_alert(self, name: str) -> None:
        """Forget an alert.

        Raises:
            NotFound: none of this name.
        """
        with self._lock:
            self._alerts.remove(name)

    # -- how it does --------------------------------------------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Latencies, queues, drops, processor, memory, and why it is slow."""
        return self.metrics.statistics(
            sources=self.sources(), queues={**self._models.queues(), **self._live.queues(), **self._alerts.queues()},
            history=self.store.state, started=self.started,
        )  # fmt: skip

    def runs(self) -> list[RunInfo]:
        """Compression runs below the folder `runs`, the newest first. Reads the disk."""
        return self._runs.list()

    def report(self, run: str) -> Path:
        """The report.html of a run.

        Raises:
            NotFound: no such run, or it has none yet.
        """
        return self._runs.report(run)
