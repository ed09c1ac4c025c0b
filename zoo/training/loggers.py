"""Loggers by name: `--logger tensorboard csv wandb mlflow`.

metrics.csv of the run folder is always written. TensorBoard's event files lie beside it. Weights & Biases keeps its
files in the run folder; project and mode are read from its own variables WANDB_PROJECT and WANDB_MODE. MLflow uses the
store that MLFLOW_TRACKING_URI names, and else its own default, mlflow.db in the working directory, which `mlflow ui`
shows. A run that goes on goes on in them, too (`zoo.callbacks.LoggerRuns`).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from zoo.callbacks.logger_runs import read_run_ids
from zoo.errors import InputError
from zoo.io.logger_names import DEFAULT_LOGGERS, check_loggers
from zoo.training.parser_errors import one_line

PROJECT = "zoo"
HINTS = {"wandb": ", or set WANDB_MODE=offline", "mlflow": " (see MLFLOW_TRACKING_URI)"}


def build_loggers(names: Sequence[str] | None, folder: Path | None, root: Path, name: str) -> list[Logger]:
    """The named loggers and a CSV logger, which write to the same folder.

    Args:
        names: of the loggers; None for `DEFAULT_LOGGERS`.
        folder: of the run; None for a new `<root>/<name>/version_<n>`.
        root: parent of new folders.
        name: of the run.

    Raises:
        InputError: an unknown name, or a logger's package is not installed.
    """
    names = DEFAULT_LOGGERS if names is None else names
    check_loggers(names)
    place = (root, name, None) if folder is None else (folder.parent, folder.name, "")
    csv = CSVLogger(place[0], name=place[1], version=place[2])
    folder = Path(csv.log_dir)
    ids = read_run_ids(folder)
    loggers: list[Logger] = []
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(place[0], name=place[1], version=csv.version))
    loggers.append(csv)
    if "wandb" in names:
        loggers.append(_build_wandb(folder, name, ids.get("wandb")))
    if "mlflow" in names:
        loggers.append(_build_mlflow(name, ids.get("mlflow")))
    return loggers


def _build_wandb(folder: Path, name: str, run_id: str | None) -> Logger:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandbLogger(name=name, project=project, save_dir=folder, id=run_id, resume="allow")


def _build_mlflow(name: str, run_id: str | None) -> Logger:
    import mlflow

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    return MLFlowLogger(experiment, run_name=name, tracking_uri=mlflow.get_tracking_uri(), run_id=run_id)


def finish_loggers(exit_code: int) -> None:
    """End the run of Weights & Biases in this process, if there is one: a forked process has no exit handlers."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def describe_refusal(error: Exception) -> InputError | None:
    """The error that says in one line what Weights & Biases or MLflow refused; None for any other exception."""
    name = type(error).__module__.partition(".")[0]
    if name not in HINTS:
        return None
    return InputError(f"--logger {name}: {one_line(str(error)).rstrip('.')}{HINTS[name]}")
