"""What kind of mistake costs how much average precision: TIDE's six errors.

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020 (arXiv 2008.08115),
section 2, and to the last detail after its authors' package `tidecv` 1.0.1, whose numbers these are. hotcoco's
`tide_errors` starts from COCO's matching instead, and its figures part from tidecv's by some hundredths where there
are crowd regions, equal scores or more than a hundred detections in an image, and by thousandths elsewhere: it asks for
a recall of np.linspace(0, 1, 101), some of which are above k / 100 by their last bit.

A detection is right if it is given an object: in each image the 100 surest detections of all classes together, surest
first, take of the objects of their class the one that they overlap most of those still free, at an IoU of 0.5. Each
one that is not right has one error, the first of these that applies:

    Loc   overlaps an object of its class by 0.1 to 0.5
    Cls   overlaps an object of another class by 0.5 or more
    Dupe  overlaps an object of its class by more, which a surer one was given
    Bkg   overlaps nothing by more than 0.1
    Both  the rest: overlaps an object of another class by 0.1 to 0.5

and each object that was not given, and that no detection with Loc or Cls means, is an error of its own: Miss.

What an error costs is the AP at IoU 0.5 once it is mended, less the AP as it is. To mend Loc and Cls is to make the
surest of those that mean the same free object right, and to strike out the others; to mend Dupe, Bkg and Both is to
strike out the detection, Miss the object. Each is mended alone, so the costs do not add up to what is missing to 1.

Details that are tidecv's, and that differ from COCO's protocol:

- 100 detections of an image, where COCO takes 100 of each class.
- The mean is over classes with an object or a detection; a detection of a class without objects is a mistake there.
- A detection in a crowd region of its class (more than half of it) counts neither way; but where it would have been
  right with another class or a better box, it may be mended.
- Among equal scores, those that were wrong come first as soon as anything is mended.

VOC's `difficult` is not known here: such objects count like any other, as in COCO's protocol.

Legend:
    N  images      T  objects      D  detections, image by image, by falling score      C  classes
    P  pairs of a detection and an object of its image with an IoU of at least 0.1
"""

from dataclasses import dataclass

import numpy as np
from hotcoco.primitives import bbox_iou
from jaxtyping import Bool, Float, Int64

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import order_detections

POSITIVE_IOU = 0.5
BACKGROUND_IOU = 0.1
MOST_DETECTIONS = 100  # of an image

_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")


