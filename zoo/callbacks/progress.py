"""Training progress: a progress bar in a terminal, lines of text elsewhere."""

import math
import time

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar

SECONDS_BETWEEN_LINES = 5.0  # at least
STEPS_BETWEEN_METRICS = 20  # of the progress bar
SHOWN = ("train/loss", "val/AP", "val/AP50")


class ThrottledProgressBar(RichProgressBar):
    """Lightning's rich progress bar with metrics every 20 steps; at every step they would synchronise with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Metrics beside the bar, updated every 20 training steps and in validation."""
        if not trainer.training or trainer.global_step % STEPS_BETWEEN_METRICS == 1 or not self.shown:
            self.shown = super().get_metrics(trainer, pl_module)
        return self.shown


class ProgressLines(Callback):
    """Print a line after an epoch, at most every few seconds, for output to files and pipes."""

    def __init__(self) -> None:
        self.start = 0.0
        self.last_line = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print epoch, step, metrics and minutes."""
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
