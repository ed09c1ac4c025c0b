"""Read and write annotations in YOLO format: a text file per image, with a line `class cx cy w h` per object.

Images are in `images/`, label files in `labels/`; a data yaml lists splits and classes (`yolo_data`). Centre and size
are relative to the width and height of the image (`yolo_labels`).
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from zoo.data.formats.raw import (
    ListedTwiceError,
    OnError,
    RawSplit,
    raise_error,
    select_valid_boxes,
    warn_of_notes,
)
from zoo.data.formats.yolo.data_file import class_names, list_split, read_data_file
from zoo.data.formats.yolo.labels import find_label_file, label_file, read_label_files
from zoo.data.images import SUFFIXES, image_sizes
from zoo.data.masks import NONE, Masks
from zoo.data.source import DataWarning, Source, check_files, read_text
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.io.decoding import load_image
from zoo.io.files import write_atomically
from zoo.types import Image


@dataclass(frozen=True)
class Yolo(Source):
    """One split in YOLO format.

    Args:
        data: yaml file with the class names (`names`, a list or a mapping from number to name) and, for each split, an
            image folder, a text file that lists images, or a list of these. Paths are relative to the folder of the
            yaml file, or to its entry `path`; `find_entry` says where others are searched for. Or Darknet's obj.data.
            Or a folder of one of the layouts of `find_layout`, with the classes in `classes.txt`.
        split: key in the data file; for a folder, the split's name in its layout, or `all` if there is none.
    """

    data: str
    split: str = "train"

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """See `Source.read`; the classes are always those of the data file."""
        return read_yolo(self.data, self.split, strict=strict, with_masks=with_masks)

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_yolo(data: str | Path, split: str, *, strict: bool = False, with_masks: bool = False) -> AnnotationTable:
    """Reads one split; see `Yolo` for the arguments.

    Image ids are 1..N in the order of the paths. An image without a label file has no objects. Image sizes are read
    from the headers of the images, since label files do not have them.

    Boxes of polygons are their extents; the polygons themselves are kept as masks, if asked for. Warns about unusual
    annotations, once about each kind.

    Raises:
        InputError: the data file is missing, invalid, or without the split or the names; an image is missing; images
            share a label file; coordinates are above 1; a line is not a box or polygon; a class number has no name; a
            box is bad, with `strict`.
    """
    raw = parse_yolo(data, split, raise_error)
    if not with_masks:
        raw = replace(raw, masks=None)
    warn_of_notes(raw, data)
    check_files(raw.paths(), data)
    unknown = np.flatnonzero(raw.labels < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"class {raw.annotated_class(row)} has no name; the data file has names for 0..{len(raw.classes) - 1}",
            *raw.object_place(row),
        )
    raw = raw.with_sizes(image_sizes(raw.paths()))
    return raw.table(np.ones(len(raw), bool), select_valid_boxes(raw, strict))


def parse_yolo(data: str | Path, split: str, on_error: OnError, in_pixels: bool = False) -> RawSplit:
    """Parses the files of a split without validation; boxes are relative, since the files have no image sizes.

    Args:
        data: as for `Yolo`.
        split: as for `Yolo`.
        on_error: called with the error for each image that is listed twice, each label file that several images share
            or that has coordinates above 1, and each line that is not a box or polygon; these are then skipped.
        in_pixels: take all coordinates as pixels, in spite of the format.

    Raises:
        InputError: the data file is missing, invalid, or without the split or the names; an image folder is missing.
    """
    content, base = read_data_file(data)
    classes = class_names(content, data)
    if split not in content or not content[split]:
        raise InputError(f"split {split!r} is not in this file; it has {', '.join(map(str, content))}", data)
    entry = content[split]
    parts = [list_split(data, content, base, str(part)) for part in (entry if isinstance(entry, list) else [entry])]
    listed: dict[Path, tuple[str, str]] = {}  # (folder, name) of each image
    for folder, name in [pair for part in parts for pair in part.listed]:
        path = Path(folder, name)
        if path in listed:
            on_error(ListedTwiceError(f"image {path} is listed twice in split {split!r}", data))
        listed[path] = (folder, name)
    paths = list(listed)
    folders = sorted({folder for folder, _ in listed.values()})
    numbers = {folder: number for number, folder in enumerate(folders)}
    found = [find_label_file(path) for path in paths]
    files = [file or label_file(path) for path, file in zip(paths, found, strict=True)]
    labels = read_label_files(paths, found, _num_keypoint_values(content, data), on_error, in_pixels)
    notes = [note for part in parts for note in part.notes]
    beside = [path for path, file in zip(paths, found, strict=True) if file and file.parent == path.parent]
    if beside and beside[0].with_suffix(".txt") != label_file(beside[0]):
        notes.append(
            f"{len(beside)} label files are beside their images, not in `labels`, the first that of {beside[0]}"
        )
    values = labels.values
    centres, halves = values[:, 1:3], values[:, 3:5] / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    with np.errstate(invalid="ignore"):
        named = (values[:, 0] >= 0) & (values[:, 0] < len(classes)) & (values[:, 0] % 1 == 0)
    return RawSplit(
        classes=classes,
        class_ids=np.arange(1, len(classes) + 1),
        image_ids=np.arange(1, len(paths) + 1),
        widths=np.zeros(len(paths), np.int32),
        heights=np.zeros(len(paths), np.int32),
        file_names=[name for _, name in listed.values()],
        folders=tuple(folders),
        folder_ids=np.array([numbers[folder] for folder, _ in listed.values()], np.int64),
        annotation_files=tuple(files),
        image_index=labels.image_index,
        labels=np.where(named, values[:, 0], -1).astype(np.int64),
        boxes=boxes,
        areas=box_areas(boxes),
        iscrowd=np.zeros(len(values), bool),
        difficult=np.zeros(len(values), bool),
        annotation_ids=np.arange(1, len(values) + 1),
        image_place=lambda index: (str(paths[index]), None),
        object_place=lambda row: (str(files[labels.image_index[row]]), labels.places[row]),
        annotated_image=lambda row: str(paths[labels.image_index[row]]),
        annotated_class=lambda row: f"{values[row, 0]:g}",
        relative=not in_pixels,
        masks=Masks.pack(None if polygon is None else [polygon] for polygon in labels.polygons),
        notes=(*notes, *labels.notes),
    )


def _num_keypoint_values(content: dict[str, object], data: str | Path) -> int:
    """Number of values after the box in each row of a data set of poses (`kpt_shape`); 0 for other data sets."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(str(number).isdecimal() for number in shape):
        raise InputError("`kpt_shape` must be [number of keypoints, 2 or 3]", data, "kpt_shape")
    return int(shape[0]) * int(shape[1])


