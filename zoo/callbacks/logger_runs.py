"""Keep the ids of the runs of Weights & Biases and MLflow, in which a resumed training goes on."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

from zoo.detector import Detector
from zoo.io.files import decode_json, encode_json, write_atomically

NAME = "loggers.json"


class LoggerRuns(Callback):
    """Record in the run folder which runs of Weights & Biases and MLflow a training writes to."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write down the ids of the runs, which Lightning has started, and describe the detector there."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        ids: dict[str, str] = {}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                ids["wandb"] = str(logger.experiment.id)
            elif isinstance(logger, MLFlowLogger):
                ids["mlflow"] = str(logger.run_id)
            else:
                continue
            logger.log_hyperparams(_describe(pl_module))
        if ids and trainer.log_dir is not None:
            folder = Path(trainer.log_dir)
            write_atomically(folder / NAME, encode_json(read_run_ids(folder) | ids))


def _describe(module: LightningModule) -> dict[str, Any]:
    """Class and constructor arguments of a detector; the class and `hparams` of any other module."""
    arguments = module.arguments if isinstance(module, Detector) else dict(module.hparams)
    return {"detector": type(module).__name__, **arguments}


def read_run_ids(folder: Path) -> dict[str, str]:
    """Ids of the runs that the training in a folder wrote to, by the name of the logger."""
    file = folder / NAME
    return decode_json(file, "delete it to start new runs there") if file.is_file() else {}
