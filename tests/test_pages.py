"""The pages without a browser: both languages, the catalogue, filtering, gaps, and who may see what."""

from __future__ import annotations

import json
import re
import string
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("nicegui")
import httpx
from fastapi import FastAPI

from follower_ir import NAMES, frames, save_video
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, StorageError
from hawkeye.geometry import iou_matrix
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.core import Service
from hawkeye.serve.language import Texts, preferred, translated
from hawkeye.serve.metrics import BOUNDS_MS, why_slow
from hawkeye.serve.pages import counts, drawing, shots
from hawkeye.serve.pages.frames import Frames, wanted_of
from hawkeye.serve.pages.layout import table_html
from hawkeye.serve.pages.models import row_figures
from hawkeye.serve.problems import Busy, NotFound
from hawkeye.serve.runs import Runs
from hawkeye.serve.schemas import CountRow, Histogram, RuleSpec, SourceSpec
from hawkeye.serve.sources import Guard
from hawkeye.serve.streams import Viewers
from hawkeye.serve.texts import TEXTS

PAGES = ("/", "/detect", "/counts", "/models", "/runs", "/system")
SOURCE = Path(__file__).parents[1] / "src" / "hawkeye" / "serve"


@pytest.fixture(scope="module")
def client(pages: tuple[FastAPI, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pages[1]) as client:
        yield client


# -- texts ------------------------------------------------------------------------------------------------------------


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_each_text_has_both_languages_with_the_same_places():
    assert not [key for key, (en, zh) in TEXTS.items() if not en or not zh or fields(en) != fields(zh)]


def test_no_text_of_the_pages_is_missing_or_left_over():
    code = "\n".join(path.read_text() for path in [*SOURCE.glob("pages/*.py"), SOURCE / "language.py"])
    used = set(re.findall(r"""\bt\(\s*["']([a-z_.]+)["']""", code))
    assert used <= set(TEXTS), "asked for and not there"
    built = {match.partition("{")[0] for match in re.findall(r"""\bt\(\s*f["']([^"']+)["']""", code)}
    built |= {f"{prefix}." for prefix in re.findall(r"""\bknown\(["'](\w+)["']""", code)}
    named = set(re.findall(r"""["']([a-z_]+\.[a-z_. ]+)["']""", code))
    # Texts that are chosen by a value, such as the state of a source, begin as the code says.
    unused = {key for key in TEXTS if key not in used | named and not any(key.startswith(start) for start in built)}
    assert not unused


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "fr,en;q=0.5,zh;q=0.4", "en"),
        (None, "en;q=0.3,zh-TW;q=0.7", "zh"),
        (None, "de-DE, *;q=x", "en"),
        ("en", "zh-CN", "en"),  # what was chosen stays
        ("zh", "en-US", "zh"),
        ("<script>", "zh", "zh"),
    ],
)
def test_language(chosen: str | None, accepted: str, language: str):
    assert preferred(chosen, accepted) == language


def source(**values: Any) -> Any:
    usual = {"name": "door", "state": "live", "error": "", "words": "no data", "fps_in": 25.0, "fps_done": 25.0,
             "nominal_fps": 25.0, "kind": "url", "decode_ms": 5.0}  # fmt: skip
    return SimpleNamespace(**{**usual, **values})


def histogram(p50_ms: float | None) -> Histogram:
    return Histogram(bounds_ms=BOUNDS_MS, counts=(0,) * (len(BOUNDS_MS) + 1), p50_ms=p50_ms, p99_ms=None)


@pytest.mark.parametrize(
    ("sources", "decode_ms", "system", "waiting"),
    [
        ([source(state="reconnecting", error="no answer")], None, 10.0, 0),
        ([source(state="no data")], None, 10.0, 0),
        ([source(state="reconnecting", kind="video")], None, 10.0, 0),
        ([source(fps_in=9.1, fps_done=9.0)], None, 10.0, 0),
        ([source(fps_in=9.1, fps_done=9.0)], None, 99.0, 0),
        ([source(fps_in=9.1, fps_done=9.0, decode_ms=99.0)], None, 10.0, 0),
        ([source(fps_in=9.1, fps_done=9.0, kind="video", decode_ms=None)], None, 10.0, 0),
        ([source(fps_done=9.0)], None, 10.0, 0),
        ([source(fps_done=9.0)], None, 99.0, 0),
        ([], 30.0, 10.0, 0),
        ([], None, 10.0, 2),
        ([], None, 99.0, 0),
    ],
)
def test_why_it_is_slow_is_told_in_chinese(sources: list[Any], decode_ms: float | None, system: float, waiting: int):
    stages = {"decode": histogram(decode_ms), "network": histogram(10.0)}
    words = why_slow(sources, stages, system, {"requests": (waiting, 2)})
    assert words
    for text in words:
        assert translated(text, "en") == text
        assert re.search("[\u4e00-\u9fff]", translated(text, "zh")), text


