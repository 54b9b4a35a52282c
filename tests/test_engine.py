"""Engines: order, the watchdog, the choice between them; and several real requests in flight."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiny_ir
from hawkeye.decode import decode
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError
from hawkeye.live import LiveSession
from hawkeye.runtime.choice import choose, open_engine
from hawkeye.runtime.detector import Detector
from hawkeye.runtime.engine import AsyncBackend, Backend, Engine, EngineError, Job, Report, SyncBackend
from hawkeye.runtime.openvino import OpenVinoQueue
from hawkeye.runtime.resolution import Fixed
from hawkeye.runtime.source import find_sources, open_source
from hawkeye.runtime.stream import Stream
from live_fakes import FakeNetwork, capture_threads, engine, picture, until, write_video


class FakeBackend:
    """Takes several jobs and finishes them when it is told, in any order."""

    name, looks = "fake", 0

    def __init__(self, capacity: int = 3, *, costs: tuple[list[float], float] | None = None) -> None:
        self.capacity, self.costs = capacity, costs  # a clock, and what a job adds to it
        self.open: list[tuple[Job, Report]] = []
        self.prepared: list[tuple[int, int]] = []
        self.closed = False

    def prepare(self, source_hw: tuple[int, int]) -> None:
        self.prepared.append(source_hw)

    def start(self, job: Job, report: Report) -> None:
        self.open.append((job, report))
        if self.costs is not None:
            self.costs[0][0] += self.costs[1]
            self.finish(0)

    def finish(self, index: int) -> None:
        self.open.pop(index)[1](Detections.empty(), {}, None)

    def close(self) -> None:
        self.closed = True


def tags(jobs: list[Job]) -> list[object]:
    return [job.tag for job in jobs]


def test_results_come_in_the_order_of_the_frames():
    backend = FakeBackend()
    runner = Engine(lambda: backend)
    for tag in range(3):
        assert runner.free
        runner.submit(Job(picture(0), tag=tag))
    assert not runner.free
    backend.finish(2)
    assert runner.collect(0.01) == []
    backend.finish(0)
    assert tags(runner.collect(0.01)) == [0]
    assert runner.free
    backend.finish(0)
    assert tags(runner.collect(0.01)) == [1, 2]
    runner.close()
    assert backend.closed


def test_one_at_a_time_with_what_is_expected():
    network = FakeNetwork()
    runner = engine(network)
    expected = Detections.empty()
    runner.submit(Job(picture(7), expected=expected))
    (job,) = runner.collect(1)
    assert (network.seen, network.expected) == ([7], [expected])
    assert len(job.found) == 1
    assert job.timings == network.timings
    runner.close()


def test_each_stream_has_a_policy_of_its_own():
    networks: dict[str, FakeNetwork] = {}
    runner = Engine(lambda: SyncBackend(lambda key: networks.setdefault(key, FakeNetwork())))
    for key, grey in (("a", 1), ("b", 2), ("a", 3)):
        runner.submit(Job(picture(grey), key=key))
        assert runner.collect(1)
    assert {key: network.seen for key, network in networks.items()} == {"a": [1, 3], "b": [2]}
    runner.close()


def test_an_error_of_the_network_is_a_lost_frame():
    def trouble(grey: int) -> None:
        if grey == 1:
            raise RuntimeError("no memory")

    runner = engine(FakeNetwork(trouble=trouble))
    for grey in (1, 2):
        runner.submit(Job(picture(grey)))
        (job,) = runner.collect(1)
        assert (job.found is None, "no memory" in job.error) == (grey == 1, grey == 1)
    assert (runner.lost, runner.restarts) == (1, 0)
    runner.close()


def test_the_watchdog_leaves_a_stuck_network_behind_and_tries_the_frame_again():
    before = set(capture_threads())
    stuck, made = threading.Event(), []

    def make() -> SyncBackend:
        first = not made
        network = FakeNetwork(trouble=lambda grey: stuck.wait(5) if first else None)
        made.append(network)
        return SyncBackend(lambda _: network)

    runner = Engine(make, timeout_s=0.1)
    runner.submit(Job(picture(5), tag="x"))
    jobs: list[Job] = []
    until(lambda: jobs.extend(runner.collect(0.05)) or jobs)
    assert (tags(jobs), jobs[0].found is not None, runner.restarts, runner.lost) == (["x"], True, 1, 0)
    assert [network.seen for network in made] == [[5], [5]]
    stuck.set()  # the first network answers at last: nobody may take its answer for another frame's
    runner.submit(Job(picture(6), tag="y"))
    assert tags(runner.collect(1)) == ["y"]
    runner.close()
    until(lambda: set(capture_threads()) <= before)  # the one that was left behind has ended too


def test_a_job_of_many_looks_is_no_hang_as_long_as_they_go_on():
    now, made = [0.0], []

    def make() -> FakeBackend:
        made.append(FakeBackend())
        return made[-1]

    runner = Engine(make, timeout_s=10.0, clock=lambda: now[0])
    made[0].looks = 7  # of frames before
    runner.submit(Job(picture(0)))
    for _ in range(5):
        now[0] += 11
        made[0].looks += 3
        assert runner.collect(0) == []
    assert runner.restarts == 0
    now[0] += 11
    assert runner.collect(0) == []
    assert runner.restarts == 1


@pytest.mark.parametrize("resolution", ["tiles", "adaptive"])
def test_a_slow_policy_is_not_taken_for_a_network_that_hangs(tmp_path, monkeypatch, resolution):
    """Tiles are several looks at one frame, and adaptive measures crops with its first; only one look may hang."""

    def slow(*arguments: Any, **options: Any) -> Detections:
        time.sleep(0.1)
        return decode(*arguments, **options)

    runner, _, _ = open_engine(tiny_ir.stock_folder(tmp_path, stock_head=True), kind="sync", resolution=resolution,
                               timeout_s=0.4, conf=0.9)  # fmt: skip
    runner.prepare((640, 1700))
    monkeypatch.setattr("hawkeye.runtime.detector.decode", slow)
    runner.submit(Job(picture(0, (640, 1700))))
    started = time.monotonic()
    jobs: list[Job] = []
    until(lambda: jobs.extend(runner.collect(0.05)) or jobs, 20)
    assert (runner.restarts, jobs[0].found is not None, time.monotonic() - started > 0.4) == (0, True, True)
    runner.close()


def test_a_compilation_is_no_hang():
    """Networks are made ready before the clock starts, in a new backend too."""
    now, made = [0.0], []

    class Slow(FakeBackend):
        def prepare(self, source_hw: tuple[int, int]) -> None:
            super().prepare(source_hw)
            now[0] += 60.0

    def make() -> Slow:
        made.append(Slow())
        return made[-1]

    runner = Engine(make, timeout_s=10.0, clock=lambda: now[0])
    runner.prepare((40, 60))
    runner.submit(Job(picture(0)))
    assert runner.collect(0) == [] and runner.restarts == 0
    now[0] += 11.0
    assert runner.collect(0) == [] and runner.restarts == 1
    assert [backend.prepared for backend in made] == [[(40, 60), (40, 60)], [(40, 60)]]
    made[1].finish(0)
    assert len(runner.collect(0)) == 1
    runner.close()


def test_a_frame_that_hangs_twice_is_lost_and_endless_hanging_is_an_error():
    runner = Engine(FakeBackend, timeout_s=0.02)
    runner.submit(Job(picture(0), tag=0))
    jobs: list[Job] = []
    until(lambda: jobs.extend(runner.collect(0.05)) or jobs)
    assert (jobs[0].found, runner.restarts, runner.lost) == (None, 2, 1)
    runner.submit(Job(picture(0), tag=1))
    with pytest.raises(EngineError, match="hangs"):
        until(lambda: runner.collect(0.05))
    started = time.monotonic()
    runner.close()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("sync_s", "async_s", "better"), [(0.004, 0.002, "async"), (0.002, 0.004, "sync"), (0.00204, 0.002, "sync")]
)
def test_the_faster_engine_is_kept(sync_s, async_s, better):
    """By seconds a frame on a clock of their own; where they are all but equal, less delay wins."""
    now = [0.0]

    def one() -> FakeBackend:
        return FakeBackend(1, costs=(now, sync_s))

    def several() -> FakeBackend:
        return FakeBackend(3, costs=(now, async_s))

    make, words = choose(one, several, picture(0), clock=lambda: now[0])
    assert make is (several if better == "async" else one)
    assert words == f"{better} (sync {1 / sync_s:.1f} frames/s, fake {1 / async_s:.1f}, measured here)"


# -- the real thing, on a tiny network ---------------------------------------------------------------------------------


def marked(column: int) -> np.ndarray:
    """A black picture with one red square of 16 pixels, in a place of its own."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, column * 16 : column * 16 + 16, 2] = 255
    return image


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_many_frames_keep_their_own_results(tmp_path, kind):
    """Canvases and outputs of requests in flight must not be mixed up: every frame against a plain detector."""
    folder = tiny_ir.stock_folder(tmp_path)
    runner, names, words = open_engine(folder, kind=kind, conf=0.9, threads=1)
    assert names == tiny_ir.NAMES
    assert words.startswith(kind)
    plain = Detector(folder, conf=0.9, threads=1)
    wanted = [plain(marked(column)).xyxy.tolist() for column in range(4)]
    assert len({str(boxes) for boxes in wanted}) == 4
    done: list[Job] = []
    for number in range(200):
        while not runner.free:
            done += runner.collect(1)
        runner.submit(Job(marked(number * 7 % 4), tag=number))
    until(lambda: done.extend(runner.collect(0.1)) or len(done) == 200)
    assert tags(done) == list(range(200))
    for job in done:
        assert job.found is not None
        assert job.found.xyxy.tolist() == wanted[job.tag * 7 % 4]
        assert set(job.timings) == {"pre", "network", "post"}
    runner.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("rect", [True, False])
