"""Blocks of code of README and docs, and running them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT
from processes import SECONDS

_FENCED = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def read_snippets(document: str, language: str = "python") -> list[str]:
    """The blocks of a language in a document, as they stand."""
    return [block for found, block in read_blocks(document) if found == language]


def read_blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return _FENCED.findall((ROOT / document).read_text())


def read_commands(document: str) -> Iterator[list[str]]:
    """Words of each `zoo` command in the blocks of a document; of one in a sentence, too."""
    text = (ROOT / document).read_text().replace("zoo $fit", "zoo fit")
    blocks = [block for language, block in _FENCED.findall(text) if language == "sh"]
    text = _FENCED.sub("", text)
    sentences = [f"{code}\n" for code in re.findall(r"`(zoo [^`]+)`", text)]
    for block in (*blocks, *_INDENTED.findall(text), *sentences):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|\s|/)zoo +([a-z].*)", re.sub(r"(^| )#.*", "", line))
            if command:
                yield command[1].replace("'", "").replace("\n", " ").split()


def run_snippet(snippet: str, folder: Path) -> str:
    """Standard output of a snippet that is run in its own process, in this working directory."""
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_commands(commands: str, folder: Path, project: Path = ROOT) -> str:
    """Standard output of a block of shell commands in this working directory; the first that fails ends it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    script = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(
        script, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout
