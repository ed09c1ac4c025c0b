"""The site of `make docs`: it builds without a warning, its links lead somewhere, and it works in headless Chromium."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser, browser
from paths import ROOT

__all__ = ["browser"]  # a fixture

PAGES = (
    "index",
    "docs/tutorials/your-images",
    "docs/how-to/choose",
    "docs/reference/python",
    "docs/explanation/papers",
)
PARTS = ("zoo", "docs", "configs", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what refers and what can be referred to."""
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "base":
                self.links.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a copy of the project."""
    copy = tmp_path_factory.mktemp("project")
    for part in (*PARTS, "zensical.toml"):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(ROOT / part, copy)
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: the search needs a server."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_links_of_the_pages_lead_to_files_and_anchors(site: Path) -> None:
    reports = {file for file in site.rglob("report.html") if (file.parent / "results.json").exists()}  # zoo's own pages
    pages = {file: Page(file) for file in site.rglob("*.html") if file not in reports}
    assert len(pages) > 40
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data") or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            known = pages[target].anchors if target in pages else None
            if not target.is_file() or (parts.fragment and known is not None and unquote(parts.fragment) not in known):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text()
    pages = [file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f'"{page}"' not in navigation] == []


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


def test_the_page_of_the_commands_is_that_of_today() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    committed = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert committed == build.commands_page(), "python docs/build.py --commands writes it"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
