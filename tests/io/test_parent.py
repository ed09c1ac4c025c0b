"""Processes that end with the one that started them, with real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from zoo.io import parent

# Starts a process that starts another; both print their ids.
STARTER = """
import subprocess, sys, time
from zoo.io.parent import start_others_by_command
start_others_by_command()
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
CHILD = """
import os, time
from zoo.io.parent import end_with_starter
print(end_with_starter(), os.getpid(), flush=True)
time.sleep(600)
"""
ORPHAN = """
import os
from zoo.io.parent import end_with_parent
end_with_parent({pid})
print("lives")
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_ends_with_its_starter_however_that_ends() -> None:
    command = [sys.executable, "-c", STARTER, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        ends_with_it, child = starter.stdout.readline().split()
        assert ends_with_it == "True"
        assert is_alive(int(child))
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_alive(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_of_another_starter_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parent.STARTER, str(os.getppid() + 1))
    assert not parent.end_with_starter()
    monkeypatch.delenv(parent.STARTER)
    assert not parent.end_with_starter()


def test_a_process_whose_ancestor_has_ended_ends_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(pid=gone.pid)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(pid=os.getpid())], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "lives\n")
