"""All pages in a real browser: both languages, colours, a telephone's width, and what each of them is for."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from browsing import Browser
from follower_ir import frames, save_video

pytestmark = pytest.mark.browser
pytest.importorskip("nicegui")

from hawkeye.serve.core import Service  # noqa: E402
from hawkeye.serve.schemas import RuleSpec  # noqa: E402
from hawkeye.serve.security import COOKIE, Security  # noqa: E402
from hawkeye.serve.texts import TEXTS  # noqa: E402

NAMELESS = """
    const text = (e) => e.getAttribute('aria-label') || e.innerText || '';
    return [...document.querySelectorAll('a, button, input, [role=button], [role=slider]')]
        .filter((e) => e.offsetParent && e.tabIndex >= 0 && !text(e).trim() && !e.labels?.length && !e.closest('label'))
        .map((e) => e.outerHTML.slice(0, 200));"""
PAGES = ("live", "detect", "counts", "models", "runs", "system")


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Each test begins as an English desktop, and ends without complaints in the console."""
    browser.cookies(hawkeye_language="", hawkeye_theme="light", **{COOKIE: ""})
    browser.size()
    browser.errors()
    yield
    assert browser.errors() == []


def path(page: str) -> str:
    return "/" if page == "live" else f"/{page}"


@pytest.mark.parametrize(("language", "column"), [("en", 0), ("zh", 1)])
def test_every_page_in_each_language_and_on_a_telephone(browser: Browser, language: str, column: int):
    browser.cookies(hawkeye_language=language, hawkeye_theme="dark" if column else "light")
    for page in PAGES:
        browser.size()
        browser.open(path(page))
        assert browser.find("h1").text == TEXTS[f"nav.{page}"][column]
        assert browser.script("return document.documentElement.lang") == ("zh-CN" if column else "en-US")
        assert (
            browser.script("return document.querySelector('[aria-current=page]').innerText") == browser.find("h1").text
        )
        browser.until(lambda: browser.script("return document.body.classList.contains('body--dark')") == bool(column))
        if page in ("counts", "system"):
            browser.until(lambda: browser.all(".hk-chart canvas"))
        assert browser.overflow() == 0, f"{page} on a desktop"
        browser.size(390, 844)
        time.sleep(0.2)
        assert browser.overflow() == 0, f"{page} at 390 pixels"
        # What can be clicked has a name for those who do not see it.
        assert browser.script(NAMELESS) == [], page


def test_the_language_is_the_browsers_until_another_is_chosen(browser: Browser):
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Accept-Language": "zh-CN,zh;q=0.9"}})
    try:
        browser.open("/runs")
        assert browser.find("h1").text == TEXTS["runs.title"][1]
        browser.click("button[lang=en]")
        browser.until(lambda: browser.text("h1") == TEXTS["runs.title"][0])
        browser.open("/system")
        assert browser.find("h1").text == TEXTS["system.title"][0], "remembered"
        browser.click("button[lang=zh]")
        browser.until(lambda: browser.text("h1") == TEXTS["system.title"][1])
    finally:
        browser.driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {}})


def test_colours_are_switched_and_remembered(browser: Browser):
    browser.open("/runs")
    dark = "return document.body.classList.contains('body--dark')"
    assert not browser.script(dark)
    browser.click(f'button[aria-label="{TEXTS["theme.light"][0]}"]')
    browser.until(lambda: browser.script(dark))
    browser.open("/models")
    browser.until(lambda: browser.script(dark))


# -- Detect -----------------------------------------------------------------------------------------------------------


def downloaded(browser: Browser, name: str) -> Path:
    file = browser.downloads / name
    browser.until(lambda: file.is_file() and file.stat().st_size > 0, name)
    return file


