"""Assign anchors or proposals to ground truth by IoU.

Legend: B images, M objects of an image (padded), N anchors or proposals.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


def match(
    iou: Float[Tensor, "B M N"],
    mask: Bool[Tensor, "B M"],
    low: float,
    high: float,
    keep_best_of_each_object: bool,
) -> Int64[Tensor, "B N"]:
    """Index of the object that each anchor is matched to, or BACKGROUND, or IGNORED.

    An anchor with IoU >= high is matched to the object it overlaps most; below low it is background, between them
    ignored (Faster R-CNN, arXiv 1506.01497, section 3.1.2). With `keep_best_of_each_object`, an anchor with an object's
    highest IoU is always matched, however low that is: to the object that the anchor overlaps most, as in
    py-faster-rcnn. An object without any overlap is not matched.

    Args:
        iou: of objects and anchors.
        mask: which objects are real, not padding.
        low: anchors below this IoU are background.
        high: anchors from this IoU on are matched.
        keep_best_of_each_object: whether to add the low-quality matches described above.
    """
    if iou.shape[1] == 0:
        return iou.new_full((iou.shape[0], iou.shape[2]), BACKGROUND, dtype=torch.int64)
    iou = iou.masked_fill(~mask[:, :, None], -1)
    best_iou, best_object = iou.max(dim=1)
    matched = best_object.masked_fill(best_iou < high, IGNORED).masked_fill(best_iou < low, BACKGROUND)
    if keep_best_of_each_object:
        best_anchor_iou = iou.amax(dim=2, keepdim=True).clamp(min=torch.finfo(iou.dtype).tiny)
        is_best = (iou == best_anchor_iou).any(dim=1)
        matched = torch.where(is_best, best_object, matched)
    return matched


def gather_matched(values: Tensor, matched: Int64[Tensor, "B N"]) -> Tensor:
    """Values [B, M, ...] of the matched objects as [B, N, ...]; unmatched rows are arbitrary and must be masked."""
    if values.shape[1] == 0:
        return values.new_zeros(*matched.shape, *values.shape[2:])
    index = matched.clamp(min=0)
    if values.ndim == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
