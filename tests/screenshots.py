"""Makes the pictures of the pages in docs/images/ again, from a run of `hawkeye demo` and videos drawn here.

    python tests/screenshots.py runs/demo/run --out docs/images

Needs Chromium and its driver, and some Chinese font (Debian: fonts-wqy-microhei). Takes about six minutes, most of them
for counts to come together.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import cv2
from PIL import Image

from browsing import Browser, serving
from hawkeye.artifact import write_bytes
from hawkeye.scene_plans import make_video
from hawkeye.scene_videos import SceneVideo
from hawkeye.serve.app import build_app
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.core import Service
from hawkeye.serve.schemas import RuleSpec, SourceSpec
from hawkeye.track.rules import Line
from live_fakes import mjpeg_camera

# name, scenario, seed, how it comes
SOURCES = (("gate", "crossing", 1, "camera"), ("yard", "crowd", 3, "file"), ("street", "reentry", 4, "file"))
DESKTOP, TELEPHONE = (1280, 860), (390, 844)
MAX_BYTES = 250_000


class Camera:
    """Plays a video as MJPEG, and is away for a while, so that there is a gap to be seen."""

    def __init__(self, video: SceneVideo) -> None:
        self._pictures = [cv2.imencode(".jpg", frame.image)[1].tobytes() for frame in video.frames()]
        self.on = True

    def __call__(self, send: Callable[[bytes], None], visit: int) -> None:
        number, began = 0, time.monotonic()
        while self.on:
            send(self._pictures[number % len(self._pictures)])
            number += 1
            time.sleep(max(0.0, began + number / 25 - time.monotonic()))


def rules_of(video: SceneVideo) -> list[RuleSpec]:
    """The lines and zones that the video was planned for, as fractions of its picture."""
    width, height = video.size
    made = []
    for rule in video.rules:
        points = (rule.start, rule.end) if isinstance(rule, Line) else rule.points
        kind = "line" if isinstance(rule, Line) else "zone"
        made.append(RuleSpec(kind=kind, name=rule.name, points=tuple((x / width, y / height) for x, y in points)))
    return made


def save_video(video: SceneVideo, path: Path) -> Path:
    """The video as a file; one of its frames as a picture beside it."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), video.fps, video.size)
    for frame in video.frames():
        writer.write(frame.image)
        if frame.index == len(video) // 2:
            cv2.imwrite(str(path.with_suffix(".png")), frame.image)
    writer.release()
    return path


class Camerawoman:
    """Takes the pictures.

    Args:
        browser: shows the pages.
        out: folder for the pictures.
    """

    def __init__(self, browser: Browser, out: Path) -> None:
        self._browser, self._out = browser, out

    def visit(self, path: str, *, language: str = "en", theme: str = "light",
              size: tuple[int, int] = DESKTOP, rest_s: float = 3.0) -> None:  # fmt: skip
        """Open a page and let it come to rest."""
        self._browser.cookies(hawkeye_language=language, hawkeye_theme=theme)
        self._browser.size(*size)
        self._browser.open(path)
        time.sleep(rest_s)

    def take(self, name: str) -> None:
        """Take a picture of the window, with few enough colours to be small."""
        picture = Image.open(io.BytesIO(self._browser.driver.get_screenshot_as_png())).convert("RGB")
        for colours in (256, 192, 128, 64):
            palette = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=2)
            body = io.BytesIO()
            picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(body, "PNG", optimize=True)
            if body.tell() <= MAX_BYTES:
                break
        write_bytes(self._out / f"{name}.png", body.getvalue())
        print(f"{name}: {body.tell() / 1000:.0f} kB, {colours} colours", flush=True)


def shoot(browser: Browser, service: Service, out: Path, media: Path) -> None:
    """All pictures."""
    her = Camerawoman(browser, out)

    def busy(source: str, least: int) -> None:
        """Wait for a moment when something can be seen."""
        browser.until(lambda: sum((service.source(source).now or {}).values()) >= least, timeout_s=60)

    her.visit("/", size=(1280, 900))
    busy("yard", 8)
    her.take("live")
    her.visit("/", language="zh", theme="dark", size=(1280, 900))
    busy("yard", 8)
    her.take("live-zh-dark")
    her.visit("/", language="zh", size=TELEPHONE)
    busy("gate", 4)
    her.take("live-zh-phone")
    her.visit("/")
    browser.click(".hk-source button", "Draw")
    browser.until(lambda: browser.all(".q-dialog .hk-picture circle"))
    browser.click(".q-dialog .q-expansion-item")
    time.sleep(1.5)
    busy("gate", 4)
    her.take("draw")
    her.visit("/detect")
    browser.give(media / "yard.png")
    browser.until(lambda: "median of" in browser.text(".hk-side"), timeout_s=60)
    time.sleep(1.0)
    browser.script("window.scrollTo(0, document.querySelector('.hk-side').offsetTop - 70)")
    her.take("detect")
    her.visit("/counts", theme="dark")
    browser.click(".q-select", "Period")
    browser.click(".q-menu .q-item", "5 min")
    browser.click(".q-select", "Measure")
    browser.click(".q-menu .q-item", "in the picture, mean")
    time.sleep(2.0)
    her.take("counts")
    other = next(info.id for info in service.models() if info.id == "original")
    service.start_comparison(other, every=5)
    time.sleep(15.0)
    her.visit("/models", size=(1280, 1000))
    her.take("models")
    service.stop_comparison()
    her.visit("/runs", theme="dark", size=(1280, 480))
    her.take("runs")
    her.visit("/system")
    her.take("system")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished `hawkeye demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--minutes", type=float, default=4.5, help="how long counts come together")
    wanted = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        service = Service(ServeConfig(model=str(wanted.run), runs=wanted.run.parent.parent, state=folder / "state",
                                      media=folder, networks=("127.0.0.0/8",)))  # fmt: skip
        service.start()
        address = stack.enter_context(serving(build_app(service)))
        for name, scenario, seed, kind in SOURCES:
            video = make_video(scenario, seed=seed)
            file = save_video(video, folder / f"{name}.mp4")
            if kind == "camera":
                camera = Camera(video)
                place = stack.enter_context(mjpeg_camera(camera)).partition("?")[0]
            service.add_source(SourceSpec(address=place if kind == "camera" else file.name, name=name, loop=True))
            for rule in rules_of(video):
                service.set_rule(name, rule)
        away = [threading.Timer(60.0 * share * wanted.minutes, setattr, (camera, "on", on))
                for share, on in ((0.4, False), (0.55, True))]  # fmt: skip
        for timer in away:
            timer.daemon = True
            timer.start()
        time.sleep(60.0 * wanted.minutes)
        browser = Browser(address, folder)
        stack.callback(browser.close)
        shoot(browser, service, wanted.out, folder)


if __name__ == "__main__":
    main()
