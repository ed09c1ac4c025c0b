"""RoI heads: RoI pooling, the box head, sampling of RoIs, losses and decoding.

Shared by Fast R-CNN (arXiv 1504.08083) and Faster R-CNN (arXiv 1506.01497).

Legend: B images, R regions of an image (padded), L pyramid levels, D channels, S pooled side (7), C classes.
In the class logits index 0 is background and index 1 + c is class c; labels are 0..C-1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from zoo.nn.fpn import Pyramid
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.boxes import clip_boxes, pairwise_iou
from zoo.ops.coding import ROI_WEIGHTS, decode_boxes, encode_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.matching import BACKGROUND, IGNORED, gather_matched, match
from zoo.ops.postprocess import count_per_image, nms_by_class
from zoo.ops.precision import upcast
from zoo.ops.sampling import sample
from zoo.types import Batch, Losses, Prediction

SINGLE_STRIDE = (16,)
PYRAMID_STRIDES = (4, 8, 16, 32)
POOLED_SIDE = 7
SMOOTH_L1_BETA = 1 / 9
"""Where smooth L1 changes from quadratic to linear: sigma 3 of py-faster-rcnn's RPN, and torchvision's RoI loss."""

# --------------------------------------------------------------------------------------------------------- pooling


def assign_levels(boxes: Float[Tensor, "B R 4"], coarsest: int, finest: int) -> Int64[Tensor, "B R"]:
    """Pyramid level of each region, 0 = finest: k = floor(4 + log2(sqrt(area) / 224)) (FPN, arXiv 1612.03144, eq. 1).

    Args:
        boxes: regions in framed pixels.
        coarsest: log2 of the coarsest level's stride.
        finest: log2 of the finest level's stride.
    """
    side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).clamp(min=1e-12).sqrt()
    level = torch.floor(4 + torch.log2(side / 224) + 1e-6)
    return level.clamp(finest, coarsest).long() - finest


def pyramid_roi_align(
    features: Sequence[Float[Tensor, "B D _ _"]],
    boxes: Float[Tensor, "B R 4"],
    strides: Sequence[int],
    side: int,
    samples: int,
) -> Float[Tensor, "BR D S S"]:
    """RoIAlign (arXiv 1703.06870) on a feature pyramid, each region at the level of its size.

    A pooled cell is the mean of samples x samples bilinear samples, each a weighted sum of four pixels. So a cell is a
    weighted sum of 4 * samples^2 rows of a table with the pixels of all levels and images. One embedding bag computes
    all levels at once, without copying level indices to the host, in parallel forward and backward (torchvision's CPU
    kernel is not), and with D contiguous as in channels_last.

    Equals torchvision.ops.MultiScaleRoIAlign for regions inside the frame.

    Args:
        features: maps of each level, fine to coarse.
        boxes: regions in framed pixels.
        strides: of each level.
        side: S.
        samples: along each axis of a cell.

    Returns:
        [B * R, D, S, S], channels_last.
    """
    num_images, num_rois = boxes.shape[:2]
    device = boxes.device
    channels = features[0].shape[1]
    sizes = [(level.shape[2], level.shape[3]) for level in features]
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])

    level = assign_levels(boxes, strides[-1].bit_length() - 1, strides[0].bit_length() - 1)
    height = _lookup([h for h, _ in sizes], level)
    width = _lookup([w for _, w in sizes], level)
    starts = [0]
    for h, w in sizes[:-1]:
        starts.append(starts[-1] + num_images * h * w)
    first_row = _lookup(starts, level) + torch.arange(num_images, device=device)[:, None] * height * width
    scale = torch.exp2(-(level + strides[0].bit_length() - 1).to(boxes.dtype))

    x1, y1, x2, y2 = (boxes * scale[..., None]).unbind(-1)
    rows, row_weights = _axis_samples(y1, y2, height, side, samples)
    columns, column_weights = _axis_samples(x1, x2, width, side, samples)
    index = first_row[..., None, None, None, None] + (
        rows[..., :, None, :, None] * width[..., None, None, None, None] + columns[..., None, :, None, :]
    )
    weights = row_weights[..., :, None, :, None] * column_weights[..., None, :, None, :]
    bag_size = (2 * samples) ** 2
    pooled = _sum_bags(table, index.reshape(-1, bag_size), weights.reshape(-1, bag_size).to(table.dtype))
    return pooled.view(num_images * num_rois, side, side, channels).permute(0, 3, 1, 2)


def _sum_bags(table: Float[Tensor, "N D"], index: Int64[Tensor, "k T"], weights: Float[Tensor, "k T"]) -> Tensor:
    """Weighted sums [k, D], each over T rows of the table."""
    if torch.compiler.is_exporting():  # ONNX has no embedding bag
        terms = zip(index.unbind(1), weights[..., None].unbind(1), strict=True)
        return reduce(torch.add, (table[rows] * weight for rows, weight in terms))
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)


def _lookup(values: list[int], level: Int64[Tensor, "B R"]) -> Int64[Tensor, "B R"]:
    """values[level] without a copy to the device: one `where` for each of the few levels."""
    result = torch.full_like(level, values[0])
    for number, value in enumerate(values[1:], start=1):
        result = torch.where(level == number, value, result)
    return result


def _axis_samples(
    start: Float[Tensor, "B R"], end: Float[Tensor, "B R"], size: Int64[Tensor, "B R"], side: int, samples: int
) -> tuple[Int64[Tensor, "B R S T"], Float[Tensor, "B R S T"]]:
    """Indices along one axis of the pixels sampled by each of S cells, and their weights (sum 1); T = 2 * samples."""
    step = (end - start).clamp(min=1) / side
    offsets = (torch.arange(side * samples, device=start.device) + 0.5) / samples
    last = (size - 1)[..., None]
    position = (start[..., None] + offsets * step[..., None]).clamp(min=0)
    low = position.floor().long().minimum(last)
    high = (low + 1).minimum(last)
    # At and past the last pixel both neighbours are that pixel.
    fraction = torch.where(low == last, 0.0, position - low)
    pixels = torch.stack((low, high), dim=-1)
    weights = torch.stack((1 - fraction, fraction), dim=-1) / samples
    shape = (*start.shape, side, 2 * samples)
    return pixels.view(shape), weights.view(shape)


class RoIPooling(nn.Module):
    """Pooled regions [B * R, D, S, S], by RoIAlign on a pyramid or by the papers' RoIPool on one level."""

    def __init__(self, strides: Sequence[int], kind: Literal["align", "pool"], side: int = 7) -> None:
        super().__init__()
        if kind == "pool" and len(strides) != 1:
            raise ValueError("RoIPool takes one feature level; use RoIAlign for a pyramid")
        self.strides, self.kind, self.side = tuple(strides), kind, side

    def forward(self, features: Sequence[Tensor], boxes: Float[Tensor, "B R 4"]) -> Float[Tensor, "BR D S S"]:
        """Pool every region from the feature levels, which have `strides`."""
        if self.kind == "align":
            return pyramid_roi_align(features, boxes, self.strides, self.side, samples=2)
        return roi_pool(upcast(features[0]), list(boxes), self.side, 1 / self.strides[0])


