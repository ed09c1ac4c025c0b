"""Combine the detections of two detectors, and the AP that no choice among their boxes can exceed.

`rescore` keeps the boxes of one detector and raises the scores of those that another one confirms, as YOLO's paper does
with Fast R-CNN's boxes and YOLO (arXiv 1506.02640, section 4.3). `fuse` averages overlapping boxes of both: weighted
boxes fusion (Solovyev, Wang, Gabruseva; arXiv 1910.13302).

The package ensemble-boxes has weighted boxes fusion, too; its last release is of 2022. Both functions compare scores of
different detectors as they are, also where these mean different things, as those of SVMs and of softmax.

Legend: D detections of all images, K and L detections of one image and class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.matches import AREA_RANGES, IOU_THRESHOLDS, overlapping_pairs, strongest_detections
from zoo.evaluation.predictions import Predictions
from zoo.ops.boxes import pairwise_iou

CONFIRMING_IOU = 0.5
FUSION_IOU = 0.55  # section 3 of weighted boxes fusion
RECALLS = np.linspace(0, 1, 101)  # of COCO's precision-recall curves


def rescore(first: Predictions, second: Predictions) -> Predictions:
    """The boxes of the first detector, with scores that the second one raises.

    The paper raises the score of a box that the other detector predicts, too, by that one's probability and the overlap
    of the two; it gives no formula. Here a score s becomes (s + max(s' * IoU)) / 2, the maximum over the second
    detector's boxes of the same image and class with an IoU of at least 0.5, and s / 2 where there is none.
    """
    boost = np.zeros(len(first), np.float64)
    for rows, others in _shared_groups(first, second):
        iou = _pairwise_iou(first.boxes[rows], second.boxes[others])
        boost[rows] = np.where(iou >= CONFIRMING_IOU, iou * second.scores[others], 0).max(axis=1, initial=0)
    return replace(first, scores=(first.scores.astype(np.float64) + boost) / 2)


def fuse(members: Sequence[Predictions]) -> Predictions:
    """Weighted boxes fusion of detectors with equal weights.

    Boxes of an image and class are taken in order of falling score. Each joins the fused box that it overlaps most, if
    their IoU is above 0.55, and else starts a new one. A fused box is the mean of its boxes weighted by their scores;
    its score is their mean, times min(T, N) / N for T boxes of N detectors.

    Returns:
        Fused boxes in f64, by image and class.
    """
    joined = Predictions(
        image_ids=np.concatenate([member.image_ids for member in members]),
        boxes=np.concatenate([member.boxes.astype(np.float64) for member in members]),
        scores=np.concatenate([member.scores.astype(np.float64) for member in members]),
        labels=np.concatenate([member.labels for member in members]),
    )
    parts = [(joined.image_ids[:0], joined.boxes[:0], joined.scores[:0], joined.labels[:0])]
    for rows in _groups(joined):
        rows = rows[np.argsort(-joined.scores[rows], kind="stable")]
        boxes, scores = _fuse_group(joined.boxes[rows], joined.scores[rows], len(members))
        same = np.zeros(len(boxes), np.int64)
        parts.append((joined.image_ids[rows[0]] + same, boxes, scores, joined.labels[rows[0]] + same))
    image_ids, boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Predictions(image_ids, boxes, scores, labels)


def _fuse_group(
    boxes: Float[np.ndarray, "D 4"], scores: Float[np.ndarray, " D"], num_members: int
) -> tuple[Float[np.ndarray, "K 4"], Float[np.ndarray, " K"]]:
    """Fused boxes of one image and class, given by falling score."""
    sums = np.zeros((len(boxes), 4))  # of boxes times scores, of each fused box
    weights, counts, fused = np.zeros(len(boxes)), np.zeros(len(boxes)), np.zeros((len(boxes), 4))
    num_fused = 0
    for box, score in zip(boxes, scores, strict=True):
        iou = _pairwise_iou(box[None], fused[:num_fused])[0]
        place = int(iou.argmax()) if num_fused and iou.max() > FUSION_IOU else num_fused
        num_fused = max(num_fused, place + 1)
        sums[place] += score * box
        weights[place] += score
        counts[place] += 1
        fused[place] = sums[place] / weights[place] if weights[place] > 0 else box
    counts = counts[:num_fused]
    return fused[:num_fused], weights[:num_fused] / counts * np.minimum(counts, num_members) / num_members


def oracle_ap(ground_truth: GroundTruth, members: Sequence[Predictions]) -> float:
    """COCO's AP of an oracle that takes for each object the box of its class, of any detector, that overlaps it most.

    The oracle has no false positives, so its AP follows from its recall at each IoU threshold. No choice among the
    boxes exceeds it; fused boxes can. As in COCO's metrics, the 100 highest-scoring boxes of each detector, image and
    class are used. -1 without objects.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    best = np.zeros(len(ground_truth.labels))
    for predictions in members:
        strongest = strongest_detections(ground_truth, predictions)
        _, overlapped, iou = overlapping_pairs(ground_truth, strongest)
        np.maximum.at(best, overlapped, iou)
    counted = ~ground_truth.iscrowd & (ground_truth.areas <= AREA_RANGES[0, 1])
    found = best[:, None] >= IOU_THRESHOLDS
    values = []
    for label in range(len(ground_truth.classes)):
        objects = counted & (ground_truth.labels == label)
        if objects.any():
            recall = found[objects].mean(axis=0)
            values.append(np.searchsorted(RECALLS, recall, side="right")[recall > 0].sum() / 101 / len(IOU_THRESHOLDS))
    return float(np.mean(values)) if values else -1.0


def _groups(predictions: Predictions) -> Iterator[Int64[np.ndarray, " K"]]:
    """Rows of each image and class, in the given order."""
    order = np.lexsort((predictions.labels, predictions.image_ids))
    starts = np.flatnonzero(
        np.diff(predictions.image_ids[order], prepend=-1) | np.diff(predictions.labels[order], prepend=-1)
    )
    yield from np.split(order, starts[1:]) if len(order) else ()


def _shared_groups(
    first: Predictions, second: Predictions
) -> Iterator[tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " L"]]]:
    """Rows of each image and class that both have."""
    of_second = {(second.image_ids[rows[0]], second.labels[rows[0]]): rows for rows in _groups(second)}
    for rows in _groups(first):
        others = of_second.get((first.image_ids[rows[0]], first.labels[rows[0]]))
        if others is not None:
            yield rows, others


def _pairwise_iou(boxes: Float[np.ndarray, "K 4"], others: Float[np.ndarray, "L 4"]) -> Float[np.ndarray, "K L"]:
    """`zoo.ops.boxes.pairwise_iou` of arrays, in f64."""
    return pairwise_iou(torch.from_numpy(boxes).double(), torch.from_numpy(others).double()).numpy()
