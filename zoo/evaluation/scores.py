"""Evaluate predictions by COCO's and VOC's protocols; format the resulting metrics.

    scores = evaluate(GroundTruth.from_table(table), predictions)
    scores.metrics["AP"], scores.metrics["VOC07"], scores.per_class["cat"]["AP50"]

Detections are first sorted into canonical order: by image id, those of one image in the given order. Equal scores are
then ranked identically for any order of images and any number of processes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int64
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from zoo.errors import InputError
from zoo.evaluation.coco import Engine, Tables, coco_tables, mean_defined, summarize_tables
from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks, check_labels
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.voc import VocScores, evaluate_voc

Protocol: TypeAlias = Literal["coco", "voc07", "voc10"]
PROTOCOLS: tuple[Protocol, ...] = ("coco", "voc07", "voc10")
MAX_DETECTIONS = 100
"""COCO's limit for detections of one class in one image."""
MASK_PREFIX = "mask_"
"""Of the names of metrics of masks: mask_AP, mask_AP50, ..."""
_AT_ONCE = 500_000  # detections that are evaluated together, if they are of several classes; some 200 MB in the engine
_BY_CLASS = ("AP", "AP50", "VOC07", "VOC10", f"{MASK_PREFIX}AP", f"{MASK_PREFIX}AP50")
Detections: TypeAlias = tuple[
    Int64[np.ndarray, " D"], Float[np.ndarray, "D 4"], Float[np.ndarray, " D"], Int64[np.ndarray, " D"]
]
"""Image index, box, score and label of each detection, in canonical order."""


@dataclass(frozen=True)
class Scores:
    """Metrics of the requested protocols, in 0..1, or -1 where there is no ground truth."""

    metrics: dict[str, float]  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl VOC07 VOC10, mask_AP mask_AP50 ...
    per_class: dict[str, dict[str, float]]  # class name -> AP AP50 VOC07 VOC10, mask_AP mask_AP50


def evaluate(
    ground_truth: GroundTruth,
    predictions: Predictions,
    protocols: Sequence[Protocol] = PROTOCOLS,
    engine: Engine = "hotcoco",
    by_masks: bool = False,
) -> Scores:
    """Metrics of predictions by each of the protocols.

    Args:
        ground_truth: of all test images, including those without detections.
        predictions: detections of these images.
        protocols: any of "coco" (twelve metrics), "voc07" (11-point AP) and "voc10" (all-point AP).
        engine: library for COCO's metrics: "hotcoco", or "pycocotools", the slow reference.
        by_masks: compare masks instead of boxes; by COCO's protocol only.

    Raises:
        InputError: an unknown protocol or engine; a detection whose image or class is not in the ground truth, or
            whose score or box is not finite; masks are to be compared and there are none.
    """
    check_protocols(protocols, engine)
    index, boxes, scores, labels = order_detections(ground_truth, predictions)
    masks = None
    if by_masks:
        if set(protocols) != {"coco"}:
            raise InputError("masks are evaluated by COCO's protocol only", place="protocols")
        ground_truth, masks = ground_truth.for_masks(), order_masks(ground_truth, predictions)
    tables: list[Tables] = []
    voc: list[VocScores] = []
    ranges = _class_ranges(labels, len(ground_truth.classes))
    for start, stop in ranges:
        truth, found, found_masks = ground_truth, (index, boxes, scores, labels), masks
        if len(ranges) > 1:
            rows = np.flatnonzero((labels >= start) & (labels < stop))
            truth, found = truth.of_classes(start, stop), (index[rows], boxes[rows], scores[rows], labels[rows] - start)
            found_masks = None if masks is None else masks.select(rows)
        if "coco" in protocols:
            tables.append(coco_tables(truth, *found, engine, found_masks))
        if "voc07" in protocols or "voc10" in protocols:
            voc.append(evaluate_voc(truth, *found))

    metrics: dict[str, float] = {}
    per_class: dict[str, dict[str, float]] = {name: {} for name in ground_truth.classes}
    by_class: dict[str, Float[np.ndarray, " C"]] = {}
    if "coco" in protocols:
        coco = summarize_tables(tables)
        metrics |= coco.metrics
        by_class |= {"AP": coco.ap, "AP50": coco.ap50}
    if "voc07" in protocols:
        by_class["VOC07"] = np.concatenate([part.voc07 for part in voc])
    if "voc10" in protocols:
        by_class["VOC10"] = np.concatenate([part.voc10 for part in voc])
    metrics |= {key: mean_defined(by_class[key]) for key in ("VOC07", "VOC10") if key in by_class}
    for key, values in by_class.items():
        for name, value in zip(ground_truth.classes, values.tolist(), strict=True):
            per_class[name][key] = value
    return Scores(metrics, per_class)


def _class_ranges(labels: Int64[np.ndarray, " D"], num_classes: int) -> list[tuple[int, int]]:
    """Ranges of classes that are evaluated together: all, or as many as have `_AT_ONCE` detections (at least one).

    Classes do not depend on each other, and the engines take hundreds of bytes for a detection.
    """
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    ranges, start = [], 0
    while start < num_classes:
        limit = _AT_ONCE + (ends[start - 1] if start else 0)
        stop = max(int(np.searchsorted(ends, limit, side="right")), start + 1)
        ranges.append((start, stop))
        start = stop
    return ranges or [(0, 0)]


