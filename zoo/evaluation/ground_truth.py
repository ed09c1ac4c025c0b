"""Ground truth of a set of images as columns, in the canonical order that every protocol uses.

Legend:
    N  images      T  objects of all images      C  classes

Canonical order is images by ascending id, and objects of an image in the given order. The same images collected in
another order, or on several processes, give the same columns and so the same metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped

from zoo.data.masks import NONE, Masks
from zoo.errors import InputError
from zoo.types import Target

if TYPE_CHECKING:
    from zoo.data.table import AnnotationTable


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Masks of objects or detections, with the sizes of their images."""

    masks: Masks
    heights: Int64[np.ndarray, " T"]
    widths: Int64[np.ndarray, " T"]

    @classmethod
    def of_table(cls, table: "AnnotationTable") -> "ObjectMasks":
        """Masks of all objects of a table that has them, as run lengths: polygons become pixels once, here."""
        assert table.masks is not None
        counts = np.diff(table.offsets)
        heights, widths = (np.repeat(side, counts).astype(np.int64) for side in (table.heights, table.widths))
        kinds, sizes = table.masks.kinds.tolist(), zip(heights.tolist(), widths.tolist(), strict=True)
        rows = enumerate(zip(kinds, sizes, strict=True))
        runs = Masks.pack(None if kind == NONE else table.masks.runs(row, *size) for row, (kind, size) in rows)
        return cls(runs, heights, widths)

    @classmethod
    def none(cls) -> "ObjectMasks":
        """Those of no objects."""
        return cls(Masks.pack([]), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def select(self, rows: Int64[np.ndarray, " Q"]) -> "ObjectMasks":
        """Masks of the given rows, in the given order."""
        return ObjectMasks(self.masks.select(rows), self.heights[rows], self.widths[rows])

    def fill(self, rows: Int64[np.ndarray, " Q"], boxes: Float[np.ndarray, "T 4"]) -> "ObjectMasks":
        """The same masks, but for the given rows those of their boxes."""
        sizes = list(zip(self.heights.tolist(), self.widths.tolist(), strict=True))
        runs: list[bytes] = [run["counts"] for run in self.run_lengths()]
        for row in rows.tolist():
            x1, y1, x2, y2 = boxes[row].tolist()
            runs[row] = Masks.pack([[np.array([x1, y1, x2, y1, x2, y2, x1, y2])]]).runs(0, *sizes[row])
        return ObjectMasks(Masks.pack(runs), self.heights, self.widths)

    def run_lengths(self) -> list[Any]:
        """Run lengths of each in the form that pycocotools and hotcoco read."""
        return self.masks.run_lengths(self.heights, self.widths)

    def areas(self) -> Int64[np.ndarray, " T"]:
        """Number of pixels of each."""
        return self.masks.areas(self.heights, self.widths)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Objects of all images in packed columns; made by `from_table`, `from_targets` or `from_counts`."""

    classes: tuple[str, ...]
    image_ids: Int64[np.ndarray, " N"]  # strictly ascending
    image_index: Int64[np.ndarray, " T"]  # index of the object's image in `image_ids`; never descending
    boxes: Float[np.ndarray, "T 4"]  # f64 xyxy, pixels
    areas: Float[np.ndarray, " T"]  # f64 pixels^2; decides COCO's size range
    labels: Int64[np.ndarray, " T"]
    iscrowd: Bool[np.ndarray, " T"]
    difficult: Bool[np.ndarray, " T"]
    masks: ObjectMasks | None = None

    @classmethod
    def from_counts(
        cls,
        classes: Sequence[str] | None,
        image_ids: Int64[np.ndarray, " N"],
        counts: Int64[np.ndarray, " N"],
        boxes: Float[np.ndarray, "T 4"],
        areas: Float[np.ndarray, " T"],
        labels: Int64[np.ndarray, " T"],
        iscrowd: Bool[np.ndarray, " T"],
        difficult: Bool[np.ndarray, " T"],
        masks: ObjectMasks | None = None,
    ) -> "GroundTruth":
        """Ground truth from columns in any order of images; of a repeated image the first copy is kept.

        Args:
            classes: class names by label; None uses the labels as names, up to the largest one.
            image_ids: id of each image.
            counts: number of objects of each image, in the order of `image_ids`, as are the columns below.
            boxes: xyxy in pixels.
            areas: pixels^2.
            labels: 0 .. C - 1.
            iscrowd: regions of many objects: a detection in one is neither right nor wrong.
            difficult: VOC's flag, with the same effect in VOC's protocols; ignored by COCO's.
            masks: of the objects.

        Raises:
            InputError: a label without a name in `classes`.
        """
        ids, first = np.unique(image_ids, return_index=True)
        names = tuple(classes) if classes is not None else tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
        take = ragged_indices(counts, first)
        image_index = np.repeat(np.arange(len(ids)), counts[first])
        labels = labels[take].astype(np.int64, copy=False)
        check_labels(labels, len(names), ids[image_index], "an object")
        return cls(
            classes=names,
            image_ids=ids.astype(np.int64, copy=False),
            image_index=image_index,
            boxes=boxes[take].astype(np.float64, copy=False),
            areas=areas[take].astype(np.float64, copy=False),
            labels=labels,
            iscrowd=iscrowd[take].astype(bool, copy=False),
            difficult=difficult[take].astype(bool, copy=False),
            masks=None if masks is None else masks.select(take),
        )

    @classmethod
    def from_table(cls, table: "AnnotationTable") -> "GroundTruth":
        """Ground truth of an annotation table, read from any format."""
        return cls.from_counts(
            classes=table.classes,
            image_ids=table.image_ids,
            counts=np.diff(table.offsets),
            boxes=table.boxes,
            areas=table.areas,
            labels=table.labels,
            iscrowd=table.iscrowd,
            difficult=table.difficult,
            masks=None if table.masks is None else ObjectMasks.of_table(table),
        )

    def for_masks(self) -> "GroundTruth":
        """Ground truth for comparing masks.

        An object without a mask does not count: its box becomes a crowd region. Areas are those of masks where the
        data set has no others than those of boxes.

        Raises:
            InputError: there are no masks.
        """
        if self.masks is None:
            raise InputError("the ground truth has no masks; read it with masks, or evaluate boxes")
        without = self.masks.masks.kinds == NONE
        masks = self.masks.fill(np.flatnonzero(without), self.boxes) if without.any() else self.masks
        of_boxes = np.isclose(self.areas, (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1), rtol=1e-6)
        areas = np.where(of_boxes, masks.areas(), self.areas)
        return replace(self, iscrowd=self.iscrowd | without, masks=masks, areas=areas)

    def of_classes(self, start: int, stop: int) -> "GroundTruth":
        """Objects of the classes start .. stop - 1, which become 0 .. stop - start - 1; of all images."""
        rows = np.flatnonzero((self.labels >= start) & (self.labels < stop))
        return replace(
            self,
            classes=self.classes[start:stop],
            image_index=self.image_index[rows],
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            labels=self.labels[rows] - start,
            iscrowd=self.iscrowd[rows],
            difficult=self.difficult[rows],
            masks=None if self.masks is None else self.masks.select(rows),
        )

    def of_images(self, image_ids: Int64[np.ndarray, " P"]) -> "GroundTruth":
        """Ground truth of some of the images, given by id in any order.

        Raises:
            InputError: an id that is not in the ground truth.
        """
        others = np.setdiff1d(image_ids, self.image_ids)
        if len(others):
            raise InputError("is not in the ground truth", place=f"image {others[0]}")
        kept = np.searchsorted(self.image_ids, np.unique(image_ids))
        counts = np.bincount(self.image_index, minlength=len(self.image_ids))
        take = ragged_indices(counts, kept)
        return GroundTruth.from_counts(
            classes=self.classes,
            image_ids=self.image_ids[kept],
            counts=counts[kept],
            boxes=self.boxes[take],
            areas=self.areas[take],
            labels=self.labels[take],
            iscrowd=self.iscrowd[take],
            difficult=self.difficult[take],
            masks=None if self.masks is None else self.masks.select(take),
        )

    @classmethod
    def from_targets(cls, targets: Sequence[Target], classes: Sequence[str] | None = None) -> "GroundTruth":
        """Ground truth from the targets of a DataModule.

        Args:
            targets: one for each image, on any device, possibly without objects.
            classes: class names by label; None uses the labels as names.
        """

        def column(key: str, dtype: type[np.generic], *shape: int) -> Shaped[np.ndarray, "..."]:
            if not targets:
                return np.zeros((0, *shape), dtype)
            joined = torch.cat([target[key].reshape(-1, *shape) for target in targets])  # type: ignore[literal-required]
            return joined.cpu().numpy().astype(dtype, copy=False)

        return cls.from_counts(
            classes=classes,
            image_ids=column("image_id", np.int64),
            counts=np.array([len(target["labels"]) for target in targets], dtype=np.int64),
            boxes=column("boxes", np.float64, 4),
            areas=column("area", np.float64),
            labels=column("labels", np.int64),
            iscrowd=column("iscrowd", np.bool_),
            difficult=column("difficult", np.bool_),
        )


def ragged_indices(counts: Int64[np.ndarray, " N"], order: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, " Q"]:
    """Row indices that reorder a ragged array by group.

    Args:
        counts: number of rows of each group; the rows are sorted by group.
        order: groups to take, in the wanted order.

    Returns:
        Indices of all rows of group `order[0]`, then of `order[1]`, and so on.
    """
    starts = np.cumsum(counts) - counts
    taken = counts[order]
    return np.repeat(starts[order] - (np.cumsum(taken) - taken), taken) + np.arange(taken.sum())


def check_labels(
    labels: Int64[np.ndarray, " D"], num_classes: int, image_ids: Int64[np.ndarray, " D"], what: str
) -> None:
    """Check that all labels are in 0 .. num_classes - 1.

    Raises:
        InputError: a label outside; names its image.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        place = f"image {image_ids[bad[0]]}"
        raise InputError(
            f"{what} has label {labels[bad[0]]}, but there are {num_classes} classes (labels 0 to {num_classes - 1})",
            place=place,
        )
