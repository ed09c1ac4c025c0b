"""Argument parsers of the verbs; they raise `InputError` for bad arguments."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zoo.cli.verbs import VERBS
from zoo.errors import InputError

if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningArgumentParser


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")


def make_parser(verb: str, note: str = "", epilog: str | None = None) -> ArgumentParser:
    """Parser of a verb with plain flags; `note` is appended to the description of the verb."""
    description = f"{VERBS[verb].description} {note}".rstrip()
    return ArgumentParser(prog=f"zoo {verb}", description=description, epilog=epilog, allow_abbrev=False)


def choose_checkpoint(path: str | Path, names: Sequence[str] = ("best", "last")) -> Path:
    """The checkpoint file itself, or the first of `names` that a run folder has, which is then printed.

    Raises:
        InputError: the folder has no checkpoint.
    """
    from zoo.detector.checkpoint import find_checkpoint  # takes seconds

    file = find_checkpoint(path, names)
    if file != Path(path):
        print(f"checkpoint: {file}", file=sys.stderr)
    return file


def make_data_parser(verb: str) -> "LightningArgumentParser":
    """Parser of a verb with `--data.*` flags; the caller adds flags and, last, `DetectionDataModule` as "data"."""
    from pytorch_lightning.cli import LightningArgumentParser  # takes seconds: only when a verb needs it

    return LightningArgumentParser(exit_on_error=False, prog=f"zoo {verb}", description=VERBS[verb].description)
