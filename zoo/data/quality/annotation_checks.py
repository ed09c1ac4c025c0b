"""Checks of annotations, from the columns of a RawSplit; image files are not read.

Legend:
    N  images listed        T  objects        C  classes
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.coco import Coco, rows_unlike_polygons
from zoo.data.formats.coco.boxes import BoxesAreCornersError
from zoo.data.formats.raw import (
    BrokenRecordError,
    CoordinatesAboveOneError,
    ListedTwiceError,
    MaskError,
    RawSplit,
    SharedAnnotationError,
    same_record,
)
from zoo.data.formats.resized import WrongSizesError
from zoo.data.quality.findings import UNKNOWN_IMAGE, Finding
from zoo.data.quality.neighbours import pair_iou, same_image_pairs
from zoo.data.source import Source, describe_bad_box
from zoo.errors import InputError

TINY_SIDE = 2.0
"""Boxes with a shorter side (pixels) are tiny."""
EDGE_TOLERANCE = 1.0
"""Pixels by which a box may extend beyond its image: sub-pixel annotations are rounded, and VOC counts from 1."""
NEAR_DUPLICATE_IOU = 0.9
"""Two boxes of a class with at least this IoU may be one object that was annotated twice."""
UNBALANCED_RATIO = 50.0
"""Classes are unbalanced if the most frequent has at least this many times as many objects as the rarest."""


def parse_findings(split: str, errors: list[InputError], raw: RawSplit) -> Iterator[Finding]:
    """Records that the parser skipped, from its errors."""
    images = {str(file): index for index, file in enumerate(raw.annotation_files)}
    for error in errors:
        file = error.file or ""
        prefix = ": ".join(part for part in (file, error.place) if part) + ": "
        message = str(error).removeprefix(prefix)
        image = images.get(file, -1)
        if isinstance(error, WrongSizesError):
            continue  # each image has its own finding
        if isinstance(error, ListedTwiceError):
            yield Finding("image_listed_twice", split, file, error.place, message)
        elif isinstance(error, CoordinatesAboveOneError):
            yield Finding("coordinates_above_1", split, file, error.place, message, image)
        elif isinstance(error, SharedAnnotationError):
            for sharing, annotation in enumerate(raw.annotation_files):
                if str(annotation) == file:
                    yield Finding("annotation_shared", split, file, None, message, sharing)
        elif isinstance(error, MaskError):
            yield Finding("mask_broken", split, file, error.place, message)
        elif isinstance(error, BoxesAreCornersError):
            yield Finding("boxes_are_corners", split, file, error.place, message)
        elif isinstance(error, BrokenRecordError):
            listed = np.flatnonzero(raw.image_ids == error.image_id).tolist() if error.image_id is not None else []
            image = listed[0] if listed else -1 if error.image_id is not None else UNKNOWN_IMAGE
            yield Finding("broken_annotation", split, file, error.place, message, image)
        elif image >= 0 and not raw.annotation_files[image].exists():
            yield Finding("missing_annotation", split, file, None, message, image)
        else:
            yield Finding("broken_annotation", split, file, error.place, message, image)


def note_findings(split: str, raw: RawSplit, file: str) -> Iterator[Finding]:
    """Interpretations of annotations that are not in the standard form of their format."""
    for note in raw.notes:
        yield Finding("interpreted", split, file, None, note)
    for note in raw.mask_notes:
        yield Finding("mask_missing", split, file, None, note)


def id_findings(split: str, raw: RawSplit) -> Iterator[Finding]:
    """Duplicate ids of images and annotations, and objects of unknown images or classes."""
    if raw.has_ids:
        for index, first in _duplicates(raw.image_ids):
            same = same_record(raw, index, first)
            other = f"{raw.file_names[index]} has the id of {raw.file_names[first]}"
            message = "the same image is listed again" if same else other
            kind = "image_listed_twice" if same else "image_id_twice"
            yield Finding(kind, split, *raw.image_place(index), message, image=index)
        for row, first in _duplicates(raw.annotation_ids):
            message = f"entry {row + 1} has the id of entry {first + 1}"
            yield Finding("annotation_id_twice", split, *raw.object_place(row), message, row=row)
    for row in np.flatnonzero(raw.image_index < 0).tolist():
        message = f"image {raw.annotated_image(row)} is not listed"
        yield Finding("unknown_image", split, *raw.object_place(row), message, row=row)
    for row in np.flatnonzero(raw.labels < 0).tolist():
        message = f"class {raw.annotated_class(row)!r} is not among the {len(raw.classes)} classes"
        yield Finding("unknown_class", split, *raw.object_place(row), message, row=row)


def class_findings(split: str, raw: RawSplit, file: str) -> Iterator[Finding]:
    """Duplicate class ids and names, and class names that differ only in case, spaces, `_` or `-`."""
    for index, first in _duplicates(raw.class_ids):
        message = f"class {raw.classes[index]!r} has the id of {raw.classes[first]!r}"
        yield Finding("class_id_twice", split, file, f"category id {raw.class_ids[index]}", message)
    counts = np.bincount(raw.labels[raw.labels >= 0], minlength=len(raw.classes))
    first_of = {name: index for index, name in reversed(list(enumerate(raw.classes)))}
    for index, first in [(i, first_of[name]) for i, name in enumerate(raw.classes) if first_of[name] != i]:
        ids = f"{raw.class_ids[first]} and {raw.class_ids[index]}"
        yield Finding("class_name_twice", split, file, None, f"categories {ids} are both called {raw.classes[index]!r}")
    for labels in similar_names(raw.classes):
        if len({raw.classes[label] for label in labels}) > 1:
            names = [f"{raw.classes[label]!r} ({counts[label]} objects)" for label in labels]
            yield Finding("class_names_alike", split, file, None, "these may be one class: " + ", ".join(names))


def similar_names(classes: tuple[str, ...]) -> list[list[int]]:
    """Groups of two or more labels whose names differ only in case, spaces, `_` or `-`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(classes):
        groups["".join(character for character in name.casefold() if character not in " \t_-")].append(label)
    return [labels for labels in groups.values() if len(labels) > 1]


