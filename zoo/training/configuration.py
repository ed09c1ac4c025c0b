"""How configurations are read: files and values of the command line become objects, errors become one line.

`zoo fit`, `zoo compare` and all others that take `--model`, `--data` or `--trainer` use the same parser.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from zoo.data.formats.recognise import data_arguments, is_data_set
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError

RUNS_FOLDER = "runs"
DEFAULT_SEED = 0


def make_parser() -> LightningArgumentParser:
    """A parser for one training: `--model`, `--data` and `--trainer` as files or value by value, and a seed.

    It raises instead of leaving the process.
    """
    parser = LightningArgumentParser(exit_on_error=False, prog="zoo")
    parser.add_argument("--config", action=ActionConfigFile, help="a file with all of it, as a run writes it down")
    parser.add_argument("--seed_everything", type=int, default=DEFAULT_SEED, help="seed of all randomness")
    add_arguments(parser)
    link_classes(parser)
    return parser


def add_arguments(parser: LightningArgumentParser) -> None:
    """Add `--trainer`, `--model` and `--data`. The model is not required here: a checkpoint may stand for it."""
    parser.add_lightning_class_args(Trainer, "trainer")
    # Our loaders bring their own samplers, for one process and for many.
    parser.set_defaults({"trainer.default_root_dir": RUNS_FOLDER, "trainer.use_distributed_sampler": False})
    parser.add_lightning_class_args(Detector, "model", subclass_mode=True, required=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")


def link_classes(parser: LightningArgumentParser) -> None:
    """Let the data say how many classes there are, and what they are called."""
    for name in ("num_classes", "class_names"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")


def parse(parser: LightningArgumentParser, args: Sequence[str]) -> Namespace:
    """Parse a command line; a data set that `--data` names stands for the file that would describe it.

    Raises:
        InputError: in one line, whatever the parser has to say.
    """
    check_files(args)
    try:
        return parser.parse_args(_describe_data(args))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise find_input_error(error) or InputError(one_line(str(error))) from error


def _describe_data(args: Sequence[str]) -> list[str]:
    described: list[str] = []
    for place, argument in enumerate(args):
        prefix = "--data=" if argument.startswith("--data=") else ""
        value = argument.removeprefix(prefix)
        is_value = bool(prefix) or (place > 0 and args[place - 1] == "--data")
        described.append(prefix + json.dumps(data_arguments(value)) if is_value and is_data_set(value) else argument)
    return described


def check_files(args: Sequence[str]) -> None:
    """Look at the files that are named on the command line, for errors that say more than a parser's.

    Raises:
        InputError: a file of `--model`, `--data`, `--trainer` or `--config` is missing or no YAML; by line and column.
    """
    for flag, value in zip(args, [*args[1:], ""][: len(args)], strict=True):
        flag, equals, rest = flag.partition("=")
        value = rest if equals else value
        if flag in ("--model", "--data", "--trainer", "--config", "-c") and Path(value).suffix in (".yaml", ".yml"):
            read_yaml(value)


def read_yaml(file: str | Path) -> Any:
    """Content of a YAML file.

    Raises:
        InputError: the file is missing, cannot be read or is no YAML; names line and column.
    """
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(reason, file=file) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = None if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"is no YAML: {error.problem}", file=file, place=place) from error
    except yaml.YAMLError as error:
        raise InputError(f"is no YAML: {one_line(str(error))}", file=file) from error


def instantiate(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """Build what a configuration describes: `data` and `model`; `trainer` stays a dict of arguments.

    Raises:
        InputError: a constructor refuses its arguments.
    """
    try:
        return parser.instantiate(config)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise find_input_error(error) or InputError(one_line(str(error))) from error


def build_data(arguments: Any, file: Path) -> DetectionDataModule:
    """The DataModule that the `data` part of a configuration describes.

    Args:
        arguments: as read from YAML.
        file: where they stand, for the message.

    Raises:
        InputError: it cannot be used.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    try:
        config = parser.parse_object({"data": arguments})
    except Exception as error:
        raise find_input_error(error) or InputError(one_line(str(error)), file, "data") from error
    data: DetectionDataModule = instantiate(parser, config).data
    return data


def proposals_of_model(file: str) -> dict[str, Any]:
    """Arguments of the selective search that a model file's detector declares.

    Raises:
        InputError: the file cannot be used, or its detector needs no proposals.
    """
    arguments = parse(make_parser(), ["--model", file]).model.init_args
    if arguments.get("proposals") is None:
        raise InputError("its detector needs no region proposals", file)
    return dict(arguments.proposals.as_dict())


def first_difference(theirs: Any, ours: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """(place, theirs, ours) of the first value in which two configurations differ, None where they are the same."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            found = first_difference(theirs.get(key), ours.get(key), f"{place}.{key}" if place else str(key))
            if found is not None:
                return found
        return None
    return None if theirs == ours else (place, theirs, ours)


def find_input_error(error: BaseException) -> InputError | None:
    """The InputError that a parser or a loader's worker wrapped in another one, as one line; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            # A worker's error comes as its traceback in text, the message in the last line.
            lines = [line for line in str(seen).splitlines() if line.strip()] or [""]
            text = lines[-1].partition("InputError: ")[2] if str(seen).startswith("Caught ") else " ".join(lines)
            return seen if text == str(seen) else InputError(text)
        seen = seen.__cause__ or seen.__context__
    return None


_PARSER_NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)


def one_line(message: str) -> str:
    """A parser's many lines as one, without those that say nothing to a user."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_PARSER_NOISE)) or "cannot be used"
