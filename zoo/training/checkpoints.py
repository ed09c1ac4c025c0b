"""Atomic checkpoint writer."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from zoo.errors import InputError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary file in the same folder, and rename it when it is complete on disk.

    A killed process, a power failure or a full disk leave the previous checkpoint intact. (Lightning writes into the
    system's temporary folder, which may be on another disk, and copies from there.) URLs are left to Lightning.

    Raises:
        InputError: in `save_checkpoint`, if the file cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, or raise and keep the previous file."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        partial = final.with_name(f".{final.name}.partial")  # a fixed name, so that leftovers are overwritten
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if its writer fails
            partial.unlink(missing_ok=True)
            kept = "the previous one is kept; " if final.exists() else ""
            raise InputError(
                f"checkpoint cannot be written ({_reason(error)}); {kept}free disk space and run the command again",
                file=final,
            ) from error
        with suppress(OSError):  # not all file systems support this for folders; the file itself is complete
            _sync_folder(final.parent)


def _reason(error: BaseException) -> str:
    """Message of the operating system error that caused torch's exception."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return "no space left on the disk" if cause.errno == errno.ENOSPC else os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _sync_folder(folder: Path) -> None:
    """Flush the rename to disk. Folders cannot be opened on Windows, which does this itself."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
