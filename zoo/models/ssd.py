"""SSD: Single Shot MultiBox Detector (Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg; arXiv 1512.02325).

    trunk -> levels of decreasing size -> at each default box of a cell: C + 1 class logits and four box deltas

    section 2.1  VGG-16 with fc6 and fc7 as convolutions, fc6 with holes ("atrous"), pool5 of stride 1, and further
                 convolutions; a 3x3 convolution predicts from each level (`zoo.nn.ssd_levels`)
    section 2.2  matching: the best default box of each object, then all default boxes with IoU above 0.5
    equation 1   L = (L_conf + alpha L_loc) / N, alpha = 1, N the number of matched default boxes
    equation 2   L_loc: smooth L1 of the deltas of matched boxes
    equation 3   L_conf: softmax loss of the matched boxes and of the hard negatives
    equation 4   s_k = s_min + (s_max - s_min) (k - 1) / (m - 1), of levels k = 1..m; widths s_k sqrt(a), heights
                 s_k / sqrt(a), and another square of sqrt(s_k s_(k+1))
    hard negative mining: the negatives with the highest loss, at most three for each positive
    section 3.1  conv4_3 is normalised to a learned scale, 20 at the start; smallest scale 0.1, s_min 0.2, s_max 0.9
    SSDLite      (arXiv 1801.04381, section 6.2) depthwise separable convolutions in extra levels and predictors

Original code: weiliu89/caffe, branch ssd. Deviations:
  - a default box is at most as wide and as high as the image, as in torchvision (paper and code: not limited);
  - of two objects with the same best default box the one with the higher IoU takes it (code: the other one takes its
    next best; torchvision: the later one takes it);
  - biases have the learning rate of the weights (code: twice as much);
  - candidates have scores from 0.001 (paper: 0.01), as the detections of all detectors here.

Legend: B images, M objects of an image, N default boxes of all levels, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.errors import InputError
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import follow_weights
from zoo.nn.ssd_levels import (
    AtrousHead,
    ExtraLevels,
    ScaledNorm,
    SSDLiteMobileNet,
    build_extras,
    build_predictors,
    check_levels,
)
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.anchors import grid_anchors
from zoo.ops.boxes import clip_boxes, pairwise_iou
from zoo.ops.coding import ROI_WEIGHTS, decode_boxes, encode_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.limits import best_overlap
from zoo.ops.matching import BACKGROUND, gather_matched
from zoo.ops.postprocess import count_per_image, nms_by_class
from zoo.ops.precision import upcast
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

SSDLITE_TRUNK = "ssdlite_mobilenet_v3_large"
VGG_STRIDES = (8, 16)
FOREGROUND_IOU = 0.5
NEGATIVES_EACH = 3
LAST_SCALE = 1.05  # of the level after the last one, in the original code

RATIOS: dict[ExtraLevels, tuple[tuple[float, ...], ...]] = {
    "ssd300": ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
    "ssd512": ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
    "separable": ((2.0, 3.0),) * 6,
}
"""Aspect ratios of the default boxes of each level, beside 1; each also the other way round."""


@dataclass
class Outputs:
    """Class logits, box deltas and default boxes."""

    logits: Float[Tensor, "B N _"]  # 1 + C, background first
    deltas: Float[Tensor, "B N 4"]
    boxes: Float[Tensor, "N 4"]  # framed pixels


# ---------------------------------------------------------------------------------------------------- default boxes


def level_scales(count: int, smallest: float, largest: float) -> list[float]:
    """Equation 4: scales of the levels, evenly from smallest to largest."""
    return [smallest + (largest - smallest) * k / max(count - 1, 1) for k in range(count)]


def cell_boxes(scale: float, next_scale: float, ratios: Sequence[float]) -> Float[Tensor, "A 2"]:
    """Widths and heights of a cell's default boxes, relative to the image: two squares, then each ratio both ways."""
    sides = [(scale, scale), (math.sqrt(scale * next_scale),) * 2]
    for ratio in ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    return torch.tensor(sides).clamp(max=1)


# --------------------------------------------------------------------------------------------------------- the model


