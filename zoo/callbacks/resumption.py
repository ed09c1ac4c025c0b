"""A training that goes on, perhaps on other machines than before."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

WORDS = {"processes": "processes", "batch_size": "images a process and batch", "accumulate": "batches a step"}


class Resumption(Callback):
    """Says where a training goes on, and what is not as it was; in an epoch in progress, sees that it goes on in place.

    Lightning counts the batches of the epoch that are done. With another number of processes, or of images a batch, the
    images that were seen make another number of batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now: dict[str, int] = {}
        self._before: dict[str, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares this training with what the checkpoint says of it."""
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
            open_batches = progress.processed - progress.completed  # the one at whose end the checkpoint was written
            progress.ready = progress.started = progress.processed = done
            progress.completed = done - open_batches
        if before != self._now:
            renew_rates(trainer)
        if trainer.is_global_zero:
            print("\n".join(describe(trainer.current_epoch, trainer.global_step, before, self._now)), flush=True)

    def state_dict(self) -> dict[str, Any]:
        """What may be different the next time."""
        return dict(self._now)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What it was."""
        self._before = dict(state_dict)


def renew_rates(trainer: Trainer) -> None:
    """Set the learning rate of the step to come by the schedule as it is now; the checkpoint brought the former one."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, LambdaLR):
            groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(scheduler.last_epoch)


def describe(epoch: int, step: int, before: dict[str, int], now: dict[str, int]) -> list[str]:
    """Lines that say where a training goes on, and what has changed."""
    lines = [f"goes on after epoch {epoch}, step {step}"]
    changed = [f"{now[key]} {word} instead of {before[key]}" for key, word in WORDS.items() if now[key] != before[key]]
    if changed:
        lines.append(f"changed: {', '.join(changed)}")
        images = [said["processes"] * said["batch_size"] * said["accumulate"] for said in (before, now)]
        if images[0] != images[1]:
            lines.append(
                f"so there are {images[1]} images an optimizer step instead of {images[0]}; a recipe that names its "
                "total_batch takes the learning rate with it"
            )
        lines.append("the weights will not be those of a run without a change: random numbers and batches are others")
    return lines
