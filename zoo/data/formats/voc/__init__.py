"""Read and write annotations in PASCAL VOC format: an xml file per image, in one or more VOC folders.

VOC counts pixels from 1 and includes the last one: xmin..xmax are the edges xmin - 1 .. xmax here. In xml files with
decimals, xmin..xmax are edges already.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Self
from xml.sax.saxutils import escape

import numpy as np

from zoo.data.formats.raw import (
    ListedTwiceError,
    OnError,
    RawSplit,
    raise_error,
    select_valid_boxes,
    warn_of_notes,
)
from zoo.data.formats.resized import resolve_resized
from zoo.data.formats.voc.annotation_file import VocFile, VocObject, read_voc_file
from zoo.data.formats.voc.files import find_images, list_xml_files, read_split, split_file
from zoo.data.formats.voc.segmentation import read_masks, write_masks
from zoo.data.source import DataWarning, Source, check_files
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.io.class_names import VOC_CLASSES
from zoo.io.decoding import load_image, upright_size
from zoo.io.files import write_atomically
from zoo.types import Image


@dataclass(frozen=True)
class Voc(Source):
    """One split in VOC format, or the union of this split of several VOC folders.

    Args:
        roots: folders with `JPEGImages`, `Annotations` and `ImageSets/Main`, such as `VOCdevkit/VOC2007`.
        split: name of the split file in each root (`trainval` reads `ImageSets/Main/trainval.txt`); None reads all xml
            files below `annotations`.
        classes: class names in the order of the labels. By default those of the other splits; else VOC's twenty classes
            where these include every name in the annotations of all splits; else these names, sorted.
        images: folder of the images in each root, which may be in sub-folders; `.` is the root itself.
        annotations: folder of the xml files in each root; the same as `images` where these are beside the images.
        masks: folder of the png files in each root whose pixels are numbers of objects.
    """

    roots: list[str] = field(default_factory=list)
    split: str | None = "trainval"
    classes: list[str] | None = None
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    masks: str = "SegmentationObject"

    @property
    def has_classes(self) -> bool:
        """See `Source.has_classes`."""
        return self.classes is not None

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """See `Source.read`."""
        return self._table(self.parse(classes, raise_error, with_masks), strict)

    @classmethod
    def read_together(
        cls, sources: Sequence[Self], strict: bool = False, with_masks: bool = False
    ) -> list[AnnotationTable]:
        """See `Source.read_together`."""
        raws = [source.parse(None, raise_error, with_masks) for source in sources]
        classes = infer_classes({raw.classes[label] for raw in raws for label in np.unique(raw.labels)})
        class_ids = np.arange(1, len(classes) + 1)
        return [
            source._table(raw.with_classes(classes, class_ids), strict)
            for source, raw in zip(sources, raws, strict=True)
        ]

    def parse(self, classes: tuple[str, ...] | None, on_error: OnError, with_masks: bool = False) -> RawSplit:
        """See `parse_voc`; `classes` is used where the source has no list of classes."""
        names = tuple(self.classes) if self.classes is not None else classes
        folders = {"images": self.images, "annotations": self.annotations}
        return parse_voc(self.roots, self.split, names, on_error, **folders, masks=self.masks if with_masks else None)

    def describe_lists(self) -> str:
        """Files or folders that list the images, for messages."""
        split = self.split
        places = [Path(root, self.annotations) if split is None else split_file(root, split) for root in self.roots]
        return " and ".join(map(str, places))

    def _table(self, raw: RawSplit, strict: bool) -> AnnotationTable:
        warn_of_notes(raw, self.describe_lists())
        check_files(raw.paths(), self.describe_lists())
        return _make_table(raw, strict)

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_voc(
    roots: Sequence[str | Path], split: str, classes: tuple[str, ...] | None = None, *, strict: bool = False
) -> AnnotationTable:
    """Reads and concatenates the split of each VOC folder, without checking that the images exist.

    See `Voc` for the arguments. Image ids are 1..N in that order. Parts of objects (<part>) are ignored. A size that is
    missing or 0 in the xml file is read from the image.

    Raises:
        InputError: there is no root; a split file or xml file is missing; an xml file is invalid or incomplete; a split
            lists an image twice; a class is not in `classes`; a box is bad, with `strict`.
    """
    return _make_table(parse_voc(roots, split, classes, raise_error), strict)


def _make_table(raw: RawSplit, strict: bool) -> AnnotationTable:
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


@dataclass
class _Images:
    """Images of a split and what is known of each, as parallel lists.

    Args:
        names: paths of the xml files relative to their folder, without suffix.
        lists: file in which each image is listed.
        files: xml files.
        contents: content of each xml file.
        paths: image files.
        image_folders: folder in the root of each image.
        roots: root of each image.
        notes: see `RawSplit`.
    """

    names: list[str] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    contents: list[VocFile] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    image_folders: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_voc(
    roots: Sequence[str | Path],
    split: str | None,
    classes: tuple[str, ...] | None,
    on_error: OnError,
    *,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    masks: str | None = None,
) -> RawSplit:
    """Parses the files of a split without validation.

    Args:
        roots: as for `Voc`.
        split: as for `Voc`.
        classes: class names in the order of the labels; None: see `infer_classes`.
        on_error: called with the error for each image that is listed twice, each xml file that cannot be read (its
            image then has no objects) and each object with missing or invalid fields (which is then skipped).
        images: as for `Voc`.
        annotations: as for `Voc`.
        masks: as for `Voc`; None to read no masks.

    Raises:
        InputError: there is no root, a split file cannot be read, or there is no xml file to read.
    """
    if not roots:
        raise InputError("no folder given; set `roots` to at least one folder, such as VOCdevkit/VOC2007")
    found = _Images()
    for root in map(Path, roots):
        _read_root(root, split, root / images, root / annotations, found, on_error)
    names: list[str] = []
    folders: dict[str, int] = {str(Path(root, images)): number for number, root in enumerate(dict.fromkeys(roots))}
    folder_ids: list[int] = []
    for path, image_folder in zip(found.paths, found.image_folders, strict=True):
        inside = path.is_relative_to(image_folder)
        names.append(path.relative_to(image_folder).as_posix() if inside else path.name)
        folder_ids.append(folders.setdefault(str(image_folder if inside else path.parent), len(folders)))
    objects: list[VocObject] = [item for content in found.contents for item in content.objects]
    image_index = np.repeat(np.arange(len(found.files)), [len(content.objects) for content in found.contents])
    sizes = np.array([content.size or (0, 0) for content in found.contents], np.int32).reshape(-1, 2)
    classes = classes if classes is not None else infer_classes({item.name for item in objects})
    numbers = {name: number for number, name in enumerate(classes)}
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    files, lists = found.files, found.lists
    instance_masks, mask_notes = None, list[str]()
    if masks is not None:
        pictures = [root / masks / f"{name}.png" for root, name in zip(found.roots, found.names, strict=True)]
        counts = [len(content.objects) for content in found.contents]
        instance_masks, mask_notes = read_masks(pictures, counts, sizes, on_error)
    raw = RawSplit(
        classes=tuple(classes),
        class_ids=np.arange(1, len(classes) + 1),
        image_ids=np.arange(1, len(files) + 1),
        widths=sizes[:, 0],
        heights=sizes[:, 1],
        file_names=names,
        folders=tuple(folders),
        folder_ids=np.array(folder_ids, np.int64),
        annotation_files=tuple(files),
        image_index=image_index,
        labels=np.array([numbers.get(item.name, -1) for item in objects], np.int64),
        boxes=boxes,
        areas=box_areas(boxes),
        iscrowd=np.zeros(len(objects), bool),
        difficult=np.array([item.difficult for item in objects], bool),
        annotation_ids=np.arange(1, len(objects) + 1),
        image_place=lambda index: (str(lists[index]), found.names[index]),
        object_place=lambda row: (str(files[image_index[row]]), objects[row].place),
        annotated_image=lambda row: PurePosixPath(names[image_index[row]]).stem,
        annotated_class=lambda row: objects[row].name,
        masks=instance_masks,
        notes=(*found.notes, *_decimal_notes(found)),
        mask_notes=tuple(mask_notes),
    )
    return resolve_resized(raw, on_error)


def _read_root(
    root: Path, split: str | None, images: Path, annotations: Path, found: _Images, on_error: OnError
) -> None:
    """Appends the images of one root to `found`."""
    listed_in = annotations if split is None else split_file(root, split)
    if split is None:
        files = list_xml_files(annotations)
        names = [path.relative_to(annotations).with_suffix("").as_posix() for path in files]
    else:
        names = read_split(listed_in, annotations, on_error)
        files = [annotations / f"{name}.xml" for name in names]
    contents = [read_voc_file(file, on_error) for file in files]
    others = [file for file, content in zip(files, contents, strict=True) if not content.is_annotation]
    if split is None and others:
        found.notes.append(
            f"{len(others)} of {len(files)} xml files are skipped, since they are not an <annotation>, the first "
            f"{others[0]}"
        )
        kept = [content.is_annotation for content in contents]
        names, files = list(compress(names, kept)), list(compress(files, kept))
        contents = list(compress(contents, kept))
    located = find_images(images, names, files, contents, on_error)
    if located.renamed:
        first = located.renamed[0]
        found.notes.append(
            f"{len(located.renamed)} of {len(files)} images do not have the name of their xml file and were found by "
            f"<filename> or <path>, the first {located.paths[first]} of {files[first]}"
        )
    owners: dict[Path, Path] = {}  # image -> its first xml file
    for name, file, content, path in zip(names, files, contents, located.paths, strict=True):
        if path in owners:
            on_error(ListedTwiceError(f"image {path} has two xml files, {owners[path]} and this one; keep one", file))
            continue
        owners[path] = file
        found.names.append(name)
        found.lists.append(listed_in)
        found.files.append(file)
        found.contents.append(content)
        found.paths.append(path)
        found.image_folders.append(images)
        found.roots.append(root)


def _decimal_notes(found: _Images) -> tuple[str, ...]:
    """Note on xml files with decimals, if there are any."""
    files = [file for file, content in zip(found.files, found.contents, strict=True) if content.has_decimals]
    if not files:
        return ()
    return (
        f"{len(files)} of {len(found.files)} xml files have coordinates with decimals, which are read as edges (no 1 "
        f"is subtracted from xmin and ymin), the first {files[0]}",
    )


def infer_classes(found: set[str]) -> tuple[str, ...]:
    """Default list of classes: VOC's twenty if these include all class names found, else the sorted names."""
    if found <= set(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(sorted(found))


def write_voc(table: AnnotationTable, root: str | Path, split: str) -> None:
    """Writes `Annotations/*.xml` and `ImageSets/Main/<split>.txt` below a root; `write_images` writes the images.

    Where the table has masks, also `SegmentationObject/*.png`.

    What VOC cannot represent is lost: ids, areas of segments, and crowds, which are written as difficult objects
    (evaluation ignores detections of both). A box of exactly one pixel is lost where all coordinates of its image are
    integers, since it is read as a box without area.

    Raises:
        InputError: two images have the same name without suffix.
    """
    root = Path(root)
    paths = [PurePosixPath(table.file_name(index)) for index in range(len(table))]
    stems = [
        path.stem if path.is_absolute() or ".." in path.parts else path.with_suffix("").as_posix() for path in paths
    ]
    if len(set(stems)) != len(stems):
        raise InputError("two images have the same name without suffix; VOC needs different names", root)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are written as difficult objects", DataWarning, stacklevel=2)
    for index, stem in enumerate(stems):
        write_atomically(root / "Annotations" / f"{stem}.xml", _xml(table, index))
        if table.masks is not None:
            rows, size = table.rows(index), (int(table.heights[index]), int(table.widths[index]))
            file = root / "SegmentationObject" / f"{stem}.png"
            write_masks(file, table.masks, range(rows.start, rows.stop), *size)
    write_atomically(split_file(root, split), "".join(f"{stem}\n" for stem in stems))


def _xml(table: AnnotationTable, index: int) -> str:
    lines = [
        "<annotation>",
        f"\t<filename>{escape(Path(table.file_name(index)).name)}</filename>",
        f"\t<size><width>{table.widths[index]}</width><height>{table.heights[index]}</height><depth>3</depth></size>",
        "\t<segmented>0</segmented>",
    ]
    rows = table.rows(index)
    boxes = table.boxes[rows.start : rows.stop]
    # as the reader: with a decimal in any box, all coordinates are edges
    first = 0 if (boxes % 1 != 0).any() else 1
    for row in range(rows.start, rows.stop):
        x1, y1, x2, y2 = table.boxes[row].tolist()
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(table.classes[table.labels[row]])}</name>",
            f"\t\t<difficult>{int(table.difficult[row] or table.iscrowd[row])}</difficult>",
            f"\t\t<bndbox><xmin>{_plain(x1 + first)}</xmin><ymin>{_plain(y1 + first)}</ymin>"
            f"<xmax>{_plain(x2)}</xmax><ymax>{_plain(y2)}</ymax></bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _plain(value: float) -> str:
    """Shortest decimal notation: 349.0 -> 349, 12.25 -> 12.25."""
    return str(int(value)) if value.is_integer() else repr(value)
