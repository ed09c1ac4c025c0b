"""Boxes of COCO files whose `bbox` is not the extent of the object: rotated, corners, or unlike the polygon.

Legend:
    T  objects
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from zoo.data.formats.coco.records import ABSENT, Annotation, AnnotationWithPolygon, decode
from zoo.errors import InputError

# Boxes are corners if this fraction of them, read as x y width height, extends beyond the image ...
_BEYOND_SHARE = 0.1
# ... by more than this fraction of its side, and a pixel for rounding.
_BEYOND_SIDE = 0.05
_ROUNDING = 1.0
# Edges of a polygon may lie outside of its box by this fraction of its side, and at least by this number of pixels.
_POLYGON_SIDE = 0.1
_POLYGON_PIXELS = 2.0
# A polygon may be smaller than its box where only the visible part of an object is outlined, but not below this share.
_POLYGON_AREA = 0.1


class BoxesAreCornersError(InputError):
    """The boxes of a split are x1 y1 x2 y2 instead of x y width height."""


class _Attributes(msgspec.Struct):
    rotation: float | str = 0.0


def rotations(rows: Sequence[Annotation]) -> Float64[np.ndarray, " T"]:
    """Degrees of CVAT's `attributes.rotation` of each annotation; 0 where it is absent or not a number."""
    degrees = np.zeros(len(rows))
    for row, record in enumerate(rows):
        if record.attributes is not ABSENT:
            try:
                degrees[row] = float(msgspec.json.decode(record.attributes, type=_Attributes).rotation)
            except (msgspec.DecodeError, ValueError):  # attributes of another program
                continue
    return np.where(np.isfinite(degrees), degrees, 0)


def rotated_extents(
    boxes: Float64[np.ndarray, "T 4"], degrees: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "T 4"]:
    """Extents (xyxy) of boxes (xyxy) that are rotated about their centres."""
    angles = np.deg2rad(degrees)
    cosines, sines = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    widths = halves[:, 0] * cosines + halves[:, 1] * sines
    heights = halves[:, 0] * sines + halves[:, 1] * cosines
    extents = np.stack([widths, heights], axis=1)
    return np.concatenate([centres - extents, centres + extents], axis=1)


def look_like_corners(boxes: Float64[np.ndarray, "T 4"], sizes: Float64[np.ndarray, "T 2"]) -> bool:
    """Whether boxes fit their images only if `bbox` is x1 y1 x2 y2.

    Args:
        boxes: (x, y, x + width, y + height); rows that are not finite are not regarded.
        sizes: width and height of the image of each box; rows where these are 0 are not regarded.
    """
    known = np.isfinite(boxes).all(1) & (sizes > 0).all(1)
    boxes, sizes = boxes[known], sizes[known]
    if not len(boxes):
        return False
    beyond = (boxes[:, 2:] > sizes * (1 + _BEYOND_SIDE) + _ROUNDING).any(1)
    if beyond.mean() < _BEYOND_SHARE:
        return False
    near, far = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    inside = (near >= -_ROUNDING) & (far >= near) & (far <= sizes + _ROUNDING)
    return bool(inside.all())


def polygon_extents(annotations: str | Path) -> Float64[np.ndarray, "T 4"]:
    """Extents (xyxy) of the polygons of each annotation that `parse_coco` returns; NaN where it has no polygon."""
    content, _ = decode(annotations, lambda _: None, AnnotationWithPolygon)
    extents = [_extent(record.segmentation) for record in content.annotations]
    return np.array(extents, np.float64).reshape(-1, 4)


def _extent(segmentation: msgspec.Raw) -> tuple[float, float, float, float]:
    nothing = (np.nan, np.nan, np.nan, np.nan)
    try:
        polygons = msgspec.json.decode(segmentation, type=list[list[float]])
    except msgspec.DecodeError:  # absent, null, or a mask
        return nothing
    if not any(polygons) or any(len(polygon) % 2 for polygon in polygons):
        return nothing
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def unlike_polygons(boxes: Float64[np.ndarray, "T 4"], extents: Float64[np.ndarray, "T 4"]) -> Bool[np.ndarray, " T"]:
    """Mask of boxes that their polygons contradict: these lie partly outside of the box, or fill little of it.

    Args:
        boxes: xyxy.
        extents: as returned by `polygon_extents`.
    """
    with np.errstate(invalid="ignore"):
        sides = extents[:, 2:] - extents[:, :2]
        tolerance = np.maximum(_POLYGON_PIXELS, _POLYGON_SIDE * sides)
        outside = (extents[:, :2] < boxes[:, :2] - tolerance) | (extents[:, 2:] > boxes[:, 2:] + tolerance)
        small = (_product(sides) > 0) & (_product(sides) < _POLYGON_AREA * _product(boxes[:, 2:] - boxes[:, :2]))
        return outside.any(1) | small


def _product(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    return sides[:, 0] * sides[:, 1]
