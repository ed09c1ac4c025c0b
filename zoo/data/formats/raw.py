"""Parsed annotations of one split before validation.

Legend:
    N  images listed        T  objects        C  classes

Readers turn a RawSplit into an AnnotationTable and stop at the first error; the doctor lists all errors. Both use the
same parsers, which pass every error to a function `on_error`: `raise_error` stops parsing, the `append` of a list
collects the error, and parsing continues without the record.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from zoo.data.masks import Masks
from zoo.data.source import DataWarning, describe_bad_box, find_bad_boxes, find_missing, report_bad_boxes
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.decoding import bits_in_use, deep_pixels

NUM_SAMPLED = 16  # images of a split whose properties are checked at reading
_DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # of formats that are often used with 16 bits


class ListedTwiceError(InputError):
    """A split lists an image more than once."""


class BrokenRecordError(InputError):
    """A record of an object cannot be read, in a file that all images share.

    Args:
        image_id: of its image; None if that cannot be read either.
    """

    def __init__(self, message: str, file: str | Path, place: str, image_id: int | None) -> None:
        super().__init__(message, file, place)
        self.image_id = image_id


class CoordinatesAboveOneError(InputError):
    """A label file has coordinates above 1 where they are fractions of the image's size."""


class SharedAnnotationError(InputError):
    """Several images of a split share an annotation file, which can be right for one of them only."""


OnError: TypeAlias = Callable[[InputError], None]
Place: TypeAlias = tuple[str, str | None]  # (file, place in the file)


class MaskError(InputError):
    """A mask that cannot be read; its object then has none."""


