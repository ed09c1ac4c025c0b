"""From class logits to predictions: score threshold, top-k, NMS by class."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms, nms

from zoo.ops.boxes import pairwise_iou
from zoo.ops.precision import upcast
from zoo.types import Prediction

MIN_BOXES_FOR_THREADS = 4000
"""Number of boxes in a batch from which on threads are faster than one thread."""

MIN_GROUP_SIZE_FOR_SPLIT = 40
"""Mean number of boxes of a group from which on one NMS for each group is faster than `batched_nms` (CPU)."""

MAX_PAIRS = 2**26
"""Number of pairs of boxes that are compared at a time on a GPU: 256 MB for each temporary."""


@dataclass
class Candidates:
    """(anchor, class) pairs of a batch that may be detections, sorted by image."""

    image: Int64[Tensor, " k"]
    anchor: Int64[Tensor, " k"]
    label: Int64[Tensor, " k"]
    logit: Float[Tensor, " k"]


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


def count_per_image(image: Int64[Tensor, " k"], num_images: int) -> list[int]:
    """Number of rows of each image. With one image nothing is read back from the device."""
    if num_images == 1:
        return [image.shape[0]]
    return torch.bincount(image, minlength=num_images).tolist()


def split_by_image(
    tables: tuple[Tensor, Tensor, Tensor], image: Int64[Tensor, " k"], num_images: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Split three tables of k rows by image; rows of an image keep their order."""
    first, second, third = tables
    if num_images == 1:
        return (first,), (second,), (third,)
    image, order = image.sort(stable=True)
    counts = count_per_image(image, num_images)
    return first[order].split(counts), second[order].split(counts), third[order].split(counts)


def select(prediction: Prediction, keep: Tensor) -> Prediction:
    """The detections of a mask or of indices."""
    return cast(Prediction, {key: cast(Tensor, value)[keep] for key, value in prediction.items()})


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


def nms_by_level(
    boxes: Sequence[Float[Tensor, "B _ 4"]],
    scores: Sequence[Float[Tensor, "B _"]],
    iou_threshold: float,
    limit: int,
) -> tuple[Float[Tensor, "B P 4"], Float[Tensor, "B P"]]:
    """The highest-scoring boxes of each image after greedy NMS within each level.

    Args:
        boxes: of each level, in descending order of their scores.
        scores: of these; -inf for boxes that are not to be kept.
        iou_threshold: of NMS.
        limit: number of boxes of an image that are kept at most.

    Returns:
        Boxes in descending order of their scores, with padding, and their scores, -inf for padding.
    """
    one_by_one = boxes[0].is_cpu or torch.compiler.is_exporting()
    return (_nms_image_by_image if one_by_one else _nms_of_all_images)(boxes, scores, iou_threshold, limit)


def _nms_image_by_image(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    levels = torch.cat([torch.full_like(level, number, dtype=torch.int64) for number, level in enumerate(scores)], 1)
    all_boxes, all_scores = torch.cat(list(boxes), 1), torch.cat(list(scores), 1)
    kept = nms_in_groups(list(all_boxes), list(all_scores), list(levels), iou_threshold)
    images = list(zip(all_boxes, all_scores, [index[:limit] for index in kept], strict=True))
    return (
        pad_sequence([boxes[index] for boxes, _, index in images], batch_first=True),
        pad_sequence([scores[index] for _, scores, index in images], batch_first=True, padding_value=-torch.inf),
    )


def _nms_of_all_images(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    kept = [
        level_scores.masked_fill(~nms_of_sorted(level, level_scores.isfinite(), iou_threshold), -torch.inf)
        for level, level_scores in zip(boxes, scores, strict=True)
    ]
    all_boxes, all_scores = torch.cat(list(boxes), 1), torch.cat(kept, 1)
    best, index = all_scores.topk(min(limit, all_scores.shape[1]), dim=1)
    return all_boxes.gather(1, index[..., None].expand(-1, -1, 4)), best


def nms_of_sorted(
    boxes: Float[Tensor, "B N 4"], valid: Bool[Tensor, "B N"], iou_threshold: float
) -> Bool[Tensor, "B N"]:
    """Which boxes greedy NMS keeps in each image; never a box without area. For GPUs.

    torchvision's NMS goes through the boxes one after the other, on one of a GPU's many multiprocessors. Here all boxes
    of all images are decided at once, and again until nothing changes: a box is kept if no box that is kept and has a
    higher score overlaps it. The decision of box i is final after i + 1 passes at the latest, since it depends on
    earlier boxes only; the number of passes is the length of the longest chain of overlapping boxes, about ten.

    Args:
        boxes: in descending order of their scores.
        valid: boxes that take part.
        iou_threshold: above which the earlier box suppresses the later one.
    """
    valid = valid & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    count = boxes.shape[1]
    is_later = torch.ones(count, count, dtype=torch.bool, device=boxes.device).triu(1)
    images = max(1, MAX_PAIRS // max(count**2, 1))
    kept = []
    for part, part_valid in zip(boxes.split(images), valid.split(images), strict=True):
        overlaps = (pairwise_iou(part, part) > iou_threshold) & is_later
        before, now = torch.zeros_like(part_valid), part_valid
        while not torch.equal(before, now):
            before, now = now, part_valid & ~(overlaps & now[..., None]).any(dim=1)
        kept.append(now)
    return torch.cat(kept)


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