def test_streams_of_several_shapes_share_an_engine(tmp_path, kind, rect):
    """In order, each frame with its own result, whatever shapes its neighbours in flight have."""
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    options = {"rect": rect, "conf": 0.45, "threads": 1}
    runner, _, _ = open_engine(folder, kind=kind, resolution="fixed:128", **options)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*hw, 3), np.uint8)
                for hw in ((90, 160), (160, 90), (120, 160), (160, 120), (128, 128), (72, 128))]  # fmt: skip
    plain = Detector(folder, imgsz=128, **options)
    wanted = [plain(image).xyxy.tolist() for image in pictures]
    assert len({str(boxes) for boxes in wanted}) == len(pictures)
    done: list[Job] = []
    for number in range(120):
        while not runner.free:
            done += runner.collect(1)
        runner.submit(Job(pictures[number * 5 % 6 if number % 3 else 0], tag=number))
    until(lambda: done.extend(runner.collect(0.1)) or len(done) == 120)
    assert tags(done) == list(range(120))
    for job in done:
        assert job.found is not None
        assert job.found.xyxy.tolist() == wanted[job.tag * 5 % 6 if job.tag % 3 else 0]
    runner.close()


def test_auto_measures_only_what_is_worth_it_and_says_what_it_kept(tmp_path):
    folder = tiny_ir.stock_folder(tmp_path)
    runner, _, words = open_engine(folder, kind="auto", worth_measuring=False, threads=1)
    assert words == "sync"
    runner.close()
    runner, _, words = open_engine(folder, kind="auto", threads=1)
    assert "measured here" in words
    runner.submit(Job(marked(0)))
    assert len(runner.collect(2)) == 1
    runner.close()


