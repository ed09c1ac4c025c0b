"""COCO's json, in and out.

Only what detection needs is decoded: msgspec walks over polygons without making a Python object of them, and the typed
records it leaves are turned into columns at once.
"""

import json
import os
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

from zoo.data.formats.raw import Complain, Place, RawSplit, refuse, same_record, select_valid_boxes
from zoo.data.images import load_image
from zoo.data.source import DataWarning, Source, check_files
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.types import Image

Record = TypeVar("Record", bound=msgspec.Struct)
# what the columns of a table hold
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
    difficult: int | bool | None = None  # not COCO's; our writer keeps VOC's marker in it


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class Coco(Source):
    """One split in COCO's format.

    Args:
        annotations: the json file, such as `annotations/instances_train2017.json`.
        images: the folder that its file names are relative to.
    """

    annotations: str
    images: str

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`; the classes are always the file's own."""
        table = read_coco(self.annotations, self.images, strict=strict)
        check_files(table.paths(), self.annotations)
        return table

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_coco(annotations: str | Path, images: str | Path = "", *, strict: bool = False) -> AnnotationTable:
    """Reads a COCO json without looking for the images.

    Categories become labels 0..C-1 in the order of their ids; `class_ids` leads back. `area` defaults to the box's,
    `iscrowd` to 0, `info` and `licenses` are not looked at.

    Args:
        annotations: the json file.
        images: the folder that file names are relative to.
        strict: bad boxes (no area, reversed, NaN, outside the image) are errors; else one warning counts them.

    Raises:
        InputError: missing or broken json, a required key that is absent or of a wrong type, duplicate ids or names, an
            annotation of an unknown image or category, bad boxes under `strict`.
    """
    raw = parse_coco(annotations, images, refuse)
    _require_unique(raw.class_ids, "category id", annotations)
    _require_unique(raw.classes, "category name", annotations)
    once = _without_repetitions(raw, annotations, strict)
    sizeless = np.flatnonzero((raw.widths <= 0) | (raw.heights <= 0))
    if len(sizeless):
        raise InputError("width and height must be positive", annotations, f"image id {raw.image_ids[sizeless[0]]}")
    _require_unique(raw.annotation_ids, "annotation id", annotations)
    _require_known(raw.image_index, raw.image_word, raw.object_place, "image", annotations)
    _require_known(raw.labels, raw.class_word, raw.object_place, "category", annotations)
    return raw.table(once, select_valid_boxes(raw, strict))


def parse_coco(annotations: str | Path, images: str | Path, complain: Complain) -> RawSplit:
    """What a COCO json says, true or not; the classes are in the order of their ids.

    Args:
        annotations: the json file.
        images: the folder that file names are relative to.
        complain: told of each record that lacks something; the record is then left out.

    Raises:
        InputError: a missing file, broken json, or json without the three lists.
    """
    content = _decode(annotations, complain)
    categories = sorted(content.categories, key=attrgetter("id"))
    class_ids = _column(categories, "id", np.int64)
    image_ids = _column(content.images, "id", np.int64)
    rows = content.annotations
    ids = _column(rows, "id", np.int64)
    said_images, said_classes = _column(rows, "image_id", np.int64), _column(rows, "category_id", np.int64)
    flat = chain.from_iterable(map(attrgetter("bbox"), rows))
    boxes = np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4)  # corner and size
    with np.errstate(invalid="ignore"):  # a size of 0 times one without end
        own_areas = boxes[:, 2] * boxes[:, 3]
        boxes[:, 2:] += boxes[:, :2]  # in place: a split of COCO's size has 28 MB of them
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
        image_index=_positions(said_images, image_ids),
        labels=_positions(said_classes, class_ids),
        boxes=boxes,
        areas=np.where(np.isnan(areas), own_areas, areas),
        iscrowd=_flags(rows, "iscrowd"),
        difficult=_flags(rows, "difficult"),
        annotation_ids=ids,
        image_place=lambda index: (file, f"image id {image_ids[index]}"),
        object_place=lambda row: (file, f"annotation id {ids[row]}"),
        image_word=lambda row: str(said_images[row]),
        class_word=lambda row: str(said_classes[row]),
        has_ids=True,
    )


def write_coco(table: AnnotationTable, path: str | Path) -> None:
    """Writes a table as COCO json; reading it again gives the same table (but for the folder of the images).

    `difficult` is kept as an extra key of the annotations that have it set.

    Raises:
        InputError: two images of the same file name, from different folders.
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(msgspec.json.encode(content))
    os.replace(partial, path)


def _exact_sizes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T, 4] edges -> [T, 2] widths and heights that give the far edges back when they are added to the near ones.

    x1 + (x2 - x1) may miss x2 by one rounding; the neighbouring size then hits it.
    """
    near, far = boxes[:, :2], boxes[:, 2:]
    sizes = far - near
    for towards in (np.inf, -np.inf):
        neighbour = np.nextafter(sizes, towards)
        sizes = np.where((near + sizes != far) & (near + neighbour == far), neighbour, sizes)
    return sizes


def _decode(path: str | Path, complain: Complain) -> _File:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("annotation file is missing", file=path) from None
    except OSError as error:
        raise InputError(f"annotation file cannot be read: {error.strerror or error}", file=path) from error
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # slow, but it knows the line, and unlike the standard it lets NaN pass, which json.dump writes
        return _decode_slowly(data, path, complain)


def _decode_slowly(data: bytes, path: str | Path, complain: Complain) -> _File:
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"json does not parse: {error.msg}; is the file complete?", path, place) from None
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise InputError(f"json does not parse: {error.reason}; write it as UTF-8", path, place) from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"json does not parse: {error}", path) from None
    except RecursionError:
        raise InputError("json does not parse: lists in lists, too deep; annotations are flat", path) from None
    if not isinstance(content, dict):
        raise InputError("expected an object with `images`, `annotations` and `categories`", path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise InputError(f"expected a list `{key}`; is this a file of detection annotations?", path)
    return _File(
        images=_convert(content["images"], _Image, "images", path, complain),
        annotations=_convert(content["annotations"], _Annotation, "annotations", path, complain),
        categories=_convert(content["categories"], _Category, "categories", path, complain),
    )


def _convert(
    values: list[object], record: type[Record], key: str, path: str | Path, complain: Complain
) -> list[Record]:
    records = []
    for number, value in enumerate(values):
        try:
            converted = msgspec.convert(value, record)
            msgspec.json.encode(converted)  # unlike the fast decoder, json.loads lets half a character pass ("\ud800")
        except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
            reason = f"{error.reason} in a text" if isinstance(error, UnicodeEncodeError) else str(error)
            known = f" (id {value['id']!a})" if isinstance(value, dict) and "id" in value else ""
            complain(InputError(reason, path, f"{key}[{number}]{known}"))
            continue
        records.append(converted)
    return records


def _without_repetitions(raw: RawSplit, path: str | Path, strict: bool) -> NDArray[np.bool_]:
    """[N], the first image of each id.

    The same record said twice (merged files have that) does no harm once it is counted once; two different images
    of one id cannot be told apart.

    Raises:
        InputError: two different records of one id; under `strict`, any repetition.
    """
    first = _positions(raw.image_ids, raw.image_ids)
    once = first == np.arange(len(raw))
    again = np.flatnonzero(~once)
    if not len(again):
        return once
    image_id, count = Counter(raw.image_ids.tolist()).most_common(1)[0]
    if strict or not all(same_record(raw, int(index), int(first[index])) for index in again):
        raise InputError(f"image id {image_id} occurs {count} times; each must be unique", path)
    warnings.warn(
        f"{path}: {len(again)} images are listed again, such as id {image_id}; each counts once",
        DataWarning,
        stacklevel=3,
    )
    return once


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
    positions: NDArray[np.int64], word: Callable[[int], str], place: Callable[[int], Place], what: str, path: str | Path
) -> None:
    unknown = np.flatnonzero(positions < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"{what} {word(row)} is not among the file's {what} ids ({len(unknown)} such annotations)",
            path,
            place(row)[1],
        )


def _positions(wanted: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each wanted id first stands among the known ones; -1 for one that does not."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, wanted, sorter=order)
    positions = order[np.minimum(places, len(known) - 1)]
    return np.where(known[positions] == wanted, positions, -1)
