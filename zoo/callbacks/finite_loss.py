"""Stop the training at a NaN or infinite loss."""

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
    """Stop the training when its loss is NaN or infinite, and keep the last good checkpoint.

    On a GPU the loss of a step is checked after the next step has been queued, to avoid a synchronisation; before a
    validation or a checkpoint it is checked immediately. A checkpoint with non-finite weights is never written.

    A non-finite loss on one process stops all of them at the same step.

    Raises:
        InputError: in any hook; names the step, the non-finite losses and the images. On processes other than the
            first it is a `SharedInputError`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: _Step | None = None
        self._error: InputError | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RawBatch, batch_idx: int
    ) -> None:
        """Check the previous step, or on a CPU this one."""
        self._check_pending(trainer)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._pending = _Step(trainer, loss, batch)
            if loss.device.type == "cpu":
                self._check_pending(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step."""
        self._check_pending(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step before validating."""
        self._check_pending(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check loss and weights before the file is opened, so that an error keeps the previous checkpoint."""
        self._check_pending(trainer)
        non_finite = [name for name, weight in pl_module.named_parameters() if not torch.isfinite(weight).all()]
        if non_finite:
            raise InputError(
                f"{len(non_finite)} weights are not finite after step {trainer.global_step} (first: {non_finite[0]}), "
                "so the checkpoint is not written; lower the learning rate or clip gradients"
            )

    def _check_pending(self, trainer: Trainer) -> None:
        if self._error is None and self._pending is not None:
            if self._pending.is_non_finite():
                self._error = self._pending.make_error(trainer)
            self._pending = None
        if self._error is not None:  # raised every time, so that no exception handler writes a checkpoint
            raise self._error


class _Step:
    """Loss of a training step, read from the device later, and the data for its error message."""

    def __init__(self, trainer: Trainer, loss: Tensor, batch: RawBatch) -> None:
        self.number = trainer.global_step
        self.loss = loss.detach()
        self.targets = batch[1]
        # tensors are kept without reading their values, which would synchronise
        self.logged = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/loss"
        }
        self.non_finite = DelayedMax(~torch.isfinite(self.loss).all())

    def is_non_finite(self) -> bool:
        """Whether the loss is not finite on any process."""
        return self.non_finite.read() > 0

    def make_error(self, trainer: Trainer) -> InputError:
        """Error to raise; all processes have the message of the first one whose loss is not finite."""
        own = None if math.isfinite(float(self.loss)) else self._describe(trainer)
        message = next(filter(None, all_gather_strings(own)))
        return InputError(message) if trainer.is_global_zero else SharedInputError(message)

    def _describe(self, trainer: Trainer) -> str:
        bad = [name.removeprefix("train/") for name, value in self.logged.items() if not math.isfinite(float(value))]
        which = f" ({', '.join(bad)})" if bad else ""
        image_ids = [int(target["image_id"]) for target in self.targets]
        names = _file_names(trainer, image_ids)
        images = ", ".join(f"{i} ({names[i]})" if i in names else str(i) for i in image_ids)
        return (
            f"the loss is {float(self.loss)}{which} at step {self.number}, on images {images}; "
            "check their boxes, lower the learning rate or clip gradients (the last checkpoint is kept)"
        )


def _file_names(trainer: Trainer, image_ids: Sequence[int]) -> dict[int, str]:
    """File names by image id, if the DataModule has a table of its training images."""
    table = getattr(getattr(trainer, "datamodule", None), "table", None)
    if not callable(table):
        return {}
    columns = table("train")
    indices = {image_id: index for index, image_id in enumerate(columns.image_ids.tolist())}
    return {image_id: columns.file_name(indices[image_id]) for image_id in image_ids if image_id in indices}
