"""TIDE error analysis: the loss of AP by each of six error types.

Follows Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv 2008.08115),
section 2, and reproduces the values of its authors' package `tidecv` 1.0.1 exactly. hotcoco's `tide_errors` starts from
COCO's matching instead, and its values differ from tidecv's by some hundredths where there are crowd regions, equal
scores or more than a hundred detections in an image, and by thousandths elsewhere: it requires a recall of
np.linspace(0, 1, 101), some of which are above k / 100 by their last bit.

A detection is correct if it is matched to an object: in each image the 100 highest-scoring detections of all classes
together, by falling score, take the unmatched object of their class that they overlap most, at an IoU of 0.5. Each
detection that is not correct has one error, the first of these that applies:

    Loc   overlaps an object of its class by 0.1 to 0.5
    Cls   overlaps an object of another class by 0.5 or more
    Dupe  overlaps an object of its class by more than 0.5, which is matched to a higher-scoring detection
    Bkg   overlaps nothing by more than 0.1
    Both  the rest: overlaps an object of another class by 0.1 to 0.5

and each unmatched object that is not the target of a detection with Loc or Cls is a Miss error.

The loss of an error is the AP at IoU 0.5 with the error fixed minus the actual AP. Fixing Loc and Cls makes the
highest-scoring detection with the same unmatched target correct and removes the others; fixing Dupe, Bkg and Both
removes the detection, Miss the object. Each is fixed alone, so the losses do not add up to 1 - AP.

Details of tidecv that differ from COCO's protocol:

- 100 detections of each image, where COCO uses 100 of each image and class.
- The mean is over classes with an object or a detection; the AP of a class with detections but no objects is 0.
- A detection in a crowd region of its class (more than half of it) does not count; but it may be fixed if another
  class or a better box would make it correct.
- Among equal scores, wrong detections come first as soon as anything is fixed.

VOC's `difficult` is ignored, as in COCO's protocol.

Legend:
    N  images      T  objects      D  detections, by image and falling score      C  classes
    P  pairs of a detection and an object of its image with an IoU of at least 0.1
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco.primitives import bbox_iou, mask_iou
from jaxtyping import Bool, Float, Int64

from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import order_detections, order_masks

POSITIVE_IOU = 0.5
BACKGROUND_IOU = 0.1
MAX_DETECTIONS = 100  # of an image

_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")


def tide_errors(ground_truth: GroundTruth, predictions: Predictions, by_masks: bool = False) -> dict[str, float]:
    """Loss of AP by error type.

    Args:
        ground_truth: of all images.
        predictions: of the same images.
        by_masks: compare masks instead of boxes.

    Returns:
        Loss of AP at IoU 0.5, in 0..1, by "Cls" "Loc" "Both" "Dupe" "Bkg" "Miss", and by "FP" (all wrong detections
        ranked behind the correct ones) and "FN" (all unmatched objects removed); empty if there are no objects.
        Without detections the loss by Miss and by FN is 1.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    if by_masks:
        ground_truth = ground_truth.for_masks()
    if ground_truth.iscrowd.all():
        return {}
    found = _classify_detections(ground_truth, predictions, by_masks)
    is_positive = ~ground_truth.iscrowd
    num_objects = _count_by_class(ground_truth, is_positive)
    order = np.argsort(-found.scores, kind="stable")
    order = order[~found.in_crowd[order]]
    base = mean_average_precision(found.labels[order], found.correct[order], num_objects)

    wrong_first = np.lexsort((found.correct, -found.scores))  # by falling score, of equal scores the wrong ones first
    errors = {}
    for kind, name in enumerate(_KINDS):
        fixed = found.kind == kind
        correct = found.correct | (fixed & (found.fix_target >= 0))
        labels = np.where(fixed & correct, ground_truth.labels[found.fix_target], found.labels)
        kept = correct | ~(fixed | found.in_crowd)
        rows = wrong_first[kept[wrong_first]]
        errors[name] = max(mean_average_precision(labels[rows], correct[rows], num_objects) - base, 0.0)

    rows = wrong_first[~found.in_crowd[wrong_first]]
    labels, correct = found.labels[rows], found.correct[rows]
    unmatched = is_positive & ~found.matched
    missed = unmatched.copy()
    missed[found.fix_target[found.fix_target >= 0]] = False
    num_not_missed, num_matched = (num_objects - _count_by_class(ground_truth, part) for part in (missed, unmatched))
    errors["Miss"] = max(mean_average_precision(labels, correct, num_not_missed) - base, 0.0)
    correct_first = np.argsort(~correct, kind="stable")
    errors["FP"] = mean_average_precision(labels[correct_first], correct[correct_first], num_objects) - base
    errors["FN"] = mean_average_precision(labels, correct, num_matched) - base
    return errors


