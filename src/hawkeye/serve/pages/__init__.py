"""The web pages: NiceGUI on the service's FastAPI app. Everything that a browser loads comes from this machine.

layout     the frame around every page, tables, errors      picture    the element that shows pictures, boxes, rules
live       the wall of sources                              frames     its pictures
drawing    lines and zones                                  shots      what was found in what was dropped
detect     pictures and videos that are dropped
counts  models  runs  system                                one page each
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.staticfiles import StaticFiles

from hawkeye.serve.core import Service
from hawkeye.serve.pages import counts, detect, live, models, runs, shots, system
from hawkeye.serve.pages.frames import MAX_SOURCES, Frames, wanted_of
from hawkeye.serve.pages.layout import ASSETS, STATIC, frame, visit
from hawkeye.serve.problems import NotFound
from hawkeye.serve.security import Security
from hawkeye.serve.streams import Viewers

_PAGES: dict[str, ModuleType] = {
    "/": live, "/detect": detect, "/counts": counts, "/models": models, "/runs": runs, "/system": system,
}  # fmt: skip
# A report is one file that loads nothing and runs nothing; this holds it to that, whatever it holds.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def add_pages(app: FastAPI, service: Service) -> None:
    """Put the pages on an app, after all its other routes: what no route takes is looked for here.

    Args:
        app: `app.state.security` knows who asks, and its middleware has turned away who may not;
            `app.state.viewers` counts who looks.
    """
    security: Security = app.state.security
    app.mount(ASSETS, StaticFiles(directory=STATIC), name="assets")
    app.include_router(_pictures(service, security))
    for path, module in _PAGES.items():
        _page(path, module, service, security)
    if nicegui_app.middleware_stack is not None:
        # NiceGUI has one app for each process. Where a second service is built, as tests do, its pages are the newest
        # service's, and its middlewares must be put together anew.
        nicegui_app.user_middleware.clear()
        nicegui_app.middleware_stack = None
    ui.run_with(app, title="Hawkeye", favicon=STATIC / "favicon.svg", tailwind=False, binding_refresh_interval=None,
                show_welcome_message=False, reconnect_timeout=10.0)  # fmt: skip


def _page(path: str, module: ModuleType, service: Service, security: Security) -> None:
    @ui.page(path)
    async def page(request: Request) -> None:
        site = visit(service, request, security.who(request))
        with frame(site, module.__name__.rpartition(".")[2]):
            if inspect.isawaitable(built := module.build(site)):
                await built


def _pictures(service: Service, security: Security) -> APIRouter:
    """What the pages' pictures are loaded from; not part of the API."""
    router = APIRouter(prefix="/pages", include_in_schema=False)

    @router.get("/frames")
    async def newest(request: Request, s: Annotated[list[str], Query(max_length=MAX_SOURCES)]) -> Response:
        viewers: Viewers = request.app.state.viewers
        with viewers.one():  # a clear answer instead of an empty stream
            pass
        return Frames(service, viewers, security.who(request), wanted_of(s))

    @router.get("/shot/{shot}/{number}")
    def still(request: Request, shot: str, number: int) -> Response:
        picture = shots.frame_of(shot, number) if security.who(request)() is not None else None
        if picture is None:
            return Response(status_code=404)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.get("/report/{run}")
    def report(request: Request, run: str) -> Response:
        if security.who(request)() is None:
            return Response(status_code=404)
        try:
            path = service.report(run)
        except NotFound:
            return Response(status_code=404)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    return router
