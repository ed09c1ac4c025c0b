"""COCO's twelve metrics and AP by class, of boxes or of masks, computed by hotcoco or pycocotools.

hotcoco is the default (Rust, bit-equal to pycocotools and about fifty times faster); pycocotools is the reference. Both
get the same arrays and return the same precision and recall tables, which are summarised here as in
`COCOeval.summarize` (github.com/cocodataset/cocoapi, pycocotools/cocoeval.py).

For masks, an object without one does not count: its box is a crowd region (`GroundTruth.for_masks`). The size of a
detection is the area of its mask.

COCO's protocol has no counterpart to VOC's `difficult`: such objects are normal objects here, as in every VOC data set
that was converted to COCO's json.

Legend:
    D  detections      T  objects      C  classes      R  101 recall thresholds
"""

import contextlib
import gc
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import hotcoco
import numpy as np
from jaxtyping import Float, Int64

from zoo.data.masks import areas_of_runs
from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks
from zoo.evaluation.predictions import to_xywh

Engine: TypeAlias = Literal["hotcoco", "pycocotools"]

UNDEFINED = -1.0  # value of a metric without ground truth, as in pycocotools
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, eq=False)
class CocoScores:
    """COCO's twelve metrics, and AP and AP50 by class; -1 where there is no ground truth."""

    metrics: dict[str, float]  # KEYS
    ap: Float[np.ndarray, " C"]
    ap50: Float[np.ndarray, " C"]


Tables: TypeAlias = tuple[Float[np.ndarray, "10 R C A 3"], Float[np.ndarray, "10 C A 3"]]
"""Precision and recall by IoU .5 .. .95, (recall,) class, A sizes (all, s, m, l), and max detections (1, 10, 100)."""


def summarize_tables(tables: Sequence[Tables]) -> CocoScores:
    """Metrics from tables of the classes in order, in one or several parts."""
    precision = np.concatenate([precision for precision, _ in tables], axis=2)
    recall = np.concatenate([recall for _, recall in tables], axis=1)
    return CocoScores(
        metrics=_summarize(precision, recall),
        ap=np.array([mean_defined(precision[:, :, c, 0, 2]) for c in range(precision.shape[2])]),
        ap50=np.array([mean_defined(precision[0, :, c, 0, 2]) for c in range(precision.shape[2])]),
    )


