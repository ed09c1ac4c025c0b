"""Build Lightning Trainers with the default callbacks, loggers, checkpoints and plugins.

Used by `zoo fit` and `zoo compare` alike, so a run of a comparison equals a `zoo fit` with its budget.
"""

import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning_fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.plugins import LayerSync
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from zoo.callbacks import (
    KeepMetricsFile,
    LearningCurve,
    LoggerRuns,
    MeanAveragePrecision,
    Preemption,
    ProgressLines,
    Resumption,
    StepSeeds,
    StopOnNonFiniteLoss,
)
from zoo.callbacks.preemption import LAST
from zoo.data.module import DetectionDataModule
from zoo.data.source import DataWarning
from zoo.detector import Detector
from zoo.detector.checkpoint import read_checkpoint
from zoo.errors import InputError, Preempted
from zoo.models import MODELS
from zoo.nn.pretrained import WeightsWarning
from zoo.proposals import CacheWarning
from zoo.training.checkpoints import AtomicCheckpointIO
from zoo.training.configuration import RUNS_FOLDER
from zoo.training.loggers import build_loggers, describe_refusal
from zoo.training.parser_errors import one_line
from zoo.training.sync_batchnorm import TimmSyncBatchNorm

MONITOR = "val/AP"  # selects the best checkpoint


def make_trainer(
    arguments: dict[str, Any],
    data: DetectionDataModule,
    folder: Path | None,
    name: str,
    loggers: Sequence[str] | None = None,
) -> Trainer:
    """Trainer with the default callbacks, loggers and plugins.

    Args:
        arguments: of the Trainer. Its callbacks replace default ones of the same class, its loggers all default ones.
        data: without a validation split there is no best checkpoint.
        folder: folder of logs and checkpoints; None for a new `<default_root_dir>/<name>/version_<n>`.
        name: of the run.
        loggers: names of the loggers, where `arguments` has none; None for the default ones.

    Raises:
        InputError: invalid Trainer arguments, for example an accelerator that is not available.
    """
    arguments = dict(arguments)
    if arguments.get("logger") in (None, True):
        root = Path(arguments.get("default_root_dir") or RUNS_FOLDER)
        arguments["logger"] = build_loggers(loggers, folder, root, name)
    elif loggers is not None:
        raise InputError("give --logger or --trainer.logger, not both")
    given = arguments.get("callbacks") or []
    given = list(given) if isinstance(given, Sequence) else [given]
    arguments["callbacks"] = given + default_callbacks(given, arguments, data, folder)
    if not any(isinstance(callback, ProgressBar) for callback in arguments["callbacks"]):
        arguments["enable_progress_bar"] = False  # else Lightning adds its own
    plugins = arguments.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    if arguments.get("sync_batchnorm") and not any(isinstance(plugin, LayerSync) for plugin in plugins):
        plugins.append(TimmSyncBatchNorm())
    has_cluster = TorchElasticEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    arguments["plugins"] = plugins
    if arguments.get("enable_model_summary") is None:
        arguments["enable_model_summary"] = False
    with convert_trainer_errors():
        if SLURMEnvironment.detect() and not has_cluster:
            # Preemption saves and requeues. Lightning's own checkpoints for this would be picked up by other runs.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return Trainer(**arguments)


@contextmanager
def convert_trainer_errors() -> Iterator[None]:
    """Convert Lightning's errors about Trainer arguments.

    Raises:
        InputError: in place of Lightning's exception, with its message in one line.
    """
    try:
        yield
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"trainer: {one_line(str(error))}") from error


def process_rank() -> int:
    """Global rank of this process, 0 for the first."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    # Before torch.distributed is initialised: Lightning reads it from the variables of srun, torchrun or itself.
    return int(rank_zero_only.rank or 0)  # type: ignore[attr-defined]


def terminate_children(trainer: Trainer) -> None:
    """Kill the processes that Lightning started for this training; they would wait for the first one if it failed."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGKILL)


@contextmanager
def terminate_children_on_error(trainer: Trainer) -> Iterator[None]:
    """Context for Trainer calls: on an exception other than `Preempted`, kill the processes that this one started.

    Raises:
        InputError: in place of an exception of Weights & Biases or MLflow.
    """
    try:
        yield
    except Preempted:
        raise
    except Exception as error:
        terminate_children(trainer)
        refusal = describe_refusal(error)
        if refusal is not None:
            raise refusal from error
        raise


def make_inference_trainer(accelerator: str, precision: str, progress: bool = False, devices: int = 1) -> Trainer:
    """Trainer for validation and prediction that writes no files, with one process a device.

    Raises:
        InputError: accelerator, devices or precision are not available.
    """
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[ProgressLines()] if progress else None,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, ValueError) as error:
        raise InputError(f"{one_line(str(error))} (see --accelerator, --devices and --precision)") from error


