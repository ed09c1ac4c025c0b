"""Write a cleaned copy of a data set: correct errors where this needs no judgement, else leave the image out.

A copy never has an image without some of its objects, where these were annotated: it would be trained as background.

The copy has the format of the original, with its masks. Fields that our writer of the format does not support are lost
(VOC's poses and parts). Images are copied; only those with an EXIF rotation are encoded again.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.parse import origin
from zoo.data.formats.raw import RawSplit
from zoo.data.masks import NONE, RUNS
from zoo.data.quality.annotation_checks import EDGE_TOLERANCE, box_findings, similar_names
from zoo.data.quality.doctor import Inspection
from zoo.data.quality.findings import KINDS, UNKNOWN_IMAGE, Finding
from zoo.data.quality.pixel_boxes import boxes_in_pixels
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError

_LEFT_OUT_IMAGES = {
    "broken_annotation",
    "missing_annotation",
    "missing_image",
    "broken_image",
    "in_two_splits",
    "near_duplicate_in_two_splits",
    "image_listed_twice",
    "box_unlike_polygon",  # it is unknown which of the two is right
    "coordinates_above_1",
    "annotation_shared",
}
_LEFT_OUT_IMAGES_OF_BOXES = {"box_not_finite", "box_without_area", "box_outside"}  # unknown where the object is
MAX_CLIPPED = 0.05
"""Part of the image's side by which a box may extend beyond it and is clipped; a longer one may be another box."""


@dataclass(frozen=True)
class Change:
    """One difference between the copy and the original."""

    split: str
    file: str
    place: str | None
    what: str


@dataclass(eq=False)
class _Draft:
    """Intermediate state of a split while it is cleaned."""

    split: str
    raw: RawSplit
    images: NDArray[np.bool_]  # [N] to keep
    objects: NDArray[np.bool_]  # [T] to keep
    changes: list[Change] = field(default_factory=list)

    def add_change(self, finding: Finding, remedy: str | None = None) -> None:
        what = f"{finding.message}: {remedy or KINDS[finding.kind].remedy}"
        self.changes.append(Change(finding.split or self.split, finding.file, finding.place, what))

    def leave_out_images_of(self, *rows: int) -> None:
        """Leaves out the images of objects, as far as they are listed."""
        images = self.raw.image_index[list(rows)]
        self.images[images[images >= 0]] = False


def clean(inspection: Inspection, flags: Collection[str] = ()) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """Cleaned tables of a data set, and a list of the changes.

    Findings without a remedy are not changed (tiny boxes, images without objects, unbalanced classes), nor those whose
    remedy needs a flag that is not among `flags`.

    Raises:
        InputError: the image folder of a split is missing, its boxes are corners, it is unknown which image an object
            is of, or none of its images can be kept.
    """
    for finding in inspection.findings:
        if finding.kind == "boxes_are_corners":
            raise InputError(f"{finding.message}; a cleaned copy would be a guess", finding.file, finding.place)
    tables, changes = {}, []
    ambiguous = _find_ambiguous_duplicates(inspection)
    wanted = [finding for finding in inspection.findings if KINDS[finding.kind].flag in ("", *flags)]
    for split, raw in inspection.raws.items():
        findings = [finding for finding in wanted if finding.split == split]
        in_pixels = None
        if any(finding.kind == "coordinates_above_1" for finding in findings):
            in_pixels = boxes_in_pixels(raw, inspection.sources[split])
        raw = in_pixels or raw
        draft = _Draft(split, raw, np.ones(len(raw), bool), raw.image_index >= 0)
        if in_pixels:
            draft.changes += [_converted(finding) for finding in findings if finding.kind == "coordinates_above_1"]
            findings = [finding for finding in findings if finding.kind != "coordinates_above_1"]
        findings = _leave_out_ambiguous_duplicates(draft, findings, ambiguous[split])
        _leave_out_images(draft, findings)
        _correct_sizes(draft, findings, inspection)
        _leave_out_uncertain_objects(draft, findings, inspection.parsed[split])
        _correct_boxes(draft)
        _renumber_ids(draft, findings)
        tables[split] = draft.raw.table(draft.images, draft.objects)
        changes += draft.changes
        if len(raw) and not len(tables[split]):
            raise InputError(
                f"a cleaned copy would have no image of the {split} split; correct what `zoo doctor` lists first",
                origin(inspection.sources[split]),
            )
    tables, merged = _share_classes(tables, inspection, wanted)
    return tables, [*changes, *merged, *_implicit_changes(inspection)]


def _converted(finding: Finding) -> Change:
    return Change(finding.split, finding.file, finding.place, f"{finding.message}: converted from pixels")


