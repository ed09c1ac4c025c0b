"""Random numbers of a training that do not depend on where it was interrupted."""

import os
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class StepSeeds(Callback):
    """Seeds torch before each training step, from the seed of the run, the step and the process, and nothing else.

    What a step draws (regions, windows, dropout) is then the same whether the run came to it in one go or went on from
    a checkpoint, and processes draw different numbers. The seed is that of `seed_everything`, or 0.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds the CPU's generator and that of the device that trains; waits for nothing."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        words = np.random.SeedSequence((seed, trainer.fit_loop.total_batch_idx, trainer.global_rank)).generate_state(2)
        number = int(words[0]) << 32 | int(words[1])
        torch.default_generator.manual_seed(number)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(number)