def tried_sources(folder: Path) -> Iterator[str]:
    for config, address in (
        ({}, "rtsp://camera/1"), ({}, "rtsp://metadata/1"), ({}, "rtsp://all/1"), ({}, "rtsp://nobody/1"),
        ({}, "rtps://camera/1"), ({}, "door.mp4"), ({"media": folder}, "door.mp4"), ({"cameras": False}, "0"),
        ({"networks": ("127.0.0.0/8",)}, "rtsp://here:1/1"), ({"cameras": True}, "99"),
    ):  # fmt: skip
        hosts = {"camera": "192.168.1.20", "metadata": "169.254.169.254", "all": "0.0.0.0", "here": "127.0.0.1"}

        def lookup(host: str, *_: Any, hosts: dict[str, str] = hosts) -> list[tuple[Any, ...]]:
            if host not in hosts:
                raise OSError
            return [(0, 0, 0, "", (hosts[host], 0))]

        yield Guard(ServeConfig(**config), lookup=lookup).test(SourceSpec(address=address)).words


def test_what_goes_wrong_most_is_told_in_chinese(tmp_path: Path):
    full = StorageError("the store cannot be written", got="database or disk is full", mend="free some space")
    said = [*tried_sources(tmp_path), "no history: database or disk is full", str(full), str(Busy(2.0)),
            str(NotFound("source", "dor", ["door"])), "door.mp4: pictures of 640 x 360, 25 per second",
            "door: camera or network gives nothing (cannot open rtsp://x; got: x:554: no answer)"]  # fmt: skip
    for words in said:
        assert translated(words, "en") == words
        chinese = translated(words, "zh")
        assert not re.search("[a-z]{2,} [a-z]{2,}", chinese), chinese


@pytest.mark.parametrize(
    ("values", "system", "words"),
    [
        ({"fps_in": 9.1}, 10.0, "camera or network gives 9.1 of 25"),
        (
            {"fps_in": 9.1, "decode_ms": 99.4},
            99.0,
            "decoding gives 9.1 of 25 frames per second: it takes 99 ms of a core",
        ),
        ({"fps_in": 9.1}, 99.0, "9.1 of 25 frames per second are read: the processor is full"),
        ({"fps_in": 9.1, "kind": "video", "decode_ms": None}, 10.0, "the file gives 9.1 of 25"),
        ({"state": "reconnecting", "kind": "video"}, 10.0, "the file gives nothing"),
        ({"fps_done": 9.0}, 10.0, "9.0 of 25.0 frames per second looked at: the detector is the slowest step"),
    ],
)
def test_why_it_is_slow_tells_camera_decoding_and_detector_apart(values: dict[str, Any], system: float, words: str):
    stages = {"decode": histogram(None), "network": histogram(10.0)}
    told = why_slow([source(**{"fps_done": 9.0, **values})], stages, system, {})
    assert told[0].startswith(f"door: {words}")


def test_a_key_that_is_not_known_is_an_error():
    with pytest.raises(KeyError):
        Texts("en")("live.nonsense")
    assert Texts("zh").known("stage", "nonsense") == "nonsense"


# -- pages over HTTP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_each_page_answers_in_the_language_of_the_browser(client: httpx.Client, path: str):
    name = "live" if path == "/" else path[1:]
    for accepted, column, lang in (("en", 0, "en-US"), ("zh-CN", 1, "zh-CN")):
        answer = client.get(path, headers={"accept-language": accepted})
        assert answer.status_code == 200
        title = TEXTS[f"nav.{name}"][column]
        assert f"<title>{title} · Hawkeye</title>" in answer.text and f'<html lang="{lang}"' in answer.text
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PAGES)
def test_no_page_loads_anything_from_elsewhere(client: httpx.Client, path: str):
    addresses = re.findall(r"""(?:src|href)=["'](https?:)?//([^"'/]+)""", client.get(path).text)
    assert not addresses


def test_the_pages_files_are_here(client: httpx.Client):
    for name in ("hawkeye.css", "picture.js", "frames.js", "favicon.svg"):
        assert client.get(f"/assets/{name}").status_code == 200
    for name in ("frames.js", "picture.js", "hawkeye.css"):
        assert not re.search(r"https?://", (SOURCE / "static" / name).read_text())


def test_paths_that_are_nowhere(client: httpx.Client):
    assert client.get("/pages/report/..%2f..%2fetc").status_code == 404
    assert client.get("/pages/shot/nonsense/0").status_code == 404
    assert client.get("/nonsense").status_code == 404


# -- frames -----------------------------------------------------------------------------------------------------------


