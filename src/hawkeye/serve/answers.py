"""Errors as answers: RFC 9457 problem details, with what is wrong and how to mend it, and without what was sent."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hawkeye.errors import HawkeyeError, InputError, MissingExtraError, StorageError
from hawkeye.serve.metrics import redact
from hawkeye.serve.problems import Busy, Denied, NotFound
from hawkeye.serve.security import TooMany, Unknown

log = logging.getLogger("hawkeye.serve")
MEDIA_TYPE = "application/problem+json"
# The most special first.
_STATUS: tuple[tuple[type[HawkeyeError], int], ...] = (
    (NotFound, 404),
    (Unknown, 401),
    (TooMany, 429),
    (Denied, 403),
    (Busy, 503),
    (StorageError, 507),
    (MissingExtraError, 501),
    (InputError, 400),
    (HawkeyeError, 500),
)
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "example": "about:blank"},
        "title": {"type": "string", "example": "Not Found"},
        "status": {"type": "integer", "example": 404},
        "detail": {"type": "string", "example": "there is no such source; got: door; expected: gate"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def problem(
    status: int,
    detail: str,
    *,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] | None = None,
) -> JSONResponse:
    """A problem as an answer.

    Args:
        path: of the request; KServe's clients look for a member `error`.
        errors: one for each thing that is wrong with the request.
    """
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status,
                            "detail": detail}  # fmt: skip
    if errors is not None:
        body["errors"] = errors
    if path.startswith("/v2"):
        body["error"] = detail
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def answer_of(error: HawkeyeError, path: str = "") -> JSONResponse:
    """The answer that an error is; see `problem`."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    headers = {}
    if isinstance(error, Busy | TooMany):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_s)))
    if isinstance(error, Unknown):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(status, redact(str(error).replace("\n ", ";")), path=path, headers=headers)


def add_answers(app: FastAPI) -> None:
    """Let an app answer every error as a problem."""

    @app.exception_handler(HawkeyeError)
    async def known(request: Request, error: HawkeyeError) -> JSONResponse:
        return answer_of(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is left out: it may hold a password.
        found = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in error.errors()[:20]]
        text = "the request cannot be used: " + "; ".join(f"{one['where']}: {one['what']}" for one in found[:3])
        kind = request.headers.get("content-type", "")
        if request.method != "GET" and "json" not in kind:
            text += f"; got: Content-Type {kind[:50] or 'none'}; to mend it: send it as application/json"
        return problem(422, text, path=request.url.path, errors=found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, error.detail, path=request.url.path, headers=error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette logs the traceback; whoever asks learns nothing of our insides.
        log.error("an error of our own at %s %s: %s", request.method, request.url.path, type(error).__name__)
        return problem(500, "something went wrong in here; the log tells more", path=request.url.path)
