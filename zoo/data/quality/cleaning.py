"""Write a cleaned copy of a data set: correct errors where this needs no judgement, else leave records out.

The copy has the format of the original. Fields that our writer of the format does not support are lost (COCO's masks,
VOC's poses and parts). Images are copied; only those with an EXIF rotation are encoded again.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.raw import RawSplit
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import Yolo, write_yolo
from zoo.data.images import load_image
from zoo.data.quality.annotation_checks import EDGE_TOLERANCE, box_findings, similar_names
from zoo.data.quality.doctor import Inspection
from zoo.data.quality.findings import KINDS, Finding
from zoo.data.quality.image_files import Progress, no_progress
from zoo.data.quality.pixel_boxes import boxes_in_pixels
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError

_LEFT_OUT_IMAGES = {"missing_annotation", "missing_image", "broken_image", "in_two_splits", "image_listed_twice"}
_LEFT_OUT_IMAGES |= {"box_unlike_polygon"}  # it is unknown which of the two is right
_LEFT_OUT_IMAGES |= {"coordinates_above_1", "annotation_shared"}
_LEFT_OUT_BOXES = {"box_not_finite", "box_without_area", "box_outside", "box_doubled"}
_JPEG_QUALITY = 95  # of images with an EXIF rotation


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


def clean(inspection: Inspection) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """Cleaned tables of a data set, and a list of the changes.

    Findings without a remedy are not changed (tiny boxes, images without objects, unbalanced classes).

    Raises:
        InputError: the image folder of a split is missing, or its boxes are corners.
    """
    for finding in inspection.findings:
        if finding.kind == "boxes_are_corners":
            raise InputError(f"{finding.message}; a cleaned copy would be a guess", finding.file, finding.place)
    tables, changes = {}, []
    for split, raw in inspection.raws.items():
        findings = [finding for finding in inspection.findings if finding.split == split]
        in_pixels = None
        if any(finding.kind == "coordinates_above_1" for finding in findings):
            in_pixels = boxes_in_pixels(raw, inspection.sources[split])
        raw = in_pixels or raw
        draft = _Draft(split, raw, np.ones(len(raw), bool), raw.image_index >= 0)
        if in_pixels:
            draft.changes += [_converted(finding) for finding in findings if finding.kind == "coordinates_above_1"]
            findings = [finding for finding in findings if finding.kind != "coordinates_above_1"]
        _leave_out_images(draft, findings)
        _correct_sizes(draft, findings, inspection)
        _leave_out_objects(draft, findings, inspection.parsed[split])
        _correct_boxes(draft)
        _leave_out_emptied_images(draft, findings)
        _renumber_ids(draft, findings)
        tables[split] = draft.raw.table(draft.images, draft.objects)
        changes += draft.changes
    tables, merged = _merge_classes(tables, inspection)
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


def _correct_sizes(draft: _Draft, findings: Iterable[Finding], inspection: Inspection) -> None:
    sizes = np.stack([draft.raw.widths, draft.raw.heights], axis=1)
    for finding in findings:
        if finding.kind != "wrong_size":
            continue
        file = inspection.files[draft.raw.path(finding.image)]
        assert file is not None  # missing files have no finding `wrong_size`
        sizes[finding.image] = (file.width, file.height)
        boxes = draft.raw.boxes[draft.raw.image_index == finding.image]
        fits = bool((boxes[:, 2:] <= np.array([file.width, file.height]) + EDGE_TOLERANCE).all())
        draft.images[finding.image] &= fits
        draft.add_change(
            finding, "size corrected" if fits else "image left out, since its boxes do not fit the actual size"
        )
    # images of unknown size are left out
    draft.raw = draft.raw.with_sizes(sizes)


def _leave_out_objects(draft: _Draft, findings: Iterable[Finding], parsed: RawSplit) -> None:
    # use the class ids of the split's own file: the common list of classes may have new ids
    ambiguous = _ambiguous_labels(parsed)
    for finding in findings:
        if finding.kind in ("unknown_image", "unknown_class"):
            draft.objects[finding.row] = False
            draft.add_change(finding)
        elif finding.kind == "class_id_twice" and ambiguous:
            draft.objects &= ~np.isin(parsed.labels, ambiguous)
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
            if finding.kind in _LEFT_OUT_BOXES:
                draft.objects[row] = False
            elif finding.kind == "box_reversed":
                near, far = np.minimum(boxes[row, :2], boxes[row, 2:]), np.maximum(boxes[row, :2], boxes[row, 2:])
                boxes[row] = np.concatenate([near, far])
            elif finding.kind == "box_sticks_out":
                boxes[row] = np.clip(boxes[row], 0, np.tile([draft.raw.widths[image], draft.raw.heights[image]], 2))
            draft.add_change(finding)
        draft.raw = replace(draft.raw, boxes=boxes)
    # areas of masks are not changed
    areas = np.where(has_box_area, box_areas(draft.raw.boxes), draft.raw.areas)
    draft.raw = replace(draft.raw, areas=np.abs(areas))


def _leave_out_emptied_images(draft: _Draft, findings: Iterable[Finding]) -> None:
    """Leaves out images without objects whose annotation was unreadable: training would take them as background."""
    counts = np.bincount(draft.raw.image_index[draft.objects], minlength=len(draft.raw))
    for finding in findings:
        if finding.kind == "broken_annotation":
            emptied = finding.image >= 0 and counts[finding.image] == 0
            if emptied:
                draft.images[finding.image] = False
            draft.add_change(
                finding, "image left out, since no object of its annotation could be read" if emptied else None
            )


def _renumber_ids(draft: _Draft, findings: Iterable[Finding]) -> None:
    repeated = [finding for finding in findings if finding.kind == "annotation_id_twice"]
    for finding in repeated:
        draft.add_change(finding)
    if repeated:
        draft.raw = replace(draft.raw, has_ids=False)


def _merge_classes(
    tables: dict[str, AnnotationTable], inspection: Inspection
) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """Merges classes whose names differ only in case or spaces under the most frequent name; makes class ids unique."""
    classes = next(iter(inspection.raws.values())).classes
    counts = sum(np.bincount(table.labels, minlength=len(classes)) for table in tables.values())
    kept_name = {label: label for label in range(len(classes))}
    for labels in similar_names(classes):
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
        for finding in inspection.findings
        if finding.kind in ("class_names_alike", "classes_differ")
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


def write_cleaned(inspection: Inspection, out: Path, progress: Progress = no_progress) -> list[Change]:
    """Writes a cleaned copy and a list of the changes in `changes.json`; the original is not modified.

    Everything is written to a temporary folder next to `out`, and moved at the end.

    Raises:
        InputError: `out` is a file or a folder that is not empty; images are generated in memory; see `clean`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists and is not an empty folder; give a new or empty folder", out)
    unwritable = [type(source).__name__ for source in inspection.sources.values() if not isinstance(source, _WRITABLE)]
    if unwritable:
        raise InputError(f"a data set of {unwritable[0]} is generated in memory; it has no files to clean")
    tables, changes = clean(inspection)
    out = out.resolve()  # `.` has no name
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    roots = _voc_roots(tables, inspection)
    for split, table in tables.items():
        if len(table):
            changes += _write_split(split, table, partial, roots, inspection, progress)
    content = msgspec.json.format(msgspec.json.encode(changes), indent=2)
    (partial / "changes.json").write_bytes(content + b"\n")
    if out.exists():  # keep the folder itself, since it may be a current working directory
        for path in partial.iterdir():
            os.replace(path, out / path.name)
        partial.rmdir()
    else:
        os.replace(partial, out)
    return changes


