"""Sources and capture threads: order, drops, reconnection, states; which sources are let in."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pytest

from hawkeye.errors import DataError
from hawkeye.runtime.source import PictureCapture, VideoCapture, find_sources, open_source
from hawkeye.runtime.stream import Rate, Stream
from live_fakes import FakeCapture, file_of, jpeg, mjpeg_camera, picture, refuse, source, until
from rtsp_camera import PASSWORD, rtsp_camera


def drain(stream: Stream) -> list[int]:
    """The greys of all frames until the stream has ended."""
    seen = []
    while not stream.finished:
        frame = stream.take()
        if frame is None:
            time.sleep(0.001)
            continue
        seen.append(int(frame.image[0, 0, 0]))
    return seen


def test_a_file_gives_every_frame_in_order_however_slow_the_reader():
    stream = Stream(source(), open_=file_of(30))
    stream.start()
    until(lambda: stream.waiting == 4)
    time.sleep(0.05)
    assert stream.waiting == 4  # it waits instead of filling the memory
    assert drain(stream) == list(range(30))
    assert (stream.state, stream.drops, stream.captured, stream.total) == ("ended", 0, 30, 30)
    assert stream.stop()


def test_times_of_a_file_follow_its_rate_and_go_on_when_it_loops():
    stream = Stream(source(), open_=file_of(3, fps=10.0), loop=True)
    stream.start()
    times = []
    while len(times) < 7:
        frame = stream.take()
        if frame is not None:
            times.append(frame.time_s)
    assert stream.stop()
    np.testing.assert_allclose(times, np.arange(7) / 10)


def test_a_live_source_keeps_the_newest_frame_and_counts_the_others():
    gate = threading.Event()
    script = [*(picture(i) for i in range(10)), gate.wait]
    stream = Stream(source(kind="camera"), open_=lambda _: FakeCapture(script))
    stream.start()
    until(lambda: stream.captured == 10)
    frame = stream.take()
    assert frame is not None
    assert (frame.image[0, 0, 0], frame.index, stream.drops) == (9, 9, 9)
    assert stream.take() is None
    stream.stop(0)
    gate.set()
    assert stream.stop()


def test_realtime_plays_a_file_at_its_own_speed_and_drops():
    stream = Stream(source(), open_=file_of(10, fps=50.0), realtime=True)
    started = time.monotonic()
    stream.start()
    until(lambda: stream.state == "ended")
    assert 0.17 < time.monotonic() - started < 2
    assert (stream.drops, stream.take().index) == (9, 9)


def test_it_reconnects_with_growing_waits_and_goes_on_counting():
    opened: list[float] = []

    def open_(_):
        opened.append(time.monotonic())
        if len(opened) in (2, 3, 4):
            raise DataError("cannot open it", got="refused")
        return FakeCapture([picture(len(opened))])

    stream = Stream(source(kind="url"), open_=open_, backoff_s=(0.02, 0.05))
    stream.start()
    until(lambda: len(opened) >= 6)
    stream.stop()
    waits = np.diff(opened[:5])
    assert waits[0] >= 0.02
    assert waits[1] >= 0.02  # a frame came before, so the waits began anew; this is the first of them
    assert waits[2] >= 0.04
    assert waits[3] >= 0.05
    assert stream.captured >= 2
    assert stream.reconnects >= 5


def test_states_in_words():
    gate, now = threading.Event(), [0.0]
    stream = Stream(source(kind="camera"), open_=lambda _: FakeCapture([picture(1), gate.wait]),
                    clock=lambda: now[0], stall_s=2.0, backoff_s=(0.01, 0.01))  # fmt: skip
    assert stream.state == "connecting"
    stream.start()
    until(lambda: stream.captured == 1)
    assert stream.state == "live"
    now[0] = 2.5
    assert (stream.state, stream.silent_s) == ("no data", 2.5)
    gate.set()
    until(lambda: stream.reconnects)
    until(lambda: "closed the connection or fell silent" in stream.error)
    stream.stop()
    assert stream.state == "stopped"


def test_a_source_that_never_answers_fails_and_says_so():
    now = [0.0]
    stream = Stream(source(kind="url"), open_=refuse, connect_s=5, clock=lambda: now[0], backoff_s=(0.001, 0.001))
    stream.start()
    until(lambda: stream.reconnects > 2)
    assert (stream.state, stream.failure) == ("reconnecting", None)
    now[0] = 6
    until(lambda: stream.state == "failed")
    assert "never gave a picture" in str(stream.failure)
    assert "cannot open it" in str(stream.failure)


def test_an_address_with_an_end_is_a_file():
    stream = Stream(source(kind="url"), open_=file_of(20))
    stream.start()
    assert drain(stream) == list(range(20))
    assert (stream.live, stream.drops, stream.reconnects) == (False, 0, 0)


def test_a_decoder_that_breaks_ends_a_file_and_not_the_program():
    stream = Stream(source(), open_=lambda _: FakeCapture([picture(1), RuntimeError("bad bits")], frames=2))
    stream.start()
    assert drain(stream) == [1]
    assert stream.state == "failed"
    assert "RuntimeError" in stream.error


def test_stop_does_not_wait_for_a_dead_connection():
    gate = threading.Event()
    stream = Stream(source(kind="url"), open_=lambda _: FakeCapture([gate.wait]))
    stream.start()
    started = time.monotonic()
    assert not stream.stop(0.05)
    assert time.monotonic() - started < 0.5
    gate.set()
    assert stream.stop()


def test_rate():
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.per_second == 0
    for _ in range(11):
        rate.tick()
        now[0] += 0.1
    assert rate.per_second == pytest.approx(10)
    now[0] += 5
    assert rate.per_second == 0


# -- which sources are let in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("rtsp://user:geheim@10.0.0.5:554/s1?token=geheim", "rtsp://10.0.0.5:554/s1?…"),
        ("https://geheim@example.org/a.mjpg", "https://example.org/a.mjpg"),
        ("RTSP://u:geheim%40@[::1]/x", "rtsp://::1/x"),
    ],
)
def test_addresses_are_shown_without_secrets(text, label):
    (found,) = find_sources([text])
    assert (found.kind, found.label, found.target) == ("url", label, text)
    assert "geheim" not in f"{found} {found.name} {found.label}"


@pytest.mark.parametrize(
    "text",
    ["file:///etc/passwd", "concat:a.mp4|b.mp4", "ftp://host/a.mp4", "pipe:0", "rtsp:///x", "http://",
     "subfile,,start,0,end,9,,:/etc/passwd", "udp://@:1234", "http://u:geheim@host:port/x", "data:video/mp4;base64,AA"],
)  # fmt: skip
def test_other_schemes_are_refused_and_not_echoed(text):
    with pytest.raises(DataError) as caught:
        find_sources([text])
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"), [("rtsp:/camera/1", "rtsp"), ("rstp://camera/1", "rtsp"), ("htp://c", "http")]
)
def test_a_slip_in_an_address_is_mended(text, near):
    with pytest.raises(DataError, match=f"did you mean {near}://"):
        find_sources([text])


def test_cameras_folders_patterns_and_names(tmp_path):
    for place in ("a/cam.mp4", "b/cam.avi", "b/x.png", "b/notes.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    assert [(s.kind, s.name, s.target) for s in find_sources(["0"])] == [("camera", "camera0", 0)]
    everything = find_sources([tmp_path, str(tmp_path / "*/*.mp4")])
    assert [(s.kind, s.name) for s in everything[1:]] == [("video", "cam"), ("video", "cam-2"), ("video", "cam-3")]
    assert [path.name for path in everything[0].pictures] == ["x.png"]
    (tmp_path / "b/cam-2.mp4").write_bytes(b"x")
    names = [s.name for s in find_sources([tmp_path / "a/cam.mp4", tmp_path / "b/cam-2.mp4", tmp_path / "b/cam.avi"])]
    assert names == ["cam", "cam-2", "cam-3"]
    for nothing in ([], [tmp_path / "none"], [tmp_path / "b/notes.txt"]):
        with pytest.raises(DataError):
            find_sources(nothing)


def test_a_path_is_never_taken_for_an_option_of_the_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert find_sources(["a.mp4"])[0].target == str(tmp_path / "a.mp4")


# -- real decoding ----------------------------------------------------------------------------------------------------


def write_video(path, count=12, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size)
    for number in range(count):
        writer.write(picture(number * 20, (size[1], size[0])))
    writer.release()
    return path


def test_a_real_video(tmp_path):
    (found,) = find_sources([write_video(tmp_path / "v.mp4")])
    capture = open_source(found)
    assert isinstance(capture, VideoCapture)
    assert (capture.fps, capture.frames) == (10.0, 12)
    shots = []
    while (shot := capture.read()) is not None:
        shots.append(shot)
    capture.close()
    assert len(shots) == 12
    np.testing.assert_allclose([shot.time_s for shot in shots], np.arange(12) / 10, atol=1e-6)
    np.testing.assert_allclose([shot.image.mean() for shot in shots], np.arange(12) * 20, atol=6)


def test_pictures_in_order(tmp_path):
    for name in ("b", "a"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture(ord(name)))
    capture = open_source(find_sources([tmp_path])[0])
    assert isinstance(capture, PictureCapture)
    assert [int(capture.read().image[0, 0, 0]) for _ in range(2)] == [ord("a"), ord("b")]
    assert capture.read() is None


def test_a_camera_over_http_that_closes_and_changes_its_size():
    def play(send, visit):
        for _ in range(6):
            send(jpeg(picture(100, (48, 64) if visit == 1 else (96, 128))))
            time.sleep(0.02)

    with mjpeg_camera(play) as address:
        stream = Stream(find_sources([address])[0], backoff_s=(0.02, 0.02))
        stream.start()
        sizes = set()

        def both():
            frame = stream.take()
            if frame is not None:
                sizes.add(frame.image.shape)
            return len(sizes) == 2

        until(both)
        assert sizes == {(48, 64, 3), (96, 128, 3)}
        assert stream.reconnects >= 1
        assert stream.live
        assert "secret" not in stream.error
        assert stream.stop(3)


def test_a_camera_over_rtsp_that_asks_for_a_password_closes_and_changes_its_size():
    """RTSP as cameras speak it: a login, JPEG in RTP packets, and another size after each broken connection."""

    def play(send, visit):
        for number in range(8):
            send(picture(10 * number + 80, (64, 96) if visit % 2 else (128, 160)))
            time.sleep(0.02)

    with rtsp_camera(play) as address:
        (found,) = find_sources([address])
        assert PASSWORD in str(found.target) and PASSWORD not in found.label + repr(found)
        stream = Stream(found, backoff_s=(0.02, 0.02))
        stream.start()
        greys: dict[tuple[int, ...], set[int]] = {}

        def both():
            frame = stream.take()
            if frame is not None:
                greys.setdefault(frame.image.shape, set()).add(int(frame.image[0, 0, 0]) // 10)
            return stream.reconnects >= 1 and len(greys) == 2

        until(both, 20)
        assert set(greys) == {(64, 96, 3), (128, 160, 3)}
        assert all(seen <= set(range(7, 17)) for seen in greys.values())
        assert stream.live and PASSWORD not in stream.error
        assert stream.stop(6)


def test_a_wrong_password_is_told_without_it():
    with rtsp_camera(lambda send, visit: None) as address:
        (found,) = find_sources([address.replace(PASSWORD, "verkehrt")])
        with pytest.raises(DataError, match="user and password") as caught:
            VideoCapture(found, timeout_ms=2000)
    assert "verkehrt" not in str(caught.value)


def test_decoding_is_told_apart_from_waiting_for_the_camera() -> None:
    def busy() -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    for kind, before, low, high in (("camera", busy, 15, 100), ("camera", lambda: time.sleep(0.02), 0, 10)):
        stream = Stream(source(kind=kind), open_=lambda _, b=before: FakeCapture([b, picture(1)] * 4))
        stream.start()
        until(lambda s=stream: s.captured == 4)
        stream.stop()
        assert stream.decode_ms is not None and low <= stream.decode_ms < high
    stream = Stream(source(), open_=file_of(2))
    stream.start()
    until(lambda: stream.captured == 2)
    stream.stop()
    assert stream.decode_ms is None, "a file is decoded in threads of FFmpeg"
