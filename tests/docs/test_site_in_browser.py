"""The site of `make docs` in headless Chromium: no errors, no requests elsewhere, accessible, searchable.

The tests are skipped where Chromium, its driver or their Python packages are absent.
"""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser import Browser, browser

__all__ = ["browser"]  # a fixture

PAGES = (
    "index",
    "docs/tutorials/your-images",
    "docs/how-to/choose",
    "docs/reference/python",
    "docs/explanation/papers",
)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: the search needs a server."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_errors_no_requests_elsewhere_and_fits(
    browser: Browser, address: str, page: str, width: int, scheme: str
) -> None:
    browser.open(f"{address}/{page}.html", width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.violations() == []
    assert [url for url in browser.requests() if not url.startswith((address, "blob:"))] == []
    assert [entry for entry in browser.errors() if entry["level"] == "SEVERE"] == []


def test_the_search_finds_a_page(browser: Browser, address: str) -> None:
    browser.open(f"{address}/index.html")
    browser.wait_for("document.querySelector('.md-search__button') !== null")
    browser.run("document.querySelector('.md-search__button').click()")
    browser.wait_for("document.activeElement.shadowRoot !== null")
    browser.press(*"hesterberg")
    browser.wait_for("document.activeElement.shadowRoot.textContent.includes('Intervals and verdicts')")
