"""The site of `make docs` builds without a warning, and its links lead somewhere."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from paths import ROOT


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


def test_the_page_of_the_commands_is_that_of_today() -> None:
    """In a process of its own, since the help lists all sources, also those that other tests define."""
    script = "import sys; sys.path.insert(0, 'docs'); import build; sys.stdout.write(build.commands_page())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    committed = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert committed == done.stdout, "python docs/build.py --commands writes it"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
