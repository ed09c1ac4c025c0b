"""From class logits to predictions: score threshold, top-k, NMS by class."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms, nms

from zoo.ops.precision import upcast
from zoo.types import Prediction

MIN_BOXES_FOR_THREADS = 4000
"""Number of boxes in a batch from which on threads are faster than one thread."""

MIN_GROUP_SIZE_FOR_SPLIT = 40
"""Mean number of boxes of a group from which on one NMS for each group is faster than `batched_nms` (CPU)."""


@dataclass
class Candidates:
    """(anchor, class) pairs of a batch that may be detections, sorted by image."""

    image: Int64[Tensor, "k"]
    anchor: Int64[Tensor, "k"]
    label: Int64[Tensor, "k"]
    logit: Float[Tensor, "k"]


def top_candidates(logits: Float[Tensor, "B N C"], threshold: float, limit: int) -> Candidates:
    """(anchor, class) pairs with a sigmoid score above the threshold; the `limit` highest-scoring of each image.

    The threshold is converted to a logit, so no sigmoid of the many lower logits is needed, and the whole batch is
    searched at once: first for anchors with any class above the threshold, which are few, then for their classes.
    """
    threshold_logit = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    image, anchor = (logits.amax(dim=2) > threshold_logit).nonzero(as_tuple=True)
    of_anchors = logits[image, anchor]
    row, label = (of_anchors > threshold_logit).nonzero(as_tuple=True)
    found = Candidates(image[row], anchor[row], label, upcast(of_anchors[row, label]))
    counts = count_per_image(found.image, len(logits))
    # An exported program cannot branch on the counts, so it always sorts.
    if not torch.compiler.is_exporting() and max(counts) <= limit:
        return found
    starts = [0, *accumulate(counts)]
    top = torch.cat(
        [
            start + part.topk(min(limit, part.shape[0])).indices
            for start, part in zip(starts, found.logit.split(counts), strict=False)
        ]
    )
    return Candidates(found.image[top], found.anchor[top], found.label[top], found.logit[top])


def count_per_image(image: Int64[Tensor, "k"], num_images: int) -> list[int]:
    """Number of rows of each image. With one image nothing is read back from the device."""
    if num_images == 1:
        return [image.shape[0]]
    return torch.bincount(image, minlength=num_images).tolist()


def split_by_image(
    tables: tuple[Tensor, Tensor, Tensor], image: Int64[Tensor, "k"], num_images: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Split three tables of k rows by image; rows of an image keep their order."""
    first, second, third = tables
    if num_images == 1:
        return (first,), (second,), (third,)
    image, order = image.sort(stable=True)
    counts = count_per_image(image, num_images)
    return first[order].split(counts), second[order].split(counts), third[order].split(counts)


def nms_by_class(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    scores: Sequence[Float[Tensor, "_"]],
    labels: Sequence[Int64[Tensor, "_"]],
    iou_threshold: float,
    limit: int,
) -> list[Prediction]:
    """Predictions after greedy NMS within each class, at most `limit` per image, highest score first."""
    kept = nms_in_groups(boxes, scores, labels, iou_threshold)
    return [
        Prediction(boxes=boxes[index[:limit]], scores=scores[index[:limit]], labels=labels[index[:limit]])
        for boxes, scores, labels, index in zip(boxes, scores, labels, kept, strict=True)
    ]


def nms_in_groups(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    scores: Sequence[Float[Tensor, "_"]],
    groups: Sequence[Int64[Tensor, "_"]],
    iou_threshold: float,
) -> list[Int64[Tensor, "_"]]:
    """Indices that greedy NMS within each group keeps in each image, highest score first; never a box without area.

    torchvision's NMS runs on one core, so on a CPU the images of a large batch are distributed over threads.
    """
    images = list(zip(boxes, scores, groups, strict=True))
    if torch.compiler.is_exporting():
        return [group_nms(*image, iou_threshold) for image in images]

    def keep(image: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return _nms_of_image(*image, iou_threshold)

    if torch.get_num_threads() == 1 or not boxes[0].is_cpu or sum(map(len, scores)) < MIN_BOXES_FOR_THREADS:
        return [keep(image) for image in images]
    return list(_pool(torch.get_num_threads()).map(keep, images))


def _nms_of_image(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    has_area = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
    boxes, scores, groups = boxes[has_area], scores[has_area], groups[has_area]
    if not boxes.is_cpu:
        return has_area[batched_nms(boxes, scores, groups, iou_threshold)]
    counts = [count for count in torch.bincount(groups).tolist() if count]
    if len(boxes) <= MIN_GROUP_SIZE_FOR_SPLIT * len(counts):
        return has_area[batched_nms(boxes, scores, groups, iou_threshold)]
    order = groups.argsort()
    starts = [0, *accumulate(counts)]
    by_group = zip(starts, boxes[order].split(counts), scores[order].split(counts), strict=False)
    kept = order[torch.cat([start + nms(boxes, scores, iou_threshold) for start, boxes, scores in by_group])]
    return has_area[kept[scores[kept].argsort(descending=True)]]


@torch.library.custom_op("zoo::group_nms", mutates_args=())
def group_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`_nms_of_image` as one operator of an exported program: its branches and output size depend on the data."""
    return _nms_of_image(boxes, scores, groups, iou_threshold)


@group_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return groups.new_empty(num_kept)


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


# The threads of a pool do not survive a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
