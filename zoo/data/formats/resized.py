"""Images whose size is not that of their annotation: which of the two are the boxes in pixels of?

Where the shape is the same, either the images were resized after they were annotated, and the boxes have to be scaled;
or images and boxes were resized and the sizes in the annotations were forgotten. The boxes of all such images of a
split together decide: a size is ruled out where boxes end far outside it, or where all boxes lie near its upper left
corner. Where that does not rule out exactly one, or the shape differs, the sizes are an error.

Legend: N images, T objects.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from PIL import Image as PILImage

from zoo.data.formats.raw import NUM_SAMPLED, OnError, RawSplit
from zoo.errors import InputError
from zoo.io.decoding import upright_size

MIN_OBJECTS = 20  # of resized images, to decide by
OUTSIDE = 0.05  # of a side: a box that ends farther outside is not one that sticks out a little
MIN_OUTSIDE, MIN_OUTSIDE_SHARE = 3, 0.01  # boxes far outside that rule out a size
LOPSIDED = 0.15  # of a side: difference of the empty margins at the far and the near edges that rules out a size


class WrongSizesError(InputError):
    """Images have other sizes than their annotations, and the boxes do not tell which are right."""


def resolve_resized(raw: RawSplit, on_error: OnError) -> RawSplit:
    """A split with the sizes of its image files, and boxes scaled to them, where both can be told from the boxes.

    Sizes are compared for a sample of the images first. Images that cannot be read are left as they are.

    Args:
        raw: split with annotated sizes.
        on_error: called with a WrongSizesError where an image has another size and it stays open which one is right.
    """
    if not raw.folders or not len(raw):
        return raw
    sample = np.unique(np.linspace(0, len(raw) - 1, NUM_SAMPLED).astype(np.int64))
    if not len(_find_differing(raw, sample)):
        return raw
    differing = _find_differing(raw, np.arange(len(raw)))
    annotated = np.stack([raw.widths, raw.heights], axis=1)
    same_shape = [have_one_shape((width, height), tuple(annotated[image])) for image, width, height in differing]
    resized = differing[same_shape]
    sizes = annotated.copy()
    sizes[resized[:, 0]] = resized[:, 1:]
    of_resized = np.isin(raw.image_index, resized[:, 0]) & np.isfinite(raw.boxes).all(axis=1)
    boxes, index = raw.boxes[of_resized], raw.image_index[of_resized]
    is_annotated, is_actual = _can_be_in(boxes, annotated[index]), _can_be_in(boxes, sizes[index])
    if len(resized) < len(differing) or is_annotated == is_actual:
        image, width, height = differing[same_shape.index(False) if not all(same_shape) else 0].tolist()
        said = "{}x{}".format(*annotated[image])
        on_error(
            WrongSizesError(
                f"image is {width}x{height} but its annotation says {said}; {len(differing)} of {len(raw)} images "
                "differ so; correct the sizes, or scale the boxes",
                raw.path(image),
            )
        )
        return raw
    scales = sizes / np.maximum(annotated, 1)
    what = "the boxes fit their actual size; the annotated sizes are not used"
    scaled, areas, masks = raw.boxes, raw.areas, raw.masks
    if is_annotated:
        of_objects = scales_of_objects(scales, raw)
        scaled, areas = raw.boxes * np.tile(of_objects, 2), raw.areas * of_objects.prod(axis=1)
        masks = None if masks is None else masks.scale(of_objects)
        what = "the boxes fit the annotated size and were scaled to the actual one"
    first = int(resized[0, 0])
    now, before = ("{}x{}".format(*pair[first]) for pair in (sizes, annotated))
    note = (
        f"{len(resized)} of {len(raw)} images have the shape but not the size of their annotation, the first "
        f"{raw.path(first)} ({now}, not {before}): {what}"
    )
    return replace(
        raw,
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        boxes=scaled,
        areas=areas,
        masks=masks,
        box_scales=scales if is_annotated else None,
        notes=(*raw.notes, note),
    )


def scales_of_objects(scales: Float64[np.ndarray, "N 2"], raw: RawSplit) -> Float64[np.ndarray, "T 2"]:
    """Scale of the image of each object; 1 for unknown images."""
    return np.concatenate([scales, [[1.0, 1.0]]])[raw.image_index]  # the index of unknown images is -1


def have_one_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one size is the other one resized with its aspect ratio, up to rounding to whole pixels."""
    (w1, h1), (w2, h2) = sorted((one, other))
    return bool(abs(int(w1) * int(h2) - int(h1) * int(w2)) <= max(w2, h2))


def _find_differing(raw: RawSplit, images: Int64[np.ndarray, " _"]) -> NDArray[np.int64]:
    """(image, actual width, actual height) of those images that have another size than annotated.

    An annotation may ignore an EXIF rotation (see `load_image`).
    """
    found = []
    for index in images.tolist():
        annotated = int(raw.widths[index]), int(raw.heights[index])
        allowed = _read_sizes(raw.path(index)) if min(annotated) > 0 else []
        if allowed and annotated not in allowed:
            found.append((index, *allowed[0]))
    return np.array(found, np.int64).reshape(-1, 3)


def _read_sizes(path: Path) -> list[tuple[int, int]]:
    """Size of an upright image, and of the image without its EXIF rotation; [] if it cannot be read."""
    try:
        upright = upright_size(path)
        with PILImage.open(path) as image:
            return [upright, image.size]
    except (InputError, OSError):
        return []


def _can_be_in(boxes: Float64[np.ndarray, "T 4"], sizes: Int64[np.ndarray, "T 2"]) -> bool:
    """Whether boxes can be in pixels of images of these sizes; True where there are too few to tell."""
    if len(boxes) < MIN_OBJECTS:
        return True
    ends = boxes[:, 2:] / sizes
    num_outside = int((ends > 1 + OUTSIDE).any(axis=1).sum())
    if num_outside >= max(MIN_OUTSIDE, MIN_OUTSIDE_SHARE * len(boxes)):
        return False
    near_margin, far_margin = (boxes[:, :2] / sizes).min(axis=0), 1 - ends.max(axis=0)
    return not bool((far_margin - near_margin >= LOPSIDED).all())