def coco_tables(
    ground_truth: GroundTruth,
    image_index: Int64[np.ndarray, " D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
    engine: Engine = "hotcoco",
    masks: ObjectMasks | None = None,
) -> Tables:
    """Precision and recall of detections by COCO's protocol for boxes, or for masks where these are given.

    Args:
        ground_truth: of all images.
        image_index: index of each detection's image in `ground_truth.image_ids`; detections are in canonical order
            (see `zoo.evaluation.scores`).
        boxes: xyxy in pixels.
        scores: any finite numbers, higher is more confident.
        labels: 0 .. C - 1.
        engine: library that computes the precision and recall tables.
        masks: of the detections; the ground truth is then that of `GroundTruth.for_masks`.
    """
    num_classes = len(ground_truth.classes)
    if num_classes == 0 or len(ground_truth.image_ids) == 0:
        return np.full((10, 101, num_classes, 4, 3), UNDEFINED), np.full((10, num_classes, 4, 3), UNDEFINED)
    detections = pack_detections(image_index, boxes, scores, labels)
    run = _run_hotcoco if engine == "hotcoco" else _run_pycocotools
    return run(ground_truth, detections, masks)


def pack_detections(
    image_index: Int64[np.ndarray, " D"],
    boxes: Float[np.ndarray, "D 4"],
    scores: Float[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"],
) -> Float[np.ndarray, "D 7"]:
    """Image, x, y, w, h, score and class of each detection, the array format that both engines read."""
    detections = np.empty((len(scores), 7))
    detections[:, 0] = image_index
    detections[:, 1:5] = boxes
    detections[:, 3:5] -= detections[:, 1:3]
    detections[:, 5] = scores
    detections[:, 6] = labels
    return detections


def load_hotcoco(
    ground_truth: GroundTruth,
    detections: Float[np.ndarray, "D 7"],
    areas: Float[np.ndarray, " D"] | None = None,
    masks: ObjectMasks | None = None,
) -> hotcoco.COCOeval:
    """A hotcoco evaluation of the detections, not run yet; detection i has the id i + 1.

    Args:
        ground_truth: of all images.
        detections: see `pack_detections`.
        areas: areas of the detections, which decide their size range; None for width times height, or for those of
            the masks.
        masks: of the detections, which are then compared instead of their boxes; the ground truth is then that of
            `GroundTruth.for_masks`.
    """
    coco_gt = hotcoco.COCO.from_arrays(
        images=[{"id": i} for i in range(len(ground_truth.image_ids))],
        categories=[{"id": c, "name": name} for c, name in enumerate(ground_truth.classes)],
        image_ids=ground_truth.image_index,
        category_ids=ground_truth.labels,
        boxes=to_xywh(ground_truth.boxes),
        area=ground_truth.areas,
        iscrowd=ground_truth.iscrowd,
        segmentation=None if masks is None or ground_truth.masks is None else ground_truth.masks.run_lengths(),
    )
    found = None if masks is None else masks.run_lengths()
    coco_dt = coco_gt.load_res(detections, segmentation=found)
    if found is not None and areas is None:
        areas = areas_of_runs(found).astype(np.float64)
    if areas is not None:
        coco_dt.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
    return hotcoco.COCOeval(coco_gt, coco_dt, "bbox" if masks is None else "segm")


def run_tables(run: hotcoco.COCOeval) -> Tables:
    """Run an evaluation and return its precision and recall tables."""
    run.evaluate()
    run.accumulate()
    tables = run.eval
    assert tables is not None
    return tables["precision"], tables["recall"]


def _run_hotcoco(ground_truth: GroundTruth, detections: Float[np.ndarray, "D 7"], masks: ObjectMasks | None) -> Tables:
    with _paused_collector():
        return run_tables(load_hotcoco(ground_truth, detections, masks=masks))


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause Python's garbage collector: looking through the dicts of many masks takes as long as the evaluation."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _run_pycocotools(
    ground_truth: GroundTruth, detections: Float[np.ndarray, "D 7"], masks: ObjectMasks | None
) -> Tables:
    # imported here, since it imports matplotlib's pyplot, which is slow and not needed by the default engine
    import pycocotools.coco
    import pycocotools.cocoeval

    # pycocotools asks for the sizes of images with masks, but does not use them for compressed run lengths
    images = [{"id": i, "height": 0, "width": 0} for i in range(len(ground_truth.image_ids))]
    categories = [{"id": c, "name": name} for c, name in enumerate(ground_truth.classes)]
    objects = zip(
        ground_truth.image_index.tolist(),
        ground_truth.labels.tolist(),
        to_xywh(ground_truth.boxes).tolist(),
        ground_truth.areas.tolist(),
        ground_truth.iscrowd.tolist(),
        strict=True,
    )
    # ids from 1, since the engine uses the object id 0 for an unmatched detection
    gt_annotations = [
        {"id": i, "image_id": image, "category_id": label, "bbox": bbox, "area": area, "iscrowd": int(crowd)}
        for i, (image, label, bbox, area, crowd) in enumerate(objects, start=1)
    ]
    dt_annotations = [
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
    if masks is not None and ground_truth.masks is not None:
        for annotation, mask in zip(gt_annotations, ground_truth.masks.run_lengths(), strict=True):
            annotation["segmentation"] = mask
        for annotation, mask, area in zip(dt_annotations, masks.run_lengths(), masks.areas().tolist(), strict=True):
            annotation |= {"segmentation": mask, "area": area}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        pair = []
        for annotations in (gt_annotations, dt_annotations):
            coco = pycocotools.coco.COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            pair.append(coco)
        run = pycocotools.cocoeval.COCOeval(*pair, "bbox" if masks is None else "segm")
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
    """Mean of the defined values; -1 if none is defined."""
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED
