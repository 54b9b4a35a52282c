"""Who may do what, on every operation that OpenAPI lists, so that a new one cannot be forgotten."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

import serve_world as world  # noqa: E402
from hawkeye.errors import ConfigError  # noqa: E402
from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.security import ROLES, Rate, Tokens, digest  # noqa: E402
from hawkeye.serve.store import Store  # noqa: E402

PUBLIC = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
VALUES = {"source": "yours", "rule": "r", "model": "tiny", "version": "1", "alert": "a", "run": "none", "name": "none"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service with tokens, a source that the guest sees and one that it does not."""
    config = world.config_of(tmp_path_factory.mktemp("roles"), token=world.token_tables(), networks=("127.0.0.0/8",))
    with world.camera() as address, world.client_of(config) as client:
        for name in (world.GUEST_SEES, "yours"):
            made = client.post("/v1/sources", json={"address": address, "name": name}, headers=world.bearer("operator"))
            assert made.status_code == 201, made.text
        for source in (world.GUEST_SEES, "yours", None):
            spec = {"name": f"of-{source}", "source": source, "measure": "silent", "url": "http://127.0.0.1:9/hook",
                    "secret": "0123456789abcdef"}  # fmt: skip
            assert client.put("/v1/alerts", json=spec, headers=world.bearer("operator")).status_code == 200
        yield client


@pytest.fixture(scope="module")
def operations(client: TestClient) -> list[tuple[str, str, str]]:
    """(method, path, role) of every operation."""
    found = []
    for path, item in client.get("/openapi.json", headers=world.bearer("viewer")).json()["paths"].items():
        for method, operation in item.items():
            assert "x-role" in operation, f"{method} {path} does not say which role it needs"
            found.append((method, path, operation["x-role"]))
    return found


def fill(path: str, **values: str) -> str:
    return re.sub(r"{(\w+)(:path)?}", lambda m: {**VALUES, **values}[m[1]], path)


def ask(client: TestClient, method: str, path: str, name: str | None) -> int:
    # No live viewer has a place here, so that a stream is a short answer too.
    client.app.state.viewers.stopping = True  # type: ignore[attr-defined]
    try:
        headers = world.bearer(name) if name else {}
        return int(client.request(method, path, headers=headers, follow_redirects=False).status_code)
    finally:
        client.app.state.viewers.stopping = False  # type: ignore[attr-defined]


def test_there_are_as_many_operations_as_expected(operations: Any) -> None:
    assert len(operations) >= 40
    assert {path for _, path, role in operations if role == "public"} == PUBLIC


@pytest.mark.parametrize("name", [None, "viewer", "operator"])
def test_every_operation_is_held_against_the_role(client: TestClient, operations: Any, name: str | None) -> None:
    for method, path, role in operations:
        status = ask(client, method, fill(path, source="none", model="none", alert="none"), name)
        where = f"{method} {path} as {name}"
        if role == "public":
            assert status not in (401, 403), where
        elif name is None:
            assert status == 401, where
        elif ROLES.index(name) < ROLES.index(role):
            assert status == 403, where
        else:
            assert status not in (401, 403), where


def test_an_administrator_may_do_everything(client: TestClient, operations: Any) -> None:
    for method, path, _ in operations:
        status = ask(client, method, fill(path, source="none", model="none", alert="none"), "admin")
        assert status not in (401, 403), f"{method} {path}"


def test_whoever_sees_one_source_finds_no_other(client: TestClient, operations: Any) -> None:
    of_sources = [(method, path) for method, path, _ in operations if "{source}" in path]
    assert len(of_sources) >= 7
    for method, path in of_sources:
        assert ask(client, method, fill(path), "guest") == 404, f"{method} {path}"
        answer = client.request(method, fill(path), headers=world.bearer("guest"))
        assert "yours" not in answer.text.replace("got: yours", ""), "the names of others are told"
    assert client.get("/v1/sources/yours", headers=world.bearer("viewer")).status_code == 200, "it was there"
    assert client.get("/v1/sources/mine", headers=world.bearer("guest")).status_code == 200


