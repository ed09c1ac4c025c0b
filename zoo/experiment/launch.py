"""Start each run of a comparison in its own process, attached to the same terminal.

Importing PyTorch and Lightning takes seconds. A fork server imports them once and forks for each run, which has a
fresh state as in a new interpreter. A run of several processes is started by command line instead, since Lightning
starts the other processes by the same command; so is every run on platforms where forking is not safe.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from pathlib import Path

from zoo.io.parent import end_with_parent, start_others_by_command

CAN_FORK = sys.platform == "linux"  # on other platforms the libraries below PyTorch do not survive a fork
SECONDS_TO_FINISH = 60  # for an interrupted run, to write its checkpoint


def warm_up() -> None:
    """Start the fork server where forking is safe, so that it imports the modules of a run in the background.

    The server ignores SIGTERM, which it inherits: many systems send it to all processes, and without the server the
    exit code of a run is lost. The server ends with this process (`zoo.experiment.fork_server`).
    """
    if not CAN_FORK:
        return
    multiprocessing.set_forkserver_preload(["zoo.experiment.fork_server", "zoo.experiment.run"])
    start_others_by_command()
    is_main = threading.current_thread() is threading.main_thread()  # other threads may not set signal handlers
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN) if is_main else None
    forkserver.ensure_running()
    if is_main:
        signal.signal(signal.SIGTERM, before)


def launch_fork(folder: Path) -> int:
    """Execute the run of a folder in a fork of the server. On an interrupt, send SIGTERM to the run and wait for it.

    Returns:
        The exit code, or the negative number of the signal that ended the process.
    """
    context = multiprocessing.get_context("forkserver")
    start_method = multiprocessing.get_start_method()
    arguments = (folder, Path.cwd(), dict(os.environ), start_method, os.getpid())
    process = context.Process(target=_run_in_fork, args=arguments)
    process.start()
    try:
        process.join()
    except BaseException:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)  # the training writes a checkpoint and ends
        process.join(SECONDS_TO_FINISH)
        process.kill()
        process.join()
        raise
    assert process.exitcode is not None
    return process.exitcode


def launch_command(folder: Path) -> int:
    """Execute the run of a folder by `python -m zoo.experiment.run`; otherwise as `launch_fork`."""
    start_others_by_command()
    # In its own process group, which Ctrl-C does not reach: see `_run_in_fork`.
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


def _run_in_fork(
    folder: Path, working_directory: Path, environment: dict[str, str], start_method: str, comparison: int
) -> None:
    """Execute the run of a folder with the parent's working directory, environment and start method.

    The server may have been started in another directory and with other variables. It ends with the process of the
    comparison, and this process with the server.

    Ctrl-C reaches all processes of a terminal. This process ignores it: the parent sends SIGTERM instead, on which the
    training writes a checkpoint.

    By default the children of a fork of the server would be forked from the server as well, so that loader workers
    would share no memory with the run.
    """
    end_with_parent(comparison)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the server ignores it
    os.chdir(working_directory)
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)
    from zoo.experiment.run import main

    sys.exit(main(folder))
