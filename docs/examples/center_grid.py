"""CenterGrid: the cell with an object's centre detects it; an example of a detector in one file.

    trunk -> map of stride 16 -> at each cell: C class logits and the distances to the four edges of a box

Each object is assigned to one cell, as in YOLOv1 (arXiv 1506.02640); a cell predicts the distances to the edges of its
box, as in FCOS (arXiv 1904.01355); classes are trained with the focal loss (arXiv 1708.02002, equation 5).

Legend: B images, M objects of an image, N = H * W cells, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detector import SCORE_THRESHOLD, Detector, Recipe, plain_arguments
from zoo.nn.frame import FrameConfig
from zoo.nn.trunk import Trunk
from zoo.ops.boxes import box_area, clip_boxes
from zoo.ops.distributed import mean_count
from zoo.ops.focal import focal_loss_per_image
from zoo.ops.postprocess import nms_by_class, split_by_image, top_candidates
from zoo.ops.precision import upcast
from zoo.types import Batch, FramedObjects, Limit, Losses, Prediction

STRIDE = 16


@dataclass
class Outputs:
    """Class logits of each cell, and the logarithms of the distances from its middle to left, top, right, bottom."""

    logits: Float[Tensor, "B N C"]
    distances: Float[Tensor, "B N 4"]  # logarithms of multiples of STRIDE
    size: tuple[int, int]  # H, W


@final
class CenterGrid(Detector[Outputs]):
    """One box for each cell of a timm trunk's map of stride 16.

    Args:
        num_classes: foreground classes.
        class_names: their names.
        trunk: name of a timm model.
        pretrained: ImageNet weights of the trunk: true (timm downloads them), a local file, or false.
        score_threshold: of detections.
        frame: resizing, normalisation and padding of images.
        recipe: of the optimizer.
        channels_last: memory format of images and weights.
    """

    display_name = "CenterGrid"

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        trunk: str = "resnet18",
        pretrained: bool | str = False,
        score_threshold: float = SCORE_THRESHOLD,
        frame: FrameConfig = FrameConfig(),
        recipe: Recipe = Recipe(),
        channels_last: bool = True,
    ) -> None:
        arguments = plain_arguments(CenterGrid, locals())
        super().__init__(num_classes, class_names, frame, recipe, channels_last, arguments)
        self.score_threshold = score_threshold
        self.trunk = Trunk(trunk, (STRIDE,), pretrained, norm="batch", frozen_stages=0)
        self.head = nn.Conv2d(self.trunk.channels[0], num_classes + 4, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[:num_classes], -4.6)  # a score of 0.01, as RetinaNet starts
        nn.init.zeros_(self.head.bias[num_classes:])

    def encode(self, batch: Batch) -> Outputs:
        """Class logits and edge distances of each cell."""
        maps = self.head(self.trunk(batch.images)[0])
        cells = maps.flatten(2).transpose(1, 2)
        return Outputs(cells[..., : self.num_classes], cells[..., self.num_classes :], maps.shape[-2:])

    def compute_losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Focal loss of every cell, and L1 of the log distances of the cells with an object; both by object."""
        cells, lost = assign_cells(batch.boxes, batch.mask, outputs.size)
        is_assigned = batch.mask & ~lost
        num_objects = mean_count(is_assigned.sum())
        num_cells = outputs.logits.shape[1]
        labels = cells.new_full((len(cells), num_cells + 1), -1)  # -1: background; the last cell takes the others
        labels.scatter_(1, torch.where(is_assigned, cells, num_cells), batch.labels)
        ignored = torch.zeros_like(labels[:, :-1], dtype=torch.bool)
        focal = focal_loss_per_image(outputs.logits, labels[:, :-1], ignored, alpha=0.5, gamma=2.0)

        pred = upcast(outputs.distances).gather(1, cells[..., None].expand(-1, -1, 4))
        middles = cell_middles(cells, outputs.size[1])
        edges = torch.cat([middles - batch.boxes[..., :2], batch.boxes[..., 2:] - middles], dim=-1)
        gt = (edges / STRIDE).clamp(min=0.01).log()  # the middle of the cell can lie outside a small object
        box = F.l1_loss(pred, gt, reduction="none").sum(dim=-1)
        return {"class": focal.sum() / num_objects, "box": torch.where(is_assigned, box, 0.0).sum() / num_objects}

    def compute_predictions(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """Boxes of the cells with the highest scores, then NMS by class."""
        found = top_candidates(outputs.logits, self.score_threshold, limit=1000)
        distances = upcast(outputs.distances[found.image, found.anchor]).clamp(max=6).exp() * STRIDE
        middles = cell_middles(found.anchor, outputs.size[1])
        boxes = torch.cat([middles - distances[:, :2], middles + distances[:, 2:]], dim=-1)
        boxes = clip_boxes(boxes[:, None], batch.sizes[found.image])[:, 0]
        rows = split_by_image((boxes, found.logit.sigmoid(), found.label), found.image, len(batch.images))
        return nms_by_class(*rows, iou_threshold=0.5, limit=100)

    def class_rows(self) -> dict[str, list[int]]:
        """The classes' logits come before the distances of the four edges."""
        return {"head": [*range(self.num_classes), -1, -1, -1, -1]}

    def find_limits(self, outputs: Outputs, objects: FramedObjects) -> list[Limit]:
        """Objects whose cell is assigned to a smaller object."""
        mask = torch.ones(1, len(objects.boxes), dtype=torch.bool)
        _, lost = assign_cells(objects.boxes[None], mask, outputs.size)
        meaning = "Each cell is assigned one object, and a smaller one is centred in the same cell."
        return [Limit("its cell is assigned to a smaller object", meaning, lost[0])]


def assign_cells(
    boxes: Float[Tensor, "B M 4"], mask: Bool[Tensor, "B M"], size: tuple[int, int]
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Cell of each object's centre, row by row, and the objects whose cell is assigned to another one.

    Of objects with centres in one cell the smallest is assigned, of equally small ones the first.

    Args:
        boxes: in framed pixels.
        mask: which objects are real.
        size: H, W.
    """
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE).long()
    cells = centres[..., 1].clamp(0, size[0] - 1) * size[1] + centres[..., 0].clamp(0, size[1] - 1)
    areas, index = box_area(boxes), torch.arange(boxes.shape[1], device=boxes.device)
    is_smaller = areas[:, None, :] < areas[:, :, None]  # [b, m, n]: n is smaller than m
    is_first = (areas[:, None, :] == areas[:, :, None]) & (index < index[:, None])
    is_other = (cells[:, None, :] == cells[:, :, None]) & mask[:, None, :]
    return cells, mask & (is_other & (is_smaller | is_first)).any(dim=2)


def cell_middles(cells: Int64[Tensor, "*N"], columns: int) -> Float[Tensor, "*N 2"]:
    """(x, y) of the middle of each cell in framed pixels."""
    return (torch.stack([cells % columns, cells // columns], dim=-1) + 0.5) * STRIDE
