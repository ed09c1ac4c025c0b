"""`zoo fit`, `zoo validate` and `zoo test`: help and wrong flags at once, the rest by `zoo.cli.training_cli`."""

import argparse
import textwrap
from collections.abc import Sequence

from zoo.cli.arguments import check_flags
from zoo.cli.exit_codes import OK
from zoo.cli.parsers import ArgumentParser
from zoo.experiment.budget import Budget
from zoo.io.configurations import check_files, detector_names, has_own_model, name_models
from zoo.io.logger_names import check_loggers

_USAGE = {
    "fit": "usage: zoo fit --model MODEL --data DATA [--trainer FILE] [options]\n\nTrain a detector.",
    "validate": "usage: zoo validate --checkpoint RUN --data DATA [options]\n\nEvaluate on the validation split.",
    "test": "usage: zoo test --checkpoint RUN --data DATA [options]\n\nEvaluate on the test split.",
}
_DATA = "  --data DATA              COCO, VOC, YOLO or LabelImg folder, or a data file"
_OPTIONS = {
    "fit": f"""\
  --model MODEL            a detector or a configuration (zoo models), or a file
{_DATA}
  --trainer FILE           configs/trainers/cpu.yaml, gpu1.yaml, ...
  --epochs N | --images N | --minutes M | --steps N
                           length ({{default}})
  --seed N                 of all random numbers (0)
  --logger NAME...         tensorboard, csv, wandb, mlflow (tensorboard);
                           metrics.csv is always written
  --out DIR                run folder; the same command goes on with a run that
                           was stopped in it (a new folder in runs/)
  --checkpoint FILE        go on with it, or with the last one of a run folder""",
    "validate": f"""\
  --checkpoint RUN         a checkpoint, or a run folder (its best checkpoint)
{_DATA}
  --predictions FILE       write the predictions, as COCO-results json""",
}
_OPTIONS["test"] = _OPTIONS["validate"]
_VALUES = """\
  --data.batch_size N      images a step and process
  --data.num_workers N     processes that read images
  --model.frame.min_size N shorter side of the images in pixels
  --model.recipe.lr X      learning rate
  --model.weights FILE     start from a detector's weights: a checkpoint, or
                           torchvision's, darknet's or CornerNet's file
  --model.score_threshold X
  --trainer.accelerator X  cpu, gpu, mps or auto
  --trainer.devices N      number of them, -1 for all
  --trainer.precision X    32-true, bf16-mixed, 16-mixed
  --trainer.callbacks+=X   MovingAverage, TorchCompile, or a class of your own"""


def fit(args: list[str]) -> int:
    """`zoo fit`: train a detector."""
    return _run("fit", args)


def validate(args: list[str]) -> int:
    """`zoo validate`: evaluate a checkpoint on the validation split."""
    return _run("validate", args)


def test(args: list[str]) -> int:
    """`zoo test`: evaluate a checkpoint on the test split."""
    return _run("test", args)


def _run(verb: str, args: list[str]) -> int:
    if "--help" in args or "-h" in args:
        print(_help(verb))
        return OK
    budget = None
    if "--help-all" in args:
        args = ["--help"]
    else:
        check_flags(verb, args, has_own_model(args))
        args = name_models(args)
        check_files(args)
        if verb == "fit":
            check_loggers(logger_names(args))
            budget, args = take_budget(args)

    from zoo.cli.training_cli import TrainingCLI

    TrainingCLI([verb, *args], budget)
    return OK


def take_budget(args: Sequence[str]) -> tuple[Budget | None, list[str]]:
    """The budget of a command line, None if it has none, and the other arguments.

    Raises:
        InputError: several budgets, or one that is not a number above 0.
    """
    parser = ArgumentParser(prog="zoo fit", add_help=False, allow_abbrev=False)
    add_budget_arguments(parser)
    options, rest = parser.parse_known_args(args)
    return read_budget(options), rest


def logger_names(args: Sequence[str]) -> list[str]:
    """The names that a command line gives after `--logger`."""
    parser = ArgumentParser(prog="zoo fit", add_help=False, allow_abbrev=False)
    parser.add_argument("--logger", nargs="+", default=[])
    names: list[str] = parser.parse_known_args(args)[0].logger
    return names


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--epochs`, `--images`, `--minutes` and `--steps`."""
    parser.add_argument("--epochs", type=int, metavar="N", help="budget of each run in epochs")
    parser.add_argument("--images", type=int, metavar="N", help="budget of each run in training images")
    parser.add_argument("--minutes", type=float, metavar="M", help="budget of each run in minutes")
    parser.add_argument("--steps", type=int, metavar="N", help="budget of each run in optimizer steps")


def read_budget(options: argparse.Namespace) -> Budget | None:
    """The budget of parsed arguments, or None."""
    limits = {name: getattr(options, name) for name in ("epochs", "images", "minutes", "steps")}
    return Budget(**limits) if any(limit is not None for limit in limits.values()) else None


def _help(verb: str) -> str:
    from zoo.experiment.budget import DEFAULT_FIT_BUDGET

    parts = [
        _USAGE[verb],
        "options:\n" + _OPTIONS[verb].format(default=f"{DEFAULT_FIT_BUDGET}, or that of the trainer file"),
        "values of the configuration, each of which is a flag; among them:\n" + _VALUES,
        "  --print_config           print the whole configuration and exit\n  --help-all               all flags",
        "detectors:\n" + textwrap.fill(", ".join(detector_names()), 78, initial_indent="  ", subsequent_indent="  "),
    ]
    return "\n\n".join(parts)
