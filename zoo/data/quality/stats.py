"""Statistics of a data set: image and box sizes, objects per image, class balance, overlap and positions.

Legend:
    N  images        T  objects        C  classes

Crowd regions are counted separately and are not objects here; boxes are clipped to their image, as in training.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from zoo.data.formats.parse import distinct_sources, parse_splits, share_classes
from zoo.data.formats.raw import RawSplit
from zoo.data.quality.image_files import Progress, no_progress
from zoo.data.quality.neighbours import highest_iou
from zoo.data.source import Source, find_bad_boxes
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.io.decoding import upright_size

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""COCO's size classes by annotated area: [low, high) in pixels^2."""
GRID = 24
"""Number of cells per side of the map of box centres."""
COCO_MAX_DETECTIONS = 100
"""Highest-scoring detections of a class in an image that COCO's metrics count."""
OVERLAPPING = 0.5
"""Boxes with at least this IoU overlap: non-maximum suppression at this threshold would keep only one of them."""

COUNT_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)  # boxes per image
SIDE_EDGES = tuple(2.0 ** (step / 4) for step in range(0, 49))  # 1 to 4096 pixels, four bins per octave
ASPECT_EDGES = tuple(2.0 ** (step / 4) for step in range(-16, 17))  # 1/16 to 16
UNIT_EDGES = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Distribution:
    """Mean, and values at `QUANTILES` (linearly interpolated); NaN without values."""

    mean: float
    min: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    max: float


