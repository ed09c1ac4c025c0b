"""What is wrong with annotations, told from the columns of a raw split; images are not looked at.

Legend:
    N  images listed        T  objects        C  classes
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.raw import ListedTwiceError, RawSplit, same_record
from zoo.data.quality.findings import Finding
from zoo.data.quality.neighbours import neighbour_pairs, pair_iou
from zoo.data.source import describe_bad_box
from zoo.errors import InputError

TINY = 2.0
"""Pixels; a box with a shorter side is tiny."""
SLACK = 1.0
"""Pixels by which a box may stick out: annotations of sub-pixel precision round, and VOC counts from 1."""
NEARLY = 0.9
"""IoU from which two boxes of one class may be one object that was annotated twice."""
UNBALANCED = 50.0
"""Times as many objects of the most frequent class as of the rarest."""


def complaint_findings(split: str, errors: list[InputError], raw: RawSplit) -> Iterator[Finding]:
    """What the parser left out."""
    images = {str(file): index for index, file in enumerate(raw.annotation_files)}
    for error in errors:
        file = error.file or ""
        prefix = ": ".join(part for part in (file, error.place) if part) + ": "
        message = str(error).removeprefix(prefix)
        image = images.get(file, -1)
        if isinstance(error, ListedTwiceError):
            yield Finding("image_listed_twice", split, file, error.place, message)
        elif image >= 0 and not raw.annotation_files[image].exists():
            yield Finding("missing_annotation", split, file, None, message, image)
        else:
            yield Finding("broken_annotation", split, file, error.place, message, image)


def id_findings(split: str, raw: RawSplit) -> Iterator[Finding]:
    """Ids of images and annotations that are there twice, and objects of images and classes that are not there."""
    if raw.has_ids:
        for index, first in _repetitions(raw.image_ids):
            same = same_record(raw, index, first)
            message = (
                "the same image again" if same else f"{raw.file_names[index]} has the id of {raw.file_names[first]}"
            )
            kind = "image_listed_twice" if same else "image_id_twice"
            yield Finding(kind, split, *raw.image_place(index), message, image=index)
        for row, first in _repetitions(raw.annotation_ids):
            message = f"entry {row + 1} has the id of entry {first + 1}"
            yield Finding("annotation_id_twice", split, *raw.object_place(row), message, row=row)
    for row in np.flatnonzero(raw.image_index < 0).tolist():
        message = f"image {raw.image_word(row)} is not listed"
        yield Finding("unknown_image", split, *raw.object_place(row), message, row=row)
    for row in np.flatnonzero(raw.labels < 0).tolist():
        message = f"class {raw.class_word(row)!r} is not among the {len(raw.classes)} classes"
        yield Finding("unknown_class", split, *raw.object_place(row), message, row=row)


def class_findings(split: str, raw: RawSplit, file: str) -> Iterator[Finding]:
    """Class ids that are there twice, and names that look the same."""
    for index, first in _repetitions(raw.class_ids):
        message = f"class {raw.classes[index]!r} has the id of {raw.classes[first]!r}"
        yield Finding("class_id_twice", split, file, f"category id {raw.class_ids[index]}", message)
    counts = np.bincount(raw.labels[raw.labels >= 0], minlength=len(raw.classes))
    for labels in similar_names(raw.classes):
        words = [f"{raw.classes[label]!r} ({counts[label]} objects)" for label in labels]
        yield Finding("class_names_alike", split, file, None, "these may be one class: " + ", ".join(words))


def similar_names(classes: tuple[str, ...]) -> list[list[int]]:
    """Labels of names that are the same but for case, spaces, `_` and `-`, in groups of two and more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(classes):
        groups["".join(character for character in name.casefold() if character not in " \t_-")].append(label)
    return [labels for labels in groups.values() if len(labels) > 1]


