"""PASCAL VOC: one xml an image, in a devkit (VOC2007/, VOC2012/) or in one flat folder; in and out.

VOC counts pixels from 1 and includes the last one: xmin..xmax are the edges xmin - 1 .. xmax here.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np

from zoo.data.formats.raw import Complain, ListedTwiceError, RawSplit, refuse, select_valid_boxes
from zoo.data.images import SUFFIXES, load_image, upright_size
from zoo.data.source import (
    DataWarning,
    Source,
    check_files,
    read_text,
    write_text,
)
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.types import Image

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes, in the devkit's order."""
_HIGHEST = 2**31 - 1  # pixels; sizes are kept as 32-bit integers


@dataclass(frozen=True)
class Voc(Source):
    """One split in VOC's format, or the union of several.

    Args:
        roots: folders that hold `JPEGImages`, `Annotations` and `ImageSets/Main`, such as `VOCdevkit/VOC2007`.
        split: name of the split file in each root (`trainval` reads `ImageSets/Main/trainval.txt`).
        classes: names in the order of the labels. Without them: what the other splits settled; else VOC's twenty where
            every name in the annotations is one of those; else the names that occur, sorted.
    """

    roots: list[str] = field(default_factory=list)
    split: str = "trainval"
    classes: list[str] | None = None

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`."""
        settled = tuple(self.classes) if self.classes is not None else classes
        table = read_voc(self.roots, self.split, settled, strict=strict)
        check_files(table.paths(), " and ".join(str(split_file(root, self.split)) for root in self.roots))
        return table

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


@dataclass(frozen=True)
class _Object:
    """One <object>, as edges."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    place: str


def split_file(root: str | Path, split: str) -> Path:
    """Where VOC keeps the names of a split's images."""
    return Path(root, "ImageSets", "Main", f"{split}.txt")


def read_voc(
    roots: Sequence[str | Path], split: str, classes: tuple[str, ...] | None = None, *, strict: bool = False
) -> AnnotationTable:
    """Reads the split of each root, one after the other; see `Voc` for the arguments.

    Image ids are 1..N in that order. Objects with parts count once, by their own box. A size that is missing or 0 in
    the xml is read from the image.

    Raises:
        InputError: no root; a missing split file, xml or image; xml that does not parse or lacks something; an image
            named twice in a split; a class that is not among those given; bad boxes under `strict`.
    """
    raw = parse_voc(roots, split, classes, refuse)
    sizes = np.stack([raw.widths, raw.heights], axis=1)
    for index in np.flatnonzero(raw.widths == 0):
        sizes[index] = upright_size(raw.path(int(index)))
    raw = raw.with_sizes(sizes)
    unknown = np.flatnonzero(raw.labels < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"class {raw.class_word(row)!r} is none of {', '.join(raw.classes)}; name all classes in `classes`, or "
            "mend it",
            *raw.object_place(row),
        )
    return raw.table(np.ones(len(raw), bool), select_valid_boxes(raw, strict))


def parse_voc(roots: Sequence[str | Path], split: str, classes: tuple[str, ...] | None, complain: Complain) -> RawSplit:
    """What the files of a split say, true or not.

    Args:
        roots: as for `Voc`.
        split: as for `Voc`.
        classes: names in the order of the labels; None takes VOC's twenty where they do, else the names that occur.
        complain: told of each image named twice, each xml that cannot be read and each object that lacks something;
            the object is then left out, and the image has none.

    Raises:
        InputError: no root, or a split file that cannot be read.
    """
    if not roots:
        raise InputError("no folder given; name at least one in `roots`, such as VOCdevkit/VOC2007")
    files: list[Path] = []  # the xml of each image
    lists: list[Path] = []  # the split file of each image
    names: list[str] = []
    folder_ids: list[int] = []
    for number, root in enumerate(roots):
        stems = _read_split(split_file(root, split), complain)
        names += _image_names(Path(root, "JPEGImages"), stems)
        lists += [split_file(root, split)] * len(stems)
        files += [Path(root, "Annotations", f"{stem}.xml") for stem in stems]
        folder_ids += [number] * len(stems)

    sizes = np.zeros((len(files), 2), np.int32)
    objects: list[_Object] = []
    image_index: list[int] = []
    for index, file in enumerate(files):
        size, objects_here = _read_xml(file, complain)
        sizes[index] = size or 0
        objects += objects_here
        image_index += [index] * len(objects_here)
    classes = classes if classes is not None else infer_classes({item.name for item in objects})
    numbers = {name: number for number, name in enumerate(classes)}
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    return RawSplit(
        classes=tuple(classes),
        class_ids=np.arange(1, len(classes) + 1),
        image_ids=np.arange(1, len(files) + 1),
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        file_names=names,
        folders=tuple(str(Path(root, "JPEGImages")) for root in roots),
        folder_ids=np.array(folder_ids, np.int64),
        annotation_files=tuple(files),
        image_index=np.array(image_index, np.int64),
        labels=np.array([numbers.get(item.name, -1) for item in objects], np.int64),
        boxes=boxes,
        areas=box_areas(boxes),
        iscrowd=np.zeros(len(objects), bool),
        difficult=np.array([item.difficult for item in objects], bool),
        annotation_ids=np.arange(1, len(objects) + 1),
        image_place=lambda index: (str(lists[index]), Path(names[index]).stem),
        object_place=lambda row: (str(files[image_index[row]]), objects[row].place),
        image_word=lambda row: Path(names[image_index[row]]).stem,
        class_word=lambda row: objects[row].name,
    )


def _read_split(path: Path, complain: Complain) -> list[str]:
    """The first word of each line (split files of one class have a second, +1 or -1), each once."""
    stems = [line.split()[0] for line in read_text(path, "split file").splitlines() if line.strip()]
    seen: dict[str, None] = {}
    for number, stem in enumerate(stems, start=1):
        if stem in seen:
            complain(ListedTwiceError(f"image {stem} is named twice", path, f"entry {number}"))
        seen[stem] = None
    return list(seen)


def _image_names(folder: Path, stems: list[str]) -> list[str]:
    """Stems -> file names; .jpg unless the folder has the image under another suffix."""
    try:
        with os.scandir(folder) as entries:
            present = sorted((Path(entry.name) for entry in entries), reverse=True)  # of a.jpg and a.png, the first
    except OSError:
        present = []  # check_files names what is missing
    by_stem = {path.stem: path.name for path in present if path.suffix.lower() in SUFFIXES}
    return [by_stem.get(stem, f"{stem}.jpg") for stem in stems]


def _read_xml(path: Path, complain: Complain) -> tuple[tuple[int, int] | None, list[_Object]]:
    """The size that an xml states (None where it is missing or 0) and its objects."""
    size: tuple[int, int] | None = None
    objects: list[_Object] = []
    try:
        root = _parse_xml(path)
        width, height = (_number(root, f"size/{key}", path, "size", default=Decimal(0)) for key in ("width", "height"))
        if not (width.is_finite() and height.is_finite()):
            raise InputError(f"size is {width} x {height}, expected numbers", path, "size")
        size = (int(width), int(height)) if width > 0 and height > 0 else None
    except InputError as error:
        complain(error)
        return size, objects
    for number, item in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_read_object(item, path, number))
        except InputError as error:
            complain(error)
    return size, objects


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise InputError("annotation file is missing", file=path) from None
    except OSError as error:
        raise InputError(f"annotation file cannot be read: {error.strerror or error}", file=path) from error
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(":")[0]
        raise InputError(f"xml does not parse: {reason}", path, f"line {line}, column {column + 1}") from None
    except (ValueError, LookupError) as error:  # an encoding that expat has no table for, or that nobody knows
        raise InputError(f"xml does not parse: {error}; write it as UTF-8", path) from None


def _read_object(item: ElementTree.Element, path: Path, number: int) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError("object has no name", path, f"object {number}")
    place = f"object {number} ({name})"
    xmin, ymin, xmax, ymax = (_number(item, f"bndbox/{key}", path, place) for key in ("xmin", "ymin", "xmax", "ymax"))
    if xmin == xmax and ymin == ymax:
        # One pixel by the book, but nobody annotates that: it is a click without a drag. Its edges get no area.
        box = (float(xmin), float(ymin), float(xmin), float(ymin))
    else:
        box = (_minus_one(xmin), _minus_one(ymin), float(xmax), float(ymax))
    difficult = _number(item, "difficult", path, place, default=Decimal(0))
    return _Object(name, box, bool(difficult), place)


def _number(item: ElementTree.Element, key: str, path: Path, place: str, default: Decimal | None = None) -> Decimal:
    """The number below a tag; decimal, so that taking 1 away and adding it again is exact.

    NaN and infinity pass, since a box may have them and is then a bad box.
    """
    tag = f"<{key.replace('/', '><')}>"
    text = item.findtext(key)
    if text is None and default is not None:
        return default
    try:
        value = Decimal((text or "").strip())
    except InvalidOperation:
        what = "is missing" if text is None else f"is {text.strip()!r}, expected a number"
        raise InputError(f"{tag} {what}", path, place) from None
    if value.is_snan() or (value.is_finite() and value.copy_abs() > _HIGHEST):
        raise InputError(f"{tag} is {value}, expected a number of pixels", path, place)
    return value


def _minus_one(value: Decimal) -> float:
    return float(value - 1)


def infer_classes(found: set[str]) -> tuple[str, ...]:
    """The list of classes where nobody gave one: VOC's twenty if all are of those, else those that occur, sorted."""
    if found <= set(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(sorted(found))


def write_voc(table: AnnotationTable, root: str | Path, split: str) -> None:
    """Writes `Annotations/*.xml` and `ImageSets/Main/<split>.txt` below a root; `write_images` does the images.

    What VOC has no word for is lost: ids, areas other than the box's, and crowds, which become difficult objects (in
    either case a detection there neither helps nor harms). A box of exactly one pixel
    does not survive: it reads as a click without a drag.

    Raises:
        InputError: two images with the same stem.
    """
    root = Path(root)
    stems = [Path(table.file_name(index)).stem for index in range(len(table))]
    if len(set(stems)) != len(stems):
        raise InputError("two images have the same name without suffix and folder; VOC cannot tell them apart", root)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are written as difficult objects", DataWarning, stacklevel=2)
    for index, stem in enumerate(stems):
        write_text(root / "Annotations" / f"{stem}.xml", _xml(table, index))
    write_text(split_file(root, split), "".join(f"{stem}\n" for stem in stems))


def _xml(table: AnnotationTable, index: int) -> str:
    lines = [
        "<annotation>",
        f"\t<filename>{escape(Path(table.file_name(index)).name)}</filename>",
        f"\t<size><width>{table.widths[index]}</width><height>{table.heights[index]}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    rows = table.rows(index)
    for row in range(rows.start, rows.stop):
        x1, y1, x2, y2 = (Decimal(repr(edge)) for edge in table.boxes[row].tolist())
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(table.classes[table.labels[row]])}</name>",
            f"\t\t<difficult>{int(table.difficult[row] or table.iscrowd[row])}</difficult>",
            f"\t\t<bndbox><xmin>{_plain(x1 + 1)}</xmin><ymin>{_plain(y1 + 1)}</ymin>"
            f"<xmax>{_plain(x2)}</xmax><ymax>{_plain(y2)}</ymax></bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _plain(value: Decimal) -> str:
    """349.0 -> 349, 12.25 -> 12.25; integers as VOC has them."""
    return str(int(value)) if value == value.to_integral_value() else f"{value:f}"