@dataclass(frozen=True)
class Histogram:
    """Number of values in each bin [edges[i], edges[i + 1]); values outside are in the first or last bin."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class ClassCount:
    """Number of objects of a class, and of images with such objects."""

    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class ImageSize:
    """Number of images of one size in pixels."""

    width: int
    height: int
    images: int


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split; sides in pixels, areas in pixels^2, aspect ratio is width / height."""

    images: int
    boxes: int
    empty_images: int
    crowds: int
    difficult: int
    skipped_boxes: int  # invalid boxes, which readers skip
    skipped_images: int  # images of unknown size; their boxes are in none of the counts above
    image_sizes: list[ImageSize]  # most frequent first
    image_width: Distribution
    image_height: Distribution
    boxes_an_image: Distribution
    box_width: Distribution
    box_height: Distribution
    box_area: Distribution
    box_aspect: Distribution
    relative_side: Distribution  # sqrt(area of the box / area of its image)
    by_size: dict[str, int]  # number of objects
    classes: list[ClassCount]  # in the order of the labels
    imbalance: float  # objects of the most frequent class / of the rarest class with objects; NaN without objects
    overlap: Distribution  # highest IoU of each box with another box of its image
    overlapping: float  # fraction of boxes whose highest IoU is at least OVERLAPPING; NaN without objects
    overlapping_alike: float  # the same, only between boxes of one class
    count_histogram: Histogram
    side_histogram: Histogram  # of sqrt(area)
    aspect_histogram: Histogram
    relative_histogram: Histogram
    overlap_histogram: Histogram
    centres: list[list[int]]  # box centres in GRID x GRID cells of the image, by row


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set.

    Args:
        data: name of the data set.
        splits: statistics by split.
        notes: limitations of the numbers, such as skipped boxes.
    """

    data: str
    splits: dict[str, SplitStatistics]
    notes: list[str]


def compute_statistics(data: str, sources: Mapping[str, Source], progress: Progress = no_progress) -> Statistics:
    """Statistics of a data set, from its annotations, and from image headers where annotations have no sizes.

    Args:
        data: name of the data set.
        sources: source of each split.
        progress: progress bar over the images whose headers are read.

    Raises:
        InputError: a split cannot be read at all.
    """
    sources = distinct_sources(sources)
    notes: list[str] = []
    errors: list[InputError] = []
    raws = share_classes(parse_splits(sources, lambda _: errors.append), sources)
    if errors:
        notes.append(f"{len(errors)} records cannot be read and are left out, the first: {errors[0]}")
    splits = {}
    for split, raw in raws.items():
        notes += [f"{split}: {note}" for note in raw.notes]
        missing = raw.missing()
        if missing:
            notes.append(
                f"{split}: {len(missing)} of {len(raw)} image files are missing ({raw.path(missing[0])}); "
                "the statistics are from the annotations only"
            )
        raw = _read_sizes(raw, progress)
        unknown = np.flatnonzero(_unknown_sizes(raw))
        num_lost = int(np.isin(raw.image_index, unknown).sum())
        if len(unknown):
            notes.append(
                f"{split}: {len(unknown)} of {len(raw)} images are left out with their {num_lost} boxes, since their "
                f"size is unknown, the first: {raw.path(int(unknown[0]))}"
            )
        table = usable_table(raw)
        skipped = len(raw.labels) - table.num_objects - num_lost
        if skipped:
            boxes = "box is" if skipped == 1 else "boxes are"
            notes.append(f"{split}: {skipped} invalid {boxes} left out; `zoo doctor` lists them")
        notes += [f"{split}: {note}" for note in _describe_detection_limit(table)]
        splits[split] = replace(split_statistics(table), skipped_boxes=skipped, skipped_images=len(unknown))
    return Statistics(data, splits, notes)


def _describe_detection_limit(table: AnnotationTable) -> list[str]:
    """Images with more objects of one class than detections that COCO's metrics count."""
    counted = ~table.iscrowd
    image_index = np.repeat(np.arange(len(table)), np.diff(table.offsets))[counted]
    counts = np.bincount(image_index * len(table.classes) + table.labels[counted])
    num_images = len(np.unique(np.flatnonzero(counts > COCO_MAX_DETECTIONS) // max(len(table.classes), 1)))
    if not num_images:
        return []
    images = "1 image has" if num_images == 1 else f"{num_images} images have"
    return [
        f"{images} more than {COCO_MAX_DETECTIONS} objects of one class (at most {counts.max()}), but COCO's metrics "
        f"count {COCO_MAX_DETECTIONS} detections of a class in an image: no detector can reach AP 1"
    ]


def _read_sizes(raw: RawSplit, progress: Progress) -> RawSplit:
    """Copy with missing image sizes from the headers of the images; 0 where these cannot be read."""
    sizes = np.stack([raw.widths, raw.heights], axis=1)
    unknown = np.flatnonzero((sizes <= 0).any(1)).tolist()
    for index in progress(unknown, len(unknown)) if unknown else ():
        try:
            sizes[index] = upright_size(raw.path(index))
        except InputError:
            sizes[index] = 0
    return raw.with_sizes(sizes)


def _unknown_sizes(raw: RawSplit) -> NDArray[np.bool_]:
    """Mask [N] of images whose size is neither in the annotations nor could be read from the file."""
    return (raw.widths <= 0) | (raw.heights <= 0)


def usable_table(raw: RawSplit) -> AnnotationTable:
    """Table of the images of known size, each once, with the boxes that readers keep."""
    _, firsts = np.unique(raw.image_ids, return_index=True)
    images = np.zeros(len(raw), bool)
    images[firsts] = True
    images &= ~_unknown_sizes(raw)
    sizes = np.stack([np.append(raw.widths, 0), np.append(raw.heights, 0)], axis=1)[raw.image_index]
    return raw.table(images, ~find_bad_boxes(raw.boxes, sizes[:, 0], sizes[:, 1]))


def split_statistics(table: AnnotationTable) -> SplitStatistics:
    """Statistics of the table of one split."""
    image_index = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    sizes = np.stack([table.widths, table.heights], axis=1).astype(np.float64)
    is_object = ~table.iscrowd
    image_index, labels = image_index[is_object], table.labels[is_object]
    limits = np.tile(sizes[image_index], 2)
    boxes = np.clip(table.boxes[is_object], 0, limits)
    widths, heights, areas = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1], box_areas(boxes)
    relative = np.sqrt(areas / limits[:, :2].prod(1))
    counts = np.bincount(image_index, minlength=len(table))
    overlap = highest_iou(boxes, image_index)
    same_class_overlap = highest_iou(boxes, image_index * max(table.num_classes, 1) + labels)
    class_counts = np.bincount(labels, minlength=table.num_classes)
    occurring = class_counts[class_counts > 0]
    annotated_areas = table.areas[is_object]
    return SplitStatistics(
        images=len(table),
        boxes=len(boxes),
        empty_images=int((counts == 0).sum()),
        crowds=int(table.iscrowd.sum()),
        difficult=int(table.difficult.sum()),
        skipped_boxes=0,
        skipped_images=0,
        image_sizes=_most_frequent_sizes(table),
        image_width=distribution(sizes[:, 0]),
        image_height=distribution(sizes[:, 1]),
        boxes_an_image=distribution(counts.astype(np.float64)),
        box_width=distribution(widths),
        box_height=distribution(heights),
        box_area=distribution(areas),
        box_aspect=distribution(widths / heights),
        relative_side=distribution(relative),
        by_size={
            name: int(((annotated_areas >= low) & (annotated_areas < high)).sum())
            for name, (low, high) in SIZES.items()
        },
        classes=_count_classes(table, labels, image_index),
        imbalance=float(occurring.max() / occurring.min()) if len(occurring) else np.nan,
        overlap=distribution(overlap),
        overlapping=float((overlap >= OVERLAPPING).mean()) if len(boxes) else np.nan,
        overlapping_alike=float((same_class_overlap >= OVERLAPPING).mean()) if len(boxes) else np.nan,
        count_histogram=histogram(counts.astype(np.float64), COUNT_EDGES),
        side_histogram=histogram(np.sqrt(areas), SIDE_EDGES),
        aspect_histogram=histogram(widths / heights, ASPECT_EDGES),
        relative_histogram=histogram(relative, UNIT_EDGES),
        overlap_histogram=histogram(overlap, UNIT_EDGES),
        centres=_map_centres((boxes[:, :2] + boxes[:, 2:]) / 2 / limits[:, :2]),
    )


def distribution(values: Float[np.ndarray, " T"]) -> Distribution:
    """Mean and quantiles of values [T]."""
    if not len(values):
        return Distribution(*[float("nan")] * (len(QUANTILES) + 1))
    return Distribution(float(values.mean()), *np.quantile(values, QUANTILES).tolist())


def histogram(values: Float[np.ndarray, " T"], edges: tuple[float, ...]) -> Histogram:
    """Histogram of values [T]."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return Histogram([float(edge) for edge in edges], np.bincount(bins, minlength=len(edges) - 1).tolist())


def _most_frequent_sizes(table: AnnotationTable, limit: int = 10) -> list[ImageSize]:
    sizes = Counter(zip(table.widths.tolist(), table.heights.tolist(), strict=True))
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return [ImageSize(width, height, images) for (width, height), images in ordered[:limit]]


def _count_classes(
    table: AnnotationTable, labels: NDArray[np.int64], image_index: NDArray[np.int64]
) -> list[ClassCount]:
    objects = np.bincount(labels, minlength=table.num_classes)
    pairs = np.sort(image_index * max(table.num_classes, 1) + labels)  # (image, class) of each object as one integer
    first = np.diff(pairs, prepend=-1) > 0  # much faster than np.unique
    images = np.bincount(pairs[first] % max(table.num_classes, 1), minlength=table.num_classes)
    return [ClassCount(name, int(objects[label]), int(images[label])) for label, name in enumerate(table.classes)]


def _map_centres(centres: Float[np.ndarray, "T 2"]) -> list[list[int]]:
    """Number of centres [T, 2], relative to the image size, in each cell of the grid."""
    cells = np.minimum((centres * GRID).astype(np.int64), GRID - 1)
    counts = np.bincount(cells[:, 1] * GRID + cells[:, 0], minlength=GRID * GRID)
    return counts.reshape(GRID, GRID).tolist()