def raise_error(error: InputError) -> None:
    """`OnError` of the readers: raises the error."""
    raise error


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Content of the annotation files of one split, not validated.

    Args:
        classes: class names in the order of the labels; may have duplicates.
        class_ids: category ids of the data set; may have duplicates.
        image_ids: image ids of the data set; may have duplicates.
        widths: pixels, from the annotations; 0 where not given.
        heights: pixels, from the annotations; 0 where not given.
        file_names: relative to their folder.
        folders: folders of image files; the empty tuple for images that are generated in memory.
        folder_ids: index into `folders` for each image.
        annotation_files: annotation file of each image (VOC, YOLO; it may be missing); the empty tuple where all images
            share a file.
        image_index: image of each object, the first one where the id has duplicates; -1 for an unknown image.
        labels: 0..C-1; -1 for an unknown class.
        boxes: xyxy edges in pixels; fractions of width and height where `relative`.
        areas: pixels^2 (undefined where `relative`).
        iscrowd: COCO's flag.
        difficult: VOC's flag.
        annotation_ids: annotation ids of the data set where `has_ids`, else 1..T.
        image_place: index -> where the image is listed.
        object_place: row -> where the object is annotated.
        annotated_image: row -> id or name of the image, as written in the object's annotation.
        annotated_class: row -> id or name of the class, as written in the object's annotation.
        has_ids: whether image and annotation ids are those of the data set.
        relative: whether boxes and polygons are relative to the image size.
        box_scales: factors of x and y of each image by which `boxes` were multiplied (see `resolve_resized`); None if
            they are as annotated.
        masks: of the objects; None if they were not asked for.
        notes: how annotations that are not in the standard form of their format were interpreted, a sentence each.
        mask_notes: which masks are missing or incomplete, a sentence each.
    """

    classes: tuple[str, ...]
    class_ids: Int64[np.ndarray, " C"]
    image_ids: Int64[np.ndarray, " N"]
    widths: Int32[np.ndarray, " N"]
    heights: Int32[np.ndarray, " N"]
    file_names: list[str]
    folders: tuple[str, ...]
    folder_ids: Int64[np.ndarray, " N"]
    annotation_files: tuple[Path, ...]
    image_index: Int64[np.ndarray, " T"]
    labels: Int64[np.ndarray, " T"]
    boxes: Float64[np.ndarray, "T 4"]
    areas: Float64[np.ndarray, " T"]
    iscrowd: Bool[np.ndarray, " T"]
    difficult: Bool[np.ndarray, " T"]
    annotation_ids: Int64[np.ndarray, " T"]
    image_place: Callable[[int], Place]
    object_place: Callable[[int], Place]
    annotated_image: Callable[[int], str]
    annotated_class: Callable[[int], str]
    has_ids: bool = False
    relative: bool = False
    box_scales: Float64[np.ndarray, "N 2"] | None = None
    masks: Masks | None = None
    notes: tuple[str, ...] = ()
    mask_notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images listed, including duplicates."""
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Path of an image file, which may not exist (only its name, for images that are generated in memory)."""
        name = self.file_names[index]
        return Path(self.folders[self.folder_ids[index]], name) if self.folders else Path(name)

    def paths(self) -> list[Path]:
        """Paths of all image files, which may not exist."""
        return [self.path(index) for index in range(len(self))]

    def missing(self) -> list[int]:
        """Indices of the images whose file does not exist; none of images that are generated in memory."""
        if not self.folders:
            return []
        folders = [self.folders[index] for index in self.folder_ids.tolist()]
        return find_missing(list(map(os.path.join, folders, self.file_names)))

    def with_sizes(self, sizes: Int32[np.ndarray, "N 2"]) -> Self:
        """Copy with image sizes; converts relative boxes to pixels.

        Args:
            sizes: (width, height); 0 where unknown. Boxes of those images are not converted.
        """
        boxes, areas, masks = self.boxes, self.areas, self.masks
        if self.relative:
            scale = np.where(sizes > 0, sizes, 1).astype(np.float64)[self.image_index]
            boxes = boxes * np.tile(scale, 2)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            masks = None if masks is None else masks.scale(scale)
        sizes = np.asarray(sizes, np.int32)
        return replace(
            self, widths=sizes[:, 0], heights=sizes[:, 1], boxes=boxes, areas=areas, relative=False, masks=masks
        )

    def with_classes(self, classes: tuple[str, ...], class_ids: Int64[np.ndarray, " C"]) -> Self:
        """Copy with labels that index into another list of classes; classes that it lacks become -1."""
        numbers = {name: number for number, name in enumerate(classes)}
        new = np.array([*(numbers.get(name, -1) for name in self.classes), -1], np.int64)  # last item: label -1
        return replace(self, classes=classes, class_ids=class_ids, labels=new[self.labels])

    def table(self, images: Bool[np.ndarray, " N"], objects: Bool[np.ndarray, " T"]) -> AnnotationTable:
        """Builds an AnnotationTable from a part of the split.

        Args:
            images: mask of images to keep.
            objects: mask of objects to keep; objects of other images are dropped as well.
        """
        new_index = np.cumsum(images) - 1
        is_kept = np.append(images, False)  # last item: image -1
        objects = objects & is_kept[self.image_index] & (self.labels >= 0)
        return AnnotationTable.from_rows(
            classes=self.classes,
            class_ids=self.class_ids,
            image_ids=self.image_ids[images],
            widths=self.widths[images],
            heights=self.heights[images],
            file_names=[name for name, kept in zip(self.file_names, images.tolist(), strict=True) if kept],
            folders=self.folders,
            folder_ids=self.folder_ids[images],
            image_index=new_index[self.image_index[objects]],
            boxes=self.boxes[objects],
            areas=self.areas[objects],
            labels=self.labels[objects],
            iscrowd=self.iscrowd[objects],
            difficult=self.difficult[objects],
            annotation_ids=self.annotation_ids[objects] if self.has_ids else None,
            masks=None if self.masks is None else self.masks.select(np.flatnonzero(objects)),
        )


def same_record(raw: RawSplit, one: int, other: int) -> bool:
    """Whether two listed images have the same file and size."""
    return (
        raw.path(one) == raw.path(other)
        and bool(raw.widths[one] == raw.widths[other])
        and bool(raw.heights[one] == raw.heights[other])
    )


def select_valid_boxes(raw: RawSplit, strict: bool) -> Bool[np.ndarray, " T"]:
    """Mask of valid boxes; warns once about the others.

    Args:
        raw: split with image sizes and without objects of unknown images.
        strict: raise an error for the first bad box.

    Raises:
        InputError: there is a bad box, with `strict`.
    """
    bad = find_bad_boxes(raw.boxes, raw.widths[raw.image_index], raw.heights[raw.image_index])

    def describe(row: int) -> tuple[str, str | Path, str | None]:
        image = raw.image_index[row]
        return describe_bad_box(raw.boxes[row], raw.widths[image], raw.heights[image]), *raw.object_place(row)

    report_bad_boxes(bad, describe, strict)
    return ~bad


def warn_of_notes(raw: RawSplit, file: str | Path) -> None:
    """Warns once about each note of a split that was read from `file`, and about 16-bit images that use fewer bits."""
    for note in (*raw.notes, *raw.mask_notes, *_describe_unused_bits(raw.paths() if raw.folders else [])):
        warnings.warn(f"{file}: {note}", DataWarning, stacklevel=3)


def _describe_unused_bits(paths: Sequence[Path]) -> list[str]:
    """A sentence on 16-bit images that are read as images of 8 or 12 bits, from a sample of the images."""
    deep = [path for path in paths if path.suffix.lower() in _DEEP_SUFFIXES]
    found = []
    for path in deep[:: len(deep) // NUM_SAMPLED + 1]:
        with suppress(OSError, SyntaxError, ValueError):  # loading the image will say so
            pixels = deep_pixels(path)
            if pixels is not None:
                found.append((path, bits_in_use(pixels)))
    unused = [(path, bits) for path, bits in found if bits < 16]
    if not unused:
        return []
    path, bits = unused[0]
    return [
        f"{len(unused)} of {len(found)} 16-bit images of a sample use fewer bits and are read by those, the first "
        f"{path} ({bits} bits)"
    ]


def split_paths(
    paths: Sequence[Path], folder: str | Path
) -> tuple[list[str], tuple[str, ...], Int64[np.ndarray, " N"]]:
    """(file names, folders, folder ids) of image paths: relative to `folder` below it, else base names."""
    places = [
        (str(folder), path.relative_to(folder).as_posix())
        if path.is_relative_to(folder)
        else (str(path.parent), path.name)
        for path in paths
    ]
    folders = tuple(dict.fromkeys([str(folder), *(place for place, _ in places)]))
    numbers = {place: number for number, place in enumerate(folders)}
    return [name for _, name in places], folders, np.array([numbers[place] for place, _ in places], np.int64)


def raw_from_table(table: AnnotationTable) -> RawSplit:
    """RawSplit of a table, for sources without annotation files."""
    image_index = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    return RawSplit(
        classes=table.classes,
        class_ids=table.class_ids,
        image_ids=table.image_ids,
        widths=table.widths,
        heights=table.heights,
        file_names=[table.file_name(index) for index in range(len(table))],
        folders=table.folders,
        folder_ids=table.folder_ids,
        annotation_files=(),
        image_index=image_index,
        labels=table.labels,
        boxes=table.boxes,
        areas=table.areas,
        iscrowd=table.iscrowd,
        difficult=table.difficult,
        annotation_ids=table.annotation_ids,
        masks=table.masks,
        image_place=lambda index: (table.file_name(index), None),
        object_place=lambda row: (table.file_name(int(image_index[row])), f"annotation id {table.annotation_ids[row]}"),
        annotated_image=lambda row: str(table.image_ids[image_index[row]]),
        annotated_class=lambda row: table.classes[table.labels[row]],
        has_ids=True,
    )
