"""The atomic checkpoint writer: full disks, killed processes, remote files."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo.training.checkpoints
from zoo.errors import InputError
from zoo.training.checkpoints import AtomicCheckpointIO


def checkpoint(number: int, size: int = 10) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((size,), float(number))}


def test_files_are_replaced_without_leftovers(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "last.ckpt"
    for number in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(number), str(file))
        assert AtomicCheckpointIO().load_checkpoint(file, weights_only=True)["number"] == number
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


@pytest.fixture
def small_files() -> Any:
    """Limit the files of this process to 100 kB, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_failed_write_keeps_the_previous_file(tmp_path: Path, small_files: None) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), file)
    with pytest.raises(InputError) as caught:
        AtomicCheckpointIO().save_checkpoint(checkpoint(2, size=1_000_000), file)
    assert str(caught.value).startswith(
        f"{file}: checkpoint cannot be written (File too large); the previous one is kept"
    )
    assert torch.load(file)["number"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_full_disk_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space left on the disk.*; free disk space and run the command again"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")


def test_partial_file_of_a_killed_process_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), file)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        AtomicCheckpointIO().save_checkpoint(checkpoint(2), file)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert torch.load(file)["number"] == 1
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), file)
    assert torch.load(file)["number"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_remote_files_are_left_to_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        zoo.training.checkpoints.TorchCheckpointIO,
        "save_checkpoint",
        lambda self, content, path, options: written.append(path),
    )
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), "memory://bucket/last.ckpt")
    assert written == ["memory://bucket/last.ckpt"]
