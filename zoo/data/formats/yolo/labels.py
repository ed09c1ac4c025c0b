"""Label files of the YOLO format: a text file per image, with a line per object.

Legend:
    N  images        T  objects

A line is `class cx cy w h`, or the polygon `class x1 y1 x2 y2 x3 y3 ...`, which is read as its extent; all coordinates
are fractions of the width and height of the image.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from zoo.data.formats.raw import CoordinatesAboveOneError, OnError, SharedAnnotationError
from zoo.data.source import read_text
from zoo.errors import InputError

_MAX_FRACTION = 2.0
"""Larger coordinates are not fractions of the image's size: such a box could not even touch its image. A little above 1
is a box that extends beyond its image."""
_MIN_POLYGON = 7  # numbers: the class, and three points


@dataclass(frozen=True, eq=False)
class Labels:
    """Rows of the label files of a split.

    Args:
        values: class number, centre x and y, width and height.
        image_index: image of each object.
        places: place of each object in its label file.
        polygons: x and y in turn of each object, as fractions; None for boxes.
        notes: how rows that are not boxes were read, a sentence for each kind.
    """

    values: Float64[np.ndarray, "T 5"]
    image_index: Int64[np.ndarray, " T"]
    places: list[str]
    polygons: list[NDArray[np.float64] | None]
    notes: list[str]


def label_file(image: Path) -> Path:
    """Label file of an image: suffix `.txt`, and `labels` instead of the last folder `images` of the path, if any."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def find_label_file(image: Path) -> Path | None:
    """`label_file` of an image, else the text file beside the image or, as in Darknet, in `labels` for `JPEGImages`.

    None where none of these exists.
    """
    file = label_file(image)
    if file.exists():
        return file
    others = [image.with_suffix(".txt")]
    if image.parent.name == "JPEGImages":
        others.append(image.parent.with_name("labels") / f"{image.stem}.txt")
    return next((other for other in others if other.exists()), None)


def read_label_files(
    images: Sequence[Path],
    files: Sequence[Path | None],
    num_keypoint_values: int,
    on_error: OnError,
    in_pixels: bool = False,
) -> Labels:
    """Rows of the label files of a split.

    Args:
        images: image files [N].
        files: label file of each image [N]; None for images without one.
        num_keypoint_values: numbers after the box in each row, which are ignored.
        on_error: called with the error for each file that cannot be used, and each line that is not a box or polygon.
        in_pixels: accept coordinates above 1.
    """
    owners: dict[Path, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        if file is not None:
            owners[file].append(index)
    rows: list[tuple[float, ...]] = []
    image_index: list[int] = []
    places: list[str] = []
    polygons: list[NDArray[np.float64] | None] = []
    first_polygon = ""
    for file, indices in owners.items():
        lines = _label_lines(file, on_error)
        if len(indices) > 1 and lines:
            names = " and ".join(images[index].name for index in indices[:2])
            on_error(
                SharedAnnotationError(
                    f"images {names} share this label file; rename one and its labels, or remove it", file
                )
            )
            continue
        parsed = _parse_lines(lines, file, num_keypoint_values, on_error, np.inf if in_pixels else _MAX_FRACTION)
        rows += [row for row, _, _ in parsed]
        places += [place for _, place, _ in parsed]
        polygons += [polygon for _, _, polygon in parsed]
        first_polygon = first_polygon or next((f"{file}: {at}" for _, at, polygon in parsed if polygon is not None), "")
        image_index += [indices[0]] * len(parsed)
    notes = []
    if first_polygon:
        count = sum(polygon is not None for polygon in polygons)
        notes.append(f"{count} of {len(rows)} objects are polygons, read as their extents, first {first_polygon}")
    if num_keypoint_values and rows:
        notes.append(f"the {num_keypoint_values} numbers of keypoints after each box are ignored")
    values = np.array(rows, np.float64).reshape(-1, 5)
    return Labels(values, np.array(image_index, np.int64), places, polygons, notes)


def _label_lines(file: Path, on_error: OnError) -> list[tuple[str, str]]:
    """(line, place) of the lines that are not blank."""
    try:
        text = read_text(file, "label file")
    except InputError as error:
        on_error(error)
        return []
    return [(line, f"line {number}") for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _parse_lines(
    lines: list[tuple[str, str]], file: Path, num_keypoint_values: int, on_error: OnError, highest: float
) -> list[tuple[tuple[float, ...], str, NDArray[np.float64] | None]]:
    """(class and box, place, polygon if it is one) of each line; none where a coordinate is above `highest`."""
    numbers = [(_numbers(line), line, place) for line, place in lines]
    if numbers and all(len(values) == 6 for values, _, _ in numbers):
        message = "all lines have six numbers: these are predictions with a score, not labels; give the labels"
        on_error(InputError(message, file, numbers[0][2]))
        return []
    parsed = []
    above = []
    for values, line, place in numbers:
        is_box = len(values) == 5 + num_keypoint_values
        is_polygon = not is_box and not num_keypoint_values and len(values) >= _MIN_POLYGON and len(values) % 2 == 1
        if not is_box and not is_polygon:
            keypoints = f" and {num_keypoint_values} numbers of keypoints" if num_keypoint_values else ""
            on_error(InputError(f"expected `class cx cy w h`{keypoints}, found {line.strip()[:60]!r}", file, place))
            continue
        coordinates = values[1:] if is_polygon else values[1:5]
        if highest < max(coordinates) < np.inf:  # boxes with an edge that is not finite are found later
            above.append((line, place))
        polygon = np.array(coordinates) if is_polygon else None
        parsed.append((_extent(values) if is_polygon else values[:5], place, polygon))
    if above:
        line, place = above[0]
        message = (
            f"{len(above)} of {len(lines)} lines have coordinates above 1, first {line.strip()[:60]!r}: are they in "
            "pixels? YOLO wants fractions of the image's width and height"
        )
        on_error(CoordinatesAboveOneError(message, file, place))
        return []
    return parsed


def _numbers(line: str) -> tuple[float, ...]:
    """Numbers of a line; none if a word is not a number."""
    try:
        return tuple(map(float, line.split()))
    except ValueError:
        return ()


def _extent(polygon: tuple[float, ...]) -> tuple[float, ...]:
    """(class, centre x, centre y, width, height) of the box around a polygon (class, x1, y1, x2, y2, ...)."""
    points = np.array(polygon[1:]).reshape(-1, 2)  # NaN in a point makes the box NaN, which the checks of boxes find
    near, far = points.min(0), points.max(0)
    return (polygon[0], *((near + far) / 2).tolist(), *(far - near).tolist())
