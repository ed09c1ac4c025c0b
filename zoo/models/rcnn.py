"""R-CNN: Rich feature hierarchies for accurate object detection and semantic segmentation (Girshick et al.; 1311.2524).

Each proposal is cut out of the image, warped to one size and read by a classification network on its own.

    image -> selective search -> about 2,000 proposals
    proposal -> warped crop -> trunk -> features -> a linear SVM for each class -> NMS by class
                                                 -> a linear box regressor for each class

    section 2.1    selective search; crops warped to p x p pixels with 16 of them context on each side (appendix A)
    section 2.3    fine-tuning as a classifier of C classes and background: 32 windows with IoU >= 0.5 and 96 others a
                   batch; then an SVM a class: positives are ground truth alone, negatives below IoU 0.3 with it, those
                   between are left out, hard negatives mined (appendix B says why the two differ)
    section 2.2    greedy NMS by class
    section 3.5    class-wise ridge regression of boxes (appendix C, equations 1 to 9): examples with IoU above 0.6,
                   lambda 1000; a box is predicted once

Original code: rbgirshick/rcnn. Deviations:
  - any timm trunk can stand in for the paper's AlexNet; "alexnet" is torchvision's, a later form without the split in
    two and without local response normalisation;
  - SVMs and regressors read the same features, the trunk's last (fc7 of AlexNet and VGG); the paper regresses pool5;
  - background's logit starts at the share that background has of the windows, not at 0;
  - batches hold few images and their windows, not windows from all over the data set;
  - a decision value d becomes the score sigmoid(3 d): margins of -1 and 1 come to 0.05 and 0.95; the order within a
    class, and so its AP, is that of d;
  - windows on difficult objects and crowds are no negatives for the SVMs;
  - SVMs and regressors: `zoo.nn.linear_heads` names its own.

When they are fitted: before each validation of a training and at its end, to the weights of that moment; a training
that goes on forgets them. So what is validated is the whole detector, checkpoints of validations and of the end (the
best and the last of `zoo fit`) hold all of it, and any other checkpoint says that nothing is fitted: then the softmax
of the fine-tuning scores and no box is moved. The losses are those of the fine-tuning at all times.

There is no network on whole images: `encode` hands them on, losses cut out the windows that they sample, predictions
all proposals, a bounded number of crops at once. That is what R-CNN is, and why Fast R-CNN was written.

Legend: B images, M objects, P proposals of an image (padded), N candidates (proposals, then objects), n windows of a
batch, S side of a crop, D features, C classes.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from zoo.detector import Detector, Recipe, plain_arguments
from zoo.errors import InputError
from zoo.nn.frame import FrameConfig, get_proposals
from zoo.nn.linear_heads import HeadFitter, LinearHeads
from zoo.nn.trunk import CropTrunk, Norm
from zoo.ops.boxes import clip_boxes, pairwise_iou
from zoo.ops.coding import decode_boxes, encode_boxes
from zoo.ops.distributed import broadcast_buffers, mean_count
from zoo.ops.matching import BACKGROUND, gather_matched, match
from zoo.ops.postprocess import nms_by_class
from zoo.ops.precision import upcast
from zoo.ops.sampling import sample
from zoo.ops.warp import warp_windows
from zoo.proposals import SelectiveSearch
from zoo.types import Batch, Losses, Prediction, RawBatch

SVM_NEGATIVE_IOU = 0.3
REGRESSION_IOU = 0.6
SCORE_SLOPE = 3.0
SECONDS_BETWEEN_LINES = 5.0  # of progress


@dataclass
class Windows:
    """Boxes of a batch in one list, to be cut out."""

    image: Int64[Tensor, "n"]  # in the batch, ascending
    boxes: Float[Tensor, "n 4"]  # framed pixels


# --------------------------------------------------------------------------------------------------------- the model


@final
class RCNN(Detector[Tensor]):
    """R-CNN over any timm classifier.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model that takes crops of this size, or "alexnet" (torchvision's).
        pretrained: ImageNet weights for the trunk: true (they are fetched), a local file, or false.
        norm: the trunk's norm layers: "frozen" over pretrained weights, "batch" from scratch.
        dropout: in the hidden layers of a trunk that has some (AlexNet, VGG: 0.5).
        crop_size: side of the warped crops in pixels.
        context: pixels of it on each side that lie around the proposal.
        head: what scores: the SVMs, or the softmax of the fine-tuning.
        regress_boxes: move proposals to where the box regressors say.
        windows_per_batch: sampled from all images of a batch for the loss.
        positive_fraction: the most of them that are on objects.
        fit_images: training images that SVMs and regressors are fitted to, chosen once; each process takes a share.
        svm_cost: of an SVM's errors.
        svm_examples: the most windows whose features are kept for them: 4 D bytes each.
        ridge_penalty: of the regressors (lambda).
        crops_at_once: bound on memory: a crop of 227 pixels takes about 2 MB beside what the trunk makes of it.
        score_threshold: of detections.
        nms_threshold: IoU above which the surer of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        proposals: the selective search whose boxes are scored.
        frame: how images are brought to the size that crops are cut from.
        recipe: how the trunk is fine-tuned.
        channels_last: memory order of images and weights.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "alexnet",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        dropout: float = 0.0,
        crop_size: int = 227,
        context: int = 16,
        head: Literal["svm", "softmax"] = "svm",
        regress_boxes: bool = True,
        windows_per_batch: int = 128,
        positive_fraction: float = 0.25,
        fit_images: int = 1000,
        svm_cost: float = 1e-3,
        svm_examples: int = 20000,
        ridge_penalty: float = 1000.0,
        crops_at_once: int = 128,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        detections_per_image: int = 100,
        proposals: SelectiveSearch = SelectiveSearch(),
        frame: FrameConfig = FrameConfig(min_size=500, max_size=1000),
        recipe: Recipe = Recipe(lr=0.001),
        channels_last: bool = True,
    ) -> None:
        arguments = plain_arguments(RCNN, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments, proposals)
        if 2 * context >= crop_size:
            raise ValueError(f"context {context} leaves nothing of a crop of {crop_size} pixels")
        self.crop_size = crop_size
        self.context = context
        self.head = head
        self.regress_boxes = regress_boxes
        self.windows_per_batch = windows_per_batch
        self.positive_fraction = positive_fraction
        self.fit_images = fit_images
        self.svm_cost = svm_cost
        self.svm_examples = svm_examples
        self.ridge_penalty = ridge_penalty
        self.crops_at_once = crops_at_once
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        self.trunk = CropTrunk(trunk, crop_size, pretrained, norm, dropout)
        self.softmax = nn.Linear(self.trunk.channels, 1 + num_classes)
        nn.init.normal_(self.softmax.weight, std=0.01)
        nn.init.zeros_(self.softmax.bias)
        # Background starts at its share of the windows.
        nn.init.constant_(self.softmax.bias[:1], math.log(num_classes * (1 - positive_fraction) / positive_fraction))
        self.linear_heads = LinearHeads(num_classes, self.trunk.channels)
        self._just_fitted = False  # on the host, so that no step asks the device

    def encode(self, batch: Batch) -> Tensor:
        """The framed images themselves: R-CNN's network reads crops."""
        return batch.images

    def compute_losses(self, outputs: Tensor, batch: Batch) -> Losses:
        """Cross entropy of sampled windows over the classes and background."""
        windows, labels = sample_windows(batch, self.windows_per_batch, self.positive_fraction, foreground_iou=0.5)
        num_windows = mean_count(labels.new_full((), len(labels)))
        if not len(labels):  # the network runs all the same, so that it has its gradients, of zero
            windows = Windows(labels.new_zeros(1), batch.sizes.new_tensor([[0, 0, *batch.images.shape[:1:-1]]]))
        logits = self.softmax(self.trunk(self._cut(outputs, batch.sizes, windows.image, windows.boxes)))
        losses = F.cross_entropy(upcast(logits)[: len(labels)], labels + 1, reduction="sum")
        return {"window_class": losses / num_windows}

    def compute_predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """The heads' word on every proposal."""
        proposals, mask = get_proposals(batch)
        windows = Windows(mask.nonzero()[:, 0], proposals[mask])
        features = self.read_windows(outputs, batch, windows)
        scores, deltas = self.read_features(features)
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        return window_predictions(scores, deltas, windows, batch.sizes, *limits)

    def read_windows(self, images: Tensor, batch: Batch, windows: Windows) -> Float[Tensor, "n D"]:
        """The trunk's features of each window, a bounded number of crops at once."""
        if not len(windows.image):
            return images.new_zeros(0, self.trunk.channels)
        parts = []
        for image, boxes in zip(
            windows.image.split(self.crops_at_once), windows.boxes.split(self.crops_at_once), strict=True
        ):
            few = slice(int(image[0]), int(image[-1]) + 1)  # the images that these windows lie in
            crops = self._cut(images[few], batch.sizes[few], image - image[0], boxes)
            parts.append(self.trunk(crops))
        return torch.cat(parts)

    def _cut(self, images: Tensor, sizes: Tensor, image: Tensor, boxes: Tensor) -> Float[Tensor, "n 3 S S"]:
        return warp_windows(images, sizes, image, boxes, self.crop_size, self.context)

    def read_features(
        self, features: Float[Tensor, "n D"]
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C 4"] | None]:
        """Scores in 0..1, and the deltas that boxes are moved by, or None where they stay."""
        fitted = bool(self.linear_heads.fitted)
        if fitted and self.head == "svm":
            scores = torch.sigmoid(SCORE_SLOPE * self.linear_heads.decide(features))
        else:
            scores = upcast(self.softmax(features)).softmax(dim=1)[:, 1:]
        return scores, self.linear_heads.regress(features) if fitted and self.regress_boxes else None

    # Fitting. Lightning calls a module's on_validation_start before the first batch is predicted, and its
    # on_train_epoch_end before ModelCheckpoint's.

    def on_train_start(self) -> None:
        """What a checkpoint brought along belongs to weights that are about to change."""
        self.linear_heads.forget()
        if self._has_something_to_fit():
            _fit_loader(self.trainer, self.fit_images)  # what it cannot use is said now, not after hours

    def on_train_batch_start(self, batch: RawBatch, batch_idx: int) -> None:
        """Going on after a validation: the same."""
        if self._just_fitted:
            self.linear_heads.forget()
            self._just_fitted = False

    def on_validation_start(self) -> None:
        """Fit to the weights that are validated, while training."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._fit_from_trainer()

    def on_train_epoch_end(self) -> None:
        """Fit at the end of the training, if no validation has just done so."""
        trainer = self.trainer
        if (
            trainer.should_stop
            or trainer.global_step >= trainer.max_steps >= 0
            or trainer.current_epoch + 1 == trainer.max_epochs
        ):
            self._fit_from_trainer()

    def _has_something_to_fit(self) -> bool:
        return self.head == "svm" or self.regress_boxes

    def _fit_from_trainer(self) -> None:
        """Fit on the Trainer's device and in its precision, to images of its training data."""
        if self._just_fitted or not self._has_something_to_fit():
            return
        loader, num_rounds = _fit_loader(self.trainer, self.fit_images)
        batches = (self.transfer_batch_to_device(batch, self.device, 0) for batch in loader)
        with self.trainer.precision_plugin.forward_context():
            self.fit_heads(batches, num_rounds, self.print)
        self._just_fitted = True

    @torch.no_grad()
    def fit_heads(self, batches: Iterable[RawBatch], num_rounds: int, report: Callable[[str], object] = print) -> None:
        """Fit SVMs and box regressors to the features of training images, each seen once.

        With several processes all of them call this, each with its own images.

        Args:
            batches: at most `num_rounds` of them; fewer are fine.
            num_rounds: the same number on every process.
            report: takes lines of progress.
        """
        broadcast_buffers(self.trunk.buffers())  # as a training shares them before each pass
        modes = {module: module.training for module in self.modules()}
        self.eval()
        fitter = HeadFitter(
            self.num_classes,
            self.trunk.channels,
            self.device,
            cost=self.svm_cost,
            penalty=self.ridge_penalty,
            bank_size=self.svm_examples,
        )
        start = last_line = time.monotonic()
        remaining = iter(batches)
        for number in range(1, num_rounds + 1):
            raw = next(remaining, None)
            fitter.add_round(*(self._find_examples(raw) if raw is not None else self._no_examples()))
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                report(f"SVMs and box regressors: round {number} of {num_rounds}, {len(fitter.signs)} examples kept")
        fitter.finish(self.linear_heads)
        for module, training in modes.items():
            module.training = training
        report(f"SVMs and box regressors fitted in {time.monotonic() - start:.1f} s")

    def _find_examples(self, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        batch = self.frame_batch(*raw)
        candidates, mask = all_candidates(batch)
        image, place = mask.nonzero(as_tuple=True)
        iou = pairwise_iou(batch.boxes, candidates)
        signs = svm_signs(iou, batch, self.num_classes)
        matched = match(iou, batch.mask, REGRESSION_IOU, REGRESSION_IOU, keep_best_of_each_object=False)[image, place]
        windows = Windows(image, candidates[image, place])
        features = self.read_windows(self.encode(batch), batch, windows)
        regressed = matched >= 0
        objects = (image[regressed], matched[regressed])
        deltas = features.new_zeros(len(image), 4, dtype=windows.boxes.dtype)
        deltas[regressed] = encode_boxes(batch.boxes[objects], windows.boxes[regressed])
        labels = torch.zeros_like(matched)
        labels[regressed] = batch.labels[objects]
        return features, signs[image, place], deltas, labels, regressed

    def _no_examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """For a process that has run out of images before the others."""
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        features = torch.zeros(0, self.trunk.channels, device=self.device)
        signs = torch.zeros(0, self.num_classes, dtype=torch.int8, device=self.device)
        return features, signs, torch.zeros(0, 4, device=self.device), none, none.bool()


def _fit_loader(trainer: Any, num_images: int) -> tuple[DataLoader, int]:
    """This process's share of the images to fit to, augmented as in training, and how many batches that is at most.

    A loader of its own: a second iteration of the Trainer's would end the one under way.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__") or not loader.batch_size:
        raise InputError(
            "R-CNN fits its SVMs to images of the training loader, which must be one DataLoader of batches"
        )
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(loader.dataset), generator=generator)[:num_images].tolist()
    share = chosen[trainer.global_rank :: trainer.world_size]
    num_rounds = -(-len(chosen) // (loader.batch_size * trainer.world_size))
    return (
        DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=share,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator,
        ),
        num_rounds,
    )


# ---------------------------------------------------------------------------------------------------- windows to learn


def all_candidates(batch: Batch) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Proposals and then objects of each image, and which are windows to learn from."""
    proposals, mask = get_proposals(batch)
    return torch.cat((proposals, batch.boxes), dim=1), torch.cat((mask, batch.mask), dim=1)


@torch.no_grad()
def sample_windows(
    batch: Batch, num: int, positive_fraction: float, foreground_iou: float
) -> tuple[Windows, Int64[Tensor, "n"]]:
    """Section 2.3: windows drawn from the whole batch, on objects at most a fraction of them, the others background.

    Returns:
        At most `num` windows, and their labels: 0..C-1, or BACKGROUND.
    """
    candidates, mask = all_candidates(batch)
    iou = pairwise_iou(batch.boxes, candidates)
    matched = match(iou, batch.mask, foreground_iou, foreground_iou, keep_best_of_each_object=False)
    labels = torch.where(matched >= 0, gather_matched(batch.labels, matched), BACKGROUND)
    positive, negative = (matched >= 0) & mask, (matched == BACKGROUND) & mask
    chosen, filled = sample(positive.view(1, -1), negative.view(1, -1), num, positive_fraction)
    # Batch norm must not see empty slots, so their number is read back. Image by image, as cutting wants them.
    chosen = chosen[filled].sort().values
    return Windows(chosen // candidates.shape[1], candidates.flatten(0, 1)[chosen]), labels.flatten()[chosen]


def svm_signs(iou: Float[Tensor, "B M N"], batch: Batch, num_classes: int) -> Int8[Tensor, "B N C"]:
    """What each candidate is to the SVM of each class: +1 ground truth, -1 far from all of its objects, 0 neither.

    Args:
        iou: of objects with candidates, which are the proposals and then the objects.
        batch: its labels; objects that are not learned from keep others from being negatives.
        num_classes: C.
    """
    num_images, num_objects, num_candidates = iou.shape
    overlap = iou.new_zeros(num_images, num_classes, num_candidates)
    overlap.scatter_reduce_(1, batch.labels[..., None].expand_as(iou), iou, "amax")
    signs = -(overlap < SVM_NEGATIVE_IOU).to(torch.int8).mT
    of_objects = signs[:, num_candidates - num_objects :]
    own = F.one_hot(batch.labels, num_classes).bool() & batch.mask[..., None]
    of_objects.masked_fill_(own, 1)
    return signs


# ------------------------------------------------------------------------------------------------------------ decoding


def window_predictions(
    scores: Float[Tensor, "n C"],
    deltas: Float[Tensor, "n C 4"] | None,
    windows: Windows,
    sizes: Float[Tensor, "B 2"],
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> list[Prediction]:
    """The box of each window for each class above the threshold, moved if there are deltas; NMS by class."""
    window, label = (scores > score_threshold).nonzero(as_tuple=True)
    image, boxes = windows.image[window], windows.boxes[window]
    if deltas is not None:
        boxes = decode_boxes(deltas[window, label].to(boxes.dtype), boxes)
    boxes = clip_boxes(boxes[:, None], sizes[image])[:, 0]
    counts = torch.bincount(image, minlength=len(sizes)).tolist()
    kept = scores[window, label]
    return nms_by_class(boxes.split(counts), kept.split(counts), label.split(counts), nms_threshold, limit)
