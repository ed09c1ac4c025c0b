"""The command line of `zoo fit`, `zoo validate` and `zoo test`, built on LightningCLI."""

import re
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from zoo.callbacks import MeanAveragePrecision
from zoo.callbacks.preemption import LAST
from zoo.cli.parsers import choose_checkpoint
from zoo.data.module import DetectionDataModule
from zoo.data.summary import describe_split
from zoo.detector import Detector
from zoo.detector.checkpoint import read_checkpoint
from zoo.errors import InputError, Preempted
from zoo.evaluation.identity import write_predictions
from zoo.evaluation.scores import scores_table
from zoo.experiment.budget import DEFAULT_FIT_BUDGET, Budget
from zoo.experiment.comparison import count_processes
from zoo.io.configurations import read_yaml
from zoo.io.files import require_writable, write_atomically
from zoo.io.ownership import own_folder
from zoo.training.configuration import (
    DEFAULT_SEED,
    RUNS_FOLDER,
    add_arguments,
    add_logger_argument,
    first_difference,
    instantiate,
    link_classes,
    parse,
)
from zoo.training.start import add_start_arguments, resume_pixels, start_detector
from zoo.training.trainer import (
    check_checkpoint,
    check_classes,
    find_callback,
    make_trainer,
    model_key,
    process_rank,
    silence_lightning,
    terminate_children_on_error,
)
from zoo.weights import find_published, load


class SaveRunConfig(SaveConfigCallback):
    """Write the configuration of a run into the folder given by `--out`, independently of the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on the first process before the training. Without `--out`, Lightning writes it to the log folder."""
        if self.config.out is not None:
            text = self.parser.dump(self.config, skip_unset=False)
            write_atomically(Path(self.config.out) / self.config_filename, text)


