"""Headless Chromium for tests; a module that imports this is skipped where the browser or its packages are absent."""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from processes import SECONDS

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui", reason="needs selenium").WebDriverWait
axe_core = pytest.importorskip("axe_core_python", reason="needs axe-core-python")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs Chromium and chromedriver", allow_module_level=True)


class PatientChrome(webdriver.Chrome):
    """Chrome with timeouts against hanging only, so that tests pass on a busy machine."""

    def start_session(self, capabilities: dict[str, Any]) -> None:
        self.command_executor.client_config.timeout = SECONDS  # of every command, including this one
        super().start_session(capabilities)
        self.set_page_load_timeout(SECONDS)
        self.set_script_timeout(SECONDS)


class Browser:
    """Headless Chromium with helpers for the tests."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.add_experimental_option("browserStartupTimeout", SECONDS * 1000)
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = PatientChrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_window_size(1400, 900)
        self.numbers = count()

    def open(self, page: Path | str, width: int = 1400, media: str = "screen", scheme: str = "light") -> None:
        """Load a file or a URL with a window width, media type and colour scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self._load("about:blank")  # so that opening the same page again loads it
        self.errors(), self.requests()  # discard earlier entries
        self._load(page if isinstance(page, str) else page.as_uri())

    def _load(self, url: str) -> None:
        """Load a page and wait until it is complete: on a busy machine the driver may return too early."""
        self.driver.get(url)
        state = "return [location.href, document.readyState]"
        WebDriverWait(self.driver, SECONDS).until(lambda driver: driver.execute_script(state) == [url, "complete"])

    def run(self, script: str, *arguments: object) -> object:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def _read_log(self, name: str, end: str) -> list[dict[str, Any]]:
        """Wait for the log entry that contains `end`, and return all entries since the last call."""
        entries: list[dict[str, Any]] = []

        def has_end(driver: Any) -> bool:
            new = driver.get_log(name)
            entries.extend(new)
            return any(end in entry["message"] for entry in new)

        WebDriverWait(self.driver, SECONDS, poll_frequency=0.02).until(has_end)
        return entries

    def errors(self) -> list[dict[str, Any]]:
        """Entries of the browser log since the last call, up to a message that is logged here and left out."""
        end = f"end-{next(self.numbers)}"
        self.driver.execute_script("console.log(arguments[0])", end)
        return [entry for entry in self._read_log("browser", end) if end not in entry["message"]]

    def press(self, *keys: str) -> None:
        """Send keys to the focused element."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def requests(self) -> list[str]:
        """URLs requested since the page was opened, from the network log; the page itself is the first.

        Requests blocked by the page's policy are not among them: these are errors in the browser log. `data:` URLs are
        left out. The log is read up to a change of the URL's fragment that is made here.
        """
        end = f"end-{next(self.numbers)}"
        self.driver.execute_script("location.hash = arguments[0]", end)
        entries = self._read_log("performance", end)
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = {"Network.requestWillBeSent", "Network.webSocketCreated", "Network.webTransportCreated"}
        requests = [message["params"] for message in messages if message["method"] in sent]
        urls = [params["request"]["url"] if "request" in params else params["url"] for params in requests]
        return [url for url in urls if not url.startswith("data:")]

    def swipe(self, selector: str, right: int, down: int) -> None:
        """Scroll an element into view, and move a thumb over its middle by this many pixels."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + Math.min(r.height / 2, 200)]",
            selector,
        )
        steps = 10
        places = [{"x": x + right * step / steps, "y": y + down * step / steps} for step in range(steps + 1)]
        for kind, points in (("touchStart", places[:1]), *(("touchMove", [p]) for p in places[1:]), ("touchEnd", [])):
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true: a browser scrolls a little later than it is told to."""
        WebDriverWait(self.driver, SECONDS).until(lambda driver: driver.execute_script(f"return {script}"))

    def violations(self) -> list[dict[str, Any]]:
        """Serious and critical violations of accessibility rules that axe-core finds in the page."""
        self.run((Path(axe_core.__file__).parent / "axe.min.js").read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations.map(v => "
            "({id: v.id, impact: v.impact, nodes: v.nodes.slice(0, 3).map(n => n.html.slice(0, 200))}))))"
        )
        return [violation for violation in found if violation["impact"] in ("serious", "critical")]

    def choose(self, selector: str, at: int) -> None:
        """Select an option by index and fire the change event."""
        self.run(
            "const s = document.querySelector(arguments[0]); s.selectedIndex = arguments[1];"
            "s.dispatchEvent(new Event('change'));",
            selector,
            at,
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a module."""
    browser = Browser()
    yield browser
    browser.driver.quit()
