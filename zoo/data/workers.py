"""Loader workers that go on when SIGTERM or SIGINT is sent to all processes of a training.

`timeout`, systemd and batch systems send SIGTERM to all processes that they started, not only to the first, and a
terminal sends SIGINT on Ctrl-C. The training then ends after its current step or validation
(`zoo.callbacks.preemption`), for which it needs its workers.
"""

import multiprocessing
import os
import signal
import threading

_SECONDS = 1.0  # between two checks of the parent


def ignore_signals_of_others(worker: int) -> None:
    """End this worker with its parent process or on SIGTERM from it; ignore SIGTERM from others, and SIGINT.

    For `worker_init_fn` of a DataLoader. Where the system does not say who sent a signal (macOS, Windows), SIGTERM ends
    it, and PyTorch's workers end within five seconds after their parent.

    Args:
        worker: its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # also in the thread
        threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()  # not `os.getppid`, which is the fork server's where there is one
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], _SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
