"""CornerNet: Detecting Objects as Paired Keypoints (Law, Deng; arXiv 1808.01244).

    trunk -> maps of stride 4 -> for each kind of corner: corner pooling -> C heat maps, embeddings, offsets
    top-left and bottom-right corners of one class whose embeddings are near each other -> box

    section 3.2  equation 1: focal loss on heat maps, alpha 2, beta 4, its penalty reduced around each corner by
                 exp(-(x^2 + y^2) / 2 sigma^2) within the radius that keeps IoU 0.3, sigma a third of it
                 equations 2, 3: offsets o = (x/n - floor(x/n), y/n - floor(y/n)), n the stride; smooth L1
    section 3.3  equations 4, 5: pull (e_tk - e_k)^2 + (e_bk - e_k)^2, push max(0, 1 - |e_k - e_j|), e_k their mean
    section 3.4  equations 6, 7 and figure 7: corner pooling and the prediction module around it
    section 4.1  L = L_det + 0.1 L_pull + 0.1 L_push + L_off (equation 8), at each stack of hourglasses
    section 4.2  the 100 highest 3x3 maxima of each kind; pairs of one class with embeddings at most 0.5 apart, scored
                 by the mean of both; soft-NMS over the image and its flipped image together, the best 100

Original code: princeton-vl/CornerNet, as it is since March 2019. Deviations:
  Not in the paper, but in the original code: the losses are averaged over the stacks of hourglasses.
  Neither in the paper nor in the original code:
  - a bottom-right corner is in cell ceil(x/n) - 1, not floor(x/n): an edge at the end of the frame would have no cell;
  - images are framed whole in training (paper and code: random crops at several scales);
  - a timm trunk can replace the hourglasses: the sum of its levels of stride 4 to 32 at stride 4; one stack.
  Not in the original code:
  - heat-map and offset losses are divided by the objects of the batch (code: of a GPU's five images), pull and push
    losses are means over images (code: sums over five, so configurations weight them by 0.5, not 0.1);
  - cell (i, j) is at pixel (4i, 4j) of frames of 128k pixels, images at their top left, padded with the mean (code:
    frames of 128k - 1 pixels, scaled by 128k / (128k - 1), images in the middle, padded with black);
  - soft-NMS uses the IoU of continuous boxes (code: each side a pixel longer).

Legend: B images, M objects (padded), C classes, H x W cells (column, row), K corners (x, y) of each kind, P pairs.
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
from zoo.nn.frame import FrameConfig
from zoo.nn.hourglass import ConvNorm, StackedHourglass, UpsampledTrunk
from zoo.nn.pretrained import follow_weights
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.boxes import clip_boxes
from zoo.ops.corner_pooling import Corner, corner_pool
from zoo.ops.distributed import mean_count
from zoo.ops.flip import flip_boxes, flip_images
from zoo.ops.focal import penalty_reduced_focal_loss_per_image
from zoo.ops.heatmap import corner_cells, draw_gaussians, gather_cells, gaussian_radius, top_peaks
from zoo.ops.limits import corner_limits
from zoo.ops.precision import upcast
from zoo.ops.soft_nms import soft_nms
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

STRIDE = 4
TRUNK_STRIDES = (4, 8, 16, 32)
PRIOR = 0.1  # of a heat map's cells at the start: the code's bias of -2.19


@dataclass
class Corners:
    """Heat maps, embeddings and offsets of one kind of corner."""

    heat: Float[Tensor, "B C H W"]  # logits
    embedding: Float[Tensor, "B 1 H W"]
    offset: Float[Tensor, "B 2 H W"]  # (x, y), in cells


CornerPair = tuple[Corners, Corners]  # top-left, bottom-right


@dataclass
class Outputs:
    """Corners from the last stack, and the maps of earlier stacks, which only the losses use."""

    corners: CornerPair
    earlier_maps: list[Float[Tensor, "B _ H W"]]
    flipped: CornerPair | None  # of the flipped images


# ---------------------------------------------------------------------------------------------------------- network


class CornerPooling(nn.Module):
    """Figure 7: corner pooling of two maps, a convolution, and a shortcut around both."""

    def __init__(self, corner: Corner, channels: int, pooled_channels: int) -> None:
        super().__init__()
        self.corner: Corner = corner
        self.vertical = ConvNorm(channels, pooled_channels, 3)
        self.horizontal = ConvNorm(channels, pooled_channels, 3)
        self.pooled = nn.Sequential(
            nn.Conv2d(pooled_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.output = ConvNorm(channels, channels, 3)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """Maps after the corner pooling module."""
        pooled = self.pooled(corner_pool(self.vertical(maps), self.horizontal(maps), self.corner))
        return self.output(F.relu(pooled + self.shortcut(maps), inplace=True))


class CornerHead(nn.Module):
    """Corner pooling, then heat maps, embeddings and offsets of one kind of corner."""

    def __init__(self, corner: Corner, channels: int, pooled_channels: int, num_classes: int) -> None:
        super().__init__()
        self.pooling = CornerPooling(corner, channels, pooled_channels)
        self.heat = _branch(channels, num_classes)
        self.embedding = _branch(channels, 1)
        self.offset = _branch(channels, 2)
        nn.init.constant_(self.heat[-1].bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, maps: Float[Tensor, "B D H W"]) -> Corners:
        """Corners of a stack."""
        maps = self.pooling(maps)
        return Corners(self.heat(maps), self.embedding(maps), self.offset(maps))


def _branch(channels: int, num_outputs: int) -> nn.Sequential:
    hidden = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Conv2d(channels, num_outputs, 1))


class StackHead(nn.Module):
    """Heads of one stack for both kinds of corners."""

    def __init__(self, channels: int, pooled_channels: int, num_classes: int) -> None:
        super().__init__()
        self.top_left = CornerHead("top_left", channels, pooled_channels, num_classes)
        self.bottom_right = CornerHead("bottom_right", channels, pooled_channels, num_classes)

    def forward(self, maps: Float[Tensor, "B D H W"]) -> CornerPair:
        """Top-left and bottom-right corners of a stack."""
        return self.top_left(maps), self.bottom_right(maps)


# -------------------------------------------------------------------------------------------------------- the model


@final
class CornerNet(Detector[Outputs]):
    """CornerNet over stacked hourglasses or any timm trunk.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: "hourglass", or a timm model with features at strides 4, 8, 16 and 32.
        pretrained: ImageNet weights of a timm trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: of a timm trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of a timm trunk that are not trained.
        num_stacks: number of hourglasses, each with its own loss.
        stage_channels: of the levels of an hourglass, from stride 4 on.
        stage_depths: residual blocks of each level.
        stem_channels: of the 7x7 convolution before the hourglasses.
        channels: of the maps that the heads read.
        pooled_channels: of the maps in corner pooling.
        min_iou: IoU with the object that defines the radius of reduced penalty.
        pull_weight: of the pull loss.
        push_weight: of the push loss.
        offset_weight: of the offset loss.
        corners_per_kind: top peaks of each kind that are paired.
        embedding_distance: largest distance of the embeddings of a pair.
        pairs_per_image: top pairs before soft-NMS.
        soft_nms_sigma: of the gaussian in soft-NMS.
        score_threshold: detections not above it are dropped.
        detections_per_image: kept after soft-NMS.
        flip_test: predict on the flipped image as well, where no gradients are needed; takes twice the time.
        frame: resizing, normalisation and padding of images; the divisor of the paper's network is 128.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "CornerNet"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "hourglass",
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        num_stacks: int = 2,
        stage_channels: tuple[int, ...] = (256, 256, 384, 384, 384, 512),
        stage_depths: tuple[int, ...] = (2, 2, 2, 2, 2, 4),
        stem_channels: int = 128,
        channels: int = 256,
        pooled_channels: int = 128,
        min_iou: float = 0.3,
        pull_weight: float = 0.1,
        push_weight: float = 0.1,
        offset_weight: float = 1.0,
        corners_per_kind: int = 100,
        embedding_distance: float = 0.5,
        pairs_per_image: int = 1000,
        soft_nms_sigma: float = 0.5,
        score_threshold: float = SCORE_THRESHOLD,
        detections_per_image: int = 100,
        flip_test: bool = False,
        frame: FrameConfig = FrameConfig(),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(CornerNet, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.min_iou = min_iou
        self.pull_weight, self.push_weight, self.offset_weight = pull_weight, push_weight, offset_weight
        self.corners_per_kind = corners_per_kind
        self.embedding_distance, self.pairs_per_image = embedding_distance, pairs_per_image
        self.soft_nms_sigma = soft_nms_sigma
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.flip_test = flip_test

        if trunk == "hourglass":
            self.trunk: nn.Module = StackedHourglass(num_stacks, stage_channels, stage_depths, stem_channels, channels)
        else:
            num_stacks = 1
            self.trunk = UpsampledTrunk(Trunk(trunk, TRUNK_STRIDES, pretrained, norm, frozen_stages), channels)
        self.heads = nn.ModuleList(StackHead(channels, pooled_channels, num_classes) for _ in range(num_stacks))

    def encode(self, batch: Batch) -> Outputs:
        """Corners from the last stack, with `flip_test` of the flipped frames, too, in the same pass."""
        images = batch.images
        flip = self.flip_test and not torch.is_grad_enabled()  # not in training steps
        if flip:
            images = torch.cat([images, flip_images(images, batch.sizes)])
        *earlier_maps, maps = self.trunk(images)
        top_left, bottom_right = self.heads[-1](maps)
        if not flip:
            return Outputs((top_left, bottom_right), earlier_maps, None)
        corners, flipped = zip(_halve(top_left), _halve(bottom_right), strict=True)
        return Outputs(corners, [maps[: len(batch.images)] for maps in earlier_maps], flipped)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Equation 8, averaged over the stacks."""
        pairs = [head(maps) for head, maps in zip(self.heads, outputs.earlier_maps, strict=False)]
        pairs.append(outputs.corners)
        targets = make_targets(batch, self.num_classes, outputs.corners[0].heat, self.min_iou)
        per_stack = [stack_losses(pair, targets, batch.mask) for pair in pairs]
        heat, pull, push, offset = (torch.stack(losses).mean() for losses in zip(*per_stack, strict=True))
        return {
            "heat": heat,
            "pull": self.pull_weight * pull,
            "push": self.push_weight * push,
            "offset": self.offset_weight * offset,
        }

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Top pairs of corners, those of flipped images flipped back, then soft-NMS over both."""
        boxes, scores, labels = self._decode(outputs.corners, batch.sizes)
        if outputs.flipped is not None:
            flipped = self._decode(outputs.flipped, batch.sizes)
            both = zip((boxes, scores, labels), (flip_boxes(flipped[0], batch.sizes), *flipped[1:]), strict=True)
            boxes, scores, labels = (torch.cat(pair, dim=1) for pair in both)
        scores, index = soft_nms(boxes, scores, labels, self.soft_nms_sigma, self.detections_per_image)
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        labels = labels.gather(1, index)
        return [
            Prediction(boxes=boxes_per_image[keep], scores=scores_per_image[keep], labels=labels_per_image[keep])
            for boxes_per_image, scores_per_image, labels_per_image, keep in zip(
                boxes, scores, labels, scores > self.score_threshold, strict=True
            )
        ]

    def class_rows(self) -> dict[str, list[int]]:
        """The heat maps."""
        heads = [f"{stack}.{corner}" for stack in range(len(self.heads)) for corner in ("top_left", "bottom_right")]
        return {f"heads.{head}.heat.2": [*range(self.num_classes)] for head in heads}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects whose two corners share or neighbour the cells of another object of their class."""
        height, width = outputs.corners[0].heat.shape[-2:]
        return corner_limits(*corner_cells(objects.boxes / STRIDE, (height, width)), objects.labels)

    def _decode(self, pair: CornerPair, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, labels = pair_corners(pair, self.corners_per_kind, self.embedding_distance, self.pairs_per_image)
        return clip_boxes(boxes, sizes), scores, labels


def _halve(corners: Corners) -> tuple[Corners, Corners]:
    maps = zip(*(part.chunk(2) for part in (corners.heat, corners.embedding, corners.offset)), strict=True)
    first, second = (Corners(*part) for part in maps)
    return first, second


# ---------------------------------------------------------------------------------------------------------- targets


@dataclass
class CornerTargets:
    """Targets of one kind of corner."""

    heat: Float[Tensor, "B C H W"]
    index: Int64[Tensor, "B M"]  # of each object's cell, row x W + column
    offset: Float[Tensor, "B M 2"]


def make_targets(
    batch: Batch, num_classes: int, like: Float[Tensor, "B C H W"], min_iou: float
) -> tuple[CornerTargets, CornerTargets]:
    """Heat maps, cells and offsets of the objects' top-left and bottom-right corners.

    Args:
        batch: boxes, labels and mask of the objects.
        num_classes: C.
        like: heat maps, for their size and dtype.
        min_iou: of the gaussians' radius, in whole cells, from box sides rounded up to cells (as in the code).
    """
    height, width = like.shape[-2:]
    dtype = upcast(like[:0]).dtype
    boxes = batch.boxes.to(dtype) / STRIDE
    radii = gaussian_radius((boxes[..., 2:] - boxes[..., :2]).ceil(), min_iou).floor().long()

    def targets(points: Tensor, cells: Tensor) -> CornerTargets:
        heat = draw_gaussians(cells, radii, batch.labels, batch.mask, num_classes, (height, width), dtype)
        return CornerTargets(heat, cells[..., 1] * width + cells[..., 0], points - cells)

    top_left, bottom_right = corner_cells(boxes, (height, width))
    return targets(boxes[..., :2], top_left), targets(boxes[..., 2:], bottom_right)


# ----------------------------------------------------------------------------------------------------------- losses


def stack_losses(
    pair: CornerPair, targets: tuple[CornerTargets, CornerTargets], mask: Bool[Tensor, "B M"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unweighted heat-map, pull, push and offset loss of one stack."""
    num_objects = mean_count(mask.sum())
    heat, offset, embeddings = [], [], []
    for corners, target in zip(pair, targets, strict=True):
        heat.append(penalty_reduced_focal_loss_per_image(corners.heat, target.heat, alpha=2.0, beta=4.0))
        offset.append(offset_loss(gather_cells(corners.offset, target.index), target.offset, mask))
        embeddings.append(gather_cells(corners.embedding, target.index)[..., 0])
    pull, push = pull_push_losses(embeddings[0], embeddings[1], mask)
    return (heat[0] + heat[1]).sum() / num_objects, pull.mean(), push.mean(), (offset[0] + offset[1]) / num_objects


def pull_push_losses(
    top_left: Float[Tensor, "B M"], bottom_right: Float[Tensor, "B M"], mask: Bool[Tensor, "B M"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Equations 4 and 5 for each image, from the embeddings of its objects' corners; delta is 1."""
    mean = (top_left + bottom_right) / 2
    num_objects = mask.sum(dim=1)
    apart = (top_left - mean).square() + (bottom_right - mean).square()
    pull = torch.where(mask, apart, 0.0).sum(dim=1) / num_objects.clamp(min=1)
    too_near = F.relu(1 - (mean[:, :, None] - mean[:, None]).abs())
    others = mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    push = torch.where(others, too_near, 0.0).sum(dim=(1, 2)) / (num_objects * (num_objects - 1)).clamp(min=1)
    return pull, push


def offset_loss(
    pred: Float[Tensor, "B M 2"], gt: Float[Tensor, "B M 2"], mask: Bool[Tensor, "B M"]
) -> Float[Tensor, ""]:
    """Equation 3 for one kind of corner, summed over objects."""
    loss = F.smooth_l1_loss(pred, gt, reduction="none").sum(dim=2)
    return torch.where(mask, loss, 0.0).sum()


# --------------------------------------------------------------------------------------------------------- decoding


def pair_corners(
    pair: CornerPair, num_corners: int, max_distance: float, num_pairs: int
) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P"], Int64[Tensor, "B P"]]:
    """Boxes of the top pairs of corners of each image, in framed pixels; invalid pairs have a score of -1.

    The corners of a pair have one class, embeddings at most `max_distance` apart, and the top-left one is left of and
    above the other. The score is the mean of both. P = min(num_pairs, K x K).
    """
    width = pair[0].heat.shape[3]
    found = [top_peaks(upcast(corners.heat), num_corners) for corners in pair]
    points, embeddings = [], []
    for corners, (_, _, cells) in zip(pair, found, strict=True):
        place = torch.stack([cells % width, cells // width], dim=-1)
        points.append((place + gather_cells(corners.offset, cells)) * STRIDE)
        embeddings.append(gather_cells(corners.embedding, cells)[..., 0])
    (logits1, labels1, _), (logits2, labels2, _) = found
    scores1, scores2 = logits1.sigmoid(), logits2.sigmoid()

    first, second = points[0][:, :, None], points[1][:, None]  # [B, K, 1, 2] and [B, 1, K, 2]
    is_pair = labels1[:, :, None] == labels2[:, None]
    is_pair &= (embeddings[0][:, :, None] - embeddings[1][:, None]).abs() <= max_distance
    is_pair &= (second > first).all(dim=-1)
    is_pair &= logits1.isfinite()[:, :, None] & logits2.isfinite()[:, None]  # fewer peaks than K
    scores = torch.where(is_pair, (scores1[:, :, None] + scores2[:, None]) / 2, -1.0).flatten(1)
    scores, index = scores.topk(min(num_pairs, scores.shape[1]), dim=1)

    index1, index2 = index // logits2.shape[1], index % logits2.shape[1]
    both = zip(points, (index1, index2), strict=True)
    edges = [point.gather(1, which[..., None].expand(-1, -1, 2)) for point, which in both]
    return torch.cat(edges, dim=-1), scores, labels1.gather(1, index1)
