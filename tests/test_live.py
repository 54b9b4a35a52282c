"""The session: files whole and in order, live streams side by side, counts, outputs, silence, stopping, signals."""

from __future__ import annotations

import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_ir
from hawkeye.cli import run
from hawkeye.errors import ConfigError, DataError, StorageError
from hawkeye.lane import Lane
from hawkeye.live import LiveSession
from hawkeye.live_commands import _exit_code, _seconds
from hawkeye.outputs import DetectionsCsv, EventsCsv, JsonLines, Videos
from hawkeye.predict import Counting, _work, count, predict
from hawkeye.runtime.engine import Engine, SyncBackend
from hawkeye.runtime.stream import Stream
from hawkeye.track.rules import parse_rules
from live_fakes import (
    NAMES,
    FakeCapture,
    FakeNetwork,
    capture_threads,
    engine,
    file_of,
    mjpeg_camera,
    picture,
    refuse,
    source,
    until,
)
from live_fakes import write_video as write_brighter


def walker(grey: int) -> tuple[float, float, float, float]:
    """A box that walks from left to right by 2 pixels a frame."""
    return (2 * grey, 10, 2 * grey + 12, 30)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_of_several_files_in_order_and_nothing_left_behind(tmp_path):
    before = capture_threads()
    session = LiveSession(engine(), NAMES, outputs=[JsonLines(tmp_path / "o.jsonl"), DetectionsCsv(tmp_path / "o.csv")])
    for name, length in (("a", 30), ("b", 7)):
        session.add(Stream(source(name), open_=file_of(length)))
    session.run()
    rows = rows_of(tmp_path / "o.jsonl")
    for name, length in (("a", 30), ("b", 7)):
        mine = [row for row in rows if row["source"] == f"the {name}"]
        assert [row["frame"] for row in mine] == list(range(length))
        assert [row["time_s"] for row in mine] == [round(i / 10, 3) for i in range(length)]
    assert rows[0]["detections"] == [{"class_id": 0, "name": "thing", "score": 0.9, "xyxy": [10, 10, 20, 30]}]
    table = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert len(table) == 37
    assert (table[0]["name"], table[0]["x2"], table[0]["track_id"]) == ("thing", "20.0", "")
    assert [(s.name, s.state, s.done, s.drops, s.lost) for s in session.status()] == [
        ("a", "ended", 30, 0, 0), ("b", "ended", 7, 0, 0),
    ]  # fmt: skip
    assert not session.stopped_early
    assert not list(tmp_path.glob("*.part"))
    until(lambda: set(capture_threads()) <= set(before))


def test_streams_take_turns():
    network = FakeNetwork()
    session = LiveSession(engine(network), NAMES)
    order: list[str] = []
    notices = session.subscribe(1000)
    for name in ("a", "b", "c"):
        session.add(Stream(source(name), open_=file_of(40)))
    until(lambda: all(row.waiting == 4 for row in session.status()))
    session.run()
    while not notices.empty():
        notice = notices.get()
        if notice.kind == "frame":
            order.append(notice.stream)
    assert order[:9] == ["b", "c", "a"] * 3


def test_counting_and_what_the_policy_is_told_to_expect(tmp_path):
    network = FakeNetwork(walker)
    session = LiveSession(engine(network), NAMES, outputs=[EventsCsv(tmp_path / "e.csv")], bucket_s=1.0)
    notices = session.subscribe()
    session.add(Stream(source(), open_=file_of(25, fps=10.0)), parse_rules(["0.5,0,0.5,1:gate"]))
    session.run()
    (status,) = session.status()
    assert status.counts["gate"]["out"] == 1
    assert status.counts["gate"]["in"] == 0
    (event,) = csv.DictReader((tmp_path / "e.csv").open())
    assert (event["rule"], event["kind"], event["class"], event["source"]) == ("gate", "out", "thing", "the fake")
    assert [n.event.rule for n in list(notices.queue) if n.kind == "count"] == ["gate"]
    series = session.series("fake")
    assert sum(row["value"] for row in series.rows() if row["measure"] == "out" and row["class"] == "all") == 1
    late = network.expected[20]
    np.testing.assert_allclose(late.xyxy[0], walker(20), atol=1.5)


