"""Annotations of one split as packed numpy columns, independent of the file format.

Legend:
    N  images        T  annotated objects of all images together        C  classes

A dict per object takes about a kilobyte, and every forked loader worker ends up with its own copy, because reading a
Python object writes its reference count. Columns have no reference counts: a split of the size of COCO takes 60 MB,
which forked workers share.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, Int64
from numpy.typing import NDArray

from zoo.data.masks import Masks
from zoo.types import Target


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Images and objects of one split; object j of image i is row `offsets[i] + j` of the columns with T rows.

    Boxes are continuous edges, unclipped, as in the file; they may extend slightly beyond their image (as in COCO), and
    `target` clips them. They are f64, because evaluation in f32 would not reproduce pycocotools' results exactly.

    Args:
        classes: class names, in the order of the labels.
        class_ids: category ids of the data set, in the order of the labels (COCO: 1..90 with gaps; else 1..C).
        image_ids: image ids of the data set, unique.
        widths: pixels, after EXIF rotation.
        heights: pixels, after EXIF rotation.
        folders: folders of image files; the empty tuple for images that are generated in memory.
        folder_ids: index into `folders` for each image.
        name_bytes: all file names as concatenated UTF-8, relative to their folder, with `/` as separator.
        name_offsets: start of each name in `name_bytes`, and the end.
        offsets: first row of each image's objects, and the end.
        boxes: xyxy edges in pixels.
        areas: pixels^2, of the segment where there is one, else of the box.
        labels: 0..C-1.
        iscrowd: COCO's flag for a region of many objects without individual boxes.
        difficult: VOC's flag for an object that evaluation ignores.
        annotation_ids: annotation ids of the data set, unique; 1..T where it has none.
        masks: of the objects; None if they were not asked for.

    Raises:
        ValueError: lengths or types of columns do not match. This is a programming error; the readers check the user's
            files.
    """

    classes: tuple[str, ...]
    class_ids: Int64[np.ndarray, " C"]
    image_ids: Int64[np.ndarray, " N"]
    widths: Int32[np.ndarray, " N"]
    heights: Int32[np.ndarray, " N"]
    folders: tuple[str, ...]
    folder_ids: Int64[np.ndarray, " N"]
    name_bytes: bytes
    name_offsets: Int64[np.ndarray, " N+1"]
    offsets: Int64[np.ndarray, " N+1"]
    boxes: Float64[np.ndarray, "T 4"]
    areas: Float64[np.ndarray, " T"]
    labels: Int64[np.ndarray, " T"]
    iscrowd: Bool[np.ndarray, " T"]
    difficult: Bool[np.ndarray, " T"]
    annotation_ids: Int64[np.ndarray, " T"]
    masks: Masks | None = None

    def __post_init__(self) -> None:
        num_images, num_objects, num_classes = len(self.image_ids), len(self.labels), len(self.classes)
        lengths = {
            "class_ids": num_classes,
            "widths": num_images,
            "heights": num_images,
            "folder_ids": num_images,
            "name_offsets": num_images + 1,
            "offsets": num_images + 1,
            "boxes": num_objects,
            "areas": num_objects,
            "iscrowd": num_objects,
            "difficult": num_objects,
            "annotation_ids": num_objects,
        }
        if self.masks is not None:
            lengths["masks"] = num_objects
        for name, length in lengths.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"column {name} has {len(getattr(self, name))} rows, expected {length}")
        for name, dtype in COLUMNS.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"column {name} is {getattr(self, name).dtype}, expected {np.dtype(dtype)}")
        if self.boxes.shape != (num_objects, 4):
            raise ValueError(f"boxes have shape {self.boxes.shape}, expected ({num_objects}, 4)")
        if self.offsets[0] != 0 or self.offsets[-1] != num_objects or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must rise from 0 to the number of objects")
        if self.name_offsets[-1] != len(self.name_bytes):
            raise ValueError("name_offsets must end at the length of name_bytes")
        if num_objects and not 0 <= self.labels.min() <= self.labels.max() < num_classes:
            raise ValueError(f"labels must lie in 0..{num_classes - 1}")

    @classmethod
    def from_rows(
        cls,
        *,
        classes: Sequence[str],
        class_ids: NDArray[np.int64] | None = None,
        image_ids: NDArray[np.int64],
        widths: NDArray[np.integer],
        heights: NDArray[np.integer],
        file_names: Sequence[str],
        folders: Sequence[str | Path] = (),
        folder_ids: NDArray[np.int64] | None = None,
        image_index: NDArray[np.int64],
        boxes: NDArray[np.float64],
        labels: NDArray[np.int64],
        areas: NDArray[np.float64] | None = None,
        iscrowd: NDArray[np.bool_] | None = None,
        difficult: NDArray[np.bool_] | None = None,
        annotation_ids: NDArray[np.int64] | None = None,
        masks: Masks | None = None,
    ) -> Self:
        """Builds a table from objects in any order; objects of one image keep their order.

        `image_index` [T] is the image (0..N-1) of each object; `file_names` is a list of names. Defaults: class ids
        1..C, annotation ids 1..T, areas of the boxes, `iscrowd` and `difficult` false. The other arguments are those of
        the class.
        """
        num_objects = len(labels)
        order = np.argsort(image_index, kind="stable")
        counts = np.bincount(np.asarray(image_index, np.int64), minlength=len(image_ids))
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        areas = box_areas(boxes) if areas is None else areas
        no_flags = np.zeros(num_objects, bool)
        encoded = [name.encode() for name in file_names]
        return cls(
            classes=tuple(classes),
            class_ids=np.arange(1, len(classes) + 1) if class_ids is None else class_ids,
            image_ids=np.asarray(image_ids, np.int64),
            widths=np.asarray(widths, np.int32),
            heights=np.asarray(heights, np.int32),
            folders=tuple(str(folder) for folder in folders),
            folder_ids=np.zeros(len(image_ids), np.int64) if folder_ids is None else folder_ids,
            name_bytes=b"".join(encoded),
            name_offsets=_offsets(len(name) for name in encoded),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes[order],
            areas=np.asarray(areas, np.float64)[order],
            labels=np.asarray(labels, np.int64)[order],
            iscrowd=(no_flags if iscrowd is None else iscrowd)[order],
            difficult=(no_flags if difficult is None else difficult)[order],
            annotation_ids=(np.arange(1, num_objects + 1) if annotation_ids is None else annotation_ids)[order],
            masks=None if masks is None else masks.select(order),
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return len(self.classes)

    @property
    def num_objects(self) -> int:
        """Number of annotated objects in all images, including crowds and difficult objects."""
        return len(self.labels)

    def file_name(self, index: int) -> str:
        """File name of an image, relative to its folder."""
        return self.name_bytes[self.name_offsets[index] : self.name_offsets[index + 1]].decode()

    def path(self, index: int) -> Path:
        """Path of an image file (only its name, for images that are generated in memory)."""
        if not self.folders:
            return Path(self.file_name(index))
        return Path(self.folders[self.folder_ids[index]], self.file_name(index))

    def paths(self) -> list[Path]:
        """Paths of all image files."""
        return [self.path(index) for index in range(len(self))]

    def rows(self, index: int) -> slice:
        """Rows of an image's objects in the columns."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def has_masks(self) -> bool:
        """Whether an object has a mask; only where masks were read."""
        return self.masks is not None and self.masks.any()

    def target(self, index: int) -> Target:
        """Ground truth of one image: boxes clipped to the image, copied to f32, i64 and bool tensors."""
        rows = self.rows(index)
        width, height = self.widths[index], self.heights[index]
        boxes = np.clip(self.boxes[rows], 0, np.array([width, height, width, height])).astype(np.float32)
        return Target(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(self.labels[rows].copy()),
            image_id=torch.tensor(int(self.image_ids[index])),
            iscrowd=torch.from_numpy(self.iscrowd[rows].copy()),
            difficult=torch.from_numpy(self.difficult[rows].copy()),
            area=torch.from_numpy(self.areas[rows].astype(np.float32)),
        )

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> Self:
        """Table of the given images, in the given order; ids are unchanged."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        counts = np.diff(self.offsets)[chosen]
        rows = _ranges(self.offsets[chosen], counts)
        names = [self.file_name(int(index)).encode() for index in chosen]
        return type(self)(
            classes=self.classes,
            class_ids=self.class_ids,
            image_ids=self.image_ids[chosen],
            widths=self.widths[chosen],
            heights=self.heights[chosen],
            folders=self.folders,
            folder_ids=self.folder_ids[chosen],
            name_bytes=b"".join(names),
            name_offsets=_offsets(len(name) for name in names),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            labels=self.labels[rows],
            iscrowd=self.iscrowd[rows],
            difficult=self.difficult[rows],
            annotation_ids=self.annotation_ids[rows],
            masks=None if self.masks is None else self.masks.select(rows),
        )

    def fingerprint(self) -> str:
        """Hash of everything except folders and masks (16 hex digits): equal for equal content at any location."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.name_bytes)
        for name, dtype in COLUMNS.items():
            if name != "folder_ids":
                # little-endian and contiguous, so that the fingerprint does not depend on the machine
                column = np.ascontiguousarray(getattr(self, name), np.dtype(dtype).newbyteorder("<"))
                digest.update(f"{name}{column.shape}".encode())
                digest.update(column.data)
        return digest.hexdigest()[:16]


COLUMNS: dict[str, type[np.generic]] = {
    "class_ids": np.int64,
    "image_ids": np.int64,
    "widths": np.int32,
    "heights": np.int32,
    "folder_ids": np.int64,
    "name_offsets": np.int64,
    "offsets": np.int64,
    "boxes": np.float64,
    "areas": np.float64,
    "labels": np.int64,
    "iscrowd": np.bool_,
    "difficult": np.bool_,
    "annotation_ids": np.int64,
}
"""Numpy columns of a table and their types; the other fields are `classes`, `folders` and `name_bytes`."""


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas [T] of boxes [T, 4] in xyxy format."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def concatenate(tables: Sequence[AnnotationTable]) -> AnnotationTable:
    """Concatenates tables with the same classes; renumbers image ids or annotation ids that would not be unique.

    Raises:
        ValueError: there is no table, the classes differ, or only some have masks.
    """
    if not tables or any(
        table.classes != tables[0].classes or not np.array_equal(table.class_ids, tables[0].class_ids)
        for table in tables
    ):
        raise ValueError("only tables with the same classes can be concatenated")

    def unique_or_new(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        ids = np.concatenate(list(parts))
        return ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1)

    def shifted(name: str, lengths: Iterable[int]) -> NDArray[np.int64]:
        starts = _offsets(lengths)
        parts = [getattr(table, name)[:-1] + start for table, start in zip(tables, starts[:-1], strict=True)]
        return np.concatenate([*parts, starts[-1:]])

    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("widths", "heights", "boxes", "areas", "labels", "iscrowd", "difficult")
    }
    masks = [table.masks for table in tables if table.masks is not None]
    if 0 < len(masks) < len(tables):
        raise ValueError("only tables that all have masks, or none, can be concatenated")
    folder_starts = _offsets(len(table.folders) for table in tables)
    folder_ids = [table.folder_ids + start for table, start in zip(tables, folder_starts[:-1], strict=True)]
    return AnnotationTable(
        classes=tables[0].classes,
        class_ids=tables[0].class_ids,
        image_ids=unique_or_new(table.image_ids for table in tables),
        folders=tuple(folder for table in tables for folder in table.folders),
        folder_ids=np.concatenate(folder_ids),
        name_bytes=b"".join(table.name_bytes for table in tables),
        name_offsets=shifted("name_offsets", (len(table.name_bytes) for table in tables)),
        offsets=shifted("offsets", (table.num_objects for table in tables)),
        annotation_ids=unique_or_new(table.annotation_ids for table in tables),
        masks=Masks.concatenate(masks) if masks else None,
        **columns,
    )


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Start of each part in a concatenation of parts with these lengths, and the end."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenated ranges: starts [2, 7] and counts [3, 2] give [2, 3, 4, 7, 8]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
