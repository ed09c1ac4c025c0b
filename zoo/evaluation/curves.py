"""How right a detector is at each recall and each score: precision-recall curves, thresholds, calibration, confusion.

All by COCO's protocol at an IoU of 0.5, matched by hotcoco: a detection is right if it is given an object of its
class (surest first, each takes the one that it overlaps most of those still free; of each class the 100 surest of an
image take part). One in a crowd region that is given no object does not count, and VOC's `difficult` is not known.
What the surest detections are given does not hang on the less sure ones, so one matching serves every threshold.

Legend:
    K  detections that count      C  classes      M  classes and background: C + 1
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from zoo.evaluation.coco import NOTHING, load_hotcoco, pack_detections, run_tables
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.scores import Detections, order_detections

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class BestThreshold:
    """A score, and how good the detections from it up are; all in 0..1 but the score, which is the detector's own."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Detections of one range of scores."""

    confidence: float  # mean score
    precision: float  # share of them that is right
    count: int


@dataclass(frozen=True)
class CalibrationCurve:
    """Whether a score of 0.7 means seven right out of ten."""

    error: float  # expected calibration error: mean over detections of |confidence - precision| of their bin
    bins: list[Bin]  # by rising score; those that hold detections


def precision_recall(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, list[float]]:
    """Gives each class's precision at recall 0, .01 .. 1, COCO's own: the best at that recall or beyond.

    Returns:
        class name -> 101 precisions, whose mean is the class's AP50; classes without objects are left out.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    if not len(ground_truth.labels):
        return {}
    precision, _ = run_tables(load_hotcoco(ground_truth, pack_detections(*columns)))
    curves = precision[0, :, :, 0, 2].T
    return {
        name: curve.tolist() for name, curve in zip(ground_truth.classes, curves, strict=True) if curve[0] > NOTHING
    }


def best_thresholds(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, BestThreshold]:
    """Finds for each class the score from which on its detections have their best F1, the harmonic mean of both.

    F1 = 2 TP / (TP + FP + number of objects), after every score that the detector gave; the highest of equally good.

    Returns:
        class name -> threshold: keep detections with this score or more. Classes of which no detection is right, or
        that have no object, are left out: no threshold is good.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    rows, right = _counted(ground_truth, columns)
    _, _, scores, labels = (column[rows] for column in columns)
    num_objects = np.bincount(ground_truth.labels[~ground_truth.iscrowd], minlength=len(ground_truth.classes))
    best = {}
    for c in np.unique(labels[right]):
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(-scores[own], kind="stable")]
        # a threshold keeps all of a score or none
        num_kept = np.append(np.flatnonzero(np.diff(scores[own])) + 1, len(own))
        num_right = np.cumsum(right[own])[num_kept - 1]
        f1 = 2 * num_right / (num_kept + num_objects[c])
        at = int(f1.argmax())
        best[ground_truth.classes[c]] = BestThreshold(
            score=float(scores[own[num_kept[at] - 1]]),
            precision=float(num_right[at] / num_kept[at]),
            recall=float(num_right[at] / num_objects[c]),
            f1=float(f1[at]),
        )
    return best


def calibration(ground_truth: GroundTruth, predictions: Predictions, num_bins: int = 10) -> CalibrationCurve | None:
    """Holds scores against the share of right detections (Guo et al., arXiv 1706.04599, equation 3).

    Args:
        ground_truth: what is true.
        predictions: what a detector said of these images.
        num_bins: ranges of score, of equal width, each with its lower border and the last one with 1.

    Returns:
        None where no detection counts, or where a score is not in 0..1 and so not meant as a probability.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    _, _, scores, _ = columns
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    run = load_hotcoco(ground_truth, pack_detections(*columns))
    run.evaluate()
    found = run.calibration(num_bins, IOU_THRESHOLD)
    if not found["num_detections"]:
        return None
    return CalibrationCurve(
        error=found["ece"],
        bins=[
            Bin(confidence=entry["avg_confidence"], precision=entry["avg_accuracy"], count=entry["count"])
            for entry in found["bins"]
            if entry["count"]
        ],
    )


def confusion_matrix(ground_truth: GroundTruth, predictions: Predictions, min_score: float) -> Int64[np.ndarray, "M M"]:
    """Counts what objects are taken for: rows true, columns said, background last.

    Unlike for AP, classes do not matter to who is given what: a detection takes the object that it overlaps most, of
    any class. So the diagonal may hold a few less than AP's true positives where objects of two classes overlap.

    Args:
        ground_truth: what is true.
        predictions: what a detector said of these images.
        min_score: detections below it are left out.

    Returns:
        [i, j] objects of class i that were said to be j; [i, C] objects missed; [C, j] detections of no object.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    rows, _ = _counted(ground_truth, columns)
    if not len(rows) and not len(ground_truth.labels):
        num_classes = len(ground_truth.classes)
        return np.zeros((num_classes + 1, num_classes + 1), np.int64)
    run = load_hotcoco(ground_truth, pack_detections(*(column[rows] for column in columns)))
    found = run.confusion_matrix(IOU_THRESHOLD, max_det=max(len(rows), 1), min_score=min_score)
    return found["matrix"].astype(np.int64)


def _counted(ground_truth: GroundTruth, columns: Detections) -> tuple[Int64[np.ndarray, "K"], Bool[np.ndarray, "K"]]:
    """Rows of the detections that count, ascending, and whether each is right."""
    if not len(columns[0]):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    run = load_hotcoco(ground_truth, pack_detections(*columns))
    run.evaluate()
    # the score is for its search for wrong labels, which nobody asked for here
    status = run.image_diagnostics(IOU_THRESHOLD, score_thr=math.inf)["dt_status"]
    ids = np.fromiter(status, np.int64, len(status))
    right = np.fromiter((word == "tp" for word in status.values()), np.bool_, len(status))
    order = np.argsort(ids)
    return ids[order] - 1, right[order]
