"""Images whose size is not that of their annotation, but its shape: boxes in pixels of which of the two?

Either the images were resized after they were annotated, and the boxes have to be scaled; or images and boxes were
resized and the sizes in the annotations were forgotten. The boxes of all such images of a split together decide: one
of the two is ruled out where boxes end outside the images, or where of many boxes none comes near the far edges.

Legend: N images, T objects.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from zoo.data.formats.raw import RawSplit
from zoo.data.images import upright_size
from zoo.errors import InputError

NUM_SAMPLED = 16  # images whose sizes are read first; all are read where one of them differs
MAX_OUTSIDE = 0.01  # fraction of boxes that may end outside their images by mistake
NUM_FOR_EXTENT = 20  # objects from which on some object comes near the far edge of its image
SMALLEST_EXTENT = 0.75  # of the image's side, that some object reaches


def resolve_resized(raw: RawSplit) -> RawSplit:
    """A split with the sizes of its image files, and boxes scaled to them, where both can be told from the boxes.

    Sizes are compared for a sample of the images first. Images that do not exist, or have another shape, are left as
    they are, and so is a split whose boxes leave it open which pixels they are in.
    """
    if not raw.folders or not len(raw):
        return raw
    sample = np.unique(np.linspace(0, len(raw) - 1, NUM_SAMPLED).astype(np.int64))
    if not _find_resized(raw, sample).size:
        return raw
    resized = _find_resized(raw, np.arange(len(raw)))
    images, actual = resized[:, 0], resized[:, 1:]
    annotated = np.stack([raw.widths, raw.heights], axis=1)
    sizes = annotated.copy()
    sizes[images] = actual
    of_resized = np.isin(raw.image_index, images) & np.isfinite(raw.boxes).all(axis=1)
    ends, index = raw.boxes[of_resized, 2:], raw.image_index[of_resized]
    is_annotated, is_actual = _may_be(ends, annotated[index]), _may_be(ends, sizes[index])
    if is_annotated == is_actual:
        return raw
    scales = sizes / np.maximum(annotated, 1)
    what = "the boxes fit their actual size; the annotated sizes are not used"
    boxes, areas = raw.boxes, raw.areas
    if is_annotated:
        of_objects = np.concatenate([scales, [[1.0, 1.0]]])[raw.image_index]  # last item: unknown image
        boxes, areas = boxes * np.tile(of_objects, 2), areas * of_objects.prod(axis=1)
        what = "the boxes fit the annotated size and were scaled to the actual one"
    first = int(images[0])
    now, before = ("{}x{}".format(*pair[first]) for pair in (sizes, annotated))
    note = (
        f"{len(images)} of {len(raw)} images have the shape but not the size of their annotation, the first "
        f"{raw.path(first)} ({now}, not {before}): {what}"
    )
    return replace(
        raw,
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        boxes=boxes,
        areas=areas,
        box_scales=scales if is_annotated else None,
        notes=(*raw.notes, note),
    )


def _find_resized(raw: RawSplit, images: Int64[np.ndarray, "_"]) -> NDArray[np.int64]:
    """(image, actual width, actual height) of those images with the shape, but not the size of their annotation."""
    found = []
    for index in images.tolist():
        annotated = int(raw.widths[index]), int(raw.heights[index])
        actual = _read_size(raw.path(index)) if min(annotated) > 0 else None
        if actual is not None and actual != annotated and have_one_shape(actual, annotated):
            found.append((index, *actual))
    return np.array(found, np.int64).reshape(-1, 3)


def have_one_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other one resized with its aspect ratio, up to rounding to whole pixels."""
    (w1, h1), (w2, h2) = sorted((one, other))
    return abs(w1 * h2 - h1 * w2) <= max(w2, h2)


def _read_size(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except InputError:
        return None


def _may_be(ends: Float64[np.ndarray, "T 2"], sizes: Int64[np.ndarray, "T 2"]) -> bool:
    """Whether boxes with these right and lower edges can be in pixels of images of these sizes."""
    if not len(ends):
        return True
    if np.mean((ends > sizes + 1).any(axis=1)) > MAX_OUTSIDE:
        return False
    return len(ends) < NUM_FOR_EXTENT or bool((ends / sizes).max() >= SMALLEST_EXTENT)
