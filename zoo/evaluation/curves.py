"""Precision-recall curves, best score thresholds, calibration and confusion matrix of a detector.

All follow COCO's protocol at an IoU of 0.5, matched by hotcoco: a detection is correct if it is matched to an object of
its class (in order of falling score, each takes the unmatched object that it overlaps most; the 100 highest-scoring
detections of each image and class are used). An unmatched detection in a crowd region does not count, and VOC's
`difficult` is ignored. The matches of a detection do not depend on those with lower scores, so one matching is valid
for every threshold.

Legend:
    K  detections that count      C  classes      M  classes and background: C + 1
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from zoo.evaluation.coco import UNDEFINED, load_hotcoco, pack_detections, run_tables
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.scores import Detections, order_detections

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class BestThreshold:
    """A score threshold, and precision, recall and F1, in 0..1, of the detections with at least this score."""

    score: float  # in the detector's own range
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Bin:
    """Detections in one range of scores."""

    confidence: float  # mean score
    precision: float  # fraction of correct detections
    count: int


@dataclass(frozen=True)
class CalibrationCurve:
    """Calibration of scores as probabilities: precision by range of scores."""

    error: float  # expected calibration error: mean over detections of |confidence - precision| of their bin
    bins: list[Bin]  # by rising score; without empty bins


def precision_recall(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, list[float]]:
    """COCO's precision-recall curve of each class: the best precision at a recall of at least 0, .01 .. 1.

    Returns:
        Class name -> 101 precisions, whose mean is the class's AP50; classes without objects are left out.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    if not len(ground_truth.labels):
        return {}
    precision, _ = run_tables(load_hotcoco(ground_truth, pack_detections(*columns)))
    curves = precision[0, :, :, 0, 2].T
    return {
        name: curve.tolist() for name, curve in zip(ground_truth.classes, curves, strict=True) if curve[0] > UNDEFINED
    }


def best_thresholds(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, BestThreshold]:
    """Score threshold of each class with the highest F1, the harmonic mean of precision and recall.

    F1 = 2 TP / (TP + FP + number of objects), evaluated at every score that occurs; of equal F1 the highest score.

    Returns:
        Class name -> threshold: keep detections with at least this score. Classes without a correct detection, and
        so those without objects, are left out.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    rows, is_correct = _counted(ground_truth, columns)
    _, _, scores, labels = (column[rows] for column in columns)
    num_objects = np.bincount(ground_truth.labels[~ground_truth.iscrowd], minlength=len(ground_truth.classes))
    best = {}
    for c in np.unique(labels[is_correct]):
        of_class = np.flatnonzero(labels == c)
        of_class = of_class[np.argsort(-scores[of_class], kind="stable")]
        # a threshold keeps either all detections of equal score or none
        num_kept = np.append(np.flatnonzero(np.diff(scores[of_class])) + 1, len(of_class))
        num_correct = np.cumsum(is_correct[of_class])[num_kept - 1]
        f1 = 2 * num_correct / (num_kept + num_objects[c])
        at = int(f1.argmax())
        best[ground_truth.classes[c]] = BestThreshold(
            score=float(scores[of_class[num_kept[at] - 1]]),
            precision=float(num_correct[at] / num_kept[at]),
            recall=float(num_correct[at] / num_objects[c]),
            f1=float(f1[at]),
        )
    return best


def calibration(ground_truth: GroundTruth, predictions: Predictions, num_bins: int = 10) -> CalibrationCurve | None:
    """Calibration curve and expected calibration error (Guo et al., arXiv 1706.04599, equation 3).

    Args:
        ground_truth: of all images.
        predictions: of the same images.
        num_bins: ranges of score of equal width, each including its lower limit, the last one also 1.

    Returns:
        None if no detection counts, or if a score is outside 0..1 and so cannot be a probability.

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
    """Confusion matrix: rows are ground truth classes, columns predicted classes, background last.

    Unlike for AP, matching ignores classes: a detection takes the object that it overlaps most, of any class. So the
    diagonal may have slightly fewer counts than AP has true positives where objects of two classes overlap.

    Args:
        ground_truth: of all images.
        predictions: of the same images.
        min_score: detections with a lower score are left out.

    Returns:
        [i, j] objects of class i predicted as class j; [i, C] missed objects; [C, j] unmatched detections.

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


def _counted(ground_truth: GroundTruth, columns: Detections) -> tuple[Int64[np.ndarray, " K"], Bool[np.ndarray, " K"]]:
    """Indices of the detections that count, ascending, and whether each is correct."""
    if not len(columns[0]):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    run = load_hotcoco(ground_truth, pack_detections(*columns))
    run.evaluate()
    # score_thr is for its search for label errors, which is not needed here
    status = run.image_diagnostics(IOU_THRESHOLD, score_thr=math.inf)["dt_status"]
    ids = np.fromiter(status, np.int64, len(status))
    is_correct = np.fromiter((value == "tp" for value in status.values()), np.bool_, len(status))
    order = np.argsort(ids)
    return ids[order] - 1, is_correct[order]
