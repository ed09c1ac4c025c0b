"""Soft-NMS (Bodla et al., arXiv 1704.04503): overlapping detections have their scores reduced, not removed.

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
    """The `limit` highest-scoring detections of each image after gaussian soft-NMS, equation 3, within each class.

    Each step takes the highest-scoring candidate and multiplies the scores of the remaining ones of its class by
    exp(-IoU^2 / sigma). Scores never rise, so the first `limit` candidates taken have the highest final scores, and
    `limit` steps suffice; each step handles all images at once.

    Args:
        boxes: candidates.
        scores: 0..1; padding has a score of 0 or less, which stays 0 or less.
        labels: class of each candidate.
        sigma: width of the gaussian; a larger one reduces scores less.
        limit: maximum number of detections.

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
    """`soft_nms` as one operator of an exported program, which would otherwise unroll its steps."""
    return _take_one_by_one(boxes, scores, labels, sigma, limit)


@soft_nms_as_operator.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, limit: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], min(limit, scores.shape[1]))
    return scores.new_empty(shape), labels.new_empty(shape)


def _take_one_by_one(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float, limit: int) -> tuple[Tensor, Tensor]:
    remaining = scores.clone()
    taken_scores, taken = [], []
    for _ in range(min(limit, scores.shape[1])):
        score, index = remaining.max(dim=1, keepdim=True)
        box = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        overlap = pairwise_iou(box, boxes)[:, 0] * (labels == labels.gather(1, index))
        # Scores of 0 or less stay 0 or less.
        remaining = (remaining * torch.exp(-overlap.square() / sigma)).scatter(1, index, -torch.inf)
        taken_scores.append(score)
        taken.append(index)
    if not taken:
        return scores[:, :0], labels[:, :0]
    return torch.cat(taken_scores, dim=1), torch.cat(taken, dim=1)
