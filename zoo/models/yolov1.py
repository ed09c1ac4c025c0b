"""YOLOv1: You Only Look Once (Redmon, Divvala, Girshick, Farhadi; arXiv 1506.02640).

    frame stretched to a square -> trunk -> added convolutions -> head: C + 5K numbers for each of S x S cells

    section 2    the cell that contains an object's centre detects it: S = 7 cells per side, K = 2 boxes per cell; x, y
                 relative to the cell, w, h to the whole image, a confidence per box, C class probabilities per cell;
                 score of a class = Pr(class | object) * confidence (equation 1)
    section 2.1  20 convolutions, pre-trained on ImageNet (here any timm trunk can replace them) ...
    section 2.2  ... then four more, two fully connected layers, dropout 0.5; leaky ReLU 0.1 and a linear output
    equation 3   sums of squared errors, of the responsible box of each cell with an object:

        xy         5   * (x - x^)^2 + (y - y^)^2
        wh         5   * (sqrt w - sqrt w^)^2 + (sqrt h - sqrt h^)^2
        object           (confidence - IoU of the box with the object)^2
        no_object  0.5 * confidence^2                            of all boxes that are not responsible
        class            (p(c) - p^(c))^2 over all classes       once per cell with an object

                 responsible is the box of the cell with the highest IoU; no gradient flows through the IoU
    section 2.4  NMS by class

Original code: pjreddie/darknet (src/detection_layer.c, cfg/yolov1). Deviations:
  Not in the paper, but in the original code:
  - the network predicts the square roots of w and h: a negative one is squared like any other;
  - batch norm in every convolution;
  - head "local", of the released weights: a locally connected layer instead of the first fully connected one.
  Neither in the paper nor in the original code:
  - of objects with centres in one cell the largest is assigned, of equal ones the first (darknet: a random one, the
    first after shuffling);
  - head "conv", of 1x1 convolutions, which share weights between cells and so learn from far fewer images.
  Not in the original code:
  - where no box of a cell overlaps the object, the first box is responsible (darknet: the one of least squared error).
    This is rare, since boxes start centred in their cell with sizes spread over 0..1 (darknet: at 0);
  - the loss is divided by the number of images; its gradient is twice darknet's, which leaves out the factor 2.

Legend: B images, M objects of an image, S cells per side, G = S * S cells, K boxes per cell, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.errors import InputError
from zoo.nn.cell_head import CellHead, HeadKind
from zoo.nn.darknet import TRUNKS, ConvUnit, Darknet
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import follow_weights
from zoo.nn.trunk import Trunk
from zoo.ops.boxes import box_area, pairwise_iou
from zoo.ops.matching import BACKGROUND, gather_matched
from zoo.ops.postprocess import nms_by_class
from zoo.ops.precision import upcast
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction, RawBatch

START_CONFIDENCE = 0.1
COARSEST_STRIDE = 32  # last stride of nearly every timm model; added convolutions start from it


@dataclass
class Outputs:
    """Class probabilities, confidences and boxes of each cell."""

    classes: Float[Tensor, "B G C"]  # probability of each class, given that there is an object
    confidences: Float[Tensor, "B G K"]
    boxes: Float[Tensor, "B G K 4"]  # x, y in cells from the cell's corner; square roots of w, h relative to the frame


# ---------------------------------------------------------------------------------------------------------- network


def build_neck(in_channels: int, widths: Sequence[int], stride: int) -> nn.Sequential:
    """The paper's added 3x3 convolutions; the stride is in the second one (in the first if there is only one)."""
    if not widths and stride > 1:
        raise InputError(f"a cell is {stride} times the trunk's last stride: neck needs a convolution")
    strided = min(1, len(widths) - 1)
    layers = []
    for index, width in enumerate(widths):
        layers.append(ConvUnit(in_channels, width, 3, stride if index == strided else 1))
        in_channels = width
    return nn.Sequential(*layers)


