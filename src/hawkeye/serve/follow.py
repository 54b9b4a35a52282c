"""The service follows the released version of its model store: a release or a rollback is served within seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from hawkeye.errors import HawkeyeError
from hawkeye.serve.store import Store
from hawkeye.store import is_store, open_store

log = logging.getLogger("hawkeye.serve")
_STOP_S = 2.0


class Follower:
    """Looks for new entries in a store's log, and has the version that they name served.

    What somebody chooses by hand is served until the next release. A version that cannot be served leaves the old one
    in its place, and is tried again.

    Args:
        model: what the service was told to serve; anything but a store is not followed.
        every_s: seconds between two looks; 0 does not follow.
        switch: serves a version, by its id.
        kept: where the last entry that was seen is remembered.
    """

    def __init__(self, model: str | None, every_s: float, switch: Callable[[str], object], kept: Store) -> None:
        store = model is not None and ("://" in model or is_store(Path(model)))
        self._model = model if store and every_s > 0 else None
        self._every_s, self._switch, self._kept = every_s, switch, kept
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._told = ""

    def start(self) -> None:
        """Begin to look."""
        if self._model is not None:
            self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def look(self) -> str | None:
        """Look once; returns the version that is served from now on, None where nothing is new.

        Raises:
            HawkeyeError: the store cannot be read, or the version cannot be served.
        """
        assert self._model is not None
        current = open_store(self._model).current()
        seen = self._kept.documents("setting").get("release", {})
        if current is None or (seen.get("store"), seen.get("number")) == (self._model, current.number):
            return None
        self._switch(current.version)
        self._kept.put("setting", "release", {"store": self._model, "number": current.number})
        log.info("%s number %d: serving %s", current.action, current.number, current.version)
        return current.version

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
                self._told = ""
            except HawkeyeError as error:
                if str(error) != self._told:  # once, not every time
                    log.warning("the released version is not served: %s", error)
                self._told = str(error)
            self._stopped.wait(self._every_s)
