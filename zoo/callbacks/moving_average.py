"""Exponential moving average of the weights."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn


class MovingAverage(WeightAveraging):
    """Exponential moving average of all weights and buffers, used for validation, tests and checkpoints.

    average <- d * average + (1 - d) * weights after every optimizer step, with d = min(decay, n / (9 + n)) at the n-th
    step, so that the first weights do not dominate in short trainings. In checkpoints `state_dict` is the average, and
    `current_model_state` the weights from which training resumes.

    Lightning's base class stores the average. This class puts it into the model during validation and at the end of an
    epoch, so that what a detector fits at that time (R-CNN its SVMs) is fitted to the average and saved with it.

    Use it by `--trainer.callbacks+=MovingAverage`.

    Args:
        decay: limit of d over many steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._is_swapped = False  # the model holds the average, and the average model the weights
        super().__init__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step; torch's own update would synchronise to read a counter."""
        step = trainer.global_step
        if step == self._latest_update_step:  # no optimizer step yet: gradients are accumulated
            return
        is_first = self._latest_update_step == 0
        weight = 1.0 if is_first else 1 - min(self.decay, step / (9 + step))
        self._latest_update_step = step
        assert self._average_model is not None
        average, current = (tensors_by_dtype(module) for module in (self._average_model.module, pl_module))
        for dtype, averages in average.items():
            if dtype.is_floating_point:
                torch._foreach_lerp_(averages, current[dtype], weight)
            else:  # counters and flags
                torch._foreach_copy_(averages, current[dtype])

    def _use_average(self, use: bool, pl_module: LightningModule) -> None:
        """Put the average into the model, or the weights if `use` is False."""
        if self._is_swapped is not use:
            self._swap_models(pl_module)
            self._is_swapped = use

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights into the model."""
        self._use_average(False, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model; runs before the model's own hook and before checkpoints."""
        self._use_average(True, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average into the model for good."""
        self._use_average(False, pl_module)
        super().on_train_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model before its own hook. Outside of `fit` the model has it already."""
        if trainer.state.fn == "fit":
            self._use_average(True, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back into the model."""
        if trainer.state.fn == "fit":
            self._use_average(False, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the average is in the model already."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the average stays in the model until `on_validation_end`."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as `state_dict`; Lightning assumes that the model holds the weights."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._is_swapped:
            weights, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, weights

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore weights and average to resume training; other stages only load the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def tensors_by_dtype(module: nn.Module) -> dict[torch.dtype, list[Tensor]]:
    """All parameters and buffers by dtype, detached."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        found.setdefault(tensor.dtype, []).append(tensor.detach())
    return found
