"""AP of a set that holds each image so and so often, from matches that were made once.

Legend:
    N  images      C  classes      B  sets
"""

import numpy as np
from jaxtyping import Float, Int64, Num

from zoo.evaluation.matches import AREA_RANGES, IOU_THRESHOLDS, Matches

RECALLS = np.linspace(0, 1, 101)


def average_precisions(matches: Matches, weights: Int64[np.ndarray, "B N"]) -> Float[np.ndarray, "B C 4 10"]:
    """AP of each class, range of area and IoU threshold in sets that hold each image so and so often.

    COCO's 101-point AP (`COCOeval.accumulate`): the mean over recalls 0, .01, ..., 1 of the best precision from the
    first detection on that reaches the recall. Only true positives raise recall, so only they are looked at.

    Args:
        matches: of one run.
        weights: how often each image is in each of B sets.

    Returns:
        what COCO's protocol says of each set; NaN where it holds nothing to be found.
    """
    curve = matches.hit_curves
    objects = _sum_groups(weights.take(matches.object_images, axis=1), matches.object_offsets)

    # of each true positive: how many, and how many detections that count, its curve has had with it
    hit = _running_sum(weights.take(matches.hit_images, axis=1))
    hits = hit[:, 1:] - hit.take(matches.hit_offsets[:-1], axis=1).take(curve, axis=1)
    inside = _running_sum(weights.take(matches.inside_images, axis=1))
    odd = _running_sum(weights.take(matches.odd_images, axis=1) * matches.odd_signs)
    before = np.repeat(inside.take(matches.inside_offsets[:-1], axis=1), len(IOU_THRESHOLDS), axis=1)
    before += odd.take(matches.odd_offsets[:-1], axis=1)
    counted = inside.take(matches.hit_inside, axis=1) + odd.take(matches.hit_odd, axis=1) - before.take(curve, axis=1)

    # the best precision from here on: one maximum over all curves, of which each lies 2 above the one behind it
    height = -2.0 * curve
    precision = hits / np.maximum(counted, 1) + height
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1] - height

    # how many of the 101 recalls are reached here: floating-point numbers compared with the same ones as in pycocotools
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
    """Sum of the first 0, 1, 2, ... values: one more than there are values."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _sum_groups(values: Num[np.ndarray, "B rows"], offsets: Int64[np.ndarray, "offsets"]) -> Num[np.ndarray, "B sums"]:
    """Sum of the values from each offset to the next; 0 where there are none."""
    sums = np.zeros((len(values), len(offsets) - 1), values.dtype)
    some = np.flatnonzero(np.diff(offsets))
    if len(some):
        sums[:, some] = np.add.reduceat(values, offsets[some], axis=1)
    return sums
