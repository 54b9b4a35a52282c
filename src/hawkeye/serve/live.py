"""The service's sources: a session that works on them, what they are told to count, and pictures for who looks."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import cv2
import numpy as np

from hawkeye.errors import ConfigError, HawkeyeError, ModelError
from hawkeye.live import LiveSession, Notice, Subscribers
from hawkeye.outputs import Result, encode_jpeg
from hawkeye.runtime.engine import Job
from hawkeye.runtime.source import Source
from hawkeye.runtime.stream import Stream
from hawkeye.serve.alerts import Alerts
from hawkeye.serve.comparison import Comparator
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.known import FIRST_WAIT_S, LONGEST_WAIT_S, Known, info_of
from hawkeye.serve.metrics import Metrics
from hawkeye.serve.models import Models
from hawkeye.serve.problems import NotFound
from hawkeye.serve.recorder import Recorder
from hawkeye.serve.schemas import Comparison, ModelInfo, RuleSpec, SourceInfo, SourceSpec, SourceTest
from hawkeye.serve.sources import Guard
from hawkeye.serve.store import Store
from hawkeye.track.counting import Counter, CountEvent

log = logging.getLogger("hawkeye.serve")
_WIDTHS = (320, 640, 960, 1280, 1920)
_QUALITY = 80
_RESTART_S = 2.0


class LiveSources:
    """See the head of this file. Changes come from one thread at a time (`Service` sees to it), questions from any."""

    def __init__(
        self, config: ServeConfig, store: Store, models: Models, metrics: Metrics, alerts: Alerts
    ) -> None:  # fmt: skip
        self._config, self._store, self._models, self._metrics, self._alerts = config, store, models, metrics, alerts
        self.guard = Guard(config)
        self._sources: dict[str, Known] = {}
        self._session: LiveSession | None = None
        self._recorder = Recorder(store, told=self._told, counted=self._counted)
        self._subscribers = Subscribers()
        self._comparator: Comparator | None = None
        self._lock = threading.RLock()
        self._pictures: dict[tuple[str, int, bool], tuple[Result, bytes]] = {}
        self._drawing = threading.Lock()
        self._halt = threading.Event()
        self._doctor = threading.Thread(target=self._watch_over, name="supervisor", daemon=True)
        self.error = ""

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Add the sources of the configuration and those that were there before."""
        self._recorder.start()
        wanted = {s.name or s.address: (SourceSpec(address=s.address, name=s.name, loop=s.loop), True, s.rules)
                  for s in self._config.source}  # fmt: skip
        rules = {name: tuple(RuleSpec.model_validate(rule) for rule in body["rules"])
                 for name, body in self._store.documents("rules").items()}  # fmt: skip
        for name, body in self._store.documents("source").items():
            wanted.setdefault(name, (SourceSpec.model_validate(body["spec"]), body["trusted"], ()))
        for name, (spec, trusted, own) in wanted.items():
            try:
                source, missing = self._seek(spec, trusted=trusted)
                self._add(source, spec, trusted=trusted, rules=rules.get(source.name, own), missing=missing)
            except HawkeyeError as error:  # one bad source must not keep the service from starting
                log.error("source %s is left out: %s", name if spec.name else "without a name", error)
        self._doctor.start()

    def stop(self) -> None:
        """End all streams, with all counts handed in."""
        self._halt.set()
        with self._lock:
            self.stop_comparison()
            session, self._session = self._session, None
        if session is not None:
            session.stop()
        self._recorder.stop()

    def _watch_over(self) -> None:
        """Begin anew when a session breaks: its network hung again and again, or an error of our own.

        Also look again for sources that were not there.
        """
        while not self._halt.wait(_RESTART_S / 4):
            with self._lock:
                session = self._session
                for known in self._sources.values():
                    if known.stream is None and known.next_s <= time.monotonic():
                        self._look_for(known)
            if session is None or session.error is None or self._halt.is_set():
                self.error = ""
                continue
            self.error = f"live detection broke: {session.error}".replace("\n ", ";")
            log.error("%s", self.error)
            if self._halt.wait(_RESTART_S):
                break
            try:
                with self._lock:
                    if self._session is session:
                        self._begin_anew()
            except Exception as error:
                self.error = f"live detection cannot begin again: {error}"
                log.error("%s", self.error)

    def _begin_anew(self, model: str | None = None) -> None:
        """A new session, for which all sources are looked for again, each by itself."""
        engine, names = self._models.engine(model or self._models.served)
        engine.watch = self._watch
        old, self._session = self._session, LiveSession(engine, names, outputs=[self._recorder], tracking=True)
        if old is not None:
            old.stop()
        self._session.start()
        forward = threading.Thread(target=self._forward, args=(self._session, self._session.subscribe(1024)),
                                   name="notices", daemon=True)  # fmt: skip
        forward.start()
        for known in self._sources.values():
            known.stream, known.wait_s = None, FIRST_WAIT_S
            if known.next_s < math.inf:
                self._look_for(known)

    # -- sources ------------------------------------------------------------------------------------------------------

    def add(self, spec: SourceSpec, *, trusted: bool) -> SourceInfo:
        """See `Service.add_source`."""
        source = self.guard.find(spec, trusted=trusted)
        name = source.name
        self._add(source, spec, trusted=trusted, rules=())
        try:
            self._store.put("source", name, {"spec": {**spec.model_dump(), "name": name}, "trusted": trusted})
        except HawkeyeError:
            self.remove(name)
            raise
        log.info("source %s added: %s", name, source.label)
        return self.source(name)

    def _add(
        self, source: Source, spec: SourceSpec, *, trusted: bool, rules: tuple[RuleSpec, ...],
        missing: HawkeyeError | None = None,
    ) -> None:  # fmt: skip
        if len(self._sources) >= self._config.max_sources:
            raise ConfigError("too many sources", got=len(self._sources) + 1, expected=f"{self._config.max_sources}",
                              mend="remove one, or set max_sources")  # fmt: skip
        if source.name in self._sources:
            raise ConfigError("there is a source of this name", got=source.name, expected="a name for each",
                              mend="give it another name")  # fmt: skip
        known = Known(spec.model_copy(update={"name": source.name}), trusted, rules, source)
        with self._lock:
            if self._session is None:
                self._begin_anew()
            self._sources[source.name] = known
            self._open(known, missing or source)

    def _seek(self, spec: SourceSpec, *, trusted: bool) -> tuple[Source, HawkeyeError | None]:
        """A source, or what stands for it and why; its host is resolved when it is opened, however often that is."""
        try:
            return self.guard.find(spec, trusted=trusted, resolve=False), None
        except HawkeyeError as error:
            source = self.guard.absent(spec)
            if not spec.name and source.kind == "video":
                log.warning("source %s is not there and was given no name: it is called %s, as a folder or pattern may "
                            "not have been before; give it a name", source.label, source.name)  # fmt: skip
            return source, error

    def _look_for(self, known: Known) -> None:
        """Look for a source in a thread of its own: a network drive that hangs holds up nobody else."""
        known.next_s = math.inf
        threading.Thread(target=self._find, args=(known,), name=f"looks for {known.source.name}", daemon=True).start()

    def _find(self, known: Known) -> None:
        found: Source | Exception
        try:
            found = self.guard.find(known.spec, trusted=known.trusted, resolve=False)
        except Exception as error:
            found = error
        with self._lock:
            if self._sources.get(known.source.name) is known:
                self._open(known, found)

    def _open(self, known: Known, found: Source | Exception) -> None:
        """Give a source to the session. One that is not there, or is refused, the supervisor looks for again."""
        if self._session is None:  # stopped
            return
        try:
            if isinstance(found, Exception):
                raise found
            stream = Stream(found, realtime=True, loop=known.spec.loop, connect_s=None,
                            open_=partial(self.guard.open, trusted=known.trusted))  # fmt: skip
            self._session.add(stream, [rule.to_rule() for rule in known.rules])
            known.source, known.stream, known.error, known.next_s = found, stream, "", 0.0
        except Exception as error:  # whatever it is, the other sources go on
            words = known.told(error)
            if words != known.error:
                log.error("source %s: %s", known.source.name, words)
            known.stream, known.error, known.next_s = None, words, time.monotonic() + known.wait_s
            known.wait_s = min(2 * known.wait_s, LONGEST_WAIT_S)
            self._alerts.told(known.source.name, None)

    def remove(self, name: str) -> None:
        """See `Service.remove_source`."""
        self._known(name)
        with self._lock:
            del self._sources[name]
            if self._session is not None:
                with suppress(ConfigError):
                    self._session.remove(name)
            for key in [key for key in self._pictures if key[0] == name]:
                self._pictures.pop(key, None)
        self._recorder.forget(name)
        self._alerts.forget(name)
        self._store.drop("source", name)
        self._store.drop("rules", name)
        log.info("source %s removed", name)

    def _told(self, name: str, present: dict[tuple[str, str], int] | None) -> None:
        if name in self._sources:  # frames of one that was removed just now are on their way still
            self._alerts.told(name, present)

    def _counted(self, name: str, events: Sequence[CountEvent]) -> None:
        if name in self._sources:
            self._alerts.counted(name, events)

    def test(self, spec: SourceSpec) -> SourceTest:
        """See `Service.test_source`."""
        return self.guard.test(spec)

    def sources(self) -> list[SourceInfo]:
        """See `Service.sources`."""
        with self._lock:
            session, known = self._session, dict(self._sources)
        status = {row.name: row for row in session.status()} if session is not None else {}
        return [
            info_of(item, status.get(name), session.latest(name) if session else None) for name, item in known.items()
        ]

    def source(self, name: str) -> SourceInfo:
        """See `Service.source`."""
        for info in self.sources():
            if info.name == name:
                return info
        raise NotFound("source", name, self._sources)

    def queues(self) -> dict[str, tuple[int, int]]:
        """Frames in the network's queue, counts that wait to be written."""
        session = self._session
        frames = (session.engine.in_flight, session.engine.capacity) if session else (0, 0)
        return {"frames": frames, "counts": (self._recorder.waiting, 200_000)}

    # -- rules --------------------------------------------------------------------------------------------------------

    def rules(self, name: str) -> tuple[RuleSpec, ...]:
        """See `Service.rules`."""
        return self._known(name).rules

    def set_rule(self, name: str, rule: RuleSpec) -> tuple[RuleSpec, ...]:
        """See `Service.set_rule`."""
        before = self._known(name).rules
        if any(old.name == rule.name for old in before):
            return self._change(name, tuple(rule if old.name == rule.name else old for old in before))
        return self._change(name, (*before, rule))

    def remove_rule(self, name: str, rule: str) -> tuple[RuleSpec, ...]:
        """See `Service.remove_rule`."""
        before = self._known(name).rules
        if not any(old.name == rule for old in before):
            raise NotFound("rule", rule, [old.name for old in before])
        return self._change(name, tuple(old for old in before if old.name != rule))

    def _change(self, name: str, rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
        known = self._known(name)
        made = [rule.to_rule() for rule in rules]
        with self._lock:
            if self._session is not None and known.stream is not None:
                self._session.change_rules(name, made)
            else:  # nothing is counted now, but it must be possible later
                Counter(made, self._models.names, size=(1_000_000, 1_000_000))
            known.rules = rules
        self._store.put("rules", name, {"rules": [rule.model_dump() for rule in rules]})
        return rules

    def _known(self, name: str) -> Known:
        known = self._sources.get(name)
        if known is None:
            raise NotFound("source", name, self._sources)
        return known

    # -- models -------------------------------------------------------------------------------------------------------

    def switch(self, model: str) -> ModelInfo:
        """See `Service.switch_model`."""
        entry = self._models.entry(model)
        pool = self._models.pool(model)
        for name, known in self._sources.items():
            lost = sorted({cls for rule in known.rules for cls in rule.classes or ()} - set(pool.names))
            if lost:
                raise ModelError(f"{model} does not know what is counted on {name}", got=", ".join(lost),
                                 expected=", ".join(pool.names[:20]), mend="change that rule first")  # fmt: skip
        with self._lock:
            session = self._session
            if session is not None and model != self._models.served:
                if pool.names == session.names:
                    engine = self._models.engine(model)[0]
                    for row in session.status():
                        if row.width and row.height:
                            engine.prepare((row.height, row.width))
                    session.engine.swap(engine)
                else:  # tracks and counts of other classes cannot go on
                    self._begin_anew(model)
            if self._comparator is not None:
                self.stop_comparison()
            self._models.serve(model)
        return self._models.info(entry)

    def compare(self, model: str, every: int) -> Comparison:
        """See `Service.start_comparison`."""
        if model == self._models.served:
            raise ConfigError("a model is compared with another one", got=model, expected="a model that is not served")
        detector = self._models.detector(model)
        self.stop_comparison()
        made = Comparator(self._models.served, self._models.names, model, detector, every=every,
                          conf=self._config.conf)  # fmt: skip
        self._models.candidate, self._comparator = model, made
        return made.result()

    def comparison(self) -> Comparison | None:
        """See `Service.comparison`."""
        made = self._comparator
        return made.result() if made else None

    def stop_comparison(self) -> Comparison | None:
        """See `Service.stop_comparison`."""
        made, self._comparator, self._models.candidate = self._comparator, None, None
        if made is None:
            return None
        made.stop()
        return made.result()

    def _watch(self, job: Job) -> None:
        """Each frame that the engine gives back, in the session's thread."""
        _, frame = job.tag
        self._metrics.observe({"live_network": job.timings.get("network", 0.0),
                               "live": (time.monotonic() - frame.taken_s) * 1e3})  # fmt: skip
        if (comparator := self._comparator) is not None:
            comparator.watch(job)

    # -- for who looks ------------------------------------------------------------------------------------------------

    def latest(self, name: str) -> Result | None:
        """See `Service.latest`."""
        self._known(name)
        session = self._session
        return session.latest(name) if session else None

    def jpeg(self, name: str, *, width: int, drawn: bool) -> tuple[int, bytes] | None:
        """See `Service.jpeg`."""
        result = self.latest(name)
        if result is None:
            return None
        # Few sizes, so that viewers share one encoding.
        wide = next((step for step in _WIDTHS if 0 < width <= step), 0)
        key = (name, wide, drawn)
        with self._drawing:
            kept = self._pictures.get(key)
            if kept is None or kept[0] is not result:
                image = result.annotated() if drawn else result.frame.image
                if 0 < wide < image.shape[1]:
                    size = (wide, max(1, round(image.shape[0] * wide / image.shape[1])))
                    image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
                kept = self._pictures[key] = (result, encode_jpeg(image, _QUALITY))
        return kept[0].frame.index, kept[1]

    def subscribe(self, size: int) -> queue.Queue[Notice]:
        """See `Service.subscribe`."""
        return self._subscribers.add(size)

    def unsubscribe(self, subscriber: queue.Queue[Notice]) -> None:
        """See `Service.unsubscribe`."""
        self._subscribers.remove(subscriber)

    def _forward(self, session: LiveSession, notices: queue.Queue[Notice]) -> None:
        """Hand a session's notices on: subscribers outlive sessions."""
        while not session.stopped:
            try:
                notice = notices.get(timeout=0.5)
            except queue.Empty:
                continue
            if notice.kind == "state":
                log.info("source %s: %s", notice.stream, notice.state)
            self._subscribers.tell(notice)
