"""Python snippets of README and docs, and running them."""

import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT
from processes import SECONDS


def read_snippets(document: str) -> list[str]:
    """The Python blocks of a document, as they stand."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def run_snippet(snippet: str, folder: Path) -> str:
    """Standard output of a snippet that is run in its own process, in this working directory."""
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