def test_async_does_not_fit_every_resolution(tmp_path):
    folder = tiny_ir.stock_folder(tmp_path, stock_head=True)
    with pytest.raises(ConfigError, match="--engine sync"):
        open_engine(folder, kind="async", resolution="tiles", threads=1)
    runner, _, words = open_engine(folder, kind="auto", resolution="fixed:32", threads=1)
    assert "async" in words
    runner.submit(Job(marked(0)))
    (job,) = runner.collect(2)
    assert job.found is not None
    runner.close()
    with pytest.raises(ConfigError, match="no resolution"):
        open_engine(folder, resolution="fixed:huge", threads=1)


def test_a_queue_waits_for_a_free_request(tmp_path):
    tiny_ir.stock_folder(tmp_path)
    runtime = Detector(tmp_path, threads=1).runtime
    requests = runtime.queue()  # type: ignore[attr-defined]
    seen: list[float] = []
    fills: list[Callable[[np.ndarray], None]] = [lambda canvas, v=value: canvas.fill(v) for value in range(0, 250, 5)]
    for fill in fills:
        requests.start(fill, lambda raw: seen.append(float(raw[4:].max())))
    requests.close()
    np.testing.assert_allclose(sorted(seen), np.arange(0, 250, 5) / 255, atol=1e-4)