def test_what_a_browser_may_ask_for():
    assert wanted_of(["door:640", "a:b:320", "x:99999", "y:0", "nothing", ":5", "z:-1", "w:²"]) == {
        "door": 640, "a:b": 320, "x": 1920, "y": 1,
    }  # fmt: skip
    assert len(wanted_of([f"s{i}:640" for i in range(1000)])) == 64


def read(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    found = []
    while body:
        (length,) = struct.unpack(">I", body[:4])
        about = json.loads(body[4 : 4 + length])
        end = 4 + length + about.get("bytes", 0)
        found.append((about, body[4 + length : end]))
        body = body[end:]
    return found


async def played(
    service: Service, who: Any, wanted: dict[str, int], seconds: float
) -> list[tuple[dict[str, Any], bytes]]:
    import asyncio

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    await asyncio.wait_for(Frames(service, Viewers(2), who, wanted)({"type": "http"}, receive, send), seconds + 5)
    return read(b"".join(sent))


def test_frames_carry_the_boxes_of_their_picture_and_each_comes_once(service: Service):
    import asyncio

    end = time.monotonic() + 10
    while service.latest("roll") is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    admin = SimpleNamespace(sees=lambda name: True)
    got = asyncio.run(played(service, lambda: admin, {"roll": 320, "nonsense": 320}, 1.5))
    frames_ = [(about, jpeg) for about, jpeg in got if about]
    numbers = [about["number"] for about, _ in frames_]
    assert len(frames_) >= 8 and len(set(numbers)) == len(numbers), "ten a second, none twice"
    for about, jpeg in frames_[2:]:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
        red = np.argwhere(image[..., 2] - image[..., 1] > 100)
        [[x1, _, x2, _, _, text]] = about["boxes"]
        assert text.startswith("ball")
        assert x1 < np.median(red[:, 1]) / image.shape[1] < x2, "the box lies where the ball is in this very picture"


def test_frames_of_sources_that_may_not_be_seen_never_go_out(service: Service):
    import asyncio

    nobody = SimpleNamespace(sees=lambda name: False)
    got = asyncio.run(played(service, lambda: nobody, {"roll": 320}, 0.4))
    assert got == [({}, b"")], "only a sign of life"
    assert asyncio.run(played(service, lambda: None, {"roll": 320}, 0.4)) == []


# -- lines and zones --------------------------------------------------------------------------------------------------


def test_a_rule_takes_no_other_ones_name_and_is_lost_to_no_refusal(service: Service):
    def rule(name: str, **more: Any) -> RuleSpec:
        return RuleSpec(kind="line", name=name, points=((0.5, 0.0), (0.5, 1.0)), **more)

    gate, door = rule("gate", repeat=True), rule("door")
    try:
        drawing.put_rule(service, "roll", gate)
        drawing.put_rule(service, "roll", door)
        with pytest.raises(ConfigError, match="another name"):
            drawing.put_rule(service, "roll", rule("gate"), instead="door")
        with pytest.raises(ConfigError, match="elephant"):
            drawing.put_rule(service, "roll", rule("way", classes=("elephant",)), instead="door")
        assert service.rules("roll") == (gate, door)
        drawing.put_rule(service, "roll", rule("way"), instead="door")
        assert service.rules("roll") == (gate, rule("way"))
    finally:
        for left in service.rules("roll"):
            service.remove_rule("roll", left.name)


# -- Detect -----------------------------------------------------------------------------------------------------------


def test_sliders_choose_as_a_plain_suppression_would():
    generator = np.random.default_rng(5)
    corners = generator.uniform(0, 80, (120, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 40, (120, 2))], 1).astype(np.float32)
    scores, ids = generator.uniform(0.05, 1, 120).astype(np.float32), generator.integers(0, 3, 120).astype(np.int32)
    found = Detections(boxes, scores, ids)
    for conf in (0.1, 0.5, 0.9):
        for iou in (0.2, 0.5, 0.9):
            mine = shots.choose(found, conf=conf, iou=iou)
            theirs: list[int] = []
            for i in np.argsort(-scores):  # the best first, unless a better one of its class lies over it
                over = [iou_matrix(boxes[[i]], boxes[[j]])[0, 0] > iou and ids[i] == ids[j] for j in theirs]
                if scores[i] > conf and not any(over):
                    theirs.append(int(i))
            assert mine.score.tolist() == scores[theirs].tolist()
    assert set(shots.choose(found, conf=0.1, iou=0.5, classes=[1]).class_id.tolist()) == {1}
    assert len(shots.choose(found, conf=1.0, iou=0.5)) == 0


