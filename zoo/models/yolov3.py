"""YOLOv3: An Incremental Improvement (Redmon, Farhadi; arXiv 1804.02767).

    letterboxed frame -> trunk -> from the coarsest level to the finest: convolutions, a branch with 5 + C numbers for
    each anchor of each cell, and an upsampled map that is joined to the next level's

    section 2.1  anchors p_w, p_h by k-means; a box of the cell with corner c_x, c_y is

        b_x = sigmoid(t_x) + c_x      b_y = sigmoid(t_y) + c_y      b_w = p_w exp(t_w)      b_h = p_h exp(t_h)

                 and an objectness score by logistic regression. An object is assigned to the one anchor, of all levels,
                 whose shape overlaps it most, at the cell of its centre. A prediction that is not assigned to an
                 object but overlaps one by more than 0.5 is ignored: it has no loss
    section 2.2  independent logistic classifiers and binary cross-entropy for the classes
    section 2.3  three levels, three anchors each; a branch is 1x1 and 3x3 convolutions in turn (`zoo.nn.yolo_branch`)
    section 2.4  Darknet-53 (`zoo.nn.darknet`)

Losses, summed over the images and divided by their number; their gradients are the original code's:

    xy         (2 - w h) * cross-entropy of sigmoid(t_x), sigmoid(t_y) with the centre's place in the cell
    wh         (2 - w h) * 1/2 ((t_w - t_w*)^2 + (t_h - t_h*)^2)             w, h relative to the frame
    object     cross-entropy of the objectness with 1, of assigned predictions
    no_object  cross-entropy of the objectness with 0, of others that are not ignored
    class      cross-entropy with each class, of assigned predictions; 1 for the classes of all their objects

Original code: pjreddie/darknet (src/yolo_layer.c, cfg/yolov3.cfg, cfg/yolov3-tiny.cfg). Deviations:
  - ignore_iou is 0.5, as in the paper (cfg: 0.7);
  - objectness starts at 0.01 (code: 0.5), so that the many predictions without an object do not dominate the first
    steps;
  - t_w and t_h are limited in decoding, so that a box is at most 62.5 times as large as its anchor (`zoo.ops.coding`);
  - of several objects with the same anchor and cell, the last one's box is learned (code: also, after shuffling);
  - frames keep their size in training (code: multiples of 32 from 320 to 608); the augmentation has scale_jitter.

Legend: B images, M objects of an image, A anchors, N predictions (level, row, column, anchor), C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.errors import InputError
from zoo.nn.darknet import TRUNKS, Darknet
from zoo.nn.frame import FrameConfig
from zoo.nn.pretrained import follow_weights
from zoo.nn.trunk import Norm, Trunk
from zoo.nn.yolo_branch import BOX_NUMBERS, Branch
from zoo.ops.anchors import shape_iou
from zoo.ops.boxes import pairwise_iou
from zoo.ops.coding import MAX_LOG_SCALE
from zoo.ops.matching import BACKGROUND
from zoo.ops.postprocess import nms_by_class
from zoo.ops.precision import upcast
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

COCO_ANCHORS = (
    *((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    *((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    *((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
"""Widths and heights in a frame of 416 pixels, section 2.3."""


@dataclass
class Outputs:
    """Predictions of all levels, fine to coarse, and the cells and anchors that they belong to."""

    deltas: Float[Tensor, "B N 4"]  # t_x, t_y, t_w, t_h
    objectness: Float[Tensor, "B N"]  # logits
    logits: Float[Tensor, "B N C"]
    corners: Float[Tensor, "N 2"]  # of cells, in framed pixels
    strides: Float[Tensor, "N 1"]  # sides of cells
    anchors: Float[Tensor, "N 2"]  # widths and heights in framed pixels
    grids: list[tuple[int, int]]  # (rows, columns) of each level


# -------------------------------------------------------------------------------------------------------- the model


@final
class YOLOv3(Detector[Outputs]):
    """YOLOv3 over darknet's trunks or any of timm.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: "darknet53" (the paper's), "darknet7" (of tiny YOLOv3), or a timm model.
        strides: of the levels, fine to coarse: 8, 16, 32 in the paper; 16, 32 in tiny YOLOv3.
        pretrained: ImageNet weights of the trunk: true (`zoo.nn.pretrained`), a local file, or false; a darknet file
            (darknet53.conv.74) for darknet's trunks.
        norm: of a timm trunk: "frozen" for pretrained weights, "batch" from scratch.
        frozen_stages: first stages of a timm trunk that are not trained.
        widths: channels of the 1x1 convolutions of each level's branch ...
        depths: ... and their number, with the 3x3 ones, before the branch of the next finer level starts.
        anchors: widths and heights in framed pixels; `zoo anchors` computes those of a data set.
        level_anchors: indices of the anchors of each level, darknet's "mask".
        ignore_iou: IoU with an object above which an unassigned prediction has no loss.
        score_threshold: of detections.
        candidates_per_image: (box, class) pairs kept before NMS.
        nms_threshold: IoU above which the higher-scoring of two boxes of a class suppresses the other.
        detections_per_image: kept after NMS.
        frame: resizing and normalisation of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.

    Raises:
        InputError: strides, widths, depths and level_anchors are not equally many, level_anchors has an index that
            anchors have not, or the frame's divisor is not a multiple of the coarsest stride.
    """

    display_name = "YOLOv3"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "darknet53",
        strides: tuple[int, ...] = (8, 16, 32),
        pretrained: bool | str = False,
        norm: Norm = "batch",
        frozen_stages: int = 0,
        widths: tuple[int, ...] = (128, 256, 512),
        depths: tuple[int, ...] = (5, 5, 5),
        anchors: tuple[tuple[float, float], ...] = COCO_ANCHORS,
        level_anchors: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
        ignore_iou: float = 0.5,
        score_threshold: float = SCORE_THRESHOLD,
        candidates_per_image: int = 3000,
        nms_threshold: float = 0.45,
        detections_per_image: int = 100,
        frame: FrameConfig = FrameConfig(416, 416, letterbox=True),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        frame = follow_weights(frame, trunk, pretrained)
        arguments = plain_arguments(YOLOv3, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        check_levels(strides, widths, depths, level_anchors, len(anchors), frame.divisor)
        self.level_anchors = level_anchors
        self.ignore_iou = ignore_iou
        self.score_threshold = score_threshold
        self.candidates_per_image = candidates_per_image
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.register_buffer("anchors", torch.tensor(anchors), persistent=False)

        self.trunk: Darknet | Trunk
        if trunk in TRUNKS:
            self.trunk = Darknet(trunk, pretrained, strides)
        else:
            self.trunk = Trunk(trunk, strides, pretrained, norm, frozen_stages)
        branches: list[Branch] = []
        for level in reversed(range(len(strides))):
            coarser = branches[-1].channels if branches else None
            sizes = (len(level_anchors[level]), num_classes)
            branches.append(Branch(self.trunk.channels[level], coarser, widths[level], depths[level], *sizes))
        self.branches = nn.ModuleList(branches)  # coarse to fine, as in darknet's files

    def encode(self, batch: Batch) -> Outputs:
        """Boxes, objectness and classes of every anchor of every cell."""
        maps: list[Tensor] = []
        coarser: Tensor | None = None
        for branch, features in zip(self.branches, reversed(self.trunk(batch.images)), strict=True):
            coarser, output = branch(features, coarser)
            maps.insert(0, output)
        numbers = BOX_NUMBERS + self.num_classes
        values = torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, numbers) for m in maps], dim=1)
        deltas, objectness, logits = values.split([BOX_NUMBERS - 1, 1, self.num_classes], dim=2)
        grids = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        return Outputs(deltas, objectness[..., 0], logits, *self._cells(grids), grids)

    def _cells(self, grids: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Corners, strides and anchors of all predictions."""
        all_anchors = upcast(self.get_buffer("anchors"))
        corners, strides, anchors = [], [], []
        for (rows, columns), stride, indices in zip(grids, self.trunk.strides, self.level_anchors, strict=True):
            y = torch.arange(rows, device=all_anchors.device, dtype=all_anchors.dtype) * stride
            x = torch.arange(columns, device=all_anchors.device, dtype=all_anchors.dtype) * stride
            across, down = torch.meshgrid(x, y, indexing="xy")
            cells = torch.stack([across, down], dim=-1).view(-1, 1, 2).expand(-1, len(indices), -1)
            corners.append(cells.flatten(0, 1))
            strides.append(torch.full_like(corners[-1][:, :1], stride))
            anchors.append(torch.stack([all_anchors[index] for index in indices]).repeat(rows * columns, 1))
        return torch.cat(corners), torch.cat(strides), torch.cat(anchors)

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """The five losses of assigned predictions."""
        return yolo_losses(outputs, self._assign(outputs, batch.boxes, batch.mask), batch, self.ignore_iou)

    def _assign(self, outputs: Outputs, boxes: Tensor, mask: Tensor) -> Int64[Tensor, "B _"]:
        anchors = upcast(self.get_buffer("anchors"))
        return assign(boxes, mask, anchors, self.level_anchors, outputs.grids, self.trunk.strides)

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Scores of every box and class, the highest of them, then NMS by class."""
        scores = upcast(outputs.objectness).sigmoid()[..., None] * upcast(outputs.logits).sigmoid()
        top, pair = scores.flatten(1).topk(min(self.candidates_per_image, scores[0].numel()), dim=1)
        boxes = decode_boxes(outputs)
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for image in range(len(scores)):
            keep = (top[image] > self.score_threshold).nonzero()[:, 0]
            chosen = pair[image][keep]
            found[0].append(boxes[image, chosen // self.num_classes])
            found[1].append(top[image][keep])
            found[2].append(chosen % self.num_classes)
        return nms_by_class(*found, self.nms_threshold, self.detections_per_image)

    def class_rows(self) -> dict[str, list[int]]:
        """The class logits of each anchor, which come last."""
        rows = [BACKGROUND] * BOX_NUMBERS + [*range(self.num_classes)]
        counts = [len(indices) for indices in reversed(self.level_anchors)]
        return {f"branches.{number}.output": rows * count for number, count in enumerate(counts)}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects whose anchor belongs to no level, and those whose anchor and cell another object has."""
        boxes = objects.boxes[None]
        slots = self._assign(outputs, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool))
        num_levels, num_slots = len(outputs.grids), len(outputs.corners)
        is_assigned = (slots < num_slots).view(num_levels, -1).any(dim=0)
        is_learned = last_in_slot(slots, num_slots).view(num_levels, -1).any(dim=0)
        return [
            Limit(
                "its anchor belongs to no level",
                "The anchor whose shape overlaps it most belongs to no level: no prediction is trained on it.",
                ~is_assigned,
            ),
            Limit(
                "its anchor and cell are another object's",
                "Another object has the same anchor at the same cell, and the one prediction is trained on its box.",
                is_assigned & ~is_learned,
            ),
        ]


