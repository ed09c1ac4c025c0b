"""A cleaned copy of a data set: what the doctor found, mended where that needs no judgement, left out where it does.

The copy has the format of the original, written by that format's writer, so what the writer has no word for is lost
(COCO's masks, VOC's poses and parts). Images are copied; only those with an EXIF rotation are encoded anew.
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
from zoo.data.quality.annotation_checks import SLACK, box_findings, similar_names
from zoo.data.quality.doctor import Inspection
from zoo.data.quality.findings import KINDS, Finding
from zoo.data.quality.image_files import Watch, unwatched
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError

_LEFT_OUT_IMAGES = {"missing_annotation", "missing_image", "broken_image", "in_two_splits", "image_listed_twice"}
_LEFT_OUT_BOXES = {"box_not_finite", "box_without_area", "box_outside", "box_doubled"}
_JPEG_QUALITY = 95  # of images that are turned upright


@dataclass(frozen=True)
class Change:
    """Something that is otherwise in the copy."""

    split: str
    file: str
    place: str | None
    what: str


@dataclass(eq=False)
class _Draft:
    """A split on its way to being clean."""

    split: str
    raw: RawSplit
    images: NDArray[np.bool_]  # [N] that stay
    objects: NDArray[np.bool_]  # [T] that stay
    changes: list[Change] = field(default_factory=list)

    def note(self, finding: Finding, remedy: str | None = None) -> None:
        what = f"{finding.message}: {remedy or KINDS[finding.kind].remedy}"
        self.changes.append(Change(finding.split or self.split, finding.file, finding.place, what))


def clean(inspection: Inspection) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """The tables of a data set without its faults, and what is different in them.

    What stays as it is: everything that only looks odd (tiny boxes, images without objects, unbalanced classes).

    Raises:
        InputError: a whole folder of images is missing.
    """
    tables, changes = {}, []
    for split, raw in inspection.raws.items():
        findings = [finding for finding in inspection.findings if finding.split == split]
        draft = _Draft(split, raw, np.ones(len(raw), bool), raw.image_index >= 0)
        _leave_out_images(draft, findings)
        _correct_sizes(draft, findings, inspection)
        _leave_out_objects(draft, findings, inspection.parsed[split])
        _mend_boxes(draft)
        _leave_out_emptied(draft, findings)
        _mend_ids(draft, findings)
        tables[split] = draft.raw.table(draft.images, draft.objects)
        changes += draft.changes
    tables, merged = _merge_classes(tables, inspection)
    return tables, [*changes, *merged, *_mended_as_read(inspection)]


def _leave_out_images(draft: _Draft, findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.kind == "missing_image" and finding.image < 0:
            raise InputError(f"{finding.message}; without images there is nothing to copy", finding.file)
        if finding.kind in _LEFT_OUT_IMAGES and finding.image >= 0:
            draft.images[finding.image] = False
            draft.note(finding)
        elif finding.kind == "image_id_twice":
            # nobody can say which of the two pictures the boxes belong to
            draft.images[draft.raw.image_ids == draft.raw.image_ids[finding.image]] = False
            draft.note(finding)


def _correct_sizes(draft: _Draft, findings: Iterable[Finding], inspection: Inspection) -> None:
    sizes = np.stack([draft.raw.widths, draft.raw.heights], axis=1)
    for finding in findings:
        if finding.kind != "wrong_size":
            continue
        file = inspection.files[draft.raw.path(finding.image)]
        assert file is not None  # a missing file has no size to be wrong
        sizes[finding.image] = (file.width, file.height)
        boxes = draft.raw.boxes[draft.raw.image_index == finding.image]
        fits = bool((boxes[:, 2:] <= np.array([file.width, file.height]) + SLACK).all())
        draft.images[finding.image] &= fits
        draft.note(finding, "size corrected" if fits else "image left out, since its boxes do not fit the real size")
    # sizes that nobody knows belong to images that are left out
    draft.raw = draft.raw.with_sizes(sizes)


def _leave_out_objects(draft: _Draft, findings: Iterable[Finding], parsed: RawSplit) -> None:
    # in the list that splits share, ids may be new ones: those of the split's own files clash
    clashing = _clashing_labels(parsed)
    for finding in findings:
        if finding.kind in ("unknown_image", "unknown_class"):
            draft.objects[finding.row] = False
            draft.note(finding)
        elif finding.kind == "class_id_twice" and clashing:
            draft.objects &= ~np.isin(parsed.labels, clashing)
            draft.note(finding)


def _clashing_labels(raw: RawSplit) -> list[int]:
    """Classes of one id whose names are not the same: nobody can say which an object is of."""
    alike = [set(labels) for labels in similar_names(raw.classes)]
    return [
        label
        for label, class_id in enumerate(raw.class_ids.tolist())
        for others in [set(np.flatnonzero(raw.class_ids == class_id).tolist())]
        if len(others) > 1 and not any(others <= group for group in alike)
    ]


def _mend_boxes(draft: _Draft) -> None:
    """Swaps, clips and leaves out until there is nothing more: a box that was swapped may turn out to be a double."""
    has_box_area = np.isclose(draft.raw.areas, box_areas(draft.raw.boxes))
    while True:
        # boxes that are left out compare with nothing
        shown = replace(draft.raw, image_index=np.where(draft.objects, draft.raw.image_index, -1))
        findings = [found for found in box_findings(draft.split, shown) if draft.objects[found.row]]
        findings = [found for found in findings if KINDS[found.kind].remedy]
        if not findings:
            break
        boxes = draft.raw.boxes.copy()
        for finding in findings:
            row, image = finding.row, draft.raw.image_index[finding.row]
            if not draft.images[image]:  # all of its boxes go with it
                draft.objects[row] = False
                continue
            if finding.kind in _LEFT_OUT_BOXES:
                draft.objects[row] = False
            elif finding.kind == "box_reversed":
                near, far = np.minimum(boxes[row, :2], boxes[row, 2:]), np.maximum(boxes[row, :2], boxes[row, 2:])
                boxes[row] = np.concatenate([near, far])
            elif finding.kind == "box_sticks_out":
                boxes[row] = np.clip(boxes[row], 0, np.tile([draft.raw.widths[image], draft.raw.heights[image]], 2))
            draft.note(finding)
        draft.raw = replace(draft.raw, boxes=boxes)
    # a mask's area is not touched
    areas = np.where(has_box_area, box_areas(draft.raw.boxes), draft.raw.areas)
    draft.raw = replace(draft.raw, areas=np.abs(areas))


def _leave_out_emptied(draft: _Draft, findings: Iterable[Finding]) -> None:
    """Images whose annotation was broken and left no object: as they are, they would teach that nothing is there."""
    counts = np.bincount(draft.raw.image_index[draft.objects], minlength=len(draft.raw))
    for finding in findings:
        if finding.kind == "broken_annotation":
            emptied = finding.image >= 0 and counts[finding.image] == 0
            if emptied:
                draft.images[finding.image] = False
            draft.note(finding, "image left out, since nothing of its annotation is left" if emptied else None)


def _mend_ids(draft: _Draft, findings: Iterable[Finding]) -> None:
    repeated = [finding for finding in findings if finding.kind == "annotation_id_twice"]
    for finding in repeated:
        draft.note(finding)
    if repeated:
        draft.raw = replace(draft.raw, has_ids=False)


def _merge_classes(
    tables: dict[str, AnnotationTable], inspection: Inspection
) -> tuple[dict[str, AnnotationTable], list[Change]]:
    """Names that differ only in case or spaces become the commonest of them; class ids are made unique."""
    classes = next(iter(inspection.raws.values())).classes
    counts = sum(np.bincount(table.labels, minlength=len(classes)) for table in tables.values())
    kept_name = {label: label for label in range(len(classes))}
    for labels in similar_names(classes):
        commonest = max(labels, key=lambda label: (np.asarray(counts)[label], -label))
        kept_name.update(dict.fromkeys(labels, commonest))
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


def _mended_as_read(inspection: Inspection) -> list[Change]:
    """What the copy does not have because nobody lists it, or because it was left out when it was read."""
    kinds = ("unlisted_image", "annotation_without_image", "image_listed_twice", "rotated_image")
    return [
        Change(finding.split, finding.file, finding.place, f"{finding.message}: {KINDS[finding.kind].remedy}")
        for finding in inspection.findings
        if finding.kind in kinds and (finding.kind != "image_listed_twice" or finding.image < 0)
    ]


def write_cleaned(inspection: Inspection, out: Path, watch: Watch = unwatched) -> list[Change]:
    """Writes a cleaned copy and, in `changes.json`, what is different in it; the original is only read.

    Everything is written beside `out` and moved there at the end.

    Raises:
        InputError: `out` is a file or a folder that is not empty; the images are made in memory; see `clean`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already; name a new or empty folder", out)
    unwritable = [type(source).__name__ for source in inspection.sources.values() if not isinstance(source, _WRITABLE)]
    if unwritable:
        raise InputError(f"a data set of {unwritable[0]} has no files that could be cleaned")
    tables, changes = clean(inspection)
    out = out.resolve()  # `.` has no name
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    roots = _voc_roots(tables, inspection)
    for split, table in tables.items():
        if len(table):
            changes += _write_split(split, table, partial, roots, inspection, watch)
    content = msgspec.json.format(msgspec.json.encode(changes), indent=2)
    (partial / "changes.json").write_bytes(content + b"\n")
    if out.exists():  # the folder stays the same one: somebody may stand in it
        for path in partial.iterdir():
            os.replace(path, out / path.name)
        partial.rmdir()
    else:
        os.replace(partial, out)
    return changes