_WRITABLE = (Coco, Voc, Yolo)


def _voc_roots(tables: Mapping[str, AnnotationTable], inspection: Inspection) -> dict[Path, Path]:
    """VOC folder -> folder in the copy: the root of the copy if there is only one, else one folder each.

    Several folders are kept apart, since they may have images of the same name, and splits may consist of different
    folders.
    """
    folders = [table.folders for split, table in tables.items() if isinstance(inspection.sources[split], Voc)]
    roots = list(dict.fromkeys(_voc_root(folder) for folder in chain.from_iterable(folders)))
    if len(roots) == 1:
        return {roots[0]: Path()}
    taken: set[str] = set()  # case-folded, since some file systems ignore case
    in_copy = {}
    for root in roots:
        name, number = root.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{root.name}_{number}"
        taken.add(name.casefold())
        in_copy[root] = Path(name)
    return in_copy


def _voc_root(folder: str) -> Path:
    """VOC folder of a `JPEGImages` folder, else the folder of images itself, as a normalised absolute path."""
    path = Path(os.path.abspath(folder))
    return path.parent if path.name == "JPEGImages" else path


def _write_split(
    split: str,
    table: AnnotationTable,
    out: Path,
    roots: Mapping[Path, Path],
    inspection: Inspection,
    progress: Progress,
) -> list[Change]:
    """Writes images and annotations of one split in its format, and returns the renamed images."""
    name = split.replace("/", "_")
    match inspection.sources[split]:
        case Voc():
            renamed = []
            voc_roots = [_voc_root(folder) for folder in table.folders]
            for voc_root in dict.fromkeys(voc_roots):
                indices = [index for index, number in enumerate(table.folder_ids) if voc_roots[number] == voc_root]
                part = table.select(indices)
                if len(part):
                    root = out / roots[voc_root]
                    copied = _copy_images(part, root / "JPEGImages", inspection, progress)
                    write_voc(copied, root, name)
                    renamed += _renamed(split, part, copied)
            return renamed
        case Coco():
            copied = _copy_images(table, out / name, inspection, progress)
            write_coco(copied, out / "annotations" / f"instances_{name}.json")
            return _renamed(split, table, copied)
        case Yolo():
            copied = _copy_images(table, out / "images" / name, inspection, progress, distinct_stems=True)
            write_yolo(copied, out, name)
            return _renamed(split, table, copied)
        case other:
            raise AssertionError(f"{type(other).__name__} cannot be written; `write_cleaned` checks this")


