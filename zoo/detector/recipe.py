"""Recipes: optimizer, learning rate schedule and gradient clipping of a training."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from zoo.nn.darknet import Darknet
from zoo.nn.trunk import CropTrunk, Trunk


@dataclass(frozen=True)
class Recipe:
    """Optimizer and learning rate schedule. Milestones are fractions of the training, so a recipe fits any budget.

    Args:
        optimizer: "sgd" (without Nesterov momentum, as in the papers), "adamw" or "adam".
        lr: peak learning rate, for `total_batch` images a step.
        trunk_lr: learning rate of a trunk (`zoo.nn.trunk`, `zoo.nn.darknet`) as a multiple of lr.
        total_batch: images an optimizer step, over all processes, for which lr and warmup_steps are set. With k times
            as many, the rate is multiplied by k for SGD (Goyal et al., arXiv 1706.02677) and by the square root of k
            for Adam and AdamW (Malladi et al., arXiv 2205.10287), and warm-up takes the same number of images. 0: lr
            is not scaled.
        momentum: of SGD; beta1 of Adam.
        weight_decay: on weights of two dimensions or more ...
        norm_weight_decay: ... and on biases and norm layers; None means the same as weight_decay.
        clip_norm: norm to which the gradients of a step are scaled down, unless the Trainer has a gradient_clip_val; 0:
            they are not clipped.
        warmup_steps: optimizer steps over which the rate rises linearly ...
        warmup_start: ... from this fraction of lr.
        schedule: "constant", "multistep" or "cosine" (to zero).
        milestones: where "multistep" multiplies the rate by gamma, each in 0..1.
        gamma: that factor.
    """

    optimizer: Literal["sgd", "adamw", "adam"] = "sgd"
    lr: float = 0.01
    trunk_lr: float = 1.0
    total_batch: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None
    clip_norm: float = 0.0
    warmup_steps: int = 1000
    warmup_start: float = 1e-3
    schedule: Literal["constant", "multistep", "cosine"] = "multistep"
    milestones: tuple[float, ...] = (16 / 26, 22 / 26)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        """Check that rates and counts are not negative."""
        for name in ("lr", "trunk_lr", "total_batch", "clip_norm", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must not be negative")

    def factor(self, progress: float, step: int, batch_scale: float = 1.0) -> float:
        """Learning rate as a multiple of `lr`.

        Args:
            progress: completed fraction of the training.
            step: completed optimizer steps.
            batch_scale: images a step, in multiples of total_batch.
        """
        growth = batch_scale if self.optimizer == "sgd" else math.sqrt(batch_scale)
        start = self.warmup_start
        warmup = min(1.0, start + (1 - start) * step * batch_scale / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            return growth * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if self.schedule == "multistep":
            return growth * warmup * self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        return growth * warmup


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable parameters.

    Norm layers and biases have their own weight decay, and trunks their own learning rate.
    """
    norm_decay = recipe.weight_decay if recipe.norm_weight_decay is None else recipe.norm_weight_decay
    trunks = [module for module in network.modules() if isinstance(module, (Trunk, CropTrunk, Darknet))]
    in_trunk = {id(parameter) for trunk in trunks for parameter in trunk.parameters() if recipe.trunk_lr != 1}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for of_trunk in (False, True):
        chosen = [parameter for parameter in trainable if (id(parameter) in in_trunk) is of_trunk]
        lr = recipe.lr * recipe.trunk_lr if of_trunk else recipe.lr
        groups += [
            {"params": [p for p in chosen if p.ndim > 1], "weight_decay": recipe.weight_decay, "lr": lr},
            {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": norm_decay, "lr": lr},
        ]
    groups = [group for group in groups if group["params"]]
    # Fused: one pass over the parameters instead of one for each operation. On other devices torch chooses.
    fused = True if all(parameter.device.type in ("cpu", "cuda") for parameter in trainable) else None
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    else:
        adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        optimizer = adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)
    # Fused optimizers declare that they unscale AMP gradients themselves, and Lightning then refuses gradient clipping,
    # even without a scaler (bf16). With this off, the scaler unscales gradients first, as for any other optimizer.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
