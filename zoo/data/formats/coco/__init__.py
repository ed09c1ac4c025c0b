"""Read and write detection annotations in COCO's json format.

The typed records of `coco_records` are converted to columns. What users' tools write differently is read where its
meaning is plain, and noted.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.coco.boxes import (
    BoxesAreCornersError,
    look_like_corners,
    polygon_extents,
    rotated_extents,
    rotations,
    unlike_polygons,
)
from zoo.data.formats.coco.categories import drop_unused
from zoo.data.formats.coco.images import image_sizes, locate_listed
from zoo.data.formats.coco.records import Annotation, AnnotationWithPolygon, decode
from zoo.data.formats.coco.segmentation import read_masks, segmentation_of
from zoo.data.formats.raw import (
    MaskError,
    OnError,
    Place,
    RawSplit,
    raise_error,
    same_record,
    select_valid_boxes,
    warn_of_notes,
)
from zoo.data.formats.resized import resolve_resized, scales_of_objects
from zoo.data.source import DataWarning, Source, check_files
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.decoding import load_image, upright_size
from zoo.io.files import write_atomically
from zoo.types import Image

# Size of files up to which the reader, too, compares boxes with polygons, which takes a few milliseconds.
_SMALL_FILE = 1 << 22


@dataclass(frozen=True)
class Coco(Source):
    """One split in COCO format.

    Args:
        annotations: json file, such as `annotations/instances_train2017.json`, or a gzip file of one.
        images: folder that the file names are relative to. Images that are not there are searched for below the folder
            of the data set, by their base names.
    """

    annotations: str
    images: str

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """See `Source.read`; the classes are those of the file, without roots that `classes` does not have."""
        table = read_coco(self.annotations, self.images, strict=strict, classes=classes, with_masks=with_masks)
        check_files(table.paths(), self.annotations)
        return table

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_coco(
    annotations: str | Path,
    images: str | Path = "",
    *,
    strict: bool = False,
    classes: tuple[str, ...] | None = None,
    with_masks: bool = False,
) -> AnnotationTable:
    """Reads a COCO json file without checking that the images exist.

    Categories become labels 0..C-1 in the order of their ids, which `class_ids` keeps. `area` defaults to the area of
    the box, `iscrowd` to 0; `info` and `licenses` are ignored. Unusual annotations are interpreted with a warning.

    Args:
        annotations: json file.
        images: folder that the file names are relative to; "" to take them as they are.
        strict: raise an error for bad boxes (no area, reversed, NaN, outside the image) instead of a warning.
        classes: class names of another split of the data set.
        with_masks: whether to read `segmentation`, too.

    Raises:
        InputError: the file is missing or not valid json; a required key is missing or of a wrong type; ids or category
            names are not unique; an annotation has an unknown image or category; an image has no size and no file;
            boxes are corners; a box is bad, with `strict`.
    """
    raw = parse_coco(annotations, images, raise_error, classes, with_masks)
    warn_of_notes(raw, annotations)
    _require_unique(raw.class_ids, "category id", annotations)
    _require_unique(raw.classes, "category name", annotations)
    unique = _unique_images(raw, annotations, strict)
    _require_sizes(raw, annotations)
    _require_unique(raw.annotation_ids, "annotation id", annotations)
    _require_known(raw.image_index, raw.annotated_image, raw.object_place, "image", annotations)
    _require_known(raw.labels, raw.annotated_class, raw.object_place, "category", annotations)
    if os.path.getsize(annotations) <= _SMALL_FILE:
        _warn_of_polygons(raw, annotations)
    return raw.table(unique, select_valid_boxes(raw, strict))


def parse_coco(
    annotations: str | Path,
    images: str | Path,
    on_error: OnError,
    classes: tuple[str, ...] | None = None,
    with_masks: bool = False,
) -> RawSplit:
    """Parses a COCO json file without validation; classes are in the order of their ids.

    Args:
        annotations: json file.
        images: folder that the file names are relative to; "" to take them as they are.
        on_error: called with the error for each record with missing or invalid fields; the record is then skipped. Also
            called with an error if the boxes of the file are corners, and with a `MaskError` for each broken mask.
        classes: class names of another split; an unused root category of this name is kept.
        with_masks: whether to read `segmentation`, too. An object without one, or with one of no use, has no mask.

    Raises:
        InputError: the file is missing, not valid json, or without the lists `images`, `annotations`, `categories`.
    """
    kind = AnnotationWithPolygon if with_masks else Annotation
    content, notes = decode(annotations, on_error, kind)
    rows: list[Any] = content.annotations
    object_image_ids, object_class_ids = _column(rows, "image_id", np.int64), _column(rows, "category_id", np.int64)
    categories, root_notes = drop_unused(content.categories, object_class_ids, classes or ())
    class_ids = _column(categories, "id", np.int64)
    image_ids = _column(content.images, "id", np.int64)
    ids = _column(rows, "id", np.int64)
    flat = chain.from_iterable(map(attrgetter("bbox"), rows))
    boxes = np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4)  # x, y, width, height
    with np.errstate(invalid="ignore"):  # 0 * inf
        box_areas = boxes[:, 2] * boxes[:, 3]
        boxes[:, 2:] += boxes[:, :2]  # in place: 28 MB for a split of the size of COCO
    areas = np.array([row.area for row in rows], np.float64)  # None becomes NaN
    file = str(annotations)
    names, folders, folder_ids, name_notes = locate_listed(content.images, annotations, images)
    sizes, size_notes = image_sizes(content.images, lambda index: Path(folders[folder_ids[index]], names[index]))
    image_index = _positions(object_image_ids, image_ids)
    listed = image_index >= 0
    if len(image_ids) and look_like_corners(boxes[listed], sizes[image_index[listed]]):
        on_error(
            BoxesAreCornersError(
                "boxes fit their images only as x1 y1 x2 y2; write each `bbox` as x, y, width, height", file, "bbox"
            )
        )
    rotation_notes = _rotate(boxes, rows, annotations)
    masks, mask_notes = None, list[str]()
    if with_masks:
        sizes_of_objects = np.concatenate([sizes, [[0, 0]]]).astype(np.int32)[image_index]  # -1: unknown image
        masks, mask_notes = read_masks(
            rows, sizes_of_objects, lambda row, text: on_error(MaskError(text, file, f"annotation id {ids[row]}"))
        )
    raw = RawSplit(
        classes=tuple(category.name for category in categories),
        class_ids=class_ids,
        image_ids=image_ids,
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        file_names=names,
        folders=folders,
        folder_ids=folder_ids,
        annotation_files=(),
        image_index=image_index,
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
        masks=masks,
        notes=(*notes, *root_notes, *name_notes, *size_notes, *rotation_notes),
        mask_notes=tuple(mask_notes),
    )
    return resolve_resized(raw, on_error)


def rows_unlike_polygons(raw: RawSplit, annotations: str | Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(rows of boxes that contradict their polygons [K], extents of all polygons [T, 4], NaN without polygon)."""
    extents = polygon_extents(annotations)
    if raw.box_scales is not None:
        extents = extents * np.tile(scales_of_objects(raw.box_scales, raw), 2)
    return np.flatnonzero(unlike_polygons(raw.boxes, extents) & ~raw.iscrowd), extents


