"""Read and write annotations in PASCAL VOC format: an xml file per image, in one or more VOC folders.

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

from zoo.data.formats.raw import ListedTwiceError, OnError, RawSplit, raise_error, select_valid_boxes
from zoo.data.images import SUFFIXES, load_image, upright_size
from zoo.data.source import DataWarning, Source, check_files, read_text
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.io.files import write_atomically
from zoo.types import Image

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes of PASCAL VOC, in the order of the devkit."""
_MAX_PIXELS = 2**31 - 1  # sizes are stored as 32-bit integers


@dataclass(frozen=True)
class Voc(Source):
    """One split in VOC format, or the union of this split of several VOC folders.

    Args:
        roots: folders with `JPEGImages`, `Annotations` and `ImageSets/Main`, such as `VOCdevkit/VOC2007`.
        split: name of the split file in each root (`trainval` reads `ImageSets/Main/trainval.txt`).
        classes: class names in the order of the labels. By default those of the other splits; else VOC's twenty classes
            where these include every name in the annotations; else the names in the annotations, sorted.
    """

    roots: list[str] = field(default_factory=list)
    split: str = "trainval"
    classes: list[str] | None = None

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`."""
        names = tuple(self.classes) if self.classes is not None else classes
        table = read_voc(self.roots, self.split, names, strict=strict)
        check_files(table.paths(), " and ".join(str(split_file(root, self.split)) for root in self.roots))
        return table

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


@dataclass(frozen=True)
class _Object:
    """One <object> of an xml file, with its box as edges."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    place: str


def split_file(root: str | Path, split: str) -> Path:
    """Path of the file that lists the images of a split."""
    return Path(root, "ImageSets", "Main", f"{split}.txt")


def read_voc(
    roots: Sequence[str | Path], split: str, classes: tuple[str, ...] | None = None, *, strict: bool = False
) -> AnnotationTable:
    """Reads and concatenates the split of each root; see `Voc` for the arguments.

    Image ids are 1..N in that order. Parts of objects (<part>) are ignored. A size that is missing or 0 in the xml file
    is read from the image.

    Raises:
        InputError: there is no root; a split file, xml file or image is missing; an xml file is invalid or incomplete;
            a split lists an image twice; a class is not in `classes`; a box is bad, with `strict`.
    """
    raw = parse_voc(roots, split, classes, raise_error)
    sizes = np.stack([raw.widths, raw.heights], axis=1)
    for index in np.flatnonzero(raw.widths == 0):
        sizes[index] = upright_size(raw.path(int(index)))
    raw = raw.with_sizes(sizes)
    unknown = np.flatnonzero(raw.labels < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"class {raw.annotated_class(row)!r} is not one of {', '.join(raw.classes)}; add it to `classes`, or "
            "correct the annotation",
            *raw.object_place(row),
        )
    return raw.table(np.ones(len(raw), bool), select_valid_boxes(raw, strict))


def parse_voc(roots: Sequence[str | Path], split: str, classes: tuple[str, ...] | None, on_error: OnError) -> RawSplit:
    """Parses the files of a split without validation.

    Args:
        roots: as for `Voc`.
        split: as for `Voc`.
        classes: class names in the order of the labels; None: see `infer_classes`.
        on_error: called with the error for each image that is listed twice, each xml file that cannot be read (its
            image then has no objects) and each object with missing or invalid fields (which is then skipped).

    Raises:
        InputError: there is no root, or a split file cannot be read.
    """
    if not roots:
        raise InputError("no folder given; set `roots` to at least one folder, such as VOCdevkit/VOC2007")
    files: list[Path] = []  # xml file of each image
    lists: list[Path] = []  # split file of each image
    names: list[str] = []
    folder_ids: list[int] = []
    for number, root in enumerate(roots):
        stems = _read_split(split_file(root, split), on_error)
        names += _image_names(Path(root, "JPEGImages"), stems)
        lists += [split_file(root, split)] * len(stems)
        files += [Path(root, "Annotations", f"{stem}.xml") for stem in stems]
        folder_ids += [number] * len(stems)

    sizes = np.zeros((len(files), 2), np.int32)
    objects: list[_Object] = []
    image_index: list[int] = []
    for index, file in enumerate(files):
        size, objects_here = _read_xml(file, on_error)
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
        annotated_image=lambda row: Path(names[image_index[row]]).stem,
        annotated_class=lambda row: objects[row].name,
    )


def _read_split(path: Path, on_error: OnError) -> list[str]:
    """Unique image stems of a split file: the first word of each line (split files of one class have a second, +-1)."""
    stems = [line.split()[0] for line in read_text(path, "split file").splitlines() if line.strip()]
    seen: dict[str, None] = {}
    for number, stem in enumerate(stems, start=1):
        if stem in seen:
            on_error(ListedTwiceError(f"image {stem} is listed twice", path, f"entry {number}"))
        seen[stem] = None
    return list(seen)


def _image_names(folder: Path, stems: list[str]) -> list[str]:
    """File names of image stems: with the suffix of the existing file, else .jpg."""
    try:
        with os.scandir(folder) as entries:
            present = sorted((Path(entry.name) for entry in entries), reverse=True)  # prefers a.jpg to a.png
    except OSError:
        present = []  # `check_files` reports missing images
    by_stem = {path.stem: path.name for path in present if path.suffix.lower() in SUFFIXES}
    return [by_stem.get(stem, f"{stem}.jpg") for stem in stems]


def _read_xml(path: Path, on_error: OnError) -> tuple[tuple[int, int] | None, list[_Object]]:
    """Image size in an xml file (None where it is missing or 0) and its objects."""
    size: tuple[int, int] | None = None
    objects: list[_Object] = []
    try:
        root = _parse_xml(path)
        width, height = (_number(root, f"size/{key}", path, "size", default=Decimal(0)) for key in ("width", "height"))
        if not (width.is_finite() and height.is_finite()):
            raise InputError(f"size is {width} x {height}, expected numbers", path, "size")
        size = (int(width), int(height)) if width > 0 and height > 0 else None
    except InputError as error:
        on_error(error)
        return size, objects
    for number, item in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_read_object(item, path, number))
        except InputError as error:
            on_error(error)
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
    except (ValueError, LookupError) as error:  # an encoding that expat does not support or know
        raise InputError(f"xml does not parse: {error}; write it as UTF-8", path) from None


def _read_object(item: ElementTree.Element, path: Path, number: int) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError("object has no name", path, f"object {number}")
    place = f"object {number} ({name})"
    xmin, ymin, xmax, ymax = (_number(item, f"bndbox/{key}", path, place) for key in ("xmin", "ymin", "xmax", "ymax"))
    if xmin == xmax and ymin == ymax:
        # VOC reads this as a box of one pixel, but it is more likely a mouse click without a drag: give it no area.
        box = (float(xmin), float(ymin), float(xmin), float(ymin))
    else:
        box = (_minus_one(xmin), _minus_one(ymin), float(xmax), float(ymax))
    difficult = _number(item, "difficult", path, place, default=Decimal(0))
    return _Object(name, box, bool(difficult), place)


def _number(item: ElementTree.Element, key: str, path: Path, place: str, default: Decimal | None = None) -> Decimal:
    """Number in a tag, as Decimal, so that subtracting 1 and adding it again is exact.

    NaN and infinity are accepted; they make a bad box.
    """
    tag = f"<{key.replace('/', '><')}>"
    text = item.findtext(key)
    if text is None and default is not None:
        return default
    try:
        value = Decimal((text or "").strip())
    except InvalidOperation:
        problem = "is missing" if text is None else f"is {text.strip()!r}, expected a number"
        raise InputError(f"{tag} {problem}", path, place) from None
    if value.is_snan() or (value.is_finite() and value.copy_abs() > _MAX_PIXELS):
        raise InputError(f"{tag} is {value}, expected a number of pixels", path, place)
    return value


def _minus_one(value: Decimal) -> float:
    return float(value - 1)


def infer_classes(found: set[str]) -> tuple[str, ...]:
    """Default list of classes: VOC's twenty if these include all class names found, else the sorted names."""
    if found <= set(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(sorted(found))


def write_voc(table: AnnotationTable, root: str | Path, split: str) -> None:
    """Writes `Annotations/*.xml` and `ImageSets/Main/<split>.txt` below a root; `write_images` writes the images.

    What VOC cannot represent is lost: ids, areas of segments, and crowds, which are written as difficult objects
    (evaluation ignores detections of both). A box of exactly one pixel is lost, since it is read as a box without area.

    Raises:
        InputError: two images have the same stem.
    """
    root = Path(root)
    stems = [Path(table.file_name(index)).stem for index in range(len(table))]
    if len(set(stems)) != len(stems):
        raise InputError("two images have the same name without suffix and folder; VOC needs different names", root)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are written as difficult objects", DataWarning, stacklevel=2)
    for index, stem in enumerate(stems):
        write_atomically(root / "Annotations" / f"{stem}.xml", _xml(table, index))
    write_atomically(split_file(root, split), "".join(f"{stem}\n" for stem in stems))


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
    """Shortest decimal notation: 349.0 -> 349, 12.25 -> 12.25."""
    return str(int(value)) if value == value.to_integral_value() else f"{value:f}"
