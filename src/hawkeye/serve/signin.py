"""The page on which a token is entered, and the session that a browser gets for it. Plain HTML, in both languages."""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from hawkeye.serve.guard import SIGN_IN
from hawkeye.serve.schemas import TokenInfo
from hawkeye.serve.security import COOKIE, Principal, Security, TooMany, Unknown

_TEXTS = {
    "en": ("Sign in", "Token", "Sign in", "This token is not known.", "Too many attempts. Try again in a minute."),
    "zh": ("登录", "令牌", "登录", "令牌无效。", "尝试次数过多，请一分钟后再试。"),
}
_PAGE = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Hawkeye</title><meta name="color-scheme" content="light dark"><style>
body {{ font: 16px system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0 16px }}
form {{ display: grid; gap: 12px; width: min(100%, 340px) }} input, button {{ font: inherit; padding: 10px }}
[role=alert] {{ color: light-dark(#b3261e, #ff8a80) }}
</style></head><body><main><form method="post"><h1>Hawkeye</h1><label for="token">{label}</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input type="hidden" name="next" value="{next}">{alert}<button>{button}</button></form></main></body></html>
"""


def add_sign_in(app: FastAPI) -> None:
    """Add the page and the session's routes."""
    security: Security = app.state.security
    router = APIRouter()

    @router.get(SIGN_IN, include_in_schema=False)
    def page(request: Request, next: str = "/") -> Response:  # noqa: A002
        return _page(request, next, 200, None)

    @router.post(SIGN_IN, include_in_schema=False)
    def enter(request: Request, token: Annotated[str, Form(max_length=1000)] = "",
              next: Annotated[str, Form(max_length=2000)] = "/") -> Response:  # noqa: A002  # fmt: skip
        try:
            session = security.sign_in(token.strip(), request)
        except Unknown:
            return _page(request, next, 401, 3)
        except TooMany as error:
            answer = _page(request, next, 429, 4)
            answer.headers["Retry-After"] = str(round(error.retry_s))
            return answer
        answer = RedirectResponse(_inside(next), 303)
        answer.set_cookie(value=session, **security.cookie_options)  # type: ignore[arg-type]
        return answer

    @router.get("/v1/session", tags=["session"], openapi_extra={"x-role": "viewer"})
    def who(request: Request) -> TokenInfo:
        """Who asks, and what they may do."""
        principal: Principal = request.state.principal
        return TokenInfo(name=principal.name, role=principal.role, sources=principal.sources)

    @router.delete("/v1/session", tags=["session"], status_code=204, openapi_extra={"x-role": "viewer"})
    def leave(request: Request) -> Response:
        """End the session that signing in at `/sign-in` began."""
        security.sign_out(request)
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE)
        return answer

    app.include_router(router)


def _page(request: Request, following: str, status: int, wrong: int | None) -> Response:
    wanted = request.cookies.get("hawkeye_language") or request.headers.get("accept-language", "")
    lang = "zh" if wanted.lower().startswith("zh") else "en"
    texts = _TEXTS[lang]
    alert = "" if wrong is None else f'<p role="alert">{texts[wrong]}</p>'
    return HTMLResponse(_PAGE.format(lang=lang, title=texts[0], label=texts[1], button=texts[2], alert=alert,
                                     next=escape(_inside(following), quote=True)), status)  # fmt: skip


def _inside(path: str) -> str:
    """A path of this service, whatever was asked for: never another site."""
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain else "/"
