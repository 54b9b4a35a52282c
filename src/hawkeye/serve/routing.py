"""What the routes share: who asks, what they may see, and threads for what waits.

Dependencies are coroutines where they do not wait: FastAPI sends every other one through a thread, request by request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Path, Request
from fastapi.requests import HTTPConnection

from hawkeye.serve.answers import MEDIA_TYPE, PROBLEM_SCHEMA
from hawkeye.serve.core import Service
from hawkeye.serve.problems import Busy, NotFound
from hawkeye.serve.schemas import Role
from hawkeye.serve.security import Principal

Inputs = ParamSpec("Inputs")
Answer = TypeVar("Answer")
_SLOW_AT_ONCE = 4  # such as tests of sources, which wait for ten seconds: never all threads that there are


async def principal_of(connection: HTTPConnection) -> Principal:
    """Who asks; the guard has put it there."""
    found: Principal = connection.state.principal
    return found


async def service_of(connection: HTTPConnection) -> Service:
    """The service."""
    found: Service = connection.app.state.service
    return found


Who = Annotated[Principal, Depends(principal_of)]
Serving = Annotated[Service, Depends(service_of)]


def needs(role: Role, *statuses: int, **more: Any) -> dict[str, Any]:
    """Options of a route: the role that it needs, and the problems that it may answer.

    Args:
        statuses: beside 400 to 429 that every route has.
        more: further members of the operation in OpenAPI.
    """

    async def check(principal: Who) -> None:
        principal.need(role)

    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
    words = {400: "What was sent cannot be used.", 401: "A token is needed.", 403: "This role may not.",
             404: "There is no such thing.", 413: "Too large.", 422: "Not what the schema says.",
             429: "Too many requests; see Retry-After.", 501: "A part is not installed.",
             503: "Over capacity, or stopping; see Retry-After.", 507: "The disk is full."}  # fmt: skip
    responses = {code: {"description": words[code], "content": content}
                 for code in (400, 401, 403, 413, 422, 429, *statuses)}  # fmt: skip
    return {"dependencies": [Depends(check)], "responses": responses, "openapi_extra": {"x-role": role, **more}}


def seen_source(source: Annotated[str, Path(max_length=200, examples=["gate-1"])], who: Who, service: Serving) -> str:
    """The name of a source that is there and that the principal may see.

    Raises:
        NotFound: otherwise; it lists only what the principal sees.
    """
    known = [info.name for info in service.sources() if who.sees(info.name)]
    if source not in known:
        raise NotFound("source", source, known)
    return source


Source = Annotated[str, Depends(seen_source)]


class Waiting:
    """Threads for what may wait for seconds, so few that they never take all."""

    def __init__(self) -> None:
        self._places = CapacityLimiter(_SLOW_AT_ONCE)

    async def run(self, work: Callable[Inputs, Answer], *args: Inputs.args, **kwargs: Inputs.kwargs) -> Answer:
        """Do something in a thread.

        Raises:
            Busy: all of them are at work.
        """
        if self._places.available_tokens < 1:
            raise Busy(2.0)
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._places)


async def waiting_of(request: Request) -> Waiting:
    """The threads of this app."""
    found: Waiting = request.app.state.waiting
    return found


Slow = Annotated[Waiting, Depends(waiting_of)]
