"""Completed fraction of a training."""

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer


def counted_fraction(trainer: Trainer) -> float:
    """The larger of the completed fractions of steps and of epochs; 0 where neither is limited."""
    by_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    epochs = trainer.current_epoch + (batches / trainer.num_training_batches if batches else 0.0)
    max_epochs = trainer.max_epochs or 0
    return max(by_steps, epochs / max_epochs if max_epochs > 0 else 0.0)


def elapsed_fraction(trainer: Trainer) -> float | None:
    """Elapsed fraction of `max_time` by the clock of this process; None without a limit."""
    fraction = None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            elapsed = callback.time_elapsed()
            fraction = float(elapsed / max(elapsed + left, 1e-9))
    return fraction
