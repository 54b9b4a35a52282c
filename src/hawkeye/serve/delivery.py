"""How a message leaves the house: a webhook or MQTT."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from hawkeye.errors import ConfigError, HawkeyeError, MissingExtraError
from hawkeye.serve.config import MqttConfig, ServeConfig
from hawkeye.serve.schemas import AlertSpec
from hawkeye.serve.sources import Guard

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Message:
    """A message: its id stays the same however often it is sent."""

    id: str
    body: bytes

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Message:
        """A message with an id of its own."""
        return cls(f"msg_{uuid.uuid4().hex}", json.dumps(body).encode())


class Carrier(Protocol):
    """Sends messages; used by one thread."""

    def send(self, message: Message) -> None:
        """Deliver a message; returns when it has arrived.

        Raises:
            Exception: it has not.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class DeliveryError(HawkeyeError):
    """The receiver has refused a message."""


def carrier_for(spec: AlertSpec, config: ServeConfig, guard: Guard) -> Carrier:
    """What carries the messages of an alert; its address is checked.

    Raises:
        ConfigError: an address that is not allowed, or no broker.
        MissingExtraError: MQTT without the [mqtt] extra.
    """
    carriers: list[Carrier] = []
    if spec.url is not None:
        carriers.append(Webhook(spec.url, spec.secret or "", guard))
    if spec.mqtt_topic is not None:
        if config.mqtt is None:
            raise ConfigError(
                "there is no MQTT broker", got="an mqtt_topic", expected="an [mqtt] table in the settings"
            )
        carriers.append(Mqtt(config.mqtt, spec.mqtt_topic))
    return carriers[0] if len(carriers) == 1 else _Both(carriers)


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest()).decode()


class Webhook:
    """Posts JSON to an address; the host is resolved and checked for each message, and no redirect is followed.

    Raises:
        ConfigError: no http(s) address, or one that is not allowed.
        DataError: no such host.
    """

    def __init__(self, url: str, secret: str, guard: Guard) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError("not the address of a webhook", expected="https://host/path") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("not the address of a webhook", got=f"{parts.scheme}:…", expected="https://host/path")
        self._secret, self._guard = secret, guard
        self._tls, self._host = parts.scheme == "https", parts.hostname
        self._port = port or (443 if self._tls else 80)
        self._shown_host = parts.netloc.rpartition("@")[2]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._authorization = None
        if parts.username is not None:
            pair = f"{parts.username}:{parts.password or ''}".encode()
            self._authorization = "Basic " + base64.b64encode(pair).decode()
        guard.resolve(self._host, self._port)

    def send(self, message: Message) -> None:
        """See `Carrier.send`."""
        address = self._guard.resolve(self._host, self._port)
        plain = socket.create_connection((address, self._port), _TIMEOUT_S)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            context = ssl.create_default_context() if self._tls else None
            connection.sock = context.wrap_socket(plain, server_hostname=self._host) if context else plain
            now = int(time.time())
            headers = {"Host": self._shown_host, "Content-Type": "application/json", "User-Agent": "hawkeye",
                       "webhook-id": message.id, "webhook-timestamp": str(now),
                       "webhook-signature": sign(self._secret, message.id, now, message.body)}  # fmt: skip
            if self._authorization is not None:
                headers["Authorization"] = self._authorization
            connection.request("POST", self._path, message.body, headers)
            status = connection.getresponse().status
            if not 200 <= status < 300:
                raise DeliveryError("the receiver refuses", got=f"status {status}", expected="200 to 299")
        finally:
            connection.close()
            plain.close()

    def close(self) -> None:
        """Nothing is held open between messages."""


class Mqtt:
    """Publishes with "at least once"; the broker is the configuration's, so its address needs no check."""

    def __init__(self, config: MqttConfig, topic: str) -> None:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError:
            raise MissingExtraError("mqtt", "paho-mqtt") from None
        self._config, self._topic = config, topic
        self._client = Client(CallbackAPIVersion.VERSION2, f"hawkeye-{uuid.uuid4().hex[:12]}")
        if config.user is not None:
            self._client.username_pw_set(config.user, config.password)
        if config.tls:
            self._client.tls_set()
        self._connected = threading.Event()
        self._client.on_connect = lambda *values: self._connected.set() if not values[3].is_failure else None
        self._client.on_disconnect = lambda *_: self._connected.clear()
        self._begun = False

    def send(self, message: Message) -> None:
        """See `Carrier.send`."""
        if not self._begun:
            self._client.connect_async(self._config.host, self._config.port)
            self._client.loop_start()
            self._begun = True
        if not self._connected.wait(_TIMEOUT_S):
            raise DeliveryError("the MQTT broker does not answer", got=f"{self._config.host}:{self._config.port}")
        sent = self._client.publish(self._topic, message.body, qos=1)
        sent.wait_for_publish(_TIMEOUT_S)
        if not sent.is_published():
            raise DeliveryError("the MQTT broker has not confirmed a message")

    def close(self) -> None:
        """See `Carrier.close`."""
        self._client.disconnect()
        self._client.loop_stop()


class _Both:
    """A message that goes two ways; where one fails, both are tried again with the same id."""

    def __init__(self, carriers: list[Carrier]) -> None:
        self._carriers = carriers

    def send(self, message: Message) -> None:
        for carrier in self._carriers:
            carrier.send(message)

    def close(self) -> None:
        for carrier in self._carriers:
            carrier.close()
