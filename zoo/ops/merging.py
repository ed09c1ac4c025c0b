"""Greedy merging of overlapping detections (OverFeat, arXiv 1312.6229, section 4.3), an alternative to NMS.

    while the best matching pair of boxes of a class has a match score of at most t:
        replace the two by one box, their average, with the sum of their class scores

The paper's match score is "the sum of the distance between centers of the two bounding boxes and the intersection area
of the boxes", without units. Here it is the distance between the centres, relative to the diagonal of the smallest box
around both, plus 1 - IoU: 0 for equal boxes, at most 2. The average is weighted by the class scores (paper: not
weighted), since windows with scores near 0 are merged, too. A sum of scores S is reported as S / (1 + S), which is
below 1 and keeps the order.

Legend: B images, N windows of an image, n boxes of one class.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.ops.boxes import pairwise_iou
from zoo.types import Prediction

MAX_MATCH = 0.5
"""t: boxes are merged up to this match score; about IoU 0.6."""

MAX_BOXES = 100
"""Highest-scoring boxes of an image and class that are merged; each round compares all pairs."""


def merge_by_class(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N C"],
    mask: Bool[Tensor, "B N"],
    score_threshold: float,
    limit: int,
) -> list[Prediction]:
    """Predictions after greedy merging within each class, at most `limit` per image, highest score first.

    Args:
        boxes: of every window.
        scores: of every window and class.
        mask: windows that are used.
        score_threshold: lower scores are left out.
        limit: boxes per image.
    """
    predictions = []
    for boxes_per_image, scores_per_image, used in zip(boxes, scores, mask, strict=True):
        merged = []
        for label, class_scores in enumerate(scores_per_image.unbind(dim=1)):
            index = ((class_scores > score_threshold) & used).nonzero()[:, 0]
            index = index[class_scores[index].argsort(descending=True, stable=True)[:MAX_BOXES]]
            found, sums = merge_greedily(boxes_per_image[index], class_scores[index], MAX_MATCH)
            merged.append((found, sums / (1 + sums), torch.full_like(sums, label, dtype=torch.int64)))
        all_boxes, all_scores, labels = (torch.cat(parts) for parts in zip(*merged, strict=True))
        top = all_scores.argsort(descending=True, stable=True)[:limit]
        predictions.append(Prediction(boxes=all_boxes[top], scores=all_scores[top], labels=labels[top]))
    return predictions


def merge_greedily(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], max_match: float
) -> tuple[Float[Tensor, "_ 4"], Float[Tensor, "_"]]:
    """Merged boxes of one class and the sums of their scores; the given tensors are not changed."""
    boxes, scores = boxes.clone(), scores.clone()
    kept = torch.ones_like(scores, dtype=torch.bool)
    scores_of_pairs = match_scores(boxes, boxes).fill_diagonal_(torch.inf)
    for _ in range(len(boxes) - 1):
        first, second = sorted(divmod(int(scores_of_pairs.argmin()), len(boxes)))
        if scores_of_pairs[first, second] > max_match:
            break
        pair = [first, second]
        boxes[first] = (boxes[pair] * scores[pair, None]).sum(dim=0) / scores[pair].sum()
        scores[first] += scores[second]
        kept[second] = False
        row = match_scores(boxes[first : first + 1], boxes)[0].masked_fill(~kept, torch.inf)
        row[first] = torch.inf
        scores_of_pairs[first] = scores_of_pairs[:, first] = row
        scores_of_pairs[second] = scores_of_pairs[:, second] = torch.inf
    return boxes[kept], scores[kept]


def match_scores(boxes1: Float[Tensor, "n 4"], boxes2: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Match score of every pair: distance of the centres / diagonal of the box around both + 1 - IoU."""
    first, second = boxes1[:, None], boxes2[None]
    offsets = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    hull = first[..., 2:].maximum(second[..., 2:]) - first[..., :2].minimum(second[..., :2])
    return offsets.norm(dim=-1) / hull.norm(dim=-1).clamp(min=1e-6) + 1 - pairwise_iou(boxes1, boxes2)
