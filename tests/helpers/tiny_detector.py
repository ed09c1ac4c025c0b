"""A minimal detector: a box and class scores for each cell of a 4 x 4 grid; can fail on purpose."""

import os
import signal
from collections.abc import Sequence
from typing import Literal

import torch
from processes import SECONDS
from torch import Tensor, nn
from torch.nn import functional as F

import zoo.callbacks.preemption
import zoo.experiment.launch
from zoo.detector import Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig
from zoo.types import Batch, Losses, Prediction

SIDE, CELLS = 32, 4

# In every process that uses this detector: a run that receives SIGTERM is not killed on a busy machine.
zoo.callbacks.preemption.SECONDS_TO_STEP = zoo.experiment.launch.SECONDS_TO_FINISH = SECONDS


class TinyDetector(Detector[Tensor]):
    """Outputs [B, C + 4, 4, 4]: class logits, and box edges as fractions of the frame before a sigmoid."""

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        pretrained: bool = False,
        width: int = 4,
        fails: Literal["never", "raises", "dies", "diverges", "interrupted"] = "never",
        fails_at: int = 2,
        frame: FrameConfig = FrameConfig(min_size=SIDE, max_size=SIDE, stretch=True),
        recipe: Recipe = Recipe(lr=0.01, warmup_steps=0),
    ) -> None:
        arguments = plain_arguments(TinyDetector, locals())
        super().__init__(num_classes, class_names, frame, recipe, False, arguments)
        self.fails = fails
        self.fails_at = fails_at
        self.body = nn.Conv2d(3, width, SIDE // CELLS, stride=SIDE // CELLS)
        self.head = nn.Conv2d(width, num_classes + 4, 1)

    def encode(self, batch: Batch) -> Tensor:
        return self.head(self.body(batch.images).relu())

    def compute_losses(self, outputs: Tensor, batch: Batch) -> Losses:
        self._fail_if_requested()
        logits = outputs[:, : self.num_classes].amax(dim=(2, 3))
        present = torch.zeros_like(logits)
        present.scatter_reduce_(1, batch.labels, batch.mask.to(logits.dtype), "amax")
        factor = float("nan") if self.fails == "diverges" and self._should_fail() else 1.0
        box = outputs[:, self.num_classes :].sigmoid().float().sub(0.5).abs().mean()
        return {"class": F.binary_cross_entropy_with_logits(logits.float(), present.float()) * factor, "box": box}

    def compute_predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        scores, labels = outputs[:, : self.num_classes].float().sigmoid().flatten(2).max(dim=1)
        edges = outputs[:, self.num_classes :].float().sigmoid().flatten(2).transpose(1, 2) * (SIDE / 2)
        boxes = torch.cat([edges[..., :2], edges[..., 2:] + SIDE / 2], dim=-1)
        order = scores.argsort(dim=1, descending=True)
        return [
            Prediction(boxes=boxes[i, order[i]], scores=scores[i, order[i]], labels=labels[i, order[i]])
            for i in range(len(scores))
        ]

    def _should_fail(self) -> bool:
        return self.training and self.trainer.global_step >= self.fails_at

    def _fail_if_requested(self) -> None:
        if not self._should_fail():
            return
        if self.fails == "raises":
            raise RuntimeError("this detector fails on purpose\nwith two lines")
        if self.fails == "interrupted":
            raise KeyboardInterrupt
        if self.fails == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
