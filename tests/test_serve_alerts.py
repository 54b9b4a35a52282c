"""Alerts and where they go: conditions, signed webhooks to a real server, a broker that speaks MQTT."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from hawkeye.errors import ConfigError  # noqa: E402
from hawkeye.serve.alerts import Alerts, Outbox  # noqa: E402
from hawkeye.serve.config import MqttConfig, ServeConfig  # noqa: E402
from hawkeye.serve.delivery import Message, Webhook  # noqa: E402
from hawkeye.serve.schemas import AlertSpec  # noqa: E402
from hawkeye.serve.sources import Guard  # noqa: E402
from hawkeye.serve.store import Store  # noqa: E402
from hawkeye.track.counting import CountEvent  # noqa: E402
from live_fakes import until  # noqa: E402

SECRET = "0123456789abcdef"
CONFIG = ServeConfig(networks=("127.0.0.0/8",))


class Carried:
    """Takes messages and keeps them."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def send(self, message: Message) -> None:
        self.bodies.append(json.loads(message.body))

    def close(self) -> None:
        pass


class Bench:
    """Alerts with a clock that a test sets, and messages that are kept."""

    def __init__(self, folder: Path, config: ServeConfig = CONFIG) -> None:
        self.now, self.carried = 100.0, Carried()
        self.store = Store(folder / "s.sqlite3", config)
        self.alerts = Alerts(config, self.store, clock=lambda: self.now, make=lambda *_: self.carried)

    def set(self, **values: Any) -> None:
        self.alerts.set(AlertSpec.model_validate({"name": "a", "mqtt_topic": "t", **values}))

    def told(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.carried.bodies) >= count)
        time.sleep(0.05)
        assert len(self.carried.bodies) == count
        return self.carried.bodies


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.alerts.stop()
    made.store.close()


# -- conditions -------------------------------------------------------------------------------------------------------


def test_occupancy_must_last_and_no_data_ends_nothing(bench: Bench) -> None:
    bench.set(rule="yard", class_name="person", threshold=2, duration_s=10)
    crowd = {("yard", "person"): 2, ("yard", "car"): 9, ("", "person"): 9}
    bench.alerts.told("cam", crowd)
    bench.now += 9
    bench.alerts.told("cam", crowd)
    bench.alerts.told("cam", {("yard", "person"): 1})
    bench.now += 1
    bench.alerts.told("cam", crowd)
    bench.now += 10
    bench.alerts.told("cam", crowd)
    (fired,) = bench.told(1)
    assert (fired["state"], fired["source"], fired["value"], fired["class"]) == ("firing", "cam", 2, "person")
    bench.alerts.told("cam", None)
    bench.told(1)
    bench.alerts.told("cam", {})
    assert bench.told(2)[1]["state"] == "resolved"
    (info,) = bench.alerts.list()
    assert (info.fired, info.delivered, info.firing) == (1, 2, ())


def test_crossings_within_a_window(bench: Bench) -> None:
    bench.set(rule="gate", measure="in", threshold=3, duration_s=60)
    event = CountEvent(0.0, "gate", "in", "person", 1)
    for _ in range(3):
        bench.now += 40
        bench.alerts.counted("cam", [event, CountEvent(0.0, "gate", "out", "person", 1)])
        bench.alerts.told("cam", {})
    assert bench.alerts.list()[0].fired == 0
    bench.now += 1
    bench.alerts.counted("cam", [event])
    bench.alerts.told("cam", {})
    assert bench.told(1)[0]["value"] == 3


def test_crossings_within_no_time_are_those_of_one_frame(bench: Bench) -> None:
    bench.set(rule="gate", measure="in", threshold=2, duration_s=0)
    event = CountEvent(0.0, "gate", "in", "person", 1)
    for together in (1, 1, 2):
        bench.alerts.counted("cam", [event] * together)
        bench.now += 0.04
        bench.alerts.told("cam", {})
    assert [(body["state"], body["value"]) for body in bench.told(2)] == [("firing", 2), ("resolved", 0)]