def test_a_change_of_size_in_the_middle_changes_no_count():
    """From frame 12 on the picture is twice as wide and high, and so is the box: one track, one crossing."""

    def at(grey: int) -> tuple[float, float, float, float]:
        box = walker(grey)
        return box if grey < 12 else tuple(2 * v for v in box)

    frames = [picture(i, (40, 60) if i < 12 else (80, 120)) for i in range(25)]
    session = LiveSession(engine(FakeNetwork(at)), NAMES)
    notices = session.subscribe(1000)
    session.add(Stream(source(), open_=lambda _: FakeCapture(frames, frames=25)), parse_rules(["30,0,30,40:gate"]))
    session.run()
    (status,) = session.status()
    assert (status.counts["gate"]["out"], status.width, status.height, status.error) == (1, 120, 80, "")
    found = [notice.found for notice in list(notices.queue) if notice.kind == "frame"]
    assert {track for f in found for track in f.track_id.tolist()} == {1}
    np.testing.assert_allclose(found[20].xyxy[0], at(20))  # in the pixels of its own frame
    result = session.latest("fake")
    assert result.rules[0].start == (60, 0)
    assert result.annotated().shape == (80, 120, 3)


def test_networks_are_made_ready_in_the_streams_own_thread():
    """Once for each size in turn; other streams must not wait for a compilation."""
    prepared: list[tuple[tuple[int, int], str]] = []
    small, large = picture(1, (40, 60)), picture(1, (80, 60))
    network = FakeNetwork()
    runner = Engine(lambda: SyncBackend(
        lambda _: network, lambda hw: prepared.append((hw, threading.current_thread().name))))  # fmt: skip
    session = LiveSession(runner, NAMES)
    session.add(Stream(source("a"), open_=lambda _: FakeCapture([small, small, large, small], frames=4)))
    session.run()
    assert [hw for hw, name in prepared if name == "capture a"] == [(40, 60), (80, 60), (40, 60)]
    assert len(network.seen) == 4


def test_a_dead_source_never_stops_the_others_and_no_data_is_not_zero(tmp_path):
    """A camera that gives three frames and falls silent, one that never answers, and a file."""
    gate = threading.Event()
    session = LiveSession(engine(FakeNetwork(lambda grey: None)), NAMES, outputs=[JsonLines(tmp_path / "o.jsonl")],
                          bucket_s=0.1)  # fmt: skip
    rules = parse_rules(zones=["0,0,1,0,1,1,0,1:all"])
    silent = Stream(source("silent", "camera"), open_=lambda _: FakeCapture([*map(picture, range(3)), gate.wait]),
                    stall_s=0.1, backoff_s=(0.05, 0.05))  # fmt: skip
    session.add(silent, rules)
    session.add(Stream(source("dead", "url"), open_=refuse, backoff_s=(0.02, 0.02)), rules)
    session.add(Stream(source("file"), open_=file_of(60)), rules)
    session.start()
    until(lambda: session.status()[2].state == "ended" and session.status()[2].done == 60)
    until(lambda: session.status()[0].state == "no data")
    time.sleep(1.3)
    status = session.status()
    assert status[0].counts["all"]["now"] is None
    assert status[2].counts["all"]["now"] == 0
    assert (status[1].state, status[1].done, status[1].counts) == ("reconnecting", 0, None)
    session.stop()
    gate.set()
    assert session.error is None
    values = [row["value"] for row in session.series("silent").rows()
              if (row["measure"], row["class"]) == ("occupancy_max", "all")]  # fmt: skip
    assert values[0] == 0
    assert values[-1] is None
    states = [(row["source"], row["state"]) for row in rows_of(tmp_path / "o.jsonl") if "state" in row]
    assert ("the silent", "no data") in states
    assert ("the dead", "reconnecting") in states


def test_frames_on_which_the_network_fails_are_lost_and_told():
    def trouble(grey: int) -> None:
        if grey % 2:
            raise RuntimeError("boom")

    session = LiveSession(engine(FakeNetwork(trouble=trouble)), NAMES)
    session.add(Stream(source(), open_=file_of(10)), parse_rules(zones=["0,0,1,0,1,1,0,1:all"]))
    session.run()
    (status,) = session.status()
    assert (status.done, status.lost) == (5, 5)
    assert "boom" in status.error
    assert status.counts["all"]["now"] is None  # the last frame was lost


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"done": 0, "lost": 1}, 1),
        ({"done": 18, "lost": 2}, 0),
        ({"done": 17, "lost": 3}, 1),
        ({"done": 18, "lost": 2, "damaged": 1, "total": 21}, 1),
        ({"done": 50, "captured": 90, "drops": 40, "lost": 0, "total": 91}, 0),
        ({"done": 50, "captured": 50, "total": 200, "state": "stopped"}, 0),
        ({"state": "failed"}, 1),
    ],
)
def test_exit_codes_of_what_gave_no_result(tmp_path, status, code):
    blank = Lane(Stream(source()), (), None, None).status()
    seen = {"captured": status.get("done", 0) + status.get("lost", 0), "state": "ended", **status}
    done = Counting(tmp_path, tmp_path, (), (), (replace(blank, **seen),), False, "")
    assert _exit_code(done) == code


