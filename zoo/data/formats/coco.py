"""Read and write detection annotations in COCO's json format.

Only the fields for detection are decoded: msgspec skips polygons without creating Python objects, and its typed records
are converted to columns.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.raw import OnError, Place, RawSplit, raise_error, same_record, select_valid_boxes
from zoo.data.images import load_image
from zoo.data.source import DataWarning, Source, check_files
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.files import write_atomically
from zoo.types import Image

Record = TypeVar("Record", bound=msgspec.Struct)
# ranges of the integer columns of a table
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Category(msgspec.Struct, gc=False):
    id: _Int64
    name: str


class _Image(msgspec.Struct, gc=False):
    id: _Int64
    file_name: str
    width: _Int32
    height: _Int32


class _Annotation(msgspec.Struct, gc=False):
    id: _Int64
    image_id: _Int64
    category_id: _Int64
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = None
    difficult: int | bool | None = None  # not in COCO; `write_coco` stores VOC's flag here


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class Coco(Source):
    """One split in COCO format.

    Args:
        annotations: json file, such as `annotations/instances_train2017.json`.
        images: folder that the file names are relative to.
    """

    annotations: str
    images: str

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`; the classes are always those of the file."""
        table = read_coco(self.annotations, self.images, strict=strict)
        check_files(table.paths(), self.annotations)
        return table

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_coco(annotations: str | Path, images: str | Path = "", *, strict: bool = False) -> AnnotationTable:
    """Reads a COCO json file without checking that the images exist.

    Categories become labels 0..C-1 in the order of their ids, which `class_ids` keeps. `area` defaults to the area of
    the box, `iscrowd` to 0; `info` and `licenses` are ignored.

    Args:
        annotations: json file.
        images: folder that the file names are relative to.
        strict: raise an error for bad boxes (no area, reversed, NaN, outside the image) instead of a warning.

    Raises:
        InputError: the file is missing or not valid json; a required key is missing or of a wrong type; ids or category
            names are not unique; an annotation has an unknown image or category; a box is bad, with `strict`.
    """
    raw = parse_coco(annotations, images, raise_error)
    _require_unique(raw.class_ids, "category id", annotations)
    _require_unique(raw.classes, "category name", annotations)
    unique = _unique_images(raw, annotations, strict)
    without_size = np.flatnonzero((raw.widths <= 0) | (raw.heights <= 0))
    if len(without_size):
        raise InputError("width and height must be positive", annotations, f"image id {raw.image_ids[without_size[0]]}")
    _require_unique(raw.annotation_ids, "annotation id", annotations)
    _require_known(raw.image_index, raw.annotated_image, raw.object_place, "image", annotations)
    _require_known(raw.labels, raw.annotated_class, raw.object_place, "category", annotations)
    return raw.table(unique, select_valid_boxes(raw, strict))


def parse_coco(annotations: str | Path, images: str | Path, on_error: OnError) -> RawSplit:
    """Parses a COCO json file without validation; classes are in the order of their ids.

    Args:
        annotations: json file.
        images: folder that the file names are relative to.
        on_error: called with the error for each record with missing or invalid fields; the record is then skipped.

    Raises:
        InputError: the file is missing, not valid json, or without the lists `images`, `annotations`, `categories`.
    """
    content = _decode(annotations, on_error)
    categories = sorted(content.categories, key=attrgetter("id"))
    class_ids = _column(categories, "id", np.int64)
    image_ids = _column(content.images, "id", np.int64)
    rows = content.annotations
    ids = _column(rows, "id", np.int64)
    object_image_ids, object_class_ids = _column(rows, "image_id", np.int64), _column(rows, "category_id", np.int64)
    flat = chain.from_iterable(map(attrgetter("bbox"), rows))
    boxes = np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4)  # x, y, width, height
    with np.errstate(invalid="ignore"):  # 0 * inf
        box_areas = boxes[:, 2] * boxes[:, 3]
        boxes[:, 2:] += boxes[:, :2]  # in place: 28 MB for a split of the size of COCO
    areas = np.array([row.area for row in rows], np.float64)  # None becomes NaN
    file = str(annotations)
    return RawSplit(
        classes=tuple(category.name for category in categories),
        class_ids=class_ids,
        image_ids=image_ids,
        widths=_column(content.images, "width", np.int32),
        heights=_column(content.images, "height", np.int32),
        file_names=[image.file_name for image in content.images],
        folders=(str(images),),
        folder_ids=np.zeros(len(image_ids), np.int64),
        annotation_files=(),
        image_index=_positions(object_image_ids, image_ids),
        labels=_positions(object_class_ids, class_ids),
        boxes=boxes,
        areas=np.where(np.isnan(areas), box_areas, areas),
        iscrowd=_flags(rows, "iscrowd"),
        difficult=_flags(rows, "difficult"),
        annotation_ids=ids,
        image_place=lambda index: (file, f"image id {image_ids[index]}"),
        object_place=lambda row: (file, f"annotation id {ids[row]}"),
        annotated_image=lambda row: str(object_image_ids[row]),
        annotated_class=lambda row: str(object_class_ids[row]),
        has_ids=True,
    )


