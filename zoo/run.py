"""One training: how its configuration is read, and what stands around every Trainer of the house.

`zoo fit` and `zoo compare` use the same pieces, so a run of a comparison is a `zoo fit` with a budget.
"""

import argparse
import os
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import ActionConfigFile, Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
)
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from zoo.callbacks import LearningCurve, MeanAveragePrecision, StopOnNonFiniteLoss
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.evaluation.predictions import write_coco_results
from zoo.evaluation.scores import scores_table
from zoo.models import MODELS, load, read_checkpoint

RUNS_FOLDER = "runs"
MONITOR = "val/AP"  # what "best" means everywhere
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


def check_files(args: Sequence[str]) -> None:
    """Look at the files that are named on the command line, for errors that say more than a parser's.

    Raises:
        InputError: a file of `--model`, `--data`, `--trainer` or `--config` is missing or no YAML; by line and column.
    """
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        flag, equals, rest = flag.partition("=")
        value = rest if equals else value
        if flag in ("--model", "--data", "--trainer", "--config", "-c") and Path(value).suffix in (".yaml", ".yml"):
            read_yaml(value)


def read_yaml(file: str | Path) -> Any:
    """Content of a YAML file.

    Raises:
        InputError: the file is missing, cannot be read or is no YAML; names line and column.
    """
    import yaml

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


def parse(parser: LightningArgumentParser, args: Sequence[str]) -> Namespace:
    """Parse a command line.

    Raises:
        InputError: in one line, whatever the parser has to say.
    """
    check_files(args)
    try:
        return parser.parse_args(list(args))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise find_input_error(error) or InputError(one_line(str(error))) from error


def instantiate(parser: LightningArgumentParser, config: Namespace) -> Namespace:
    """Build what a configuration describes: `data` and `model`; `trainer` stays a dict of arguments.

    Raises:
        InputError: a constructor refuses its arguments.
    """
    try:
        return parser.instantiate_classes(config)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise find_input_error(error) or InputError(one_line(str(error))) from error


def make_trainer(arguments: dict[str, Any], data: DetectionDataModule, folder: Path | None, name: str) -> Trainer:
    """A Trainer with the house's callbacks and loggers around it.

    Args:
        arguments: of the Trainer. Callbacks among them stand in for ours of the same class; loggers replace ours.
        data: without a validation split there is nothing that could be best.
        folder: where logs and checkpoints go; None for a new `<default_root_dir>/<name>/version_<n>`.
        name: of the run.

    Raises:
        InputError: the Trainer refuses its arguments, for example an accelerator that is not there.
    """
    arguments = dict(arguments)
    if arguments.get("logger") in (None, True):
        arguments["logger"] = default_loggers(folder, Path(arguments.get("default_root_dir") or RUNS_FOLDER), name)
    given = arguments.get("callbacks") or []
    given = list(given) if isinstance(given, Sequence) else [given]
    arguments["callbacks"] = given + default_callbacks(given, arguments, data, folder)
    if not any(isinstance(callback, ProgressBar) for callback in arguments["callbacks"]):
        arguments["enable_progress_bar"] = False  # or Lightning adds its own
    try:
        return Trainer(**arguments)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"trainer: {one_line(str(error))}") from error


def default_loggers(folder: Path | None, root: Path, name: str) -> list[Logger]:
    """TensorBoard and CSV logs in one folder."""
    if folder is not None:
        return [
            TensorBoardLogger(folder.parent, name=folder.name, version=""),
            CSVLogger(folder.parent, name=folder.name, version=""),
        ]
    tensorboard = TensorBoardLogger(root, name=name)
    return [tensorboard, CSVLogger(root, name=name, version=tensorboard.version)]


def default_callbacks(
    given: Sequence[Callback], arguments: dict[str, Any], data: DetectionDataModule, folder: Path | None
) -> list[Callback]:
    """What every training has around it, less what was given and what the Trainer's switches turn off."""
    callbacks: list[Callback] = [MeanAveragePrecision(), StopOnNonFiniteLoss(), LearningCurve()]
    if arguments.get("logger") is not False:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if arguments.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
        callbacks.append(RichProgressBar() if Console().is_terminal else ProgressLines())
    callbacks = [callback for callback in callbacks if not any(type(callback) is type(other) for other in given)]
    if arguments.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
        callbacks += default_checkpoints("val" in data.sources, folder)
    return callbacks


