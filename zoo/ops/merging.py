"""Greedy merging of overlapping detections (OverFeat, arXiv 1312.6229, section 4.3), an alternative to NMS.

    while the best matching pair of boxes of a class has a match score of at most t:
        replace the two by one box, their average, with the sum of their class scores

The paper's match score is "the sum of the distance between centers of the two bounding boxes and the intersection area
of the boxes", without units. Here it is the distance between the centres, relative to the diagonal of the smallest box
around both, plus 1 - IoU: 0 for equal boxes, at most 2. Other deviations: the average is weighted by the class scores,
since windows with scores near 0 are merged, too; each class is merged by itself, from its highest-scoring windows
(paper: all classes together, of windows of the top k classes of their scale). A sum of scores S is reported as
S / (1 + S), which is below 1 and keeps the order.

Legend: B images, C classes, N windows of an image, G groups of boxes to merge (of an image and class), n boxes of each.
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
    num_images, num_windows, num_classes = scores.shape
    device = scores.device
    usable = torch.where((scores > score_threshold) & mask[..., None], scores, 0.0).mT.flatten(0, 1)
    top, index = usable.topk(min(MAX_BOXES, num_windows), dim=1)
    candidates = boxes.repeat_interleave(num_classes, dim=0).gather(1, index[..., None].expand(-1, -1, 4))
    # On the CPU, since each round waits for its result.
    merged, sums = (part.to(device) for part in merge_greedily(candidates.cpu(), top.cpu(), MAX_MATCH))
    found = (sums / (1 + sums)).view(num_images, -1)
    labels = torch.arange(num_classes, device=sums.device).repeat_interleave(top.shape[1])
    best, order = found.topk(min(limit, found.shape[1]), dim=1)
    return [
        Prediction(boxes=of_image[which[kept]], scores=values[kept], labels=labels[which[kept]])
        for of_image, values, which, kept in zip(merged.view(num_images, -1, 4), best, order, best > 0, strict=True)
    ]


def merge_greedily(
    boxes: Float[Tensor, "G n 4"], scores: Float[Tensor, "G n"], max_match: float
) -> tuple[Float[Tensor, "G n 4"], Float[Tensor, "G n"]]:
    """Merged boxes of each group and the sums of their scores.

    All groups are merged at once, one pair of each in a round.

    Args:
        boxes: of all groups.
        scores: above 0; 0 for empty places, in the arguments and in the result.
        max_match: t.
    """
    boxes, scores = boxes.clone(), scores.clone()
    places = torch.arange(boxes.shape[1], device=boxes.device)
    matches = match_scores(boxes, boxes).masked_fill(places[:, None] == places, torch.inf)
    matches = matches.masked_fill(((scores == 0)[:, :, None] | (scores == 0)[:, None]), torch.inf)
    groups = torch.arange(len(boxes), device=boxes.device)
    while len(groups):
        best, pair = matches.flatten(1).min(dim=1)
        going_on = best <= max_match
        if not bool(going_on.all()):
            groups, matches, pair = groups[going_on], matches[going_on], pair[going_on]
            continue
        first, second = pair // len(places), pair % len(places)
        first, second = torch.minimum(first, second), torch.maximum(first, second)
        weights = scores[groups, first], scores[groups, second]
        total = weights[0] + weights[1]
        one, other = boxes[groups, first] * weights[0][:, None], boxes[groups, second] * weights[1][:, None]
        boxes[groups, first] = (one + other) / total[:, None]
        scores[groups, first], scores[groups, second] = total, torch.zeros_like(total)
        rows = torch.arange(len(groups), device=boxes.device)
        row = match_scores(boxes[groups, first][:, None], boxes[groups])[:, 0]
        row = row.masked_fill((scores[groups] == 0) | (places == first[:, None]), torch.inf)
        matches[rows, first], matches[rows, :, first] = row, row
        matches[rows, second], matches[rows, :, second] = torch.inf, torch.inf
    return boxes, scores


def match_scores(boxes1: Float[Tensor, "G n 4"], boxes2: Float[Tensor, "G m 4"]) -> Float[Tensor, "G n m"]:
    """Match score of every pair: distance of the centres / diagonal of the box around both + 1 - IoU."""
    first, second = boxes1[:, :, None], boxes2[:, None]
    offsets = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    hull = first[..., 2:].maximum(second[..., 2:]) - first[..., :2].minimum(second[..., :2])
    return offsets.norm(dim=-1) / hull.norm(dim=-1).clamp(min=1e-6) + 1 - pairwise_iou(boxes1, boxes2)
