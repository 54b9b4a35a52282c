"""Puts the service together: core, API, KServe's protocol, pages, and what guards them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI

from hawkeye import __version__
from hawkeye.lazy import load
from hawkeye.serve import api, signin
from hawkeye.serve.answers import add_answers
from hawkeye.serve.core import Service
from hawkeye.serve.guard import Guarded
from hawkeye.serve.security import Security, Tokens

_ABOUT = """Detection and counting on ordinary CPUs.

Every error is a problem of RFC 9457 (`application/problem+json`). Where tokens exist, send yours as
`Authorization: Bearer TOKEN`; `x-role` of an operation tells the role that it needs.
"""


def build_app(service: Service, *, token_file: Path | None = None, pages: bool = True) -> FastAPI:
    """The app of a service; it starts the service unless it was started, and stops it.

    `app.state` has `service` and `security`.

    Args:
        token_file: see `security.Tokens`.
        pages: with web pages; without them only the API.

    Raises:
        ConfigError: a token that cannot be used.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not service.started:
            await to_thread.run_sync(service.start)
        yield
        app.state.viewers.stop()
        await to_thread.run_sync(service.stop)

    app = FastAPI(title="Hawkeye", version=__version__, description=_ABOUT, lifespan=lifespan, docs_url=None,
                  redoc_url=None)  # fmt: skip
    config = service.config
    security = Security(config, Tokens(config, service.store, file=token_file, keep_admin=not config.private))
    app.state.service, app.state.security = service, security
    add_answers(app)
    signin.add_sign_in(app)
    api.add_api(app, service)
    if pages:
        load("hawkeye.serve.pages").add_pages(app, service)
    app.add_middleware(Guarded, security=security)
    return app
