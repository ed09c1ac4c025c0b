"""End a process when the process that started it has ended, however that was.

Otherwise `kill -9`, or a machine's out-of-memory killer, would leave the processes of a training behind, which go on
for hours. On Linux the kernel sends the signal; elsewhere a thread looks for the parent once a second.
"""

import ctypes
import os
import signal
import sys
import threading
import time

STARTER = "ZOO_STARTER"
"""Environment variable: id of the process that starts others by command line, which then end with it."""

_PR_SET_PDEATHSIG = 1
_SECONDS = 1.0


def start_others_by_command() -> None:
    """Let processes that this one starts by command line end with it; see `end_with_starter`."""
    os.environ[STARTER] = str(os.getpid())


def end_with_starter() -> bool:
    """End with the parent, if that is a process which called `start_others_by_command`; whether it is."""
    starter = os.environ.get(STARTER)
    if starter is None or int(starter) != os.getppid():
        return False
    end_with_parent(int(starter))
    return True


def end_with_parent(ancestor: int) -> None:
    """End this process, by SIGKILL, with its parent.

    Args:
        ancestor: a process with which the parent ends, or the parent itself. If it has ended already, so does this
            process: the signal of a parent that ended before this call is lost.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent or not _is_alive(ancestor):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
