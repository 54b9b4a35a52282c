"""Who asks, and what they may do: tokens, roles, sessions of browsers. For API and pages alike.

Where only this machine can reach the service and there is no token, whoever uses it is an administrator. Everywhere
else every request needs one: as `Authorization: Bearer TOKEN`, or as the cookie that signing in gives. Where others can
reach it and the last token is taken back while it runs, nobody is let in.

    viewer    looks: sources, counts, alerts, runs, models; detects in its own pictures
    operator  changes sources, rules and alerts
    admin     changes models and tokens

A token may be held to some sources; it then neither sees nor changes any other, and they are "not found".

For the pages:

    security: Security = app.state.security
    who = security.who(request)          # a callable: asks again at every use, so that a token that is taken back ends
    principal = who()                    # Principal, or None: nobody (any more)
    principal.may("operator"); principal.sees("door")

`guard.Guarded` has turned away every request without a principal before a page or a route gets it, except for what is
public (`guard.PUBLIC`); a WebSocket that stays open asks `who()` again.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from starlette.requests import HTTPConnection

from hawkeye.errors import ConfigError
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.problems import Denied, NotFound
from hawkeye.serve.schemas import Role, TokenInfo
from hawkeye.serve.store import Store

COOKIE = "hawkeye_session"
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
_NAME = r"\w[\w.-]{0,79}"
_MIN_TOKEN = 32  # characters of a token that somebody chose; ours have 43
_MAX_TOKENS, _MAX_SESSIONS, _MAX_CLIENTS = 1000, 10_000, 10_000
_SESSION_S = 12 * 3600.0
_FRESH_S = 1.0  # another process, such as `hawkeye serve token remove`, is noticed within this
_FAILURES, _FAILURES_S = 5, 60.0  # wrong tokens of one client within a minute


class TooMany(Denied):
    """Too many requests, or too many wrong tokens.

    Attributes:
        retry_s: seconds after which trying again may help.
    """

    def __init__(self, what: str, retry_s: float) -> None:
        super().__init__(f"too many {what}", mend=f"try again in {retry_s:.0f} s")
        self.retry_s = retry_s


class Unknown(Denied):
    """Nobody is known by this token, or none was sent."""


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: of the token; "local" where nobody needs one.
        role: what it may do.
        sources: names of the sources that it may see; None is all.
    """

    name: str
    role: Role
    sources: tuple[str, ...] | None = None

    def may(self, role: Role) -> bool:
        """Whether it has this role or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def sees(self, source: str) -> bool:
        """Whether it may see this source."""
        return self.sources is None or source in self.sources

    def need(self, role: Role) -> None:
        """Hold it against a role.

        Raises:
            Denied: it has not this role.
        """
        if not self.may(role):
            raise Denied(f"this needs the role {role}", got=f"{self.name} is {self.role}")

    def need_all(self) -> None:
        """For what is about every source.

        Raises:
            Denied: it is held to some sources.
        """
        if self.sources is not None:
            raise Denied("this is about every source", got=f"{self.name} sees only {', '.join(self.sources)}")


LOCAL = Principal("local", "admin")


def digest(token: str) -> str:
    """What is kept of a token. Its 256 random bits cannot be guessed, so a slow hash would protect nothing more."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """Tokens of the configuration, of the token file, and of the store; safe to use from several threads.

    Args:
        config: its [[token]] tables.
        store: where the others are, hashed.
        file: holds one token of an administrator, as a container's secret does.
        keep_admin: the last administrator's token is not taken back: who else could make another one?

    Raises:
        ConfigError: the file cannot be read, or its token is too short.
    """

    def __init__(self, config: ServeConfig, store: Store, *, file: Path | None = None,
                 keep_admin: bool = False) -> None:  # fmt: skip
        self._store, self._keep_admin = store, keep_admin
        self._lock = threading.Lock()
        self._changing = threading.Lock()  # held from the look at what there is to the change
        self._fixed: dict[str, TokenInfo] = {}  # by hash
        for given in config.token:
            self._fixed[given.sha256] = TokenInfo(name=given.name, role=given.role, sources=given.sources)
        if file is not None:
            self._fixed[digest(_read(file))] = TokenInfo(name=file.name, role="admin")
        for info in self._fixed.values():
            _check(info)
        self._known: dict[str, TokenInfo] = {}
        self._read_s = -_FRESH_S

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._all())

    def find(self, token: str) -> Principal | None:
        """Who has this token."""
        return self.of_hash(digest(token))

    def of_hash(self, hashed: str) -> Principal | None:
        """Who has the token with this hash; None where it was taken back."""
        info = self._all().get(hashed)
        return None if info is None else Principal(info.name, info.role, info.sources)

    def list(self) -> list[TokenInfo]:
        """All tokens, without the tokens."""
        return list(self._all().values())

    def add(self, name: str, role: Role, sources: Sequence[str] | None = None) -> str:
        """Make a token; it is given out this once.

        Raises:
            ConfigError: no name, or one that is taken, too many, or an administrator that is held to some sources.
            StorageError: the disk refused.
        """
        info = TokenInfo(name=name, role=role, sources=None if sources is None else tuple(sources), created=time.time())
        _check(info)
        if not re.fullmatch(_NAME, name):
            raise ConfigError("not a name for a token", got=name[:100], expected="letters, digits, . - _")
        with self._changing:
            known = self._all(fresh=True).values()
            if any(other.name == name for other in known):
                raise ConfigError("there is a token of this name", got=name,
                                  mend="take another name, or remove that one")  # fmt: skip
            if len(known) >= _MAX_TOKENS:
                raise ConfigError("too many tokens", expected=f"at most {_MAX_TOKENS}")
            token = secrets.token_urlsafe(32)
            self._store.put("token", name, {**info.model_dump(), "sha256": digest(token)})
            self._all(fresh=True)
        return token

    def remove(self, name: str) -> None:
        """Take a token back; whoever uses it is out within a second.

        Raises:
            NotFound: none of this name.
            ConfigError: it is of the configuration, or the last one of an administrator where that is kept.
        """
        if any(info.name == name for info in self._fixed.values()):
            raise ConfigError("this token is set by the configuration", got=name, mend="remove it there")
        with self._changing:
            if name not in self._store.documents("token"):
                raise NotFound("token", name, [info.name for info in self._all().values()])
            admins = {info.name for info in self._all(fresh=True).values() if info.role == "admin"}
            if self._keep_admin and admins == {name}:
                raise ConfigError("this is the last token of an administrator", got=name,
                                  mend="make another one first, or `hawkeye serve token remove` on the machine itself",
                                  )  # fmt: skip
            self._store.drop("token", name)
            self._all(fresh=True)

    def _all(self, *, fresh: bool = False) -> dict[str, TokenInfo]:
        with self._lock:
            if fresh or time.monotonic() - self._read_s >= _FRESH_S:
                found = {body.pop("sha256"): TokenInfo.model_validate(body)
                         for body in self._store.documents("token").values()}  # fmt: skip
                self._known, self._read_s = {**found, **self._fixed}, time.monotonic()
            return self._known


def _check(info: TokenInfo) -> None:
    if info.role == "admin" and info.sources is not None:
        raise ConfigError("an administrator sees every source", got=f"token {info.name!r} with sources",
                          mend="leave its sources out, or make it an operator")  # fmt: skip


def _read(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {file}", got=error) from None
    if len(token) < _MIN_TOKEN or not token.isascii() or any(c.isspace() for c in token):
        raise ConfigError(f"the token in {file} can be guessed", got=f"{len(token)} characters",
                          expected=f"at least {_MIN_TOKEN} random characters without spaces",
                          mend="python -c 'import secrets; print(secrets.token_urlsafe(32))'")  # fmt: skip
    return token


class Rate:
    """So many events of each client within a span; the clients that were silent longest are forgotten first."""

    def __init__(self, limit: int, span_s: float) -> None:
        self._limit, self._span_s = limit, span_s
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and since when

    def take(self, client: str, amount: float = 1.0) -> float:
        """Take from what a client has left, which fills up again with time; seconds to wait where that was not enough.

        Args:
            amount: 0 only asks.
        """
        now = time.monotonic()
        with self._lock:
            left, since = self._left.pop(client, (float(self._limit), now))
            left = min(float(self._limit), left + (now - since) * self._limit / self._span_s)
            short = max(amount, 1.0) - left
            self._left[client] = (left - amount if short <= 0 else left, now)
            if len(self._left) > _MAX_CLIENTS:
                self._left.popitem(last=False)
        return max(0.0, short * self._span_s / self._limit)


class Security:
    """Knows who asks; see the head of this file.

    Args:
        config: as the service has it.
        tokens: where tokens are looked up.
    """

    def __init__(self, config: ServeConfig, tokens: Tokens) -> None:
        self.config, self.tokens = config, tokens
        self.requests = Rate(config.rate_per_minute, 60.0)
        self._failures = Rate(_FAILURES, _FAILURES_S)
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()  # hash -> hash of the token, end
        self._lock = threading.Lock()

    def who(self, connection: HTTPConnection) -> Callable[[], Principal | None]:
        """Who has sent a request, to be asked again as long as it lasts."""
        credential = self._credential(connection)

        def ask() -> Principal | None:
            if self._open():
                return LOCAL
            hashed = credential() if credential is not None else None
            return None if hashed is None else self.tokens.of_hash(hashed)

        return ask

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Who has sent a request; None where it says nothing of it.

        Raises:
            TooMany: this client has sent too many wrong tokens; whether this one is right is not even looked at.
            Unknown: a wrong token.
        """
        if self._open():
            return LOCAL
        token = _bearer(connection)
        return self.who(connection)() if token is None else self._try(token, _client(connection))

    def sign_in(self, token: str, connection: HTTPConnection) -> str:
        """Begin a session of a browser.

        Returns:
            the value of the cookie `COOKIE`.

        Raises:
            TooMany, Unknown: see `authenticate`.
        """
        self._try(token, _client(connection))
        session = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[digest(session)] = (digest(token), time.monotonic() + _SESSION_S)
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def sign_out(self, connection: HTTPConnection) -> None:
        """End the session of a browser."""
        with self._lock:
            self._sessions.pop(digest(_cookie(connection) or ""), None)

    @property
    def cookie_options(self) -> dict[str, object]:
        """How the cookie is set: no script reads it, no other site's request carries it."""
        secure = (self.config.public_url or "").startswith("https:")
        return {"key": COOKIE, "max_age": int(_SESSION_S), "httponly": True, "samesite": "strict", "secure": secure}

    def _open(self) -> bool:
        """Whether nobody needs a token; asked at each request, as the last one may go while the service runs."""
        return self.config.private and not self.tokens

    def _try(self, token: str, client: str) -> Principal:
        if (wait_s := self._failures.take(client, 0)) > 0:
            raise TooMany("wrong tokens", max(1.0, wait_s))
        found = self.tokens.find(token)
        if found is None:
            self._failures.take(client)
            raise Unknown("this token is not known", mend="ask whoever runs the service for one")
        return found

    def _credential(self, connection: HTTPConnection) -> Callable[[], str | None] | None:
        if (token := _bearer(connection)) is not None:
            hashed = digest(token)
            return lambda: hashed
        if (cookie := _cookie(connection)) is not None:
            session = digest(cookie)
            return lambda: self._of_session(session)
        return None

    def _of_session(self, session: str) -> str | None:
        with self._lock:
            hashed, end = self._sessions.get(session, ("", 0.0))
            if end and time.monotonic() > end:
                del self._sessions[session]
                return None
        return hashed or None


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip()[:1000] if scheme.lower() == "bearer" else None


def _cookie(connection: HTTPConnection) -> str | None:
    try:
        morsel = SimpleCookie(connection.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "unknown"