@final
class SSD(Detector[Outputs]):
    """SSD over VGG-16 or any timm trunk.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: "vgg16" (the paper's: conv4_3 and conv5_3), "ssdlite_mobilenet_v3_large" (torchvision's), or of timm.
        strides: of a timm model's levels, two with the paper's extra levels, up to five with SSDLite's; not of the
            other trunks.
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of a timm trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of the trunk that are not trained.
        extra_levels: added convolutions, and aspect ratios: the paper's for frames of 300 or 512 pixels, or SSDLite's,
            whose predictors are separable, too.
        scales: of each level and of one more, relative to the frame; None for equation 4.
        smallest_scale: s_min ...
        largest_scale: ... and s_max of equation 4.
        steps: distance of the default boxes of each level in pixels; None for frame / cells.
        score_threshold: of candidates.
        candidates_per_class: kept before NMS.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing and normalisation of images; must stretch.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.

    Raises:
        InputError: the frame does not stretch or is too small for the levels, or scales, steps or strides are not as
            many as these.
    """

    display_name = "SSD"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "vgg16",
        strides: tuple[int, ...] = (16, 32),
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        extra_levels: ExtraLevels = "ssd300",
        scales: tuple[float, ...] | None = None,
        smallest_scale: float = 0.2,
        largest_scale: float = 0.9,
        steps: tuple[float, ...] | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        candidates_per_class: int = 400,
        nms_threshold: float = 0.45,
        detections_per_image: int = 200,
        frame: FrameConfig = FrameConfig(300, 300, stretch=True, divisor=1),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(SSD, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        if not frame.stretch:
            raise InputError("SSD needs frames of one size; set frame.stretch to true")
        ratios = RATIOS[extra_levels]
        scales = scales or (*level_scales(len(ratios), smallest_scale, largest_scale), LAST_SCALE)
        if len(scales) != len(ratios) + 1 or len(steps or ratios) != len(ratios):
            raise InputError(f"{extra_levels} has {len(ratios)} levels: give as many steps, and one scale more")
        self.score_threshold = score_threshold
        self.candidates_per_class = candidates_per_class
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.steps = steps

        is_vgg = trunk.startswith("vgg")
        self.trunk: Trunk | SSDLiteMobileNet
        if trunk == SSDLITE_TRUNK:
            self.trunk = SSDLiteMobileNet()
        else:
            self.trunk = Trunk(trunk, VGG_STRIDES if is_vgg else strides, pretrained, norm, frozen_stages)
        channels = list(self.trunk.channels)
        self.finest: nn.Module = nn.Identity()
        self.second: nn.Module = nn.Identity()
        if is_vgg:
            # conv4_3 has 38 x 38 cells in a frame of 300, as in the original code, whose pooling rounds up.
            pools = [layer for layer in self.trunk.modules() if isinstance(layer, nn.MaxPool2d)]
            pools[2].ceil_mode = True
            self.finest = ScaledNorm(channels[0])
            self.second = AtrousHead(channels[1], trunk, pretrained)
            channels[1] = self.second[3].out_channels
        if not 2 <= len(channels) <= (len(ratios) - 1 if extra_levels == "separable" else 2):
            raise InputError(f"{extra_levels} has {len(ratios)} levels: strides {strides} do not fit")
        check_levels(frame.min_size, self.trunk.strides[-1], extra_levels, len(channels))
        self.extras, widths = build_extras(extra_levels, channels[-1], len(channels))
        channels += widths
        for level, level_ratios in enumerate(ratios):
            sides = cell_boxes(scales[level], scales[level + 1], level_ratios) * frame.min_size
            self.register_buffer(f"cell_boxes_{level}", torch.cat([-sides, sides], dim=1) / 2, persistent=False)
        counts = [2 + 2 * len(level_ratios) for level_ratios in ratios]
        separable = extra_levels == "separable"
        self.classes = build_predictors(channels, [count * (1 + num_classes) for count in counts], separable)
        self.deltas = build_predictors(channels, [count * 4 for count in counts], separable)

    def encode(self, batch: Batch) -> Outputs:
        """Class logits and box deltas of every default box."""
        fine, second, *others = self.trunk(batch.images)
        levels = [self.finest(fine), self.second(second), *others]
        for extra in self.extras:
            levels.append(extra(levels[-1]))
        logits = self._predict(self.classes, levels, 1 + self.num_classes)
        return Outputs(logits, self._predict(self.deltas, levels, 4), self._default_boxes(levels, batch))

    @staticmethod
    def _predict(predictors: nn.ModuleList, levels: Sequence[Tensor], size: int) -> Float[Tensor, "B N _"]:
        maps = [predictor(level) for predictor, level in zip(predictors, levels, strict=True)]
        return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in maps], dim=1)

    def _default_boxes(self, levels: Sequence[Tensor], batch: Batch) -> Float[Tensor, "N 4"]:
        height, width = batch.images.shape[-2:]
        boxes = []
        for number, level in enumerate(levels):
            rows, columns = level.shape[-2:]
            down, across = (height / rows, width / columns) if self.steps is None else (self.steps[number],) * 2
            cell = self.get_buffer(f"cell_boxes_{number}")
            middle = cell.new_tensor([across, down, across, down]) / 2
            boxes.append(grid_anchors(cell + middle, (rows, columns), (down, across)))
        return torch.cat(boxes)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Equation 1 over the batch."""
        matched = match_default_boxes(pairwise_iou(batch.boxes, outputs.boxes), batch.mask)
        return multibox_losses(outputs, matched, batch)

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """The highest-scoring default boxes of each class, decoded, then NMS by class."""
        scores = upcast(outputs.logits).softmax(dim=-1)[..., 1:]
        top, index = scores.topk(min(self.candidates_per_class, scores.shape[1]), dim=1)  # [B, K, C]
        image, rank, label = (top > self.score_threshold).nonzero(as_tuple=True)
        box = index[image, rank, label]
        decoded = decode_boxes(upcast(outputs.deltas[image, box]), outputs.boxes[box], ROI_WEIGHTS)
        decoded = clip_boxes(decoded[:, None], batch.sizes[image])[:, 0]
        counts = count_per_image(image, len(scores))
        found = (decoded.split(counts), top[image, rank, label].split(counts), label.split(counts))
        return nms_by_class(*found, self.nms_threshold, self.detections_per_image)

    def class_rows(self) -> dict[str, list[int]]:
        """The logits of each default box of a cell."""
        rows = [BACKGROUND, *range(self.num_classes)]
        last = "1" if isinstance(self.classes[0], nn.Sequential) else ""
        names = [f"classes.{level}.{last}".rstrip(".") for level in range(len(self.classes))]
        return {name: rows * len(self.get_buffer(f"cell_boxes_{level}")) for level, name in enumerate(names)}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects that no default box overlaps by IoU 0.5, and those whose only default box another one takes."""
        overlap = best_overlap(objects.boxes, outputs.boxes)
        matched = match_default_boxes(
            pairwise_iou(objects.boxes, outputs.boxes)[None], torch.ones(1, len(objects.boxes), dtype=torch.bool)
        )[0]
        is_matched = torch.bincount(matched[matched >= 0], minlength=len(objects.boxes)) > 0
        return [
            Limit(
                f"no default box reaches IoU {FOREGROUND_IOU}",
                f"No default box overlaps it by IoU {FOREGROUND_IOU}: only its best one is trained on it.",
                overlap < FOREGROUND_IOU,
            ),
            Limit(
                "no default box is matched to it",
                "Each of its candidates overlaps another object more: no default box is trained to predict it.",
                ~is_matched,
            ),
        ]


