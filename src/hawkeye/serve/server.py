"""Runs the service: a socket, a log, uvicorn, and an end within seconds."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from hawkeye.errors import ConfigError, StorageError
from hawkeye.rundir import LOCK, lock
from hawkeye.serve.app import build_app
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.core import Service
from hawkeye.serve.metrics import redact
from hawkeye.serve.security import Security, Tokens
from hawkeye.serve.store import Store

_CLOSE_S = 1  # for answers that are under way; live viewers are sent away at once
_BACKLOG = 256
_MAX_CONNECTIONS = 1000  # far above what the limits of requests and viewers let through


def run(config: ServeConfig, *, token_file: Path | None = None) -> int:
    """Serve until a signal says otherwise; the exit code.

    Raises:
        ConfigError: the address is taken or not ours, it can be reached by others and nobody needs a token, or another
            service works with the same state.
        StorageError: the state cannot be written, or not be locked.
        ModelError: no model, or one that cannot be used.
    """
    with _listening(config) as listener, _alone(config.state):
        service = Service(config)
        try:
            app = build_app(service, token_file=token_file)
            security: Security = app.state.security
            if not (config.private or security.tokens):
                raise ConfigError(
                    "others can reach this address, and nobody needs a token",
                    got=config.public_url or f"host {config.host}",
                    expected="a token, or the host 127.0.0.1 and no public_url",
                    mend="hawkeye serve token add NAME --role admin, or --token-file FILE",
                )  # fmt: skip
            _log_to_stderr()
            service.start()
        except BaseException:
            service.stop()
            raise
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"Hawkeye serves {service.served} at {config.public_url or f'http://{shown}:{port}'}", flush=True)
        Server(app).run(sockets=[listener])
    return 0


class Server(uvicorn.Server):
    """uvicorn, which sends live viewers away before it waits for connections to end."""

    def __init__(self, app: FastAPI) -> None:
        config: ServeConfig = app.state.service.config
        proxied = config.public_url is not None
        super().__init__(uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=proxied,
            timeout_graceful_shutdown=_CLOSE_S, limit_concurrency=_MAX_CONNECTIONS, backlog=_BACKLOG,
            ws_max_size=1_000_000,
        ))  # fmt: skip
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn, which raises the signal again at the end; here it has done its work by then."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._app.state.viewers.stop()
        await super().shutdown(sockets)


@contextmanager
def tokens(config: ServeConfig) -> Iterator[Tokens]:
    """The tokens of a service, whether or not it runs.

    Raises:
        StorageError: the store cannot be opened.
    """
    store = Store(config.state / "hawkeye.sqlite3", config)
    try:
        yield Tokens(config, store)
    finally:
        store.close()


@contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    """A socket at the address, taken before seconds are spent on a model."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"there is no address {config.host}", got=error.strerror) from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen at {config.host}:{config.port}", got=error.strerror,
                              mend="name another --port, or end what listens there") from None  # fmt: skip
        yield listener


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Two services that count the same sources into one store would count double; a token's command may join in."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = (state / LOCK).open("w")
    except OSError as error:
        raise StorageError(f"cannot open the store in {state}", got=error.strerror,
                           mend="free some space, or name another --state") from None  # fmt: skip
    with file:
        try:
            lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(f"another service works with {state}", got=error.strerror, expected="one at a time",
                              mend="end that one, or name another --state") from None  # fmt: skip
        except OSError as error:
            raise StorageError(f"the file system of {state} cannot lock a file", got=error.strerror,
                               mend="name another --state, on this machine's own disk") from None  # fmt: skip
        yield


def _log_to_stderr() -> None:
    class Redacted(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return redact(super().format(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Redacted("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(handler)
