"""Abstract base class of all detectors: framing, the Lightning steps, the optimizer, and three abstract methods.

A detector is a network on framed batches. `encode` runs the network once; `compute_losses` and
`compute_predictions` take its outputs. Nothing depends on `self.training`, so validation computes loss and
predictions in one pass, and a detector can be used in any training loop.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, final, overload

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from zoo.detector.checkpoint import find_checkpoint, read_checkpoint, rebuild
from zoo.detector.progress import counted_fraction, elapsed_fraction
from zoo.detector.recipe import Recipe, build_optimizer
from zoo.errors import InputError
from zoo.io.inputs import ImageInput, ImageInputs, as_image
from zoo.nn.frame import Frame, FrameConfig
from zoo.ops.postprocess import select
from zoo.proposals import ProposalCache, SelectiveSearch, propose
from zoo.types import Batch, FramedObjects, Image, Limit, Losses, Prediction, RawBatch, Target

Outputs = TypeVar("Outputs")

SCORE_THRESHOLD = 0.001
"""Minimum score of the detections of every detector, low enough for AP to be measured at high recall.

One value for all, since AP grows with the number of detections: papers and their code use none, 0.001 or 0.05. For
showing detections, `zoo predict` and the report choose higher ones.
"""


class StepOutput(TypedDict):
    """Output of validation and test steps, for callbacks."""

    loss: Tensor
    predictions: list[Prediction]


class Detector(LightningModule, ABC, Generic[Outputs]):
    """Base class of all detectors. Subclasses are final: they build their parts and implement three methods.

    Args:
        num_classes: foreground classes C; labels are 0..C-1.
        class_names: their names, kept in checkpoints; "0", "1", ... when not given.
        frame: resizing, padding and normalisation of images.
        recipe: optimizer and learning rate schedule.
        channels_last: keep images and weights in NHWC order, in which bf16 convolutions are faster.
        arguments: the subclass's constructor arguments as plain values (`plain_arguments`), stored in checkpoints.
        proposals: settings of the region proposals read from `batch.proposals`; None for detectors without them.

    Loaders pass proposals in the targets. For images without them, the detector takes them from `proposal_cache` if
    that is set, and else computes them.
    """

    display_name: ClassVar[str] = ""
    """Name in reports; where it is empty, the key in `zoo.models.MODELS` or the name of the class is shown."""

    mask_side: ClassVar[int] = 0
    """Rows and columns of the masks of detections; 0 without. A detector with masks gets those of the targets, too."""

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
        self._time_progress = (-1, 0.0)  # a step, and the fraction of `max_time` that had elapsed at it
        self.arguments = arguments | {"class_names": list(names)}

    @abstractmethod
    def encode(self, batch: Batch) -> Outputs:
        """Network outputs for a batch of framed images. Reads `batch.images` and sizes, never the targets."""

    @abstractmethod
    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Assign targets and compute the losses: finite, weighted scalars whose sum is the total loss."""

    @abstractmethod
    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Decode and select detections, in framed pixels, sorted by descending score."""

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects of an image that the detector's representation cannot represent; by default none are known.

        Args:
            outputs: of an image of the same framed size; its pixels and the weights are on the meta device, so only
                shapes and buffers of the detector itself have values.
            objects: of the image.
        """
        return []

    def class_rows(self) -> dict[str, list[int]]:
        """Class of each output (row of dimension 0) of the layers that depend on the classes; BACKGROUND for others.

        Keys are names of layers, or of single parameters and buffers. Weights of other classes keep these rows for the
        classes that both know (`zoo.weights.start_from`).
        """
        return {}

    @final
    def set_pixels(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        """Normalise images by another mean and std, those of weights that are to be loaded."""
        self.frame.config = replace(self.frame.config, mean=mean, std=std)
        self.frame.mean, self.frame.std = mean, std
        self.arguments = self.arguments | {"frame": _plain(self.frame.config)}

    @overload  # type: ignore[misc]  # nn.Module has forward as an attribute, which mypy treats as assignable
    def forward(
        self, images: ImageInputs, targets: Sequence[Target] | None = None, score: float = 0.0
    ) -> list[Prediction]: ...

    @overload
    def forward(self, images: ImageInput, targets: None = None, score: float = 0.0) -> Prediction: ...

    @final
    @torch.no_grad()
    def forward(
        self,
        images: ImageInput | ImageInputs,
        targets: Sequence[Target] | None = None,
        score: float = 0.0,
    ) -> Prediction | list[Prediction]:
        """Detections of a list of images, or of one image, in the pixels of each image, without gradients.

        Args:
            images: files, PIL images, arrays uint8 [H, W, 3] or tensors uint8 [3, H, W], RGB, of any sizes; a list of
                these, or one.
            targets: only their region proposals are read, by detectors that use them.
            score: minimum score of the detections that are returned; `score_threshold` also applies.

        Raises:
            InputError: an image is none of these, or its file cannot be read.
        """
        if not isinstance(images, (list, tuple)):
            return self.forward([images], None, score)[0]
        if not images:
            return []
        batch = self.frame_batch([as_image(image) for image in images], targets)
        found = self.frame.unframe(self.compute_predictions(self.encode(batch), batch), batch)
        return [above_score(prediction, score) for prediction in found] if score > 0 else found

    @final
    def names(self, prediction: Prediction) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[label] for label in prediction["labels"].tolist()]

    @final
    def frame_batch(
        self, images: Sequence[Image], targets: Sequence[Target] | None = None, for_training: bool = False
    ) -> Batch:
        """Frame raw images and their targets, with region proposals if the detector uses them.

        Args:
            images: uint8 [3, H, W] RGB, any sizes.
            targets: one for each image.
            for_training: whether the losses are trained on; matters with `native_at_test` only.
        """
        if self.proposals is None:
            return self.frame(images, targets, None, for_training)
        given = [target.get("proposals") for target in targets] if targets is not None else [None] * len(images)
        return self.frame(images, targets, [*map(self._find_proposals, images, given)], for_training)

    def _find_proposals(self, image: Image, given: Tensor | None) -> Tensor:
        assert self.proposals is not None
        if given is not None:
            return given
        if self.proposal_cache is not None:
            return self.proposal_cache.get(image, self.proposals)
        return propose(image, self.proposals)

    @final
    def compute_raw_losses(self, batch: RawBatch) -> Losses:
        """Losses of a raw batch to train on, for training loops other than Lightning's, too."""
        framed = self.frame_batch(*batch, for_training=True)
        return self.compute_losses(self.encode(framed), framed)

    @final
    def training_step(self, batch: RawBatch, batch_idx: int) -> Tensor:
        """Total loss; logs it and each loss by name."""
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
        """Detections of each image, in its pixels."""
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
        """The recipe's optimizer, and its learning rate schedule, stepped after every optimizer step."""
        recipe = self.recipe
        self.trainer.fit_loop.setup_data()  # the schedule needs the number of batches and their size
        optimizer = build_optimizer(self, recipe)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: recipe.factor(self.progress(), step, self.batch_scale())
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @final
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the Trainer's gradient_clip_val, or by the recipe's clip_norm where it has none."""
        limit = (self.recipe.clip_norm or None) if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, limit, gradient_clip_algorithm)

    @final
    def batch_scale(self) -> float:
        """Images an optimizer step, over all processes, as a multiple of the recipe's `total_batch`; 1 without one."""
        trainer = self.trainer
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        if not self.recipe.total_batch or batch_size is None:
            return 1.0
        return batch_size * trainer.world_size * trainer.accumulate_grad_batches / self.recipe.total_batch

    @final
    def progress(self) -> float:
        """Completed fraction of the training: the largest of the fractions of steps, epochs and `max_time`.

        Epochs are not converted to steps, so that a training can be resumed with another batch size. Time is that of
        the first process.
        """
        trainer = self.trainer
        if self._time_progress[0] != trainer.global_step:  # one broadcast a step
            fraction = elapsed_fraction(trainer)
            if fraction is not None:
                fraction = float(trainer.strategy.broadcast(fraction))
            self._time_progress = trainer.global_step, fraction or 0.0
        return min(max(counted_fraction(trainer), self._time_progress[1]), 1.0)

    @final
    def configure_model(self) -> None:
        """Convert the weights to channels-last memory format if `channels_last` is set."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)

    @final
    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's has arguments for constructors without plain ones
        cls, checkpoint_path: str | Path, map_location: str | torch.device = "cpu"
    ) -> "Detector[Any]":
        """The detector of a checkpoint or of a run folder, in eval mode; see `zoo.load`.

        Raises:
            InputError: the file cannot be used, or holds a detector of another class.
        """
        file = find_checkpoint(checkpoint_path)
        content = read_checkpoint(file)
        name = content["detector"]["class"]
        classes = {kind.__name__: kind for kind in (cls, *cls.__subclasses__()) if not inspect.isabstract(kind)}
        if name not in classes:
            raise InputError(f"has a detector {name!r}; expected {' or '.join(sorted(classes)) or cls.__name__}", file)
        return rebuild(classes[name], content).to(map_location)

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store class and constructor arguments, from which `zoo.load` rebuilds this detector, and the precision."""
        precision = None if self._trainer is None else str(self._trainer.precision)
        checkpoint["detector"] = {"class": type(self).__name__, "arguments": self.arguments, "precision": precision}


def above_score(prediction: Prediction, score: float | Tensor) -> Prediction:
    """The detections with at least this score, or with at least that of their class, of a tensor [C]."""
    keep = prediction["scores"] >= (score if isinstance(score, float) else score[prediction["labels"]])
    return select(prediction, keep)


def plain_arguments(cls: type[Detector], values: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a detector as plain values (numbers, strings, lists, dicts).

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
