"""Masks of VOC: `SegmentationObject/*.png`, in which pixel k belongs to the k-th object of the xml file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray
from PIL import Image as PILImage

from zoo.data.formats.raw import MaskError, OnError
from zoo.data.masks import Masks, encode_runs
from zoo.errors import InputError
from zoo.io.files import atomic_path


def read_masks(
    files: Sequence[Path], counts: Sequence[int], sizes: Int32[np.ndarray, "N 2"], on_error: OnError
) -> tuple[Masks, list[str]]:
    """(masks, notes) of the objects of all images; those of an image without a file, or without a pixel, have none.

    Args:
        files: png file of each image, which may be missing.
        counts: number of objects of each image.
        sizes: width and height of each image; 0 where unknown.
        on_error: called with the error for each file that cannot be used; its objects then have no masks.
    """
    found: list[bytes | None] = []
    missing = [file for file in files if not file.exists()]
    for file, count, size in zip(files, counts, sizes.tolist(), strict=True):
        numbers = None
        try:
            numbers = _read_png(file, *size) if file.exists() and count else None
        except MaskError as error:
            on_error(error)
        for number in range(1, count + 1):
            pixels = None if numbers is None else numbers == number
            found.append(encode_runs(pixels) if pixels is not None and pixels.any() else None)
    masks = Masks.pack(found)
    without = int((masks.kinds == 0).sum())
    notes = [f"{len(missing)} of {len(files)} images have no file of masks, the first {missing[0]}"] if missing else []
    if without and not missing:
        notes.append(f"{without} of {len(masks)} objects have no mask")
    return masks, notes


def write_masks(file: Path, masks: Masks, rows: range, height: int, width: int) -> None:
    """Write the masks of an image's objects; a pixel of several objects belongs to the last of them.

    Raises:
        InputError: there are more objects than the 254 numbers of such a file.
    """
    if len(rows) > MAX_OBJECTS:
        raise InputError(f"VOC's masks have {MAX_OBJECTS} objects in an image at most, this one has {len(rows)}", file)
    numbers = np.zeros((height, width), np.uint8)
    for number, row in enumerate(rows, start=1):
        numbers[masks.decode(row, height, width) > 0] = number
    picture = PILImage.fromarray(numbers, mode="P")
    picture.putpalette(PALETTE)
    with atomic_path(file) as temporary:
        picture.save(temporary, format="png")


def _palette() -> list[int]:
    """VOC's colours: the bits of a number, in turn, are the high bits of red, green and blue."""
    colours = []
    for number in range(256):
        bits = [[number >> (3 * place + channel) & 1 for place in range(8)] for channel in range(3)]
        colours += [sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits]
    return colours


MAX_OBJECTS = 254  # 0 is background, 255 marks borders
PALETTE = _palette()


def _read_png(file: Path, width: int, height: int) -> NDArray[np.uint8]:
    try:
        with PILImage.open(file) as image:
            mode, numbers = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise MaskError(f"cannot be read: {error}", file) from error
    if mode not in ("P", "L"):
        raise MaskError(f"has mode {mode}; VOC's masks are png files with a palette", file)
    found_height, found_width = numbers.shape
    if (width and height) and (found_width, found_height) != (width, height):
        raise MaskError(f"has {found_width}x{found_height} pixels, but its image has {width}x{height}", file)
    return numbers
