"""Source of a split's images and annotations (abstract), and checks that all readers share."""

import os
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.types import Image


class DataWarning(UserWarning):
    """Something in a data set was skipped or looks wrong, and the run continues."""


class Source(ABC):
    """Images and annotations of one split, in some format; small, picklable and stateless."""

    @abstractmethod
    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """Reads the annotations and checks that the image files exist.

        Args:
            strict: raise an InputError for bad boxes instead of skipping them with a warning.
            classes: class names of another split of the data set. Used where this source does not define its own class
                names; a source that does keeps them, and the caller compares.
            with_masks: whether to read the masks of the objects, too.

        Raises:
            InputError: something cannot be used; names file and place.
        """

    @property
    def has_classes(self) -> bool:
        """Whether the source defines the names of its classes; else `read_together` infers them."""
        return True

    @classmethod
    def read_together(
        cls, sources: Sequence[Self], strict: bool = False, with_masks: bool = False
    ) -> list[AnnotationTable]:
        """Reads the splits of a data set that do not define their classes, with one list for all, inferred from all.

        Raises:
            InputError: see `read`.
        """
        raise NotImplementedError(f"{cls.__name__} defines its classes")

    @abstractmethod
    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """Decodes image `index` of a table that was read from this source: uint8 [3, H, W], RGB, upright.

        Raises:
            InputError: the file is missing, truncated, not an image, or of another size than in the table.
        """


def find_bad_boxes(
    boxes: NDArray[np.float64], widths: NDArray[np.int32], heights: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Mask of boxes that cannot be used for training or evaluation.

    Args:
        boxes: [T, 4] edges in pixels.
        widths: [T] width of each box's image.
        heights: [T].

    Returns:
        [T], true for boxes with a NaN or infinite edge, reversed boxes, and boxes without area inside their image.
        Boxes that extend beyond the image are not bad.
    """
    with np.errstate(invalid="ignore"):
        visible_width = np.minimum(boxes[:, 2], widths) - np.maximum(boxes[:, 0], 0)
        visible_height = np.minimum(boxes[:, 3], heights) - np.maximum(boxes[:, 1], 0)
        return ~(np.isfinite(boxes).all(1) & (visible_width > 0) & (visible_height > 0))


def describe_bad_box(box: NDArray[np.float64], width: int, height: int) -> str:
    """Message about what is wrong with a bad box."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    numbers = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not np.isfinite(box).all():
        return f"box {numbers} has an edge that is not a finite number"
    if x2 < x1 or y2 < y1:
        return f"box {numbers} is reversed: its right or bottom edge lies before its left or top edge"
    if x2 == x1 or y2 == y1:
        return f"box {numbers} has no area"
    return f"box {numbers} lies outside its image of {width}x{height}"


def report_bad_boxes(
    bad: NDArray[np.bool_], describe: Callable[[int], tuple[str, str | Path, str | None]], strict: bool
) -> None:
    """Warns about bad boxes once, with their number and the first of them, or raises an error.

    Args:
        bad: [T] mask.
        describe: row -> (message, file, place in the file).
        strict: raise instead of warn.

    Raises:
        InputError: there is a bad box, with `strict`.
    """
    if not bad.any():
        return
    message, file, place = describe(int(np.flatnonzero(bad)[0]))
    count = int(bad.sum())
    if strict:
        others = f" ({count} bad boxes in all)" if count > 1 else ""
        raise InputError(f"{message}{others}; correct it, or set `strict` to false to skip bad boxes", file, place)
    prefix = ": ".join(part for part in (str(file), place) if part)
    warnings.warn(
        f"{count} bad {'box' if count == 1 else 'boxes'} skipped, the first in {prefix}: {message}",
        DataWarning,
        stacklevel=4,
    )


def find_missing(paths: Sequence[str | Path]) -> list[int]:
    """Indices of files that do not exist, ascending.

    Lists each folder once, which is faster than a call per file; of many files, texts are faster than `Path`s.
    """
    by_folder: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, path in enumerate(paths):
        folder, name = os.path.split(path)
        by_folder[folder].append((name, index))
    missing: list[int] = []
    for folder, names in by_folder.items():
        try:
            with os.scandir(folder or ".") as entries:
                present = {entry.name for entry in entries}
        except (OSError, ValueError):  # no such folder, or a name that no file can have
            present = set()
        missing += [index for name, index in names if name not in present]
    return sorted(missing)


def check_files(paths: Sequence[Path], annotations: str | Path) -> None:
    """Checks that every image file of a split exists.

    Args:
        paths: image files.
        annotations: file that lists the images, for the message.

    Raises:
        InputError: a file is missing; names the first and the number of missing files.
    """
    missing = find_missing(paths)
    if missing:
        raise InputError(
            f"image file is missing ({len(missing)} of {len(paths)} images listed in {annotations} are missing); "
            "check the image folder",
            file=paths[missing[0]],
        )


def read_text(path: str | Path, what: str) -> str:
    """Reads a UTF-8 text file, without its byte-order mark if there is one.

    Args:
        path: the file.
        what: kind of file, for the message (such as "split file").

    Raises:
        InputError: the file is missing, unreadable, or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{what} is missing", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read: {error}", file=path) from error


def printable(path: str | Path) -> str:
    r"""A path as text that can be printed and encoded as json: bytes that are not UTF-8 are escaped as `\xff`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