class Hanging:
    """A real runtime, or a real queue of requests, whose fourth frame does not come back until it is told."""

    def __init__(self, real: Any, stuck: threading.Event, calls: list[int]) -> None:
        self._real, self._stuck, self._calls = real, stuck, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _hang(self) -> None:
        self._calls.append(threading.get_ident())
        if len(self._calls) == 4:
            assert self._stuck.wait(30)

    def infer(self, canvas: np.ndarray) -> np.ndarray:
        self._hang()
        return self._real.infer(canvas)

    def start(self, fill: Any, done: Callable[[np.ndarray], None], canvas_hw: tuple[int, int] | None = None) -> None:
        def hang_and_finish(raw: np.ndarray) -> None:  # in a thread of OpenVINO's: the request stays busy
            self._hang()
            done(raw)

        self._real.start(fill, hang_and_finish, canvas_hw)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_openvino_hangs_in_the_middle_of_a_video(tmp_path, kind):
    """A whole session on real networks: no frame is lost or out of order, and the thread that hung ends when it can."""
    before = set(capture_threads())
    folder, stuck, calls, made = tiny_ir.stock_folder(tmp_path), threading.Event(), [], []
    video = write_video(tmp_path / "v.mp4", frames=20)

    def make() -> Backend:
        made.append(detector := Detector(folder, conf=0.2, threads=1))
        if kind == "sync":
            detector.runtime = Hanging(detector.runtime, stuck, calls)
            return SyncBackend(lambda _: Fixed(detector), detector.prepare)
        requests = detector.runtime.queue()  # type: ignore[attr-defined]
        assert isinstance(requests, OpenVinoQueue)
        return AsyncBackend(Hanging(requests, stuck, calls), conf=0.2, iou=0.7)

    runner = Engine(make, timeout_s=0.5)
    session = LiveSession(runner, tiny_ir.NAMES)
    notices = session.subscribe(100)
    session.add(Stream(find_sources([str(video)])[0]))
    session.run()
    (status,) = session.status()
    assert (status.state, status.done, status.lost, runner.restarts, len(made)) == ("ended", 20, 0, 1, 2)
    frames = [notice for notice in notices.queue if notice.kind == "frame"]
    times = [notice.time_s for notice in frames]
    assert times == sorted(set(times)) and len(times) == 20
    plain = Detector(folder, conf=0.2, threads=1)
    shown = [shot.image for shot in iter(open_source(find_sources([str(video)])[0]).read, None)]
    for notice, image in zip(frames, shown, strict=True):
        assert notice.found.xyxy.tolist() == plain(image).xyxy.tolist()
    assert any(len(notice.found) for notice in frames)
    stuck.set()
    until(lambda: set(capture_threads()) <= before)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_engine_that_was_closed_or_swapped_out_leaves_no_network_behind(tmp_path, kind):
    """At once: in a service with few new objects the collector comes by too seldom for what refers to itself."""
    place = tiny_ir.artifact(tmp_path)

    def opened() -> Engine:
        made, _, _ = open_engine(place, kind=kind, conf=0.25, iou=0.7, threads=1)
        return made

    def work(runner: Engine) -> None:
        runner.submit(Job(np.zeros((64, 64, 3), np.uint8)))
        (job,) = runner.collect(10.0)
        assert job.found is not None

    gc.disable()
    try:
        runner, other = opened(), opened()
        work(runner)
        networks = [weakref.ref(network(made)) for made in (runner, other)]
        runner.swap(other)
        del other
        work(runner)
        until(lambda: networks[0]() is None)
        assert networks[1]() is not None
        runner.close()
        del runner
        until(lambda: networks[1]() is None)
    finally:
        gc.enable()


def network(runner: Engine) -> object:
    """What holds the compiled network of an engine."""
    backend = runner._backend
    return backend._queue if isinstance(backend, AsyncBackend) else backend._policy_for("")._look.runtime


def test_a_detector_and_its_replicas_leave_no_network_behind(tmp_path):
    gc.disable()
    try:
        detector = Detector(tiny_ir.artifact(tmp_path))
        replicas = detector.replicas()
        for each in (detector, *replicas):
            each(np.zeros((64, 64, 3), np.uint8))
        runtimes = [weakref.ref(each.runtime) for each in (detector, *replicas)]
        shared = weakref.ref(replicas[0].runtime._networks)
        del each, detector, replicas
        assert [runtime() for runtime in runtimes] == [None] * len(runtimes) and shared() is None
    finally:
        gc.enable()
