"""What goes on and on: live pictures as MJPEG, and events by WebSocket. Slow viewers get fewer, not late ones.

Each viewer ends when its token is taken back, when its source is removed, when it takes nothing for some seconds, and
when the service stops.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response, WebSocket
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from hawkeye.live import Notice
from hawkeye.serve.core import Service
from hawkeye.serve.problems import Busy, NotFound
from hawkeye.serve.routing import Serving, Source, needs
from hawkeye.serve.security import Principal, Security

router = APIRouter()
_BOUNDARY = "frame"
_LOOK_S = 0.01
_ASK_S = 1.0  # how often it is asked again who looks
_TAKE_S = 10.0  # a viewer that takes nothing for so long is gone
_ENCODERS = 2
_EVENTS_S = 0.05
Width = Annotated[int, Query(ge=0, le=1920, examples=[640],
                             description="Of the picture in pixels, never enlarged; 0 is the source's.")]  # fmt: skip
Drawn = Annotated[bool, Query(examples=[True], description="With boxes, tracks, lines and zones.")]
Allowed = Callable[[], bool]


class Viewers:
    """Counts who looks.

    Args:
        most: at the same time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.now = 0
        self.stopping = False
        self.encoders = CapacityLimiter(_ENCODERS)

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for one viewer.

        Raises:
            Busy: there is none.
        """
        if self.now >= self._most or self.stopping:
            raise Busy(5.0)
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1

    def stop(self) -> None:
        """Send everybody away."""
        self.stopping = True


class Mjpeg(Response):
    """Pictures one after another, for as long as somebody looks."""

    media_type = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"

    def __init__(self, service: Service, source: str, viewers: Viewers, allowed: Allowed, *, width: int, drawn: bool,
                 fps: float) -> None:  # fmt: skip
        super().__init__()
        del self.headers["content-length"]
        self._service, self._source, self._viewers, self._allowed = service, source, viewers, allowed
        self._width, self._drawn, self._pause_s = width, drawn, 1.0 / fps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._viewers.one():
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                with suppress(TimeoutError, OSError, NotFound):
                    await self._play(send, gone)
            finally:
                gone.cancel()

    async def _play(self, send: Send, gone: asyncio.Future[None]) -> None:
        shown, asked_s = None, time.monotonic()
        while not (gone.done() or self._viewers.stopping):
            begun = time.monotonic()
            if begun - asked_s >= _ASK_S:
                asked_s = begun
                if not self._allowed():
                    break
            newest = self._service.latest(self._source)
            if newest is None or newest is shown:
                await asyncio.sleep(_LOOK_S)
                continue
            shown = newest
            found = await to_thread.run_sync(self._picture, limiter=self._viewers.encoders)
            if found is not None:
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(found)}\r\n\r\n"
                async with asyncio.timeout(_TAKE_S):
                    await send({"type": "http.response.body", "body": head.encode() + found + b"\r\n",
                                "more_body": True})  # fmt: skip
            await asyncio.sleep(max(0.0, self._pause_s - (time.monotonic() - begun)))
        with suppress(OSError):
            await send({"type": "http.response.body", "body": f"--{_BOUNDARY}--\r\n".encode(), "more_body": False})

    def _picture(self) -> bytes | None:
        found = self._service.jpeg(self._source, width=self._width, drawn=self._drawn)
        return None if found is None else found[1]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get("/v1/streams/{source}/mjpeg", tags=["streams"], response_class=Response,
            **needs("viewer", 404, 503))  # fmt: skip
def mjpeg(request: Request, source: Source, service: Serving, width: Width = 0, drawn: Drawn = True,
          fps: Annotated[float, Query(ge=0.1, le=60, examples=[5], description="Pictures a second, at most.")] = 15.0,
          ) -> Response:  # fmt: skip
    """Live pictures as MJPEG: an `<img>` shows them. The newest is sent; what a slow viewer cannot take is left out."""
    viewers: Viewers = request.app.state.viewers
    with viewers.one():  # a clear answer instead of an empty stream
        pass
    return Mjpeg(service, source, viewers, _still(request, source), width=width, drawn=drawn, fps=fps)


@router.get("/v1/streams/{source}/jpeg", tags=["streams"], response_class=Response,
            **needs("viewer", 404))  # fmt: skip
def jpeg(source: Source, service: Serving, width: Width = 0, drawn: Drawn = True) -> Response:
    """The newest picture.

    204: there is none yet.
    """
    found = service.jpeg(source, width=width, drawn=drawn)
    return Response(status_code=204) if found is None else Response(found[1], media_type="image/jpeg")


def _still(connection: Request | WebSocket, source: str | None) -> Allowed:
    """Whether whoever has opened a stream may still see it."""
    security: Security = connection.app.state.security
    who = security.who(connection)

    def ask() -> bool:
        principal = who()
        return principal is not None and (source is None or principal.sees(source))

    return ask


# -- events -----------------------------------------------------------------------------------------------------------


@router.websocket("/v1/events")
async def all_events(socket: WebSocket, service: Serving) -> None:
    """What happens on every source that you may see, as JSON; `?kinds=count,state` chooses (frame, count, state)."""
    await _events(socket, service, None)


@router.websocket("/v1/streams/{source}/events")
async def events(socket: WebSocket, service: Serving, source: Annotated[str, Depends(lambda source: source)]) -> None:
    """The same of one source."""
    principal: Principal = socket.state.principal
    if not principal.sees(source) or source not in {info.name for info in service.sources()}:
        await socket.close(1008, "there is no such source")
        return
    await _events(socket, service, source)


async def _events(socket: WebSocket, service: Service, source: str | None) -> None:
    viewers: Viewers = socket.app.state.viewers
    kinds = {part for part in socket.query_params.get("kinds", "frame,count,state").split(",") if part}
    still = _still(socket, source)
    principal: Principal = socket.state.principal
    try:
        with viewers.one():
            await socket.accept()
            notices = service.subscribe()
            gone = asyncio.ensure_future(_closed(socket))
            try:
                with suppress(TimeoutError, WebSocketDisconnect, OSError, RuntimeError):
                    await _tell(socket, notices, gone, viewers, still, service,
                                lambda notice: notice.kind in kinds and source in (None, notice.stream)
                                and principal.sees(notice.stream))  # fmt: skip
                    await socket.close(1001)
            finally:
                gone.cancel()
                service.unsubscribe(notices)
    except Busy:
        await socket.close(1013, "too many viewers")


async def _tell(socket: WebSocket, notices: queue.Queue[Notice], gone: asyncio.Future[None], viewers: Viewers,
                still: Allowed, service: Service, wanted: Callable[[Notice], bool]) -> None:  # fmt: skip
    asked_s = time.monotonic()
    while not (gone.done() or viewers.stopping):
        if time.monotonic() - asked_s >= _ASK_S:
            asked_s = time.monotonic()
            if not still():
                return
        try:
            notice = notices.get_nowait()
        except queue.Empty:
            await asyncio.sleep(_EVENTS_S)
            continue
        if wanted(notice):
            async with asyncio.timeout(_TAKE_S):
                await socket.send_json(_event(notice, service.names))


async def _closed(socket: WebSocket) -> None:
    """What a viewer sends is read and thrown away, until it goes."""
    with suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


def _event(notice: Notice, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"source": notice.stream, "kind": notice.kind, "time_s": round(notice.time_s, 4)}
    # A frame of a model that was served until just now may know other classes.
    if notice.found is not None and all(cls < len(names) for cls in notice.found.class_id):
        found["detections"] = notice.found.to_records(names)
    if notice.event is not None:
        found["event"] = asdict(notice.event)
    if notice.kind == "state":
        found |= {"state": notice.state, "error": notice.error}
    return found
