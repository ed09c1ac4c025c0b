"""Loader workers, SIGTERM and SIGINT, with real processes."""

import os
import signal
import subprocess

import pytest
from torch.utils.data import DataLoader, Dataset

from zoo.data.workers import ignore_signals_of_others

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="the system has no sigtimedwait")


class Pids(Dataset[int]):
    """The process that reads each item."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_a_worker_outlives_signals_from_others_and_ends_on_that_of_its_parent() -> None:
    loader = DataLoader(
        Pids(), batch_size=None, num_workers=1, prefetch_factor=1, persistent_workers=True,
        worker_init_fn=ignore_signals_of_others,
    )  # fmt: skip
    items = iter(loader)
    worker = next(items)
    assert worker != os.getpid()
    subprocess.run(["sh", "-c", f"kill -TERM {worker}; kill -INT {worker}"], check=True)
    assert list(items) == [worker] * 7
    assert next(iter(loader)) == worker
    (process,) = loader._iterator._workers
    os.kill(worker, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
