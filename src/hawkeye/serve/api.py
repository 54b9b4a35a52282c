"""The API's routes. What they do is in `core.Service`; here it is told who may, and how it looks as HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from hawkeye.serve import api_live, api_records, kserve, streams
from hawkeye.serve.core import Service
from hawkeye.serve.routing import Serving, Waiting, Who, needs
from hawkeye.serve.schemas import Detected, Detecting, Failed, Schema, Statistics
from hawkeye.serve.uploads import body_schema, many_pictures, one_picture

router = APIRouter()
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def add_api(app: FastAPI, service: Service) -> None:
    """Add every route of the API to an app."""
    app.state.viewers = streams.Viewers(service.config.max_viewers)
    app.state.waiting = Waiting()
    # One more than there are places: who finds them all taken must hear so at once.
    app.state.detecting = CapacityLimiter(service.config.most_requests + 1)
    for routes in (router, api_live.router, api_records.router, streams.router, kserve.router):
        app.include_router(routes)
    known = list(app.routes)

    async def nowhere(request: Request) -> Response:
        """Pages answer whatever no route takes; below these prefixes it must be a problem, not a page."""
        others = [method for method in _METHODS
                  if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in known)
                  ]  # fmt: skip
        if not others:
            raise HTTPException(404, "there is no such operation; /openapi.json lists them")
        raise HTTPException(405, f"not with {request.method}", {"Allow": ", ".join(others)})

    for prefix in ("/v1", "/v2"):
        app.add_route(f"{prefix}/{{rest:path}}", nowhere, methods=list(_METHODS), include_in_schema=False)


class Batch(Schema):
    """What was found in each picture of a batch, in order."""

    results: tuple[Detected | Failed, ...]


async def detecting(
    conf: Annotated[
        float | None, Query(ge=0, le=1, examples=[0.4], description="Detections must score more than this.")
    ] = None,
    iou: Annotated[float | None, Query(ge=0, le=1, examples=[0.7], description="Overlap above which the weaker of two "
                                       "boxes is dropped.")] = None,
    classes: Annotated[str | None, Query(max_length=10_000, examples=["person,2"], description="Only these classes: "
                                         "names or numbers, with commas.")] = None,
    model: Annotated[str | None, Query(max_length=200, examples=["pruned+int8"], description="Id of a model; left out, "
                                       "the served one.")] = None,
) -> Detecting:  # fmt: skip
    """Settings of one request out of its query."""
    names = None if classes is None else tuple(part.strip() for part in classes.split(",") if part.strip())
    return Detecting(conf=conf, iou=iou, classes=names, model=model)


How = Annotated[Detecting, Depends(detecting)]


@router.post("/v1/detect", tags=["detect"], response_model=Detected,
             **needs("viewer", 404, 503, requestBody=body_schema(many=False)))  # fmt: skip
async def detect(request: Request, service: Serving, how: How) -> Response:
    """Find objects in one picture: its bytes as the body, or a form with one file.

    For example: `curl --data-binary @street.jpg 'http://127.0.0.1:8000/v1/detect?conf=0.4'`, or
    `curl -F file=@street.jpg http://127.0.0.1:8000/v1/detect`.
    """
    content = await one_picture(request)
    limiter = request.app.state.detecting
    found: Detected = await to_thread.run_sync(service.detect, content, how, limiter=limiter)
    return _json(found)


@router.post("/v1/detect/batch", tags=["detect"], response_model=Batch,
             **needs("viewer", 404, 503, requestBody=body_schema(many=True)))  # fmt: skip
async def detect_batch(request: Request, service: Serving, how: How) -> Response:
    """Find objects in several pictures, sent as files of one form; a bad one does not spoil the others."""
    contents = await many_pictures(request, service.config.max_batch)
    limiter = request.app.state.detecting
    found: Sequence[Detected | Failed] = await to_thread.run_sync(service.detect_batch, contents, how, limiter=limiter)
    return _json(Batch(results=tuple(found)))


@router.get("/v1/statistics", tags=["system"], **needs("viewer"))
def statistics(service: Serving, who: Who) -> Statistics:
    """How the service does, and what holds it up. The log is for operators who see every source."""
    found, hidden = service.statistics(), dict[str, tuple[str, ...]]()
    if who.sources is not None or not who.may("operator"):
        hidden["log"] = ()
    if who.sources is not None:
        hidden["why_slow"] = ()  # names sources
    return found.model_copy(update=hidden)


@router.get("/metrics", tags=["system"], response_class=PlainTextResponse, **needs("viewer"))
def metrics(service: Serving, who: Who) -> Response:
    """The same for Prometheus, in its text format."""
    who.need_all()
    body = service.metrics.exposition(service.statistics(), service.sources())
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz", tags=["system"], openapi_extra={"x-role": "public"})
async def health() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "alive"}


@router.get("/readyz", tags=["system"], response_model=dict[str, str], openapi_extra={"x-role": "public"},
            responses={503: {"description": "Not ready."}})  # fmt: skip
async def ready(service: Serving) -> JSONResponse:
    """Whether it detects."""
    yes, _ = service.ready()  # why not is in the log: who asks here is not known
    return JSONResponse({"status": "ready" if yes else "not ready"}, 200 if yes else 503,
                        headers={} if yes else {"Retry-After": "2"})  # fmt: skip


def _json(answer: Schema) -> Response:
    """Serialized once; FastAPI would check it against its own schema first."""
    return Response(answer.model_dump_json(), media_type="application/json")