def test_a_picture_is_dropped_compared_filtered_and_saved(browser: Browser, service: Service, tmp_path: Path):
    cv2.imwrite(str(tmp_path / "ball.png"), next(frames()))
    browser.open("/detect")
    browser.give(tmp_path / "ball.png")
    browser.until(lambda: browser.text(".hk-side").count("1 object") == 2, "both models have found it")
    text = browser.text(".hk-side")
    assert "original+int8" in text and "original" in text and text.count("network") >= 2
    assert "in all" in browser.text(".hk-side"), "time per stage"
    asked = service.metrics.requests
    slider = '[role=slider][aria-label="Score at least"] [tabindex]'
    browser.script("document.querySelector(arguments[0]).focus()", slider)
    browser.press(*["\ue00e"] * 20)  # Page Up, to the strictest
    browser.until(lambda: browser.text(".hk-side").count("0 objects") == 2)
    assert "1 more below this score" in browser.text(".hk-side")
    browser.press(*["\ue00f"] * 20)  # Page Down
    browser.until(lambda: browser.text(".hk-side").count("1 object") == 2)
    assert service.metrics.requests == asked, "the network was not asked again"
    assert "times as fast as" in browser.text(".hk-side") and "median of 5 passes" in browser.text(".hk-side")
    browser.click("button", "JSON")
    told = json.loads(downloaded(browser, "ball.json").read_text())
    assert [row["name"] for row in told["frames"][0]["detections"]] == ["ball"]
    browser.click("button", "CSV")
    rows = list(csv.DictReader(downloaded(browser, "ball.csv").open()))
    assert [row["name"] for row in rows] == ["ball"]
    browser.click("button", "Picture with boxes")
    assert cv2.imread(str(downloaded(browser, "ball.jpg"))).shape == (180, 320, 3)
    browser.click("button", "Measure again")
    browser.until(lambda: "median of 15 passes" in browser.text(".hk-side"))
    browser.size(390, 844)
    time.sleep(0.2)
    assert browser.overflow() == 0


def test_a_video_is_dropped_and_a_text_is_refused(browser: Browser, tmp_path: Path):
    browser.open("/detect")
    browser.give(save_video(tmp_path / "roll.mp4"))
    browser.until(lambda: "Frame at 0.00 s" in browser.text(".hk-side"))
    browser.until(lambda: browser.text(".hk-side").count("1 object") == 2)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    browser.give(tmp_path / "broken.png")
    browser.until(lambda: "not a picture" in browser.text(".q-notifications"))


# -- Counts -----------------------------------------------------------------------------------------------------------


def test_counts_of_a_line_are_shown_and_exported(browser: Browser, service: Service):
    service.set_rule("roll", RuleSpec(kind="line", name="gate", points=((0.5, 0.0), (0.5, 1.0))))
    try:
        browser.until(lambda: service.source("roll").totals.get("gate", {}).get("in", 0) >= 1)
        time.sleep(1.2)  # until it is written
        browser.open("/counts")
        browser.until(lambda: "data for" in browser.text("main"))
        assert "Shaded: no data" in browser.text("main"), "the hour before the service was there"
        browser.click(".q-select", "Line or zone")
        browser.click(".q-menu .q-item", "gate")
        browser.until(lambda: "crossed, in" in browser.script(
            "return [...document.querySelectorAll('.q-select')].map((e) => e.innerText).join()"))  # fmt: skip
        browser.until(lambda: "ball" in browser.text("main table"))
        browser.click("button", "CSV")
        rows = list(csv.DictReader(downloaded(browser, "counts-roll.csv").open()))
        assert {"gate", ""} == {row["rule"] for row in rows} and any(row["value"] == "" for row in rows)
        browser.click("button", "Parquet")
        assert downloaded(browser, "counts-roll.parquet").read_bytes()[:4] == b"PAR1"
    finally:
        service.remove_rule("roll", "gate")


def test_what_was_removed_is_offered_and_days_are_those_of_the_browser(browser: Browser, service: Service):
    yesterday = int(time.time()) - 86_400
    service.store.add({(yesterday, "gone", "gate", "", "line_s"): 1.0, (yesterday, "gone", "gate", "ball", "in"): 3.0})
    browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
    try:
        browser.open("/counts")
        for field, text in (("Source", "gone (removed)"), ("Line or zone", "gate (removed)"), ("Period", "7 d"),
                            ("automatic", "1 d")):  # fmt: skip
            browser.click(".q-select", field)
            browser.click(".q-menu .q-item", text)
            browser.until(lambda: not browser.all(".q-menu"))
        browser.until(lambda: "ball" in browser.text("main table"))
        browser.click("button", "CSV")
        rows = list(csv.DictReader(downloaded(browser, "counts-gone.csv").open()))
        assert {(float(row["start"]) + 5.5 * 3600) % 86_400 for row in rows} == {0.0}
        assert "3.0" in {row["value"] for row in rows if row["measure"] == "in"}
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


# -- Models -----------------------------------------------------------------------------------------------------------