def box_findings(split: str, raw: RawSplit) -> Iterator[Finding]:
    """Wrong or suspicious boxes; boxes of images of unknown size are not compared with the image."""
    known = raw.image_index >= 0
    sizes = np.stack([np.append(raw.widths, 0), np.append(raw.heights, 0)], axis=1)[raw.image_index].astype(np.float64)
    sized = known & (sizes > 0).all(1)
    finite = np.isfinite(raw.boxes).all(1)
    for row in np.flatnonzero(~finite).tolist():
        yield object_finding("box_not_finite", split, raw, row, describe_bad_box(raw.boxes[row], 0, 0))
    sides = np.where(finite[:, None], raw.boxes, 0)
    sides = sides[:, 2:] - sides[:, :2]
    # one finding per box: a box without area may also lie outside
    reversed_ = finite & (sides < 0).any(1)
    empty = finite & ~reversed_ & (sides == 0).any(1)
    with np.errstate(invalid="ignore"):
        visible = np.minimum(raw.boxes[:, 2:], sizes) - np.maximum(raw.boxes[:, :2], 0)
        beyond = np.maximum(raw.boxes[:, 2:] - sizes, -raw.boxes[:, :2]).max(1)
    has_area = finite & ~reversed_ & ~empty
    outside = has_area & sized & (visible <= 0).any(1)
    inside = has_area & ~outside
    for kind, rows in (("box_reversed", reversed_), ("box_without_area", empty), ("box_outside", outside)):
        for row in np.flatnonzero(rows).tolist():
            width, height = sizes[row].astype(int).tolist()
            yield object_finding(kind, split, raw, row, describe_bad_box(raw.boxes[row], width, height))
    for row in np.flatnonzero(inside & sized & (beyond > EDGE_TOLERANCE)).tolist():
        size = "{:.0f}x{:.0f}".format(*sizes[row])
        message = f"box {format_box(raw.boxes[row])} extends beyond its image of {size} by {beyond[row]:.4g} pixels"
        yield object_finding("box_sticks_out", split, raw, row, message)
    for row in np.flatnonzero(inside & sized & (sides < TINY_SIDE).any(1)).tolist():
        message = f"box {format_box(raw.boxes[row])} is {sides[row, 0]:.3g} x {sides[row, 1]:.3g} pixels"
        yield object_finding("box_tiny", split, raw, row, message)
    yield from _duplicate_box_findings(split, raw, inside & known & ~raw.iscrowd & (raw.labels >= 0))