_WRITABLE = (Coco, Voc, Yolo)


def _voc_roots(tables: Mapping[str, AnnotationTable], inspection: Inspection) -> dict[Path, Path]:
    """Each VOC folder of any split -> its place in the copy: the copy itself where there is one only, else its own.

    Two folders may have images of the same name; and splits need not be made of the same folders.
    """
    folders = [table.folders for split, table in tables.items() if isinstance(inspection.sources[split], Voc)]
    roots = list(dict.fromkeys(_voc_root(folder) for folder in chain.from_iterable(folders)))
    if len(roots) == 1:
        return {roots[0]: Path()}
    taken: set[str] = set()  # without case, which some file systems do not tell apart
    places = {}
    for root in roots:
        name, number = root.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{root.name}_{number}"
        taken.add(name.casefold())
        places[root] = Path(name)
    return places


def _voc_root(folder: str) -> Path:
    """The VOC folder of a `JPEGImages`; the same one, however it is written."""
    return Path(os.path.abspath(folder)).parent


def _write_split(
    split: str, table: AnnotationTable, out: Path, roots: Mapping[Path, Path], inspection: Inspection, watch: Watch
) -> list[Change]:
    """Writes images and annotations of one split where the format has them, and says which images are renamed."""
    name = split.replace("/", "_")
    match inspection.sources[split]:
        case Voc():
            renamed = []
            owners = [_voc_root(folder) for folder in table.folders]
            for owner in dict.fromkeys(owners):
                part = table.select([index for index, number in enumerate(table.folder_ids) if owners[number] == owner])
                if len(part):
                    root = out / roots[owner]
                    copied = _copy_images(part, root / "JPEGImages", inspection, watch)
                    write_voc(copied, root, name)
                    renamed += _renamed(split, part, copied)
            return renamed
        case Coco():
            copied = _copy_images(table, out / name, inspection, watch)
            write_coco(copied, out / "annotations" / f"instances_{name}.json")
            return _renamed(split, table, copied)
        case Yolo():
            copied = _copy_images(table, out / "images" / name, inspection, watch, distinct_stems=True)
            write_yolo(copied, out, name)
            return _renamed(split, table, copied)
        case other:
            raise AssertionError(f"{type(other).__name__} was refused before")


