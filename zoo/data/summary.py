"""What a split holds in one line, and errors for splits that nothing can be learned from or evaluated on."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from zoo.data.table import AnnotationTable
from zoo.errors import InputError

MOSTLY_EMPTY = 0.9  # share of images without objects from which a split is suspicious
_ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "label", "xml", "xmls", "txt", "json")


def describe_split(split: str, table: AnnotationTable) -> str:
    """`train: 205 images, 2,305 objects of 3 classes, 4 images without objects`."""
    empty = _count_empty(table)
    parts = [f"{_count(len(table), 'image')}, {_count(table.num_objects, 'object')} of {len(table.classes)} classes"]
    ignored = int((table.iscrowd | table.difficult).sum())
    if ignored:
        parts.append(f"{ignored:,} of them crowds or difficult, which are not trained or counted")
    if empty:
        parts.append(f"{_count(empty, 'image')} without objects")
    warning = "; nearly all images have no objects, are their labels found?" if is_mostly_empty(table) else ""
    return f"{split}: {', '.join(parts)}{warning}"


def is_mostly_empty(table: AnnotationTable) -> bool:
    """Whether so few images have objects that their labels may not have been found."""
    return len(table) > 0 and _count_empty(table) >= MOSTLY_EMPTY * len(table)


def check_objects(split: str, table: AnnotationTable) -> None:
    """Check that a split has objects to learn from or to find.

    Raises:
        InputError: it has no image or no object, or only crowds and difficult objects; names a likely reason.
    """
    if not len(table):
        raise InputError(f"the {split} split has no images; check its list of images")
    if not table.num_objects:
        raise InputError(f"none of the {len(table):,} images of the {split} split has an object{_likely_reason(table)}")
    if (table.iscrowd | table.difficult).all():
        raise InputError(
            f"all {table.num_objects:,} objects of the {split} split are crowds or difficult, which are neither trained"
            " nor counted; correct `iscrowd` or `difficult` in the annotations"
        )


def _likely_reason(table: AnnotationTable) -> str:
    folders = {Path(folder) for folder in table.folders}
    nearby = sorted({str(path) for folder in folders for path in _annotation_folders(folder)})
    if nearby:
        return f"; are the annotations in {nearby[0]}? `zoo doctor` shows what was read"
    return "; `zoo doctor` shows what was read"


def _annotation_folders(images: Path) -> Iterable[Path]:
    """Folders beside an image folder, or beside a folder around it, whose names say that they hold annotations."""
    for parent in list(images.parents)[:3]:
        try:
            yield from (path for path in parent.iterdir() if path.is_dir() and path.name.lower() in _ANNOTATION_FOLDERS)
        except OSError:
            continue


def _count_empty(table: AnnotationTable) -> int:
    return int((np.diff(table.offsets) == 0).sum())


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
