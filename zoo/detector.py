"""What every detector is: framing, the Lightning steps, the optimizer, and three verbs that a model fills in.

A detector is a network on framed batches. `encode` runs the network once; `compute_losses` and
`compute_predictions` read what it gave. Nothing hangs on `self.training`, so validation has its loss and its
predictions from one pass, and a detector can be called inside anybody's own loop.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar, final

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from zoo.nn.frame import Frame, FrameConfig
from zoo.proposals import ProposalCache, SelectiveSearch, propose
from zoo.types import Batch, Image, Losses, Prediction, RawBatch, Target

Outputs = TypeVar("Outputs")


@dataclass(frozen=True)
class Recipe:
    """How a detector is optimised. Times are fractions of the whole training, so a recipe fits any budget.

    Args:
        optimizer: "sgd" (with Nesterov off, as in the papers) or "adamw" or "adam".
        lr: the highest learning rate, for `total_batch` images a step.
        total_batch: images an optimizer step, on all processes together, that lr and warmup_steps are meant for. With k
            times as many, SGD's rate is k times as high (Goyal et al., arXiv 1706.02677), that of Adam and AdamW the
            square root of k (Malladi et al., arXiv 2205.10287), and warm-up takes as many images as before. 0: lr is
            taken as it stands.
        momentum: of SGD; beta1 of Adam.
        weight_decay: on weights of two dimensions or more ...
        norm_weight_decay: ... and on biases and norm layers; None means the same as weight_decay.
        warmup_steps: optimizer steps over which the rate rises in a line ...
        warmup_start: ... from this fraction of lr.
        schedule: "constant", "multistep" or "cosine" (to zero).
        milestones: where "multistep" multiplies the rate by gamma, each in 0..1.
        gamma: that factor.
    """

    optimizer: Literal["sgd", "adamw", "adam"] = "sgd"
    lr: float = 0.01
    total_batch: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None
    warmup_steps: int = 1000
    warmup_start: float = 1e-3
    schedule: Literal["constant", "multistep", "cosine"] = "multistep"
    milestones: tuple[float, ...] = (16 / 26, 22 / 26)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        """Refuse rates that would climb the loss."""
        if min(self.lr, self.total_batch, self.warmup_steps) < 0:
            given = f"lr {self.lr}, total_batch {self.total_batch} and warmup_steps {self.warmup_steps}"
            raise ValueError(f"{given}: none of them may be negative")

    def factor(self, progress: float, step: int, batch_scale: float = 1.0) -> float:
        """Learning rate as a multiple of lr.

        Args:
            progress: fraction of the training that is done.
            step: optimizer steps that are done.
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


class StepOutput(TypedDict):
    """What validation and test steps give to callbacks."""

    loss: Tensor
    predictions: list[Prediction]


