"""Objects that anchors, windows or corner cells cannot represent, whatever a detector learns.

Legend: M counted objects of an image, N anchors or windows.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from zoo.ops.boxes import box_area, pairwise_iou
from zoo.ops.matching import match
from zoo.types import Limit


def anchor_limits(
    boxes: Float[Tensor, "M 4"], anchors: Float[Tensor, "N 4"], low: float, high: float, what: str
) -> list[Limit]:
    """Objects that no anchor overlaps by IoU `high`, and objects that no anchor is matched to.

    Args:
        boxes: objects in framed pixels.
        anchors: all anchors of the frame.
        low: anchors with a lower IoU are background.
        high: anchors with at least this IoU are foreground; at least 0.5.
        what: what a foreground anchor is trained to predict, for the sentence of the report.
    """
    overlap, is_matched = match_anchors(boxes, anchors, low, high)
    return [
        Limit(
            f"no anchor reaches IoU {high}",
            f"No anchor overlaps it by IoU {high}: only its best anchor is trained on it, with larger box deltas.",
            overlap < high,
        ),
        Limit(
            "no anchor is matched to it",
            f"Each candidate anchor overlaps another object more: no anchor is trained to predict {what} there.",
            ~is_matched,
        ),
    ]


def match_anchors(
    boxes: Float[Tensor, "M 4"], anchors: Float[Tensor, "N 4"], low: float, high: float
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Highest IoU of each object with any anchor, and whether any anchor is matched to the object.

    Equal to `match` over all anchors (200,000 on a frame of 1333x800), but evaluates few of them. An anchor that does
    not contain an object's centre covers less than half of the object, so its IoU is below 0.5, and below
    area / 2 / max(area, area of the smallest anchor). Only objects whose best anchor around the centre is below that
    bound are compared with all anchors.

    Args:
        boxes: objects in framed pixels.
        anchors: all anchors of the frame.
        low: anchors with a lower IoU are background.
        high: anchors with at least this IoU are foreground; at least 0.5.
    """
    if not len(boxes):
        return boxes.new_zeros(0), torch.zeros(0, dtype=torch.bool)
    assert high >= 0.5
    x, y = (((boxes[:, axis] + boxes[:, axis + 2]) / 2)[:, None] for axis in (0, 1))
    x1, y1, x2, y2 = anchors.unbind(-1)
    is_candidate = ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any(dim=0)
    best = best_overlap(boxes, anchors[is_candidate])
    areas = box_area(boxes)
    bound = areas / 2 / areas.maximum(box_area(anchors).min())  # above the IoU of any anchor without the centre
    undecided = boxes[best < bound]
    if len(undecided):
        iou = pairwise_iou(undecided, anchors)
        is_candidate |= (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
    iou = pairwise_iou(boxes, anchors[is_candidate])
    mask = torch.ones(1, len(boxes), dtype=torch.bool)
    matched = match(iou[None], mask, low, high, keep_best_of_each_object=True)[0]
    return iou.amax(dim=1), torch.bincount(matched[matched >= 0], minlength=len(boxes)) > 0


def best_overlap(boxes: Float[Tensor, "M 4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, " M"]:
    """Highest IoU of each box with any of the others; 0 where there are none."""
    return pairwise_iou(boxes, others).amax(dim=1) if len(others) else boxes.new_zeros(len(boxes))


def corner_limits(
    top_left: Int64[Tensor, "M 2"], bottom_right: Int64[Tensor, "M 2"], labels: Int64[Tensor, " M"]
) -> list[Limit]:
    """Objects whose two corners share or neighbour the heat-map cells of another object of their class.

    Args:
        top_left: (column, row) of each object's top-left corner.
        bottom_right: of its bottom-right corner.
        labels: class of each object.
    """
    cells = torch.cat([top_left, bottom_right], dim=1)
    distance = (cells[:, None] - cells).abs().amax(dim=2)
    is_same_class = labels[:, None] == labels
    return [
        Limit(
            "both corners in the cells of another object",
            "Another object of its class has both corners in the same cells: the two corners give one box.",
            merged_objects((distance == 0) & is_same_class),
        ),
        Limit(
            "both corners beside those of another object",
            "Another object of its class has both corners in the same or neighbouring cells, of which 3x3 peak "
            "selection keeps one: one box for both.",
            merged_objects((distance <= 1) & is_same_class),
        ),
    ]


def merged_objects(is_same: Bool[Tensor, "M M"]) -> Bool[Tensor, " M"]:
    """Objects that are indistinguishable from an earlier object which is not itself merged into another.

    Args:
        is_same: which pairs of objects give one detection; symmetric.
    """
    is_merged = torch.zeros(len(is_same), dtype=torch.bool)
    for index in is_same.triu(diagonal=1).any(dim=0).nonzero()[:, 0].tolist():
        is_merged[index] = (is_same[index, :index] & ~is_merged[:index]).any()
    return is_merged
