"""Exceptions that the command line knows: what a user handed in (one line, exit code 2), and a training cut short."""

from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        message: what is wrong and what to do about it, in one line.
        file: the file in which it was found.
        place: where in that file (a line, an annotation id, a key).
    """

    def __init__(self, message: str, file: str | Path | None = None, place: str | None = None) -> None:
        self.file = None if file is None else str(file)
        self.place = place
        prefix = ": ".join(part for part in (self.file, place) if part)
        super().__init__(f"{prefix}: {message}" if prefix else message)


class SharedInputError(InputError):
    """An error that all processes of a training have at once, on those that leave it to the first one to say so."""


class Preempted(Exception):  # noqa: N818 (nothing went wrong)
    """A training stopped because it was told to make room; its checkpoint is written, and the same command goes on."""

    exit_code = 143  # what a shell says of a process that SIGTERM ended
