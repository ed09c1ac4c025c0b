"""Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks (Ren et al.; arXiv 1506.01497).

In the paper's form (VGG-16, one level, RoIPool), and with FPN (arXiv 1612.03144) and RoIAlign (arXiv 1703.06870).

    trunk [-> FPN] -> RPN: objectness and four deltas at each anchor -> proposals -> RoI head: class and box

    section 3.1.1  anchors of 3 scales and 3 ratios at each cell (with FPN one scale per level)
    section 3.1.2  an anchor is positive from IoU 0.7 or if it is the best of an object, negative below 0.3;
                   equation 1: L = 1/N_cls sum L_cls + lambda 1/N_reg sum p* L_reg
    section 3.1.3  256 anchors per image, up to half of them positive
    section 3.3    NMS of proposals at 0.7; RPN and RoI head trained jointly ("approximate joint training"): no gradient
                   flows through the proposals' coordinates
    Fast R-CNN, section 2.3: RoIs at IoU 0.5 with ground truth are positive, at most a quarter of those sampled

Original code: rbgirshick/py-faster-rcnn (end-to-end training). Deviations, as in torchvision, so that its weights load:
  Not in the paper, but in the original code:
  - both RPN losses are divided by the number of sampled anchors;
  - every RoI below IoU 0.5 is a negative (Fast R-CNN: 0.1 to 0.5), and ground truth boxes join the proposals;
  - anchor edges are rounded to pixels.
  Neither in the paper nor in the original code:
  - anchors across the frame's edge are trained as well;
  - smooth L1 is linear from 1/9 for the RoI head, too (Fast R-CNN: from 1); 512 RoIs per image with FPN.
  Not in the original code:
  - detections have scores from 0.001 (code: 0.05), as all detectors here;
  - with FPN, anchors are centred on the top-left corner of their cell (code: on its middle, as here without FPN), and
    proposals have no minimum size (code: 16 pixels, as in faster_rcnn_vgg16).

Legend: B images, M objects, N anchors of all levels, N_l of one, P proposals of an image, R sampled RoIs, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import follow_weights
from zoo.nn.roi import (
    POOLED_SIDE,
    SMOOTH_L1_BETA,
    RoIHead,
    SampledRoIs,
    build_pooled_trunk,
    roi_class_rows,
    roi_losses,
    roi_predictions,
    sample_rois,
    score_rois,
)
from zoo.nn.trunk import Norm, hidden_layers
from zoo.ops.anchors import cell_anchors, middle_cell_anchors, pyramid_anchors
from zoo.ops.boxes import clip_boxes, pairwise_iou
from zoo.ops.coding import decode_boxes, encode_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.limits import anchor_limits
from zoo.ops.matching import BACKGROUND, gather_matched, match
from zoo.ops.postprocess import nms_by_level
from zoo.ops.precision import upcast
from zoo.ops.sampling import sample
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

ASPECT_RATIOS = (0.5, 1.0, 2.0)
RPN_NMS = 0.7
RPN_BACKGROUND_IOU, RPN_FOREGROUND_IOU = 0.3, 0.7
POSITIVE_FRACTION, FOREGROUND_IOU = 0.25, 0.5  # of RoIs


@dataclass
class Outputs:
    """Feature maps for RoI pooling, and objectness logits, deltas and anchors of each level."""

    features: list[Float[Tensor, "B D _ _"]]
    objectness: list[Float[Tensor, "B _"]]
    deltas: list[Float[Tensor, "B _ 4"]]
    anchors: list[Float[Tensor, "_ 4"]]


# ---------------------------------------------------------------------------------------------------------- network


class RegionProposalNetwork(nn.Module):
    """3x3 convolutions with ReLU, then objectness and four deltas of each anchor; shared by all levels."""

    def __init__(self, in_channels: int, depth: int, num_anchors: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.tower = nn.Sequential(*layers)
        self.objectness = nn.Conv2d(in_channels, num_anchors, 1)
        self.deltas = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (*self.tower, self.objectness, self.deltas):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Float[Tensor, "B _"]], list[Float[Tensor, "B _ 4"]]]:
        """Objectness logits [B, N_l] and deltas [B, N_l, 4] of each level."""
        hidden = [self.tower(level) for level in levels]
        objectness = [self.objectness(level).permute(0, 2, 3, 1).flatten(1) for level in hidden]
        deltas = [self.deltas(level).permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in hidden]
        return objectness, deltas


# -------------------------------------------------------------------------------------------------------- the model


class FasterRCNN(Detector[Outputs]):
    """Faster R-CNN over any timm trunk, with or without FPN.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model with features at strides 4 to 32 (with FPN) or 16 (without).
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of the trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of the trunk that are not trained.
        pyramid: FPN, or the trunk's one level at stride 16 (paper).
        pyramid_norm: batch norm in the FPN.
        channels: of the pyramid.
        pooling: "align" (RoIAlign), or "pool" (RoIPool, one level only; paper).
        anchor_scales: anchor sizes of a level, in strides of that level.
        rpn_depth: convolutions of the RPN.
        head_convs: convolutions of the RoI head.
        head_fcs: fully connected layers of the RoI head.
        head_width: of these.
        dropout: after each of these.
        rois_per_image: sampled for the RoI head's losses.
        proposals_before_nms: of each level, in training and in testing.
        proposals_after_nms: of each image, in training and in testing.
        min_proposal_side: proposals with a shorter side, in pixels of the given image, are dropped.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "Faster R-CNN"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "resnet50",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        pyramid: bool = True,
        pyramid_norm: bool = False,
        channels: int = 256,
        pooling: Literal["align", "pool"] = "align",
        anchor_scales: tuple[float, ...] = (8.0,),
        rpn_depth: int = 1,
        head_convs: int = 0,
        head_fcs: int = 2,
        head_width: int = 1024,
        dropout: float = 0.0,
        rois_per_image: int = 512,
        proposals_before_nms: tuple[int, int] = (2000, 1000),
        proposals_after_nms: tuple[int, int] = (2000, 1000),
        min_proposal_side: float = 0.0,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        frame: FrameConfig = FrameConfig(),
        recipe: Recipe = Recipe(lr=0.02),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(FasterRCNN, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.rois_per_image = rois_per_image
        self.proposals_before_nms = proposals_before_nms
        self.proposals_after_nms = proposals_after_nms
        self.min_proposal_side = min_proposal_side
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        build_norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d if pyramid_norm else None
        parts = build_pooled_trunk(trunk, pretrained, norm, frozen_stages, pyramid, channels, pooling, build_norm)
        self.trunk, self.pyramid, width, self.roi_pooling = parts
        self.rpn = RegionProposalNetwork(width, rpn_depth, len(anchor_scales) * len(ASPECT_RATIOS))
        self.roi_head = RoIHead(width, POOLED_SIDE, head_convs, head_fcs, head_width, num_classes, dropout)
        if pretrained and not pyramid:  # the paper's fc6 and fc7 are VGG's
            self.roi_head.start_from(hidden_layers(trunk, pretrained))
        strides = self.trunk.strides
        anchor_strides = (*strides, 2 * strides[-1]) if pyramid else strides
        for level, stride in enumerate(anchor_strides):
            if pyramid:
                cells = cell_anchors([scale * stride for scale in anchor_scales], ASPECT_RATIOS)
            else:
                cells = middle_cell_anchors(stride, anchor_scales, ASPECT_RATIOS)
            self.register_buffer(f"cell_anchors_{level}", cells, persistent=False)

    def encode(self, batch: Batch) -> Outputs:
        """Feature maps, and objectness and deltas at every anchor."""
        features = self.trunk(batch.images)
        levels = self.pyramid(features) if self.pyramid is not None else features
        objectness, deltas = self.rpn(levels)
        cells = [self.get_buffer(f"cell_anchors_{level}") for level in range(len(levels))]
        grid_sizes = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = pyramid_anchors(cells, grid_sizes, (batch.images.shape[2], batch.images.shape[3]))
        return Outputs(levels[: len(self.roi_pooling.strides)], objectness, deltas, anchors)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Equation 1 for the RPN, and class and box losses of sampled RoIs."""
        return self.box_losses(outputs, batch, self.sample_rois(outputs, batch))

    def sample_rois(self, outputs: Outputs, batch: Batch) -> SampledRoIs:
        """RoIs to train the heads on, from proposals and ground truth boxes."""
        proposals, mask = self.propose(outputs, batch, self.proposals_before_nms[0], self.proposals_after_nms[0])
        return sample_rois(proposals, mask, batch, self.rois_per_image, POSITIVE_FRACTION, FOREGROUND_IOU)

    def box_losses(self, outputs: Outputs, batch: Batch, rois: SampledRoIs) -> Losses:
        """The losses of RPN and box head."""
        class_logits, deltas = score_rois(self.roi_head, self.roi_pooling, outputs.features, rois.boxes, rois.filled)
        return rpn_losses(outputs, batch) | roi_losses(class_logits, deltas, rois)

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Class and box of each proposal by the RoI head, then NMS by class."""
        proposals, mask = self.propose(outputs, batch, self.proposals_before_nms[1], self.proposals_after_nms[1])
        class_logits, deltas = score_rois(self.roi_head, self.roi_pooling, outputs.features, proposals, mask)
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        return roi_predictions(class_logits, deltas, proposals, mask, batch.sizes, *limits)

    def class_rows(self) -> dict[str, list[int]]:
        """The outputs of the RoI head; the RPN knows no classes."""
        return roi_class_rows(self.num_classes)

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects that no anchor overlaps by IoU 0.7, and objects that no anchor is matched to."""
        anchors = torch.cat(outputs.anchors)
        return anchor_limits(objects.boxes, anchors, RPN_BACKGROUND_IOU, RPN_FOREGROUND_IOU, "a proposal")

    @torch.no_grad()
    def propose(
        self, outputs: Outputs, batch: Batch, before_nms: int, after_nms: int
    ) -> tuple[Float[Tensor, "B P 4"], Bool[Tensor, "B P"]]:
        """Proposals: top anchors of each level, decoded and clipped, NMS within each level, top boxes of each image.

        Without `min_proposal_side` only the top anchors are decoded.

        Returns:
            Boxes in framed pixels, padded to the longest, and their mask.
        """
        boxes, scores = [], []
        for objectness, deltas, anchors in zip(outputs.objectness, outputs.deltas, outputs.anchors, strict=True):
            candidates = upcast(objectness)
            if self.min_proposal_side:
                decoded = clip_boxes(decode_boxes(upcast(deltas), anchors), batch.sizes)
                sides = (decoded[..., 2:] - decoded[..., :2]) / batch.scales[:, None]
                candidates = candidates.masked_fill((sides < self.min_proposal_side).any(dim=-1), -torch.inf)
            best, index = candidates.topk(min(before_nms, objectness.shape[1]), dim=1)
            best_deltas = upcast(deltas.gather(1, index[..., None].expand(-1, -1, 4)))
            decoded = clip_boxes(decode_boxes(best_deltas, anchors[index]), batch.sizes)
            boxes.append(torch.where(best[..., None].isfinite(), decoded, 0.0))  # NMS drops boxes without area
            scores.append(best)
        proposals, kept_scores = nms_by_level(boxes, scores, RPN_NMS, after_nms)
        return proposals, kept_scores > -torch.inf


# ----------------------------------------------------------------------------------------------------------- losses


def rpn_losses(outputs: Outputs, batch: Batch) -> Losses:
    """Equation 1 over 256 sampled anchors per image: log loss of objectness, smooth L1 of the positives' deltas."""
    anchors = torch.cat(outputs.anchors)
    iou = pairwise_iou(batch.boxes, anchors)
    matched = match(iou, batch.mask, RPN_BACKGROUND_IOU, RPN_FOREGROUND_IOU, keep_best_of_each_object=True)
    chosen, filled = sample(matched >= 0, matched == BACKGROUND, num=256, positive_fraction=0.5)
    num_sampled = mean_count(filled.sum())
    matched = matched.gather(1, chosen)
    positive = (matched >= 0) & filled

    objectness = upcast(torch.cat(outputs.objectness, dim=1).gather(1, chosen))
    log_loss = F.binary_cross_entropy_with_logits(objectness, positive.to(objectness.dtype), reduction="none")
    deltas = upcast(torch.cat(outputs.deltas, dim=1).gather(1, chosen[..., None].expand(-1, -1, 4)))
    targets = encode_boxes(gather_matched(batch.boxes, matched), anchors[chosen])
    smooth_l1 = F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=-1)
    return {
        "objectness": (log_loss * filled).sum() / num_sampled,
        "rpn_box": torch.where(positive, smooth_l1, 0.0).sum() / num_sampled,
    }
