"""Build the site from README, CONTRIBUTING, CHANGELOG, docs and the benchmarks' results, offline.

    python docs/build.py                   -> build/site, every warning an error
    python docs/build.py --commands        writes docs/reference/commands.md from the help texts of the verbs

The site has the folders of the repository, so a relative link between two of these files works on both.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
SOURCE, SITE = ROOT / "build" / "source", ROOT / "build" / "site"
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
PARTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "docs", "configs", "benchmarks/results")
WIDTH = 100  # columns of the help texts


def main() -> int:
    """Build the site, or write the page of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="write docs/reference/commands.md instead")
    if parser.parse_args().commands:
        COMMANDS.write_text(commands_page())
        return 0
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    for part in PARTS:
        target = SOURCE / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__", "build.py"))
        else:
            shutil.copy(ROOT / part, target)
    zensical = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(zensical, cwd=ROOT, check=False).returncode


def commands_page() -> str:
    """Help text of every verb, as Markdown."""
    from zoo.cli.main import main as zoo  # not needed for the site
    from zoo.cli.verbs import VERBS

    lines = ["# Commands", "", "What `zoo <verb> --help` prints; `zoo fit --help-all` has every flag."]
    for verb in VERBS:
        text = io.StringIO()
        with patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1"), redirect_stdout(text):
            zoo([verb, "--help"])
        lines += ["", f"## zoo {verb}", "", "```text", text.getvalue().rstrip(), "```"]
        picture = COMMANDS.parents[1] / "pictures" / f"{verb}.svg"
        if picture.exists():
            lines += ["", f"![zoo {verb}](../pictures/{picture.name})"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
