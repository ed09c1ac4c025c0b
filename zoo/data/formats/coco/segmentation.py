"""Masks of COCO annotations: `segmentation` is a list of polygons, or run lengths, compressed or not."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from zoo.data.formats.coco.records import ABSENT, AnnotationWithPolygon
from zoo.data.masks import MIN_CORNERS, RUNS, Masks, check_runs, compress_runs, expand_runs


class _Runs(msgspec.Struct):
    size: tuple[int, int]  # height, width
    counts: str | list[int]


_Segmentation = list[list[float]] | _Runs | None
_decoder = msgspec.json.Decoder(_Segmentation)


def read_masks(
    records: Sequence[AnnotationWithPolygon],
    sizes: Int32[np.ndarray, "T 2"],
    on_problem: Callable[[int, str], None],
) -> tuple[Masks, list[str]]:
    """(masks, notes) of annotations; an object of which nothing can be used has none.

    Args:
        records: of the file.
        sizes: width and height of the image of each; 0 where unknown.
        on_problem: called with row and message for each segmentation that cannot be read.
    """
    dropped = 0
    found: list[list[NDArray[np.float64]] | bytes | None] = []
    for row, record in enumerate(records):
        mask: list[NDArray[np.float64]] | bytes | None = None
        try:
            mask, number = _read(record.segmentation, *sizes[row].tolist())
            dropped += number
        except (msgspec.DecodeError, ValueError) as problem:
            on_problem(row, f"`segmentation` cannot be read: {problem}")
        found.append(mask)
    masks = Masks.pack(found)
    without = int((masks.kinds == 0).sum())
    notes = [f"{dropped} parts of polygons with fewer than {MIN_CORNERS} corners were left out"] if dropped else []
    if without:
        notes.append(f"{without} of {len(records)} objects have no mask")
    return masks, notes


def _read(segmentation: msgspec.Raw, width: int, height: int) -> tuple[list[NDArray[np.float64]] | bytes | None, int]:
    """A mask, and the number of polygons with too few corners.

    Raises:
        msgspec.DecodeError: neither polygons nor run lengths.
        ValueError: coordinates without a partner, or run lengths that are damaged or of an image of another size.
    """
    content = None if segmentation is ABSENT else _decoder.decode(segmentation)
    if content is None:
        return None, 0
    if isinstance(content, _Runs):
        return _read_runs(content, width, height), 0
    polygons = [np.array(polygon, np.float64) for polygon in content]
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon has an odd number of coordinates")
    parts = [polygon for polygon in polygons if len(polygon) >= 2 * MIN_CORNERS]
    return parts or None, len(polygons) - len(parts)


def _read_runs(runs: _Runs, width: int, height: int) -> bytes:
    if (width and height) and runs.size != (height, width):
        raise ValueError(f"its size is {runs.size[1]}x{runs.size[0]}, but that of the image is {width}x{height}")
    text = runs.counts.encode() if isinstance(runs.counts, str) else compress_runs(np.array(runs.counts, np.int64))
    check_runs(expand_runs(text), *runs.size)
    return text


def segmentation_of(masks: Masks, row: int, height: int, width: int) -> list[list[float]] | dict[str, object]:
    """A mask as COCO writes it: its polygons, compressed run lengths, or an empty list where there is none."""
    if masks.kinds[row] == RUNS:
        return {"size": [height, width], "counts": masks.runs(row, height, width).decode()}
    return [polygon.tolist() for polygon in masks.polygons(row)]
