"""COCO's AP of sets in which images have weights, from precomputed matches.

Legend:
    N  images      C  classes      B  weighted sets
"""

import numpy as np
from jaxtyping import Float, Int64, Num

from zoo.evaluation.matches import AREA_RANGES, IOU_THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)


def average_precisions(matches: Matches, weights: Int64[np.ndarray, "B N"]) -> Float[np.ndarray, "B C 4 10"]:
    """AP of each class, area range and IoU threshold in sets with weighted images.

    COCO's 101-point AP (`COCOeval.accumulate`): the mean over recalls 0, .01, ..., 1 of the best precision from the
    first detection on that reaches the recall. Recall rises at true positives only, so only these are visited.

    Args:
        matches: of one run.
        weights: number of copies of each image in each set.

    Returns:
        AP as in COCO's protocol; NaN where a set has no object of the class and range.
    """
    curve = matches.hit_curves
    objects = _sum_groups(weights.take(matches.object_images, axis=1), matches.object_offsets)

    # for each true positive: the number of true positives and of counted detections of its curve up to it
    hit = _running_sum(weights.take(matches.hit_images, axis=1))
    hits = hit[:, 1:] - hit.take(matches.hit_offsets[:-1], axis=1).take(curve, axis=1)
    inside = _running_sum(weights.take(matches.inside_images, axis=1))
    exceptions = _running_sum(weights.take(matches.exception_images, axis=1) * matches.exception_signs)
    before = np.repeat(inside.take(matches.inside_offsets[:-1], axis=1), len(IOU_THRESHOLDS), axis=1)
    before += exceptions.take(matches.exception_offsets[:-1], axis=1)
    counted = inside.take(matches.hit_inside, axis=1) + exceptions.take(matches.hit_exceptions, axis=1)
    counted -= before.take(curve, axis=1)

    # the best precision from each true positive on: a single running maximum over all curves, in which each curve is
    # shifted to lie 2 above the next one, so that later curves do not affect it
    shift = -2.0 * curve
    precision = hits / np.maximum(counted, 1) + shift
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1] - shift

    # how many of the 101 recalls are reached: compared in floating point with the same values as in pycocotools
    recall = hits / np.maximum(objects, 1).take(curve // len(IOU_THRESHOLDS), axis=1)
    nearest = np.rint(recall * (len(RECALLS) - 1)).astype(np.int64)
    reached = nearest + (RECALLS.take(nearest) <= recall)
    newly = np.diff(reached, axis=1, prepend=0)
    first = matches.hit_offsets[:-1][np.diff(matches.hit_offsets) > 0]
    newly[:, first] = reached[:, first]

    ap = _sum_groups(best * newly, matches.hit_offsets) / len(RECALLS)
    ap = ap.reshape(len(weights), -1, len(AREA_RANGES), len(IOU_THRESHOLDS))
    return np.where(objects.reshape(len(weights), -1, len(AREA_RANGES), 1) > 0, ap, np.nan)


def _running_sum(values: Int64[np.ndarray, "B rows"]) -> Int64[np.ndarray, "B sums"]:
    """Sums of the first 0, 1, 2, ... values along axis 1; one more than there are values."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _sum_groups(values: Num[np.ndarray, "B rows"], offsets: Int64[np.ndarray, " offsets"]) -> Num[np.ndarray, "B sums"]:
    """Sum of the values from each offset to the next; 0 for an empty group."""
    sums = np.zeros((len(values), len(offsets) - 1), values.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[:, filled] = np.add.reduceat(values, offsets[filled], axis=1)
    return sums