def write_yolo(table: AnnotationTable, root: str | Path, split: str = "train") -> Path:
    """Writes a label file per image and an entry in `data.yaml` below a root; images belong in `images/<split>/`.

    Label files are written to the paths that `label_file` returns: in `labels/<split>/`, unless a file name has a
    folder `images`.

    Objects whose mask is one polygon are written as that. What YOLO cannot represent is lost: ids, areas, `difficult`,
    crowds, which are not written, and other masks, of which the boxes are written. Each call writes one split; the
    classes of all splits must be the same.

    Args:
        table: annotations of the split.
        root: created if it does not exist.
        split: train, val or test.

    Returns:
        The path of `data.yaml`.

    Raises:
        InputError: a file name does not have the suffix of an image; two images would share a label file; `data.yaml`
            exists and has other classes.
    """
    root = Path(root)
    data = root / "data.yaml"
    content: dict[str, object] = {}
    if data.exists():
        content, _ = read_data_file(data)
    if "names" in content and class_names(content, data) != table.classes:
        raise InputError("has other classes than the split to be written; choose another folder", data)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are left out", DataWarning, stacklevel=2)
    if table.masks is not None:
        lost = sum(len(table.masks.polygons(row)) != 1 and kind != NONE for row, kind in enumerate(table.masks.kinds))
        if lost:
            text = f"{lost} masks are not one polygon, and only their boxes are written"
            warnings.warn(text, DataWarning, stacklevel=2)
    files: dict[Path, str] = {}  # label file -> name of its image
    for index in range(len(table)):
        name = table.file_name(index)
        if Path(name).suffix.lower() not in SUFFIXES:
            raise InputError(f"image {name} does not have the suffix of an image file", root)
        file = label_file(Path("images", split, name))
        if file in files:
            raise InputError(f"images {files[file]} and {name} would share the label file {file}; rename one", root)
        files[file] = name
    scale = np.stack([table.widths, table.heights], axis=1).astype(np.float64)
    for index, file in enumerate(files):
        rows = table.rows(index)
        lines = []
        for row in range(rows.start, rows.stop):
            if table.iscrowd[row]:
                continue
            polygons = [] if table.masks is None else table.masks.polygons(row)
            if len(polygons) == 1:
                numbers = polygons[0] / np.tile(scale[index], len(polygons[0]) // 2)
            else:
                near, far = table.boxes[row, :2], table.boxes[row, 2:]
                numbers = np.concatenate([(near + far) / 2, far - near]) / np.tile(scale[index], 2)
            lines.append(" ".join([str(table.labels[row]), *map(repr, numbers.tolist())]))
        write_atomically(root / file, "".join(f"{line}\n" for line in lines))
    written = (yaml.safe_load(read_text(data, "data file")) if data.exists() else None) or {}
    written |= {split: f"images/{split}", "names": dict(enumerate(table.classes))}
    write_atomically(data, yaml.safe_dump(written, sort_keys=False))
    return data
