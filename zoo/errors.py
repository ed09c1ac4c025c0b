"""Exceptions that the command line reports in one line: unusable input (exit code 2) and preempted trainings."""

from pathlib import Path


class InputError(ValueError):
    """Input from the user that cannot be used.

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
    """An `InputError` that all processes raise, on processes other than the first; only the first one prints it."""


class Preempted(Exception):  # noqa: N818 (nothing went wrong)
    """A training was stopped by a signal. Its checkpoint is written, and the same command resumes it."""

    exit_code = 143  # what a shell reports for a process ended by SIGTERM


class Interrupted(Preempted):
    """A training was stopped by Ctrl-C."""

    exit_code = 130  # what a shell reports for a process ended by SIGINT