def init_output(output: nn.Linear | nn.Conv2d, num_cells: int, num_classes: int, num_boxes: int) -> None:
    """Small weights, and biases of equal classes, low confidence and centred boxes of sides 1/3 and 2/3 (for K = 2)."""
    nn.init.normal_(output.weight, std=0.001)
    roots = (torch.arange(1, num_boxes + 1) / (num_boxes + 1)).sqrt()
    boxes = torch.stack([torch.full_like(roots, 0.5)] * 2 + [roots] * 2, dim=1).flatten()
    num_repeats = 1 if isinstance(output, nn.Conv2d) else num_cells
    classes = torch.full((num_repeats * num_classes,), 1 / num_classes)
    confidences = torch.full((num_repeats * num_boxes,), START_CONFIDENCE)
    assert output.bias is not None
    with torch.no_grad():
        output.bias.copy_(torch.cat([classes, confidences, boxes.repeat(num_repeats)]))


# -------------------------------------------------------------------------------------------------------- the model


@final
class YOLOv1(Detector[Outputs]):
    """YOLOv1 over the paper's trunks or any of timm.

    The frame is stretched to a square of `frame.min_size` pixels, a multiple of `grid`. The side of a cell is the
    trunk's stride (darknet20: 32, darknet6: 64, timm: 8, 16 or 32), or a multiple of it by the stride of the added
    convolutions.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: "darknet20" (the paper's 20 pre-trained layers), "darknet6" (Fast YOLO's), or a timm model.
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false; a darknet file
            for the paper's trunks.
        neck: channels of the 3x3 convolutions added to the trunk: four to the paper's (24 in all), three to Fast
            YOLO's (9 in all).
        head: "fc" (paper), "local" (darknet's released weights) or "conv".
        head_widths: of its hidden layers; see `CellHead`.
        dropout: before its output.
        grid: S.
        boxes_per_cell: K (the paper's B).
        coord_weight: lambda_coord.
        no_object_weight: lambda_noobj.
        score_threshold: of detections.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing and normalisation of images; must stretch.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.

    Raises:
        InputError: frame, grid and trunk do not fit each other.
    """

    display_name = "YOLOv1"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "darknet20",
        pretrained: bool | str = False,
        neck: tuple[int, ...] = (1024, 1024, 1024, 1024),
        head: HeadKind = "fc",
        head_widths: tuple[int, ...] = (4096,),
        dropout: float = 0.5,
        grid: int = 7,
        boxes_per_cell: int = 2,
        coord_weight: float = 5.0,
        no_object_weight: float = 0.5,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        frame: FrameConfig = FrameConfig(448, 448, stretch=True),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(YOLOv1, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.grid = grid
        self.coord_weight = coord_weight
        self.no_object_weight = no_object_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        cell = cell_size(frame, grid)
        self.trunk: Darknet | Trunk
        if trunk in TRUNKS:
            self.trunk = Darknet(trunk, pretrained)
            (stride,) = self.trunk.strides
        else:
            stride = min(cell, COARSEST_STRIDE)
            self.trunk = Trunk(trunk, (stride,), pretrained, norm="batch", frozen_stages=0)
        if cell % stride:
            raise InputError(f"cells of {cell} pixels (frame / grid) are not a multiple of the trunk's stride {stride}")
        self.neck = build_neck(self.trunk.channels[-1], neck, cell // stride)
        width = neck[-1] if neck else self.trunk.channels[-1]
        sizes = (num_classes, boxes_per_cell, 4 * boxes_per_cell)
        self.head = CellHead(head, width, grid, head_widths, dropout, sizes)
        init_output(self.head.output, grid * grid, num_classes, boxes_per_cell)

    def encode(self, batch: Batch) -> Outputs:
        """Classes, confidences and boxes of every cell."""
        classes, confidences, boxes = self.head(self.neck(self.trunk(batch.images)[-1]))
        return Outputs(classes, confidences, boxes.unflatten(2, (-1, 4)))

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Equation 3 on assigned cells."""
        boxes = batch.boxes / batch.images.shape[3]
        matched, _ = assign_cells(boxes, batch.mask, self.grid)
        return yolo_losses(outputs, boxes, batch.labels, matched, self.grid, self.coord_weight, self.no_object_weight)

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Scores of every box and class (equation 1), then NMS by class; `Frame.unframe` clips the boxes."""
        scores = class_scores(upcast(outputs.classes), upcast(outputs.confidences))
        boxes = decode_boxes(upcast(outputs.boxes), self.grid) * batch.images.shape[3]
        num_classes = scores.shape[3]
        sorted_scores, order = scores.flatten(1).sort(dim=1, descending=True)
        counts = (sorted_scores > self.score_threshold).sum(dim=1).tolist()
        indices = [index[:count] for index, count in zip(order, counts, strict=True)]
        return nms_by_class(
            [image[index // num_classes] for image, index in zip(boxes.flatten(1, 2), indices, strict=True)],
            [image[:count] for image, count in zip(sorted_scores, counts, strict=True)],
            [index % num_classes for index in indices],
            self.nms_threshold,
            self.detections_per_image,
        )

    def class_rows(self) -> dict[str, list[int]]:
        """The class probabilities of a cell, which come first."""
        classes = [*range(self.num_classes)] * (1 if self.head.kind == "conv" else self.grid**2)
        rest = len(self.head.output.weight) - len(classes)
        return {"head.output": classes + [BACKGROUND] * rest}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects whose cell is assigned to a larger object."""
        boxes = (objects.boxes / objects.size.repeat(2))[None]
        _, lost = assign_cells(boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), self.grid)
        cells = f"Each of the {self.grid} x {self.grid} cells is assigned one object"
        meaning = f"{cells}, and a larger one is centred in the same cell."
        return [Limit("its cell is assigned to a larger object", meaning, lost[0])]

    def on_train_batch_start(self, batch: RawBatch, batch_idx: int) -> None:
        """Log the number of objects without a cell; `train/lost_objects` is the sum over an epoch."""
        lost = count_lost_objects(batch, self.grid)
        self.log("train/lost_objects", lost.float(), on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)


def cell_size(frame: FrameConfig, grid: int) -> int:
    """Side of a cell in framed pixels.

    Raises:
        InputError: the frame is not stretched, or not a multiple of the grid and of its own divisor.
    """
    if not frame.stretch:
        raise InputError("YOLOv1 needs frames of one size; set frame.stretch to true")
    if frame.min_size % grid or frame.min_size % frame.divisor:
        raise InputError(
            f"a frame of {frame.min_size} pixels is not a multiple of grid {grid} and of frame.divisor {frame.divisor}"
        )
    return frame.min_size // grid


# ------------------------------------------------------------------------------------------------------- assignment


def assign_cells(
    boxes: Float[Tensor, "B M 4"], mask: Bool[Tensor, "B M"], grid: int
) -> tuple[Int64[Tensor, "B G"], Bool[Tensor, "B M"]]:
    """Object assigned to each cell, and objects without a cell.

    Of objects with centres in one cell the largest is assigned, of equally large ones the first.

    Args:
        boxes: xyxy, relative to the frame.
        mask: which objects are real.
        grid: S.

    Returns:
        Index of the object or BACKGROUND, and the mask of objects that are assigned to no cell.
    """
    num_images, num_objects = mask.shape
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    column, row = (centres * grid).long().clamp(0, grid - 1).unbind(-1)
    cells = torch.where(mask, row * grid + column, grid * grid)  # an extra cell for padding

    areas = box_area(boxes)
    index = torch.arange(num_objects, device=boxes.device)
    is_larger = areas[:, None, :] > areas[:, :, None]  # [B, m, n]: n is larger than m
    is_first = (areas[:, None, :] == areas[:, :, None]) & (index < index[:, None])
    shares_cell = (cells[:, None, :] == cells[:, :, None]) & mask[:, None, :]
    lost = mask & (shares_cell & (is_larger | is_first)).any(dim=2)

    matched = torch.full((num_images, grid * grid + 1), BACKGROUND, device=boxes.device)
    assigned_cells = torch.where(mask & ~lost, cells, grid * grid)
    matched.scatter_(1, assigned_cells, index.expand(num_images, -1))
    return matched[:, :-1], lost


def count_lost_objects(batch: RawBatch, grid: int) -> Int64[Tensor, ""]:
    """Number of objects of raw images that share a cell with a larger one, so that they are not learned.

    Args:
        batch: images and targets from a loader; stretching to the frame does not change the cells.
        grid: S.
    """
    images, targets = batch
    relative, masks = [], []
    for image, target in zip(images, targets, strict=True):
        height, width = image.shape[-2:]
        x1, y1, x2, y2 = target["boxes"].unbind(-1)
        relative.append(torch.stack([x1 / width, y1 / height, x2 / width, y2 / height], dim=-1))
        masks.append(~(target["iscrowd"] | target["difficult"]))
    _, lost = assign_cells(pad_sequence(relative, batch_first=True), pad_sequence(masks, batch_first=True), grid)
    return lost.sum()


# ------------------------------------------------------------------------------------------------ decoding and loss


def decode_boxes(boxes: Float[Tensor, "B G K 4"], grid: int) -> Float[Tensor, "B G K 4"]:
    """Predicted boxes as xyxy, relative to the frame."""
    cells = torch.arange(grid * grid, device=boxes.device)
    corners = torch.stack([cells % grid, cells // grid], dim=-1)[:, None]
    centres = (boxes[..., :2] + corners) / grid
    halves = boxes[..., 2:].square() / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def encode_boxes(boxes: Float[Tensor, "B G 4"], grid: int) -> Float[Tensor, "B G 4"]:
    """Box targets of each cell, from the assigned object's box as xyxy, relative to the frame."""
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2 * grid
    cells = torch.arange(grid * grid, device=boxes.device)
    corners = torch.stack([cells % grid, cells // grid], dim=-1)
    return torch.cat([centres - corners, (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).sqrt()], dim=-1)


def class_scores(classes: Float[Tensor, "B G C"], confidences: Float[Tensor, "B G K"]) -> Float[Tensor, "B G K C"]:
    """Equation 1, of outputs clamped to 0..1, so that two negative ones do not make a positive score."""
    return confidences.clamp(0, 1)[..., None] * classes.clamp(0, 1)[:, :, None]


def yolo_losses(
    outputs: Outputs,
    gt_boxes: Float[Tensor, "B M 4"],
    gt_labels: Int64[Tensor, "B M"],
    matched: Int64[Tensor, "B G"],
    grid: int,
    coord_weight: float,
    no_object_weight: float,
) -> Losses:
    """Terms of equation 3, divided by the number of images.

    Args:
        outputs: of the network.
        gt_boxes: xyxy, relative to the frame.
        gt_labels: their classes.
        matched: index of the object that is assigned to each cell, or BACKGROUND.
        grid: S.
        coord_weight: of terms 1 and 2.
        no_object_weight: of term 4.
    """
    classes, confidences, boxes = upcast(outputs.classes), upcast(outputs.confidences), upcast(outputs.boxes)
    num_images, _, num_boxes = confidences.shape
    has_object = matched != BACKGROUND
    cell_boxes = gather_matched(gt_boxes, matched)
    iou = pairwise_iou(decode_boxes(boxes.detach(), grid), cell_boxes[:, :, None])[..., 0]  # [B, G, K]
    slots = torch.arange(num_boxes, device=iou.device)
    is_responsible = has_object[..., None] & (slots == iou.argmax(dim=2, keepdim=True))

    box_errors = (boxes - encode_boxes(cell_boxes, grid)[:, :, None]).square()
    xy_errors, wh_errors = box_errors[..., :2].sum(dim=-1), box_errors[..., 2:].sum(dim=-1)
    one_hot = gather_matched(gt_labels, matched)[..., None] == torch.arange(classes.shape[2], device=iou.device)
    class_errors = (classes - one_hot.to(classes.dtype)).square().sum(dim=-1)

    def total(errors: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, errors, 0.0).sum() / num_images

    return {
        "xy": coord_weight * total(xy_errors, is_responsible),
        "wh": coord_weight * total(wh_errors, is_responsible),
        "object": total((confidences - iou).square(), is_responsible),
        "no_object": no_object_weight * total(confidences.square(), ~is_responsible),
        "class": total(class_errors, has_object),
    }