# ------------------------------------------------------------------------------------------------------------ head


class RoIHead(nn.Module):
    """Box head: class logits [N, 1 + C] and box deltas [N, C, 4] of pooled regions.

    Args:
        in_channels: D of the pooled regions.
        side: S of the pooled regions.
        num_convs: 3x3 convolutions with 256 channels and batch norm before the fully connected layers.
        num_fcs: fully connected layers.
        width: of the fully connected layers.
        num_classes: C.
        dropout: after each fully connected layer, as in VGG.
    """

    def __init__(
        self, in_channels: int, side: int, num_convs: int, num_fcs: int, width: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        for _ in range(num_convs):
            convs += [nn.Conv2d(in_channels, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
            in_channels = 256
        self.convs = nn.Sequential(*convs)
        fcs: list[nn.Module] = []
        features = in_channels * side * side
        for _ in range(num_fcs):
            fcs += [nn.Linear(features, width), nn.ReLU(inplace=True)]
            if dropout:
                fcs.append(nn.Dropout(dropout))
            features = width
        self.fcs = nn.Sequential(*fcs)
        self.class_logits = nn.Linear(features, 1 + num_classes)
        self.box_deltas = nn.Linear(features, 4 * num_classes)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.class_logits.bias)
        nn.init.zeros_(self.box_deltas.bias)

    @torch.no_grad()
    def start_from(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy a classifier's hidden layers into the fully connected ones, if number and sizes agree.

        Args:
            layers: weights [out, rows, columns, channels] and biases, as of `zoo.nn.trunk.hidden_layers`.
        """
        linear = [layer for layer in self.fcs if isinstance(layer, nn.Linear)]
        flat = [(weight.flatten(1), bias) for weight, bias in layers]
        if [weight.shape for weight, _ in flat] != [layer.weight.shape for layer in linear]:
            return
        for layer, (weight, bias) in zip(linear, flat, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

    def forward(
        self, pooled: Float[Tensor, "N D S S"], filled: Bool[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N _ 4"]]:
        """Logits with background first, and deltas for each foreground class; undefined where not `filled`."""
        if torch.compiler.is_exporting():  # one image, all slots filled
            torch._check(pooled.shape[0] > 0)
        elif len(self.convs):
            # Batch norm must not see empty slots. Selecting the filled ones is the head's only device synchronisation.
            logits, deltas = self._apply_layers(pooled[filled])
            empty = logits.new_zeros(len(pooled), logits.shape[1]), deltas.new_zeros(len(pooled), *deltas.shape[1:])
            return empty[0].index_put((filled,), logits), empty[1].index_put((filled,), deltas)
        return self._apply_layers(pooled)

    def _apply_layers(self, pooled: Float[Tensor, "N D S S"]) -> tuple[Float[Tensor, "N _"], Float[Tensor, "N _ 4"]]:
        # Flatten as (S, S, D): the memory order of channels_last.
        hidden = self.fcs(self.convs(pooled).permute(0, 2, 3, 1).flatten(1))
        return self.class_logits(hidden), self.box_deltas(hidden).unflatten(1, (-1, 4))


def roi_class_rows(num_classes: int) -> dict[str, list[int]]:
    """Class of each output of a detector's `roi_head`; see `Detector.class_rows`."""
    classes = range(num_classes)
    return {
        "roi_head.class_logits": [BACKGROUND, *classes],
        "roi_head.box_deltas": [label for label in classes for _ in range(4)],
    }


# --------------------------------------------------------------------------------------------- building and scoring


class PooledTrunk(NamedTuple):
    """The parts of Fast R-CNN and Faster R-CNN before the RoI head."""

    trunk: Trunk
    pyramid: Pyramid | None
    channels: int  # of the levels
    roi_pooling: RoIPooling


def build_pooled_trunk(
    trunk: str,
    pretrained: bool | str,
    norm: Norm,
    frozen_stages: int,
    pyramid: bool,
    channels: int,
    pooling: Literal["align", "pool"],
    pyramid_norm: Callable[[int], nn.Module] | None = None,
) -> PooledTrunk:
    """A trunk with FPN, or with the papers' one level at stride 16, and RoI pooling from it.

    Args:
        trunk: name of a timm model.
        pretrained: see `Trunk`.
        norm: see `Trunk`.
        frozen_stages: see `Trunk`.
        pyramid: FPN.
        channels: of FPN.
        pooling: see `RoIPooling`.
        pyramid_norm: builds the norm layers of FPN.
    """
    strides = PYRAMID_STRIDES if pyramid else SINGLE_STRIDE
    built = Trunk(trunk, strides, pretrained, norm, frozen_stages)
    fpn = Pyramid(built.channels, channels, "pool", pyramid_norm) if pyramid else None
    width = channels if pyramid else built.channels[0]
    return PooledTrunk(built, fpn, width, RoIPooling(strides, pooling, POOLED_SIDE))


def score_rois(
    head: RoIHead,
    pooling: RoIPooling,
    features: Sequence[Tensor],
    boxes: Float[Tensor, "B R 4"],
    filled: Bool[Tensor, "B R"],
) -> tuple[Float[Tensor, "B R _"], Float[Tensor, "B R _ 4"]]:
    """Class logits (background first) and box deltas of regions in framed pixels."""
    class_logits, deltas = head(pooling(features, boxes), filled.flatten())
    return class_logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])


# --------------------------------------------------------------------------------------------------------- training


@dataclass
class SampledRoIs:
    """RoIs sampled for a training step, padded; `filled` masks the padding."""

    boxes: Float[Tensor, "B R 4"]
    labels: Int64[Tensor, "B R"]  # 0..C-1 or BACKGROUND; undefined where not filled
    gt_boxes: Float[Tensor, "B R 4"]
    filled: Bool[Tensor, "B R"]
    matched: Int64[Tensor, "B R"]  # index of the object; negative for others. Positive RoIs come first


@torch.no_grad()
def sample_rois(
    proposals: Float[Tensor, "B P 4"],
    proposal_mask: Bool[Tensor, "B P"],
    batch: Batch,
    num: int,
    positive_fraction: float,
    foreground_iou: float,
    background_iou: float = 0.0,
) -> SampledRoIs:
    """Sample `num` RoIs per image from proposals and ground truth boxes, at most `positive_fraction` positive.

    A RoI is positive at an IoU of at least `foreground_iou`, and negative below it down to `background_iou` (Fast
    R-CNN: 0.1).
    """
    candidates = torch.cat((proposals, batch.boxes), dim=1)
    candidate_mask = torch.cat((proposal_mask, batch.mask), dim=1)
    iou = pairwise_iou(batch.boxes, candidates)
    matched = match(iou, batch.mask, background_iou, foreground_iou, keep_best_of_each_object=False)
    positive = (matched >= 0) & candidate_mask
    # `match` gives IGNORED between the two thresholds, and BACKGROUND below the lower one or without any object.
    negative = (matched == IGNORED if background_iou > 0 else matched < 0) & candidate_mask
    chosen, filled = sample(positive, negative, num, positive_fraction)
    matched = matched.gather(1, chosen)
    labels = torch.where(matched >= 0, gather_matched(batch.labels, matched), BACKGROUND)
    boxes = candidates.gather(1, chosen[..., None].expand(-1, -1, 4))
    return SampledRoIs(boxes, labels, gather_matched(batch.boxes, matched), filled, matched)


def roi_losses(
    class_logits: Float[Tensor, "B R _"],
    deltas: Float[Tensor, "B R C 4"],
    rois: SampledRoIs,
    beta: float = SMOOTH_L1_BETA,
) -> Losses:
    """Cross entropy of all sampled RoIs and smooth L1 of the positive ones, both divided by the number of sampled RoIs.

    That number is averaged over processes. Fast R-CNN, arXiv 1504.08083, equations 1 to 3, where beta is 1.
    """
    num_sampled = mean_count(rois.filled.sum())
    slots = torch.where(rois.filled, rois.labels + 1, 0)
    cross_entropy = F.cross_entropy(upcast(class_logits).flatten(0, 1), slots.flatten(), reduction="none")
    class_loss = (cross_entropy * rois.filled.flatten()).sum() / num_sampled

    positive = (rois.labels >= 0) & rois.filled
    class_index = rois.labels.clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    class_deltas = upcast(deltas).gather(2, class_index)[:, :, 0]
    # Boxes of empty slots have no area and infinite targets, which must be masked before they enter the loss.
    targets = torch.where(positive[..., None], encode_boxes(rois.gt_boxes, rois.boxes, ROI_WEIGHTS), 0.0)
    smooth_l1 = F.smooth_l1_loss(class_deltas, targets, beta=beta, reduction="none").sum(dim=-1)
    return {"roi_class": class_loss, "roi_box": torch.where(positive, smooth_l1, 0.0).sum() / num_sampled}


# ---------------------------------------------------------------------------------------------------------- decoding


def roi_predictions(
    class_logits: Float[Tensor, "B R _"],
    deltas: Float[Tensor, "B R C 4"],
    rois: Float[Tensor, "B R 4"],
    roi_mask: Bool[Tensor, "B R"],
    sizes: Float[Tensor, "B 2"],
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> list[Prediction]:
    """Detections of each image: softmax scores above the threshold, their decoded boxes, and NMS by class.

    Only the (RoI, class) pairs above `score_threshold` are decoded.
    """
    scores = upcast(class_logits).softmax(dim=-1)[..., 1:]
    image, region, label = ((scores > score_threshold) & roi_mask[..., None]).nonzero(as_tuple=True)
    counts = count_per_image(image, len(rois))
    boxes = decode_boxes(upcast(deltas[image, region, label]), rois[image, region], ROI_WEIGHTS)
    boxes = clip_boxes(boxes[:, None], sizes[image])[:, 0]
    scores = scores[image, region, label]
    return nms_by_class(boxes.split(counts), scores.split(counts), label.split(counts), nms_threshold, limit)
