"""AP of slices of the objects: by size, by aspect ratio, and by number of objects in the image.

Every slicing follows COCO's rule for sizes: objects outside of a slice are ignored, a detection matched to one of them
does not count, and an unmatched detection counts in the slice that it lies in itself. So hotcoco evaluates every
slicing by its area ranges, with another value in place of the area:

- size: an object's area (of its segment where the data set has one), a detection's width times height; small up to
  32^2 pixels, large from 96^2, limits included in both slices, as in COCO. These are APs, APm and APl.
- aspect: a box is tall if its height is more than twice its width, wide if its width is more than twice its height.
- crowding: number of objects in the image without crowd regions. The overlap of an object with its neighbours would be
  closer to what confuses a detector, but it is undefined for a false positive; the number of objects in its image is
  not. So the slices are AP on images with few, some and many objects.

VOC's `difficult` is ignored, as in COCO's protocol.

Legend:
    T  objects      D  detections
"""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from zoo.evaluation.coco import UNDEFINED, load_hotcoco, mean_defined, pack_detections, run_tables
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import Detections, order_detections

Ranges: TypeAlias = dict[str, tuple[float, float]]
"""Name of a slice -> lowest and highest value in it, both included."""

SIZES: Ranges = {
    "small: area up to 32² pixels": (0.0, 32.0**2),
    "medium: 32² to 96²": (32.0**2, 96.0**2),
    "large: area from 96²": (96.0**2, 1e5**2),
}
ASPECTS: Ranges = {
    "tall: height over width above 2": (0.0, 0.0),
    "between": (1.0, 1.0),
    "wide: width over height above 2": (2.0, 2.0),
}
CROWDING: Ranges = {
    "few: up to 4 objects in the image": (0.0, 4.0),
    "some: 5 to 9": (5.0, 9.0),
    "many: 10 or more": (10.0, math.inf),
}


@dataclass(frozen=True)
class SliceScores:
    """AP of one slice; -1 if it has no objects."""

    name: str
    objects: int
    AP: float
    AP50: float


def evaluate_slices(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, list[SliceScores]]:
    """AP of predictions by slice of the objects.

    Returns:
        "size", "aspect" and "crowding" -> all their slices, including those without objects.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    image_index, boxes, _, _ = columns
    gt_wh, wh = to_xywh(ground_truth.boxes)[:, 2:], to_xywh(boxes)[:, 2:]
    counts = np.bincount(ground_truth.image_index[~ground_truth.iscrowd], minlength=len(ground_truth.image_ids))
    crowding = counts.astype(np.float64)
    return {
        "size": _evaluate_ranges(ground_truth, columns, ground_truth.areas, wh.prod(axis=1), SIZES),
        "aspect": _evaluate_ranges(ground_truth, columns, _aspect(gt_wh), _aspect(wh), ASPECTS),
        "crowding": _evaluate_ranges(
            ground_truth, columns, crowding[ground_truth.image_index], crowding[image_index], CROWDING
        ),
    }


def _aspect(wh: Float[np.ndarray, "boxes 2"]) -> Float[np.ndarray, " boxes"]:
    """Index in `ASPECTS`; without a division, so that it is defined for boxes without width or height."""
    width, height = wh.T
    return 1.0 + (width > 2 * height) - (height > 2 * width)


def _evaluate_ranges(
    ground_truth: GroundTruth,
    columns: Detections,
    gt_values: Float[np.ndarray, " T"],
    values: Float[np.ndarray, " D"],
    ranges: Ranges,
) -> list[SliceScores]:
    """AP of each range of values of objects (`gt_values`) and detections (`values`)."""
    positives = gt_values[~ground_truth.iscrowd]
    inside = [(low <= positives) & (positives <= high) for low, high in ranges.values()]
    if not len(positives):
        return [SliceScores(name, 0, UNDEFINED, UNDEFINED) for name in ranges]
    run = load_hotcoco(replace(ground_truth, areas=gt_values), pack_detections(*columns), values)
    run.params.area_rng = [list(ends) for ends in ranges.values()]
    run.params.area_rng_lbl = list(ranges)
    precision, _ = run_tables(run)
    return [
        SliceScores(
            name=name,
            objects=int(inside[index].sum()),
            AP=mean_defined(precision[:, :, :, index, 2]),
            AP50=mean_defined(precision[0, :, :, index, 2]),
        )
        for index, name in enumerate(ranges)
    ]
