"""PASCAL VOC's average precision, 11-point (2007) and all-point (from 2010), vectorised over columns.

Follows the VOC development kit (Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010,
section 4.2; `VOCevaldet.m` of the 2007 and 2012 kits), for each class:

- detections of all images are processed by falling score; equal scores in the given order;
- a detection is matched only to the object of its class and image that it overlaps most (the first of equals), if
  their IoU is 0.5 or more;
- the first detection matched to an object is correct, each later one is wrong, even if another object would be free;
- an object marked difficult (or crowd, which VOC does not have) is not a positive, and detections matched to it do not
  count;
- VOC07 is the mean of the best precision at a recall of at least 0, 0.1, ..., 1; VOC10 is the area under the monotone
  hull of precision. Both are means over the classes with at least one positive.

Boxes are continuous edges, which include VOC's "+ 1". Recall is compared with k / 10 in integers, since 0.1 * 3 in
floating point is above the recall 3 / 10.

Legend:
    D  detections      T  objects      C  classes      P  pairs of a detection and an object of its image and class
    H  correct detections of a class
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from zoo.evaluation.ground_truth import GroundTruth

IOU_THRESHOLD = 0.5
UNDEFINED = -1.0  # AP of a class without positives, as in pycocotools


@dataclass(frozen=True, eq=False)
class VocScores:
    """Average precisions by class; -1 for a class without positives."""

    voc07: Float[np.ndarray, " C"]
    voc10: Float[np.ndarray, " C"]


def evaluate_voc(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, " D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
) -> VocScores:
    """Evaluate detections by both of VOC's protocols.

    Args:
        ground_truth: of all images.
        image_index: index of each detection's image in `ground_truth.image_ids`; detections are in canonical order
            (see `zoo.evaluation.scores`).
        boxes: xyxy in pixels.
        scores: any finite numbers, higher is more confident.
        labels: 0 .. C - 1.
    """
    num_classes = len(ground_truth.classes)
    is_positive = ~(ground_truth.difficult | ground_truth.iscrowd)
    num_objects = np.bincount(ground_truth.labels[is_positive], minlength=num_classes)
    matched = match_to_objects(ground_truth, image_index, boxes, labels)

    # detections matched to a difficult or crowd object do not count
    counts = np.ones(len(scores), dtype=bool)
    is_matched = matched >= 0
    counts[is_matched] = is_positive[matched[is_matched]]
    counted = np.flatnonzero(counts)
    # Two stable sorts by one key each are much faster than one by two keys: numpy radix-sorts 16-bit integers.
    by_score = counted[np.argsort(-scores[counted], kind="stable")]
    narrow = labels[by_score].astype(np.uint16 if num_classes <= 2**16 else np.int64)
    order = by_score[np.argsort(narrow, kind="stable")]

    # the first detection of each object in this order is correct
    matched_in_order = matched[order]
    ranks_matched = np.flatnonzero(matched_in_order >= 0)
    _, first = np.unique(matched_in_order[ranks_matched], return_index=True)
    hits = np.sort(ranks_matched[first])

    starts = np.searchsorted(labels[order], np.arange(num_classes + 1))
    hit_starts = np.searchsorted(hits, starts)
    voc07 = np.full(num_classes, UNDEFINED)
    voc10 = np.full(num_classes, UNDEFINED)
    for c in np.flatnonzero(num_objects):
        ranks = hits[hit_starts[c] : hit_starts[c + 1]] - starts[c] + 1
        voc07[c], voc10[c] = average_precisions(ranks, int(num_objects[c]))
    return VocScores(voc07, voc10)


def match_to_objects(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, " D"],
    boxes: Float[np.ndarray, "D 4"],
    labels: Int64[np.ndarray, " D"],
) -> Int64[np.ndarray, " D"]:
    """Index of the object that each detection overlaps most, or -1 where no IoU in its image and class reaches 0.5."""
    num_classes = max(len(ground_truth.classes), 1)
    matched = np.full(len(labels), -1, dtype=np.int64)
    # a stable sort by image and class, which keeps the given order within them
    object_groups = ground_truth.image_index * num_classes + ground_truth.labels
    objects = np.argsort(object_groups, kind="stable")
    object_groups = object_groups[objects]
    groups = image_index * num_classes + labels
    group_ids, group_starts, group_counts = np.unique(object_groups, return_index=True, return_counts=True)
    if len(group_ids) == 0:
        return matched
    group = np.searchsorted(group_ids, groups)
    group[group == len(group_ids)] = 0
    rows = np.flatnonzero(group_ids[group] == groups)  # detections with any object of their image and class
    if len(rows) == 0:
        return matched

    num_pairs = group_counts[group[rows]]
    pair_starts = np.cumsum(num_pairs) - num_pairs
    within = np.arange(num_pairs.sum()) - np.repeat(pair_starts, num_pairs)
    pair_objects = objects[np.repeat(group_starts[group[rows]], num_pairs) + within]
    iou = _iou(boxes[np.repeat(rows, num_pairs)], ground_truth.boxes[pair_objects])

    best = np.maximum.reduceat(iou, pair_starts)
    is_best = iou == np.repeat(best, num_pairs)
    first_best = np.minimum.reduceat(np.where(is_best, np.arange(len(iou)), len(iou)), pair_starts)
    enough = best >= IOU_THRESHOLD
    matched[rows[enough]] = pair_objects[first_best[enough]]
    return matched


def average_precisions(ranks: Int64[np.ndarray, " H"], num_objects: int) -> tuple[float, float]:
    """VOC07 and VOC10 of one class from the ranks of its correct detections.

    Recall rises, and precision has its maxima, only at correct detections, so wrong ones matter only through the gaps
    that they leave in `ranks`.

    Args:
        ranks: rank of each correct detection among all counted ones by falling score, from 1.
        num_objects: number of positives, at least one.
    """
    precision = np.arange(1, len(ranks) + 1) / ranks
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    tenths = np.arange(11)
    needed = np.maximum(-(-tenths * num_objects // 10), 1)  # hits for a recall of k / 10; at least one for k = 0
    reached = needed <= len(ranks)
    return float(hull[needed[reached] - 1].sum() / 11), float(hull.sum() / num_objects)


def _iou(boxes: Float[np.ndarray, "P 4"], others: Float[np.ndarray, "P 4"]) -> Float[np.ndarray, " P"]:
    """IoU of paired boxes in f64; 0 where both boxes have no area."""
    ax1, ay1, ax2, ay2 = boxes.T.astype(np.float64)
    bx1, by1, bx2, by2 = np.ascontiguousarray(others.T)
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
