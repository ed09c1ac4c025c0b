"""Checkpoints on disk: whole, or not there."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.errors import InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when all of it is on the disk.

    A process that is killed while it writes, a machine that loses its power and a disk that is full leave the
    checkpoint that was there before. (Lightning writes into the system's folder for temporary files first, which may
    be on another disk, and copies from there.) Files at a URL are left to Lightning.

    Raises:
        InputError: in `save_checkpoint`, where the file cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file, or leave the former one as it is."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        partial = final.with_name(f".{final.name}.partial")  # one name: what a kill left over is written over
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where its writer could not write
            partial.unlink(missing_ok=True)
            kept = "the one of before is kept; " if final.exists() else ""
            raise InputError(
                f"this checkpoint cannot be written ({_reason(error)}); {kept}make room and run the same command again",
                file=final,
            ) from error
        with suppress(OSError):  # not every file system does this for folders; the file itself is there
            _sync_folder(final.parent)


def _reason(error: BaseException) -> str:
    """What the system said, at the bottom of what torch made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return "no space left on the disk" if cause.errno == errno.ENOSPC else os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _sync_folder(folder: Path) -> None:
    """The rename itself is on the disk, too; where folders cannot be opened (Windows), the system sees to it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
