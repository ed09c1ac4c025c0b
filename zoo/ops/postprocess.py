"""Candidates -> Prediction: threshold, top-k, NMS by class."""

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

WORTH_SHARING = 4000
"""Boxes of a batch from which on threads gain more than they cost."""

WORTH_GROUPING = 40
"""Mean boxes of a group from which on one NMS a group beats one NMS of all, groups moved apart (CPU)."""


@dataclass
class Candidates:
    """(anchor, class) pairs of a batch that may be detections, in the order of their images."""

    image: Int64[Tensor, "k"]
    anchor: Int64[Tensor, "k"]
    label: Int64[Tensor, "k"]
    logit: Float[Tensor, "k"]


def top_candidates(logits: Float[Tensor, "B N C"], threshold: float, limit: int) -> Candidates:
    """The (anchor, class) pairs whose sigmoid is above the threshold, of each image the surest `limit`.

    The threshold is put to the logits, so no sigmoid is taken of the many below it, and the whole batch is searched
    at once: first for anchors with any class above the threshold, which are few, then for their classes.
    """
    threshold_logit = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    image, anchor = (logits.amax(dim=2) > threshold_logit).nonzero(as_tuple=True)
    of_anchors = logits[image, anchor]
    row, label = (of_anchors > threshold_logit).nonzero(as_tuple=True)
    found = Candidates(image[row], anchor[row], label, upcast(of_anchors[row, label]))
    counts = count_per_image(found.image, len(logits))
    # An exported program cannot ask, and has them sorted each time.
    if not torch.compiler.is_exporting() and max(counts) <= limit:
        return found
    starts = [0, *accumulate(counts)]
    surest = torch.cat(
        [
            start + part.topk(min(limit, part.shape[0])).indices
            for start, part in zip(starts, found.logit.split(counts), strict=False)
        ]
    )
    return Candidates(found.image[surest], found.anchor[surest], found.label[surest], found.logit[surest])


def count_per_image(image: Int64[Tensor, "k"], num_images: int) -> list[int]:
    """How many of the rows are of each image. One image has them all, and nothing is read back."""
    if num_images == 1:
        return [image.shape[0]]
    return torch.bincount(image, minlength=num_images).tolist()


def split_by_image(
    tables: tuple[Tensor, Tensor, Tensor], image: Int64[Tensor, "k"], num_images: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Three tables of k rows, each row of some image -> their rows image by image, in the order they had."""
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
    """Of each image: greedy NMS within each class, the surest `limit` kept."""
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
    """Of each image, the indices that greedy NMS within each group keeps, surest first; never a box without area.

    torchvision's NMS works on one core, so on a CPU a larger batch is shared out over the cores.
    """
    images = list(zip(boxes, scores, groups, strict=True))
    if torch.compiler.is_exporting():
        return [group_nms(*image, iou_threshold) for image in images]

    def keep(image: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return _nms_of_image(*image, iou_threshold)

    if torch.get_num_threads() == 1 or not boxes[0].is_cpu or sum(map(len, scores)) < WORTH_SHARING:
        return [keep(image) for image in images]
    return list(_pool(torch.get_num_threads()).map(keep, images))


def _nms_of_image(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    has_area = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
    boxes, scores, groups = boxes[has_area], scores[has_area], groups[has_area]
    if not boxes.is_cpu:
        return has_area[batched_nms(boxes, scores, groups, iou_threshold)]
    counts = [count for count in torch.bincount(groups).tolist() if count]
    if len(boxes) <= WORTH_GROUPING * len(counts):
        return has_area[batched_nms(boxes, scores, groups, iou_threshold)]
    order = groups.argsort()
    starts = [0, *accumulate(counts)]
    by_group = zip(starts, boxes[order].split(counts), scores[order].split(counts), strict=False)
    kept = order[torch.cat([start + nms(boxes, scores, iou_threshold) for start, boxes, scores in by_group])]
    return has_area[kept[scores[kept].argsort(descending=True)]]


@torch.library.custom_op("zoo::group_nms", mutates_args=())
def group_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`_nms_of_image` as one operator of an exported program: how many it keeps hangs on the data, and its way too."""
    return _nms_of_image(boxes, scores, groups, iou_threshold)


@group_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return groups.new_empty(num_kept)


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


# The threads of a pool do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