def _renamed(split: str, table: AnnotationTable, copied: AnnotationTable) -> list[Change]:
    """Images whose file has another name in the copy, since its own was taken."""
    return [
        Change(split, str(table.path(index)), None, f"another image has its name: it is {copied.file_name(index)} here")
        for index in range(len(table))
        if PurePosixPath(table.file_name(index)).name != PurePosixPath(copied.file_name(index)).name
    ]


def _copy_images(
    table: AnnotationTable, folder: Path, inspection: Inspection, watch: Watch, distinct_stems: bool = False
) -> AnnotationTable:
    """The table with the images that it will have below `folder`, where they are when this ends."""
    names = _names_in_copy(table, distinct_stems)
    for index, name in enumerate(watch(names, len(names))):
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
    """File names relative to one folder and different from each other; never one that leads out of it.

    Args:
        table: of one split.
        distinct_stems: names differ in more than their suffix, as where each image has a file of annotations.
    """
    names: list[str] = []
    taken: set[str] = set()
    for index in range(len(table)):
        path = PurePosixPath(table.file_name(index))
        name = wanted = PurePosixPath(path.name) if path.is_absolute() or ".." in path.parts else path
        number = index + 1
        # the same name in two folders of one split
        while (key := str(name.with_suffix("") if distinct_stems else name)) in taken:
            name = wanted.with_stem(f"{wanted.stem}_{number}")
            number += 1
        taken.add(key)
        names.append(str(name))
    return names