class TrainingCLI(LightningCLI):
    """LightningCLI with this project's parser, defaults and checks; the constructor parses and executes the command.

    Args:
        args: command line, the verb first.
        budget: of `fit`; None for that of the configuration.

    Raises:
        InputError: the constructor got arguments, files or data that cannot be used.
    """

    def __init__(self, args: Sequence[str], budget: Budget | None = None) -> None:
        silence_lightning()
        self.budget = budget
        super().__init__(
            Detector,
            DetectionDataModule,
            subclass_mode_model=True,
            seed_everything_default=DEFAULT_SEED,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "zoo", "exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # detectors save their own constructor arguments
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs, each with the arguments of the Trainer's method that are not exposed as flags."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Add `--out` to fit, and `--predictions` to validate and test; see LightningCLI."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        text = "run folder; the same command resumes a run that was stopped in it (a new folder in runs/)"
        self._parser("fit").add_argument("--out", type=str | None, default=None, help=text)
        add_logger_argument(self._parser("fit"))
        add_start_arguments(self._parser("fit"))
        for verb in ("validate", "test"):
            text = "write the predictions to this file as COCO-results json"
            self._parser(verb).add_argument("--predictions", type=str | None, default=None, help=text)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See LightningCLI."""
        add_arguments(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See LightningCLI."""
        link_classes(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """See LightningCLI; translates our flags to Lightning's."""
        for ours, theirs in (("checkpoint", "ckpt_path"), ("seed", "seed_everything")):
            args = [re.sub(rf"^--{ours}(?==|$)", f"--{theirs}", argument) for argument in args]
        self.config = parse(parser, args)
        config = self.config[self.config.subcommand]
        self.trained_precision: str | None = None
        self.is_published = False
        if config.get("ckpt_path") is not None:
            names = ("last", "best") if self.config.subcommand == "fit" else ("best", "last")
            config.ckpt_path = str(choose_checkpoint(config.ckpt_path, names))
            self.is_published = self.config.subcommand != "fit" and find_published(Path(config.ckpt_path)) is not None
            if not self.is_published:  # raises InputError before Lightning reads it
                self.trained_precision = read_checkpoint(config.ckpt_path)["detector"].get("precision")
        if self.config.subcommand != "fit" and config.trainer.precision is None:
            config.trainer.precision = self.trained_precision

    def before_instantiate_classes(self) -> None:
        """Check that model and weights are given, and find the checkpoint to resume from."""
        verb, config = self.subcommand, self.config[self.subcommand]
        written = config.out if verb == "fit" else config.predictions
        if written is not None:
            require_writable(Path(written))
        if verb == "fit" and config.get("model") is None:
            raise InputError("no model; give --model NAME (see zoo models) or a file")
        if verb == "fit" and config.weights is not None and config.get("ckpt_path") is not None:
            raise InputError("give --checkpoint to go on with a training, or --model.weights to start one, not both")
        if verb == "fit":
            set_budget(config, self.budget)
        self.resume_checkpoint: str | None = None
        if verb == "fit" and config.out is not None and config.get("ckpt_path") is None:
            self.resume_checkpoint = self._find_resume_checkpoint(Path(config.out))
        if verb != "fit" and config.get("ckpt_path") is None:
            raise InputError("no weights; give --checkpoint FILE")
        if verb != "fit":
            self.save_config_callback = None  # validate and test write no run folder
            config.trainer.logger = config.trainer.logger or False
            config.trainer.enable_checkpointing = False

    def _find_resume_checkpoint(self, folder: Path) -> str | None:
        """The last checkpoint of the run in this folder; None where there is none.

        Raises:
            InputError: the folder has a run of another model or seed, or on other data.
        """
        last, config_file = folder / "checkpoints" / f"{LAST}.ckpt", folder / "config.yaml"
        if not last.exists():
            return None
        if not config_file.exists():
            raise InputError("has a checkpoint, but no config.yaml to compare with; give another --out", folder)
        ours = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
        theirs = read_yaml(config_file)
        for part in ("model", "weights", "weights_layout", "data", "seed_everything"):
            difference = first_difference(theirs.get(part), ours.get(part), part)
            if difference is not None:
                place, before, now = difference
                raise InputError(f"holds a run with {before}, now it is {now}; give another --out", folder, place)
        read_checkpoint(last)
        return str(last)

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; without `--model`, the model is that of the checkpoint."""
        self.config_init = instantiate(self.parser, self.config)
        built = self.config_init[self.subcommand]
        self.datamodule = built.data
        self.datamodule.setup(self.subcommand)  # raises errors in the data before a run folder is created
        if self.subcommand == "fit" and process_rank() == 0:
            for split in ("train", "val"):
                if split in self.datamodule.sources:
                    print(describe_split(split, self.datamodule.table(split)), flush=True)
        if self.subcommand == "validate":
            self.datamodule.table("val")  # `setup` accepts data without a val split
        if built.get("model") is None:
            self.model = load(built.ckpt_path)
            check_classes(self.model.class_names, self.datamodule.class_names, built.ckpt_path)
            if self.is_published:
                built.ckpt_path = None  # Lightning cannot read it
        else:
            self.model = built.model
            if built.ckpt_path is not None:
                check_checkpoint(self.model, built.ckpt_path)
            if self.subcommand == "fit" and self.resume_checkpoint is not None:
                resume_pixels(self.model, self.config.fit, self.resume_checkpoint)
            elif self.subcommand == "fit" and built.ckpt_path is None:
                started = start_detector(self.model, self.config.fit)
                if started is not None and process_rank() == 0:
                    print(started, flush=True)
        self.trainer = self.instantiate_trainer()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        callbacks = [*(given if isinstance(given, list) else [given]), *callbacks]
        if self.save_config_callback and not config.get("fast_dev_run"):
            parser, run_config = self._parser(self.subcommand), self.config[self.subcommand]
            to_logs = run_config.out is None
            callbacks.append(SaveRunConfig(parser, run_config, save_to_log_dir=to_logs, **self.save_config_kwargs))
        loggers = self.config.fit.logger if self.subcommand == "fit" else None
        arguments = {**config, "callbacks": callbacks}
        return make_trainer(arguments, self.datamodule, self._run_folder(), model_key(self.model), loggers)

    def _run_folder(self) -> Path | None:
        """The folder given by `--out`, or None."""
        out = self.config.fit.out if self.subcommand == "fit" else None
        return None if out is None else Path(out)

    def fit(self, **arguments: Any) -> None:
        """Train, and print the paths of the results. A run that fails before its first step leaves no folder."""
        resume = {} if self.resume_checkpoint is None else {"ckpt_path": self.resume_checkpoint}
        folder = self._run_folder() or Path(self.trainer.log_dir or RUNS_FOLDER)
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        owned = self._run_folder() if process_rank() == 0 else None
        try:
            with nullcontext() if owned is None else own_folder(owned), terminate_children_on_error(self.trainer):
                self.trainer.fit(**arguments | resume, weights_only=True)
        except Preempted:
            raise
        except SystemExit as exit_request:  # Lightning raises it on Ctrl-C
            raise KeyboardInterrupt from exit_request
        except Exception:
            if folder in new_folders and self.trainer.is_global_zero and self.trainer.global_step == 0:
                shutil.rmtree(folder, ignore_errors=True)
                for parent in new_folders[1:]:
                    _remove_if_empty(parent)
            raise
        if self.trainer.is_global_zero and not self.config.fit.trainer.fast_dev_run:
            self._print_scores("val")
            print(f"run folder: {folder}")
            paths = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            for path in filter(None, paths):
                print(f"checkpoint: {_shorten(Path(path))}")

    def _describe_evaluation(self, split: Literal["val", "test"]) -> None:
        """Print split, number of images and precision, and whether the training had another one."""
        if not self.trainer.is_global_zero:
            return
        precision = str(self.trainer.precision)
        other = self.trained_precision not in (None, precision)
        text = f" (the training had {self.trained_precision})" if other else ""
        print(f"{split}: {len(self.datamodule.table(split)):,} images, precision {precision}{text}", flush=True)

    def validate(self, **arguments: Any) -> None:
        """Evaluate on the validation split."""
        self._describe_evaluation("val")
        with terminate_children_on_error(self.trainer):
            self.trainer.validate(**arguments, verbose=False, weights_only=True)
        self._finish_evaluation("val")

    def test(self, **arguments: Any) -> None:
        """Evaluate on the test split."""
        self._describe_evaluation("test")
        with terminate_children_on_error(self.trainer):
            self.trainer.test(**arguments, verbose=False, weights_only=True)
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: Literal["val", "test"]) -> None:
        file = self.config[self.subcommand].predictions
        predictions = find_callback(self.trainer, MeanAveragePrecision).predictions(split)
        if file is not None and predictions is not None:  # None on all processes but the first
            write_predictions(predictions, file, self.datamodule.table(split))
        self._print_scores(split)

    def _print_scores(self, split: Literal["val", "test"]) -> None:
        scores = find_callback(self.trainer, MeanAveragePrecision).scores(split)
        if scores is not None and self.trainer.is_global_zero:
            Console().print(scores_table(scores))


def set_budget(config: Namespace, budget: Budget | None) -> None:
    """Set the length of the training, and print it where neither the command line nor the configuration has one."""
    trainer = config.trainer
    if budget is None:
        if trainer.fast_dev_run or trainer.max_epochs is not None or trainer.max_steps != -1 or trainer.max_time:
            return
        budget = DEFAULT_FIT_BUDGET
        if process_rank() == 0:
            print(f"budget: {budget} (change it by --epochs, --images, --minutes or --steps)", flush=True)
    processes = count_processes(config) if budget.images is not None else 1
    per_step = config.data.batch_size * (trainer.accumulate_grad_batches or 1) * processes
    for key, value in budget.trainer_arguments(per_step).items():
        config[f"trainer.{key}"] = value


def _shorten(path: Path) -> Path:
    """The path relative to the working directory if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
