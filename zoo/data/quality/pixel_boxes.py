"""Convert a YOLO split whose boxes are all in pixels, where no other meaning of the numbers is possible."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.raw import RawSplit
from zoo.data.formats.yolo import Yolo, parse_yolo
from zoo.data.quality.annotation_checks import EDGE_TOLERANCE
from zoo.data.source import Source
from zoo.errors import InputError

_PERCENT = 100.0


def boxes_in_pixels(raw: RawSplit, source: Source) -> RawSplit | None:
    """The split with the boxes that its label files give in pixels; None where this is not certain.

    It is certain if the parser could use no row of the split, all rows are centres, widths and heights in pixels of
    boxes within their images, and they would not all be within their images as corners, as a left upper corner with
    width and height, or as percentages.

    Args:
        raw: the split without the rows that have coordinates above 1, with the sizes of the images.
        source: of the split.
    """
    if not isinstance(source, Yolo) or len(raw.labels):
        return None
    errors: list[InputError] = []
    parsed = parse_yolo(source.data, source.split, errors.append, in_pixels=True)
    parsed = parsed.with_classes(raw.classes, raw.class_ids)
    if errors or len(parsed) != len(raw) or not len(parsed.labels) or (parsed.labels < 0).any():
        return None
    sizes = np.stack([raw.widths, raw.heights], axis=1)[parsed.image_index]
    centres, sides = (parsed.boxes[:, :2] + parsed.boxes[:, 2:]) / 2, parsed.boxes[:, 2:] - parsed.boxes[:, :2]
    others = [np.concatenate([centres, sides], axis=1), np.concatenate([centres, centres + sides], axis=1)]
    may_be_percent = bool((parsed.boxes <= _PERCENT).all())
    if may_be_percent or not _fit(parsed.boxes, sizes) or any(_fit(boxes, sizes) for boxes in others):
        return None
    return replace(parsed, widths=raw.widths, heights=raw.heights)


def _fit(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> bool:
    """Whether all boxes [T, 4] have an area and lie within their images of sizes [T, 2]."""
    near, far = boxes[:, :2], boxes[:, 2:]
    return bool((near >= -EDGE_TOLERANCE).all() and (far <= sizes + EDGE_TOLERANCE).all() and (far > near).all())
