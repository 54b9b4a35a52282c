"""Sources: those that are not there or are refused are kept, told and tried again; which addresses may be opened."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
import serve_world as world  # noqa: E402
from hawkeye.cli import run  # noqa: E402
from hawkeye.errors import ConfigError, DataError, HawkeyeError, StorageError  # noqa: E402
from hawkeye.rundir import locked  # noqa: E402
from hawkeye.runtime.source import FFMPEG_OPTIONS, Source  # noqa: E402
from hawkeye.serve.config import ServeConfig, SourceConfig  # noqa: E402
from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.schemas import AlertSpec, RuleSpec, SourceSpec  # noqa: E402
from hawkeye.serve.sources import Guard  # noqa: E402
from hawkeye.track.counting import CountEvent  # noqa: E402
from live_fakes import until, write_video  # noqa: E402

GATE = RuleSpec(kind="line", name="gate", points=((0.5, 0.0), (0.5, 1.0)))


@contextmanager
def running(config: ServeConfig, lookup: Any = None) -> Iterator[Service]:
    """A service that has started."""
    service = Service(config)
    if lookup is not None:
        service._live.guard._lookup = lookup
    service.start()
    try:
        yield service
    finally:
        service.stop()


def here(*_: Any) -> Any:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


def gone(*_: Any) -> Any:
    raise OSError("no such name")


def states(service: Service) -> dict[str, str]:
    return {info.name: info.state for info in service.sources()}


def test_a_source_that_cannot_be_opened_takes_no_other_along(tmp_path: Path) -> None:
    """When a session begins anew, such as for a model of other classes, or when one broke."""
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mp4")
    config = world.config_of(tmp_path, media=tmp_path)
    with running(config) as service:
        for name in ("a", "b", "c"):
            service.add_source(SourceSpec(address=f"{name}.mp4", loop=True))
        until(lambda: set(states(service).values()) == {"live"})
        (tmp_path / "b.mp4").rename(tmp_path / "away.mp4")
        live = service._live
        with live._lock:
            live._begin_anew()
        until(lambda: states(service) == {"a": "live", "b": "reconnecting", "c": "live"})
        info = service.source("b")
        assert "there is no such file" in info.words and info.label == "b.mp4"
        service.set_rule("b", GATE)
        with pytest.raises(ConfigError, match="does not know"):
            service.set_rule("b", GATE.model_copy(update={"classes": ("unicorn",)}))
        (tmp_path / "away.mp4").rename(tmp_path / "b.mp4")
        until(lambda: states(service) == {"a": "live", "b": "live", "c": "live"})
        until(lambda: "gate" in service.source("b").totals)
        assert service.source("b").error == ""


def test_the_supervisor_brings_all_sources_back(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hawkeye.serve.live._RESTART_S", 0.2)
    config = world.config_of(tmp_path, networks=("127.0.0.1",))
    with world.camera() as address, running(config, here) as service:
        for name in ("a", "b"):
            service.add_source(SourceSpec(address=address.replace("127.0.0.1", f"{name}.example"), name=name))
        live = service._live
        broken = live._session
        assert broken is not None
        live.guard._lookup = lambda host, *_: gone() if host == "a.example" else here()
        broken.stop()
        broken.error = RuntimeError("broken")
        until(lambda: live._session is not broken)
        until(lambda: states(service).get("b") == "live")
        until(lambda: states(service)["a"] == "reconnecting" and "there is no host" in service.source("a").words)
        live.guard._lookup = here
        until(lambda: states(service) == {"a": "live", "b": "live"})


def test_sources_that_are_not_there_at_the_start_are_kept_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    write_video(tmp_path / "media" / "clip.mp4")
    with world.camera() as address:
        near = address.replace("127.0.0.1", "near.example")
        config = world.config_of(
            tmp_path, media=tmp_path / "media", networks=("127.0.0.1",),
            source=(SourceConfig(address=str(tmp_path / "elsewhere" / "late.mp4"), loop=True, rules=(GATE,)),
                    SourceConfig(address="gopher://user:password@host/"),
                    SourceConfig(address="rtsp://user:password@near.example/1", name="unresolved")),
        )  # fmt: skip
        with running(config, here) as service:
            service.add_source(SourceSpec(address=near, name="cam"))
            service.add_source(SourceSpec(address="clip.mp4", loop=True))
        shutil.move(tmp_path / "media" / "clip.mp4", tmp_path / "clip.mp4")
        with running(config, gone) as service:
            until(lambda: set(states(service).values()) == {"reconnecting"})
            assert list(states(service)) == ["late", "unresolved", "cam", "clip"]
            words = {info.name: info.words for info in service.sources()}
            assert "there is no host near.example" in words["cam"] and "password" not in words["unresolved"]
            assert "late.mp4" in words["late"] and str(tmp_path) not in words["late"]
            assert service.rules("late") == (GATE,)
            shutil.move(tmp_path / "clip.mp4", tmp_path / "media" / "clip.mp4")
            (tmp_path / "elsewhere").mkdir()
            write_video(tmp_path / "elsewhere" / "late.mp4")
            service._live.guard._lookup = here
            until(lambda: [states(service)[name] for name in ("late", "cam", "clip")] == ["live"] * 3, 15)


def test_a_source_that_is_refused_stays_refused_when_it_is_opened(tmp_path: Path) -> None:
    with world.camera() as address:
        with running(world.config_of(tmp_path, networks=("127.0.0.1",))) as service:
            service.add_source(SourceSpec(address=address, name="cam"))
            service.add_source(SourceSpec(address="0", name="plugged"))
        with running(world.config_of(tmp_path, cameras=False)) as service:
            until(lambda: set(states(service).values()) == {"reconnecting"})
            assert "a private address that is not allowed" in service.source("cam").words
            assert "set cameras = true" in service.source("plugged").words
            assert service.source("cam").captured == 0
            with pytest.raises(ConfigError, match="not allowed"):
                service.add_source(SourceSpec(address=address, name="again"))
            service._live.guard._lookup = gone
            with pytest.raises(DataError, match="there is no host"):
                service.add_source(SourceSpec(address="rtsp://camera.example/1"))


def test_rules_of_a_source_without_a_name_are_there_after_a_restart(tmp_path: Path) -> None:
    video = write_video(tmp_path / "door.mp4")
    config = world.config_of(tmp_path, source=(SourceConfig(address=str(video), loop=True),))
    with running(config) as service:
        service.set_rule("door", GATE)
    with running(config) as service:
        assert service.rules("door") == (GATE,)


def test_an_http_source_is_asked_for_by_its_name(tmp_path: Path) -> None:
    """Its address is connected to, but a server of several sites must know which one is meant."""
    named: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            named.append(self.headers["Host"])
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    guard = Guard(ServeConfig(networks=("127.0.0.1",)), lookup=here)
    options = os.environ[FFMPEG_OPTIONS]
    assert "format_whitelist" in options, "whatever is opened first, such as a video that was sent"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://camera.example:{server.server_port}/1"
    assert not guard.test(SourceSpec(address=address)).ok
    server.shutdown()
    server.server_close()
    assert set(named) == {f"camera.example:{server.server_port}"}
    assert os.environ[FFMPEG_OPTIONS] == options, "nothing of it is left for the next source"


def test_two_services_do_not_share_a_state(tmp_path: Path, capsys: Any) -> None:
    """They would count everything twice. Another process has it: a process's own locks do not stop it."""
    model, state = str(world.config_of(tmp_path).model), tmp_path / "state"
    state.mkdir()
    code = (f"from hawkeye.rundir import lock; file = open({str(state / '.lock')!r}, 'w'); lock(file); "
            "print('held', flush=True); input()")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert run(["serve", model, "--port", "0", "--state", str(state)]) == 2
        error = capsys.readouterr().err
        assert "another service works with" in error and "--state" in error
        assert run(["serve", "token", "add", "x", "--state", str(state)]) == 0, "not a service"
        holder.communicate("\n")
    (tmp_path / "file").touch()
    assert run(["serve", model, "--port", "0", "--state", str(tmp_path / "file")]) == 2
    assert "name another --state" in capsys.readouterr().err


