"""Learning curve and speed of a training."""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.types import RawBatch

WARMUP_STEPS = 5  # first steps allocate, compile and wait for loader workers


class LearningCurve(Callback):
    """Record validation AP and training loss over epochs, images and minutes, and the training speed.

    `points` holds one dict for each validation, with the fields of `zoo.report.results.CurvePoint`. Checkpoints store
    the state, so that a resumed run continues its curve and its training time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []
        self.images_seen = 0  # by all processes
        self.seconds = 0.0  # of training, without validation
        # images/s of single steps; a thousand are enough for a median and keep checkpoints small
        self._rates: deque[float] = deque(maxlen=1000)
        self._loss_sum: Tensor | float = 0.0
        self._num_losses = 0
        self._clock: float | None = None  # start of the current training interval; None while not training
        self._last_step: float | None = None
        self._steps_to_skip = WARMUP_STEPS

    @property
    def train_images_per_s(self) -> float | None:
        """Training images a second over all processes: the median over steps, including data loading."""
        return statistics.median(self._rates) if self._rates else None

    @property
    def train_minutes(self) -> float:
        """Minutes of training so far, without validation."""
        running = time.perf_counter() - self._clock if self._clock is not None else 0.0
        return (self.seconds + running) / 60

    @property
    def mean_loss(self) -> float:
        """Mean training loss since the last validation; synchronises with the device."""
        return float(self._loss_sum) / self._num_losses if self._num_losses else math.nan

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()
        self._last_step = None
        self._steps_to_skip = WARMUP_STEPS

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RawBatch, batch_idx: int
    ) -> None:
        """Count images and time the step from the end of the previous one, without synchronisation."""
        num_images = len(batch[0]) * trainer.world_size
        self.images_seen += num_images
        now = time.perf_counter()
        if self._steps_to_skip > 0:
            self._steps_to_skip -= 1
        elif self._last_step is not None:
            self._rates.append(num_images / (now - self._last_step))
        self._last_step = now
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Lightning divides the loss by accumulate_grad_batches
            self._loss_sum = self._loss_sum + loss.detach().float() * trainer.accumulate_grad_batches
            self._num_losses += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point from the metrics of `MeanAveragePrecision`, and restart the clock."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        self.points.append(
            {
                "epoch": trainer.current_epoch + 1,  # the validation is in it, or after it
                "images_seen": self.images_seen,
                "minutes": self.seconds / 60,
                "AP": float(metrics.get("val/AP", math.nan)),
                "AP50": float(metrics.get("val/AP50", math.nan)),
                "loss": self.mean_loss,
            }
        )
        self._loss_sum, self._num_losses = 0.0, 0
        self._clock = time.perf_counter()
        self._last_step = None  # else the next step's time would include the validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock()

    def state_dict(self) -> dict[str, Any]:
        """State as plain values, so that checkpoints load with `weights_only`."""
        return {
            "points": [dict(point) for point in self.points],
            "images_seen": self.images_seen,
            "seconds": self.train_minutes * 60,
            "rates": list(self._rates),
            "loss_sum": float(self._loss_sum),
            "num_losses": self._num_losses,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.points = [dict(point) for point in state_dict["points"]]
        self.images_seen = state_dict["images_seen"]
        self.seconds = state_dict["seconds"]
        self._rates = deque(state_dict["rates"], maxlen=self._rates.maxlen)
        self._loss_sum = state_dict["loss_sum"]
        self._num_losses = state_dict["num_losses"]

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self.seconds += time.perf_counter() - self._clock
            self._clock = None
