"""AP on a part of the objects: by size, by aspect ratio, and by how many there are in the image.

The rule is COCO's own for sizes, for every slicing: objects outside of a slice are neither to be found nor wrong to
find, a detection that is given one of them does not count, and one that is given no object counts in the slice in which
it lies itself. So hotcoco measures every slicing by its rule for areas, with another number in the place of the area:

- size: an object's area (that of its segment where the data set has one), a detection's width times height; small up
  to 32^2 pixels, large from 96^2, borders on both sides, as COCO has it. These are APs, APm and APl.
- aspect: a box is tall where it is more than twice as high as wide, wide where more than twice as wide as high.
- crowding: objects in the image, crowd regions left out. An object's overlap with its neighbours would be nearer to
  what confuses a detector, but a detection of nothing has no neighbours to be judged by; its image it always has, so
  the slices are AP on the images with few, some and many objects.

VOC's `difficult` is not known here, as in COCO's protocol.

Legend:
    T  objects      D  detections
"""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from zoo.evaluation.coco import NOTHING, load_hotcoco, mean_defined, pack_detections, run_tables
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.evaluation.scores import Detections, order_detections

Ranges: TypeAlias = dict[str, tuple[float, float]]
"""Name of a slice -> least and largest number in it, both ends included."""

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
    """A detector on some of the objects; -1 where there are none of them."""

    name: str
    objects: int
    AP: float
    AP50: float


def slices(ground_truth: GroundTruth, predictions: Predictions) -> dict[str, list[SliceScores]]:
    """Measures a detector on parts of the objects.

    Returns:
        "size", "aspect" and "crowding" -> its slices, all of them, also those without objects.

    Raises:
        InputError: see `zoo.evaluation.evaluate`.
    """
    columns = order_detections(ground_truth, predictions)
    image_index, boxes, _, _ = columns
    objects_wh, wh = to_xywh(ground_truth.boxes)[:, 2:], to_xywh(boxes)[:, 2:]
    counts = np.bincount(ground_truth.image_index[~ground_truth.iscrowd], minlength=len(ground_truth.image_ids))
    crowding = counts.astype(np.float64)
    return {
        "size": _measure(ground_truth, columns, ground_truth.areas, wh.prod(axis=1), SIZES),
        "aspect": _measure(ground_truth, columns, _aspect(objects_wh), _aspect(wh), ASPECTS),
        "crowding": _measure(
            ground_truth, columns, crowding[ground_truth.image_index], crowding[image_index], CROWDING
        ),
    }


def _aspect(wh: Float[np.ndarray, "boxes 2"]) -> Float[np.ndarray, "boxes"]:
    """Place in `ASPECTS`; without a division, so that a box without width or height has one too."""
    width, height = wh.T
    return 1.0 + (width > 2 * height) - (height > 2 * width)


def _measure(
    ground_truth: GroundTruth,
    columns: Detections,
    of_objects: Float[np.ndarray, "T"],
    of_detections: Float[np.ndarray, "D"],
    ranges: Ranges,
) -> list[SliceScores]:
    """Measures a detector where a number of objects and detections lies in each of some ranges."""
    looked_for = of_objects[~ground_truth.iscrowd]
    inside = [(low <= looked_for) & (looked_for <= high) for low, high in ranges.values()]
    if not len(looked_for):
        return [SliceScores(name, 0, NOTHING, NOTHING) for name in ranges]
    run = load_hotcoco(replace(ground_truth, areas=of_objects), pack_detections(*columns), of_detections)
    run.params.area_rng = [list(ends) for ends in ranges.values()]
    run.params.area_rng_lbl = list(ranges)
    precision, _ = run_tables(run)
    return [
        SliceScores(
            name=name,
            objects=int(inside[place].sum()),
            AP=mean_defined(precision[:, :, :, place, 2]),
            AP50=mean_defined(precision[0, :, :, place, 2]),
        )
        for place, name in enumerate(ranges)
    ]