def test_the_only_picture_lost_is_exit_1(tmp_path, monkeypatch, capsys):
    def trouble(_: int) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("hawkeye.predict.open_engine", lambda *_, **__: (
        engine(FakeNetwork(trouble=trouble)), NAMES, "sync"))  # fmt: skip
    cv2.imwrite(str(tmp_path / "p.png"), picture(1))
    assert run(["predict", str(tmp_path / "p.png"), "--model", "m", "--out", str(tmp_path / "o")]) == 1
    assert "1 frames without a result" in capsys.readouterr().out


def test_a_stuck_network_is_restarted_and_no_frame_of_a_file_is_missing():
    stuck, hung = threading.Event(), []

    def trouble(grey: int) -> None:
        if grey == 5 and not hung:
            hung.append(grey)
            stuck.wait(5)

    network = FakeNetwork(trouble=trouble)
    session = LiveSession(engine(network, timeout_s=0.1), NAMES)
    session.add(Stream(source(), open_=file_of(12)))
    session.run()
    stuck.set()
    assert (session.status()[0].done, session.status()[0].lost, session.engine.restarts) == (12, 0, 1)


def test_a_rule_that_does_not_fit_ends_its_stream_only():
    session = LiveSession(engine(), NAMES)
    session.add(Stream(source("a"), open_=file_of(50)), parse_rules(["10,10,500,10:far"]))
    session.add(Stream(source("b"), open_=file_of(5)))
    session.run()
    first, second = session.status()
    assert (first.state, second.state, second.done) == ("failed", "ended", 5)
    assert "far" in first.error
    assert isinstance(session.failures()[0], ConfigError)


def test_sources_come_and_go_while_it_runs():
    session = LiveSession(engine(), NAMES, tracking=True)
    session.start()
    gate = threading.Event()
    session.add(Stream(source("a", "camera"), open_=lambda _: FakeCapture([picture(1), gate.wait])))
    until(lambda: session.latest("a"))
    assert session.latest("a").found.track_id.tolist() == [1]
    with pytest.raises(ConfigError, match="same name"):
        session.add(Stream(source("a")))
    gate.set()
    session.remove("a")
    with pytest.raises(ConfigError, match="no such source"):
        session.remove("a")
    session.add(Stream(source("b"), open_=file_of(3)))
    until(lambda: [row.done for row in session.status()] == [3])
    session.stop()
    assert session.error is None


def test_a_session_that_is_over_takes_no_source():
    """Nothing would stop its capture thread, and a camera would stay taken."""
    before = set(capture_threads())
    session = LiveSession(engine(), NAMES)
    session.start()
    session.stop()
    with pytest.raises(ConfigError, match="is over"):
        session.add(Stream(source("a", "camera"), open_=refuse, connect_s=None))
    until(lambda: set(capture_threads()) <= before)


def test_a_session_that_cannot_begin_leaves_no_thread_behind():
    """The interpreter would abort at its end: a thread inside a decoder cannot be ended then."""
    before = set(capture_threads())
    session = LiveSession(engine(), NAMES)
    with pytest.raises(ConfigError, match="same name"):
        _work(session, [Stream(source("a"), open_=file_of(50)), Stream(source("a"))], "working", "")
    until(lambda: set(capture_threads()) <= before)


def test_a_slow_subscriber_loses_the_oldest_and_holds_nobody_up():
    session = LiveSession(engine(), NAMES)
    notices = session.subscribe(2)
    session.add(Stream(source(), open_=file_of(20)))
    session.run()
    left = [notices.get_nowait() for _ in range(2)]
    assert any(notice.time_s == pytest.approx(1.9) for notice in left)
    with pytest.raises(queue.Empty):
        notices.get_nowait()


