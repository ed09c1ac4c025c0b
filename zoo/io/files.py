"""Files of a report: written whole or not at all, read with an error that names file and place."""

import os
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from zoo.errors import InputError

T = TypeVar("T")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside its place, then rename it: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_json(value: Any) -> bytes:
    """Indented json; dict keys sorted, fields in the order of their class, NaN and infinity as null."""
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def decode_json(path: Path, advice: str) -> Any:
    """Read a json file into dicts and lists.

    Args:
        path: the file.
        advice: what to do when the file is absent or broken, for the error's one line.

    Raises:
        InputError: the file cannot be read, or is no json; the place is the line and column.
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
        before = content if found is None else content[: int(found[1])]  # without an offset the text was cut short
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        reason = re.sub(r" \(byte \d+\)", "", str(error))
        raise InputError(f"{reason}; {advice}", file=path, place=f"line {line}, column {column}") from None


def convert_json(value: Any, form: type[T], path: Path, advice: str) -> T:
    """Give decoded json its types.

    Raises:
        InputError: a field is missing or of another type; the place is its path, such as `runs[0].metrics`.
    """
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        _raise_invalid(error, path, advice)


def _raise_invalid(error: msgspec.ValidationError, path: Path, advice: str) -> NoReturn:
    reason, _, place = str(error).partition(" - at `$")
    raise InputError(f"{reason}; {advice}", file=path, place=place.rstrip("`").lstrip(".") or None) from None