def box_findings(split: str, raw: RawSplit) -> Iterator[Finding]:
    """Boxes that cannot be right, or hardly; where the size of an image is unknown, they are not compared with it."""
    known = raw.image_index >= 0
    sizes = np.stack([np.append(raw.widths, 0), np.append(raw.heights, 0)], axis=1)[raw.image_index].astype(np.float64)
    sized = known & (sizes > 0).all(1)
    finite = np.isfinite(raw.boxes).all(1)
    for row in np.flatnonzero(~finite).tolist():
        yield _box_finding("box_not_finite", split, raw, row, describe_bad_box(raw.boxes[row], 0, 0))
    sides = np.where(finite[:, None], raw.boxes, 0)
    sides = sides[:, 2:] - sides[:, :2]
    # what has no area may also lie outside: one fault is told of each box
    reversed_ = finite & (sides < 0).any(1)
    empty = finite & ~reversed_ & (sides == 0).any(1)
    with np.errstate(invalid="ignore"):
        visible = np.minimum(raw.boxes[:, 2:], sizes) - np.maximum(raw.boxes[:, :2], 0)
        beyond = np.maximum(raw.boxes[:, 2:] - sizes, -raw.boxes[:, :2]).max(1)
    whole = finite & ~reversed_ & ~empty
    outside = whole & sized & (visible <= 0).any(1)
    inside = whole & ~outside
    for kind, rows in (("box_reversed", reversed_), ("box_without_area", empty), ("box_outside", outside)):
        for row in np.flatnonzero(rows).tolist():
            width, height = sizes[row].astype(int).tolist()
            yield _box_finding(kind, split, raw, row, describe_bad_box(raw.boxes[row], width, height))
    for row in np.flatnonzero(inside & sized & (beyond > SLACK)).tolist():
        size = "{:.0f}x{:.0f}".format(*sizes[row])
        message = f"box {_words(raw.boxes[row])} sticks out of its image of {size} by {beyond[row]:.4g} pixels"
        yield _box_finding("box_sticks_out", split, raw, row, message)
    for row in np.flatnonzero(inside & sized & (sides < TINY).any(1)).tolist():
        message = f"box {_words(raw.boxes[row])} is {sides[row, 0]:.3g} x {sides[row, 1]:.3g} pixels"
        yield _box_finding("box_tiny", split, raw, row, message)
    yield from _double_findings(split, raw, inside & known & ~raw.iscrowd & (raw.labels >= 0))


def _double_findings(split: str, raw: RawSplit, checked: NDArray[np.bool_]) -> Iterator[Finding]:
    rows = np.flatnonzero(checked)
    doubles: dict[int, tuple[int, float]] = {}  # the later box -> the one before that it is most like, and their IoU
    for first, second in neighbour_pairs(raw.image_index[rows]):
        ours, theirs = rows[first], rows[second]
        alike = raw.labels[ours] == raw.labels[theirs]
        iou = pair_iou(raw.boxes[ours], raw.boxes[theirs])
        for at in np.flatnonzero(alike & (iou >= NEARLY)).tolist():
            earlier, later = int(ours[at]), int(theirs[at])
            if iou[at] > doubles.get(later, (0, 0.0))[1]:
                doubles[later] = (earlier, float(iou[at]))
    for later, (earlier, overlap) in sorted(doubles.items()):
        where = raw.object_place(earlier)[1]
        if (raw.boxes[later] == raw.boxes[earlier]).all():
            yield _box_finding("box_doubled", split, raw, later, f"the same box and class as {where}")
        else:
            message = f"box {_words(raw.boxes[later])} overlaps {where}, of the same class, by IoU {overlap:.2f}"
            yield _box_finding("box_nearly_doubled", split, raw, later, message)


def balance_findings(raws: Mapping[str, RawSplit], file: str) -> Iterator[Finding]:
    """Classes of the whole data set that have no objects, none to learn from, or far fewer than others."""
    classes = next(iter(raws.values())).classes
    counts = {
        split: np.bincount(raw.labels[(raw.labels >= 0) & ~raw.iscrowd], minlength=len(classes))
        for split, raw in raws.items()
    }
    total = np.sum(list(counts.values()), axis=0)
    learned = counts.get("train", counts.get("trainval", total))
    empty = [name for label, name in enumerate(classes) if total[label] == 0]
    if empty:  # one finding: where nobody gave a list it is VOC's, and most of it may be empty
        names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        message = f"{len(empty)} of {len(classes)} classes have no object in any split: {names}"
        yield Finding("class_without_objects", "", file, None, message)
    for label, name in enumerate(classes):
        if total[label] and not learned[label]:
            where = ", ".join(f"{count[label]} in {split}" for split, count in counts.items() if count[label])
            yield Finding("class_not_trained", "", file, f"class {name}", f"no object to learn from ({where})")
    for split, count in counts.items():
        occurring = np.flatnonzero(count)
        if not len(occurring):
            continue
        rarest, commonest = occurring[count[occurring].argmin()], occurring[count[occurring].argmax()]
        ratio = count[commonest] / count[rarest]
        if ratio >= UNBALANCED:
            rare = int((count[occurring] * UNBALANCED <= count[commonest]).sum())
            message = (
                f"{count[commonest]} objects, {ratio:.0f} times as many as of {classes[rarest]!r} ({count[rarest]}); "
                f"{rare} of {len(occurring)} classes have a fiftieth of that or less"
            )
            yield Finding("unbalanced_classes", split, file, f"class {classes[commonest]}", message)


def _repetitions(ids: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(place, first place) of each value that was there before."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    if not len(again):
        return []
    firsts = {int(value): int(place) for place, value in reversed(list(enumerate(ids)))}
    return sorted((int(order[at]), firsts[int(ids[order[at]])]) for at in again)


def _box_finding(kind: str, split: str, raw: RawSplit, row: int, message: str) -> Finding:
    return Finding(kind, split, *raw.object_place(row), message, int(raw.image_index[row]), row)


def _words(box: NDArray[np.float64]) -> str:
    return "({:g}, {:g}, {:g}, {:g})".format(*box.tolist())