def test_a_recording_keeps_its_time_and_size(tmp_path):
    videos = Videos(tmp_path, live=True)
    session = LiveSession(engine(), NAMES, outputs=[videos])
    frames = [picture(50, (41, 61) if i < 10 else (80, 120)) for i in range(20)]
    session.add(Stream(source("v"), open_=lambda _: FakeCapture(frames, frames=20, fps=10.0)))
    session.run()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert [capture.get(p) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)] == [20, 10]
    image = capture.read()[1]
    assert image.shape == (40, 60, 3)
    assert np.ptp(image[20]) > 50  # the box


# -- through the commands' functions, with a tiny network ------------------------------------------------------------


def write_video(path: Path, frames: int = 20) -> Path:
    """A red square that walks from left to right over black."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64))
    for number in range(frames):
        image = np.zeros((64, 64, 3), np.uint8)
        image[16:48, number * 2 : number * 2 + 24, 2] = 255
        writer.write(image)
    writer.release()
    return path


def test_predict_takes_videos_and_pictures_together(tmp_path):
    model = tiny_ir.stock_folder(tmp_path / "m")
    write_video(tmp_path / "v.mp4")
    cv2.imwrite(str(tmp_path / "p.png"), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    done = predict(model, [tmp_path / "v.mp4", tmp_path / "p.png", tmp_path / "bad.mp4"], out=tmp_path / "o", conf=0.8,
                   threads=1, engine="sync", table=True)  # fmt: skip
    rows = rows_of(done.results)
    assert done.images == len([row for row in rows if "width" in row]) == 21
    assert {row.get("state") for row in rows} == {None, "failed"}
    assert [path.relative_to(tmp_path / "o").as_posix() for path in (*done.pictures, *done.videos)] == [
        "pictures/p.png.jpg", "videos/v.mp4",
    ]  # fmt: skip
    assert [stream.state for stream in done.streams] == ["ended", "ended", "failed"]
    assert (tmp_path / "o/detections.csv").read_text().count("\n") == done.detections + 1


def test_count_writes_totals_events_and_series(tmp_path):
    model = tiny_ir.stock_folder(tmp_path / "m")
    done = count(model, write_video(tmp_path / "v.mp4"), out=tmp_path / "o", conf=0.5, iou=0.01, agnostic=True,
                 threads=1, engine="async", bucket_s=1.0, formats=("csv", "json"), draw_video=True)  # fmt: skip
    content = json.loads(done.counts.read_text())
    assert content["streams"][0]["counts"]["picture"]["enter"] >= 1
    assert (content["interrupted"], content["streams"][0]["done"]) == (False, 20)
    assert [path.name for path in done.series] == ["series.csv", "series.json"]
    events = list(csv.DictReader(done.events.open()))
    totals = content["streams"][0]["counts"]["picture"]
    for kind in ("enter", "exit"):  # those whose stay ended with the video, too
        assert len([event for event in events if event["kind"] == kind]) == totals[kind] > 0
    assert [path.name for path in done.videos] == ["v.mp4"]
    with pytest.raises(DataError, match="cannot open"):
        (tmp_path / "bad.mp4").write_bytes(b"no video")
        count(model, tmp_path / "bad.mp4", out=tmp_path / "x", threads=1)
    with pytest.raises(ConfigError, match="outside"):
        count(model, tmp_path / "v.mp4", out=tmp_path / "x", rules=parse_rules(["0,0,900,900"]), threads=1)


_HANGS = """
import sys
import cv2
import numpy as np
from hawkeye import cli, predict
from live_fakes import NAMES, FakeNetwork, engine

def trouble(grey):
    while grey > 100:  # in native code, as a network would
        cv2.GaussianBlur(np.zeros((500, 500), np.uint8), (9, 9), 0)

