"""Sliding-window CNN: OverFeat (Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun; arXiv 1312.6229).

    image -> pyramid: one level for each window shape, on which that shape is the network's fixed square window
          -> at each cell of a level: one of C classes or background, and a box -> NMS

    section 3.2  the classifier: a trunk, then fully connected layers over k x k of its cells
    section 3.3  all windows of a level in one convolutional pass; windows 12 pixels apart by pooling at all offsets
    section 3.5  figure 5: fully connected layers are k x k and 1 x 1 convolutions; `dense` and `crops` are one network
    section 4.2  the regressor: two separate hidden layers over the same cells; one regressor for all classes ("SCR",
                 better in the paper than one for each class), trained with L2 on windows with IoU above 0.5
    section 5    a background class; negatives are mined on the fly, a few windows of each image, random and hardest
                 ones, instead of in bootstrapping passes

Receptive field. The trunk pads a crop of the window alone with zeros where the image continues, so the results of such
crops and of a dense pass differ. Here a crop is the window plus the trunk's receptive field around it: `crops` and
`dense` give the same numbers for each window whose crop lies on the canvas, with any trunk of bounded receptive field
(others, with squeeze-and-excitation or group norm, are refused). Where a crop extends beyond the canvas, `crops` pads
it with zeros before the trunk, `dense` in each layer.

Canvas (`zoo.nn.image_pyramid`). All levels lie on one image, a receptive field apart, in one dense pass (paper: one a
level). Batch norm needs this: level by level it trains on the statistics of each level and tests on their mixture
(measured on one overfitted image: loss 0.001 in training mode, 1.9 in eval mode; on the canvas 0.001 in both).

Original code: sermanet/OverFeat, the classifier only. Deviations, not in the paper:
  - classifier and regressor are trained together with the trunk (paper: one after the other, the trunk fixed);
  - boxes are coded as R-CNN's deltas (paper: edges);
  - NMS by class by default, not greedy merging (section 4.3, `zoo.ops.merging`): which measures better depends on the
    data (benchmarks/results/merging.md);
  - windows have several aspect ratios, by resizing a level differently along both axes (paper: squares only);
  - training windows lie on the grid only (paper: random offsets and scales around an object);
  - the best window of an object is positive however low its IoU; windows with IoU from 0.3 to 0.5 are ignored;
  - any timm trunk can replace the paper's (`zoo.nn.overfeat`, which lists its own deviations).

Legend: B images, M objects of an image, N windows of all levels, n of them sampled, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig
from zoo.nn.image_pyramid import ImagePyramid
from zoo.nn.overfeat import OverFeat
from zoo.nn.pretrained import follow_weights
from zoo.nn.receptive_field import receptive_field
from zoo.nn.roi import roi_predictions
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.boxes import centred_inside, clip_boxes, pairwise_iou
from zoo.ops.coding import ROI_WEIGHTS, decode_boxes, encode_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.limits import best_overlap
from zoo.ops.matching import BACKGROUND, gather_matched, match
from zoo.ops.merging import merge_by_class
from zoo.ops.precision import upcast
from zoo.ops.sampling import sample
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

BACKGROUND_IOU = 0.3


@dataclass
class Windows:
    """Class logits and box deltas of each window."""

    logits: Float[Tensor, "B N _"]  # 1 + C, background first
    deltas: Float[Tensor, "B N 4"]  # from the window to the object's box, in ROI_WEIGHTS; 0 without a regressor


@dataclass
class Outputs:
    """The canvas with all levels, its windows, and in dense evaluation their logits and deltas."""

    canvas: Float[Tensor, "B 3 _ _"]
    cells: Int64[Tensor, " N"]  # flat index on the canvas of the middle cell of each window
    boxes: Float[Tensor, "N 4"]  # windows in framed pixels
    windows: Windows | None


# ---------------------------------------------------------------------------------------------------------- network


class WindowNetwork(nn.Module):
    """Trunk, classifier and regressor of windows, evaluated densely or crop by crop with the same results.

    A window is the receptive field of k x k cells of the trunk's map around a middle cell.
    """

    def __init__(
        self,
        trunk: nn.Module,
        trunk_name: str,
        stride: int,
        channels: int,
        kernel: int,
        dilation: int,
        class_widths: Sequence[int],
        box_widths: Sequence[int] | None,
        num_classes: int,
        dropout: float,
        background_share: float,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"head_kernel is {kernel}: it must be odd, since a window has a middle cell")
        self.trunk = trunk
        self.stride = stride
        self.reach = (kernel - 1) * dilation // 2  # cells on each side of the middle one
        self.classifier = _head(channels, kernel, dilation, class_widths, 1 + num_classes, dropout)
        self.regressor = None if box_widths is None else _head(channels, kernel, dilation, box_widths, 4, dropout=0.0)
        last = self.classifier[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        # The softmax starts at the share of background among the sampled windows.
        last.bias.data[0] = math.log(num_classes * background_share / (1 - background_share))
        before, after = receptive_field(trunk, stride, trunk_name)
        self.before = before + self.reach * stride  # pixels of the receptive field of window 0 left of pixel 0 ...
        self.after = after + self.reach * stride  # ... and from pixel 0 on

    def dense(self, canvas: Float[Tensor, "B 3 H W"], cells: Int64[Tensor, " N"]) -> Windows:
        """Windows around these cells, by one pass over the canvas."""
        reach = self.reach
        everywhere = self._apply_heads(F.pad(self.trunk(canvas)[-1], (reach, reach, reach, reach)))
        return Windows(everywhere.logits.index_select(1, cells), everywhere.deltas.index_select(1, cells))

    def crops(self, canvas: Float[Tensor, "B 3 H W"], cells: Int64[Tensor, " N"], at_once: int) -> Windows:
        """The same windows, each cropped with its receptive field; at most `at_once` crops in memory."""
        stride = self.stride
        cells_before = math.ceil(self.before / stride)  # crops start at whole strides, as in the dense pass
        start = cells_before * stride
        length = start + math.ceil(self.after / stride) * stride
        padded = F.pad(canvas, (start, length - start, start, length - start))
        views = padded.unfold(2, length, stride).unfold(3, length, stride)  # [B, 3, rows, columns, length, length]
        middle = slice(cells_before - self.reach, cells_before + self.reach + 1)
        columns = canvas.shape[3] // stride
        parts = []
        for number in torch.arange(len(canvas) * len(cells), device=cells.device).split(at_once):
            image, cell = number // len(cells), cells[number % len(cells)]
            features = self.trunk(views[image, :, cell // columns, cell % columns])[-1]
            parts.append(self._apply_heads(features[:, :, middle, middle]))
        shape = (len(canvas), len(cells))
        logits = torch.cat([part.logits for part in parts]).flatten(0, 1).unflatten(0, shape)
        return Windows(logits, torch.cat([part.deltas for part in parts]).flatten(0, 1).unflatten(0, shape))

    def _apply_heads(self, features: Float[Tensor, "B D _ _"]) -> Windows:
        """Outputs of both heads at all positions of their k x k cells, row by row."""
        logits = self.classifier(features).permute(0, 2, 3, 1).flatten(1, 2)
        if self.regressor is None:
            return Windows(logits, logits.new_zeros(*logits.shape[:2], 4))
        return Windows(logits, self.regressor(features).permute(0, 2, 3, 1).flatten(1, 2))


def _head(
    channels: int, kernel: int, dilation: int, widths: Sequence[int], outputs: int, dropout: float
) -> nn.Sequential:
    """Fully connected layers over k x k cells as convolutions without padding."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, kernel, dilation=dilation), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        channels, kernel, dilation = width, 1, 1
    layers.append(nn.Conv2d(channels, outputs, kernel, dilation=dilation))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    nn.init.normal_(layers[-1].weight, std=0.01)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


