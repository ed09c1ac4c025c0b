"""Random numbers that do not depend on where a training was interrupted."""

import os
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class StepSeeds(Callback):
    """Seed torch before each training step from the seed of the run, the step and the process rank.

    A step then draws the same random numbers (sampled RoIs and windows, dropout) in a resumed run as in an
    uninterrupted one, and processes draw different ones. The seed is that of `seed_everything`, or 0.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators of the CPU and of the training device, without synchronisation."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        sequence = np.random.SeedSequence((seed, trainer.fit_loop.total_batch_idx, trainer.global_rank))
        high, low = sequence.generate_state(2)
        step_seed = int(high) << 32 | int(low)
        torch.default_generator.manual_seed(step_seed)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(step_seed)