def test_silence(bench: Bench) -> None:
    bench.set(measure="silent", duration_s=30)
    bench.alerts.told("cam", None)
    bench.now += 31
    bench.alerts.told("cam", None)
    bench.alerts.told("cam", {})
    assert [body["state"] for body in bench.told(2)] == ["firing", "resolved"]


def test_a_source_that_was_removed_is_forgotten(bench: Bench) -> None:
    bench.set(name="silence", measure="silent", duration_s=30)
    bench.set(name="crossings", rule="gate", measure="in", duration_s=3600)
    bench.alerts.told("cam", {})
    bench.alerts.counted("cam", [CountEvent(0.0, "gate", "in", "person", 1)])
    bench.alerts.told("cam", {})
    assert bench.told(1)[0]["alert"] == "crossings"
    bench.alerts.forget("cam")
    assert bench.told(2)[1]["state"] == "resolved"
    bench.now += 60
    bench.alerts.told("other", {})
    bench.told(2)
    assert [info.firing for info in bench.alerts.list()] == [(), ()]
    assert list(bench.alerts._present) == ["other"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mqtt_topic": None}, "tells nobody"),
        ({"measure": "in"}, "no rule"),
        ({"measure": "silent", "rule": "gate"}, "silence is of a source"),
        ({"url": "https://127.0.0.1/x"}, "signed"),
    ],
)
def test_alerts_that_cannot_be(bench: Bench, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.set(**values)


def test_alerts_and_their_secrets_are_there_after_a_restart(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.set(url="http://127.0.0.1:1/x", secret=SECRET)
    first.set(url="http://127.0.0.1:1/x", threshold=5)  # the secret need not be sent again
    first.alerts.stop()
    first.store.close()
    again = Bench(tmp_path)
    again.alerts.start()
    (info,) = again.alerts.list()
    assert (info.threshold, info.url) == (5, "http://127.0.0.1:1/x")
    with pytest.raises(ConfigError, match="signed"):
        again.set(url="http://127.0.0.1:2/elsewhere")  # to another address it must
    again.alerts.stop()
    again.store.close()


def test_many_alerts_end_as_soon_as_one(tmp_path: Path, caplog: Any) -> None:
    """Each waits for a receiver that does not answer; together they must not take seconds."""
    halt, sending = threading.Event(), threading.Semaphore(0)

    class Stuck(Carried):
        def send(self, message: Message) -> None:
            sending.release()
            halt.wait(30)

    store = Store(tmp_path / "s.sqlite3", CONFIG)
    alerts = Alerts(CONFIG, store, make=lambda *_: Stuck())
    for number in range(12):
        alerts.set(AlertSpec(name=f"a{number}", mqtt_topic="t", duration_s=0))
    alerts.told("cam", {("", "person"): 1})
    for _ in range(12):
        assert sending.acquire(timeout=5)
    began = time.monotonic()
    alerts.stop()
    assert time.monotonic() - began < 2
    lost = [line for line in caplog.messages if line == "1 messages of an alert were never delivered: no answer"]
    assert len(lost) == 12, "told although the threads do not end before the process does"
    halt.set()
    store.close()


# -- webhooks ---------------------------------------------------------------------------------------------------------


@contextmanager
def receiver(answers: list[int]) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that answers with these statuses one after another, then 204; and what it has got."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = answers.pop(0) if answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://user:pass@127.0.0.1:{server.server_port}/hook?k=v", got
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_is_signed_tried_again_and_in_order() -> None:
    with receiver([500, 302, 503]) as (url, got):
        box = Outbox(Webhook(url, SECRET, Guard(CONFIG)), backoff_s=(0.02, 0.05))
        for number in range(5):
            box.put({"number": number})
        until(lambda: box.delivered == 5)
        box.stop()
    assert [json.loads(body)["number"] for _, body in got] == [0, 0, 0, 0, 1, 2, 3, 4]
    assert len({headers["webhook-id"] for headers, _ in got[:4]}) == 1, "the same id for the same message"
    assert len({headers["webhook-id"] for headers, _ in got}) == 5
    for headers, body in got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert headers["authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()


def test_an_outbox_is_bounded_and_ends_at_once_although_nobody_answers(monkeypatch: Any) -> None:
    monkeypatch.setattr("hawkeye.serve.alerts._MAX_WAITING", 10)
    box = Outbox(Webhook("http://127.0.0.1:1/x", SECRET, Guard(CONFIG)))
    for number in range(30):
        box.put({"number": number})
    until(lambda: box.error != "")
    assert box.waiting == 10
    assert "127.0.0.1" not in box.error or "pass" not in box.error
    began = time.monotonic()
    box.stop()
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://10.0.0.1/x", "http://[fe80::1]/x", "http://[::ffff:169.254.169.254]/",
     "ftp://example.com/x", "http://", "http://127.0.0.1:99999/", "file:///etc/passwd"],
)  # fmt: skip
def test_webhooks_go_where_they_may_only(url: str) -> None:
    with pytest.raises(ConfigError):
        Webhook(url, SECRET, Guard(CONFIG))


def test_a_webhooks_host_is_checked_again_for_every_message() -> None:
    """A name that was public when the alert was set and means this machine a moment later."""
    answers = ["93.184.215.14", "169.254.169.254"]

    def lookup(*_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 80))]

    hook = Webhook("http://rebinding.example/x", SECRET, Guard(ServeConfig(), lookup=lookup))
    with pytest.raises(ConfigError, match="link-local"):
        hook.send(Message.of({}))