class Detector(LightningModule, ABC, Generic[Outputs]):
    """The contract of the house. Subclasses are final: they build their parts and implement the three verbs.

    Args:
        num_classes: foreground classes C; labels are 0..C-1.
        class_names: their names, kept in checkpoints; "0", "1", ... when not given.
        frame: how images are brought to the network.
        recipe: how the network is optimised.
        channels_last: keep images and weights in NHWC order, which bf16 convolutions want.
        arguments: what the subclass was built with, as plain values: a checkpoint carries them (`plain_arguments`).
        proposals: the region proposals that the network reads from `batch.proposals`; None for one that needs none.

    Loaders hand proposals over in the targets. For images that come without, the detector computes them, or takes
    them from `proposal_cache` where one has been set.
    """

    proposal_cache: ProposalCache | None = None

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None,
        frame: FrameConfig,
        recipe: Recipe,
        channels_last: bool,
        arguments: dict[str, Any],
        proposals: SelectiveSearch | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: a detector needs at least one foreground class")
        names = tuple(class_names) if class_names is not None else tuple(str(c) for c in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"{len(names)} class names for {num_classes} classes")
        self.num_classes = num_classes
        self.class_names = names
        self.frame = Frame(frame, channels_last)
        self.recipe = recipe
        self.channels_last = channels_last
        self.proposals = proposals
        self._clock = (-1, 0.0)  # a step, and which part of `max_time` was over at it
        self.arguments = arguments | {"class_names": list(names)}

    @abstractmethod
    def encode(self, batch: Batch) -> Outputs:
        """The network on whole framed images, once. Reads `batch.images` and sizes, never the targets."""

    @abstractmethod
    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Assign targets and compute the losses: finite, weighted scalars whose sum is the total."""

    @abstractmethod
    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Decode and select detections, in framed pixels, surest first."""

    @final  # type: ignore[misc]  # nn.Module has forward as an attribute, which mypy takes for open to change
    @torch.no_grad()
    def forward(self, images: Sequence[Image], targets: Sequence[Target] | None = None) -> list[Prediction]:
        """Detections of raw images, in the pixels of each, without gradients.

        Args:
            images: uint8 [3, H, W] RGB, any sizes.
            targets: only for detectors that need region proposals, which may travel in them; never looked at otherwise.
        """
        batch = self.frame_batch(images, targets)
        return self.frame.unframe(self.compute_predictions(self.encode(batch), batch), batch)

    @final
    def frame_batch(self, images: Sequence[Image], targets: Sequence[Target] | None = None) -> Batch:
        """Raw images and their targets as the three verbs want them, with region proposals where they are declared.

        Args:
            images: uint8 [3, H, W] RGB, any sizes.
            targets: one for each image.
        """
        if self.proposals is None:
            return self.frame(images, targets)
        given = [target.get("proposals") for target in targets] if targets is not None else [None] * len(images)
        return self.frame(images, targets, [*map(self._find_proposals, images, given)])

    def _find_proposals(self, image: Image, given: Tensor | None) -> Tensor:
        assert self.proposals is not None
        if given is not None:
            return given
        if self.proposal_cache is not None:
            return self.proposal_cache.get(image, self.proposals)
        return propose(image, self.proposals)

    @final
    def compute_raw_losses(self, batch: RawBatch) -> Losses:
        """Losses of a raw batch, for training loops that are not Lightning's."""
        framed = self.frame_batch(*batch)
        return self.compute_losses(self.encode(framed), framed)

    @final
    def training_step(self, batch: RawBatch, batch_idx: int) -> Tensor:
        """Sum of the losses; each is logged by its name."""
        losses = self.compute_raw_losses(batch)
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch[0]))
        for name, loss in losses.items():
            self.log(f"train/{name}", loss.detach(), batch_size=len(batch[0]))
        return total

    @final
    def validation_step(self, batch: RawBatch, batch_idx: int) -> StepOutput:
        """Loss and predictions from one pass."""
        return self._evaluation_step(batch, "val")

    @final
    def test_step(self, batch: RawBatch, batch_idx: int) -> StepOutput:
        """Loss and predictions from one pass."""
        return self._evaluation_step(batch, "test")

    @final
    def predict_step(self, batch: RawBatch, batch_idx: int) -> list[Prediction]:
        """Detections of each image, in its own pixels."""
        return self(*batch)

    def _evaluation_step(self, batch: RawBatch, stage: str) -> StepOutput:
        framed = self.frame_batch(*batch)
        outputs = self.encode(framed)
        losses = self.compute_losses(outputs, framed)
        total = torch.stack(list(losses.values())).sum()
        self.log(f"{stage}/loss", total, batch_size=len(batch[0]), sync_dist=True)
        predictions = self.frame.unframe(self.compute_predictions(outputs, framed), framed)
        return StepOutput(loss=total, predictions=predictions)

    @final
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimizer, and its schedule stepped after every optimizer step."""
        recipe = self.recipe
        self.trainer.fit_loop.setup_data()  # the schedule reads how many batches there are, and of how many images
        optimizer = build_optimizer(self.parameters(), recipe)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: recipe.factor(self.progress(), step, self.batch_scale())
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @final
    def batch_scale(self) -> float:
        """Images an optimizer step, on all processes, in multiples of what the recipe is meant for."""
        trainer = self.trainer
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        if not self.recipe.total_batch or batch_size is None:
            return 1.0
        return batch_size * trainer.world_size * trainer.accumulate_grad_batches / self.recipe.total_batch

    @final
    def progress(self) -> float:
        """Fraction of the training that is done, by steps, epochs or the clock of `max_time`, whichever is furthest.

        Epochs are counted as such, and not in steps, so that a training can go on with other batches than it began
        with. The clock is that of the first process.
        """
        trainer = self.trainer
        by_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        loop = trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current.ready
        epochs = trainer.current_epoch + (batches / trainer.num_training_batches if batches else 0.0)
        max_epochs = trainer.max_epochs or 0
        by_epochs = epochs / max_epochs if max_epochs > 0 else 0.0
        return min(max(by_steps, by_epochs, self._clock_progress()), 1.0)

    def _clock_progress(self) -> float:
        """Fraction of `max_time` that is over by the first process's clock, told to the others; 0 without a limit."""
        trainer = self.trainer
        if self._clock[0] != trainer.global_step:  # asked once a step, since the others are asked as well
            share = 0.0
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
                    elapsed = callback.time_elapsed()
                    share = float(trainer.strategy.broadcast(elapsed / max(elapsed + left, 1e-9)))
            self._clock = trainer.global_step, share
        return self._clock[1]

    @final
    def configure_model(self) -> None:
        """Bring the weights to NHWC, if that is wanted."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what it takes to build this detector again; `zoo.load` reads it."""
        checkpoint["detector"] = {"class": type(self).__name__, "arguments": self.arguments}


def plain_arguments(cls: type[Detector], values: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of a detector as plain values (numbers, strings, lists, dicts).

    Args:
        cls: the detector's class.
        values: `locals()` at the constructor's first line.
    """
    return {name: _plain(values[name]) for name in inspect.signature(cls).parameters}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(item) for key, item in asdict(value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def build_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trainable parameters; norms and biases decay apart from weights."""
    norm_decay = recipe.weight_decay if recipe.norm_weight_decay is None else recipe.norm_weight_decay
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": norm_decay},
    ]
    groups = [group for group in groups if group["params"]]
    # One pass over the numbers instead of one for each operation; elsewhere torch chooses.
    fused = True if all(parameter.device.type in ("cpu", "cuda") for parameter in trainable) else None
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    else:
        adam = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        optimizer = adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)
    # A fused optimizer offers to take the scale off gradients itself, and is then refused wherever gradients are
    # clipped, also where there is no scale (bf16). Whoever scales them takes it off first, as for any optimizer.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