def test_a_state_that_cannot_be_locked_is_not_called_another_service(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Such as on a network drive without locks."""

    def lockf(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("hawkeye.rundir.fcntl.lockf", lockf)
    model = str(world.config_of(tmp_path).model)
    assert run(["serve", model, "--port", "0", "--state", str(tmp_path / "state")]) == 2
    error = capsys.readouterr().err
    assert "cannot lock" in error and "name another --state" in error and "another service" not in error
    with pytest.raises(StorageError, match="name another --out"), locked(tmp_path / "run"):
        pass


def test_a_path_with_a_colon_is_no_address(tmp_path: Path, monkeypatch: Any) -> None:
    """Only files of the media folder may be added, whatever their names."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "10:30.mp4")
    with running(world.config_of(tmp_path)) as service, pytest.raises(ConfigError, match="files are not allowed"):
        service.add_source(SourceSpec(address="10:30.mp4"))


def test_a_source_that_was_removed_is_no_alerts_business(tmp_path: Path) -> None:
    """Nor are its frames that are under way, nor its end."""
    with world.camera() as address, running(world.config_of(tmp_path, networks=("127.0.0.1",))) as service:
        service.add_source(SourceSpec(address=address, name="cam"))
        until(lambda: "cam" in service._alerts._present)
        service.remove_source("cam")
        service._live._recorder.state(Source("url", "cam", "late"), 1.0, "stopped", "")
        assert "cam" not in service._alerts._present
        service.add_source(SourceSpec(address=address, name="other"))
        service.set_rule("other", GATE)
        service.set_alert(AlertSpec(name="a", url="http://127.0.0.1:9/", secret="s" * 16, measure="in", rule="gate"))
        service._live._recorder.count(Source("url", "cam", "late"), [CountEvent(0.0, "gate", "in", "red", 1)])
        assert service.alerts()[0].firing == ()


def test_where_files_lie_is_not_told(tmp_path: Path) -> None:
    media = tmp_path / "media"
    for folder in ("hollow", "pictures"):
        (media / folder).mkdir(parents=True)
    (media / "notes.txt").write_text("x")
    (media / "pictures" / "bad.jpg").write_text("x")
    (media / "empty.mp4").touch()
    guard = Guard(ServeConfig(media=media))
    for name, words in (("notes.txt", "notes.txt is neither"), ("hollow", "got: hollow"), ("empty.mp4", "empty.mp4 is"),
                        ("pictures", "cannot read bad.jpg")):  # fmt: skip
        test = guard.test(SourceSpec(address=name))
        assert words in test.words and str(tmp_path) not in test.words


def test_a_drive_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: Any) -> None:
    write_video(tmp_path / "near.mp4")
    far = tmp_path / "far.mp4"
    config = world.config_of(tmp_path, media=tmp_path, source=(SourceConfig(address=str(far), loop=True),))
    hung, halt, looks = threading.Event(), threading.Event(), []

    def find(self: Guard, spec: SourceSpec, **options: Any) -> Source:
        if spec.address == str(far):
            looks.append(spec)
            if len(looks) > 1:
                hung.set()
                halt.wait(20)
        return real(self, spec, **options)

    real = Guard.find
    monkeypatch.setattr(Guard, "find", find)
    with running(config) as service:
        known = service._live._sources["far"]
        assert hung.wait(10) and (len(looks), known.wait_s) == (2, 1.0), (
            "at first after half a second, then a whole one"
        )
        service.add_source(SourceSpec(address="near.mp4", loop=True))
        until(lambda: states(service) == {"far": "reconnecting", "near": "live"})
        service.remove_source("far")
        write_video(far)
        halt.set()
        time.sleep(0.05)
        assert list(states(service)) == ["near"], "what was looked for is there no more"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"measure": "in", "rule": "no-such-line"}, "expected: gate"),
        ({"measure": "in", "rule": "yard"}, "'in' is of a line"),
        ({"measure": "enter", "rule": "gate"}, "'enter' is of a zone"),
        ({"measure": "occupancy", "rule": "gate"}, "'occupancy' is of a zone"),
        ({"measure": "in", "rule": ""}, "no rule"),
        ({"measure": "in", "rule": "gate", "source": "b"}, "draw that line first"),
        ({"class_name": "unicorn"}, "does not know"),
        ({"class_name": "blue", "measure": "enter", "rule": "yard"}, "does not count this class"),
        ({"source": "nowhere"}, "no such source"),
        ({"measure": "in", "rule": "gate"}, None),
        ({"measure": "out", "rule": "gate", "source": "a", "class_name": "blue"}, None),
        ({"measure": "occupancy", "rule": "yard", "class_name": "red"}, None),
        ({"measure": "occupancy"}, None),
        ({"measure": "silent", "source": "b"}, None),
    ],
)
def test_an_alert_that_could_never_fire_is_refused(site: Service, values: dict[str, Any], words: str | None) -> None:
    spec = AlertSpec.model_validate({"name": "a", "url": "http://127.0.0.1:9/", "secret": "s" * 16, **values})
    if words is None:
        assert site.set_alert(spec).name == "a"
    else:
        with pytest.raises(HawkeyeError, match=words):
            site.set_alert(spec)


