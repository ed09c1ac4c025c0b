"""Weights averaged over the training."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn


class MovingAverage(WeightAveraging):
    """An exponential moving average of all weights and statistics, which is what is validated, tested and saved.

    average <- d * average + (1 - d) * weights after every optimizer step, with d = min(decay, n / (9 + n)) at the n-th,
    so that the first weights do not weigh on short trainings. Checkpoints hold the average where everybody looks for
    weights, and beside it the weights that training goes on from.

    Lightning keeps the books. This class has the average in place for all of a validation and of an epoch's end, where
    a detector may fit parts of itself (R-CNN its SVMs): they are fitted to the average, and saved with it.

    Use it by `--trainer.callbacks zoo.callbacks.MovingAverage`.

    Args:
        decay: d in the long run.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._is_in = False  # the average is in the model, and the model's weights are where the average was
        super().__init__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the weights in after an optimizer step; torch's own update would read a counter from the device."""
        step = trainer.global_step
        if step == self._latest_update_step:  # gradients are still gathered
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

    def _bring(self, average: bool, pl_module: LightningModule) -> None:
        if self._is_in is not average:
            self._swap_models(pl_module)
            self._is_in = average

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is trained is the weights."""
        self._bring(False, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the model's own hook, and before checkpoints."""
        self._bring(True, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The average stays."""
        self._bring(False, pl_module)
        super().on_train_end(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the model's own hook. Outside of a training, the weights are the average already."""
        if trainer.state.fn == "fit":
            self._bring(True, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings the weights back that training goes on from."""
        if trainer.state.fn == "fit":
            self._bring(False, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: it is in already."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: it stays until the end."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning takes the model for the weights, which it is not where the average is in."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._is_in:
            weights, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, weights

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Only a training goes on from the weights; whatever measures takes the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def tensors_by_dtype(module: nn.Module) -> dict[torch.dtype, list[Tensor]]:
    """All weights and buffers, detached."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        found.setdefault(tensor.dtype, []).append(tensor.detach())
    return found