# -------------------------------------------------------------------------------------------------------- the model


@final
class SlidingWindow(Detector[Outputs]):
    """A sliding-window detector over OverFeat's trunk or any timm trunk.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: "overfeat" (stride 12), or the name of a timm model with a bounded receptive field.
        stride: of the trunk's level, and so of the windows on a level.
        pretrained: ImageNet weights of a timm trunk: true (`zoo.nn.pretrained`), a local file, or false.
        norm: the trunk's norm layers: "frozen" over pretrained weights, "batch" from scratch.
        frozen_stages: first stages of a timm trunk that are not trained.
        evaluation: "crops" (each window cropped and classified, as the method is defined) or "dense" (one pass).
        window_side: of a window on its level, in pixels.
        window_shapes: (width, height) of windows in framed pixels, one level of the pyramid each.
        head_kernel: k, odd; the heads read k x k cells of the trunk's map ...
        head_dilation: ... this many cells apart (OverFeat's fine stride: 3).
        class_widths: hidden layers of the classifier.
        box_widths: hidden layers of the regressor.
        regress_boxes: whether there is a regressor.
        dropout: after the classifier's hidden layers.
        foreground_iou: lowest IoU of a positive window; background below 0.3, ignored between.
        windows_per_image: sampled for the losses.
        positive_fraction: of those, at most.
        hard_negative_fraction: of the negatives, those with the highest foreground score; the others are random.
        box_loss_weight: of the box loss.
        suppression: NMS by class, or the paper's greedy merging.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other in NMS.
        detections_per_image: kept after merging or NMS.
        crops_at_once: number of crops in memory.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "Sliding window"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "overfeat",
        stride: int = 12,
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        evaluation: Literal["crops", "dense"] = "dense",
        window_side: int = 221,
        window_shapes: tuple[tuple[float, float], ...] = ((221.0, 221.0), (321.0, 321.0), (416.0, 416.0)),
        head_kernel: int = 5,
        head_dilation: int = 3,
        class_widths: tuple[int, ...] = (4096, 4096),
        box_widths: tuple[int, ...] = (4096, 1024),
        regress_boxes: bool = True,
        dropout: float = 0.5,
        foreground_iou: float = 0.5,
        windows_per_image: int = 64,
        positive_fraction: float = 0.25,
        hard_negative_fraction: float = 0.5,
        box_loss_weight: float = 1.0,
        suppression: Literal["nms", "merging"] = "nms",
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        crops_at_once: int = 128,
        frame: FrameConfig = FrameConfig(min_size=461, max_size=800),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(SlidingWindow, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.evaluation: Literal["crops", "dense"] = evaluation
        self.foreground_iou = foreground_iou
        self.windows_per_image = windows_per_image
        self.positive_fraction = positive_fraction
        self.hard_negative_fraction = hard_negative_fraction
        self.box_loss_weight = box_loss_weight
        self.suppression: Literal["nms", "merging"] = suppression
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.crops_at_once = crops_at_once

        if trunk == "overfeat" and (pretrained or frozen_stages):
            raise ValueError(
                "the weights that OverFeat's authors published are for their own program and cannot be read here, and "
                "the trunk overfeat has no stages to freeze; train it from scratch, or load a checkpoint of your own"
            )
        built = OverFeat() if trunk == "overfeat" else Trunk(trunk, (stride,), pretrained, norm, frozen_stages)
        if stride not in built.strides:
            raise ValueError(f"stride is {stride}: OverFeat's cells are {built.strides[0]} pixels apart")
        self.network = WindowNetwork(
            built,
            trunk_name=trunk,
            stride=stride,
            channels=built.channels[-1],
            kernel=head_kernel,
            dilation=head_dilation,
            class_widths=class_widths,
            box_widths=box_widths if regress_boxes else None,
            num_classes=num_classes,
            dropout=dropout,
            background_share=1 - positive_fraction,
        )
        # The receptive field of a window on one level has no pixels of another level.
        gap = math.ceil(max(self.network.before, self.network.after - stride) / stride)
        self.pyramid = ImagePyramid(window_shapes, window_side, stride, gap, frame.min_size)
        middle = (self.network.after - self.network.before) / 2  # of the receptive field of window 0 of a level
        window = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]) * window_side / 2 + middle
        self.register_buffer("first_window", window, persistent=False)

    def encode(self, batch: Batch) -> Outputs:
        """The pyramid on its canvas, its windows, and in dense evaluation their logits and deltas."""
        canvas, slots = self.pyramid.draw(batch.images)
        if self.channels_last:
            canvas = canvas.contiguous(memory_format=torch.channels_last)
        cells = self.pyramid.cells(canvas, slots)
        boxes = self.pyramid.windows(self.get_buffer("first_window"), slots)
        return Outputs(canvas, cells, boxes, self.network.dense(canvas, cells) if self.evaluation == "dense" else None)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Cross entropy and L2 loss of sampled windows, from a dense pass in both kinds of evaluation."""
        windows = outputs.windows or self.network.dense(outputs.canvas, outputs.cells)
        iou = pairwise_iou(batch.boxes, outputs.boxes)
        matched = match(iou, batch.mask, BACKGROUND_IOU, self.foreground_iou, keep_best_of_each_object=True)
        chosen, filled = sample_windows(
            matched,
            centred_inside(outputs.boxes, batch.sizes),
            1 - upcast(windows.logits.detach()).softmax(dim=-1)[..., 0],
            self.windows_per_image,
            self.positive_fraction,
            self.hard_negative_fraction,
        )
        losses = window_losses(windows, outputs.boxes, matched, chosen, filled, batch)
        if self.network.regressor is None:
            return {"class": losses["class"]}
        return {"class": losses["class"], "box": self.box_loss_weight * losses["box"]}

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Class and box of every window, then NMS or merging by class over all levels together."""
        windows = outputs.windows or self.network.crops(outputs.canvas, outputs.cells, self.crops_at_once)
        boxes = outputs.boxes.expand(len(batch.images), -1, -1)
        inside = centred_inside(outputs.boxes, batch.sizes)
        if self.suppression == "merging":
            decoded = clip_boxes(decode_boxes(upcast(windows.deltas), boxes, ROI_WEIGHTS), batch.sizes)
            scores = upcast(windows.logits).softmax(dim=-1)[..., 1:]
            return merge_by_class(decoded, scores, inside, self.score_threshold, self.detections_per_image)
        deltas = windows.deltas[:, :, None].expand(-1, -1, self.num_classes, -1)  # one regressor for all classes
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        return roi_predictions(windows.logits, deltas, boxes, inside, batch.sizes, *limits)

    def class_rows(self) -> dict[str, list[int]]:
        """The classifier's logits."""
        return {f"network.classifier.{len(self.network.classifier) - 1}": [BACKGROUND, *range(self.num_classes)]}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects that no window centred inside the image overlaps by IoU 0.5."""
        windows = outputs.boxes[centred_inside(outputs.boxes, objects.size[None])[0]]
        without = self.network.regressor is None
        rest = ", and there is no box regression to" if without else ": only box regression can still"
        meaning = f"No window overlaps it by IoU 0.5{rest} reach it from a worse one."
        return [Limit("no window reaches IoU 0.5", meaning, best_overlap(objects.boxes, windows) < 0.5)]


# ----------------------------------------------------------------------------------------------------------- losses


@torch.no_grad()
def sample_windows(
    matched: Int64[Tensor, "B N"],
    allowed: Bool[Tensor, "B N"],
    hardness: Float[Tensor, "B N"],
    num: int,
    positive_fraction: float,
    hard_negative_fraction: float,
) -> tuple[Int64[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Sampled windows: random positives up to a fraction, the step's own hardest negatives, and random negatives.

    Args:
        matched: object of each window, or BACKGROUND, or IGNORED.
        allowed: windows that may be negatives.
        hardness: foreground score of each window.
        num: n, at most.
        positive_fraction: of n, at most.
        hard_negative_fraction: of the negatives that n leaves room for.

    Returns:
        Indices of the sampled windows, and the mask of filled slots.
    """
    negative = (matched == BACKGROUND) & allowed
    num = min(num, matched.shape[1])
    max_positives = int(num * positive_fraction)
    num_hard = int((num - max_positives) * hard_negative_fraction)
    hardest, hard = hardness.masked_fill(~negative, -1).topk(num_hard, dim=1)
    easier = negative.scatter(1, hard, False)
    rest = num - num_hard
    # Without the half, rounding down in `sample` could lose one of the positives.
    chosen, filled = sample(matched >= 0, easier, rest, (max_positives + 0.5) / max(rest, 1))
    return torch.cat((chosen, hard), dim=1), torch.cat((filled, hardest >= 0), dim=1)


def window_losses(
    windows: Windows,
    boxes: Float[Tensor, "N 4"],
    matched: Int64[Tensor, "B N"],
    chosen: Int64[Tensor, "B n"],
    filled: Bool[Tensor, "B n"],
    batch: Batch,
) -> Losses:
    """Cross entropy with background as class 0, and half the squared error of the deltas.

    The first is a mean over the sampled windows of all processes, the second over the positive ones.
    """
    matched = matched.gather(1, chosen)
    positive = (matched >= 0) & filled
    slots = torch.where(positive, gather_matched(batch.labels, matched) + 1, 0)
    logits = upcast(windows.logits.gather(1, chosen[..., None].expand(-1, -1, windows.logits.shape[2])))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), slots.flatten(), reduction="none")
    deltas = upcast(windows.deltas.gather(1, chosen[..., None].expand(-1, -1, 4)))
    targets = encode_boxes(gather_matched(batch.boxes, matched), boxes[chosen], ROI_WEIGHTS)
    squared = (deltas - targets).square().sum(dim=-1) / 2
    class_loss = (cross_entropy * filled.flatten()).sum() / mean_count(filled.sum())
    return {"class": class_loss, "box": torch.where(positive, squared, 0.0).sum() / mean_count(positive.sum())}
