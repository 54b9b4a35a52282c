"""Alerts: a rule over what is counted, and messages that tell it: signed, in order, tried again until they arrive.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com): the headers `webhook-id`, `webhook-timestamp`
and `webhook-signature`, which is `v1,` and the Base64 of HMAC-SHA256 over `id.timestamp.body`. A message that is sent
again has the same id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hawkeye.errors import ConfigError
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.delivery import Carrier, Message, carrier_for
from hawkeye.serve.problems import NotFound
from hawkeye.serve.schemas import AlertInfo, AlertSpec, RuleSpec
from hawkeye.serve.sources import Guard
from hawkeye.serve.store import Store
from hawkeye.track.counting import CountEvent

log = logging.getLogger("hawkeye.serve")
Present = Mapping[tuple[str, str], int]
_MAX_ALERTS, _MAX_WAITING = 100, 1000
_TICK_S = 0.25
_KINDS = {"in": "line", "out": "line", "enter": "zone", "exit": "zone", "occupancy": "zone"}  # where it is measured
_WINDOWED = ("in", "out", "enter", "exit")
_STOP_S = 1.0
_BACKOFF_S = (1.0, 60.0)


@dataclass
class _Watch:
    """An alert on one source."""

    since_s: float | None = None  # the condition has held since then
    firing: bool = False
    times: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))  # of events in the window
    value: float = 0.0


def check(spec: AlertSpec, rules: Mapping[str, Sequence[RuleSpec]], names: Sequence[str]) -> None:
    """Refuse an alert that could never fire.

    Args:
        rules: lines and zones of each source.
        names: classes that the model knows.

    Raises:
        NotFound: no such source.
        ConfigError: no such line or zone, one that this cannot be measured at, or a class that is not counted.
    """
    if spec.source is not None and spec.source not in rules:
        raise NotFound("source", spec.source, rules)
    if spec.class_name is not None and spec.class_name not in names:
        raise ConfigError(f"alert {spec.name!r} names a class that the model does not know", got=spec.class_name,
                          expected=", ".join(names[:20]))  # fmt: skip
    kind = _KINDS.get(spec.measure)
    if not spec.rule or kind is None:
        return
    there = [rule for source, own in rules.items() if spec.source in (None, source) for rule in own]
    named = [rule for rule in there if (rule.kind, rule.name) == (kind, spec.rule)]
    if not named:
        known = sorted({rule.name for rule in there if rule.kind == kind})
        raise ConfigError(f"{spec.measure!r} is of a {kind}, and there is none of this name", got=spec.rule,
                          expected=", ".join(known[:20]) or None, mend=f"draw that {kind} first")  # fmt: skip
    if spec.class_name is not None and not any(spec.class_name in (rule.classes or names) for rule in named):
        raise ConfigError(f"{spec.rule!r} does not count this class", got=spec.class_name,
                          expected=", ".join(named[0].classes or ()))  # fmt: skip


class Alerts:
    """Judges and tells; safe to use from several threads.

    Args:
        clock: seconds, steady.
        make: makes what carries the messages of an alert; a test hands in its own.
    """

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        make: Callable[[AlertSpec, ServeConfig, Guard], Carrier] = carrier_for,
    ) -> None:
        self._config, self._store, self._clock, self._make = config, store, clock, make
        self._guard = Guard(config)
        self._lock = threading.RLock()
        self._specs: dict[str, AlertSpec] = {}
        self._boxes: dict[str, Outbox] = {}
        self._watches: dict[tuple[str, str], _Watch] = {}  # alert, source
        self._present: dict[str, Present | None] = {}
        self._fired: dict[str, int] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Take up the alerts that were there before."""
        for body in self._store.documents("alert").values():
            try:
                self._open(AlertSpec.model_validate(body))
            except Exception as error:  # such as a broker that is configured no more
                log.error("alert %s is left out: %s", body.get("name"), error)
        self._thread.start()

    def stop(self) -> None:
        """End within a second, however many alerts there are; messages that wait are given up."""
        self._halt.set()
        with self._lock:
            boxes = list(self._boxes.values())
        for box in boxes:
            box.halt()
        until = time.monotonic() + _STOP_S
        for box in boxes:
            box.stop(max(0.0, until - time.monotonic()))

    def list(self) -> list[AlertInfo]:
        """See `Service.alerts`."""
        with self._lock:
            return [self._info(spec) for spec in self._specs.values()]

    def set(self, spec: AlertSpec) -> AlertInfo:
        """See `Service.set_alert`."""
        if spec.url is None and spec.mqtt_topic is None:
            raise ConfigError(f"alert {spec.name!r} tells nobody", expected="a url, or an mqtt_topic")
        if spec.measure == "silent" and (spec.rule or spec.class_name):
            raise ConfigError("silence is of a source", got="a rule or a class", expected="neither")
        if spec.measure in _WINDOWED and not spec.rule:
            raise ConfigError(f"{spec.measure!r} is counted by a line or a zone", got="no rule", expected="its name")
        if spec.url is not None:
            before = self._specs.get(spec.name)
            if spec.secret is None and before is not None and before.url == spec.url:
                spec = spec.model_copy(update={"secret": before.secret})
            if spec.secret is None:
                raise ConfigError("a webhook is signed", got="no secret", expected="16 to 200 characters")
        with self._lock:
            if spec.name not in self._specs and len(self._specs) >= _MAX_ALERTS:
                raise ConfigError("too many alerts", expected=f"at most {_MAX_ALERTS}")
        self._open(spec)
        self._store.put("alert", spec.name, spec.model_dump())
        return self._info(spec)

    def remove(self, name: str) -> None:
        """See `Service.remove_alert`."""
        with self._lock:
            if name not in self._specs:
                raise NotFound("alert", name, self._specs)
            del self._specs[name]
            box = self._boxes.pop(name)
            self._watches = {key: watch for key, watch in self._watches.items() if key[0] != name}
        box.stop()
        self._store.drop("alert", name)

    def queues(self) -> dict[str, tuple[int, int]]:
        """Messages that wait."""
        with self._lock:
            waiting = sum(box.waiting for box in self._boxes.values())
            return {"alerts": (waiting, _MAX_WAITING * max(1, len(self._boxes)))}

    # -- from the session ---------------------------------------------------------------------------------------------

    def told(self, source: str, present: Present | None) -> None:
        """Who is where on a source now; None without data."""
        with self._lock:
            self._present[source] = present
            self._judge(source)

    def forget(self, source: str) -> None:
        """The source is gone: what was on for it is over, and it is silent no more."""
        with self._lock:
            self._present.pop(source, None)
            for spec in self._specs.values():
                if (watch := self._watches.pop((spec.name, source), None)) is not None:
                    self._turn(spec, source, watch, False)

    def counted(self, source: str, events: Sequence[CountEvent]) -> None:
        """What a source has counted."""
        now = self._clock()
        with self._lock:
            for spec in self._specs.values():
                fitting = sum(event.kind == spec.measure and event.rule == spec.rule
                              and spec.source in (None, source) and spec.class_name in (None, event.class_name)
                              for event in events)  # fmt: skip
                if fitting:  # judged at once: a window of no length is over in a moment
                    self._watch(spec, source).times.extend([now] * fitting)
                    self._judge_one(spec, source, self._present.get(source), now)

    def _run(self) -> None:
        while not self._halt.wait(_TICK_S):
            with self._lock:
                for source in list(self._present):
                    self._judge(source)

    # -- with the lock held -------------------------------------------------------------------------------------------

    def _open(self, spec: AlertSpec) -> None:
        box = Outbox(self._make(spec, self._config, self._guard))
        with self._lock:
            old = self._boxes.get(spec.name)
            self._specs[spec.name], self._boxes[spec.name] = spec, box
            self._watches = {key: watch for key, watch in self._watches.items() if key[0] != spec.name}
        if old is not None:
            old.stop()

    def _watch(self, spec: AlertSpec, source: str) -> _Watch:
        return self._watches.setdefault((spec.name, source), _Watch())

    def _judge(self, source: str) -> None:
        for spec in self._specs.values():
            if spec.source in (None, source):
                self._judge_one(spec, source, self._present.get(source), self._clock())

    def _judge_one(self, spec: AlertSpec, source: str, present: Present | None, now: float) -> None:
        watch = self._watch(spec, source)
        if spec.measure in _WINDOWED:
            while watch.times and watch.times[0] < now - spec.duration_s:
                watch.times.popleft()
            watch.value = len(watch.times)
            self._turn(spec, source, watch, watch.value >= max(1, spec.threshold))
            return
        if spec.measure == "silent":
            holds = present is None
            watch.value = now - watch.since_s if holds and watch.since_s is not None else 0.0
        elif present is None:  # nothing is known: neither begins nor ends anything
            return
        else:
            watch.value = sum(count for (rule, cls), count in present.items()
                              if rule == (spec.rule or "") and spec.class_name in (None, cls))  # fmt: skip
            holds = watch.value >= spec.threshold
        watch.since_s = (now if watch.since_s is None else watch.since_s) if holds else None
        self._turn(spec, source, watch, watch.since_s is not None and now - watch.since_s >= spec.duration_s)

    def _turn(self, spec: AlertSpec, source: str, watch: _Watch, on: bool) -> None:
        if on == watch.firing:
            return
        watch.firing = on
        self._fired[spec.name] = self._fired.get(spec.name, 0) + on
        log.info("alert %s on %s: %s", spec.name, source, "fires" if on else "is over")
        self._boxes[spec.name].put({
            "alert": spec.name, "state": "firing" if on else "resolved", "source": source, "rule": spec.rule,
            "class": spec.class_name, "measure": spec.measure, "value": round(watch.value, 3),
            "threshold": spec.threshold, "duration_s": spec.duration_s, "time": time.time(),
        })  # fmt: skip

    def _info(self, spec: AlertSpec) -> AlertInfo:
        box = self._boxes[spec.name]
        firing = tuple(s for (name, s), watch in self._watches.items() if name == spec.name and watch.firing)
        url = None
        if spec.url is not None:
            parts = urlsplit(spec.url)
            url = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        return AlertInfo(
            **spec.model_dump(exclude={"url", "secret"}), url=url, firing=firing, fired=self._fired.get(spec.name, 0),
            delivered=box.delivered, waiting=box.waiting, error=box.error,
        )  # fmt: skip


