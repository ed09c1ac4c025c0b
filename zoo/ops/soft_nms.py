"""Soft-NMS (Bodla et al., arXiv 1704.04503): what overlaps a surer detection is turned down, not dropped.

Legend: B images, N candidates of an image, K detections.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from zoo.ops.boxes import pairwise_iou


def soft_nms(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    labels: Int64[Tensor, "B N"],
    sigma: float,
    limit: int,
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """The surest `limit` detections of each image after the gaussian form, equation 3, within each class.

    Again and again the surest candidate is taken, and the scores of the rest of its class decay by
    exp(-IoU^2 / sigma). Scores only ever fall, so the first `limit` taken are the surest in the end, and no more steps
    are made; each is made for all images at once.

    Args:
        boxes: candidates.
        scores: 0..1; a candidate that is none has a score of 0 or less, and stays that way.
        labels: class of each.
        sigma: the larger, the milder.
        limit: of detections.

    Returns:
        Scores after decay, highest first; index of each among the candidates. K = min(limit, N).
    """
    if torch.compiler.is_exporting():
        return soft_nms_as_operator(boxes, scores, labels, sigma, limit)
    return _take_one_by_one(boxes, scores, labels, sigma, limit)


@torch.library.custom_op("zoo::soft_nms", mutates_args=())
def soft_nms_as_operator(
    boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, limit: int
) -> tuple[Tensor, Tensor]:
    """The same as one operator of an exported program, in which its many steps would have to be written out."""
    return _take_one_by_one(boxes, scores, labels, sigma, limit)


@soft_nms_as_operator.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, limit: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], min(limit, scores.shape[1]))
    return scores.new_empty(shape), labels.new_empty(shape)


def _take_one_by_one(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, limit: int) -> tuple[Tensor, Tensor]:
    left = scores.clone()
    taken_scores, taken = [], []
    for _ in range(min(limit, scores.shape[1])):
        score, index = left.max(dim=1, keepdim=True)
        box = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        overlap = pairwise_iou(box, boxes)[:, 0] * (labels == labels.gather(1, index))
        # Scores of 0 or less only come nearer to 0, from below.
        left = (left * torch.exp(-overlap.square() / sigma)).scatter(1, index, -torch.inf)
        taken_scores.append(score)
        taken.append(index)
    if not taken:
        return scores[:, :0], labels[:, :0]
    return torch.cat(taken_scores, dim=1), torch.cat(taken, dim=1)