def polygon_findings(split: str, raw: RawSplit, source: Source) -> Iterator[Finding]:
    """Boxes of a COCO file that contradict their polygons."""
    if not isinstance(source, Coco):
        return
    rows, extents = rows_unlike_polygons(raw, source.annotations)
    for row in rows.tolist():
        message = f"box {format_box(raw.boxes[row])} is not the extent {format_box(extents[row])} of its polygon"
        yield object_finding("box_unlike_polygon", split, raw, row, message)


def _duplicate_box_findings(split: str, raw: RawSplit, checked: NDArray[np.bool_]) -> Iterator[Finding]:
    rows = np.flatnonzero(checked)
    duplicates: dict[int, tuple[int, float]] = {}  # later box -> (earlier box with the highest IoU, that IoU)
    for first, second in same_image_pairs(raw.image_index[rows]):
        firsts, seconds = rows[first], rows[second]
        same_class = raw.labels[firsts] == raw.labels[seconds]
        iou = pair_iou(raw.boxes[firsts], raw.boxes[seconds])
        for at in np.flatnonzero(same_class & (iou >= NEAR_DUPLICATE_IOU)).tolist():
            earlier, later = int(firsts[at]), int(seconds[at])
            if iou[at] > duplicates.get(later, (0, 0.0))[1]:
                duplicates[later] = (earlier, float(iou[at]))
    for later, (earlier, overlap) in sorted(duplicates.items()):
        where = raw.object_place(earlier)[1]
        if (raw.boxes[later] == raw.boxes[earlier]).all():
            yield object_finding("box_doubled", split, raw, later, f"the same box and class as {where}")
        else:
            message = f"box {format_box(raw.boxes[later])} overlaps {where} of the same class, IoU {overlap:.2f}"
            yield object_finding("box_nearly_doubled", split, raw, later, message)


def balance_findings(raws: Mapping[str, RawSplit], file: str) -> Iterator[Finding]:
    """Classes without objects, without training objects, or with far fewer objects than others."""
    classes = next(iter(raws.values())).classes
    counts = {
        split: np.bincount(raw.labels[(raw.labels >= 0) & ~raw.iscrowd], minlength=len(classes))
        for split, raw in raws.items()
    }
    total = np.sum(list(counts.values()), axis=0)
    in_training = counts.get("train", counts.get("trainval", total))
    empty = [name for label, name in enumerate(classes) if total[label] == 0]
    if empty:  # one finding for all: most of VOC's default classes may have no objects
        names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        message = f"{len(empty)} of {len(classes)} classes have no object in any split: {names}"
        yield Finding("class_without_objects", "", file, None, message)
    for label, name in enumerate(classes):
        if total[label] and not in_training[label]:
            where = ", ".join(f"{count[label]} in {split}" for split, count in counts.items() if count[label])
            yield Finding("class_not_trained", "", file, f"class {name}", f"no object in the training split ({where})")
    for split, count in counts.items():
        occurring = np.flatnonzero(count)
        if not len(occurring):
            continue
        rarest, most_frequent = occurring[count[occurring].argmin()], occurring[count[occurring].argmax()]
        ratio = count[most_frequent] / count[rarest]
        if ratio >= UNBALANCED_RATIO:
            rare = int((count[occurring] * UNBALANCED_RATIO <= count[most_frequent]).sum())
            message = (
                f"{count[most_frequent]} objects, {ratio:.0f} times as many as {classes[rarest]!r} ({count[rarest]}); "
                f"{rare} of {len(occurring)} classes have {1 / UNBALANCED_RATIO:.0%} of that or less"
            )
            yield Finding("unbalanced_classes", split, file, f"class {classes[most_frequent]}", message)


def _duplicates(ids: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(index, index of the first occurrence) of each value that occurred before."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    if not len(again):
        return []
    firsts = {int(value): int(index) for index, value in reversed(list(enumerate(ids)))}
    return sorted((int(order[at]), firsts[int(ids[order[at]])]) for at in again)


def object_finding(kind: str, split: str, raw: RawSplit, row: int, message: str) -> Finding:
    """Finding about an object."""
    return Finding(kind, split, *raw.object_place(row), message, int(raw.image_index[row]), row)


def format_box(box: NDArray[np.float64]) -> str:
    """Edges of a box as text."""
    return "({:g}, {:g}, {:g}, {:g})".format(*box.tolist())
