"""One owner for each folder, with real processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.errors import InputError
from zoo.io.ownership import own_folder

HOLD = """
import sys, time
from pathlib import Path
from zoo.io.ownership import own_folder
with own_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(600)
"""


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "owned\n"
        with pytest.raises(InputError) as caught, own_folder(folder):
            pass
        os.kill(other.pid, signal.SIGKILL)  # leaves its files behind
    message = str(caught.value)
    assert (
        f"{folder}: process {other.pid} on {socket.gethostname()} has been working in this folder since 20" in message
    )
    assert "give another --out" in message
    with own_folder(folder):
        pass
    with own_folder(folder):
        pass
    assert {path.name for path in folder.iterdir()} <= {".lock"}


def test_an_owner_that_is_not_known_yet(tmp_path: Path) -> None:
    with own_folder(tmp_path):
        (tmp_path / ".owner.json").write_text("{")
        with pytest.raises(InputError, match="another process is working in this folder"), own_folder(tmp_path):
            pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"), own_folder(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="cannot be written"), own_folder(Path("/proc/zoo")):
        pass
