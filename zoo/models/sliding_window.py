"""Sliding-window CNN: OverFeat (Sermanet, Eigen, Zhang, Mathieu, Fergus, LeCun; arXiv 1312.6229).

    image -> pyramid: one level for each window shape, on which that shape is the network's fixed square window
          -> at each place of a level: one of C classes or background, and a box -> NMS

    section 3.2  the classifier: a trunk, then fully connected layers over k x k of its cells
    section 3.3  all windows of a level in one convolutional pass; windows 12 pixels apart by pooling at all offsets
    section 3.5  figure 5: fully connected layers are k x k and 1 x 1 convolutions; `dense` and `crops` are one network
    section 4.2  the regressor: two hidden layers of its own over the same cells, one for all classes (the paper's "SCR"
                 does better than one for each class), trained with L2 on windows with IoU above 0.5
    section 5    a background class; negative training on the fly: a few windows of each image, random ones and the
                 most offending ones, in place of bootstrapping passes

What a window sees. A crop cut to the window alone shows the trunk zeros where the image goes on, so crops and a dense
pass of a padded trunk never agree; the paper leaves that open. Here a crop is the window and as much around it as the
trunk's receptive field asks for, so each cell that is read sees pixels and nothing else: `crops` and `dense` give the
same numbers for each window whose crop lies on the canvas, with any trunk whose cells see a bounded region. Others
(squeeze-and-excitation, group norm) are refused. Where a crop hangs over the canvas, `crops` fills it with zeros before
the trunk, `dense` lets each layer of the trunk pad.

The canvas (`zoo.nn.image_pyramid`). All levels lie on one image, as far apart as a window sees beyond a level, and one
dense pass reads them all (paper: one a level). For batch norm that is more than speed: level by level it trains on the
statistics of each and tests on their mixture (measured: an image learned by heart, loss 0.001 in training mode, 1.9 in
eval mode; on the canvas both are 0.001).

Original code: sermanet/OverFeat (the classifier alone). Deviations:
  - classifier and regressor are trained together with the trunk (paper: one after the other, the trunk fixed);
  - boxes are coded as R-CNN's deltas (paper: the edges themselves), and merged by NMS (paper: greedy merging, 4.3);
  - windows stand for several aspect ratios by resizing a level more along one axis (paper: squares, the regressor does
    the rest);
  - all windows that are learned from lie on the grid: those around an object differ in place and scale as it is;
  - an object's best window is positive however low its IoU; windows with IoU from 0.3 up to 0.5 count for nothing;
  - any timm trunk can stand in for the paper's (`zoo.nn.overfeat`, which names its own deviations).

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

from zoo.detector import Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig
from zoo.nn.image_pyramid import Slot, draw_canvas, place_levels, plan_shelves, slot_cells
from zoo.nn.overfeat import OverFeat
from zoo.nn.receptive_field import receptive_field
from zoo.nn.roi import roi_predictions
from zoo.nn.trunk import Norm, Trunk
from zoo.ops.anchors import grid_anchors
from zoo.ops.boxes import pairwise_iou
from zoo.ops.coding import ROI_WEIGHTS, encode_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.matching import BACKGROUND, gather_matched, match
from zoo.ops.precision import upcast
from zoo.ops.sampling import sample
from zoo.types import Batch, Losses, Prediction

BACKGROUND_IOU = 0.3


@dataclass
class Windows:
    """What the network says of each window."""

    logits: Float[Tensor, "B N _"]  # 1 + C, background first
    deltas: Float[Tensor, "B N 4"]  # from the window to the object's box, in ROI_WEIGHTS; 0 without a regressor


@dataclass
class Outputs:
    """The canvas with all levels, where its windows are, and in dense evaluation what the network says of them."""

    canvas: Float[Tensor, "B 3 _ _"]
    cells: Int64[Tensor, "N"]  # the trunk's cell in the middle of each window, counted over the canvas row by row
    boxes: Float[Tensor, "N 4"]  # windows in framed pixels
    windows: Windows | None


def resize_for_window(images: Float[Tensor, "B 3 H W"], shape: tuple[float, float], side: int) -> Tensor:
    """The images at the size at which a window of this (width, height) becomes side x side."""
    if shape == (side, side):
        return images
    scales = (side / shape[1], side / shape[0])
    # Scales, not sizes: a pixel of the level then lies at the same place whatever the frame's size.
    return F.interpolate(upcast(images), scale_factor=scales, mode="bilinear", antialias=True).to(images.dtype)


# ---------------------------------------------------------------------------------------------------------- network


class WindowNetwork(nn.Module):
    """Classifies windows and says where in them the object is; densely or crop by crop, with the same numbers.

    A window is what one cell of the trunk's map, and those around it that the heads read as well, see of the canvas.
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
            raise ValueError(f"head_kernel is {kernel}: a window has a cell in its middle, so it must be odd")
        self.trunk = trunk
        self.stride = stride
        self.reach = (kernel - 1) * dilation // 2  # cells on each side of the middle one
        self.classifier = _head(channels, kernel, dilation, class_widths, 1 + num_classes, dropout)
        self.regressor = None if box_widths is None else _head(channels, kernel, dilation, box_widths, 4, dropout=0.0)
        last = self.classifier[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        # Scores start at the shares that are sampled: background, and all classes alike.
        last.bias.data[0] = math.log(num_classes * background_share / (1 - background_share))
        before, after = receptive_field(trunk, stride, trunk_name)
        self.before = before + self.reach * stride  # pixels that window 0 sees left of pixel 0 ...
        self.after = after + self.reach * stride  # ... and from there on

    def dense(self, canvas: Float[Tensor, "B 3 H W"], cells: Int64[Tensor, "N"]) -> Windows:
        """The windows around these cells, by one pass over the canvas."""
        reach = self.reach
        everywhere = self._read(F.pad(self.trunk(canvas)[-1], (reach, reach, reach, reach)))
        return Windows(everywhere.logits.index_select(1, cells), everywhere.deltas.index_select(1, cells))

    def crops(self, canvas: Float[Tensor, "B 3 H W"], cells: Int64[Tensor, "N"], at_once: int) -> Windows:
        """The same windows, each cut out with all that it sees; `at_once` of them are in memory."""
        stride = self.stride
        cells_before = math.ceil(self.before / stride)  # crops start at whole strides, so that strides fall alike
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
            parts.append(self._read(features[:, :, middle, middle]))
        shape = (len(canvas), len(cells))
        logits = torch.cat([part.logits for part in parts]).flatten(0, 1).unflatten(0, shape)
        return Windows(logits, torch.cat([part.deltas for part in parts]).flatten(0, 1).unflatten(0, shape))

    def _read(self, features: Float[Tensor, "B D _ _"]) -> Windows:
        """Both heads at each place where their k x k cells lie inside the features, row by row."""
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
        trunk: "overfeat" (stride 12), or the name of a timm model whose cells see a bounded region.
        stride: of the trunk's level that is read, and so of the windows on a level.
        pretrained: ImageNet weights for a timm trunk: true (timm fetches them), a local file, or false.
        norm: the trunk's norm layers: "frozen" over pretrained weights, "batch" from scratch.
        frozen_stages: stages of a timm trunk that are not trained, counted from the image.
        evaluation: "crops" (each window cut out and classified; the definition) or "dense" (one pass for all).
        window_side: of the window on a level, in pixels; what is around it is context.
        window_shapes: (width, height) in framed pixels that windows stand for, one level of the pyramid each.
        head_kernel: k, odd; the heads read k x k cells of the trunk's map ...
        head_dilation: ... so many cells apart (OverFeat's fine stride: 3).
        class_widths: hidden layers of the classifier.
        box_widths: hidden layers of the regressor.
        regress_boxes: whether there is a regressor.
        dropout: after the classifier's hidden layers.
        foreground_iou: from this IoU with an object on, a window is positive; background below 0.3, ignored between.
        windows_per_image: sampled for the losses.
        positive_fraction: of those, at most.
        hard_negative_fraction: of the negatives, the share with the highest foreground score; the others are random.
        box_loss_weight: of the box loss beside the class loss.
        score_threshold: of detections.
        nms_threshold: IoU above which the surer of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        crops_at_once: how many crops are in memory together.
        frame: how images are brought to the network.
        recipe: how it is optimised.
        channels_last: memory order of images and weights.
    """

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
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        crops_at_once: int = 128,
        frame: FrameConfig = FrameConfig(min_size=461, max_size=800),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        arguments = plain_arguments(SlidingWindow, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.evaluation: Literal["crops", "dense"] = evaluation
        self.window_side = window_side
        self.window_shapes = window_shapes
        self.foreground_iou = foreground_iou
        self.windows_per_image = windows_per_image
        self.positive_fraction = positive_fraction
        self.hard_negative_fraction = hard_negative_fraction
        self.box_loss_weight = box_loss_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.crops_at_once = crops_at_once

        if trunk == "overfeat" and (pretrained or frozen_stages):
            raise ValueError("the trunk overfeat has no published weights to start from, and no stages to freeze")
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
        # No window that has its middle on a level sees another level: so wide is the gap between them.
        self.gap = math.ceil(max(self.network.before, self.network.after - stride) / stride)
        nominal = (frame.min_size, frame.min_size * 4 / 3)
        sizes = [
            (nominal[0] * window_side / height, nominal[1] * window_side / width) for width, height in window_shapes
        ]
        self.shelves = plan_shelves(sizes, self.gap * stride)
        middle = (self.network.after - self.network.before) / 2  # of what window 0 of a level sees
        window = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]) * window_side / 2 + middle
        self.register_buffer("first_window", window, persistent=False)

    def encode(self, batch: Batch) -> Outputs:
        """The pyramid on its canvas, and in dense evaluation all its windows."""
        canvas, slots = self.draw_pyramid(batch.images)
        columns = canvas.shape[3] // self.network.stride
        cells = torch.cat([slot_cells(slot, columns, canvas.device) for slot in slots])
        boxes = torch.cat(
            [
                slot_windows(self.get_buffer("first_window"), slot, self.network.stride, shape, self.window_side)
                for slot, shape in zip(slots, self.window_shapes, strict=True)
            ]
        )
        return Outputs(canvas, cells, boxes, self.network.dense(canvas, cells) if self.evaluation == "dense" else None)

    def draw_pyramid(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 _ _"], list[Slot]]:
        """All levels on one canvas, zeros between them, and where each of them lies."""
        stride = self.network.stride
        levels = [resize_for_window(images, shape, self.window_side) for shape in self.window_shapes]
        sizes = [(-(-level.shape[2] // stride), -(-level.shape[3] // stride)) for level in levels]
        slots, columns = place_levels(sizes, self.shelves, self.gap)
        canvas = draw_canvas(levels, slots, self.shelves, columns, stride)
        return canvas.contiguous(memory_format=torch.channels_last) if self.channels_last else canvas, slots

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Cross entropy and L2 over sampled windows of the dense pass, whichever way is evaluated."""
        windows = outputs.windows or self.network.dense(outputs.canvas, outputs.cells)
        iou = pairwise_iou(batch.boxes, outputs.boxes)
        matched = match(iou, batch.mask, BACKGROUND_IOU, self.foreground_iou, keep_best_of_each_object=True)
        chosen, filled = sample_windows(
            matched,
            is_inside(outputs.boxes, batch.sizes),
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
        """Softmax scores of all windows, their boxes, NMS by class over all levels together."""
        windows = outputs.windows or self.network.crops(outputs.canvas, outputs.cells, self.crops_at_once)
        boxes = outputs.boxes.expand(len(batch.images), -1, -1)
        deltas = windows.deltas[:, :, None].expand(-1, -1, self.num_classes, -1)  # one regressor for all classes
        limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
        inside = is_inside(outputs.boxes, batch.sizes)
        return roi_predictions(windows.logits, deltas, boxes, inside, batch.sizes, *limits)


def slot_windows(
    first: Float[Tensor, "1 4"], slot: Slot, stride: int, shape: tuple[float, float], side: int
) -> Float[Tensor, "_ 4"]:
    """A level's windows in framed pixels, row by row.

    Args:
        first: the window around cell 0, in pixels of the level.
        slot: of the level.
        stride: between windows, in pixels of the level.
        shape: (width, height) in framed pixels that the level's windows stand for.
        side: of a window on the level.
    """
    on_level = grid_anchors(first, (slot.rows, slot.columns), (stride, stride))
    corners = on_level.view(-1, 2, 2)
    return torch.stack([corners[..., axis] * (shape[axis] / side) for axis in (0, 1)], dim=-1).view(-1, 4)


def is_inside(boxes: Float[Tensor, "N 4"], sizes: Float[Tensor, "B 2"]) -> Bool[Tensor, "B N"]:
    """Windows with their middle on the image, not on the frame's padding."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (middles < sizes[:, None]).all(dim=-1)


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
    """Windows to learn from: positives at random up to a fraction, the hardest negatives, and random ones.

    The detector's own false positives are mined from the pass that it is trained by: there is no list of them to keep.

    Args:
        matched: object of each window, or BACKGROUND, or IGNORED.
        allowed: windows that may be chosen as negatives.
        hardness: of each as a negative; its foreground score.
        num: n, at most.
        positive_fraction: of n, at most.
        hard_negative_fraction: of the negatives that n leaves room for.

    Returns:
        Indices of the chosen, and which of these slots are filled.
    """
    negative = (matched == BACKGROUND) & allowed
    num = min(num, matched.shape[1])
    max_positives = int(num * positive_fraction)
    num_hard = int((num - max_positives) * hard_negative_fraction)
    hardest, hard = hardness.masked_fill(~negative, -1).topk(num_hard, dim=1)
    easier = negative.scatter(1, hard, False)
    rest = num - num_hard
    # The half keeps rounding from taking one of the positives away.
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

    The first is a mean over the sampled windows of all processes, the second over those of them that are on an object.
    """
    matched = matched.gather(1, chosen)
    positive = (matched >= 0) & filled
    slots = torch.where(positive, gather_matched(batch.labels, matched) + 1, 0)
    logits = upcast(windows.logits.gather(1, chosen[..., None].expand(-1, -1, windows.logits.shape[2])))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), slots.flatten(), reduction="none")
    deltas = upcast(windows.deltas.gather(1, chosen[..., None].expand(-1, -1, 4)))
    targets = encode_boxes(gather_matched(batch.boxes, matched), boxes[chosen], ROI_WEIGHTS)
    squared = (deltas - targets).square().sum(dim=-1) / 2
    return {
        "class": (cross_entropy * filled.flatten()).sum() / mean_count(filled.sum()),
        "box": torch.where(positive, squared, 0.0).sum() / mean_count(positive.sum()),
    }