# -------------------------------------------------------------------------------------------------- matching and loss


def match_default_boxes(iou: Float[Tensor, "B M N"], mask: Bool[Tensor, "B M"]) -> Int64[Tensor, "B N"]:
    """Index of the object that each default box is matched to, or BACKGROUND (section 2.2).

    A default box with IoU of at least 0.5 is matched to the object that it overlaps most. The best default box of each
    object is matched to it, however low the IoU; if it is the best of several, to that with the highest IoU (of equal
    ones, the first). An object without any overlap is not matched.
    """
    num_objects = iou.shape[1]
    if num_objects == 0:
        return torch.full((iou.shape[0], iou.shape[2]), BACKGROUND, device=iou.device)
    iou = iou.masked_fill(~mask[:, :, None], -1)
    best_iou, best_object = iou.max(dim=1)
    matched = torch.where(best_iou >= FOREGROUND_IOU, best_object, BACKGROUND)
    reached, best_box = iou.max(dim=2)
    reached = torch.where(reached > 0, reached, -1)
    highest = torch.full_like(best_iou, -1).scatter_reduce(1, best_box, reached, "amax")
    wins = (reached > 0) & (reached == highest.gather(1, best_box))
    objects = torch.arange(num_objects, device=iou.device).expand_as(best_box)
    first = torch.full_like(matched, num_objects)
    first = first.scatter_reduce(1, best_box, torch.where(wins, objects, num_objects), "amin")
    return torch.where(first < num_objects, first, matched)


def multibox_losses(outputs: Outputs, matched: Int64[Tensor, "B N"], batch: Batch) -> Losses:
    """Equations 1 to 3: both losses divided by the number of matched default boxes, averaged over processes.

    Args:
        outputs: of the network.
        matched: result of `match_default_boxes`.
        batch: its objects.
    """
    positive = matched >= 0
    num_positive = mean_count(positive.sum())
    slots = torch.where(positive, gather_matched(batch.labels, matched) + 1, 0)
    cross_entropy = F.cross_entropy(upcast(outputs.logits).flatten(0, 1), slots.flatten(), reduction="none")
    cross_entropy = cross_entropy.view_as(slots)
    counted = positive | hard_negatives(cross_entropy.detach(), positive)
    class_loss = torch.where(counted, cross_entropy, 0.0).sum() / num_positive

    gt_boxes = gather_matched(batch.boxes, matched)
    targets = torch.where(positive[..., None], encode_boxes(gt_boxes, outputs.boxes, ROI_WEIGHTS), 0.0)
    smooth_l1 = F.smooth_l1_loss(upcast(outputs.deltas), targets, reduction="none").sum(dim=-1)
    return {"class": class_loss, "box": torch.where(positive, smooth_l1, 0.0).sum() / num_positive}


def hard_negatives(losses: Float[Tensor, "B N"], positive: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N"]:
    """The negatives of each image with the highest loss, three for each of its positives."""
    order = losses.masked_fill(positive, -1).argsort(dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < NEGATIVES_EACH * positive.sum(dim=1, keepdim=True)) & ~positive
