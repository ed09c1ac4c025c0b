"""Atomic file writing, and JSON decoding with errors that name file and place."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from zoo.errors import InputError

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` at the end, or deleted after an exception.

    So readers never see a partial file. The folder is created if it does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Check, before any work is done for it, that a file or folder can be written; nothing is left behind.

    Raises:
        InputError: the folder, or the one in which it would be created, cannot be written.
    """
    place = path if path.is_dir() else path.absolute().parent
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror}); give another path", path) from error


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file by `atomic_path`; text is encoded as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def encode_json(value: Any) -> bytes:
    """Indented JSON: dict keys sorted, fields in the order of their class, NaN and infinity as null."""
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def decode_json(path: Path, advice: str) -> Any:
    """Read a JSON file into dicts and lists.

    Args:
        path: the file.
        advice: what to do if the file is missing or broken, for the error message.

    Raises:
        InputError: the file cannot be read, or is not JSON; `place` is line and column.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no such file; {advice}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); {advice}", file=path) from None
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = re.search(r"\(byte (\d+)\)", str(error))
        before = content if found is None else content[: int(found[1])]  # no offset: the text is truncated
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        reason = re.sub(r" \(byte \d+\)", "", str(error))
        raise InputError(f"{reason}; {advice}", file=path, place=f"line {line}, column {column}") from None


def convert_json(value: Any, form: type[T], path: Path, advice: str) -> T:
    """Convert decoded JSON to the type `form`.

    Raises:
        InputError: a field is missing or has another type; `place` is its path, such as `runs[0].metrics`.
    """
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        _raise_invalid(error, path, advice)


def _raise_invalid(error: msgspec.ValidationError, path: Path, advice: str) -> NoReturn:
    reason, _, place = str(error).partition(" - at `$")
    raise InputError(f"{reason}; {advice}", file=path, place=place.rstrip("`").lstrip(".") or None) from None
