"""The page "Live" in a real browser: pictures, lines drawn with mouse and keyboard, sources that come and go."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from browsing import Browser
from follower_ir import frames
from live_fakes import jpeg, mjpeg_camera

pytestmark = pytest.mark.browser
pytest.importorskip("nicegui")

from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.schemas import RuleSpec, SourceSpec  # noqa: E402

EDITOR = ".q-dialog .hk-picture svg"


@pytest.fixture(autouse=True)
def clean(service: Service, browser: Browser) -> Iterator[None]:
    """Each test begins without lines and zones, in English, and ends without complaints in the console."""
    for rule in service.rules("roll"):
        service.remove_rule("roll", rule.name)
    browser.cookies(hawkeye_language="en", hawkeye_theme="light", hawkeye_session="")
    browser.size()
    browser.errors()
    yield
    assert browser.errors() == []


def editor(browser: Browser) -> None:
    """Open the dialog in which lines are drawn, and wait for its picture."""
    browser.open("/")
    browser.click(".hk-source button", "Draw")
    browser.until(lambda: browser.find(EDITOR).rect["height"] > 100)
    browser.until(lambda: browser.find(".q-dialog button", "Draw a line").is_enabled())
    time.sleep(0.4)  # the dialog has come to rest


def test_the_picture_moves_with_at_least_ten_frames_a_second(browser: Browser):
    browser.open("/")
    browser.until(lambda: "fps" in browser.text(".hk-facts"))
    shown = """
        const canvas = document.querySelector('.hk-source canvas'), pen = canvas.getContext('2d');
        const seen = []; let last = ''; const end = performance.now() + 2000, done = arguments[0];
        const look = () => {
          const now = pen.getImageData(0, canvas.height * 100 / 180, canvas.width, 1).data.join();
          if (now !== last) { seen.push(performance.now()); last = now; }
          performance.now() < end ? requestAnimationFrame(look) : done(seen.length);
        };
        look();"""
    browser.until(lambda: browser.driver.execute_async_script(shown) / 2.0 >= 10, "ten frames a second")
    browser.errors()  # Chromium advises against reading the canvas, as only this test does


def test_a_line_is_drawn_with_the_mouse_and_counts(browser: Browser, service: Service):
    editor(browser)
    browser.click(".q-dialog button", "Draw a line")
    browser.drag(EDITOR, (0.5, 0.1), (0.5, 0.95))
    browser.until(lambda: service.rules("roll"))
    [rule] = service.rules("roll")
    assert rule.kind == "line"
    assert [round(v, 1) for point in rule.points for v in point] == pytest.approx([0.5, 0.1, 0.5, 0.9], abs=0.11)
    browser.until(lambda: service.source("roll").totals.get(rule.name, {}).get("in", 0) >= 1)
    browser.click('.q-dialog button[aria-label="Close"]')
    counted = rf"{rule.name}\s+[1-9]\d*\s+\d+"
    browser.until(lambda: re.search(counted, browser.text(".hk-source .hk-beside")))

    # Moved with the mouse, its first point to the right; that another source comes meanwhile disturbs nobody.
    browser.click(".hk-source button", "Draw")
    service.add_source(SourceSpec(address="roll.mp4", name="other"))
    browser.until(lambda: browser.all("[data-source=other]"))
    service.remove_source("other")
    browser.until(lambda: not browser.all("[data-source=other]"))
    browser.drag(EDITOR, (rule.points[0][0], rule.points[0][1]), (0.7, 0.1))
    browser.until(lambda: abs(service.rules("roll")[0].points[0][0] - 0.7) < 0.03)


def test_a_zone_is_drawn_corner_by_corner(browser: Browser, service: Service):
    editor(browser)
    browser.click(".q-dialog button", "Draw a zone")
    for corner in ((0.1, 0.2), (0.4, 0.2), (0.4, 0.9), (0.1, 0.9)):
        browser.drag(EDITOR, corner, corner)
    browser.press("\ue007")  # Enter closes it
    browser.until(lambda: service.rules("roll"))
    [rule] = service.rules("roll")
    assert rule.kind == "zone" and len(rule.points) == 4
    browser.until(lambda: service.source("roll").totals.get(rule.name, {}).get("enter", 0) >= 1)
    browser.click(".q-dialog button", "Delete")
    browser.until(lambda: not service.rules("roll"))


def test_all_of_it_with_the_keyboard(browser: Browser, service: Service):
    editor(browser)
    browser.script("arguments[0].focus()", browser.find(".q-dialog button", "Line in the middle"))
    browser.press("\ue007")
    browser.until(lambda: service.rules("roll"))
    before = service.rules("roll")[0]
    # With the arrow keys on the picture,
    browser.until(lambda: browser.all(f"{EDITOR} circle"))
    browser.script("arguments[0].focus()", browser.all(f"{EDITOR} circle")[0])
    outline = browser.script("return getComputedStyle(document.activeElement).fill")
    assert outline != "rgb(255, 255, 255)", "the focus can be seen"
    browser.press(*["\ue015"] * 4)  # down
    browser.until(lambda: service.rules("roll")[0].points[0][1] > before.points[0][1])
    # and in figures.
    fields = '.q-dialog input[aria-label="Point 2, from the left"]'
    browser.until(lambda: browser.all(fields))
    browser.type(fields, "80")
    browser.click(".q-dialog button", "Save")
    browser.until(lambda: service.rules("roll")[0].points[1][0] == 0.8)
    browser.type('.q-dialog input[aria-label="Name"]', "\ue003")
    browser.click(".q-dialog button", "Save")
    browser.until(lambda: "Give it a name" in browser.text("body"))
    assert len(service.rules("roll")) == 1


def test_tab_reaches_everything_and_the_focus_is_seen(browser: Browser):
    browser.open("/")
    browser.find(".hk-source button", "Draw")
    reached, unseen = [], []
    for _ in range(16):
        browser.press("\ue004")
        name, marked = browser.script("""
            const e = document.activeElement, style = getComputedStyle(e);
            const outline = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
            return [e === document.body ? null : e.getAttribute('aria-label') || e.innerText,
                    outline || style.boxShadow.includes('5px')];""")
        if name is None:  # once around
            break
        reached.append(name)
        unseen += [] if marked else [name]
    assert reached[0] == "To the content"
    for name in ("Detect", "Counts", "System", "Change the language to Chinese", "Add a source", "Draw", "Remove roll"):
        assert any(name in other for other in reached), f"{name} not in {reached}"
    assert unseen == []


class Camera:
    """A camera that can be switched off: connections break and new ones are closed at once."""

    def __init__(self) -> None:
        self.on = True
        self._pictures = [jpeg(image) for image in frames()]

    def __call__(self, send: Callable[[bytes], None], visit: int) -> None:
        number = 0
        while self.on:
            send(self._pictures[number % len(self._pictures)])
            number += 1
            time.sleep(1 / 15)


def test_a_source_dies_and_comes_back(browser: Browser, service: Service):
    camera = Camera()
    with mjpeg_camera(camera) as address:
        service.add_source(SourceSpec(address=address, name="cam"))
        try:
            browser.open("/")
            chip = "[data-source=cam] .hk-chip"
            browser.until(lambda: browser.text(chip) == "live")
            browser.until(lambda: "ball" in browser.text("[data-source=cam]"))
            camera.on = False
            browser.until(lambda: browser.text(chip) in ("reconnecting", "no data"))
            browser.until(lambda: "–" in browser.text("[data-source=cam] .hk-table"), "not known, and not zero")
            assert browser.text("[data-source=roll] .hk-chip") == "live", "the other one goes on"
            camera.on = True
            browser.until(lambda: browser.text(chip) == "live", timeout_s=25)
            assert "secret" not in browser.driver.page_source
        finally:
            service.remove_source("cam")
        browser.until(lambda: "cam" not in browser.text("main"), "its card goes by itself")


def test_a_source_is_tested_added_and_removed(browser: Browser, service: Service):
    browser.open("/")
    browser.click("button", "Add a source")
    address = '.q-dialog input[aria-label^="File, camera"]'
    browser.type(address, "http://127.0.0.1:9/nothing?password=secret")
    browser.click(".q-dialog button", "Test")
    browser.until(lambda: "It does not work" in browser.text(".hk-test"))
    assert "127.0.0.1" in browser.text(".hk-test") and "secret" not in browser.text(".hk-test")
    browser.type(address, "http://169.254.169.254/latest")
    browser.click(".q-dialog button", "Test")
    browser.until(lambda: "link-local" in browser.text(".hk-test"))
    browser.type(address, "roll.mp4")
    browser.type('.q-dialog input[aria-label="Name"]', "second")
    browser.click(".q-dialog button", "Test")
    browser.until(lambda: "320 x 180" in browser.text(".hk-test"))
    assert browser.all(".hk-test img")
    browser.click(".q-dialog button", "Add a source")
    browser.until(lambda: browser.text("[data-source=second] .hk-chip") in ("live", "ended"))
    browser.click('[data-source=second] button[aria-label="Remove second"]')
    browser.click(".q-dialog button", "Remove")
    browser.until(lambda: "second" not in [info.name for info in service.sources()])
    browser.until(lambda: not browser.all("[data-source=second]"))


def test_lines_of_the_api_are_shown_and_counted_by_class(browser: Browser, service: Service):
    service.set_rule("roll", RuleSpec(kind="line", name="gate", points=((160, 18), (160, 170)), classes=("ball",)))
    browser.open("/")
    drawn = "return document.querySelector('.hk-source .hk-picture svg').textContent"
    browser.until(lambda: "gate" in browser.script(drawn))
    browser.until(lambda: re.search(r"gate\s+\d+\s+\d+", browser.text(".hk-source .hk-beside")))
