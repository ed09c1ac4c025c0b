"""Candidates -> Prediction: threshold, top-k, NMS by class."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms

from zoo.ops.precision import widen
from zoo.types import Prediction


def top_candidates(
    logits: Float[Tensor, "B N C"], threshold: float, limit: int
) -> list[tuple[Int64[Tensor, "k"], Int64[Tensor, "k"], Float[Tensor, "k"]]]:
    """For each image, the (anchor, class, logit) whose sigmoid is above threshold, at most `limit`, surest first.

    The threshold is put to the logits, so the sigmoid is taken of the survivors alone, and the whole batch is
    searched at once.
    """
    threshold_logit = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    num_classes = logits.shape[2]
    image, flat = (logits.flatten(1) > threshold_logit).nonzero(as_tuple=True)
    counts = torch.bincount(image, minlength=len(logits)).tolist()
    candidates = []
    for image_logits, index in zip(logits.flatten(1), flat.split(counts), strict=True):
        values = widen(image_logits[index])
        values, order = values.topk(min(limit, len(values))) if len(values) > limit else values.sort(descending=True)
        index = index[order]
        candidates.append((index // num_classes, index % num_classes, values))
    return candidates


def nms_by_class(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, "N"],
    labels: Int64[Tensor, "N"],
    iou_threshold: float,
    limit: int,
) -> Prediction:
    """Greedy NMS within each class, the surest `limit` kept; boxes without area are dropped first."""
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores, labels = boxes[has_area], scores[has_area], labels[has_area]
    keep = batched_nms(boxes, scores, labels, iou_threshold)[:limit]
    return Prediction(boxes=boxes[keep], scores=scores[keep], labels=labels[keep])