def test_lists_hold_only_what_one_may_see(client: TestClient) -> None:
    guest, viewer = world.bearer("guest"), world.bearer("viewer")

    def names(path: str, headers: dict[str, str]) -> set[str]:
        return {row["name"] for row in client.get(path, headers=headers).json()}

    assert names("/v1/sources", guest) == {"mine"}
    assert names("/v1/sources", viewer) == {"mine", "yours"}
    assert names("/v1/alerts", guest) == {"of-mine"}
    assert names("/v1/alerts", viewer) == {"of-mine", "of-yours", "of-None"}
    assert client.get("/metrics", headers=guest).status_code == 403
    assert client.get("/metrics", headers=viewer).status_code == 200
    assert client.get("/v1/counts?source=yours", headers=guest).status_code == 404
    found = client.get("/v1/statistics", headers=guest).json()
    assert (found["log"], found["why_slow"]) == ([], [])
    assert client.get("/v1/statistics", headers=viewer).json()["log"] == []
    assert client.get("/v1/statistics", headers=world.bearer("operator")).json()["log"]


def test_counts_of_other_sources_are_not_given(client: TestClient) -> None:
    store = world.service_of(client).store
    store.add({(1000, source, "", "", "picture_s"): 1.0 for source in ("mine", "yours")})
    store.add({(1000, source, "", "red", "seen"): 2.0 for source in ("mine", "yours")})
    asked = "/v1/counts?start=990&end=1010&bucket_s=20"
    rows = client.get(asked, headers=world.bearer("guest")).json()
    assert {row["source"] for row in rows} == {"mine"}
    assert {row["source"] for row in client.get(asked, headers=world.bearer("viewer")).json()} == {"mine", "yours"}
    assert "yours" not in client.get(f"{asked}&format=csv", headers=world.bearer("guest")).text


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/sources", {"address": "0"}, 403),
        ("POST", "/v1/sources", {"address": "0", "name": "new"}, 403),
        ("POST", "/v1/sources/test", {"address": "0"}, 403),
        ("POST", "/v1/sources/test", {"address": "0", "name": "mine"}, 403),
        ("PUT", "/v1/alerts", {"name": "x", "measure": "silent", "mqtt_topic": "t"}, 403),
        ("PUT", "/v1/alerts", {"name": "x", "source": "yours", "measure": "silent", "mqtt_topic": "t"}, 403),
        ("PUT", "/v1/alerts", {"name": "of-yours", "source": "mine", "measure": "silent", "mqtt_topic": "t"}, 403),
        ("GET", "/v1/alerts/of-yours", None, 404),
        ("DELETE", "/v1/alerts/of-yours", None, 404),
        ("DELETE", "/v1/alerts/of-None", None, 404),
    ],
)  # fmt: skip
def test_whoever_sees_one_source_changes_no_other(
    client: TestClient, method: str, path: str, body: Any, status: int
) -> None:
    assert client.request(method, path, json=body, headers=world.bearer("guest")).status_code == status


@pytest.mark.parametrize(
    ("path", "name", "accepted"),
    [
        ("/v1/events", None, False),
        ("/v1/events", "viewer", True),
        ("/v1/streams/mine/events", "guest", True),
        ("/v1/streams/yours/events", "guest", False),
        ("/v1/streams/none/events", "viewer", False),
    ],
)
def test_event_streams_are_held_against_token_and_source(
    client: TestClient, path: str, name: str | None, accepted: bool
) -> None:
    headers = world.bearer(name) if name else {}
    if accepted:
        with client.websocket_connect(f"ws://127.0.0.1{path}?kinds=frame", headers=headers) as socket:
            event = socket.receive_json()
        assert event["kind"] == "frame"
        assert name != "guest" or event["source"] == "mine"
    else:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"ws://127.0.0.1{path}", headers=headers):
            pass


