"""What every request passes before anything else sees it: host, origin, rate, who asks, limits of its body.

A browser on this machine reaches loopback, and so does any site that it visits. Therefore the name in `Host` must be
ours (DNS rebinding), and no request may come from another site's page (its `Origin` or `Sec-Fetch-Site`).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from hawkeye.serve.answers import answer_of, problem
from hawkeye.serve.problems import Busy, Denied
from hawkeye.serve.security import Principal, Security, TooMany, Unknown

API = ("/v1", "/v2", "/metrics", "/openapi.json")
SIGN_IN = "/sign-in"
# Reached without a token: whether the service lives, and what the sign-in page is made of.
PUBLIC = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", SIGN_IN, "/favicon.ico")
PUBLIC_FOLDERS = ("/assets/",)
PICTURES = ("/v1/detect", "/v2/models/", "/_nicegui/")  # what may send large bodies
_SMALL_BODY = 1_000_000
_LOOK_S = 0.5
_BODY_S = 60.0  # a body that takes longer than this ties up memory for nothing
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# NiceGUI's pages hold inline scripts, and Vue compiles templates in the browser; nothing comes from elsewhere.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Guarded:
    """ASGI middleware; see the head of this file. What it lets through has `scope["state"]["principal"]`.

    Args:
        app: what is guarded.
        security: knows who asks.
    """

    def __init__(self, app: ASGIApp, security: Security) -> None:
        self._app, self._security, self._config = app, security, security.config
        public = urlsplit(self._config.public_url or "")
        self._public_origin = f"{public.scheme}://{public.netloc}" if public.netloc else None
        self._hosts = {"localhost", self._config.host.lower(), *(name.lower() for name in self._config.allowed_hosts)}
        self._hosts |= {public.hostname} if public.hostname else set()
        self._strict_transport = public.scheme == "https"
        self._bodies = 0
        self._max_bodies = 16 + self._config.most_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        path = scope["path"]
        send = self._with_headers(send, path)
        try:
            self._check_host(connection)
            self._check_origin(connection)
            self._check_rate(connection)
            principal = self._who(connection, path)
        except Denied as error:
            await _refuse(scope, receive, send, answer_of(error, path))
            return
        if principal is None and not _public(path):
            await _refuse(scope, receive, send, _unknown(connection, path))
            return
        scope.setdefault("state", {})["principal"] = principal
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._with_body(scope, receive, send)

    # -- before the body ----------------------------------------------------------------------------------------------

    def _check_host(self, connection: HTTPConnection) -> None:
        name = connection.headers.get("host", "")
        try:
            host = (urlsplit(f"//{name}").hostname or "").rstrip(".")
        except ValueError:
            host = ""
        if host in self._hosts or host.endswith(".localhost") or _is_address(host):
            return
        raise Denied("this service is not known by that name", got=host[:100] or "no Host",
                     mend="use its address, or name it in allowed_hosts")  # fmt: skip

    def _check_origin(self, connection: HTTPConnection) -> None:
        method = connection.scope.get("method", "GET")
        socket = connection.scope["type"] == "websocket"
        origin = connection.headers.get("origin")
        if origin is not None and (socket or method not in _SAFE) and not self._ours(origin, connection):
            raise Denied("requests from pages of other sites are refused", got=f"Origin {origin[:100]}",
                         mend="where a proxy stands before the service, set public_url")  # fmt: skip
        site = connection.headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin") or (origin is not None and self._ours(origin, connection)):
            return
        if socket or method not in _SAFE or connection.headers.get("sec-fetch-mode") != "navigate":
            raise Denied("requests from pages of other sites are refused", got=f"Sec-Fetch-Site {site[:20]}")

    def _ours(self, origin: str, connection: HTTPConnection) -> bool:
        parts = urlsplit(origin) if origin.isascii() else urlsplit("")
        host = connection.headers.get("host", "").lower()
        return origin == self._public_origin or (parts.scheme in ("http", "https") and parts.netloc.lower() == host)

    def _check_rate(self, connection: HTTPConnection) -> None:
        client = connection.client.host if connection.client else "unknown"
        if (wait_s := self._security.requests.take(client)) > 0:
            raise TooMany("requests", wait_s)

    def _who(self, connection: HTTPConnection, path: str) -> Principal | None:
        try:
            return self._security.authenticate(connection)
        except Denied:
            if _public(path):
                return None
            raise

    # -- the body -----------------------------------------------------------------------------------------------------

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Request(scope).headers
        large = scope["path"].startswith(PICTURES)
        limit = self._config.max_body_bytes if large else min(_SMALL_BODY, self._config.max_body_bytes)
        stated = headers.get("content-length", "0")
        if not (stated.isascii() and stated.isdigit()) or int(stated[:19]) > limit:
            await _refuse(scope, receive, send, _too_large(limit, scope["path"]))
            return

        def stopping() -> bool:
            return bool(scope["app"].state.viewers.stopping)

        if not (large and scope["method"] not in _SAFE):
            await self._app(scope, _limited(receive, limit, stopping), send)
            return
        if self._bodies >= self._max_bodies:  # each may hold `limit` bytes of memory
            await _refuse(scope, receive, send, answer_of(Busy(1.0), scope["path"]))
            return
        self._bodies += 1
        try:
            await self._app(scope, _limited(receive, limit, stopping), send)
        finally:
            self._bodies -= 1

    def _with_headers(self, send: Send, path: str) -> Send:
        api = path.startswith(API)

        async def sent(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", _API_POLICY if api else _PAGE_POLICY)
                if api:
                    headers.setdefault("Cache-Control", "no-store")
                if self._strict_transport:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        return sent


def _limited(receive: Receive, limit: int, stopping: Callable[[], bool]) -> Receive:
    """`receive` that hands out no more than `limit` bytes, and does not wait for a body that never comes."""
    got, done = 0, False
    time = asyncio.get_running_loop().time
    end = time() + _BODY_S

    async def received() -> Message:
        nonlocal got, done
        while True:
            try:
                # When the body is there, what is waited for is that the other end goes away.
                async with asyncio.timeout(None if done else _LOOK_S):
                    message = await receive()
                break
            except TimeoutError:
                if stopping():
                    raise HTTPException(503, "the service is stopping", {"Connection": "close"}) from None
                if time() > end:
                    raise HTTPException(408, "the body took too long", {"Connection": "close"}) from None
        got += len(message.get("body", b""))
        done = not message.get("more_body", False)
        if got > limit:
            raise HTTPException(413, f"the body is too large; expected: at most {limit} bytes", {"Connection": "close"})
        return message

    return received


def _too_large(limit: int, path: str) -> Response:
    return problem(413, f"the body is too large; expected: at most {limit} bytes", path=path)


def _unknown(connection: HTTPConnection, path: str) -> Response:
    if path.startswith(API) or connection.scope["type"] == "websocket" or connection.scope["method"] not in _SAFE:
        return answer_of(Unknown("a token is needed", mend="send it as `Authorization: Bearer TOKEN`"), path)
    return RedirectResponse(f"{SIGN_IN}?next={quote(path)}", 303)


async def _refuse(scope: Scope, receive: Receive, send: Send, answer: Response) -> None:
    if scope["type"] == "http":
        # The body was not read: what is left of it must not be taken for the next request.
        answer.headers.setdefault("Connection", "close")
        await answer(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        await WebSocket(scope, receive, send).send_denial_response(answer)
    else:
        await WebSocket(scope, receive, send).close(1008)


def _public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
