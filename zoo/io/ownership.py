"""One owner for each folder that a long command writes into, for as long as its process lives.

The lock is that of the operating system on an open file (`filelock`): it ends with the process and its children,
however they ended, so no lock is ever left behind. On network file systems it works where these support `flock` (NFS
from version 4 or Linux 2.6.12 on, Lustre mounted with `flock`, BeeGFS, GPFS); where they do not, nothing is locked.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from zoo.errors import InputError
from zoo.io.files import encode_json, write_atomically

LOCK, OWNER = ".lock", ".owner.json"


class _Owner(msgspec.Struct):
    host: str
    pid: int
    since: str


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, which is created if it does not exist.

    Raises:
        InputError: another process works in it (names host, process and since when), or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise InputError(f"{_describe_owner(folder)}; wait for it, stop it, or give another --out", folder) from None
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error}); give another --out", folder) from error
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        write_atomically(folder / OWNER, encode_json(_Owner(socket.gethostname(), os.getpid(), since)))
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _describe_owner(folder: Path) -> str:
    try:
        owner = msgspec.json.decode((folder / OWNER).read_bytes(), type=_Owner)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return "another process is working in this folder"
    return f"process {owner.pid} on {owner.host} has been working in this folder since {owner.since}"
