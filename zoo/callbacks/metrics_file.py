"""Keep the rows of metrics.csv when a training is resumed in its folder."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger

NAME = "metrics.csv"


class KeepMetricsFile(Callback):
    """Continue the metrics.csv of an earlier part of a run, which Lightning's CSV logger deletes at the start.

    Rows are kept up to the step of the checkpoint, since the later ones are logged again.

    Args:
        folder: of the run; its file is read when this is built, before there is a Trainer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._rows: list[dict[str, str]] = []
        self._resumed_step = 0
        if (folder / NAME).is_file():
            with (folder / NAME).open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            # the last one may be cut off
            self._rows = [row for row in rows if None not in row.values() and row["step"].isdecimal()]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write all rows back as soon as the logger has deleted them."""
        self._write(trainer, self._rows)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the step at which the training resumes."""
        self._resumed_step = checkpoint["global_step"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the rows that are logged again."""
        self._write(trainer, [row for row in self._rows if int(row["step"]) < self._resumed_step])

    def _write(self, trainer: Trainer, rows: list[dict[str, str]]) -> None:
        if not self._rows or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                writer = logger.experiment
                writer.metrics_keys = list(self._rows[0])
                with Path(writer.metrics_file_path).open("w", newline="") as stream:
                    table = csv.DictWriter(stream, fieldnames=writer.metrics_keys)
                    table.writeheader()
                    table.writerows(rows)
