"""`zoo fit`, `validate` and `test`: Lightning's command line with the house's defaults."""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from zoo.callbacks import MeanAveragePrecision
from zoo.callbacks.preemption import LAST
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError, Preempted
from zoo.evaluation.predictions import write_coco_results
from zoo.evaluation.scores import scores_table
from zoo.io.files import write_atomically
from zoo.models import load, read_checkpoint
from zoo.training.configuration import (
    DEFAULT_SEED,
    RUNS_FOLDER,
    add_arguments,
    first_difference,
    instantiate,
    link_classes,
    parse,
    read_yaml,
)
from zoo.training.trainer import (
    check_checkpoint,
    check_classes,
    find_callback,
    make_trainer,
    model_key,
    preserve_metrics_csv,
    process_rank,
    silence_lightning,
    together,
)


class SaveRunConfig(SaveConfigCallback):
    """Writes the configuration of a run into the folder that was asked for, whatever loggers there are."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """On the first process, before the training; where no folder was asked for, the logs have it."""
        if self.config.out is not None:
            written = self.parser.dump(self.config, skip_unset=False)
            write_atomically(Path(self.config.out) / self.config_filename, written)


class TrainingCLI(LightningCLI):
    """`zoo fit`, `validate` and `test`: Lightning's command line with the house's defaults.

    Raises:
        InputError: from the constructor, which does it all, whatever the user handed in that cannot be used.
    """

    def __init__(self, args: Sequence[str]) -> None:
        silence_lightning()
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
        text = "run folder; where a run was stopped in it, the same command goes on with it (a new one in runs/)"
        self._parser("fit").add_argument("--out", type=str | None, default=None, help=text)
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
        checkpoint = self.config[self.config.subcommand].get("ckpt_path")
        if checkpoint is not None:
            read_checkpoint(checkpoint)  # before Lightning does

    def before_instantiate_classes(self) -> None:
        """See that there is something to train or to measure, before anything is built."""
        verb, config = self.subcommand, self.config[self.subcommand]
        if verb == "fit" and config.get("model") is None:
            raise InputError("no model; give --model FILE")
        self.own_checkpoint: str | None = None
        if verb == "fit" and config.out is not None and config.get("ckpt_path") is None:
            self.own_checkpoint = self._find_own_checkpoint(Path(config.out))
        if verb != "fit" and config.get("ckpt_path") is None:
            raise InputError("no weights; give --checkpoint FILE")
        if verb != "fit":
            self.save_config_callback = None  # measuring leaves no run folder behind
            config.trainer.logger = config.trainer.logger or False
            config.trainer.enable_checkpointing = False

    def _find_own_checkpoint(self, folder: Path) -> str | None:
        """What a run in this folder goes on from, None where there is nothing yet.

        Raises:
            InputError: the folder has a run of another model, or on other data.
        """
        last, written = folder / "checkpoints" / f"{LAST}.ckpt", folder / "config.yaml"
        if not last.exists():
            return None
        if not written.exists():
            raise InputError("has a checkpoint, but no config.yaml that says of what; give another --out", folder)
        ours = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
        theirs = read_yaml(written)
        for part in ("model", "data", "seed_everything"):
            difference = first_difference(theirs.get(part), ours.get(part), part)
            if difference is not None:
                place, before, now = difference
                raise InputError(f"holds a run with {before}, now it is {now}; give another --out", folder, place)
        read_checkpoint(last)
        return str(last)

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; where no model is named, the checkpoint says what it is."""
        self.config_init = instantiate(self.parser, self.config)
        built = self.config_init[self.subcommand]
        self.datamodule = built.data
        self.datamodule.setup(self.subcommand)  # what is wrong with the data is said before a run folder is made
        if self.subcommand == "validate":
            self.datamodule.table("val")  # a training may do without
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
            to_logs = written.out is None
            callbacks.append(SaveRunConfig(parser, written, save_to_log_dir=to_logs, **self.save_config_kwargs))
        folder = self._run_folder()
        if folder is not None and process_rank() == 0:
            preserve_metrics_csv(folder)
        return make_trainer({**config, "callbacks": callbacks}, self.datamodule, folder, model_key(self.model))

    def _run_folder(self) -> Path | None:
        """The one that was asked for."""
        out = self.config.fit.out if self.subcommand == "fit" else None
        return None if out is None else Path(out)

    def fit(self, **arguments: Any) -> None:
        """Train, and say where the results are. A run that ended before its first step leaves nothing behind."""
        own = {} if self.own_checkpoint is None else {"ckpt_path": self.own_checkpoint}
        folder = self._run_folder() or Path(self.trainer.log_dir or RUNS_FOLDER)
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            with together(self.trainer):
                self.trainer.fit(**arguments | own, weights_only=True)
        except Preempted:
            raise
        except SystemExit as leave:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from leave
        except Exception:
            if folder in made and self.trainer.is_global_zero and self.trainer.global_step == 0:
                shutil.rmtree(folder, ignore_errors=True)
                for parent in made[1:]:
                    _remove_if_empty(parent)
            raise
        if self.trainer.is_global_zero and not self.config.fit.trainer.fast_dev_run:
            self._print_scores("val")
            print(f"run folder: {folder}")
            kept = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            for path in filter(None, kept):
                print(f"checkpoint: {os.path.relpath(path)}")

    def validate(self, **arguments: Any) -> None:
        """Measure on the validation split."""
        with together(self.trainer):
            self.trainer.validate(**arguments, verbose=False, weights_only=True)
        self._finish_measuring("val")

    def test(self, **arguments: Any) -> None:
        """Measure on the test split."""
        with together(self.trainer):
            self.trainer.test(**arguments, verbose=False, weights_only=True)
        self._finish_measuring("test")

    def _finish_measuring(self, split: Literal["val", "test"]) -> None:
        file = self.config[self.subcommand].predictions
        predictions = find_callback(self.trainer, MeanAveragePrecision).predictions(split)
        if file is not None and predictions is not None:  # the first process has them
            write_coco_results(predictions, file, self.datamodule.class_ids)
        self._print_scores(split)

    def _print_scores(self, split: Literal["val", "test"]) -> None:
        scores = find_callback(self.trainer, MeanAveragePrecision).scores(split)
        if scores is not None and self.trainer.is_global_zero:
            Console().print(scores_table(scores))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