def default_checkpoints(has_validation: bool, folder: Path | None) -> list[ModelCheckpoint]:
    """Keeps `checkpoints/last.ckpt` after every epoch, and `checkpoints/best.ckpt` by validation AP."""
    where = None if folder is None else folder / "checkpoints"
    last = ModelCheckpoint(where, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    if not has_validation:
        return [last]
    best = ModelCheckpoint(
        where,
        filename="best",
        monitor=MONITOR,
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    return [best, last]


class ProgressLines(Callback):
    """One line after each validation (or epoch, where there is none): progress for logs and pipes."""

    def __init__(self) -> None:
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the training stands."""
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        shown = [f"{key} {float(metrics[key]):.3f}" for key in ("train/loss", MONITOR, "val/AP50") if key in metrics]
        of_epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        minutes = (time.monotonic() - self.start) / 60
        parts = [f"epoch {trainer.current_epoch + 1}{of_epochs}", f"step {trainer.global_step}", *shown]
        print("  ".join([*parts, f"{minutes:.1f} min"]), flush=True)


def check_checkpoint(detector: Detector, file: str | Path) -> None:
    """Make sure that a checkpoint's weights belong into a detector.

    Raises:
        InputError: it is missing or damaged, or of another detector, other classes or other sizes.
    """
    content = read_checkpoint(file)
    recorded = content["detector"]
    ours = type(detector).__name__
    if recorded["class"] != ours:
        raise InputError(
            f"holds a {recorded['class']}, but the model is a {ours}; hand in the model it was made with", file
        )
    check_classes(recorded["arguments"]["class_names"], detector.class_names, file)
    theirs = {key: tuple(value.shape) for key, value in content["state_dict"].items()}
    wanted = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    for key in sorted(theirs.keys() | wanted.keys()):
        if theirs.get(key) != wanted.get(key):
            raise InputError(
                f"does not fit the model: it has {_describe(theirs.get(key))}, the model {_describe(wanted.get(key))};"
                " hand in the model configuration that it was made with",
                file,
                key,
            )


def check_classes(recorded: Sequence[str], wanted: Sequence[str], file: str | Path) -> None:
    """Make sure that a checkpoint was trained on the classes of the data.

    Raises:
        InputError: number, names or order differ.
    """
    if len(recorded) != len(wanted):
        raise InputError(f"was trained on {len(recorded)} classes, the data has {len(wanted)}", file)
    for label, (theirs, ours) in enumerate(zip(recorded, wanted, strict=True)):
        if theirs != ours:
            raise InputError(
                f"class {label} is {theirs!r} there and {ours!r} in the data; the lists must be the same", file
            )


def model_key(detector: Detector) -> str:
    """The detector's name in `MODELS`; its class's name in lower case for one that is not of the zoo."""
    keys = [key for key, cls in MODELS.items() if cls is type(detector)]
    return keys[0] if keys else type(detector).__name__.lower()


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


def quieten() -> None:
    """Silence what Lightning says on every run and nobody can act on."""
    import logging

    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # the number of workers is the data file's choice
        ".*exists and is not empty.*",  # a run that is taken up again
        ".*smaller than the logging interval.*",
        ".*Starting from v1.9.0, `tensorboardX`.*",
        ".*isn't batch-aligned.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _describe(shape: tuple[int, ...] | None) -> str:
    return "nothing of that name" if shape is None else f"shape {list(shape)}"


class TrainingCLI(LightningCLI):
    """`zoo fit`, `validate` and `test`: Lightning's command line with the house's defaults.

    Raises:
        InputError: from the constructor, which does it all, whatever the user handed in that cannot be used.
    """

    def __init__(self, args: Sequence[str]) -> None:
        quieten()
        super().__init__(
            Detector,
            DetectionDataModule,
            subclass_mode_model=True,
            seed_everything_default=DEFAULT_SEED,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "zoo", "exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # a detector writes down itself what it takes to build it again
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs, each with the arguments of the Trainer's method that are not the user's."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """See LightningCLI; the verbs that measure can write down what they measured."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        for verb in ("validate", "test"):
            text = "write the detections to this file as COCO-results json"
            self._parser(verb).add_argument("--predictions", type=str | None, default=None, help=text)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See LightningCLI."""
        add_arguments(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See LightningCLI."""
        link_classes(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """See LightningCLI; `--checkpoint` is the name that every verb knows, `--ckpt_path` Lightning's."""
        renamed = [re.sub(r"^--checkpoint(?==|$)", "--ckpt_path", arg) for arg in args]
        self.config = parse(parser, renamed)

    def before_instantiate_classes(self) -> None:
        """See that there is something to train or to measure, before anything is built."""
        verb, config = self.subcommand, self.config[self.subcommand]
        if verb == "fit" and config.get("model") is None:
            raise InputError("no model; give --model FILE")
        if verb != "fit" and config.get("ckpt_path") is None:
            raise InputError("no weights; give --checkpoint FILE")
        if config.get("ckpt_path") is not None:
            read_checkpoint(config.ckpt_path)
        if verb != "fit":
            self.save_config_callback = None  # measuring leaves no run folder behind
            config.trainer.logger = config.trainer.logger or False
            config.trainer.enable_checkpointing = False

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; where no model is named, the checkpoint says what it is."""
        self.config_init = instantiate(self.parser, self.config)
        built = self.config_init[self.subcommand]
        self.datamodule = built.data
        if built.get("model") is None:
            self.model = load(built.ckpt_path)
            check_classes(self.model.class_names, self.datamodule.class_names, built.ckpt_path)
        else:
            self.model = built.model
            if built.ckpt_path is not None:
                check_checkpoint(self.model, built.ckpt_path)
        self.trainer = self.instantiate_trainer()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        callbacks = [*(given if isinstance(given, list) else [given]), *callbacks]
        if self.save_config_callback and not config.get("fast_dev_run"):
            parser, written = self._parser(self.subcommand), self.config[self.subcommand]
            callbacks.append(self.save_config_callback(parser, written, **self.save_config_kwargs))
        return make_trainer({**config, "callbacks": callbacks}, self.datamodule, None, model_key(self.model))

    def fit(self, **arguments: Any) -> None:
        """Train, and say where the results are. A run that ended before its first step leaves nothing behind."""
        folder = Path(self.trainer.log_dir or RUNS_FOLDER)
        is_new = not folder.exists()
        try:
            self.trainer.fit(**arguments)
        except Exception:
            if is_new and self.trainer.is_global_zero and self.trainer.global_step == 0:
                shutil.rmtree(folder, ignore_errors=True)
                _remove_if_empty(folder.parent)
            raise
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            self._print_scores("val")
            print(f"run folder: {folder}")
            kept = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            for path in filter(None, kept):
                print(f"checkpoint: {os.path.relpath(path)}")

    def validate(self, **arguments: Any) -> None:
        """Measure on the validation split."""
        self.trainer.validate(**arguments, verbose=False)
        self._finish_measuring("val")

    def test(self, **arguments: Any) -> None:
        """Measure on the test split."""
        self.trainer.test(**arguments, verbose=False)
        self._finish_measuring("test")

    def _finish_measuring(self, split: Literal["val", "test"]) -> None:
        file = self.config[self.subcommand].predictions
        predictions = one_callback(self.trainer, MeanAveragePrecision).predictions(split)
        if file is not None and predictions is not None:  # the first process has them
            write_coco_results(predictions, file, self.datamodule.class_ids)
        self._print_scores(split)

    def _print_scores(self, split: Literal["val", "test"]) -> None:
        scores = one_callback(self.trainer, MeanAveragePrecision).scores(split)
        if scores is not None and self.trainer.is_global_zero:
            Console().print(scores_table(scores))


C = TypeVar("C")


def one_callback(trainer: Trainer, kind: type[C]) -> C:
    """The Trainer's callback of a class."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