def test_the_queue_of_frames_is_as_long_as_the_engine_takes(site: Service, monkeypatch: Any) -> None:
    session = site._live._session
    assert session is not None and site.statistics().queues["frames"][1] == session.engine.capacity == 1
    monkeypatch.setattr(session.engine._backend, "capacity", 4)
    assert site.statistics().queues["frames"][1] == 4


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two sources; one has a line and a zone."""
    folder = tmp_path_factory.mktemp("site")
    yard = RuleSpec(kind="zone", name="yard", points=((0, 0), (1, 0), (1, 1)), classes=("red",))
    write_video(folder / "a.mp4")
    write_video(folder / "b.mp4")
    sources = (SourceConfig(address=str(folder / "a.mp4"), rules=(GATE, yard)),
               SourceConfig(address=str(folder / "b.mp4")))  # fmt: skip
    with running(world.config_of(folder, source=sources, networks=("127.0.0.1",))) as service:
        yield service


# -- which addresses may be connected to ------------------------------------------------------------------------------


def lookup_of(*addresses: str) -> Any:
    return lambda *_: [(0, 0, 0, "", (address, 0)) for address in addresses]


@pytest.mark.parametrize(
    ("addresses", "networks", "found"),
    [
        (["93.184.215.14"], (), "93.184.215.14"),
        (["127.0.0.1"], (), None),
        (["10.1.2.3"], (), None),
        (["10.1.2.3"], ("10.0.0.0/8",), "10.1.2.3"),
        (["169.254.169.254"], ("0.0.0.0/0",), None),  # never, whatever is allowed
        (["100.100.100.200"], ("0.0.0.0/0",), None),
        (["fd00:ec2::254"], ("::/0",), None),
        (["::ffff:10.1.2.3"], (), None),
        (["::ffff:169.254.169.254"], ("::/0", "0.0.0.0/0"), None),
        (["64:ff9b::a9fe:a9fe"], ("::/0", "0.0.0.0/0"), None),  # 169.254.169.254 behind NAT64
        (["2002:a9fe:a9fe::1"], ("::/0", "0.0.0.0/0"), None),  # and behind 6to4
        (["fe80::1%eth0"], ("::/0",), None),
        (["224.0.0.1"], ("0.0.0.0/0",), None),
        (["0.0.0.0"], ("0.0.0.0/0",), None),
        (["10.1.2.3", "93.184.215.14"], (), "93.184.215.14"),
    ],
)
def test_the_resolved_address_decides(addresses: list[str], networks: tuple[str, ...], found: str | None) -> None:
    guard = Guard(ServeConfig(networks=networks), lookup=lookup_of(*addresses))
    if found is None:
        with pytest.raises(ConfigError, match="not allowed"):
            guard.resolve("camera.example", 554)
    else:
        assert guard.resolve("camera.example", 554) == found


def test_the_address_that_was_checked_is_the_one_that_is_opened(monkeypatch: Any) -> None:
    opened: list[tuple[str, str]] = []
    monkeypatch.setattr("hawkeye.serve.sources.open_source", lambda source: opened.append((source.target, source.host)))
    guard = Guard(ServeConfig(), lookup=lookup_of("93.184.215.14"))
    for address in ("rtsp://u:p@camera.example/1?x=y", "http://u:p@camera.example:8080/live",
                    "http://camera.example|protocol_whitelist;file:81/"):  # fmt: skip
        guard.open(guard.find(SourceSpec(address=address)))
    assert opened == [("rtsp://u:p@93.184.215.14:554/1?x=y", ""),
                      ("http://u:p@93.184.215.14:8080/live", "camera.example:8080"),
                      ("http://93.184.215.14:81/", "")]  # fmt: skip


@pytest.mark.parametrize(
    "address", ["gopher://x/1", "concat:a|b", "file:///etc/passwd", "tcp://1.2.3.4:5/", "pipe:0", "data:image/png;x"]
)
def test_other_schemes_are_refused(address: str) -> None:
    with pytest.raises((ConfigError, DataError)):
        Guard(ServeConfig(), lookup=lookup_of("93.184.215.14")).find(SourceSpec(address=address))
