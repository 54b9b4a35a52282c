"""Routes of what is kept: counts, alerts, runs, tokens."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Body, FastAPI, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field

from hawkeye.serve import export
from hawkeye.serve.problems import Denied, NotFound
from hawkeye.serve.routing import Serving, Slow, Who, needs
from hawkeye.serve.schemas import AlertInfo, AlertSpec, CountRow, Role, RunInfo, Schema, TokenInfo
from hawkeye.serve.security import Principal, Security, Tokens

router = APIRouter()
# A report is one file that loads nothing and runs nothing; this holds it to that, whatever it holds.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"
_DAY_S = 86_400.0
NewAlert = Annotated[AlertSpec, Body(openapi_examples={
    "crowded": {"value": {"name": "crowded", "source": "gate-1", "rule": "yard", "class_name": "person",
                          "measure": "occupancy", "threshold": 5, "duration_s": 10,
                          "url": "https://example.com/hook", "secret": "at-least-16-characters"}},
    "silent": {"value": {"name": "silent", "measure": "silent", "duration_s": 60, "mqtt_topic": "hawkeye/alerts"}},
})]  # fmt: skip
AlertName = Annotated[str, Path(max_length=200, examples=["crowded"])]
Start = Annotated[float | None, Query(ge=0, le=1e11, examples=[1_790_000_000], description="Seconds since 1970 (UTC).")]
End = Annotated[float | None, Query(ge=0, le=1e11, examples=[1_790_086_400], description="Seconds since 1970 (UTC).")]


class NewToken(Schema):
    """A token to be made.

    Attributes:
        sources: names of the sources that it may see; left out, all.
    """

    name: str = Field(min_length=1, max_length=80, pattern=r"^\w[\w.-]*$", examples=["dashboard"])
    role: Role
    sources: tuple[str, ...] | None = Field(default=None, max_length=1000, examples=[["gate-1"]])


_TOKEN = Body(openapi_examples={
    "dashboard": {"value": {"name": "dashboard", "role": "viewer"}},
    "gatekeeper of one source": {"value": {"name": "gate", "role": "operator", "sources": ["gate-1"]}},
})  # fmt: skip


class MadeToken(Schema):
    """A token, given out this once."""

    token: str


# -- counts -----------------------------------------------------------------------------------------------------------

_FILES = {kind.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}
          for name, kind in export.FORMATS.items() if name != "json"}  # fmt: skip
_COUNTS = needs("viewer", 404, 501, 503, 507)
_COUNTS["responses"][200] = {"description": "Counts; a span without data has the value null, or none.",
                             "content": _FILES}  # fmt: skip


@router.get("/v1/counts", tags=["counts"], response_model=list[CountRow], **_COUNTS)
async def counts(
    service: Serving,
    who: Who,
    slow: Slow,
    start: Start = None,
    end: End = None,
    bucket_s: Annotated[
        float, Query(ge=1, le=366 * _DAY_S, examples=[3600], description="Length of the spans in seconds.")
    ] = 60.0,
    source: Annotated[str | None, Query(max_length=200, examples=["gate-1"])] = None,
    rule: Annotated[
        str | None, Query(max_length=200, examples=["door"], description='"" is the whole picture.')
    ] = None,
    class_name: Annotated[
        str | None, Query(max_length=200, examples=["person"], description='"all" is the sum of all classes.')
    ] = None,
    measure: Annotated[str | None, Query(max_length=40, examples=["in"])] = None,
    utc_offset_s: Annotated[
        int, Query(ge=-_DAY_S, le=_DAY_S, examples=[28_800], description="Days begin at midnight there.")
    ] = 0,
    format: Annotated[Literal["json", "csv", "parquet"], Query(examples=["csv"])] = "json",  # noqa: A002
) -> Response:
    """Counts over time; left out, of the last hour. Gaps are gaps: a span without data has no value, never 0.

    Sources that were removed have theirs still.
    """
    if source is not None and not who.sees(source):
        raise NotFound("source", source, who.sources or ())
    end = time.time() if end is None else end
    start = max(0.0, end - 3600.0) if start is None else start

    def read() -> bytes:
        if source is not None:
            known = dict.fromkeys((*(info.name for info in service.sources()), *service.store.counted()))
            if source not in known:
                raise NotFound("source", source, filter(who.sees, known))
        rows = service.counts(start=start, end=end, bucket_s=bucket_s, source=source, rule=rule,
                              class_name=class_name, measure=measure, utc_offset_s=utc_offset_s)  # fmt: skip
        return export.write([row for row in rows if who.sees(row.source)], format)

    body = await slow.run(read)
    headers = {} if format == "json" else {"Content-Disposition": f'attachment; filename="counts.{format}"'}
    return Response(body, media_type=export.FORMATS[format], headers=headers)


# -- alerts -----------------------------------------------------------------------------------------------------------


@router.get("/v1/alerts", tags=["alerts"], **needs("viewer"))
def alerts(service: Serving, who: Who) -> list[AlertInfo]:
    """Every alert on what you may see."""
    return [info for info in service.alerts() if _sees(who, info.source)]


@router.put("/v1/alerts", tags=["alerts"], **needs("operator", 404, 501, 503, 507))
async def set_alert(spec: NewAlert, service: Serving, who: Who, slow: Slow) -> AlertInfo:
    """Add an alert, or change the one of the same name. Its webhook is signed as Standard Webhooks say."""
    hidden = any(info.name == spec.name and not _sees(who, info.source) for info in service.alerts())
    if hidden or not _sees(who, spec.source):
        raise Denied("this alert is about sources that you may not see", got=spec.name)
    return await slow.run(service.set_alert, spec)


@router.get("/v1/alerts/{alert}", tags=["alerts"], **needs("viewer", 404))
def alert(alert: AlertName, service: Serving, who: Who) -> AlertInfo:
    """One alert, and how it does."""
    return _alert(alert, service.alerts(), who)


@router.delete("/v1/alerts/{alert}", tags=["alerts"], status_code=204, **needs("operator", 404, 503, 507))
async def remove_alert(alert: AlertName, service: Serving, who: Who, slow: Slow) -> Response:
    """Forget an alert."""
    await slow.run(service.remove_alert, _alert(alert, service.alerts(), who).name)
    return Response(status_code=204)


def _sees(who: Principal, source: str | None) -> bool:
    return who.sources is None if source is None else who.sees(source)


def _alert(name: str, found: list[AlertInfo], who: Principal) -> AlertInfo:
    known = {info.name: info for info in found if _sees(who, info.source)}
    if name not in known:
        raise NotFound("alert", name, known)
    return known[name]


# -- runs -------------------------------------------------------------------------------------------------------------


@router.get("/v1/runs", tags=["runs"], **needs("viewer", 503))
async def runs(service: Serving, slow: Slow) -> list[RunInfo]:
    """Compression runs, the newest first."""
    return await slow.run(service.runs)


@router.get("/v1/runs/{run}/report", tags=["runs"], response_class=FileResponse, **needs("viewer", 404))
def report(run: Annotated[str, Path(max_length=255, examples=["first"])], service: Serving) -> FileResponse:
    """The report of a run, as HTML that loads and runs nothing."""
    return FileResponse(service.report(run), media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


# -- tokens -----------------------------------------------------------------------------------------------------------


def _tokens(request: Request) -> Tokens:
    app: FastAPI = request.app
    security: Security = app.state.security
    return security.tokens


@router.get("/v1/tokens", tags=["tokens"], **needs("admin"))
def tokens(request: Request) -> list[TokenInfo]:
    """Who has a token."""
    return _tokens(request).list()


@router.post("/v1/tokens", tags=["tokens"], status_code=201, **needs("admin", 507))
def add_token(wanted: Annotated[NewToken, _TOKEN], request: Request) -> MadeToken:
    """Make a token; only its hash is kept. With the first one, every request needs one."""
    return MadeToken(token=_tokens(request).add(wanted.name, wanted.role, wanted.sources))


@router.delete("/v1/tokens/{name}", tags=["tokens"], status_code=204, **needs("admin", 404, 507))
def remove_token(name: Annotated[str, Path(max_length=200, examples=["dashboard"])], request: Request) -> Response:
    """Take a token back."""
    _tokens(request).remove(name)
    return Response(status_code=204)