def evaluate_boxes_and_masks(
    ground_truth: GroundTruth,
    predictions: Predictions,
    protocols: Sequence[Protocol] = PROTOCOLS,
    engine: Engine = "hotcoco",
) -> Scores:
    """Metrics of boxes by each of the protocols, and where both sides have masks, COCO's of masks (`MASK_PREFIX`).

    Raises:
        InputError: see `evaluate`.
    """
    scores = evaluate(ground_truth, predictions, protocols, engine)
    if have_masks(ground_truth, predictions):
        of_masks = evaluate(ground_truth, predictions, ["coco"], engine, by_masks=True)
        pairs = [(scores.metrics, of_masks.metrics)]
        pairs += [(scores.per_class[name], values) for name, values in of_masks.per_class.items()]
        for known, found in pairs:
            known.update({f"{MASK_PREFIX}{key}": value for key, value in found.items()})
    return scores


def have_masks(ground_truth: GroundTruth, predictions: Predictions) -> bool:
    """Whether both have masks, so that these can be compared, too."""
    return ground_truth.masks is not None and ground_truth.masks.masks.any() and predictions.masks is not None


def order_masks(ground_truth: GroundTruth, predictions: Predictions) -> ObjectMasks:
    """Masks of the detections in canonical order.

    Raises:
        InputError: the predictions have no masks.
    """
    if predictions.masks is None:
        raise InputError("the predictions have no masks; evaluate their boxes")
    ids = predictions.image_ids
    return predictions.masks.select(np.argsort(ids, kind="stable")) if (np.diff(ids) < 0).any() else predictions.masks


def order_detections(ground_truth: GroundTruth, predictions: Predictions) -> Detections:
    """Check detections and sort them into canonical order.

    Returns:
        Image (index in `ground_truth.image_ids`), box, score and label of each.

    Raises:
        InputError: a detection whose image or class is not in the ground truth, or whose score or box is not finite.
    """
    known = ground_truth.image_ids
    index = np.searchsorted(known, predictions.image_ids)
    inside = index < len(known)
    inside[inside] = known[index[inside]] == predictions.image_ids[inside]
    if not inside.all():
        other = predictions.image_ids[~inside][0]
        raise InputError(
            "has predictions but no ground truth; give predictions and ground truth of the same data set",
            place=f"image {other}",
        )
    check_labels(predictions.labels, len(ground_truth.classes), predictions.image_ids, "a detection")
    finite = np.isfinite(predictions.scores) & np.isfinite(predictions.boxes).all(axis=1)
    if not finite.all():
        raise InputError(
            "a detection's score or box is NaN or infinite; the detector that made it has diverged",
            place=f"image {predictions.image_ids[~finite][0]}",
        )

    boxes, scores, labels = predictions.boxes, predictions.scores, predictions.labels
    if (np.diff(index) < 0).any():
        order = np.argsort(index, kind="stable")
        index, boxes, scores, labels = index[order], boxes[order], scores[order], labels[order]
    return index, boxes, scores, labels


def describe_detection_limit(ground_truth: GroundTruth) -> str:
    """Sentence on objects that COCO's limit of 100 detections of a class and image leaves out; "" if there are none."""
    counts = ~ground_truth.iscrowd
    index, labels = ground_truth.image_index[counts], ground_truth.labels[counts]
    most = int(np.bincount(index * len(ground_truth.classes) + labels).max(initial=0))
    if most <= MAX_DETECTIONS:
        return ""
    perfect = Predictions(ground_truth.image_ids[index], ground_truth.boxes[counts], np.ones(len(index)), labels)
    ap = evaluate(ground_truth, perfect, ["coco"]).metrics["AP"]
    return (
        f"an image has {most} objects of one class, but COCO's metrics count at most {MAX_DETECTIONS} detections of a"
        f" class in an image: perfect detections have AP {ap:.3f}"
    )


def scores_table(scores: Scores) -> Group:
    """Table of scores for a terminal: means first, then one row for each class; `-` for an undefined metric."""
    columns = [key for key in _BY_CLASS if key in scores.metrics]
    table = Table()
    table.add_column("class")
    for key in columns:
        table.add_column(key, justify="right")
    table.add_row("all", *(_format(scores.metrics[key]) for key in columns), style="bold", end_section=True)
    for name, values in scores.per_class.items():
        table.add_row(Text(name), *(_format(values[key]) for key in columns))
    rest = [f"{key} {_format(value)}" for key, value in scores.metrics.items() if key not in _BY_CLASS]
    lines = [Text("   ".join(rest[start : start + 5])) for start in range(0, len(rest), 5)]
    return Group(table, *lines)


def format_scores(scores: Scores) -> str:
    """`scores_table` as plain text, for logs and pipes."""
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None).print(scores_table(scores))
    return stream.getvalue()


def _format(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def check_protocols(protocols: Sequence[str], engine: str) -> None:
    """Check the names of protocols and engine.

    Raises:
        InputError: an unknown protocol or engine, or no protocol.
    """
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown or not protocols:
        problem = f"unknown protocol {unknown[0]!r}" if unknown else "no protocol given"
        raise InputError(f"{problem}; choose from {', '.join(PROTOCOLS)}", place="protocols")
    if engine not in ("hotcoco", "pycocotools"):
        raise InputError(f"unknown engine {engine!r}; choose hotcoco or pycocotools", place="engine")