def _renamed(split: str, table: AnnotationTable, copied: AnnotationTable) -> list[Change]:
    """Changes for images that have another file name in the copy, because the name was taken."""
    return [
        Change(split, str(table.path(index)), None, f"another image has its name: renamed to {copied.file_name(index)}")
        for index in range(len(table))
        if PurePosixPath(table.file_name(index)).name != PurePosixPath(copied.file_name(index)).name
    ]


def _copy_images(
    table: AnnotationTable, folder: Path, inspection: Inspection, progress: Progress, distinct_stems: bool = False
) -> AnnotationTable:
    """Copies the images of a table below `folder`, and returns the table with the paths of the copies."""
    names = _names_in_copy(table, distinct_stems)
    for index, name in enumerate(progress(names, len(names))):
        source, target = table.path(index), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        file = inspection.files[source]
        if file is not None and file.orientation != 1:
            pixels = load_image(source, (int(table.widths[index]), int(table.heights[index])))
            upright = PILImage.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            upright.save(target, quality=_JPEG_QUALITY)
        else:
            shutil.copyfile(source, target)
    encoded = [name.encode() for name in names]
    return replace(
        table,
        folders=(str(folder),),
        folder_ids=np.zeros(len(table), np.int64),
        name_bytes=b"".join(encoded),
        name_offsets=np.cumsum([0, *map(len, encoded)]).astype(np.int64),
    )


def _names_in_copy(table: AnnotationTable, distinct_stems: bool) -> list[str]:
    """Unique file names of all images relative to one folder, without absolute paths and `..`.

    Args:
        table: table of one split.
        distinct_stems: make names unique without their suffix, for formats with an annotation file per image.
    """
    names: list[str] = []
    taken: set[str] = set()
    for index in range(len(table)):
        path = PurePosixPath(table.file_name(index))
        name = original = PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path
        number = index + 1
        # the same name in two folders of one split
        while (key := str(name.with_suffix("") if distinct_stems else name)) in taken:
            name = original.with_stem(f"{original.stem}_{number}")
            number += 1
        taken.add(key)
        names.append(str(name))
    return names
