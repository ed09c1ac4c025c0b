"""What stands around every Trainer of the house: callbacks, loggers, checkpoints, processes.

`zoo fit` and `zoo compare` use the same pieces, so a run of a comparison is a `zoo fit` with a budget.
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
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.plugins import LayerSync
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console

from zoo.callbacks import (
    LearningCurve,
    MeanAveragePrecision,
    Preemption,
    ProgressLines,
    Resumption,
    StepSeeds,
    StopOnNonFiniteLoss,
    ThrottledProgressBar,
)
from zoo.callbacks.preemption import LAST
from zoo.data.module import DetectionDataModule
from zoo.data.source import DataWarning
from zoo.detector import Detector
from zoo.errors import InputError, Preempted
from zoo.models import MODELS, read_checkpoint
from zoo.proposals import CacheWarning
from zoo.training.checkpoints import AtomicCheckpointIO
from zoo.training.configuration import RUNS_FOLDER, one_line
from zoo.training.sync_batchnorm import TimmSyncBatchNorm

MONITOR = "val/AP"  # what "best" means everywhere


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
    plugins = arguments.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, Sequence) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    if arguments.get("sync_batchnorm") and not any(isinstance(plugin, LayerSync) for plugin in plugins):
        plugins.append(TimmSyncBatchNorm())
    has_place = TorchElasticEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    arguments["plugins"] = plugins
    if arguments.get("enable_model_summary") is None:
        arguments["enable_model_summary"] = False
    with explained():
        if SLURMEnvironment.detect() and not has_place:
            # Preemption saves and queues again. Lightning would do it in files that other runs take for theirs.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return Trainer(**arguments)


@contextmanager
def explained() -> Iterator[None]:
    """What Lightning has against a Trainer's arguments, in one line.

    Raises:
        InputError: instead of what Lightning raises.
    """
    try:
        yield
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
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


def process_rank() -> int:
    """Number of this process among those of a training, 0 for the first."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    # Before the processes know each other: Lightning reads it from what srun, torchrun or itself gave them.
    return int(rank_zero_only.rank or 0)  # type: ignore[attr-defined]


def terminate_children(trainer: Trainer) -> None:
    """End the processes that Lightning started for this training: when the first one fails alone, they wait for it."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGKILL)


@contextmanager
def together(trainer: Trainer) -> Iterator[None]:
    """Around work of a Trainer: a process that fails alone ends those that it started."""
    try:
        yield
    except Preempted:
        raise
    except Exception:
        terminate_children(trainer)
        raise


def preserve_metrics_csv(folder: Path) -> None:
    """Lightning's CSV logger starts its file anew; what an earlier part of the run logged is kept beside it."""
    metrics = folder / "metrics.csv"
    if metrics.exists():
        part = len(list(folder.glob("metrics_part*.csv"))) + 1
        metrics.rename(folder / f"metrics_part{part}.csv")


def make_inference_trainer(accelerator: str, precision: str, progress: bool = False, devices: int = 1) -> Trainer:
    """A Trainer that is asked for devices and a precision, and writes nothing. Each device has a process of its own.

    Raises:
        InputError: one of them is not to be had here.
    """
    try:
        return Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, ValueError) as error:
        raise InputError(f"{one_line(str(error))} (see --accelerator, --devices and --precision)") from error


def default_callbacks(
    given: Sequence[Callback], arguments: dict[str, Any], data: DetectionDataModule, folder: Path | None
) -> list[Callback]:
    """What every training has around it, less what was given and what the Trainer's switches turn off."""
    callbacks: list[Callback] = [MeanAveragePrecision(), StopOnNonFiniteLoss(), LearningCurve()]
    callbacks += [StepSeeds(), Resumption(), Preemption()]
    if arguments.get("logger") is not False:
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if arguments.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
        callbacks.append(ThrottledProgressBar() if Console().is_terminal else ProgressLines())
    callbacks = [callback for callback in callbacks if not any(type(callback) is type(other) for other in given)]
    if arguments.get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in given):
        callbacks += default_checkpoints("val" in data.sources, folder)
    return callbacks


def default_checkpoints(has_validation: bool, folder: Path | None) -> list[ModelCheckpoint]:
    """Keeps `checkpoints/last.ckpt` after every epoch, and `checkpoints/best.ckpt` by validation AP."""
    where = None if folder is None else folder / "checkpoints"
    last = ModelCheckpoint(where, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
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


def silence_lightning() -> None:
    """Silence what Lightning says on every run and nobody can act on."""
    import logging

    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what went wrong comes as an error as well
    for message in (
        ".*does not have many workers.*",  # the number of workers is the data file's choice
        ".*exists and is not empty.*",  # a run that is taken up again
        ".*smaller than the logging interval.*",
        ".*Starting from v1.9.0, `tensorboardX`.*",
        ".*when using `ckpt_path`, callbacks used.*",  # measuring needs none of the checkpoint callbacks
        ".*across ranks is zero.*",  # no validation split
        ".*your dataloader is not resumable.*",  # the DataModule has the place
        ".*You're using the WeightAveraging callback with a model that overrides.*",  # which shards nothing
        ".*isinstance.treespec, LeafSpec.*",  # Lightning and this torch
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What is odd about the data in one line; where in our code that was noticed helps nobody."""
    if issubclass(category, (DataWarning, CacheWarning)):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _describe(shape: tuple[int, ...] | None) -> str:
    return "nothing of that name" if shape is None else f"shape {list(shape)}"


C = TypeVar("C")


def find_callback(trainer: Trainer, kind: type[C]) -> C:
    """The Trainer's callback of a class."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
