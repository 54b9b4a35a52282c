"""The newest frames of several sources for one viewer, over one connection; see `static/frames.js`.

Nothing is queued for a viewer: what is sent next is what is newest once the last has gone out, so a slow viewer gets
fewer frames and holds nobody up. Pictures are encoded once for all who look at the same size.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from anyio import to_thread
from fastapi import Response
from starlette.types import Receive, Scope, Send

from hawkeye.outputs import Result
from hawkeye.serve.core import Service
from hawkeye.serve.pages.picture import marks
from hawkeye.serve.problems import NotFound
from hawkeye.serve.security import Principal
from hawkeye.serve.streams import Viewers

PERIOD_S = 0.08  # at most 12 frames a second of each source
ALIVE_S = 5.0  # something is said at least this often
MAX_SOURCES = 64
_TAKE_S = 10.0  # a viewer that takes nothing for so long is gone
_SIGN_OF_LIFE = struct.pack(">I", 2) + b"{}"
_Mark = tuple[int, float]  # numbers begin anew when a source is opened again


def wanted_of(asked: Sequence[str]) -> dict[str, int]:
    """Names of sources with the width of their picture, from `NAME:WIDTH` each; others are left out."""
    wanted: dict[str, int] = {}
    for text in asked[:MAX_SOURCES]:
        name, _, width = text.rpartition(":")
        if name and width.isascii() and width.isdigit():
            wanted[name] = min(max(int(width[:5]), 1), 1920)
    return wanted


class Frames(Response):
    """Frames of the sources that a viewer may see, until it goes away, may see nothing any more, or the service stops.

    Each is the length of what follows (4 bytes, big-endian), JSON (`source`, `number`, `boxes`, `bytes`), and so many
    bytes of JPEG. `{}` is a sign of life.

    Args:
        viewers: places; `Busy` is raised when all are taken.
        who: who looks, asked again and again.
        wanted: see `wanted_of`.
    """

    media_type = "application/octet-stream"

    def __init__(
        self, service: Service, viewers: Viewers, who: Callable[[], Principal | None], wanted: Mapping[str, int]
    ) -> None:  # fmt: skip
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})  # no proxy may collect them
        del self.headers["content-length"]
        self._service, self._viewers, self._who, self._wanted = service, viewers, who, wanted
        self._sent: dict[str, _Mark] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._viewers.one():
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                with suppress(TimeoutError, OSError):
                    await self._play(send, gone)
            finally:
                gone.cancel()

    async def _play(self, send: Send, gone: asyncio.Future[None]) -> None:
        told_s = -ALIVE_S
        while not (gone.done() or self._viewers.stopping) and (principal := self._who()) is not None:
            began_s = time.monotonic()
            new = {name: width for name, width in self._wanted.items()
                   if principal.sees(name) and _newer(self._service, name, self._sent)}  # fmt: skip
            body = b""
            if new:
                body = await to_thread.run_sync(self._body, new, limiter=self._viewers.encoders)
            if not body and began_s - told_s >= ALIVE_S:
                body = _SIGN_OF_LIFE
            if body:
                told_s = began_s
                async with asyncio.timeout(_TAKE_S):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(max(0.005, PERIOD_S - (time.monotonic() - began_s)))
        if not gone.done():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _body(self, new: Mapping[str, int]) -> bytes:
        parts: list[bytes] = []
        for source, width in new.items():
            try:
                before = self._service.latest(source)
                picture = self._service.jpeg(source, width=width, drawn=False)
                after = self._service.latest(source)
            except NotFound:  # removed meanwhile
                continue
            if before is None or after is None or picture is None:
                continue
            number, jpeg = picture
            # Another frame may have come in between: the boxes must be those of the picture.
            result = after if after.frame.index == number else before
            self._sent[source] = _mark(result)
            height_px, width_px = result.frame.image.shape[:2]
            about = {"source": source, "number": number, "bytes": len(jpeg),
                     "boxes": marks(result.found, result.names, width_px, height_px)}  # fmt: skip
            text = json.dumps(about, separators=(",", ":")).encode()
            parts += [struct.pack(">I", len(text)), text, jpeg]
        return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _newer(service: Service, source: str, sent: Mapping[str, _Mark]) -> bool:
    try:
        result = service.latest(source)
    except NotFound:
        return False
    return result is not None and sent.get(source) != _mark(result)


def _mark(result: Result) -> _Mark:
    return result.frame.index, result.frame.time_s
