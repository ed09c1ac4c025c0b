"""The guard against losses that are not finite."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.errors import InputError, SharedInputError
from zoo.ops.distributed import DelayedMax, all_gather_strings
from zoo.types import RawBatch


class StopOnNonFiniteLoss(Callback):
    """Ends the run at a training loss that is NaN or infinite, and leaves the last good checkpoint as it is.

    On a GPU the loss of a step is looked at when the next step has been sent off, so that nobody waits for it; before
    a validation or a checkpoint it is looked at right away. A checkpoint whose weights are not finite is never written.

    A loss that is not finite on one process ends all of them, at the same step: none is left waiting for the others.

    Raises:
        InputError: in `on_train_batch_end`, naming the step, the losses that are not finite and the images.
            On processes but the first it is a `SharedInputError`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: _Step | None = None
        self._error: InputError | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RawBatch, batch_idx: int
    ) -> None:
        """Looks at the step before, or on a CPU at this one."""
        self._settle(trainer)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._pending = _Step(trainer, loss, batch)
            if loss.device.type == "cpu":
                self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves nothing open."""
        self._settle(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves nothing open: no time is spent on validating a network that is lost."""
        self._settle(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Runs before the file is opened; an error here leaves what was there untouched."""
        self._settle(trainer)
        lost = [name for name, weight in pl_module.named_parameters() if not torch.isfinite(weight).all()]
        if lost:
            raise InputError(
                f"{len(lost)} weights are not finite after step {trainer.global_step}, {lost[0]} among them, though "
                "the loss still was; the checkpoint is not written: lower the learning rate or clip gradients"
            )

    def _settle(self, trainer: Trainer) -> None:
        if self._error is None and self._pending is not None:
            if self._pending.is_lost():
                self._error = self._pending.explain(trainer)
            self._pending = None
        if self._error is not None:  # again and again, so that no handler writes a checkpoint on the way out
            raise self._error


class _Step:
    """The loss of one training step, on its way from the device, and what is needed to explain it."""

    def __init__(self, trainer: Trainer, loss: Tensor, batch: RawBatch) -> None:
        self.number = trainer.global_step
        self.loss = loss.detach()
        self.targets = batch[1]
        # references, not values: nothing is read back
        self.logged = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/loss"
        }
        self.lost = DelayedMax(~torch.isfinite(self.loss).all())

    def is_lost(self) -> bool:
        """Whether the loss of any process is not finite."""
        return self.lost.read() > 0

    def explain(self, trainer: Trainer) -> InputError:
        """What to tell the user; on all processes what the first of them has to say whose own loss is lost."""
        own = None if math.isfinite(float(self.loss)) else self._describe(trainer)
        words = next(filter(None, all_gather_strings(own)))
        return InputError(words) if trainer.is_global_zero else SharedInputError(words)

    def _describe(self, trainer: Trainer) -> str:
        bad = [name.removeprefix("train/") for name, value in self.logged.items() if not math.isfinite(float(value))]
        which = f" ({', '.join(bad)})" if bad else ""
        image_ids = [int(target["image_id"]) for target in self.targets]
        names = _file_names(trainer, image_ids)
        images = ", ".join(f"{i} ({names[i]})" if i in names else str(i) for i in image_ids)
        return (
            f"the loss is {float(self.loss)}{which} at step {self.number}, on images {images}; "
            "check their boxes, lower the learning rate or clip gradients. The last checkpoint is kept"
        )


def _file_names(trainer: Trainer, image_ids: Sequence[int]) -> dict[int, str]:
    """File names by image id, where the DataModule has a table of its training images."""
    table = getattr(getattr(trainer, "datamodule", None), "table", None)
    if not callable(table):
        return {}
    columns = table("train")
    places = {image_id: place for place, image_id in enumerate(columns.image_ids.tolist())}
    return {image_id: columns.file_name(places[image_id]) for image_id in image_ids if image_id in places}