def check_levels(
    strides: Sequence[int],
    widths: Sequence[int],
    depths: Sequence[int],
    level_anchors: Sequence[Sequence[int]],
    num_anchors: int,
    divisor: int,
) -> None:
    """Check that the levels' arguments fit each other.

    Raises:
        InputError: they do not.
    """
    if not len(strides) == len(widths) == len(depths) == len(level_anchors):
        raise InputError("strides, widths, depths and level_anchors must be equally many: one of each for a level")
    for indices in level_anchors:
        if not indices or not 0 <= min(indices) <= max(indices) < num_anchors:
            raise InputError(f"level_anchors {tuple(indices)}: give indices of the {num_anchors} anchors, from 0 on")
    if divisor % strides[-1]:
        raise InputError(f"frame.divisor {divisor} is not a multiple of the coarsest stride {strides[-1]}")


# ------------------------------------------------------------------------------------------ decoding and assignment


def decode_boxes(outputs: Outputs) -> Float[Tensor, "B N 4"]:
    """Predicted boxes as xyxy in framed pixels (section 2.1)."""
    deltas = upcast(outputs.deltas)
    centres = outputs.corners + deltas[..., :2].sigmoid() * outputs.strides
    halves = outputs.anchors * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)


def assign(
    boxes: Float[Tensor, "B M 4"],
    mask: Bool[Tensor, "B M"],
    anchors: Float[Tensor, "A 2"],
    level_anchors: Sequence[Sequence[int]],
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
) -> Int64[Tensor, "B _"]:
    """Prediction that is assigned to each object at each level, N for none: L * M of an image, level by level.

    Args:
        boxes: objects in framed pixels.
        mask: which of them are real.
        anchors: widths and heights of all anchors.
        level_anchors: indices of the anchors of each level.
        grids: (rows, columns) of each level.
        strides: of each level.
    """
    best = shape_iou(boxes[..., 2:] - boxes[..., :2], anchors).argmax(dim=-1)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    counts = [rows * columns * len(indices) for (rows, columns), indices in zip(grids, level_anchors, strict=True)]
    slots = []
    for level, (rows, columns) in enumerate(grids):
        indices = level_anchors[level]
        place = torch.full_like(best, BACKGROUND)
        for number, anchor in enumerate(indices):  # a table indexed by `best` would be copied to the device
            place = torch.where(best == anchor, number, place)
        column, row = (centres / strides[level]).long().unbind(-1)
        cell = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        slot = sum(counts[:level]) + cell * len(indices) + place
        slots.append(torch.where(mask & (place != BACKGROUND), slot, sum(counts)))
    return torch.cat(slots, dim=1)