def test_a_model_is_switched_without_dropping_a_frame_and_rolled_back(browser: Browser, service: Service):
    before = service.served
    assert before == "original+int8"
    drops, done = service.source("roll").drops, service.source("roll").done
    browser.open("/models")
    browser.click("[data-model=original] button", "Serve this")
    browser.click(".q-dialog button", "Serve this")
    browser.until(lambda: service.served == "original")
    browser.until(lambda: browser.text("[data-model=original] .hk-chip") == "served")
    browser.until(lambda: service.source("roll").done > done + 10)
    assert service.source("roll").drops - drops <= 1 and service.source("roll").lost == 0
    browser.click("button", "Roll back")
    browser.click(".q-dialog button", "Roll back")
    browser.until(lambda: service.served == before)


def test_two_models_are_compared_on_live_frames(browser: Browser, service: Service):
    browser.open("/models")
    browser.until(lambda: browser.find("button", "Compare").is_enabled())
    browser.type('input[aria-label="Every n-th frame"]', "2")
    browser.click("button", "Compare")
    browser.until(lambda: "100.0%" in browser.text("main"), "both agree")
    assert "frames compared" in browser.text("main")
    browser.click("button", "End the comparison")
    browser.until(lambda: service.comparison() is None)


# -- Runs and System --------------------------------------------------------------------------------------------------


def test_runs_show_progress_and_reports(browser: Browser, service: Service):
    folder = service.config.runs
    (folder / "first").mkdir(parents=True)
    (folder / "second" / "2-recover").mkdir(parents=True)
    (folder / "first" / "run.json").write_text('{"started": "2026-01-02T03:04:05Z"}')
    (folder / "first" / "report.json").write_text('{"headline": ["twice as <b>fast</b>"]}')
    (folder / "first" / "report.html").write_text("<h1>The report</h1><script>document.title = 'ran'</script>")
    (folder / "second" / "run.json").write_text("{}")
    progress = folder / "second" / "2-recover" / "progress.json"
    progress.write_text('{"progress": 0.25, "note": "step 10 of 40"}')
    browser.open("/runs")
    browser.until(lambda: "step 10 of 40" in browser.text("main") and "25%" in browser.text("main"))
    assert "twice as <b>fast</b>" in browser.text("main"), "escaped"
    progress.write_text('{"progress": 0.5, "note": "step 20 of 40"}')
    browser.until(lambda: "50%" in browser.text("main"), "it goes on by itself")
    browser.driver.get(browser.find("main a", "Report").get_attribute("href"))
    assert browser.find("h1").text == "The report" and browser.driver.title != "ran", "no script of a report runs"
    browser.errors()  # Chromium tells that the script was blocked


def test_system_tells_how_it_does(browser: Browser):
    browser.open("/system")
    browser.until(lambda: "live, frame to result" in browser.text("main"))
    text = browser.text("main")
    for words in ("CPU, this service", "Memory", "Running for", "Frames dropped", "Queues", "counts are kept"):
        assert words in text
    assert "source roll" in browser.text(".hk-log")


# -- who may what -----------------------------------------------------------------------------------------------------


def test_a_viewer_looks_and_changes_nothing_until_the_token_is_taken_back(browser: Browser, service: Service,
                                                                          security: Security):  # fmt: skip
    token = security.tokens.add("watch", "viewer")
    try:
        browser.driver.get(f"{browser.address}/models")
        assert "/sign-in" in browser.driver.current_url
        browser.type("input[name=token]", token)
        browser.click("button")
        browser.until(lambda: browser.all("[data-model=original]"))
        assert not [e for e in browser.all("button") if e.text in ("Serve this", "Roll back", "Compare")]
        browser.open("/")
        browser.find(".hk-source")
        assert not [e for e in browser.all("button") if e.text in ("Draw", "Add a source")]
        browser.open("/system")
        browser.until(lambda: "For operators" in browser.text(".hk-log"))
        security.tokens.remove("watch")
        security.tokens.add("other", "admin")  # so that a token is needed still
        browser.until(lambda: "/sign-in" in browser.driver.current_url, "out within seconds")
    finally:
        for info in security.tokens.list():
            security.tokens.remove(info.name)
    browser.errors()  # the refused connection


def test_whoever_sees_some_sources_may_not_test_an_address(browser: Browser, security: Security):
    token = security.tokens.add("held", "operator", ["roll"])
    try:
        browser.driver.get(browser.address)
        browser.type("input[name=token]", token)
        browser.click("button")
        browser.click("button", "Add a source")
        browser.type(".q-dialog input[type=text]", "0")
        browser.click(".q-dialog button", "Test")
        browser.until(lambda: TEXTS["live.test.held"][0] in browser.text(".q-notifications"))
        assert not browser.text(".hk-test"), "no picture of it"
    finally:
        for info in security.tokens.list():
            security.tokens.remove(info.name)