# -- where requests come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "evil.example"}, 403),  # DNS rebinding
        ("GET", {"Host": "127.0.0.1.evil.example"}, 403),
        ("GET", {"Host": ""}, 403),
        ("GET", {"Host": "[::1]:8000"}, 200),
        ("GET", {"Host": "localhost:8000"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link that was followed
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),  # another port of this machine
        ("DELETE", {"Origin": "http://evil.example"}, 403),
        ("DELETE", {"Origin": "null"}, 403),
        ("DELETE", {"Origin": "http://127.0.0.1:9999"}, 403),
        ("DELETE", {"Origin": "http://127.0.0.1"}, 200),
        ("DELETE", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
def test_other_sites_pages_are_refused(client: TestClient, method: str, headers: dict[str, str], status: int) -> None:
    answer = client.request(method, "/v1/comparison", headers={**world.bearer("admin"), **headers})
    assert answer.status_code == status, answer.text


def test_a_web_socket_of_another_site_is_refused(client: TestClient) -> None:
    for origin, fine in (("http://evil.example", False), ("http://127.0.0.1", True)):
        headers = {**world.bearer("viewer"), "Origin": origin}
        refusal = nullcontext() if fine else pytest.raises(WebSocketDisconnect)
        with refusal, client.websocket_connect("ws://127.0.0.1/v1/events", headers=headers):
            pass


def test_every_answer_has_security_headers(client: TestClient) -> None:
    for path in ("/healthz", "/v1/sources", "/v1/none", "/sign-in"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


# -- tokens and sessions ----------------------------------------------------------------------------------------------


def test_tokens_are_kept_as_hashes_and_end_when_they_are_taken_back(client: TestClient) -> None:
    admin = world.bearer("admin")
    made = client.post("/v1/tokens", json={"name": "new", "role": "viewer"}, headers=admin)
    token = made.json()["token"]
    mine = {"Authorization": f"Bearer {token}"}
    assert client.get("/v1/session", headers=mine).json()["name"] == "new"
    service = world.service_of(client)
    assert token not in str(service.store.documents("token"))
    everything = b"".join(file.read_bytes() for file in service.config.state.iterdir())
    assert token.encode() not in everything
    assert digest(token).encode() in everything
    assert token not in client.get("/v1/tokens", headers=admin).text
    assert digest(token) not in client.get("/v1/tokens", headers=admin).text
    assert client.post("/v1/tokens", json={"name": "new", "role": "viewer"}, headers=admin).status_code == 400
    assert client.delete("/v1/tokens/new", headers=admin).status_code == 204
    assert client.get("/v1/session", headers=mine).status_code == 401
    assert client.delete("/v1/tokens/new", headers=admin).status_code == 404
    assert client.delete("/v1/tokens/viewer", headers=admin).status_code == 400, "it is the configuration's"


def test_signing_in_gives_a_cookie_that_ends(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path, token=world.token_tables())) as client:
        answer = client.get("/v1/sources")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/sign-in").status_code == 200
        wrong = client.post("/sign-in", data={"token": "nonsense"}, follow_redirects=False)
        assert wrong.status_code == 401
        done = client.post("/sign-in", data={"token": world.TOKENS["viewer"], "next": "//evil.example/"},
                           follow_redirects=False)  # fmt: skip
        assert (done.status_code, done.headers["location"]) == (303, "/")
        cookie = done.headers["set-cookie"]
        assert all(part in cookie.lower() for part in ("httponly", "samesite=strict", "path=/"))
        assert world.TOKENS["viewer"] not in cookie
        assert client.get("/v1/session").json()["role"] == "viewer"
        assert client.delete("/v1/session").status_code == 204
        client.cookies.set("hawkeye_session", cookie.partition("=")[2].partition(";")[0])
        assert client.get("/v1/session").status_code == 401, "the old cookie is worth nothing"


def test_wrong_tokens_are_slowed_down(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path, token=world.token_tables())) as client:
        wrong = {"Authorization": "Bearer nonsense"}
        statuses = [client.get("/v1/sources", headers=wrong).status_code for _ in range(7)]
        assert statuses == [401] * 5 + [429] * 2
        answer = client.post("/sign-in", data={"token": world.TOKENS["admin"]}, follow_redirects=False)
        assert answer.status_code == 429, "guessing on, one would not learn that one was right"
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/healthz", headers=wrong).status_code == 200


def test_too_many_requests_of_one_client(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path, rate_per_minute=5)) as client:
        statuses = [client.get("/v1/sources").status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert int(client.get("/v1/sources").headers["retry-after"]) >= 1


def test_rate_fills_up_again_and_forgets() -> None:
    rate = Rate(2, 0.02)
    assert [rate.take("a") > 0 for _ in range(3)] == [False, False, True]
    assert rate.take("b") == 0
    time.sleep(0.03)
    assert rate.take("a") == 0


def test_without_tokens_this_machine_is_an_administrator(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path)) as client:
        assert client.get("/v1/session").json() == {"name": "local", "role": "admin", "sources": None, "created": None}
        token = client.post("/v1/tokens", json={"name": "first", "role": "admin"}).json()["token"]
        assert client.get("/v1/session").status_code == 401, "from the first token on, everybody needs one"
        assert client.get("/v1/session", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "proxy", "status"),
    [
        ("127.0.0.1", None, 200),
        ("localhost", None, 200),
        ("0.0.0.0", None, 401),
        ("::", None, 401),
        ("127.0.0.1", "https://hawkeye.example", 401),
    ],
)
def test_without_tokens_nobody_is_let_in_where_others_reach_it(
    tmp_path: Path, host: str, proxy: str | None, status: int
) -> None:
    """The last token may be taken back while the service runs, by `hawkeye serve token remove`."""
    config = world.config_of(tmp_path, host=host, public_url=proxy)
    with world.client_of(config) as client:
        tokens = client.app.state.security.tokens  # type: ignore[attr-defined]
        token = tokens.add("boss", "admin")
        boss = {"Authorization": f"Bearer {token}"}
        who = client.app.state.security.who(Request({"type": "http", "headers": []}))  # type: ignore[attr-defined]
        assert client.get("/v1/session", headers=boss).status_code == 200
        assert who() is None
        Tokens(config, world.service_of(client).store).remove("boss")
        tokens._all(fresh=True)
        for headers in ({}, boss):
            assert client.get("/v1/sources", headers=headers).status_code == status
        assert (who() is not None) == (status == 200), "a stream or a page that stays open"
        signed_in = client.post("/sign-in", data={"token": token}, follow_redirects=False)
        assert signed_in.status_code == 401


