"""Processes for the runs of a comparison: each has one of its own, which shares our terminal.

Importing what a run needs takes seconds. A server process imports it once and forks for each run, which is then as
fresh as a new interpreter. A run of several processes is started by its command line, since Lightning starts the
others by the same, and so is every run where forking is not safe.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

CAN_FORK = sys.platform == "linux"  # elsewhere the libraries that PyTorch stands on do not survive a fork
SECONDS_TO_FINISH = 60  # for a run that is interrupted, to write down where it stands


def warm_up() -> None:
    """Let the server, where there can be one, import what runs need while something else is done."""
    if CAN_FORK:
        multiprocessing.set_forkserver_preload(["zoo.experiment.run"])
        forkserver.ensure_running()


def launch_fork(folder: Path) -> int:
    """Do the run of a folder in a fork of the server. An interrupt is handed on and waited for.

    Returns:
        Its exit code, or the negative number of the signal that ended it.
    """
    context = multiprocessing.get_context("forkserver")
    start_method = multiprocessing.get_start_method()
    process = context.Process(target=_do, args=(folder, Path.cwd(), dict(os.environ), start_method))
    process.start()
    try:
        process.join()
    except BaseException:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)  # which a training answers with a checkpoint
        process.join(SECONDS_TO_FINISH)
        process.kill()
        process.join()
        raise
    assert process.exitcode is not None
    return process.exitcode


def launch_command(folder: Path) -> int:
    """Do the run of a folder by `python -m zoo.experiment.run`; otherwise the same."""
    # In a group of its own, which Ctrl-C does not reach: see `_do`.
    process = subprocess.Popen([sys.executable, "-m", "zoo.experiment.run", str(folder)], process_group=0)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=SECONDS_TO_FINISH)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _do(folder: Path, place: Path, environment: dict[str, str], start_method: str) -> None:
    """The server may have been started elsewhere, and under other variables.

    Ctrl-C reaches all processes of a terminal. This one is told by its parent, in the way that saves where it stands.

    A fork of a server would have its own children forked by the server, too: each loader worker for itself, with
    nothing of the run in its memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(place)
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)
    from zoo.experiment.run import main

    sys.exit(main(folder))