class Outbox:
    """Messages of one alert, sent in order by a thread; the one in front is tried again until it arrives.

    Attributes:
        delivered: how many arrived. error: why the last attempt failed; empty if it did not.
    """

    def __init__(self, carrier: Carrier, *, backoff_s: tuple[float, float] = _BACKOFF_S) -> None:
        self._carrier, self._backoff_s = carrier, backoff_s
        self._changed = threading.Condition()
        self._messages: deque[Message] = deque()
        self._halted = False
        self.delivered, self.error = 0, ""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Messages that were not delivered yet."""
        return len(self._messages)

    def put(self, body: Mapping[str, Any]) -> None:
        """Send this; when a thousand wait, the oldest is given up."""
        with self._changed:
            if len(self._messages) >= _MAX_WAITING:
                self._messages.popleft()
                log.error("an alert was never delivered: %s", self.error)
            self._messages.append(Message.of(body))
            self._changed.notify()

    def halt(self) -> None:
        """End after the message that is under way."""
        with self._changed:
            self._halted = True
            self._changed.notify()

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """End, and wait so long for a message that is under way."""
        self.halt()
        self._thread.join(timeout_s)
        # Not in the thread: with a receiver that does not answer, the process is over before it comes here.
        if self._messages:
            log.error("%d messages of an alert were never delivered: %s", self.waiting, self.error or "no answer")

    def _run(self) -> None:
        wait_s = self._backoff_s[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._halted or self._messages)
                if self._halted:
                    break
                message = self._messages[0]
            try:
                self._carrier.send(message)
            except Exception as error:  # of a network, a resolver, a broker
                self.error = f"{type(error).__name__}: {error}".replace("\n ", ";")[:300]
                with self._changed:
                    self._changed.wait_for(lambda: self._halted, wait_s)
                wait_s = min(2 * wait_s, self._backoff_s[1])
                continue
            wait_s, self.error = self._backoff_s[0], ""
            with self._changed:
                self.delivered += 1
                if self._messages and self._messages[0] is message:
                    self._messages.popleft()
        self._carrier.close()
