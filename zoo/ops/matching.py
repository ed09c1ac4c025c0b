"""IoU -> which object each anchor (or proposal) answers for.

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
    """Assign each anchor the object it overlaps most, if it overlaps it enough.

    An anchor with IoU >= high answers for that object, below low it is background, between them ignored
    (Faster R-CNN, arXiv 1506.01497, section 3.1.2). With `keep_best_of_each_object`, an anchor that has an object's
    highest IoU is never given up, however low that is; it answers for the object that *it* overlaps most, as in
    py-faster-rcnn. An object that overlaps nothing claims nothing.

    Args:
        iou: overlap of objects with anchors.
        mask: which objects are real.
        low: below this an anchor is background.
        high: from this on an anchor answers for an object.
        keep_best_of_each_object: the low-quality matches above.

    Returns:
        Index of the object, or BACKGROUND, or IGNORED.
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
    """Rows [B, N, ...] of an object table [B, M, ...]; where nothing is matched, some row or zeros, to be masked."""
    if values.shape[1] == 0:
        return values.new_zeros(*matched.shape, *values.shape[2:])
    index = matched.clamp(min=0)
    if values.ndim == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