def write_coco(table: AnnotationTable, path: str | Path) -> None:
    """Writes a table as COCO json; reading it returns the same table, except for the image folder.

    Annotations of difficult objects get an extra key `difficult`.

    Raises:
        InputError: two images from different folders have the same file name.
    """
    names = [table.file_name(index) for index in range(len(table))]
    _require_unique(names, "file name", path)
    images = [
        {"id": image_id, "file_name": name, "width": width, "height": height}
        for image_id, name, width, height in zip(
            table.image_ids.tolist(), names, table.widths.tolist(), table.heights.tolist(), strict=True
        )
    ]
    image_ids = np.repeat(table.image_ids, np.diff(table.offsets))
    sizes = _exact_sizes(table.boxes)
    annotations = []
    for row in range(table.num_objects):
        annotation = {
            "id": int(table.annotation_ids[row]),
            "image_id": int(image_ids[row]),
            "category_id": int(table.class_ids[table.labels[row]]),
            "bbox": [*table.boxes[row, :2].tolist(), *sizes[row].tolist()],
            "area": float(table.areas[row]),
            "iscrowd": int(table.iscrowd[row]),
        }
        if table.difficult[row]:
            annotation["difficult"] = 1
        annotations.append(annotation)
    categories = [
        {"id": class_id, "name": name} for class_id, name in zip(table.class_ids.tolist(), table.classes, strict=True)
    ]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    write_atomically(Path(path), msgspec.json.encode(content))


def _exact_sizes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Widths and heights [T, 2] of boxes [T, 4] for which x1 + width == x2 and y1 + height == y2 exactly.

    x1 + (x2 - x1) may differ from x2 by one rounding; the next larger or smaller float is then exact.
    """
    near, far = boxes[:, :2], boxes[:, 2:]
    sizes = far - near
    for towards in (np.inf, -np.inf):
        neighbour = np.nextafter(sizes, towards)
        sizes = np.where((near + sizes != far) & (near + neighbour == far), neighbour, sizes)
    return sizes


def _decode(path: str | Path, on_error: OnError) -> _File:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("annotation file is missing", file=path) from None
    except OSError as error:
        raise InputError(f"annotation file cannot be read: {error.strerror or error}", file=path) from error
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Slower, but reports the line, and accepts NaN, which json.dump writes although it is not valid json.
        return _decode_slowly(data, path, on_error)


def _decode_slowly(data: bytes, path: str | Path, on_error: OnError) -> _File:
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"json does not parse: {error.msg}; is the file complete?", path, place) from None
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise InputError(f"json does not parse: {error.reason}; write it as UTF-8", path, place) from None
    except ValueError as error:  # an integer with thousands of digits
        raise InputError(f"json does not parse: {error}", path) from None
    except RecursionError:
        raise InputError("json does not parse: lists are nested too deeply", path) from None
    if not isinstance(content, dict):
        raise InputError("expected an object with `images`, `annotations` and `categories`", path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"expected a list `{key}`; give a file of detection annotations", path)
    return _File(
        images=_convert(content["images"], _Image, "images", path, on_error),
        annotations=_convert(content["annotations"], _Annotation, "annotations", path, on_error),
        categories=_convert(content["categories"], _Category, "categories", path, on_error),
    )


def _convert(values: list[object], record: type[Record], key: str, path: str | Path, on_error: OnError) -> list[Record]:
    records = []
    for number, value in enumerate(values):
        try:
            converted = msgspec.convert(value, record)
            msgspec.json.encode(converted)  # json.loads accepts lone surrogates ("\ud800"), msgspec does not
        except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
            reason = f"{error.reason} in a text" if isinstance(error, UnicodeEncodeError) else str(error)
            record_id = f" (id {value['id']!a})" if isinstance(value, dict) and "id" in value else ""
            on_error(InputError(reason, path, f"{key}[{number}]{record_id}"))
            continue
        records.append(converted)
    return records


def _unique_images(raw: RawSplit, path: str | Path, strict: bool) -> NDArray[np.bool_]:
    """Mask [N] of the first image of each id.

    Identical records with the same id (which occur in merged files) are counted once. Different images with the same id
    are an error, since the image of an annotation is then ambiguous.

    Raises:
        InputError: two different records have the same id; with `strict`, any id is not unique.
    """
    first = _positions(raw.image_ids, raw.image_ids)
    unique = first == np.arange(len(raw))
    duplicates = np.flatnonzero(~unique)
    if not len(duplicates):
        return unique
    image_id, count = Counter(raw.image_ids.tolist()).most_common(1)[0]
    if strict or not all(same_record(raw, int(index), int(first[index])) for index in duplicates):
        raise InputError(f"image id {image_id} occurs {count} times; each must be unique", path)
    warnings.warn(
        f"{path}: {len(duplicates)} images are listed again, such as id {image_id}; each is used once",
        DataWarning,
        stacklevel=3,
    )
    return unique


def _column(records: Sequence[msgspec.Struct], key: str, dtype: type[np.generic]) -> NDArray:
    return np.fromiter(map(attrgetter(key), records), dtype, len(records))


def _flags(records: Sequence[msgspec.Struct], key: str) -> NDArray[np.bool_]:
    return np.fromiter(map(bool, map(attrgetter(key), records)), bool, len(records))


def _require_unique(values: Sequence[int] | Sequence[str] | NDArray[np.int64], what: str, path: str | Path) -> None:
    ordered = np.sort(np.asarray(values))  # much faster than np.unique or a set
    if not (ordered[1:] == ordered[:-1]).any():
        return
    value, count = Counter(np.asarray(values).tolist()).most_common(1)[0]
    raise InputError(f"{what} {value!r} occurs {count} times; each must be unique", path)


def _require_known(
    positions: NDArray[np.int64], name: Callable[[int], str], place: Callable[[int], Place], what: str, path: str | Path
) -> None:
    unknown = np.flatnonzero(positions < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"{what} {name(row)} is not among the file's {what} ids ({len(unknown)} such annotations)",
            path,
            place(row)[1],
        )


def _positions(wanted: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the first occurrence of each wanted id among the known ids; -1 for unknown ids."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, wanted, sorter=order)
    positions = order[np.minimum(places, len(known) - 1)]
    return np.where(known[positions] == wanted, positions, -1)
