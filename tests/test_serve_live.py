"""The service as a process with a camera on loopback: viewers, faults, signals; and what its command refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi")
import serve_world as world  # noqa: E402
from hawkeye.cli import run  # noqa: E402
from live_fakes import jpeg, mjpeg_camera, picture, until  # noqa: E402

CLI = [sys.executable, "-m", "hawkeye.cli", "serve"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@contextmanager
def process(
    folder: Path, *options: str, within: Sequence[str] = (), **settings: Any
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`hawkeye serve` with a tiny model, and its port; `within` is the command that starts it, if any."""
    config = world.config_of(folder)
    command = [*within, *CLI, str(config.model), "--port", "0", "--state", str(folder / "state"), "--threads", "1",
               *options]  # fmt: skip
    environment = ENVIRONMENT | {f"HAWKEYE_SERVE_{name}": str(value) for name, value in settings.items()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                          cwd=folder) as running:  # fmt: skip
        try:
            assert running.stdout is not None and running.stderr is not None
            found = re.search(r":(\d+)$", running.stdout.readline().strip())
            assert found, running.stderr.read()
            yield running, int(found[1])
        finally:
            running.kill()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


class Viewer(threading.Thread):
    """Looks at live pictures until they end."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._connection.request("GET", path)
        self._answer = self._connection.getresponse()
        self.status, self.pictures = self._answer.status, []
        self.start()

    def run(self) -> None:
        while line := self._answer.readline():
            if line.startswith(b"Content-Length"):
                self._answer.readline()
                self.pictures.append(self._answer.read(int(line.split()[1])))


def test_sigterm_with_viewers_connected_ends_within_five_seconds_with_all_counts(tmp_path: Path) -> None:
    with world.camera(period_s=0.4) as address, process(tmp_path, "--allow-network", "127.0.0.0/8") as (running, port):
        assert ask(port, "POST", "/v1/sources", {"address": address, "name": "cam"})[0] == 201
        viewers = [Viewer(port, f"/v1/streams/cam/mjpeg?{query}") for query in ("", "width=320&drawn=false", "fps=2")]
        sockets = [web_socket(port, "/v1/events"), web_socket(port, "/v1/streams/cam/events")]
        stalled = http.client.HTTPConnection("127.0.0.1", port)  # takes nothing
        stalled.request("GET", "/v1/streams/cam/mjpeg")
        drip = http.client.HTTPConnection("127.0.0.1", port)  # a body that never comes
        drip.putrequest("POST", "/v1/detect")
        drip.putheader("Content-Length", "1000")
        drip.endheaders()
        until(lambda: all(len(viewer.pictures) > 3 for viewer in viewers), 20)
        until(lambda: ask(port, "GET", "/v1/sources/cam")[1]["done"] > 20, 20)
        time.sleep(1.2)
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert time.monotonic() - began < 5
        for viewer in viewers:
            viewer.join(5)
            assert not viewer.is_alive()
        errors = running.stderr.read() if running.stderr else ""
        assert "Traceback" not in errors, errors
        for socket_ in sockets:
            socket_.close()
    # Counts of the last moment are there: seen and presence, second by second.
    from hawkeye.serve.config import ServeConfig
    from hawkeye.serve.store import Store

    store = Store(tmp_path / "state" / "hawkeye.sqlite3", ServeConfig())
    ((covered,),) = store._read("SELECT sum(value) FROM counts WHERE measure = 'picture_s'", ())
    assert covered > 0.5
    assert store.total("cam", "", "seen", 0, 1e10)["red"] >= 1
    store.close()


def web_socket(port: int, path: str) -> Any:
    client = pytest.importorskip("websockets.sync.client")
    # Nobody reads on after the first message, so the end would not be seen until ten seconds are over.
    socket_ = client.connect(f"ws://127.0.0.1:{port}{path}", proxy=None, close_timeout=0.1)
    assert json.loads(socket_.recv(10))["source"] == "cam"
    return socket_


def test_ctrl_c_is_an_end_too(tmp_path: Path) -> None:
    with process(tmp_path) as (running, port):
        assert ask(port, "GET", "/healthz")[0] == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 0


def test_a_service_that_was_killed_goes_on_with_its_sources_and_rules(tmp_path: Path) -> None:
    zone = {"kind": "zone", "name": "all", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    with world.camera(period_s=0.4) as address:
        with process(tmp_path, "--allow-network", "127.0.0.0/8") as (running, port):
            assert ask(port, "POST", "/v1/sources", {"address": address, "name": "cam"})[0] == 201
            assert ask(port, "PUT", "/v1/sources/cam/rules", zone)[0] == 200
            counted = f"/v1/counts?start={time.time() - 60}&bucket_s=3600&measure=enter&class_name=all"
            until(lambda: sum(row["value"] or 0 for row in ask(port, "GET", counted)[1]) >= 2, 20)
            running.kill()
            running.wait()
        with process(tmp_path, "--allow-network", "127.0.0.0/8") as (running, port):
            (info,) = ask(port, "GET", "/v1/sources")[1]
            assert (info["name"], info["rules"][0]["name"]) == ("cam", "all")
            assert sum(row["value"] or 0 for row in ask(port, "GET", counted)[1]) >= 2
            until(lambda: ask(port, "GET", "/v1/sources/cam")[1]["done"] > 5, 20)


# -- in this process --------------------------------------------------------------------------------------------------


def test_live_pictures_are_what_the_camera_shows(tmp_path: Path) -> None:
    config = world.config_of(tmp_path, networks=("127.0.0.0/8",))
    with world.camera(size=(120, 160)) as address, world.client_of(config) as client:
        assert client.get("/v1/streams/cam/jpeg").status_code == 404
        client.post("/v1/sources", json={"address": address, "name": "cam"})
        until(lambda: client.get("/v1/streams/cam/jpeg?drawn=false").status_code == 200)
        image = cv2.imdecode(np.frombuffer(client.get("/v1/streams/cam/jpeg?drawn=false").content, np.uint8), 1)
        assert image.shape == (120, 160, 3)
        until(lambda: client.get("/v1/sources/cam").json()["now"].get("red", 0) > 0)
        assert 0 < client.get("/v1/sources/cam").json()["decode_ms"] < 100
        assert client.get("/v1/streams/cam/jpeg?width=9999").status_code == 422


def test_viewers_are_bounded(tmp_path: Path) -> None:
    config = world.config_of(tmp_path, networks=("127.0.0.0/8",), max_viewers=1)
    with world.camera() as address, world.client_of(config) as client:
        client.post("/v1/sources", json={"address": address, "name": "cam"})
        with client.websocket_connect("ws://127.0.0.1/v1/events?kinds=frame") as socket:
            assert socket.receive_json()["kind"] == "frame"
            answer = client.get("/v1/streams/cam/mjpeg")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        until(lambda: client.app.state.viewers.now == 0)  # type: ignore[attr-defined]


def test_a_viewer_whose_token_is_taken_back_is_out(tmp_path: Path) -> None:
    config = world.config_of(tmp_path, networks=("127.0.0.0/8",), token=world.token_tables())
    with world.camera() as address, world.client_of(config) as client:
        admin = world.bearer("admin")
        client.post("/v1/sources", json={"address": address, "name": "cam"}, headers=admin)
        token = client.post("/v1/tokens", json={"name": "x", "role": "viewer"}, headers=admin).json()["token"]
        headers = {"Authorization": f"Bearer {token}"}
        with client.websocket_connect("ws://127.0.0.1/v1/events?kinds=frame", headers=headers) as socket:
            socket.receive_json()
            client.delete("/v1/tokens/x", headers=admin)
            end = time.monotonic() + 10
            while socket.receive()["type"] != "websocket.close":
                assert time.monotonic() < end


def test_one_bad_source_never_takes_the_others_down(tmp_path: Path) -> None:
    def garbage(send: Any, visit: int) -> None:
        for number in range(40):
            send(b"\x00nonsense" * 100 if number % 3 else jpeg(picture(9, (48 + 16 * (number % 2), 64))))
            time.sleep(0.02)

    def closing(send: Any, visit: int) -> None:
        send(jpeg(picture(9, (48, 64))))

    def stalling(send: Any, visit: int) -> None:
        send(jpeg(picture(9, (48, 64))))
        time.sleep(60)

    config = world.config_of(tmp_path, networks=("127.0.0.0/8",))
    with (
        world.camera() as good, mjpeg_camera(garbage) as a, mjpeg_camera(closing) as b, mjpeg_camera(stalling) as c,
        world.client_of(config) as client,
    ):  # fmt: skip
        for name, address in (("good", good), ("garbage", a), ("closing", b), ("stalling", c),
                              ("nobody", "http://127.0.0.1:1/")):  # fmt: skip
            assert client.post("/v1/sources", json={"address": address, "name": name}).status_code == 201
        until(lambda: client.get("/v1/sources/good").json()["done"] > 60, 20)
        rows = {row["name"]: row for row in client.get("/v1/sources").json()}
        assert rows["good"]["state"] == "live" and rows["good"]["reconnects"] == 0
        assert rows["nobody"]["state"] in ("reconnecting", "connecting") and "refused" in rows["nobody"]["words"]
        until(lambda: client.get("/v1/sources/closing").json()["reconnects"] >= 1, 20)
        for name in ("nobody", "stalling", "closing", "garbage"):
            assert client.delete(f"/v1/sources/{name}").status_code == 204
        assert client.get("/readyz").status_code == 200
        assert [row["name"] for row in client.get("/v1/sources").json()] == ["good"]


def test_testing_a_source_tells_what_is_wrong(tmp_path: Path) -> None:
    with world.camera() as address, world.client_of(world.config_of(tmp_path)) as client:
        refused = client.post("/v1/sources/test", json={"address": address}).json()
        assert not refused["ok"] and "--allow-network 127.0.0.1" in refused["words"]
        assert client.post("/v1/sources", json={"address": address}).status_code == 400
    with world.camera() as address, world.client_of(world.config_of(tmp_path, networks=("127.0.0.1",))) as client:
        found = client.post("/v1/sources/test", json={"address": address}).json()
        assert (found["ok"], found["width"], found["height"]) == (True, 64, 64)
        nobody = client.post("/v1/sources/test", json={"address": "http://127.0.0.1:1/"}).json()
        assert not nobody["ok"] and "refused" in nobody["words"]


def test_a_full_disk_is_told_and_detection_goes_on(tmp_path: Path) -> None:
    config = world.config_of(tmp_path, networks=("127.0.0.0/8",))
    with world.camera() as address, world.client_of(config) as client:
        client.post("/v1/sources", json={"address": address, "name": "cam"})
        store = world.service_of(client).store
        with store._lock:
            (pages,) = store._db.execute("PRAGMA page_count").fetchone()
            store._db.execute(f"PRAGMA max_page_count = {pages}")
        big = [{"name": f"t{n}", "role": "viewer", "sources": ["x" * 200] * 900} for n in range(20)]
        statuses = {client.post("/v1/tokens", json=token).status_code for token in big}
        assert statuses <= {201, 507, 401} and 507 in statuses or store.state != "on"
        assert "no history" in store.state
        with store._lock:
            store._db.execute("PRAGMA max_page_count = 1000000")
        until(lambda: store.state == "on", 10)
        assert world.service_of(client).source("cam").done > 0


def small_disk(folder: Path, size: str) -> list[str]:
    """The start of a command that sees a file system of its own, of that size, at `folder`; it goes with its process.

    Others reach it as `/proc/PID/root/...`. Skips the test where this machine lets nobody mount one.
    """
    folder.mkdir()
    mount = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"'
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", size, str(folder)]
    try:
        tried = subprocess.run([*within, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"needs unshare of util-linux: {error}")
    if tried.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {tried.stderr.strip()}")
    return within


def test_a_disk_that_is_really_full_ends_the_history_and_room_brings_it_back(tmp_path: Path) -> None:
    """As above, with a file system of 4 MB that another file fills to its last byte."""
    within = small_disk(tmp_path / "state", "4m")
    with (
        world.camera() as address,
        process(tmp_path, "--allow-network", "127.0.0.1", within=within) as (running, port),
    ):
        inside = Path(f"/proc/{running.pid}/root{tmp_path / 'state'}")

        def history() -> str:
            return str(ask(port, "GET", "/v1/statistics")[1]["history"])

        assert ask(port, "POST", "/v1/sources", {"address": address, "name": "cam"})[0] == 201
        until(lambda: ask(port, "GET", "/v1/sources/cam")[1]["state"] == "live", 20)
        with (inside / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(b"x" * 4096)
        full_s = time.time()
        until(lambda: history().startswith("no history: "), 20)
        status, problem = ask(port, "POST", "/v1/sources", {"address": address, "name": "late"})
        assert status == 507 and "free some space" in str(problem)
        done = ask(port, "GET", "/v1/sources/cam")[1]["done"]
        until(lambda: ask(port, "GET", "/v1/sources/cam")[1]["done"] > done + 75, 20)
        assert ask(port, "GET", "/healthz")[0] == 200
        assert ask(port, "GET", "/readyz")[0] == 200
        assert [row["name"] for row in ask(port, "GET", "/v1/sources")[1]] == ["cam"]
        (inside / "filler").unlink()
        room_s = time.time()
        until(lambda: history() == "on", 20)
        assert ask(port, "POST", "/v1/sources", {"address": address, "name": "late"})[0] == 201
        query = f"/v1/counts?source=cam&measure=seen&class_name=all&start={full_s}&end={room_s}&bucket_s=1"
        meanwhile = [row for row in ask(port, "GET", query)[1] if full_s <= row["start"] < room_s - 1]
        assert meanwhile
        assert [row for row in meanwhile if row["value"] is None or row["covered"] < 0.9] == []
        with sqlite3.connect(inside / "hawkeye.sqlite3") as store:
            assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()


def test_a_disk_that_is_full_when_the_service_starts(tmp_path: Path) -> None:
    """Sources and tokens are in the store: without them it must not start as if there were none."""
    within = small_disk(tmp_path / "state", "16k")
    command = [*within, *CLI, str(world.config_of(tmp_path).model), "--port", "0", "--state", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False,
                          timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert "cannot open the store" in done.stderr and "free some space" in done.stderr


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "hawkeye demo"),
        (["none"], "there is no model none"),
        (["MODEL", "--host", "0.0.0.0"], "hawkeye serve token add"),
        (["MODEL", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["MODEL", "--port", "70000"], "port"),
        (["MODEL", "--config", "none.toml"], "none.toml"),
        (["MODEL", "--config", "bad.toml"], "colour"),
        (["MODEL", "--token-file", "none"], "cannot read the token"),
        (["model.pt"], "never served"),
        (["token", "remove", "nobody"], "no such token"),
        (["token", "add", "x", "--role", "king"], "king"),
        (["token", "add", "a b"], "name"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, monkeypatch: Any, capsys: Any, options: list[str], words: str
) -> None:
    model = str(world.config_of(tmp_path).model)
    (tmp_path / "bad.toml").write_text('colour = "red"')
    (tmp_path / "model.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert run(["serve", *(model if option == "MODEL" else option for option in options)]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.startswith("error: ")


def test_a_port_that_is_taken(tmp_path: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", str(world.config_of(tmp_path).model), "--port", port]) == 2
    assert "--port" in capsys.readouterr().err


def test_tokens_on_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def command(*options: str) -> str:
        assert run(["serve", "token", *options]) == 0
        return str(capsys.readouterr().out).strip()

    assert command("list") == "no tokens: the service is for this machine only"
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("HAWKEYE_SERVE_HOST", "0.0.0.0")
        assert "others can reach the service" in command("list")
    token = command("add", "guard", "--role", "operator", "--source", "door")
    assert len(token) >= 40
    assert "door" in command("list")
    assert token not in command("list", "--json")
    assert command("remove", "guard") == "removed guard"


def test_without_the_extra_the_command_names_what_to_install(tmp_path: Path) -> None:
    for missing in ("fastapi", "uvicorn"):
        code = (
            f"import sys\nsys.modules[{missing!r}] = None\nfrom hawkeye.cli import run\nsys.exit(run(['serve', 'x']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert "pip install 'hawkeye[serve]'" in done.stderr


def test_the_service_imports_no_torch() -> None:
    import hawkeye.serve

    modules = [f"hawkeye.serve.{path.stem}" for path in Path(hawkeye.serve.__file__).parent.glob("*.py")
               if path.stem != "__init__"]  # fmt: skip
    modules += ["hawkeye.serve.pages"] if (Path(hawkeye.serve.__file__).parent / "pages").is_dir() else []
    code = f"import {', '.join(modules)}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"torch", "ultralytics", "nncf", "torch_pruning", "ray"}
    assert not [name for name in loaded if name.startswith("hawkeye.compress")]
