"""Progress of trainings and evaluations, in lines of at most 80 columns.

A line is printed after an epoch, and within long epochs at least every 30 s. In a terminal, a last line is rewritten in
place as well.
"""

import time
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from zoo.detector.progress import counted_fraction, elapsed_fraction

SECONDS_BETWEEN_EPOCHS = 5.0  # lines of short epochs are left out
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 0.5  # of the last line of a terminal
SHOWN = {"train/loss": "loss", "val/AP": "AP", "val/AP50": "AP50"}


class ProgressLines(Callback):
    """Print the progress of the first process, and estimate the time that is left.

    Args:
        console: to print to; standard output if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False)
        self.live: Live | None = None
        self.start = self.last_line = self.last_update = 0.0
        self.start_fraction = 0.0
        self.has_validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(trainer)
        self.start_fraction = completed_fraction(trainer)  # a training that goes on has done a part before

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Show the position in the epoch."""
        self._tick(trainer, lambda: self._describe_training(trainer, with_batch=True))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line, with metrics if there was a validation."""
        is_last = counted_fraction(trainer) >= 1 or trainer.should_stop
        if trainer.is_global_zero and (is_last or time.monotonic() - self.last_line >= SECONDS_BETWEEN_EPOCHS):
            self._print(self._describe_training(trainer, with_batch=False))
        self.has_validated = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the last line of a terminal."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the last line of a terminal."""
        self._end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, unless the validation is a part of a training."""
        if trainer.state.fn != "fit":
            self._begin(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Show the number of validated batches."""
        self._tick_evaluation(trainer, "validating", batch_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the last line of a terminal, unless the training goes on."""
        self.has_validated = True
        if trainer.state.fn != "fit":
            self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(trainer)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Show the number of tested batches."""
        self._tick_evaluation(trainer, "testing", batch_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the last line of a terminal."""
        self._end()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(trainer)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Show the number of processed batches."""
        self._tick_evaluation(trainer, "predicting", batch_idx, trainer.num_predict_batches)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the last line of a terminal."""
        self._end()

    def _begin(self, trainer: Trainer) -> None:
        self.start = self.last_line = time.monotonic()
        if self.console.is_terminal and trainer.is_global_zero:
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
            self.live.start()

    def _end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _tick_evaluation(self, trainer: Trainer, verb: str, batch_idx: int, batches: list[int | float]) -> None:
        def describe() -> str:
            prefix = f"{describe_epoch(trainer)}  " if trainer.state.fn == "fit" else ""
            return f"{prefix}{verb}  batch {batch_idx + 1}/{sum(batches)}  {self._describe_time(None)}"

        self._tick(trainer, describe)

    def _tick(self, trainer: Trainer, describe: Callable[[], str]) -> None:
        """Print or update a line if it is time to; only then metrics are read, which waits for a GPU."""
        now = time.monotonic()
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if self.live is not None and now - self.last_update >= SECONDS_BETWEEN_UPDATES:
            self.last_update = now
            self.live.update(Text(describe(), no_wrap=True, overflow="ellipsis"), refresh=True)
        if self.live is None and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self._print(describe())

    def _print(self, line: str) -> None:
        self.last_line = time.monotonic()
        print(line, flush=True)  # a terminal's last line stays below

    def _describe_training(self, trainer: Trainer, with_batch: bool) -> str:
        parts = [describe_epoch(trainer)]
        if with_batch:
            parts.append(
                f"batch {trainer.fit_loop.epoch_loop.batch_progress.current.ready}/{trainer.num_training_batches}"
            )
        metrics = trainer.callback_metrics
        shown = [key for key in SHOWN if key in metrics and (key == "train/loss" or self.has_validated)]
        parts += [f"{SHOWN[key]} {float(metrics[key]):.3f}" for key in shown]
        return "  ".join([*parts, self._describe_time(completed_fraction(trainer))])

    def _describe_time(self, fraction: float | None) -> str:
        elapsed = time.monotonic() - self.start
        done = 0.0 if fraction is None else fraction - self.start_fraction
        left = ""
        if fraction is not None and done > 0.01:
            left = f", {describe_seconds(elapsed * max(1 - fraction, 0.0) / done)} left"
        return describe_seconds(elapsed) + left


def completed_fraction(trainer: Trainer) -> float:
    """The largest of the completed fractions of steps, epochs and, by the clock of this process, `max_time`."""
    return max(counted_fraction(trainer), elapsed_fraction(trainer) or 0.0)


def describe_epoch(trainer: Trainer) -> str:
    """Such as "epoch 3/30", with the step where steps are limited; without the total where it is not known."""
    of_epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    steps = f"  step {trainer.global_step}/{trainer.max_steps}" if trainer.max_steps > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of_epochs}{steps}"


def describe_seconds(seconds: float) -> str:
    """Such as "45 s", "3.5 min" and "2.1 h"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
