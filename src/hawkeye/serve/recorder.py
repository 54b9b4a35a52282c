"""From results to the store: what was seen and counted in each second, handed in twice a second by a thread."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

from hawkeye.errors import StorageError
from hawkeye.outputs import Output, Result
from hawkeye.runtime.source import Source
from hawkeye.runtime.stream import State
from hawkeye.serve.store import LARGEST, Key, Store
from hawkeye.track.counting import CountEvent
from hawkeye.track.rules import Line, Rule

_EVERY_S = 0.5  # a killed process loses at most this much and what is under way
_HOUSE_EVERY_S = 60.0
_MAX_GAP_S = 2.0  # two frames further apart have no data between them
_MAX_WAITING = 200_000  # counts kept in memory while the disk refuses: minutes to hours, tens of megabytes
_KNOWN_TRACKS = 5000


class _Watch:
    """What is known of one source between two of its frames."""

    def __init__(self) -> None:
        self.last_s: float | None = None
        self.present: dict[tuple[str, str], int] = {}  # rule, class: objects there now
        self.rules: tuple[Rule, ...] = ()
        self.tracks: OrderedDict[int, None] = OrderedDict()


class Recorder(Output):
    """Sums up results by the second; see `LiveSession` for who calls it.

    Args:
        clock: seconds since 1970.
        told: called with the occupancy of each frame: source, {(rule, class): objects}; None without data.
        counted: called with what was counted: source, events.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        told: Callable[[str, dict[tuple[str, str], int] | None], None] | None = None,
        counted: Callable[[str, Sequence[CountEvent]], None] | None = None,
    ) -> None:
        self._store, self._clock, self._told, self._counted = store, clock, told, counted
        self._lock = threading.Lock()
        self._sums: dict[Key, float] = {}
        self._watched: dict[str, _Watch] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to hand in."""
        self._thread.start()

    def stop(self) -> None:
        """Hand in the rest."""
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join(3.0)
        with suppress(StorageError):
            self.flush()

    def forget(self, source: str) -> None:
        """The source is gone."""
        with self._lock:
            self._watched.pop(source, None)

    @property
    def waiting(self) -> int:
        """Counts that were not written yet."""
        return len(self._sums)

    # -- from the session ---------------------------------------------------------------------------------------------

    def write(self, result: Result) -> None:
        """See `Output.write`."""
        now, name = self._clock(), result.source.name
        with self._lock:
            watch = self._watched.setdefault(name, _Watch())
            self._pass(name, watch, now)
            watch.rules = result.rules
            here: dict[str, int] = {}
            for cls in result.found.class_id.tolist():
                here[result.names[cls]] = here.get(result.names[cls], 0) + 1
            watch.present = {key: n for key, n in watch.present.items() if key[0] and n > 0} | {
                ("", cls): count for cls, count in here.items()
            }
            second = int(now)
            self._largest(second, name, watch)
            if result.found.track_id is not None:
                for track, cls in zip(result.found.track_id.tolist(), result.found.class_id.tolist(), strict=True):
                    if track not in watch.tracks:
                        self._add(second, name, "", result.names[cls], "seen", 1)
                    watch.tracks[track] = None
                    watch.tracks.move_to_end(track)
                while len(watch.tracks) > _KNOWN_TRACKS:
                    watch.tracks.popitem(last=False)
        # Events of this frame come right after it, with `count`.
        if self._told is not None and not result.events:
            self._told(name, dict(watch.present))

    def count(self, source: Source, events: Sequence[CountEvent]) -> None:
        """See `Output.count`."""
        second = int(self._clock())
        with self._lock:
            watch = self._watched.setdefault(source.name, _Watch())
            for event in events:
                if event.kind == "dwell":
                    continue
                self._add(second, source.name, event.rule, event.class_name, event.kind, 1)
                if event.kind in ("enter", "exit"):
                    key, step = (event.rule, event.class_name), 1 if event.kind == "enter" else -1
                    watch.present[key] = max(0, watch.present.get(key, 0) + step)
            self._largest(second, source.name, watch)
        if self._counted is not None:
            self._counted(source.name, events)
        if self._told is not None:
            self._told(source.name, dict(watch.present))

    def state(self, source: Source, time_s: float, state: State, error: str) -> None:
        """See `Output.state`."""
        if state in ("live", "connecting"):
            return
        with self._lock:
            if (watch := self._watched.get(source.name)) is not None:
                watch.last_s = None
        if self._told is not None:
            self._told(source.name, None)

    # -- to the store -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand in what there is.

        Raises:
            StorageError: the disk refused; it is kept.
        """
        with self._lock:
            taken, self._sums = self._sums, {}
        if not taken:
            return
        try:
            self._store.add(taken)
        except StorageError:
            with self._lock:
                for key, value in taken.items():
                    self._merge(key, value)
                # The newest are the ones that somebody is waiting for.
                for key in sorted(self._sums)[: max(0, len(self._sums) - _MAX_WAITING)]:
                    del self._sums[key]
            raise

    def _run(self) -> None:
        wait_s, house_s = _EVERY_S, time.monotonic() + 5.0
        while not self._halt.wait(wait_s):
            try:
                self.flush()
                if time.monotonic() >= house_s:
                    house_s = time.monotonic() + _HOUSE_EVERY_S
                    self._store.keep_house()
                wait_s = _EVERY_S
            except StorageError:
                wait_s = min(2 * wait_s, 5.0)

    # -- with the lock held -------------------------------------------------------------------------------------------

    def _pass(self, name: str, watch: _Watch, now: float) -> None:
        """Let time pass since the frame before; if that is near, it speaks for the time until now."""
        last, watch.last_s = watch.last_s, now
        # A clock that was set back or ahead leaves a gap, never a negative or an endless time.
        if last is None or not 0 < now - last <= _MAX_GAP_S:
            return
        for second in range(int(last), int(now) + 1):
            part = min(now, second + 1) - max(last, second)
            if part <= 0:
                continue
            self._add(second, name, "", "", "picture_s", part)
            for rule in watch.rules:
                self._add(second, name, rule.name, "", "line_s" if isinstance(rule, Line) else "zone_s", part)
            for (rule_name, cls), count in watch.present.items():
                if count:
                    self._add(second, name, rule_name, cls, "present_s", count * part)
            self._largest(second, name, watch)

    def _largest(self, second: int, name: str, watch: _Watch) -> None:
        totals: dict[tuple[str, str], int] = {}
        for (rule, cls), count in watch.present.items():
            totals[rule, cls] = count
            totals[rule, ""] = totals.get((rule, ""), 0) + count
        for (rule, cls), count in totals.items():
            if count:
                self._add(second, name, rule, cls, LARGEST, count)

    def _add(self, second: int, source: str, rule: str, cls: str, measure: str, value: float) -> None:
        self._merge((second, source, rule, cls, measure), value)

    def _merge(self, key: Key, value: float) -> None:
        before = self._sums.get(key, 0.0)
        self._sums[key] = max(before, value) if key[4] == LARGEST else before + value