def _count_by_class(ground_truth: GroundTruth, selected: Bool[np.ndarray, " T"]) -> Int64[np.ndarray, " C"]:
    """Number of selected objects of each class."""
    return np.bincount(ground_truth.labels[selected], minlength=len(ground_truth.classes))


def mean_average_precision(
    labels: Int64[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"], num_objects: Int64[np.ndarray, " C"]
) -> float:
    """Mean over classes of the 101-point AP, as in tidecv.

    Args:
        labels: class of each detection, by falling score.
        correct: whether it is a true positive.
        num_objects: number of positives of each class.

    Returns:
        AP in 0..1. A class with detections but no objects has AP 0, a class with neither is left out; 1 if there is
        no other class.
    """
    num_classes = len(num_objects)
    num_detections = np.bincount(labels, minlength=num_classes)
    # numpy radix-sorts 16-bit integers
    order = np.argsort(labels.astype(np.uint16 if num_classes <= 2**16 else np.int64), kind="stable")
    starts = np.cumsum(num_detections) - num_detections
    hits = np.flatnonzero(correct[order])
    hit_starts = np.searchsorted(hits, np.append(starts, len(labels)))
    classes = np.flatnonzero(num_detections + num_objects)
    if len(classes) == 0:
        return 1.0
    total = 0.0
    for c in classes[num_objects[classes] > 0]:
        ranks = hits[hit_starts[c] : hit_starts[c + 1]] - starts[c] + 1
        hull = np.maximum.accumulate((np.arange(1, len(ranks) + 1) / ranks)[::-1])[::-1]
        # hits for a recall of k / 100, in integers; at least one for k = 0
        needed = np.maximum(-(-np.arange(101) * num_objects[c] // 100), 1)
        total += hull[needed[needed <= len(ranks)] - 1].sum() / 101
    return float(total / len(classes))


@dataclass(frozen=True, eq=False)
class _ClassifiedDetections:
    """Detections that are used, by image and falling score, with their error types, and matched objects."""

    scores: Float[np.ndarray, " D"]
    labels: Int64[np.ndarray, " D"]
    correct: Bool[np.ndarray, " D"]
    in_crowd: Bool[np.ndarray, " D"]  # and not correct: does not count
    kind: Int64[np.ndarray, " D"]  # index in _KINDS; -1 for the correct ones
    fix_target: Int64[np.ndarray, " D"]  # object that it is matched to once Loc or Cls is fixed; -1 for none
    matched: Bool[np.ndarray, " T"]  # whether the object is matched to a detection


def _classify_detections(ground_truth: GroundTruth, predictions: Predictions, by_masks: bool) -> _ClassifiedDetections:
    image_index, boxes, scores, labels = order_detections(ground_truth, predictions)
    order = np.lexsort((-scores, image_index))
    rank = np.arange(len(order)) - np.searchsorted(image_index, image_index)  # in its image; `order` keeps images
    order = order[rank < MAX_DETECTIONS]
    image_index, boxes, scores, labels = image_index[order], boxes[order], scores[order], labels[order]

    masks = order_masks(ground_truth, predictions).select(order) if by_masks else None
    detection, target, iou = _overlapping_pairs(ground_truth, image_index, boxes, masks)
    same = labels[detection] == ground_truth.labels[target]
    crowd = ground_truth.iscrowd[target]
    correct, matched = _match(
        detection, target, iou, same & ~crowd & (iou >= POSITIVE_IOU), len(labels), len(ground_truth.labels)
    )
    covered = np.zeros(len(labels), bool)
    covered[detection[crowd & same & (iou > POSITIVE_IOU)]] = True

    # the most overlapped object of the detection's class and of any other class
    same_iou, same_target = _largest_overlap(detection, target, iou, same & ~crowd, len(labels))
    other_iou, other_target = _largest_overlap(detection, target, iou, ~same & ~crowd, len(labels))
    loc = (same_iou >= BACKGROUND_IOU) & (same_iou <= POSITIVE_IOU)
    cls = other_iou >= POSITIVE_IOU
    dupe = same_iou > POSITIVE_IOU  # all objects of such overlap are matched, or it would have been matched itself
    background = other_iou <= BACKGROUND_IOU
    wrong = [~correct & condition for condition in (loc, cls, dupe, background)]
    kind = np.select(wrong, [_KINDS.index(name) for name in ("Loc", "Cls", "Dupe", "Bkg")], _KINDS.index("Both"))
    kind[correct] = -1

    intended = np.select([kind == _KINDS.index("Loc"), kind == _KINDS.index("Cls")], [same_target, other_target], -1)
    intended[(intended >= 0) & matched[intended]] = -1
    # Of the detections with the same target only the highest-scoring one is fixed, which is the first in this order.
    rows = np.flatnonzero(intended >= 0)
    _, first = np.unique(intended[rows], return_index=True)
    fix_target = np.full(len(labels), -1)
    fix_target[rows[first]] = intended[rows[first]]
    return _ClassifiedDetections(scores, labels, correct, covered & ~correct, kind, fix_target, matched)


def _overlapping_pairs(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, " D"],
    boxes: Float[np.ndarray, "D 4"],
    masks: ObjectMasks | None,
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Detection, object and IoU (for a crowd region over the detection's area) of overlapping pairs, by detection."""
    compare: Callable[[Any, Any, Any], Float[np.ndarray, "D T"]] = bbox_iou
    found: Any = to_xywh(boxes)
    objects_of: Any = to_xywh(ground_truth.boxes)
    if masks is not None and ground_truth.masks is not None:
        found, objects_of, compare = masks.run_lengths(), ground_truth.masks.run_lengths(), mask_iou
    images = np.arange(len(ground_truth.image_ids) + 1)
    ends, object_ends = np.searchsorted(image_index, images), np.searchsorted(ground_truth.image_index, images)
    parts = []
    for image in np.flatnonzero((np.diff(ends) > 0) & (np.diff(object_ends) > 0)):
        of_image, objects = slice(ends[image], ends[image + 1]), slice(object_ends[image], object_ends[image + 1])
        iou = compare(found[of_image], objects_of[objects], ground_truth.iscrowd[objects])
        rows, columns = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append((rows + of_image.start, columns + objects.start, iou[rows, columns]))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detection, target, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return detection, target, iou


def _match(
    detection: Int64[np.ndarray, " P"],
    target: Int64[np.ndarray, " P"],
    iou: Float[np.ndarray, " P"],
    fits: Bool[np.ndarray, " P"],
    num_detections: int,
    num_objects: int,
) -> tuple[Bool[np.ndarray, " D"], Bool[np.ndarray, " T"]]:
    """Match each detection in order to the most overlapping unmatched object of its fitting pairs, the first of equals.

    Returns:
        Which detections and which objects are matched.
    """
    detection_matched, object_matched = np.zeros(num_detections, bool), np.zeros(num_objects, bool)
    fitting = np.flatnonzero(fits)
    fitting = fitting[np.lexsort((target[fitting], -iou[fitting], detection[fitting]))]
    for d, t in zip(detection[fitting].tolist(), target[fitting].tolist(), strict=True):
        if not (detection_matched[d] or object_matched[t]):
            detection_matched[d] = object_matched[t] = True
    return detection_matched, object_matched


def _largest_overlap(
    detection: Int64[np.ndarray, " P"],
    target: Int64[np.ndarray, " P"],
    iou: Float[np.ndarray, " P"],
    selected: Bool[np.ndarray, " P"],
    num_detections: int,
) -> tuple[Float[np.ndarray, " D"], Int64[np.ndarray, " D"]]:
    """Largest IoU of each detection among the selected pairs and its object, the first of equals; 0 and -1 if none."""
    largest_iou, largest_target = np.zeros(num_detections), np.full(num_detections, -1)
    pairs = np.flatnonzero(selected)
    pairs = pairs[np.lexsort((target[pairs], -iou[pairs], detection[pairs]))]
    detections, first = np.unique(detection[pairs], return_index=True)
    largest_iou[detections], largest_target[detections] = iou[pairs[first]], target[pairs[first]]
    return largest_iou, largest_target