def tide_errors(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, float]:
    """Says what each kind of error costs.

    Args:
        ground_truth: what is true.
        predictions: what a detector said of these images.

    Returns:
        Loss of AP at IoU 0.5, in 0..1, by "Cls" "Loc" "Both" "Dupe" "Bkg" "Miss", and by "FP" (all wrong detections
        ranked behind the right ones) and "FN" (no object left that is not found); empty where there is no object.
        A detector that says nothing loses everything, 1, to Miss and to FN.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    if ground_truth.iscrowd.all():
        return {}
    found = _examine(ground_truth, predictions)
    looked_for = ~ground_truth.iscrowd
    num_objects = _by_class(ground_truth, looked_for)
    as_it_is = np.argsort(-found.scores, kind="stable")
    as_it_is = as_it_is[~found.in_crowd[as_it_is]]
    base = mean_average_precision(found.labels[as_it_is], found.right[as_it_is], num_objects)

    once_mended = np.lexsort((found.right, -found.scores))  # of equal scores the wrong ones first
    errors = {}
    for kind, name in enumerate(_KINDS):
        mended = found.kind == kind
        right = found.right | (mended & (found.mends >= 0))
        labels = np.where(mended & right, ground_truth.labels[found.mends], found.labels)
        stays = right | ~(mended | found.in_crowd)
        rows = once_mended[stays[once_mended]]
        errors[name] = max(mean_average_precision(labels[rows], right[rows], num_objects) - base, 0.0)

    rows = once_mended[~found.in_crowd[once_mended]]
    labels, right = found.labels[rows], found.right[rows]
    missed = looked_for & ~found.given
    not_meant = missed.copy()
    not_meant[found.mends[found.mends >= 0]] = False
    num_meant, num_given = (num_objects - _by_class(ground_truth, struck) for struck in (not_meant, missed))
    errors["Miss"] = max(mean_average_precision(labels, right, num_meant) - base, 0.0)
    right_first = np.argsort(~right, kind="stable")
    errors["FP"] = mean_average_precision(labels[right_first], right[right_first], num_objects) - base
    errors["FN"] = mean_average_precision(labels, right, num_given) - base
    return errors


def _by_class(ground_truth: GroundTruth, objects: Bool[np.ndarray, "T"]) -> Int64[np.ndarray, "C"]:
    """Counts some of the objects by class."""
    return np.bincount(ground_truth.labels[objects], minlength=len(ground_truth.classes))


def mean_average_precision(
    labels: Int64[np.ndarray, "rows"], right: Bool[np.ndarray, "rows"], num_objects: Int64[np.ndarray, "C"]
) -> float:
    """Means the classes' average precisions, at 101 places of recall, as tidecv does.

    Args:
        labels: class of each detection, by falling score.
        right: whether it is right.
        num_objects: objects to be found of each class.

    Returns:
        0..1. A class with detections but nothing to be found has 0, one with neither is left out, and with no other
        class the detector has nothing left to do: 1.
    """
    num_classes = len(num_objects)
    num_detections = np.bincount(labels, minlength=num_classes)
    # numpy sorts 16-bit numbers by radix
    order = np.argsort(labels.astype(np.uint16 if num_classes <= 2**16 else np.int64), kind="stable")
    starts = np.cumsum(num_detections) - num_detections
    hits = np.flatnonzero(right[order])
    hit_starts = np.searchsorted(hits, np.append(starts, len(labels)))
    measured = np.flatnonzero(num_detections + num_objects)
    if len(measured) == 0:
        return 1.0
    total = 0.0
    for c in measured[num_objects[measured] > 0]:
        ranks = hits[hit_starts[c] : hit_starts[c + 1]] - starts[c] + 1
        hull = np.maximum.accumulate((np.arange(1, len(ranks) + 1) / ranks)[::-1])[::-1]
        # in whole numbers: hits for a recall of k / 100, and a first one for k = 0
        needed = np.maximum(-(-np.arange(101) * num_objects[c] // 100), 1)
        total += hull[needed[needed <= len(ranks)] - 1].sum() / 101
    return float(total / len(measured))


@dataclass(frozen=True, eq=False)
class _Examined:
    """Detections that take part, image by image and by falling score, and what is wrong with each."""

    scores: Float[np.ndarray, "D"]
    labels: Int64[np.ndarray, "D"]
    right: Bool[np.ndarray, "D"]
    in_crowd: Bool[np.ndarray, "D"]  # and not right: counts neither way
    kind: Int64[np.ndarray, "D"]  # place in _KINDS; -1 for the right ones
    mends: Int64[np.ndarray, "D"]  # the object that it is right about once Loc or Cls is mended; -1 for none
    given: Bool[np.ndarray, "T"]  # whether a detection was given the object


def _examine(ground_truth: GroundTruth, predictions: Predictions) -> _Examined:
    image_index, boxes, scores, labels = order_detections(ground_truth, predictions)
    order = np.lexsort((-scores, image_index))
    place = np.arange(len(order)) - np.searchsorted(image_index, image_index)  # in its image; `order` keeps images
    order = order[place < MOST_DETECTIONS]
    image_index, boxes, scores, labels = image_index[order], boxes[order], scores[order], labels[order]

    detection, target, iou = _overlapping_pairs(ground_truth, image_index, boxes)
    same = labels[detection] == ground_truth.labels[target]
    crowd = ground_truth.iscrowd[target]
    right, given = _give_objects(
        detection, target, iou, same & ~crowd & (iou >= POSITIVE_IOU), len(labels), len(ground_truth.labels)
    )
    covered = np.zeros(len(labels), bool)
    covered[detection[crowd & same & (iou > POSITIVE_IOU)]] = True

    # the first object of those overlapped most, of the own class and of another
    own_iou, own = _largest(detection, target, iou, same & ~crowd, len(labels))
    other_iou, other = _largest(detection, target, iou, ~same & ~crowd, len(labels))
    loc = (own_iou >= BACKGROUND_IOU) & (own_iou <= POSITIVE_IOU)
    cls = other_iou >= POSITIVE_IOU
    dupe = own_iou > POSITIVE_IOU  # all that it overlaps so much are given: it would have one otherwise
    background = other_iou <= BACKGROUND_IOU
    wrong = [~right & condition for condition in (loc, cls, dupe, background)]
    kind = np.select(wrong, [_KINDS.index(name) for name in ("Loc", "Cls", "Dupe", "Bkg")], _KINDS.index("Both"))
    kind[right] = -1

    meant = np.select([kind == _KINDS.index("Loc"), kind == _KINDS.index("Cls")], [own, other], -1)
    meant[(meant >= 0) & given[meant]] = -1
    # Only the surest that means an object is right about it: the first, in this order.
    rows = np.flatnonzero(meant >= 0)
    _, first = np.unique(meant[rows], return_index=True)
    mends = np.full(len(labels), -1)
    mends[rows[first]] = meant[rows[first]]
    return _Examined(scores, labels, right, covered & ~right, kind, mends, given)


def _overlapping_pairs(
    ground_truth: GroundTruth, image_index: Int64[np.ndarray, "D"], boxes: Float[np.ndarray, "D 4"]
) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"], Float[np.ndarray, "P"]]:
    """Detection, object and IoU (for a crowd region: over the detection's area), detection by detection."""
    found, truth = to_xywh(boxes), to_xywh(ground_truth.boxes)
    images = np.arange(len(ground_truth.image_ids) + 1)
    ends, object_ends = np.searchsorted(image_index, images), np.searchsorted(ground_truth.image_index, images)
    parts = []
    for image in np.flatnonzero((np.diff(ends) > 0) & (np.diff(object_ends) > 0)):
        mine, objects = slice(ends[image], ends[image + 1]), slice(object_ends[image], object_ends[image + 1])
        iou = bbox_iou(found[mine], truth[objects], ground_truth.iscrowd[objects])
        rows, columns = np.nonzero(iou >= BACKGROUND_IOU)
        parts.append((rows + mine.start, columns + objects.start, iou[rows, columns]))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detection, target, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return detection, target, iou


def _give_objects(
    detection: Int64[np.ndarray, "P"],
    target: Int64[np.ndarray, "P"],
    iou: Float[np.ndarray, "P"],
    fits: Bool[np.ndarray, "P"],
    num_detections: int,
    num_objects: int,
) -> tuple[Bool[np.ndarray, "D"], Bool[np.ndarray, "T"]]:
    """Gives each detection in turn what it overlaps most of what fits and is free, the first of equals.

    Returns:
        whether a detection was given anything; whether an object was given.
    """
    right, given = np.zeros(num_detections, bool), np.zeros(num_objects, bool)
    fitting = np.flatnonzero(fits)
    fitting = fitting[np.lexsort((target[fitting], -iou[fitting], detection[fitting]))]
    for d, t in zip(detection[fitting].tolist(), target[fitting].tolist(), strict=True):
        if not (right[d] or given[t]):
            right[d] = given[t] = True
    return right, given


def _largest(
    detection: Int64[np.ndarray, "P"],
    target: Int64[np.ndarray, "P"],
    iou: Float[np.ndarray, "P"],
    among: Bool[np.ndarray, "P"],
    num_detections: int,
) -> tuple[Float[np.ndarray, "D"], Int64[np.ndarray, "D"]]:
    """Largest IoU of each detection among some of its pairs, and with which object, the first of equals; 0 and -1."""
    largest, which = np.zeros(num_detections), np.full(num_detections, -1)
    some = np.flatnonzero(among)
    some = some[np.lexsort((target[some], -iou[some], detection[some]))]
    detections, first = np.unique(detection[some], return_index=True)
    largest[detections], which[detections] = iou[some[first]], target[some[first]]
    return largest, which
