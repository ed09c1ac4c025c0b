"""Box area, IoU, GIoU and clipping.

Legend: boxes are xyxy edges as defined in `zoo.types`; `...` are batch dimensions.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def box_area(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Width times height; negative if exactly one side is reversed."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes1: Float[Tensor, "... N 4"], boxes2: Float[Tensor, "... M 4"]) -> Float[Tensor, "... N M"]:
    """IoU of every box of one set with every box of the other; 0 where both boxes have no area.

    Computed edge by edge rather than on [..., N, M, 2] corners: a quarter of the memory traffic.
    """
    x1a, y1a, x2a, y2a = boxes1[..., :, None, :].unbind(-1)
    x1b, y1b, x2b, y2b = boxes2[..., None, :, :].unbind(-1)
    width = (x2a.minimum(x2b) - x1a.maximum(x1b)).clamp_(min=0)
    height = (y2a.minimum(y2b) - y1a.maximum(y1b)).clamp_(min=0)
    intersection = width.mul_(height)
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - intersection
    return intersection.div_(union.clamp_(min=1e-12))


def paired_giou(boxes1: Float[Tensor, "... 4"], boxes2: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Generalised IoU of corresponding boxes, in -1..1 (Rezatofighi et al., arXiv 1902.09630, algorithm 1)."""
    x1a, y1a, x2a, y2a = boxes1.unbind(-1)
    x1b, y1b, x2b, y2b = boxes2.unbind(-1)
    width = (x2a.minimum(x2b) - x1a.maximum(x1b)).clamp(min=0)
    height = (y2a.minimum(y2b) - y1a.maximum(y1b)).clamp(min=0)
    intersection = width * height
    union = box_area(boxes1) + box_area(boxes2) - intersection
    hull = (x2a.maximum(x2b) - x1a.minimum(x1b)) * (y2a.maximum(y2b) - y1a.minimum(y1b))
    return intersection / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def clip_boxes(boxes: Float[Tensor, "B N 4"], sizes: Float[Tensor, "B 2"]) -> Float[Tensor, "B N 4"]:
    """Boxes clipped to their images; `sizes` is (width, height) of each."""
    limits = sizes.repeat(1, 2)[:, None]
    return boxes.clamp(min=0).minimum(limits)


def centred_inside(boxes: Float[Tensor, "N 4"], sizes: Float[Tensor, "B 2"]) -> Bool[Tensor, "B N"]:
    """Mask of boxes with their centre on an image of size (width, height), not on the padding right of or below it."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (middles < sizes[:, None]).all(dim=-1)
