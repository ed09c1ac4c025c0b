"""PASCAL VOC's two average precisions, 11-point (2007) and all-point (2010 on), over whole columns at once.

After the rules of the VOC development kit (Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge",
IJCV 2010, section 4.2; `VOCevaldet.m` of the 2007 and 2012 kits), class by class:

- detections are looked at by falling score, over all images together; equal scores in the order they came in;
- a detection looks only at the object of its class and image that it overlaps most (the first of equals), and
  claims it at an IoU of 0.5 or more;
- the first to claim an object is right, and each later one is wrong, even if another object would have been free;
- an object marked difficult (or crowd, which VOC does not have) neither rewards nor punishes whoever claims it and
  is not among those to be found;
- VOC07 is the mean of the best precision at a recall of at least 0, 0.1, ..., 1; VOC10 is the area under the
  precision's monotone hull. Both are means over the classes that have an object to be found.

Boxes are continuous edges here, which have VOC's "+ 1" already in them. Recall is compared with k / 10 in whole
numbers, since 0.1 * 3 in floating point is above the recall 3 / 10.

Legend:
    D  detections      T  objects      C  classes      P  pairs of a detection and an object that might be meant
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from zoo.evaluation.ground_truth import GroundTruth

IOU_THRESHOLD = 0.5
NOTHING = -1.0  # as pycocotools says it: there was nothing to measure


@dataclass(frozen=True, eq=False)
class VocScores:
    """Average precisions by class; -1 for a class without an object to be found."""

    voc07: Float[np.ndarray, "C"]
    voc10: Float[np.ndarray, "C"]


def evaluate_voc(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, "D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, "D"],
    labels: Int64[np.ndarray, "D"],
) -> VocScores:
    """Measures detections in canonical order (see `zoo.evaluation.scores`) by both of VOC's protocols.

    Args:
        ground_truth: what is true.
        image_index: each detection's image as a place in `ground_truth.image_ids`, never descending.
        boxes: xyxy in pixels.
        scores: any finite numbers, higher is surer.
        labels: 0 .. C - 1.
    """
    num_classes = len(ground_truth.classes)
    unmarked = ~(ground_truth.difficult | ground_truth.iscrowd)
    num_objects = np.bincount(ground_truth.labels[unmarked], minlength=num_classes)
    claimed = match_to_objects(ground_truth, image_index, boxes, labels)

    # a detection on an unmarkable object is no event at all
    counts = np.ones(len(scores), dtype=bool)
    has_claim = claimed >= 0
    counts[has_claim] = unmarked[claimed[has_claim]]
    events = np.flatnonzero(counts)
    # Two stable sorts by one key each are much faster than one by two keys: numpy sorts 16-bit numbers by radix.
    by_score = events[np.argsort(-scores[events], kind="stable")]
    narrow = labels[by_score].astype(np.uint16 if num_classes <= 2**16 else np.int64)
    order = by_score[np.argsort(narrow, kind="stable")]

    # the first event of each object, in this order, is the one that finds it
    claims = claimed[order]
    places = np.flatnonzero(claims >= 0)
    _, first = np.unique(claims[places], return_index=True)
    hits = np.sort(places[first])

    starts = np.searchsorted(labels[order], np.arange(num_classes + 1))
    hit_starts = np.searchsorted(hits, starts)
    voc07 = np.full(num_classes, NOTHING)
    voc10 = np.full(num_classes, NOTHING)
    for c in np.flatnonzero(num_objects):
        ranks = hits[hit_starts[c] : hit_starts[c + 1]] - starts[c] + 1
        voc07[c], voc10[c] = average_precisions(ranks, int(num_objects[c]))
    return VocScores(voc07, voc10)


def match_to_objects(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, "D"],
    boxes: Float[np.ndarray, "D 4"],
    labels: Int64[np.ndarray, "D"],
) -> Int64[np.ndarray, "D"]:
    """Finds for each detection the object that it overlaps most.

    Returns:
        the object's place in `ground_truth`, or -1 where none of the same image and class has an IoU of 0.5.
    """
    num_classes = max(len(ground_truth.classes), 1)
    claimed = np.full(len(labels), -1, dtype=np.int64)
    # objects of one image and class lie together after this stable sort, in their given order
    object_groups = ground_truth.image_index * num_classes + ground_truth.labels
    objects = np.argsort(object_groups, kind="stable")
    object_groups = object_groups[objects]
    groups = image_index * num_classes + labels
    group_ids, group_starts, group_counts = np.unique(object_groups, return_index=True, return_counts=True)
    if len(group_ids) == 0:
        return claimed
    group = np.searchsorted(group_ids, groups)
    group[group == len(group_ids)] = 0
    some = np.flatnonzero(group_ids[group] == groups)  # detections with any object to look at
    if len(some) == 0:
        return claimed

    num_pairs = group_counts[group[some]]
    pair_starts = np.cumsum(num_pairs) - num_pairs
    within = np.arange(num_pairs.sum()) - np.repeat(pair_starts, num_pairs)
    pair_objects = objects[np.repeat(group_starts[group[some]], num_pairs) + within]
    iou = _iou(boxes[np.repeat(some, num_pairs)], ground_truth.boxes[pair_objects])

    best = np.maximum.reduceat(iou, pair_starts)
    is_best = iou == np.repeat(best, num_pairs)
    first_best = np.minimum.reduceat(np.where(is_best, np.arange(len(iou)), len(iou)), pair_starts)
    enough = best >= IOU_THRESHOLD
    claimed[some[enough]] = pair_objects[first_best[enough]]
    return claimed


def average_precisions(ranks: Int64[np.ndarray, "H"], num_objects: int) -> tuple[float, float]:
    """Both average precisions of one class from the places of its right detections.

    Precision is best just at a right detection, and recall rises nowhere else, so the wrong ones count only by
    the gaps that they leave in `ranks`.

    Args:
        ranks: place of each right detection among all that count, by falling score, from 1 up.
        num_objects: objects to be found, at least one.

    Returns:
        VOC07, VOC10.
    """
    precision = np.arange(1, len(ranks) + 1) / ranks
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    tenths = np.arange(11)
    needed = np.maximum(-(-tenths * num_objects // 10), 1)  # hits for a recall of k / 10; a first one for k = 0
    reached = needed <= len(ranks)
    return float(hull[needed[reached] - 1].sum() / 11), float(hull.sum() / num_objects)


def _iou(boxes: Float[np.ndarray, "P 4"], others: Float[np.ndarray, "P 4"]) -> Float[np.ndarray, "P"]:
    """IoU in f64 of boxes pair by pair; 0 where both are without area."""
    ax1, ay1, ax2, ay2 = boxes.T.astype(np.float64)
    bx1, by1, bx2, by2 = np.ascontiguousarray(others.T)
    width = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    height = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
