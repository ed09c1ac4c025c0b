"""Resume a training, also with another number of processes or batch size."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

LABELS = {"processes": "processes", "batch_size": "images a process and batch", "accumulate": "batches a step"}


class Resumption(Callback):
    """Print where a training resumes and what has changed, and adapt the progress within an epoch.

    Lightning counts the completed batches of an epoch. With another number of processes or batch size, the same images
    are another number of batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now: dict[str, int] = {}
        self._before: dict[str, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this training with the one of the checkpoint, and adapt batch progress and learning rates."""
        batch_size = getattr(trainer.train_dataloader, "batch_size", None) or 1
        self._now = {
            "processes": trainer.world_size,
            "batch_size": batch_size,
            "accumulate": trainer.accumulate_grad_batches,
        }
        before, self._before = self._before, None
        if before is None:
            return
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        epochs: Any = trainer.fit_loop.epoch_progress.current
        images = progress.ready * before["processes"] * before["batch_size"]
        done = images // (self._now["processes"] * batch_size)
        if epochs.ready > epochs.processed:
            open_batches = progress.processed - progress.completed  # the batch at whose end the checkpoint was written
            progress.ready = progress.started = progress.processed = done
            progress.completed = done - open_batches
        if before != self._now:
            update_learning_rates(trainer)
        if trainer.is_global_zero:
            lines = describe_resumption(trainer.current_epoch, trainer.global_step, before, self._now)
            print("\n".join(lines), flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Number of processes, batch size and accumulation of this training."""
        return dict(self._now)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the values of the checkpoint for `on_train_start`."""
        self._before = dict(state_dict)


def update_learning_rates(trainer: Trainer) -> None:
    """Recompute the next step's learning rates by the current schedule, in place of those of the checkpoint."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, LambdaLR):
            groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(scheduler.last_epoch)


def describe_resumption(epoch: int, step: int, before: dict[str, int], now: dict[str, int]) -> list[str]:
    """Lines with the epoch and step of the checkpoint, and what has changed since."""
    lines = [f"resuming after epoch {epoch}, step {step}"]
    changed = [f"{now[key]} {name} instead of {before[key]}" for key, name in LABELS.items() if now[key] != before[key]]
    if changed:
        lines.append(f"changed: {', '.join(changed)}")
        images = [run["processes"] * run["batch_size"] * run["accumulate"] for run in (before, now)]
        if images[0] != images[1]:
            lines.append(
                f"this makes {images[1]} images an optimizer step instead of {images[0]}; the learning rate is scaled "
                "if the recipe sets total_batch"
            )
        lines.append("the weights will differ from those of an unchanged run: batches and random numbers differ")
    return lines