def _rotate(boxes: NDArray[np.float64], rows: Sequence[Annotation], annotations: str | Path) -> list[str]:
    """Replaces boxes [T, 4] with a rotation by their extents, in place, and returns notes.

    Boxes that are the extent of a polygon already are not changed.
    """
    degrees = rotations(rows)
    turned = np.flatnonzero(degrees % 180)
    if not len(turned):
        return []
    extents = polygon_extents(annotations)[turned]
    close = np.abs(extents - boxes[turned]) <= 1.0  # false for NaN
    turned = turned[~close.all(1)]
    if not len(turned):
        return []
    boxes[turned] = rotated_extents(boxes[turned], degrees[turned])
    first = int(turned[0])
    return [
        f"{len(turned)} boxes have `attributes.rotation` and were replaced by the extents of the rotated boxes, the"
        f" first in annotation id {rows[first].id} ({degrees[first]:g} degrees)"
    ]


def _require_sizes(raw: RawSplit, path: str | Path) -> None:
    without = np.flatnonzero((raw.widths <= 0) | (raw.heights <= 0))
    if not len(without):
        return
    absent = without[(raw.widths[without] == 0) & (raw.heights[without] == 0)].tolist()
    if absent and absent[0] == without[0]:
        check_files([raw.path(index) for index in absent], path)
        upright_size(raw.path(absent[0]))  # raises an error, since the size could not be read
    raise InputError("width and height must be positive", path, f"image id {raw.image_ids[without[0]]}")


def _warn_of_polygons(raw: RawSplit, path: str | Path) -> None:
    rows, _ = rows_unlike_polygons(raw, path)
    if len(rows):
        warnings.warn(
            f"{path}: {len(rows)} of {len(raw.labels)} boxes contradict their polygons, the first in"
            f" {raw.object_place(int(rows[0]))[1]}; the boxes are used, and `zoo doctor` lists them",
            DataWarning,
            stacklevel=3,
        )


def write_coco(table: AnnotationTable, path: str | Path) -> None:
    """Writes a table as COCO json, with its masks, if any; reading it returns the same table, but for the image folder.

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
    heights, widths = (np.repeat(side, np.diff(table.offsets)).tolist() for side in (table.heights, table.widths))
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
        if table.masks is not None:
            annotation["segmentation"] = segmentation_of(table.masks, row, heights[row], widths[row])
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
