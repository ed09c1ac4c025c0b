"""R-CNN: Rich feature hierarchies for accurate object detection and semantic segmentation (Girshick et al.; 1311.2524).

Each proposal is cropped from the image, warped to a fixed size and classified by a network on its own.

    image -> selective search -> about 2,000 proposals
    proposal -> warped crop -> trunk -> features -> a linear SVM for each class -> NMS by class
                                                 -> a linear box regressor for each class

    section 2.1    selective search; crops warped to p x p pixels with 16 of them context on each side (appendix A)
    section 2.3    fine-tuning as a classifier of C classes and background: 32 windows with IoU >= 0.5 and 96 others
                   per batch; then an SVM per class: only ground truth is positive, IoU below 0.3 with it is negative,
                   other proposals are left out, hard negatives mined (appendix B: why the two differ)
    section 2.2    greedy NMS by class
    section 3.5    class-wise ridge regression of boxes (appendix C, equations 1 to 9): examples with IoU above 0.6,
                   lambda 1000; a box is predicted once

Original code: rbgirshick/rcnn. Deviations, neither in the paper nor in the original code:
  - any timm trunk can replace the paper's AlexNet; "alexnet" is torchvision's, without the two groups and without local
    response normalisation;
  - SVMs and regressors use the same features, the trunk's last (fc7 of AlexNet and VGG); the paper regresses pool5;
  - the bias of background starts at the log-odds of its share of the windows, not at 0;
  - a batch has windows of few images, not of the whole data set;
  - a decision value d becomes the score sigmoid(3 d), 0.05 and 0.95 at the margins; AP depends on the order of d alone;
  - difficult objects and crowds are neither positives nor negatives of the SVMs (code: difficult ones are positives);
  - detections have scores from 0.001, 100 of an image (code: 100 of an image and class, 40 times the number of images
    of each class, before NMS);
  - for SVMs and regressors, those listed in `zoo.nn.linear_heads`.

SVMs and regressors are fitted before each validation of a training and at its end (`zoo.nn.head_fitting`). Without
fitted heads the softmax of the fine-tuning gives the scores, and proposals are the predicted boxes.

There is no network on whole images: `encode` returns them as they are, the losses crop the windows that they sample,
and predictions crop all proposals, a bounded number at once.

Legend: B images, M objects, P proposals of an image (padded), N candidates (proposals, then objects), n windows of a
batch, S side of a crop, D features, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int8, Int64
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig, get_proposals
from zoo.nn.head_fitting import FitLinearHeads
from zoo.nn.linear_heads import Examples, HeadFitter, LinearHeads
from zoo.nn.pretrained import follow_weights
from zoo.nn.trunk import CropTrunk, Norm
from zoo.ops.boxes import clip_boxes, pairwise_iou
from zoo.ops.coding import decode_boxes, encode_boxes
from zoo.ops.distributed import mean_count
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


@dataclass
class Windows:
    """Boxes of a batch to be cropped, in one list."""

    image: Int64[Tensor, " n"]  # in the batch, ascending
    boxes: Float[Tensor, "n 4"]  # framed pixels


# --------------------------------------------------------------------------------------------------------- the model


@final
class RCNN(Detector[Tensor]):
    """R-CNN over any timm classifier.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model that takes crops of this size, or "alexnet" (torchvision's).
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of the trunk: "frozen" for pretrained weights, "batch" from scratch.
        dropout: in the hidden layers of a trunk that has some (AlexNet, VGG: 0.5).
        crop_size: side of the warped crops in pixels.
        context: pixels of the crop on each side that lie around the proposal.
        head: scores from the SVMs, or from the softmax of the fine-tuning.
        regress_boxes: apply the box regressors.
        windows_per_batch: sampled from all images of a batch for the loss.
        positive_fraction: of the windows, at most.
        fit_images: number of training images that SVMs and regressors are fitted to; processes share them.
        svm_cost: of the SVMs (C).
        svm_examples: windows of all classes whose features are kept for the SVMs, at most; 4 D bytes each.
        ridge_penalty: of the regressors (lambda).
        crops_at_once: bounds memory; a crop of 227 pixels takes about 2 MB without its feature maps.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        proposals: the selective search whose boxes are scored.
        frame: resizing and normalisation of images before cropping.
        recipe: of the fine-tuning.
        channels_last: memory format of images and weights.
    """

    display_name = "R-CNN"

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
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.3,
        detections_per_image: int = 100,
        proposals: SelectiveSearch = SelectiveSearch(),
        frame: FrameConfig = FrameConfig(min_size=500, max_size=1000),
        recipe: Recipe = Recipe(lr=0.001),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(RCNN, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments, proposals)
        if 2 * context >= crop_size:
            raise ValueError(
                f"context of {context} pixels on each side leaves no pixels of a crop of {crop_size}; reduce context"
            )
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
        # The softmax starts at the share of background among the windows.
        nn.init.constant_(self.softmax.bias[:1], math.log(num_classes * (1 - positive_fraction) / positive_fraction))
        self.linear_heads = LinearHeads(num_classes, self.trunk.channels)

    def encode(self, batch: Batch) -> Tensor:
        """The framed images themselves, since R-CNN's network runs on crops."""
        return batch.images

    def compute_losses(self, outputs: Tensor, batch: Batch) -> Losses:
        """Cross entropy of sampled windows over the classes and background."""
        windows, labels = sample_windows(batch, self.windows_per_batch, self.positive_fraction, foreground_iou=0.5)
        num_windows = mean_count(labels.new_full((), len(labels)))
        if not len(labels):  # run the network anyway, for gradients of zero
            windows = Windows(labels.new_zeros(1), batch.sizes.new_tensor([[0, 0, *batch.images.shape[:1:-1]]]))
        logits = self.softmax(self.trunk(self._crop(outputs, batch.sizes, windows.image, windows.boxes)))
        losses = F.cross_entropy(upcast(logits)[: len(labels)], labels + 1, reduction="sum")
        return {"window_class": losses / num_windows}

    def compute_predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        """Class and box of every proposal, then NMS by class."""
        proposals, mask = get_proposals(batch)
        windows = Windows(mask.nonzero()[:, 0], proposals[mask])
        features = self.extract_features(outputs, batch, windows)
        scores, deltas = self.score_features(features)
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        return window_predictions(scores, deltas, windows, batch.sizes, *limits)

    def extract_features(self, images: Tensor, batch: Batch, windows: Windows) -> Float[Tensor, "n D"]:
        """Trunk features of each window, a bounded number of crops at once."""
        if not len(windows.image):
            return images.new_zeros(0, self.trunk.channels)
        parts = []
        for image, boxes in zip(
            windows.image.split(self.crops_at_once), windows.boxes.split(self.crops_at_once), strict=True
        ):
            span = slice(int(image[0]), int(image[-1]) + 1)  # the images that these windows lie in
            crops = self._crop(images[span], batch.sizes[span], image - image[0], boxes)
            parts.append(self.trunk(crops))
        return torch.cat(parts)

    def _crop(self, images: Tensor, sizes: Tensor, image: Tensor, boxes: Tensor) -> Float[Tensor, "n 3 S S"]:
        return warp_windows(images, sizes, image, boxes, self.crop_size, self.context)

    def score_features(
        self, features: Float[Tensor, "n D"]
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C 4"] | None]:
        """Class scores in 0..1, and box deltas or None without box regression."""
        fitted = bool(self.linear_heads.fitted)
        if fitted and self.head == "svm":
            scores = torch.sigmoid(SCORE_SLOPE * self.linear_heads.decide(features))
        else:
            scores = upcast(self.softmax(features)).softmax(dim=1)[:, 1:]
        return scores, self.linear_heads.regress(features) if fitted and self.regress_boxes else None

    def class_rows(self) -> dict[str, list[int]]:
        """The softmax, the SVMs and the box regressors."""
        linear = ("svm_weight", "svm_bias", "box_weight", "box_bias")
        rows = {f"linear_heads.{name}": [*range(self.num_classes)] for name in linear}
        return rows | {"softmax": [BACKGROUND, *range(self.num_classes)]}

    def configure_callbacks(self) -> list[Callback]:
        """The callback that fits SVMs and box regressors in a training."""
        return [FitLinearHeads()] if self.head == "svm" or self.regress_boxes else []

    def make_head_fitter(self) -> HeadFitter:
        """A fitter without examples."""
        return HeadFitter(
            self.num_classes,
            self.trunk.channels,
            self.device,
            cost=self.svm_cost,
            penalty=self.ridge_penalty,
            bank_size=self.svm_examples,
        )

    def find_examples(self, raw: RawBatch) -> Examples:
        """Sections 2.3 and 3.5: every proposal and object as an example of the SVMs and box regressors."""
        batch = self.frame_batch(*raw, for_training=True)
        candidates, mask = all_candidates(batch)
        image, index = mask.nonzero(as_tuple=True)
        iou = pairwise_iou(batch.boxes, candidates)
        signs = svm_signs(iou, batch, self.num_classes)
        matched = match(iou, batch.mask, REGRESSION_IOU, REGRESSION_IOU, keep_best_of_each_object=False)[image, index]
        windows = Windows(image, candidates[image, index])
        features = self.extract_features(self.encode(batch), batch, windows)
        regressed = matched >= 0
        objects = (image[regressed], matched[regressed])
        deltas = features.new_zeros(len(image), 4, dtype=windows.boxes.dtype)
        deltas[regressed] = encode_boxes(batch.boxes[objects], windows.boxes[regressed])
        labels = torch.zeros_like(matched)
        labels[regressed] = batch.labels[objects]
        return Examples(features, signs[image, index], deltas, labels, regressed)


# ---------------------------------------------------------------------------------------------------- training windows


def all_candidates(batch: Batch) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Proposals followed by objects of each image, and the mask of those to learn from."""
    proposals, mask = get_proposals(batch)
    return torch.cat((proposals, batch.boxes), dim=1), torch.cat((mask, batch.mask), dim=1)


@torch.no_grad()
def sample_windows(
    batch: Batch, num: int, positive_fraction: float, foreground_iou: float
) -> tuple[Windows, Int64[Tensor, " n"]]:
    """Section 2.3: windows sampled from the whole batch, positives at most a fraction of them, the others background.

    Returns:
        At most `num` windows, and their labels: 0..C-1, or BACKGROUND.
    """
    candidates, mask = all_candidates(batch)
    iou = pairwise_iou(batch.boxes, candidates)
    matched = match(iou, batch.mask, foreground_iou, foreground_iou, keep_best_of_each_object=False)
    labels = torch.where(matched >= 0, gather_matched(batch.labels, matched), BACKGROUND)
    positive, negative = (matched >= 0) & mask, (matched == BACKGROUND) & mask
    chosen, filled = sample(positive.view(1, -1), negative.view(1, -1), num, positive_fraction)
    # Without empty slots, which batch norm must not see; sorted by image for cropping.
    chosen = chosen[filled].sort().values
    return Windows(chosen // candidates.shape[1], candidates.flatten(0, 1)[chosen]), labels.flatten()[chosen]


def svm_signs(iou: Float[Tensor, "B M N"], batch: Batch, num_classes: int) -> Int8[Tensor, "B N C"]:
    """Label of each candidate for the SVM of each class: +1 ground truth, -1 IoU below 0.3 with its objects, 0 neither.

    Args:
        iou: of objects with candidates, which are the proposals and then the objects.
        batch: its labels; difficult objects and crowds also keep candidates from being negatives.
        num_classes: C.
    """
    num_images, num_objects, num_candidates = iou.shape
    overlap = iou.new_zeros(num_images, num_classes, num_candidates)
    overlap.scatter_reduce_(1, batch.labels[..., None].expand_as(iou), iou, "amax")
    signs = -(overlap < SVM_NEGATIVE_IOU).to(torch.int8).mT
    of_objects = signs[:, num_candidates - num_objects :]
    is_positive = F.one_hot(batch.labels, num_classes).bool() & batch.mask[..., None]
    of_objects.masked_fill_(is_positive, 1)
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
    """Decoded box of each window for each class above the threshold, then NMS by class."""
    window, label = (scores > score_threshold).nonzero(as_tuple=True)
    image, boxes = windows.image[window], windows.boxes[window]
    if deltas is not None:
        boxes = decode_boxes(deltas[window, label].to(boxes.dtype), boxes)
    boxes = clip_boxes(boxes[:, None], sizes[image])[:, 0]
    counts = torch.bincount(image, minlength=len(sizes)).tolist()
    kept = scores[window, label]
    return nms_by_class(boxes.split(counts), kept.split(counts), label.split(counts), nms_threshold, limit)
