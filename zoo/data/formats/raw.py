"""A split as its files have it: all that can be parsed, before anything is refused or left out.

Legend:
    N  images listed        T  objects        C  classes

A reader makes an AnnotationTable of it and ends at the first fault; the doctor wants to know them all. Both begin with
the same parser, which is handed a way to complain: `refuse` ends the reading, a list's `append` lets it go on without
the record that was no good.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from zoo.data.source import describe_bad_box, find_bad_boxes, report_bad_boxes
from zoo.data.table import AnnotationTable
from zoo.errors import InputError


class ListedTwiceError(InputError):
    """An image that a split names again."""


Complain: TypeAlias = Callable[[InputError], None]
Place: TypeAlias = tuple[str, str | None]  # a file, and where in it


def refuse(error: InputError) -> None:
    """The readers' way to complain: the first fault ends the reading."""
    raise error


@dataclass(frozen=True, eq=False)
class RawSplit:
    """What the files of one split say, true or not.

    Args:
        classes: names in the order of the labels; may hold a name twice.
        class_ids: of the data set; may hold an id twice.
        image_ids: of the data set; may hold an id twice.
        widths: pixels as the annotation says; 0 where it does not.
        heights: as `widths`.
        file_names: relative to their folder.
        folders: where image files lie; the empty tuple for images that are made in memory.
        folder_ids: index into `folders` of each image.
        annotation_files: the file of each image's own (VOC, YOLO; it may be missing); the empty tuple where one file
            serves all.
        image_index: image of each object, its first one where the id occurs twice; -1 for an image that is not listed.
        labels: 0..C-1; -1 for a class that has no name.
        boxes: xyxy edges in pixels; in parts of width and height where `relative`.
        areas: pixels^2 (no meaning where `relative`).
        iscrowd: COCO's marker.
        difficult: VOC's marker.
        annotation_ids: of the data set where `has_ids`, else 1..T.
        image_place: index -> where the image is listed.
        object_place: row -> where the object is described.
        image_word: row -> what the object calls its image.
        class_word: row -> what the object calls its class.
        has_ids: whether ids are the data set's own.
        relative: whether boxes wait for the sizes of their images.
    """

    classes: tuple[str, ...]
    class_ids: Int64[np.ndarray, "C"]
    image_ids: Int64[np.ndarray, "N"]
    widths: Int32[np.ndarray, "N"]
    heights: Int32[np.ndarray, "N"]
    file_names: list[str]
    folders: tuple[str, ...]
    folder_ids: Int64[np.ndarray, "N"]
    annotation_files: tuple[Path, ...]
    image_index: Int64[np.ndarray, "T"]
    labels: Int64[np.ndarray, "T"]
    boxes: Float64[np.ndarray, "T 4"]
    areas: Float64[np.ndarray, "T"]
    iscrowd: Bool[np.ndarray, "T"]
    difficult: Bool[np.ndarray, "T"]
    annotation_ids: Int64[np.ndarray, "T"]
    image_place: Callable[[int], Place]
    object_place: Callable[[int], Place]
    image_word: Callable[[int], str]
    class_word: Callable[[int], str]
    has_ids: bool = False
    relative: bool = False

    def __len__(self) -> int:
        """The number of images listed."""
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Where the file of an image should lie (just its name, for images that are made in memory)."""
        name = self.file_names[index]
        return Path(self.folders[self.folder_ids[index]], name) if self.folders else Path(name)

    def paths(self) -> list[Path]:
        """Where the files of all images should lie."""
        return [self.path(index) for index in range(len(self))]

    def with_sizes(self, sizes: Int32[np.ndarray, "N 2"]) -> Self:
        """The same with the size of each image; relative boxes become pixels.

        Args:
            sizes: (width, height); 0 where nobody knows. Boxes there stay as they are.
        """
        boxes, areas = self.boxes, self.areas
        if self.relative:
            scale = np.where(sizes > 0, sizes, 1).astype(np.float64)[self.image_index]
            boxes = boxes * np.tile(scale, 2)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        sizes = np.asarray(sizes, np.int32)
        return replace(self, widths=sizes[:, 0], heights=sizes[:, 1], boxes=boxes, areas=areas, relative=False)

    def with_classes(self, classes: tuple[str, ...], class_ids: Int64[np.ndarray, "C"]) -> Self:
        """The same with labels that count in another list of classes; those that it lacks become -1."""
        numbers = {name: number for number, name in enumerate(classes)}
        new = np.array([*(numbers.get(name, -1) for name in self.classes), -1], np.int64)  # label -1 picks the last
        return replace(self, classes=classes, class_ids=class_ids, labels=new[self.labels])

    def table(self, images: Bool[np.ndarray, "N"], objects: Bool[np.ndarray, "T"]) -> AnnotationTable:
        """What is left of it.

        Args:
            images: which to keep.
            objects: which to keep; those of other images go too.
        """
        new_index = np.cumsum(images) - 1
        kept_or_not = np.append(images, False)  # image -1 picks the last
        objects = objects & kept_or_not[self.image_index] & (self.labels >= 0)
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
        )


def same_record(raw: RawSplit, one: int, other: int) -> bool:
    """Whether two images are listed with the same file and size."""
    return (
        raw.path(one) == raw.path(other)
        and bool(raw.widths[one] == raw.widths[other])
        and bool(raw.heights[one] == raw.heights[other])
    )


def select_valid_boxes(raw: RawSplit, strict: bool) -> Bool[np.ndarray, "T"]:
    """Which boxes a reader keeps; one warning counts the others.

    Args:
        raw: with the sizes of its images, and without objects of images that are not listed.
        strict: the first bad box is an error.

    Raises:
        InputError: a bad box, under `strict`.
    """
    bad = find_bad_boxes(raw.boxes, raw.widths[raw.image_index], raw.heights[raw.image_index])

    def describe(row: int) -> tuple[str, str | Path, str | None]:
        image = raw.image_index[row]
        return describe_bad_box(raw.boxes[row], raw.widths[image], raw.heights[image]), *raw.object_place(row)

    report_bad_boxes(bad, describe, strict)
    return ~bad


def raw_from_table(table: AnnotationTable) -> RawSplit:
    """The raw form of a split that has no files to be wrong in."""
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
        image_place=lambda index: (table.file_name(index), None),
        object_place=lambda row: (table.file_name(int(image_index[row])), f"annotation id {table.annotation_ids[row]}"),
        image_word=lambda row: str(table.image_ids[image_index[row]]),
        class_word=lambda row: table.classes[table.labels[row]],
        has_ids=True,
    )