def _leave_out_images(draft: _Draft, findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.kind == "missing_image" and finding.image < 0:
            raise InputError(f"{finding.message}; add the image folder to write a cleaned copy", finding.file)
        if finding.kind in _LEFT_OUT_IMAGES and finding.image >= 0:
            draft.images[finding.image] = False
            draft.add_change(finding)
        elif finding.kind == "image_id_twice":
            # it is ambiguous which of the images the boxes belong to
            draft.images[draft.raw.image_ids == draft.raw.image_ids[finding.image]] = False
            draft.add_change(finding)
        elif finding.kind == "broken_annotation" and finding.image == UNKNOWN_IMAGE:
            raise InputError(
                f"{finding.message}: any image may have this object; correct it to write a cleaned copy",
                finding.file,
                finding.place,
            )
        elif finding.kind == "broken_annotation":
            draft.add_change(finding, "record left out")


def _find_ambiguous_duplicates(inspection: Inspection) -> dict[str, list[int]]:
    """Split -> images that are identical files with other objects than their duplicates: which are right is unknown."""
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, raw in inspection.raws.items():
        for index, path in enumerate(raw.paths() if raw.folders else []):
            file = inspection.files[path]
            if file is not None and file.error is None:
                groups[file.digest].append((split, index))
    found: dict[str, list[int]] = {split: [] for split in inspection.raws}
    for group in groups.values():
        objects = [_objects_of(inspection.raws[split], index) for split, index in group]
        if any(other != objects[0] for other in objects):
            for split, index in group:
                found[split].append(index)
    return found


def _leave_out_ambiguous_duplicates(draft: _Draft, findings: list[Finding], images: Sequence[int]) -> list[Finding]:
    """Leaves out images; returns the findings without those about their duplicates."""
    for index in images:
        draft.images[index] = False
        what = "an identical file has other objects: all of them left out"
        draft.changes.append(Change(draft.split, str(draft.raw.path(index)), None, what))
    return [finding for finding in findings if finding.kind != "in_two_splits" or finding.image not in images]


def _objects_of(raw: RawSplit, index: int) -> list[tuple[float, ...]]:
    rows = np.flatnonzero(raw.image_index == index)
    return sorted((float(label), *box) for label, box in zip(raw.labels[rows], raw.boxes[rows].tolist(), strict=True))


def _correct_sizes(draft: _Draft, findings: Iterable[Finding], inspection: Inspection) -> None:
    sizes = np.stack([draft.raw.widths, draft.raw.heights], axis=1)
    for finding in findings:
        if finding.kind != "wrong_size":
            continue
        file = inspection.files[draft.raw.path(finding.image)]
        assert file is not None  # missing files have no finding `wrong_size`
        width, height = sizes[finding.image]
        sizes[finding.image] = (file.width, file.height)
        boxes = draft.raw.boxes[draft.raw.image_index == finding.image]
        fits = bool((boxes[:, 2:] <= np.array([file.width, file.height]) + EDGE_TOLERANCE).all())
        # a size that is swapped or not positive cannot be that of another version of the image
        is_plain = fits and (min(width, height) <= 0 or (height, width) == (file.width, file.height))
        draft.images[finding.image] &= is_plain
        draft.add_change(
            finding, "size corrected" if is_plain else "image left out, since its boxes may be of another image"
        )
    # images of unknown size are left out
    _leave_out_masks_of_other_sizes(draft, sizes)
    draft.raw = draft.raw.with_sizes(sizes)


def _leave_out_masks_of_other_sizes(draft: _Draft, sizes: NDArray[np.integer]) -> None:
    """Leaves out run lengths of images whose size is corrected: they are those of the other size."""
    raw = draft.raw
    if raw.masks is None:
        return
    corrected = np.append((sizes != np.stack([raw.widths, raw.heights], axis=1)).any(axis=1), False)[raw.image_index]
    wrong = corrected & (raw.masks.kinds == RUNS)
    for row in np.flatnonzero(wrong).tolist():
        draft.changes.append(Change(draft.split, *raw.object_place(row), "mask of another size: left out"))
    kinds = np.where(wrong, NONE, raw.masks.kinds).astype(np.int8)
    draft.raw = replace(raw, masks=replace(raw.masks, kinds=kinds))


def _leave_out_uncertain_objects(draft: _Draft, findings: Iterable[Finding], parsed: RawSplit) -> None:
    # use the class ids of the split's own file: the common list of classes may have new ids
    ambiguous = _ambiguous_labels(parsed)
    for finding in findings:
        if finding.kind in ("unknown_image", "unknown_class"):
            draft.objects[finding.row] = False
            draft.leave_out_images_of(finding.row)
            draft.add_change(finding)
        elif finding.kind == "class_id_twice" and ambiguous:
            draft.leave_out_images_of(*np.flatnonzero(np.isin(parsed.labels, ambiguous)))
            draft.add_change(finding)


def _ambiguous_labels(raw: RawSplit) -> list[int]:
    """Labels of classes that share an id but have different names, so that the class of an object is ambiguous."""
    similar = [set(labels) for labels in similar_names(raw.classes)]
    return [
        label
        for label, class_id in enumerate(raw.class_ids.tolist())
        for others in [set(np.flatnonzero(raw.class_ids == class_id).tolist())]
        if len(others) > 1 and not any(others <= group for group in similar)
    ]


def _correct_boxes(draft: _Draft) -> None:
    """Swaps edges, clips and drops boxes until no finding remains: a box with swapped edges may be a duplicate."""
    has_box_area = np.isclose(draft.raw.areas, box_areas(draft.raw.boxes))
    while True:
        # dropped boxes must not count as duplicates of others
        remaining = replace(draft.raw, image_index=np.where(draft.objects, draft.raw.image_index, -1))
        findings = [found for found in box_findings(draft.split, remaining) if draft.objects[found.row]]
        findings = [found for found in findings if KINDS[found.kind].remedy]
        if not findings:
            break
        boxes = draft.raw.boxes.copy()
        for finding in findings:
            row, image = finding.row, draft.raw.image_index[finding.row]
            if not draft.images[image]:  # all boxes of the image are dropped
                draft.objects[row] = False
                continue
            if finding.kind in _LEFT_OUT_IMAGES_OF_BOXES:
                draft.objects[row] = False
                draft.leave_out_images_of(row)
            elif finding.kind == "box_doubled":
                draft.objects[row] = False
            elif finding.kind == "box_reversed":
                near, far = np.minimum(boxes[row, :2], boxes[row, 2:]), np.maximum(boxes[row, :2], boxes[row, 2:])
                boxes[row] = np.concatenate([near, far])
            elif finding.kind == "box_sticks_out":
                size = np.tile([draft.raw.widths[image], draft.raw.heights[image]], 2)
                clipped = np.clip(boxes[row], 0, size)
                if (np.abs(clipped - boxes[row]) > MAX_CLIPPED * size).any():
                    draft.objects[row] = False
                    draft.leave_out_images_of(row)
                    draft.add_change(finding, "image left out, since this may not be its box")
                    continue
                boxes[row] = clipped
            draft.add_change(finding)
        draft.raw = replace(draft.raw, boxes=boxes)
    # areas of masks are not changed
    areas = np.where(has_box_area, box_areas(draft.raw.boxes), draft.raw.areas)
    draft.raw = replace(draft.raw, areas=np.abs(areas))


def _renumber_ids(draft: _Draft, findings: Iterable[Finding]) -> None:
    repeated = [finding for finding in findings if finding.kind == "annotation_id_twice"]
    for finding in repeated:
        draft.add_change(finding)
    if repeated:
        draft.raw = replace(draft.raw, has_ids=False)


def _share_classes(
    tables: dict[str, AnnotationTable], inspection: Inspection, findings: Sequence[Finding]
) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """Makes class ids unique; merges classes with similar names under the most frequent one where that is wanted."""
    classes = next(iter(inspection.raws.values())).classes
    counts = sum(np.bincount(table.labels, minlength=len(classes)) for table in tables.values())
    kept_name = {label: label for label in range(len(classes))}
    is_merged = any(finding.kind == "class_names_alike" for finding in findings)
    same_names = [[label for label, other in enumerate(classes) if other == name] for name in dict.fromkeys(classes)]
    for labels in similar_names(classes) if is_merged else same_names:
        most_frequent = max(labels, key=lambda label: (np.asarray(counts)[label], -label))
        kept_name.update(dict.fromkeys(labels, most_frequent))
    kept = sorted(set(kept_name.values()))
    new_label = np.array([kept.index(kept_name[label]) for label in range(len(classes))], np.int64)
    merged = {}
    for split, table in tables.items():
        class_ids = table.class_ids[kept]
        if len(np.unique(class_ids)) < len(class_ids):
            class_ids = np.arange(1, len(kept) + 1)
        names = tuple(classes[label] for label in kept)
        merged[split] = replace(table, classes=names, class_ids=class_ids, labels=new_label[table.labels])
    changes = [
        Change(finding.split, finding.file, finding.place, f"{finding.message}: {KINDS[finding.kind].remedy}")
        for finding in findings
        if finding.kind in ("class_name_twice", "class_names_alike", "classes_differ")
    ]
    return merged, changes


def _implicit_changes(inspection: Inspection) -> list[Change]:
    """Changes that result from reading and writing: unlisted files, images listed twice, EXIF rotation."""
    kinds = ("unlisted_image", "annotation_without_image", "image_listed_twice", "rotated_image")
    return [
        Change(finding.split, finding.file, finding.place, f"{finding.message}: {KINDS[finding.kind].remedy}")
        for finding in inspection.findings
        if finding.kind in kinds and (finding.kind != "image_listed_twice" or finding.image < 0)
    ]