network = FakeNetwork(lambda grey: (grey / 4, 10, grey / 4 + 12, 30), trouble=trouble)
predict.open_engine = lambda *_, **__: (engine(network, timeout_s=0.2), NAMES, "sync")
sys.argv = ["hawkeye", "count", *sys.argv[1:]]
cli.main()
"""


def test_a_network_that_hangs_loses_no_counts_and_ends_with_its_own_exit_code(tmp_path):
    frames = write_brighter(tmp_path / "v.avi", 31)  # 13 frames up to a grey of 100
    done = subprocess.run(
        [sys.executable, "-c", _HANGS, str(frames), "--model", "m", "--out", str(tmp_path / "o"), "--every", "1s"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert (done.returncode, "error: the network hangs" in done.stderr) == (1, True), done.stderr
    content = json.loads((tmp_path / "o/counts.json").read_text())
    assert content["interrupted"]
    assert "the network hangs" in content["error"]
    (stream,) = content["streams"]
    assert stream["done"] == 13
    assert stream["counts"]["picture"]["enter"] == 1
    entered = [row for row in csv.DictReader((tmp_path / "o/series.csv").open())
               if (row["measure"], row["class"], row["value"]) == ("enter", "all", "1")]  # fmt: skip
    assert len(entered) == 1


def test_a_disk_that_refuses_the_video_loses_no_counts(tmp_path, monkeypatch):
    class Full(Videos):
        def write(self, result):
            if result.frame.index == 15:
                raise StorageError("cannot write the video", got="no space left")

    monkeypatch.setattr("hawkeye.predict.Videos", Full)
    model = tiny_ir.stock_folder(tmp_path / "m")
    with pytest.raises(StorageError, match="no space"):
        count(model, write_video(tmp_path / "v.mp4"), out=tmp_path / "o", threads=1, draw_video=True)
    content = json.loads((tmp_path / "o/counts.json").read_text())
    assert "no space" in content["error"]
    assert content["streams"][0]["done"] == 16
    assert (tmp_path / "o/series.csv").is_file()


def test_spans_of_time():
    assert [_seconds(text) for text in ("1s", "2m", "0.5h", "90")] == [1, 120, 1800, 90]
    for text in ("", "soon", "-1s", "0", "nan", "1d", "0.0000001", "0.05s", "inf"):
        with pytest.raises(ConfigError, match="--every"):
            _seconds(text)


def test_lines_and_zones_are_given_again_and_a_folder_of_pictures_gives_no_video(tmp_path, capsys):
    (tmp_path / "shots").mkdir()
    cv2.imwrite(str(tmp_path / "shots/p.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = ["--line", "0.5,0,0.5,1:a", "--line", "0,0.5,1,0.5:b", "--zone", "0.1,0.1,0.9,0.1,0.9,0.9:c", "--video"]
    assert run(["count", str(tmp_path / "shots"), "--model", str(tiny_ir.stock_folder(tmp_path / "m")), "--out",
                str(tmp_path / "o"), *arguments]) == 0  # fmt: skip
    assert "no video of shots: it has pictures" in capsys.readouterr().out
    (stream,) = json.loads((tmp_path / "o/counts.json").read_text())["streams"]
    assert set(stream["counts"]) == {"a", "b", "c"}


@pytest.mark.parametrize(("kind", "camera"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_finishes_within_two_seconds_with_everything_written(tmp_path, kind, camera):
    """The real command against a camera that never ends, or a long file played at its own speed."""
    model = tiny_ir.stock_folder(tmp_path / "m")
    out = tmp_path / "o"

    def play(send, _):
        data = cv2.imencode(".jpg", picture(100, (64, 64)))[1].tobytes()
        while True:
            send(data)
            time.sleep(0.02)

    with mjpeg_camera(play) as address:
        name = f"127.0.0.1-{address.split(':')[2].split('/')[0]}-live" if camera else "v"
        place = address if camera else str(write_video(tmp_path / "v.mp4", frames=200))
        command = [sys.executable, "-m", "hawkeye.cli", "count", place, "--model", str(model), "--out", str(out),
                   "--engine", "sync", "--threads", "1", "--video", "--realtime"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "HAWKEYE_CACHE": "off"})  # fmt: skip
        part = out / "videos" / f"{name}.part.mp4"
        until(lambda: part.exists() or process.poll() is not None, 30)
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(kind)
        output, errors = process.communicate(timeout=20)
        took = time.monotonic() - sent
    assert process.returncode == (0 if camera else 130), errors
    # On a machine with more work than processors everything takes its share longer.
    assert took < 2 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert "secret" not in output + errors
    assert "Traceback" not in errors
    content = json.loads((out / "counts.json").read_text())
    assert content["interrupted"]
    assert content["streams"][0]["done"] > 0
    assert not list(out.rglob("*.part*"))
    (video,) = (out / "videos").iterdir()
    assert cv2.VideoCapture(str(video)).read()[0]
