"""Write the cleaned copy of a data set in its own format, and a list of the changes."""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from PIL import Image as PILImage

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.formats.voc import Voc, write_voc
from zoo.data.formats.yolo import Yolo, write_yolo
from zoo.data.quality.cleaning import Change, clean
from zoo.data.quality.doctor import Inspection
from zoo.data.quality.image_files import Progress, no_progress
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.decoding import load_image

_JPEG_QUALITY = 95  # of images with an EXIF rotation


def write_cleaned(
    inspection: Inspection, out: Path, progress: Progress = no_progress, flags: Collection[str] = ()
) -> list[Change]:
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
    tables, changes = clean(inspection, flags)
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
