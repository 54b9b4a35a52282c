"""A service for tests: tiny models, a camera on loopback, and clients with every role."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi.testclient import TestClient

import tiny_ir
from hawkeye.serve.app import build_app
from hawkeye.serve.config import ServeConfig, TokenConfig, load_config
from hawkeye.serve.core import Service
from hawkeye.serve.security import digest
from live_fakes import jpeg, mjpeg_camera

TOKENS = {"viewer": "v" * 40, "operator": "o" * 40, "admin": "a" * 40, "guest": "g" * 40}
GUEST_SEES = "mine"  # the one source that the guest, an operator, may see


def scene(*, red: bool = True, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A picture in which the tiny detector finds red, or nothing."""
    image = np.zeros((*size, 3), np.uint8)
    if red:
        image[: size[0] // 2, : size[1] // 2, 2] = 255
    return image


def config_of(folder: Path, **values: Any) -> ServeConfig:
    """Settings with a tiny model, and a second one to switch to."""
    for name in ("tiny", "other"):
        if not (folder / "models" / name / "artifact.json").exists():
            tiny_ir.artifact(folder / "models" / name, name)
    given = {"model": str(folder / "models" / "tiny"), "models": (str(folder / "models" / "other"),),
             "state": folder / "state", "runs": folder / "runs", "threads": 1, "conf": 0.5, "port": 0}  # fmt: skip
    return load_config(environ={}, **{**given, **values})


def token_tables() -> tuple[TokenConfig, ...]:
    """A token of each role, and one that is held to one source."""
    roles = {name: name for name in TOKENS} | {"guest": "operator"}
    return tuple(TokenConfig(name=name, role=roles[name], sha256=digest(token),  # type: ignore[arg-type]
                             sources=(GUEST_SEES,) if name == "guest" else None)
                 for name, token in TOKENS.items())  # fmt: skip


@contextmanager
def client_of(config: ServeConfig, **options: Any) -> Iterator[TestClient]:
    """A client of a service that has started."""
    app = build_app(Service(config), pages=False)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, **options) as client:
        yield client


def service_of(client: TestClient) -> Service:
    return client.app.state.service  # type: ignore[attr-defined, no-any-return]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@contextmanager
def camera(*, period_s: float = 0.5, fps: float = 25.0, size: tuple[int, int] = (64, 64)) -> Iterator[str]:
    """A camera over HTTP, forever: something red that is there for half of each period. Gives its address."""
    halt = threading.Event()

    def play(send: Any, visit: int) -> None:
        pictures = jpeg(scene(size=size)), jpeg(scene(red=False, size=size))
        while not halt.wait(1 / fps):
            send(pictures[int(time.monotonic() / period_s * 2) % 2])

    with mjpeg_camera(play) as address:
        try:
            yield address
        finally:
            halt.set()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that becomes gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])
