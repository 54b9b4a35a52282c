"""Places for requests: some are worked on, a few wait for a moment, and the others are turned away.

What counts under overload is that whoever is let in is answered soon. A queue evens out bursts; in a crowd it would
always be full, and all would wait for all of it. Therefore a request may wait for one turn while few have to be turned
away, and for a small part of a turn when many are: they will be anyhow. That a queue which does not empty should be cut
short is CoDel's idea (Nichols and Jacobson, ACM Queue 10(5), 2012).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hawkeye.serve.problems import Busy

_SHARE = 0.1  # of the newest in what a request usually takes
_FIRST_S = 0.1  # before there was any
_BURST = 1.0  # patience, in turns, while there is no crowd
_NEWEST = 1 / 16  # share of the newest request in how many are turned away
_CROWD = 0.25  # that many: at 70 % load random arrivals lose less than a tenth, at twice the capacity every second one


class Places:
    """See the head of this file; safe to use from several threads.

    Args:
        working: requests that are worked on at the same time.
        waiting: those that may wait besides.
        patience: how long while there is a crowd, in parts of what a request usually takes.

    Attributes:
        usual_s: what a request usually takes from when it has its place.
    """

    def __init__(self, working: int, waiting: int, patience: float) -> None:
        self._most_working, self._most_waiting, self._patience = working, waiting, patience
        self._changed = threading.Condition()
        self._working = self._waiting = 0
        self._refused = 0.0  # how many of the last requests were turned away
        self.usual_s = _FIRST_S

    @property
    def inside(self) -> int:
        """Requests that are worked on or wait."""
        return self._working + self._waiting

    @property
    def most(self) -> int:
        """How many may be."""
        return self._most_working + self._most_waiting

    @contextmanager
    def take(self, patience_s: float = 0.0, *, pictures: int = 1) -> Iterator[None]:
        """A place for as long as the context lasts.

        Args:
            patience_s: how long to wait for it, by whoever wants it more than a client of the API; 0 is as long as
                anybody, and only while not too many wait already.
            pictures: of the request; more than one say nothing about what a request usually takes.

        Raises:
            Busy: there is none.
        """
        with self._changed:
            free = (self._working < self._most_working and not self._waiting) or self._wait(patience_s)
            self._refused += _NEWEST * ((not free) - self._refused)
            if not free:
                raise Busy(max(0.05, self.usual_s * self.most / self._most_working))
            self._working += 1
            if self._working < self._most_working:
                self._changed.notify()  # for one who came while this one was waking up
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                if pictures == 1:
                    self.usual_s += _SHARE * (time.perf_counter() - began - self.usual_s)
                self._changed.notify()

    def _wait(self, patience_s: float) -> bool:
        """Whether there was a place in time."""
        if not patience_s:
            if self._waiting >= self._most_waiting:
                return False
            patience_s = self.usual_s * (self._patience if self._refused > _CROWD else _BURST)
        self._waiting += 1
        try:
            # Woken in the order in which they came.
            return self._changed.wait_for(lambda: self._working < self._most_working, patience_s)
        finally:
            self._waiting -= 1
