"""Loader workers that go on when SIGTERM is sent to all processes of a training.

`timeout`, systemd and batch systems send SIGTERM to all processes that they started, not only to the first. The
training then ends after its current step or validation (`zoo.callbacks.preemption`), for which it needs its workers.
"""

import os
import signal
import threading


def outlive_sigterm(worker: int) -> None:
    """End this worker on SIGTERM from its parent process, and ignore SIGTERM from others.

    For `worker_init_fn` of a DataLoader. Without effect where the system does not say who sent a signal (macOS,
    Windows).

    Args:
        worker: its number.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # also in the thread
        threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