def test_the_last_administrator_stays_where_others_reach_it(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path, host="0.0.0.0")) as client:
        tokens = client.app.state.security.tokens  # type: ignore[attr-defined]
        boss = {"Authorization": f"Bearer {tokens.add('boss', 'admin')}"}
        assert client.post("/v1/tokens", json={"name": "look", "role": "viewer"}, headers=boss).status_code == 201
        assert client.delete("/v1/tokens/look", headers=boss).status_code == 204
        answer = client.delete("/v1/tokens/boss", headers=boss)
        assert answer.status_code == 400 and "last token of an administrator" in answer.text
        assert client.post("/v1/tokens", json={"name": "next", "role": "admin"}, headers=boss).status_code == 201
        assert client.delete("/v1/tokens/boss", headers=boss).status_code == 204


def test_a_token_file(tmp_path: Path) -> None:
    config = world.config_of(tmp_path)
    service = Service(config)
    file = tmp_path / "secret"
    for content, words in (("short", "can be guessed"), ("with spaces " * 9, "can be guessed")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=words):
            Tokens(config, service.store, file=file)
    file.write_text("x" * 40 + "\n")
    found = Tokens(config, service.store, file=file).find("x" * 40)
    assert found is not None and found.role == "admin"
    with pytest.raises(ConfigError, match="cannot read"):
        Tokens(config, service.store, file=tmp_path / "none")
    service.stop()


def test_of_two_administrators_that_are_removed_at_once_one_stays(tmp_path: Path, monkeypatch: Any) -> None:
    config = world.config_of(tmp_path)
    store = Store(tmp_path / "s.sqlite3", config)
    tokens = Tokens(config, store, keep_admin=True)
    for name in ("a", "b"):
        tokens.add(name, "admin")
    both, drop = threading.Barrier(2), store.drop

    def late(kind: str, name: str) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for the other one's look at who is left
        drop(kind, name)

    def remove(name: str) -> str:
        try:
            tokens.remove(name)
        except ConfigError as error:
            return error.summary
        return ""

    monkeypatch.setattr(store, "drop", late)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(remove, ("a", "b"))) == ["", "this is the last token of an administrator"]
    assert len(tokens.list()) == 1
    store.close()


def test_an_administrator_sees_every_source(tmp_path: Path) -> None:
    config = world.config_of(tmp_path)
    store = Store(tmp_path / "s.sqlite3", config)
    with pytest.raises(ConfigError, match="sees every source"):
        Tokens(config, store).add("a", "admin", ["mine"])
    store.close()