# -- MQTT -------------------------------------------------------------------------------------------------------------


class Broker:
    """As much of MQTT 3.1.1 as a publisher with "at least once" needs; keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, IndexError), connection, connection.makefile("rb") as stream:
            while True:
                kind, length, shift = stream.read(1)[0], 0, 0
                while True:
                    byte = stream.read(1)[0]
                    length, shift = length | (byte & 127) << shift, shift + 7
                    if byte < 128:
                        break
                body = stream.read(length)
                if kind >> 4 == 1:  # CONNECT
                    connection.sendall(b"\x20\x02\x00\x00")
                elif kind >> 4 == 3:  # PUBLISH
                    size = int.from_bytes(body[:2], "big")
                    number = body[2 + size : 4 + size]
                    self.published.append((body[2 : 2 + size].decode(), body[4 + size :]))
                    connection.sendall(b"\x40\x02" + number)
                elif kind >> 4 == 12:  # PINGREQ
                    connection.sendall(b"\xd0\x00")


def test_mqtt_publishes_in_order(tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt.client")
    broker = Broker()
    config = ServeConfig(mqtt=MqttConfig(host="127.0.0.1", port=broker.port))
    store = Store(tmp_path / "s.sqlite3", config)
    alerts = Alerts(config, store)
    alerts.set(AlertSpec(name="a", mqtt_topic="hawkeye/alerts", duration_s=0))
    for count in (1, 0, 1):
        alerts.told("cam", {("", "person"): count})
    until(lambda: len(broker.published) == 3)
    assert {topic for topic, _ in broker.published} == {"hawkeye/alerts"}
    assert [json.loads(body)["state"] for _, body in broker.published] == ["firing", "resolved", "firing"]
    alerts.stop()
    store.close()
    broker.close()


def test_an_mqtt_topic_needs_a_broker(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite3", CONFIG)
    alerts = Alerts(CONFIG, store)
    with pytest.raises(ConfigError, match=r"\[mqtt\]"):
        alerts.set(AlertSpec(name="a", mqtt_topic="t"))
    alerts.stop()
    store.close()
