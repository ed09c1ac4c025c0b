"""Parsing of configuration files and command-line values into objects; the parser's errors become one line each.

`zoo fit`, `zoo compare` and the other commands with `--model`, `--data` or `--trainer` use the same arguments.

A `class_path` is the name of a class (`RetinaNet`, `Coco`, `MovingAverage`) or its full dotted path. jsonargparse looks
a name up among the imported subclasses of the expected type, so the classes of zoo are imported before parsing: readers
with this module, detectors and callbacks in `add_arguments`. `zoo stats` and `zoo doctor` need no detectors and do not
import them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ActionConfigFile, Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from zoo.data.formats import coco, shapes, voc, yolo  # noqa: F401
from zoo.data.formats.recognise import data_arguments, is_data_set
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.io.configurations import check_files, files_first, yaml_files
from zoo.training.parser_errors import describe_parser_error
from zoo.training.start import add_start_arguments, replace_pretrained, take_start

RUNS_FOLDER = "runs"
DEFAULT_SEED = 0


def make_parser() -> LightningArgumentParser:
    """Parser of `--model`, `--data` and `--trainer`, each a file or single values, and of the seed.

    It raises errors instead of exiting.
    """
    parser = LightningArgumentParser(exit_on_error=False, prog="zoo")
    parser.add_argument("--config", action=ActionConfigFile, help="file with all arguments, as in a run folder")
    parser.add_argument("--seed_everything", type=int, default=DEFAULT_SEED, help="seed of all random numbers")
    add_logger_argument(parser)
    add_start_arguments(parser)
    add_arguments(parser)
    link_classes(parser)
    return parser


def add_logger_argument(parser: LightningArgumentParser) -> None:
    """Add `--logger`, names of loggers."""
    text = "metrics go to these, beside metrics.csv: tensorboard, csv, wandb, mlflow (tensorboard)"
    parser.add_argument("--logger", type=str, nargs="+", default=None, metavar="NAME", help=text)


def add_arguments(parser: LightningArgumentParser) -> None:
    """Add `--trainer`, `--model` and `--data`. The model is optional: a checkpoint can take its place."""
    # Makes their classes known by name. Not imported at the top, since commands without a model use this module too.
    import zoo.callbacks
    import zoo.models  # noqa: F401

    parser.add_lightning_class_args(Trainer, "trainer")
    # DetectionDataModule has its own distributed samplers.
    parser.set_defaults({"trainer.default_root_dir": RUNS_FOLDER, "trainer.use_distributed_sampler": False})
    parser.add_lightning_class_args(Detector, "model", subclass_mode=True, required=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")


def link_classes(parser: LightningArgumentParser) -> None:
    """Take the model's number and names of classes from the data."""
    for name in ("num_classes", "class_names"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")


def parse(parser: LightningArgumentParser, args: Sequence[str]) -> Namespace:
    """The parsed command line. `--data` takes a data set as well as a file that describes one.

    Class paths of zoo come back in full, so that configurations are equal whether they give names or full paths.

    Raises:
        InputError: an argument, a file or a value in it cannot be used.
    """
    check_files(args)
    try:
        config = parser.parse_args(_describe_data(take_start(files_first(args))))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise find_input_error(error) or describe_parser_error(str(error), yaml_files(args)) from error
    _write_paths_in_full(config)
    replace_pretrained(config.get(config.get("subcommand") or "") or config)
    return config


def _write_paths_in_full(config: Any) -> None:
    # The parser writes `zoo.models.RetinaNet` for `RetinaNet`; here it becomes `zoo.models.retinanet.RetinaNet`.
    if isinstance(config, list):
        for item in config:
            _write_paths_in_full(item)
    elif isinstance(config, Namespace):
        for value in vars(config).values():
            _write_paths_in_full(value)
        path = config.get("class_path")
        if isinstance(path, str) and path.startswith("zoo."):
            cls = resolve_name(path)
            config.class_path = f"{cls.__module__}.{cls.__qualname__}"


def _describe_data(args: Sequence[str]) -> list[str]:
    # Replaces a data set after `--data` by the arguments of a DetectionDataModule, as json.
    described: list[str] = []
    for index, argument in enumerate(args):
        prefix = "--data=" if argument.startswith("--data=") else ""
        value = argument.removeprefix(prefix)
        is_value = bool(prefix) or (index > 0 and args[index - 1] == "--data")
        described.append(prefix + json.dumps(data_arguments(value)) if is_value and is_data_set(value) else argument)
    return described


def instantiate(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """The objects of a configuration: `data` and `model`; `trainer` stays a dict of arguments.

    Raises:
        InputError: a constructor rejects its arguments.
    """
    try:
        return parser.instantiate(config)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise _as_input_error(error) from error


def build_data(arguments: Any, file: Path) -> DetectionDataModule:
    """The DataModule of the `data` part of a configuration.

    Args:
        arguments: as read from YAML.
        file: the file that they were read from, for error messages.

    Raises:
        InputError: the arguments cannot be used.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    try:
        config = parser.parse_object({"data": arguments})
    except Exception as error:
        raise _as_input_error(error, file, "data") from error
    data: DetectionDataModule = instantiate(parser, config).data
    return data


def proposals_of_model(file: str) -> dict[str, Any]:
    """Arguments of the selective search of a model file's detector.

    Raises:
        InputError: the file cannot be used, or its detector needs no region proposals.
    """
    arguments = parse(make_parser(), ["--model", file]).model.init_args
    if arguments.get("proposals") is None:
        raise InputError("its detector needs no region proposals", file)
    return dict(arguments.proposals.as_dict())


def first_difference(theirs: Any, ours: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """(place, theirs, ours) of the first value that differs between two configurations; None if they are equal."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            found = first_difference(theirs.get(key), ours.get(key), f"{place}.{key}" if place else str(key))
            if found is not None:
                return found
        return None
    return None if theirs == ours else (place, theirs, ours)


def find_input_error(error: BaseException) -> InputError | None:
    """The InputError in an error's chain of causes, as one line; None if there is none.

    Parsers and loader workers raise their own errors from it.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            # The text of a worker's error is its traceback, whose last line is the message.
            lines = [line for line in str(seen).splitlines() if line.strip()] or [""]
            text = lines[-1].partition("InputError: ")[2] if str(seen).startswith("Caught ") else " ".join(lines)
            return seen if text == str(seen) else InputError(text)
        seen = seen.__cause__ or seen.__context__
    return None


def _as_input_error(error: Exception, file: Path | None = None, place: str | None = None) -> InputError:
    known = find_input_error(error)
    if known is not None:
        return known
    described = describe_parser_error(str(error))
    return described if file is None else InputError(str(described), file, place)
