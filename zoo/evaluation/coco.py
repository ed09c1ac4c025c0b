"""COCO's twelve numbers and its average precision by class, from either of two engines.

hotcoco is the default (Rust, the same numbers as pycocotools bit for bit and some fifty times faster); pycocotools
itself is the reference. Both get the same arrays and give back the same precision and recall tables, which are
summarised here once, as `COCOeval.summarize` does it (github.com/cocodataset/cocoapi, pycocotools/cocoeval.py).

COCO has no word for VOC's `difficult`: such objects count here like any other, as in every VOC data set that was
converted to COCO's json.

Legend:
    D  detections      T  objects      C  classes      R  101 places of recall
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Literal, TypeAlias

import hotcoco
import numpy as np
from jaxtyping import Float, Int64

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import to_xywh

Engine: TypeAlias = Literal["hotcoco", "pycocotools"]

NOTHING = -1.0  # as pycocotools says it: there was nothing to measure
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, eq=False)
class CocoScores:
    """The twelve numbers, and AP and AP50 by class; -1 where there was nothing to measure."""

    metrics: dict[str, float]  # KEYS
    ap: Float[np.ndarray, "C"]
    ap50: Float[np.ndarray, "C"]


def evaluate_coco(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, "D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, "D"],
    labels: Int64[np.ndarray, "D"],
    engine: Engine = "hotcoco",
) -> CocoScores:
    """Measures detections in canonical order (see `zoo.evaluation.scores`) by COCO's protocol for boxes.

    Args:
        ground_truth: what is true.
        image_index: each detection's image as a place in `ground_truth.image_ids`, never descending.
        boxes: xyxy in pixels.
        scores: any finite numbers, higher is surer.
        labels: 0 .. C - 1.
        engine: who computes the precision and recall tables.
    """
    num_classes = len(ground_truth.classes)
    if num_classes == 0 or len(ground_truth.image_ids) == 0:
        nothing = np.full(num_classes, NOTHING)
        return CocoScores(dict.fromkeys(KEYS, NOTHING), nothing, nothing)
    detections = pack_detections(image_index, boxes, scores, labels)
    tables = _run_hotcoco if engine == "hotcoco" else _run_pycocotools
    precision, recall = tables(ground_truth, detections)
    return CocoScores(
        metrics=_summarize(precision, recall),
        ap=np.array([mean_defined(precision[:, :, c, 0, 2]) for c in range(num_classes)]),
        ap50=np.array([mean_defined(precision[0, :, c, 0, 2]) for c in range(num_classes)]),
    )


Tables: TypeAlias = tuple[Float[np.ndarray, "10 R C A 3"], Float[np.ndarray, "10 C A 3"]]
"""Precision and recall by IoU .5 .. .95, (recall,) class, A sizes (all, s, m, l), and most detections (1, 10, 100)."""


def pack_detections(
    image_index: Int64[np.ndarray, "D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, "D"],
    labels: Int64[np.ndarray, "D"],
) -> Float[np.ndarray, "D 7"]:
    """Image, x, y, w, h, score, class of each detection: the array form that both engines read."""
    detections = np.empty((len(scores), 7))
    detections[:, 0] = image_index
    detections[:, 1:5] = boxes
    detections[:, 3:5] -= detections[:, 1:3]
    detections[:, 5] = scores
    detections[:, 6] = labels
    return detections


def load_hotcoco(
    ground_truth: GroundTruth, detections: Float[np.ndarray, "D 7"], areas: Float[np.ndarray, "D"] | None = None
) -> hotcoco.COCOeval:
    """Hands both sides to hotcoco, which has then not evaluated anything yet; detection i has the id i + 1.

    Args:
        ground_truth: what is true.
        detections: see `pack_detections`.
        areas: what the detections' sizes are told by; None for width times height.
    """
    truth = hotcoco.COCO.from_arrays(
        images=[{"id": i} for i in range(len(ground_truth.image_ids))],
        categories=[{"id": c, "name": name} for c, name in enumerate(ground_truth.classes)],
        image_ids=ground_truth.image_index,
        category_ids=ground_truth.labels,
        boxes=to_xywh(ground_truth.boxes),
        area=ground_truth.areas,
        iscrowd=ground_truth.iscrowd,
    )
    found = truth.load_res(detections)
    if areas is not None:
        found.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
    return hotcoco.COCOeval(truth, found, "bbox")


def run_tables(run: hotcoco.COCOeval) -> Tables:
    """Evaluates, and gives the precision and recall tables."""
    run.evaluate()
    run.accumulate()
    tables = run.eval
    assert tables is not None
    return tables["precision"], tables["recall"]


def _run_hotcoco(ground_truth: GroundTruth, detections: Float[np.ndarray, "D 7"]) -> Tables:
    return run_tables(load_hotcoco(ground_truth, detections))


def _run_pycocotools(ground_truth: GroundTruth, detections: Float[np.ndarray, "D 7"]) -> Tables:
    # here, not above: it imports all of matplotlib's pyplot, which the default engine does not want to wait for
    import pycocotools.coco
    import pycocotools.cocoeval

    images = [{"id": i} for i in range(len(ground_truth.image_ids))]
    categories = [{"id": c, "name": name} for c, name in enumerate(ground_truth.classes)]
    objects = zip(
        ground_truth.image_index.tolist(),
        ground_truth.labels.tolist(),
        to_xywh(ground_truth.boxes).tolist(),
        ground_truth.areas.tolist(),
        ground_truth.iscrowd.tolist(),
        strict=True,
    )
    # ids from 1: the engine marks an unmatched detection by the object id 0
    truth = [
        {"id": i, "image_id": image, "category_id": label, "bbox": bbox, "area": area, "iscrowd": int(crowd)}
        for i, (image, label, bbox, area, crowd) in enumerate(objects, start=1)
    ]
    found = [
        {
            "id": i,
            "image_id": int(image),
            "category_id": int(label),
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "score": score,
        }
        for i, (image, x, y, w, h, score, label) in enumerate(detections.tolist(), start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        pair = []
        for annotations in (truth, found):
            coco = pycocotools.coco.COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            pair.append(coco)
        run = pycocotools.cocoeval.COCOeval(*pair, "bbox")
        run.evaluate()
        run.accumulate()
    return run.eval["precision"], run.eval["recall"]


def _summarize(precision: Float[np.ndarray, "10 R C 4 3"], recall: Float[np.ndarray, "10 C 4 3"]) -> dict[str, float]:
    values = (
        precision[:, :, :, 0, 2],
        precision[0, :, :, 0, 2],  # IoU .5
        precision[5, :, :, 0, 2],  # IoU .75
        precision[:, :, :, 1, 2],
        precision[:, :, :, 2, 2],
        precision[:, :, :, 3, 2],
        recall[:, :, 0, 0],
        recall[:, :, 0, 1],
        recall[:, :, 0, 2],
        recall[:, :, 1, 2],
        recall[:, :, 2, 2],
        recall[:, :, 3, 2],
    )
    return {key: mean_defined(value) for key, value in zip(KEYS, values, strict=True)}


def mean_defined(values: Float[np.ndarray, "..."]) -> float:
    """Mean of what was measured; -1 where nothing was."""
    measured = values[values > NOTHING]
    return float(measured.mean()) if measured.size else NOTHING
