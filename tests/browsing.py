"""What tests with a real browser share: the service on a free port of this machine, and headless Chromium."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

_WAIT_S = 15.0
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--disable-dev-shm-usage")  # fmt: skip


def missing() -> str | None:
    """What is needed and not there."""
    absent = [name for name in ("nicegui", "uvicorn", "selenium") if importlib.util.find_spec(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: pip install 'hawkeye[serve,dev]'"
    if not any(map(shutil.which, _CHROMIUM)) or shutil.which("chromedriver") is None:
        return "needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)"
    return None


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The whole service over HTTP; gives its address."""
    import uvicorn

    from hawkeye.serve.server import Server

    server = Server(app)
    server.capture_signals = nullcontext  # type: ignore[method-assign]  # they are the test run's
    config: uvicorn.Config = server.config
    config.host, config.port = "127.0.0.1", 0
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not (server.started and app.state.service.ready()[0]):
        assert thread.is_alive() and time.monotonic() < end, "the service does not start"
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(15)


class Browser:
    """Chromium, with waiting built in.

    Args:
        address: of the service.
        language: what the browser says it prefers.
        downloads: folder for what is downloaded.
    """

    def __init__(self, address: str, downloads: Path, *, language: str = "en-US,en") -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service as Driver

        options = ChromeOptions()
        options.binary_location = next(found for name in _CHROMIUM if (found := shutil.which(name)))
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        for option in (*_OPTIONS, f"--user-data-dir={self._profile.name}"):
            options.add_argument(option)
        options.add_experimental_option("prefs", {"intl.accept_languages": language,
                                                  "download.default_directory": str(downloads)})  # fmt: skip
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.address, self.downloads = address, downloads
        self.driver: Chrome = Chrome(options=options, service=Driver(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(30)
        self.size()

    def close(self) -> None:
        """End it."""
        self.driver.quit()
        self._profile.cleanup()

    def size(self, width: int = 1280, height: int = 900) -> None:
        """Change the window, below 500 pixels to a telephone's."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})  # fmt: skip

    def cookies(self, **values: str) -> None:
        """Set or, where empty, delete cookies of the service."""
        if not self.driver.current_url.startswith(self.address):
            self.driver.get(f"{self.address}/assets/favicon.svg")
        for name, value in values.items():
            self.driver.delete_cookie(name)
            if value:
                self.driver.add_cookie({"name": name, "value": value})

    def open(self, path: str = "/") -> None:
        """Open a page and wait until it is connected."""
        self.driver.get(f"{self.address}{path}")
        self.until(lambda: self.script("return !!window.socket?.connected"))

    def script(self, code: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(code, *arguments)

    def all(self, css: str) -> list[WebElement]:
        """All elements of a CSS selector."""
        return self.driver.find_elements("css selector", css)

    def find(self, css: str, text: str | None = None) -> WebElement:
        """The first visible element of a CSS selector, with a text where one is given; waits for it."""
        found: list[WebElement] = []

        def there() -> bool:
            found[:] = [e for e in self.all(css) if e.is_displayed() and (text is None or text in e.text)]
            return bool(found)

        self.until(there, f"{css} {text or ''}")
        return found[0]

    def click(self, css: str, text: str | None = None) -> None:
        """Click what `find` finds, once nothing lies over it."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException

        def clicked() -> bool:
            try:
                self.find(css, text).click()
            except (ElementClickInterceptedException, StaleElementReferenceException):
                return False
            return True

        self.until(clicked, f"click {css}")

    def text(self, css: str = "body") -> str:
        """The text of an element; empty where there is none."""
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def type(self, css: str, text: str) -> None:
        """Replace what is in a field."""
        from selenium.webdriver import Keys

        self.find(css).send_keys(Keys.CONTROL, "a")
        self.find(css).send_keys(text)

    def give(self, path: Path) -> None:
        """Hand a file to the page's first field for files, shown or not."""

        def given() -> bool:
            self.script("document.querySelector('input[type=file]')?.style.setProperty('display', 'block')")
            fields = self.all("input[type=file]")
            if fields:
                fields[0].send_keys(str(path))
            return bool(fields)

        self.until(given, f"a field for {path.name}")

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def drag(self, css: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the mouse over an element; points are fractions of it."""
        from selenium.webdriver import ActionChains

        element = self.find(css)
        wide, high = element.rect["width"], element.rect["height"]

        def offset(point: tuple[float, float]) -> tuple[int, int]:  # Selenium counts from the middle
            return round((point[0] - 0.5) * wide), round((point[1] - 0.5) * high)

        chain = ActionChains(self.driver, duration=50).move_to_element_with_offset(element, *offset(start))
        halfway = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        chain.click_and_hold().move_to_element_with_offset(element, *offset(halfway))
        chain.move_to_element_with_offset(element, *offset(end)).release().perform()

    def until(self, condition: Callable[[], Any], what: str = "", timeout_s: float = _WAIT_S) -> None:
        """Wait for something."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except StaleElementReferenceException:
                pass  # the page has changed while it was being looked at
            assert time.monotonic() < end, f"waited in vain: {what}\n{self.text()[:2000]}"
            time.sleep(0.05)

    def errors(self) -> list[str]:
        """What the console has complained about since the last time."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))
