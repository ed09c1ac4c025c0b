"""What a DataModule is given, and the checks that every reader makes alike."""

import os
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.types import Image


class DataWarning(UserWarning):
    """Something in a data set was left out or looks wrong; the run goes on."""


class Source(ABC):
    """Where the images and annotations of one split come from; small, picklable, no state."""

    @abstractmethod
    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """Reads the annotations and makes sure that the image files are there.

        Args:
            strict: bad boxes end in an InputError instead of a counted warning.
            classes: the list that another split of the data set settled. It decides where this source has no list of
                its own; a source that has one keeps it, and whoever reads both compares.

        Raises:
            InputError: whatever cannot be used, by file and place.
        """

    @abstractmethod
    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """Decodes image `index` of a table that this source read: uint8 [3, H, W], RGB, upright.

        Raises:
            InputError: the file is missing, truncated, no image, or of another size than the table says.
        """


def find_bad_boxes(
    boxes: NDArray[np.float64], widths: NDArray[np.int32], heights: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Which boxes nothing can be learned from or measured against.

    Args:
        boxes: [T, 4] edges in pixels.
        widths: [T] of the image that each box lies in.
        heights: as `widths`.

    Returns:
        [T], true for boxes with a NaN or infinite edge, reversed ones, and those that have no area inside their image.
        A box that only sticks out is good.
    """
    with np.errstate(invalid="ignore"):
        visible_width = np.minimum(boxes[:, 2], widths) - np.maximum(boxes[:, 0], 0)
        visible_height = np.minimum(boxes[:, 3], heights) - np.maximum(boxes[:, 1], 0)
        return ~(np.isfinite(boxes).all(1) & (visible_width > 0) & (visible_height > 0))


def describe_bad_box(box: NDArray[np.float64], width: int, height: int) -> str:
    """Why a box is bad, in words that a user can act on."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    numbers = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not np.isfinite(box).all():
        return f"box {numbers} has an edge that is not a finite number"
    if x2 < x1 or y2 < y1:
        return f"box {numbers} is reversed: its right or bottom edge comes before its left or top edge"
    if x2 == x1 or y2 == y1:
        return f"box {numbers} has no area"
    return f"box {numbers} lies outside its image of {width}x{height}"


def report_bad_boxes(
    bad: NDArray[np.bool_], describe: Callable[[int], tuple[str, str | Path, str | None]], strict: bool
) -> None:
    """Says what happens to bad boxes: one counted warning that names the first, or an error.

    Args:
        bad: [T].
        describe: row -> (what is wrong, the file, the place in it).
        strict: raise instead of warn.

    Raises:
        InputError: under `strict`, for the first bad box.
    """
    if not bad.any():
        return
    message, file, place = describe(int(np.flatnonzero(bad)[0]))
    count = int(bad.sum())
    if strict:
        others = f" ({count} bad boxes in all)" if count > 1 else ""
        raise InputError(f"{message}{others}; mend it, or leave `strict` off to skip such boxes", file, place)
    prefix = ": ".join(part for part in (str(file), place) if part)
    warnings.warn(
        f"{count} bad {'box' if count == 1 else 'boxes'} skipped, the first in {prefix}: {message}",
        DataWarning,
        stacklevel=4,
    )


def find_missing(paths: Sequence[Path]) -> list[int]:
    """Which files are not there, ascending; with one listing a folder instead of one call a file."""
    wanted: dict[Path, list[tuple[str, int]]] = defaultdict(list)
    for index, path in enumerate(paths):
        wanted[path.parent].append((path.name, index))
    missing: list[int] = []
    for folder, names in wanted.items():
        try:
            with os.scandir(folder) as entries:
                present = {entry.name for entry in entries}
        except OSError:
            present = set()
        missing += [index for name, index in names if name not in present]
    return sorted(missing)


def check_files(paths: Sequence[Path], annotations: str | Path) -> None:
    """Makes sure that every image file of a split is there.

    Args:
        paths: the image files.
        annotations: the file that names the images, for the message.

    Raises:
        InputError: the first missing file and how many there are.
    """
    missing = find_missing(paths)
    if missing:
        raise InputError(
            f"image file is missing ({len(missing)} of {len(paths)} images named in {annotations} are); "
            "check the folder of the images",
            file=paths[missing[0]],
        )


def read_text(path: str | Path, what: str) -> str:
    """A whole text file.

    Args:
        path: the file.
        what: what it is, for the message ("split file").

    Raises:
        InputError: missing, unreadable, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{what} is missing", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read: {error}", file=path) from error


def write_text(path: Path, text: str) -> None:
    """A text file whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def printable(path: str | Path) -> str:
    r"""A path as text; bytes that are not UTF-8, which no terminal and no json takes, as `\xff`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