def default_callbacks(
    given: Sequence[Callback], arguments: dict[str, Any], data: DetectionDataModule, folder: Path | None
) -> list[Callback]:
    """Default callbacks, without those of the classes in `given` and those that the Trainer's arguments disable."""
    callbacks: list[Callback] = [MeanAveragePrecision(), StopOnNonFiniteLoss(), LearningCurve()]
    callbacks += [StepSeeds(), Resumption(), Preemption(resumes_itself=folder is not None)]
    if folder is not None:
        callbacks.append(KeepMetricsFile(folder))
    if arguments.get("logger") is not False:
        callbacks += [LoggerRuns(), LearningRateMonitor(logging_interval="step")]
    if arguments.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
        callbacks.append(ProgressLines())
    callbacks = [callback for callback in callbacks if not any(type(callback) is type(other) for other in given)]
    if arguments.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
        callbacks += default_checkpoints("val" in data.sources, folder)
    return callbacks


def default_checkpoints(has_validation: bool, folder: Path | None) -> list[ModelCheckpoint]:
    """Callbacks that save `checkpoints/last.ckpt` after every epoch, and `checkpoints/best.ckpt` by validation AP."""
    directory = None if folder is None else folder / "checkpoints"
    last = ModelCheckpoint(directory, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    if not has_validation:
        return [last]
    best = ModelCheckpoint(
        directory,
        filename="best",
        monitor=MONITOR,
        mode="max",
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    return [best, last]


def check_checkpoint(detector: Detector, file: str | Path) -> None:
    """Check that a checkpoint fits a detector.

    Raises:
        InputError: it is missing or damaged, or of another detector, other classes or other shapes.
    """
    content = read_checkpoint(file)
    recorded = content["detector"]
    ours = type(detector).__name__
    if recorded["class"] != ours:
        raise InputError(
            f"is a checkpoint of {recorded['class']}, but the model is {ours}; give the model of the checkpoint", file
        )
    check_classes(recorded["arguments"]["class_names"], detector.class_names, file)
    shapes = {key: tuple(value.shape) for key, value in content["state_dict"].items()}
    expected = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    for key in sorted(shapes.keys() | expected.keys()):
        if shapes.get(key) != expected.get(key):
            raise InputError(
                f"does not fit the model: it has {_describe_shape(shapes.get(key))}, the model has "
                f"{_describe_shape(expected.get(key))}; give the model configuration of the checkpoint",
                file,
                key,
            )


def check_classes(recorded: Sequence[str], expected: Sequence[str], file: str | Path) -> None:
    """Check that a checkpoint was trained on the classes of the data.

    Raises:
        InputError: number, names or order of the classes differ.
    """
    if len(recorded) != len(expected):
        raise InputError(f"was trained on {len(recorded)} classes, but the data has {len(expected)}", file)
    for label, (theirs, ours) in enumerate(zip(recorded, expected, strict=True)):
        if theirs != ours:
            raise InputError(
                f"class {label} is {theirs!r} in the checkpoint and {ours!r} in the data; the lists must be equal", file
            )


def model_key(detector: Detector) -> str:
    """Key of the detector in `MODELS`, or its class name in lower case if it is not in it."""
    keys = [key for key, cls in MODELS.items() if cls is type(detector)]
    return keys[0] if keys else type(detector).__name__.lower()


def silence_lightning() -> None:
    """Silence Lightning's messages that appear in every run and need no action; print our warnings in one line."""
    import logging

    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.accelerators.cuda").setLevel(logging.WARNING)  # the visible devices
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # failures raise an error as well
    for message in (
        ".*does not have many workers.*",  # the data configuration sets the number of workers
        ".*exists and is not empty.*",  # a resumed run
        ".*smaller than the logging interval.*",
        ".*Starting from v1.9.0, `tensorboardX`.*",
        ".*when using `ckpt_path`, callbacks used.*",  # evaluation needs no checkpoint callbacks
        ".*across ranks is zero.*",  # no validation split
        ".*your dataloader is not resumable.*",  # the DataModule restores the position in the epoch
        ".*You're using the WeightAveraging callback with a model that overrides.*",  # it does not shard the model
        ".*isinstance.treespec, LeafSpec.*",  # deprecation in torch, used by Lightning
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings in one line without the source position; others as Python formats them."""
    if issubclass(category, (DataWarning, CacheWarning, WeightsWarning)):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _describe_shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {list(shape)}"


C = TypeVar("C")


def find_callback(trainer: Trainer, kind: type[C]) -> C:
    """The Trainer's callback of a class."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