def last_in_slot(slots: Int64[Tensor, "B K"], num_slots: int) -> Bool[Tensor, "B K"]:
    """Which objects are assigned and the last ones of their prediction."""
    is_later = torch.ones(slots.shape[1], slots.shape[1], dtype=torch.bool, device=slots.device).triu(1)
    is_same = slots[:, :, None] == slots[:, None]
    return (slots < num_slots) & ~(is_same & is_later).any(dim=2)


# ------------------------------------------------------------------------------------------------------------ losses


def yolo_losses(outputs: Outputs, slots: Int64[Tensor, "B K"], batch: Batch, ignore_iou: float) -> Losses:
    """The five losses of the header, divided by the number of images.

    Args:
        outputs: of the network.
        slots: result of `assign`.
        batch: its objects.
        ignore_iou: IoU with an object above which an unassigned prediction has no loss.
    """
    num_images, num_slots = outputs.objectness.shape
    levels = len(outputs.grids)
    boxes, labels = batch.boxes.repeat(1, levels, 1), batch.labels.repeat(1, levels)
    learned = last_in_slot(slots, num_slots)
    index = slots.clamp(max=num_slots - 1)

    def gather(values: Tensor) -> Tensor:
        return upcast(values).gather(1, index[..., None].expand(-1, -1, values.shape[2]))

    def total(errors: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, errors, 0.0).sum() / num_images

    deltas = gather(outputs.deltas)
    targets = encode_boxes(boxes, outputs.corners[index], outputs.strides[index], outputs.anchors[index])
    xy = cross_entropy(deltas[..., :2], targets[..., :2]).sum(dim=-1)
    wh = (deltas[..., 2:] - targets[..., 2:]).square().sum(dim=-1) / 2
    height, width = batch.images.shape[-2:]
    weights = 2 - (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) / (height * width)

    # Classes of all objects of a prediction: several where objects of two classes share it.
    is_same = (slots[:, :, None] == slots[:, None]).to(weights.dtype)
    one_hot = (labels[..., None] == torch.arange(outputs.logits.shape[2], device=labels.device)).to(weights.dtype)
    classes = cross_entropy(gather(outputs.logits), (is_same @ one_hot).clamp(max=1)).sum(dim=-1)

    is_object = torch.zeros(num_images, num_slots + 1, dtype=torch.bool, device=slots.device)
    is_object = is_object.scatter(1, slots, True)[:, :-1]
    overlaps = pairwise_iou(decode_boxes(outputs).detach(), batch.boxes) > ignore_iou
    is_ignored = (overlaps & batch.mask[:, None]).any(dim=2)
    objectness = upcast(outputs.objectness)
    return {
        "xy": total(weights * xy, learned),
        "wh": total(weights * wh, learned),
        "object": total(F.softplus(-objectness), is_object),
        "no_object": total(F.softplus(objectness), ~is_object & ~is_ignored),
        "class": total(classes, learned),
    }


def encode_boxes(
    boxes: Float[Tensor, "B K 4"],
    corners: Float[Tensor, "B K 2"],
    strides: Float[Tensor, "B K 1"],
    anchors: Float[Tensor, "B K 2"],
) -> Float[Tensor, "B K 4"]:
    """Targets: the centre's place in the cell, 0..1, and the logarithms of the sides in anchors."""
    places = ((boxes[..., :2] + boxes[..., 2:]) / 2 - corners) / strides
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    return torch.cat([places, (sides / anchors).log()], dim=-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each sigmoid with its target."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
