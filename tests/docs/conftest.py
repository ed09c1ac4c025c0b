"""The site of `make docs`, built in a copy of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PARTS = ("zoo", "docs", "configs", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE")


@pytest.fixture(scope="session")
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
