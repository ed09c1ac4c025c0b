"""RetinaNet: Focal Loss for Dense Object Detection (Lin, Goyal, Girshick, He, Dollar; arXiv 1708.02002).

    trunk -> FPN P3..P7 -> at each of nine anchors per cell: C class logits and four box deltas

    section 4    FPN levels P3 to P7, P6 by a stride-2 convolution on C5, P7 on ReLU(P6); anchors of 32^2 .. 512^2 with
                 sizes 2^0, 2^(1/3), 2^(2/3) and ratios 1:2, 1:1, 2:1; an anchor is positive from IoU 0.5,
                 negative below 0.4, ignored between
    equation 5   FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t), alpha 0.25, gamma 2, summed over all anchors and divided
                 by the number of positive anchors
    section 4.1  last bias of the class subnet -log((1 - pi) / pi), pi = 0.01; other biases 0, weights N(0, 0.01^2);
                 at most 1000 candidates per level, NMS at 0.5

Original code: facebookresearch/Detectron. Deviations, as in torchvision, so that its weights load:
  Neither in the paper nor in the original code:
  - the best anchor of each object is positive however low its IoU (code: from IoU 0.4; paper: none);
  - the box loss is L1 (smooth L1; code: beta 0.11), or GIoU (arXiv 1902.09630);
  - candidates have scores from 0.001 (paper and code: 0.05), as the detections of all detectors here;
  - anchor edges are rounded to pixels;
  - the losses of each image are divided by its own positive anchors, then averaged over the batch (code: divided by
    those of all images of a GPU, plus one per image).
  Not in the original code:
  - anchors are centred on the top-left corner of their cell (code: on its middle).

Legend: B images, M objects of an image, N anchors of all levels, N_l of one level, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.fpn import Extra, Pyramid
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import follow_weights
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.anchors import cell_anchors, pyramid_anchors
from zoo.ops.boxes import clip_boxes, paired_giou, pairwise_iou
from zoo.ops.coding import decode_boxes, encode_boxes
from zoo.ops.focal import focal_loss_per_image
from zoo.ops.limits import anchor_limits
from zoo.ops.matching import IGNORED, gather_matched, match
from zoo.ops.postprocess import nms_by_class, split_by_image, top_candidates
from zoo.ops.precision import upcast
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

ASPECT_RATIOS = (0.5, 1.0, 2.0)
TRUNK_STRIDES = (8, 16, 32)
PRIOR = 0.01
BACKGROUND_IOU, FOREGROUND_IOU = 0.4, 0.5


@dataclass
class Outputs:
    """Class logits, box deltas and anchors of each level."""

    logits: list[Float[Tensor, "B _ C"]]
    deltas: list[Float[Tensor, "B _ 4"]]
    anchors: list[Float[Tensor, "_ 4"]]


# ---------------------------------------------------------------------------------------------------------- network


class Subnet(nn.Module):
    """Class or box subnet, shared by all levels: 3x3 convolutions with ReLU (four in the paper) and an output layer."""

    def __init__(self, channels: int, depth: int, num_anchors: int, num_outputs: int, group_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=not group_norm))
            if group_norm:
                layers.append(nn.GroupNorm(32, channels))
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.output = nn.Conv2d(channels, num_anchors * num_outputs, 3, padding=1)
        self.num_outputs = num_outputs
        for layer in (*self.tower, self.output):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Float[Tensor, "B _ K"]]:
        """Outputs [B, N_l, K] of each level; a view where the maps are channels_last."""
        outputs = [self.output(self.tower(level)) for level in levels]
        return [output.permute(0, 2, 3, 1).reshape(len(output), -1, self.num_outputs) for output in outputs]


# -------------------------------------------------------------------------------------------------------- the model


@final
class RetinaNet(Detector[Outputs]):
    """RetinaNet over any timm trunk.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model with features at strides 8, 16 and 32.
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of the trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of the trunk that are not trained.
        channels: of the pyramid and the heads.
        head_depth: convolutions of each subnet before its last.
        group_norm: GroupNorm in the subnets.
        extra_levels: P6 from the trunk (paper) or from the pyramid (torchvision's v1).
        anchor_scale: size of the smallest anchor of a level, in strides of that level.
        scales_per_octave: n anchor sizes per cell, 2^(i / n).
        box_loss: "l1", or "giou" on decoded boxes.
        box_loss_weight: of the box loss.
        alpha: of the focal loss.
        gamma: of the focal loss.
        score_threshold: of candidates.
        candidates_per_level: kept before NMS.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "RetinaNet"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "resnet50",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        channels: int = 256,
        head_depth: int = 4,
        group_norm: bool = False,
        extra_levels: Extra = "p6p7_from_trunk",
        anchor_scale: float = 4.0,
        scales_per_octave: int = 3,
        box_loss: Literal["l1", "giou"] = "l1",
        box_loss_weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        score_threshold: float = SCORE_THRESHOLD,
        candidates_per_level: int = 1000,
        nms_threshold: float = 0.5,
        detections_per_image: int = 300,
        frame: FrameConfig = FrameConfig(),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(RetinaNet, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.box_loss: Literal["l1", "giou"] = box_loss
        self.box_loss_weight = box_loss_weight
        self.alpha, self.gamma = alpha, gamma
        self.score_threshold = score_threshold
        self.candidates_per_level = candidates_per_level
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        self.trunk = Trunk(trunk, TRUNK_STRIDES, pretrained, norm, frozen_stages)
        self.pyramid = Pyramid(self.trunk.channels, channels, extra_levels, norm=None)
        num_anchors = scales_per_octave * len(ASPECT_RATIOS)
        self.classification = Subnet(channels, head_depth, num_anchors, num_classes, group_norm)
        self.regression = Subnet(channels, head_depth, num_anchors, 4, group_norm)
        assert self.classification.output.bias is not None
        nn.init.constant_(self.classification.output.bias, -math.log((1 - PRIOR) / PRIOR))
        for level, stride in enumerate((*TRUNK_STRIDES, 64, 128)):
            sizes = [math.floor(anchor_scale * stride * 2 ** (i / scales_per_octave)) for i in range(scales_per_octave)]
            self.register_buffer(f"cell_anchors_{level}", cell_anchors(sizes, ASPECT_RATIOS), persistent=False)

    def encode(self, batch: Batch) -> Outputs:
        """Class logits and box deltas at every anchor."""
        levels = self.pyramid(self.trunk(batch.images))
        cells = [self.get_buffer(f"cell_anchors_{level}") for level in range(len(levels))]
        grid_sizes = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = pyramid_anchors(cells, grid_sizes, (batch.images.shape[2], batch.images.shape[3]))
        return Outputs(self.classification(levels), self.regression(levels), anchors)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Focal loss over all anchors and box loss over the positive ones, both divided by the number of positives."""
        anchors = torch.cat(outputs.anchors)
        iou = pairwise_iou(batch.boxes, anchors)
        matched = match(iou, batch.mask, BACKGROUND_IOU, FOREGROUND_IOU, keep_best_of_each_object=True)
        positive = matched >= 0
        num_positive = positive.sum(dim=1).clamp(min=1)

        class_loss = focal_losses(outputs.logits, matched, batch, self.alpha, self.gamma) / num_positive
        deltas = upcast(torch.cat(outputs.deltas, dim=1))
        gt_boxes = gather_matched(batch.boxes, matched)
        losses = box_losses(deltas, gt_boxes, anchors, self.box_loss)
        box_loss = torch.where(positive, losses, 0.0).sum(dim=1) / num_positive
        return {"class": class_loss.mean(), "box": self.box_loss_weight * box_loss.mean()}

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Decoded top candidates of each level, then NMS by class over all levels together."""
        boxes, found = [], []
        for logits, deltas, anchors in zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True):
            level = top_candidates(logits, self.score_threshold, self.candidates_per_level)
            decoded = decode_boxes(upcast(deltas[level.image, level.anchor]), anchors[level.anchor])
            boxes.append(clip_boxes(decoded[:, None], batch.sizes[level.image])[:, 0])
            found.append(level)
        image = torch.cat([level.image for level in found])
        scores = torch.cat([level.logit for level in found]).sigmoid()
        rows = (torch.cat(boxes), scores, torch.cat([level.label for level in found]))
        per_image = split_by_image(rows, image, len(batch.images))
        return nms_by_class(*per_image, self.nms_threshold, self.detections_per_image)

    def class_rows(self) -> dict[str, list[int]]:
        """The logits of each anchor shape."""
        return {"classification.output": [*range(self.num_classes)] * (self.regression.output.out_channels // 4)}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects that no anchor overlaps by IoU 0.5, and objects that no anchor is matched to."""
        anchors = torch.cat(outputs.anchors)
        return anchor_limits(objects.boxes, anchors, BACKGROUND_IOU, FOREGROUND_IOU, "the object")


# ----------------------------------------------------------------------------------------------------------- losses


def focal_losses(
    logits: Sequence[Float[Tensor, "B _ C"]], matched: Tensor, batch: Batch, alpha: float, gamma: float
) -> Float[Tensor, " B"]:
    """Focal loss of each image summed over all anchors; `matched` [B, N] is the result of `match`."""
    labels = torch.where(matched >= 0, gather_matched(batch.labels, matched), -1)
    sizes = [level.shape[1] for level in logits]
    focal = partial(focal_loss_per_image, alpha=alpha, gamma=gamma)
    ignored = matched == IGNORED
    by_level = zip(logits, labels.split(sizes, dim=1), ignored.split(sizes, dim=1), strict=True)
    return torch.stack([focal(*level) for level in by_level]).sum(dim=0)


def box_losses(
    deltas: Float[Tensor, "B N 4"],
    gt_boxes: Float[Tensor, "B N 4"],
    anchors: Float[Tensor, "N 4"],
    kind: Literal["l1", "giou"],
) -> Float[Tensor, "B N"]:
    """Box loss of each anchor with its matched object: L1 of the deltas, or 1 - GIoU."""
    if kind == "l1":
        return (deltas - encode_boxes(gt_boxes, anchors)).abs().sum(dim=-1)
    return 1 - paired_giou(decode_boxes(deltas, anchors), gt_boxes)
