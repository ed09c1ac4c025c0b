"""How a training shows that it gets on: a bar in a terminal, lines elsewhere."""

import math
import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar

SECONDS_BETWEEN_LINES = 5.0  # of a training whose output goes into a file
STEPS_BETWEEN_METRICS = 20  # of the bar in a terminal
SHOWN = ("train/loss", "val/AP", "val/AP50")


class ThrottledProgressBar(RichProgressBar):
    """Lightning's bar, which would read the loss after every step, and so have a GPU waited for at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics beside the bar: new ones every 20 steps, and whenever no training step was done."""
        if not trainer.training or trainer.global_step % STEPS_BETWEEN_METRICS == 1 or not self.shown:
            self.shown = super().get_metrics(trainer, pl_module)
        return self.shown


class ProgressLines(Callback):
    """One line after an epoch, a few seconds apart at least: progress for logs and pipes."""

    def __init__(self) -> None:
        self.start = 0.0
        self.last_line = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the training stands."""
        now = time.monotonic()
        is_last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop
        if not trainer.is_global_zero or (now - self.last_line < SECONDS_BETWEEN_LINES and not is_last):
            return
        self.last_line = now
        metrics = trainer.callback_metrics
        shown = [f"{key} {float(metrics[key]):.3f}" for key in SHOWN if key in metrics]
        of_epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        minutes = (now - self.start) / 60
        parts = [f"epoch {trainer.current_epoch + 1}{of_epochs}", f"step {trainer.global_step}", *shown]
        print("  ".join([*parts, f"{minutes:.1f} min"]), flush=True)