def test_a_picture_is_looked_at_once_and_comes_out_in_each_form(service: Service):
    image = next(frames())
    shot = shots.Shot("=ball.png", content=cv2.imencode(".png", image)[1].tobytes())
    asked = service.metrics.requests
    done = shots.look(service, shot, "original")
    assert service.metrics.requests == asked + 1 and done.names == NAMES
    [found] = done.found
    kept = shots.choose(found, conf=0.25, iou=0.7)
    told = json.loads(shots.as_json(shot, "original", [kept], {"conf": 0.25}))
    assert (told["width"], told["height"], told["model"]) == (320, 180, "original")
    assert [row["name"] for row in told["frames"][0]["detections"]] == ["ball"]
    assert {"decode", "network", "post"} <= set(told["frames"][0]["timings_ms"])
    rows = shots.as_csv(shot, "original", [kept]).decode().splitlines()
    assert rows[0].startswith("file,time_s") and rows[1].startswith("'=ball.png"), "no formula for a spreadsheet"
    drawn = cv2.imdecode(np.frombuffer(shots.as_picture(shot, "original", 0, kept), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == image.shape and np.abs(drawn.astype(int) - image).max() > 50
    assert shots.frame_of(shot.id, 0) and shots.frame_of(shot.id, 1) is None
    name = shot.id
    del shot
    assert shots.frame_of(name, 0) is None, "forgotten with the page"


def test_a_video_is_looked_at_and_can_be_stopped(service: Service, tmp_path: Path):
    asked = service.metrics.requests
    shot = shots.Shot("roll.mp4", path=save_video(tmp_path / "0.mp4"))
    done = shots.look(service, shot, "original")
    assert len(done.found) == len(shot.jpegs) == 30 and shot.times_s == sorted(shot.times_s)
    again = shots.look(service, shot, "original+int8", told=lambda count: count < 4)
    assert len(again.found) == 4 and set(shot.passes) == {"original", "original+int8"}
    shots.look_again(service, shot, ["original", "original+int8"], 3, 2)
    assert len(shot.passes["original"].again_ms) == 2
    assert service.metrics.requests == asked + 30 + 4 + 2 * 2


# -- Counts -----------------------------------------------------------------------------------------------------------


def row(start: float, value: float | None, covered: float = 1.0) -> CountRow:
    return CountRow(start=start, seconds=10, source="door", rule="", class_name="ball", measure="seen", value=value,
                    covered=covered if value is not None else 0.0)  # fmt: skip


def test_a_gap_is_a_gap_and_never_zero():
    series = [row(0, 1), row(10, None), row(20, None), row(30, 0), row(40, None)]
    assert counts._gaps(series) == [(10, 30), (40, 50)]
    drawn = counts._options([("ball", [(r.start, r.value) for r in series])], counts._gaps(series), bars=True)
    assert [value for _, value in drawn["series"][0]["data"]] == [1, None, None, 0, None]
    assert [[a["xAxis"], b["xAxis"]] for a, b in drawn["series"][0]["markArea"]["data"]] == [[1e4, 3e4], [4e4, 5e4]]
    line = counts._options([("ball", [(0, 1.0), (10, None)])], [], bars=False)
    assert line["series"][0]["connectNulls"] is False


def test_sums_and_means_leave_out_what_is_not_known():
    assert counts._summary([row(0, None)], True) == (None, None)
    assert counts._summary([row(0, 2), row(10, None), row(20, 5)], True) == (7, 5)
    assert counts._summary([row(0, 2, 0.5), row(10, 5, 1.0)], False) == (4.0, 5), "weighted by how much is known"


# -- Runs -------------------------------------------------------------------------------------------------------------


def test_a_demos_run_has_the_demos_name(tmp_path: Path):
    for place in ("first", "demo/run"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "run.json").write_text("{}")
    (tmp_path / "demo" / "run" / "report.html").write_text("<p>")
    runs = Runs(tmp_path)
    assert {info.id for info in runs.list()} == {"first", "demo"}
    assert runs.report("demo") == tmp_path / "demo" / "run" / "report.html"


# -- what comes from outside ------------------------------------------------------------------------------------------


def test_tables_escape():
    assert "<script>" not in table_html(("<script>",), (("<script>",),))


def test_figures_of_a_row_of_a_report():
    row = {
        "name": "pruned+int8", "params": 2_150_000, "gflops": None, "map50": 0.4921, "map50_drop": 9.43,
        "map50_drop_ci95": [5.81, 11.44], "file_bytes": {"openvino": 3_000_000}, "speedup": {"openvino-int8": 3.36},
        "latency_ms": {"onnxruntime": {"p50": 40.0}, "openvino-int8": {"p50": 17.84}},
    }  # fmt: skip
    figures = dict(row_figures(Texts("en"), row))
    assert figures == {
        "Parameters": "2.15 M", "mAP@0.5": "0.492", "mAP@0.5 lost, points [95 %]": "9.4 [5.8, 11.4]",
        "OpenVINO file": "3.0 MB", "OpenVINO, median": "17.8 ms", "Times as fast as the original": "3.36",
    }  # fmt: skip
    assert row_figures(Texts("zh"), {"params": None, "latency_ms": "nonsense", "speedup": []}) == []
