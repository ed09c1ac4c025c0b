"""Checks of masks, and of masks against their boxes; no image file is read.

Legend: T objects.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from zoo.data.formats.raw import RawSplit
from zoo.data.masks import NONE, RUNS, Masks
from zoo.data.quality.annotation_checks import format_box, object_finding
from zoo.data.quality.findings import Finding
from zoo.data.quality.neighbours import pair_iou

OUTSIDE_SHARE, OUTSIDE_PIXELS = 0.05, 2.0
"""A mask may extend beyond its box by this share of the box's side, and always by this many pixels."""
UNLIKE_IOU = 0.7
"""A box whose IoU with the extent of its mask is lower disagrees with it."""


def mask_findings(split: str, raw: RawSplit, known: set[int]) -> Iterator[Finding]:
    """Masks without pixels, outside of their boxes, unlike their boxes, and of several parts.

    Args:
        split: name of the split.
        raw: with image sizes.
        known: rows whose box and polygon are known to contradict each other.
    """
    if raw.masks is None:
        return
    sized = (raw.image_index >= 0) & (np.append(raw.widths, 0)[raw.image_index] > 0)
    given = np.flatnonzero((raw.masks.kinds != NONE) & sized & np.isfinite(raw.boxes).all(axis=1))
    masks = raw.masks.select(given)
    images = raw.image_index[given]
    extents = extents_of(masks, raw.heights[images], raw.widths[images])
    empty = masks.areas(raw.heights[images], raw.widths[images]) == 0
    for row in given[empty].tolist():
        yield object_finding("mask_empty", split, raw, row, "the mask has no pixel")
    boxes = raw.boxes[given]
    beyond = np.concatenate([boxes[:, :2] - extents[:, :2], extents[:, 2:] - boxes[:, 2:]], axis=1)
    allowed = np.maximum(OUTSIDE_SHARE * np.tile(boxes[:, 2:] - boxes[:, :2], 2), OUTSIDE_PIXELS)
    compared = ~empty & ~raw.iscrowd[given] & ~np.isin(given, list(known))
    outside = compared & (beyond > allowed).any(axis=1)
    for at in np.flatnonzero(outside).tolist():
        message = f"the mask extends {beyond[at].max():.4g} pixels beyond its box {format_box(boxes[at])}"
        yield object_finding("mask_outside_box", split, raw, int(given[at]), message)
    iou = pair_iou(boxes, extents)
    for at in np.flatnonzero(compared & ~outside & (iou < UNLIKE_IOU)).tolist():
        message = (
            f"box {format_box(boxes[at])} and the extent of its mask, {format_box(extents[at])}, have IoU {iou[at]:.2f}"
        )
        yield object_finding("mask_unlike_box", split, raw, int(given[at]), message)
    parted = np.flatnonzero(_has_parts(masks) & ~raw.iscrowd[given])
    if len(parted):
        message = f"{len(parted)} of {len(given)} masks are of several polygons, the first this one"
        yield object_finding("mask_in_parts", split, raw, int(given[parted[0]]), message)


def extents_of(masks: Masks, heights: NDArray[np.integer], widths: NDArray[np.integer]) -> Float64[np.ndarray, "T 4"]:
    """Boxes around masks, xyxy; of polygons around their corners, cut to the image."""
    extents = np.zeros((len(masks), 4))
    for row, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
        if masks.kinds[row] == RUNS:
            x, y, w, h = coco_mask.toBbox({"size": [height, width], "counts": masks.runs(row, height, width)})
            extents[row] = (x, y, x + w, y + h)
        else:
            corners = np.concatenate(masks.polygons(row)).reshape(-1, 2)
            low, high = corners.min(axis=0), corners.max(axis=0)
            extents[row] = np.clip([*low, *high], 0, [width, height, width, height])
    return extents


def _has_parts(masks: Masks) -> Bool[np.ndarray, " T"]:
    return np.array([len(masks.polygons(row)) > 1 for row in range(len(masks))], bool)
