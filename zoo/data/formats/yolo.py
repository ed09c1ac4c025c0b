"""Read and write annotations in YOLO format: a text file per image, with a line `class cx cy w h` per object.

Images are in `images/`, label files in `labels/`; a data yaml lists splits and classes. Centre and size are relative to
the width and height of the image.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from zoo.data.formats.raw import ListedTwiceError, OnError, RawSplit, raise_error, select_valid_boxes
from zoo.data.images import SUFFIXES, image_sizes, list_images, load_image
from zoo.data.source import DataWarning, Source, check_files, read_text
from zoo.data.table import AnnotationTable, box_areas
from zoo.errors import InputError
from zoo.io.files import write_atomically
from zoo.types import Image


@dataclass(frozen=True)
class Yolo(Source):
    """One split in YOLO format.

    Args:
        data: yaml file with the class names (`names`, a list or a mapping from number to name) and, for each split, an
            image folder, a text file that lists images, or a list of these. Paths are relative to the folder of the
            yaml file, or to its entry `path`. Or a folder with `images` and `labels`, and the classes in `classes.txt`.
        split: key in the yaml file; for a folder, the name of a folder in `images`, or `all` if there is none.
    """

    data: str
    split: str = "train"

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`; the classes are always those of the data file."""
        return read_yolo(self.data, self.split, strict=strict)

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_yolo(data: str | Path, split: str, *, strict: bool = False) -> AnnotationTable:
    """Reads one split; see `Yolo` for the arguments.

    Image ids are 1..N in the order of the paths. An image without a label file has no objects. Image sizes are read
    from the headers of the images, since label files do not have them.

    Raises:
        InputError: the yaml file is missing, invalid, or without the split or the names; an image is missing; a line is
            not five numbers; a class number has no name; a box is bad, with `strict`.
    """
    raw = parse_yolo(data, split, raise_error)
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


def parse_yolo(data: str | Path, split: str, on_error: OnError) -> RawSplit:
    """Parses the files of a split without validation; boxes are relative, since the files have no image sizes.

    Args:
        data: as for `Yolo`.
        split: as for `Yolo`.
        on_error: called with the error for each image that is listed twice and each line that is not five numbers;
            these are then skipped.

    Raises:
        InputError: the yaml file is missing, invalid, or without the split or the names.
    """
    content, base = read_data_file(data)
    classes = _class_names(content, data)
    if split not in content or not content[split]:
        raise InputError(f"split {split!r} is not in this file; it has {', '.join(map(str, content))}", data)
    entry = content[split]
    entries = entry if isinstance(entry, list) else [entry]
    listed: dict[Path, tuple[str, str]] = {}  # (folder, name) of each image
    for folder, name in [pair for entry in entries for pair in _split_images(base, str(entry))]:
        if Path(folder, name) in listed:
            on_error(ListedTwiceError(f"image {Path(folder, name)} is listed twice in split {split!r}", data))
        listed[Path(folder, name)] = (folder, name)
    paths = list(listed)
    folders = sorted({folder for folder, _ in listed.values()})
    numbers = {folder: number for number, folder in enumerate(folders)}

    rows: list[tuple[float, ...]] = []
    image_index: list[int] = []
    places: list[str] = []
    files = [label_file(path) for path in paths]
    for index, file in enumerate(files):
        if not file.exists():
            continue
        for line, place in _label_lines(file, on_error):
            try:
                rows.append(_read_line(line, file, place))
            except InputError as error:
                on_error(error)
                continue
            image_index.append(index)
            places.append(place)
    values = np.array(rows, np.float64).reshape(-1, 5)
    centres, halves = values[:, 1:3], values[:, 3:5] / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
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
        image_index=np.array(image_index, np.int64),
        labels=np.where(named, values[:, 0], -1).astype(np.int64),
        boxes=boxes,
        areas=box_areas(boxes),
        iscrowd=np.zeros(len(rows), bool),
        difficult=np.zeros(len(rows), bool),
        annotation_ids=np.arange(1, len(rows) + 1),
        image_place=lambda index: (str(paths[index]), None),
        object_place=lambda row: (str(files[image_index[row]]), places[row]),
        annotated_image=lambda row: str(paths[image_index[row]]),
        annotated_class=lambda row: f"{values[row, 0]:g}",
        relative=True,
    )


def read_data_file(data: str | Path) -> tuple[dict[str, object], Path]:
    """Reads a data yaml (or describes a folder without one), and returns it with the folder of its relative paths.

    Raises:
        InputError: the file is missing or invalid, or the folder does not have `images` and `labels`.
    """
    if Path(data).is_dir():
        return _describe_folder(Path(data)), Path(data)
    content = _read_yaml(Path(data))
    return content, Path(data).parent / str(content.get("path") or "")


def _label_lines(file: Path, on_error: OnError) -> list[tuple[str, str]]:
    """(line, place) of the lines that are not blank."""
    try:
        text = read_text(file, "label file")
    except InputError as error:
        on_error(error)
        return []
    return [(line, f"line {number}") for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(read_text(path, "data file"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = None if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"yaml does not parse: {getattr(error, 'problem', error)}", path, place) from None
    if not isinstance(content, dict):
        raise InputError("expected keys such as `train`, `val` and `names`", path)
    return content


def _describe_folder(root: Path) -> dict[str, object]:
    """Content of a data yaml for the folders `images/<split>` and `labels/<split>`; split `all` without sub-folders.

    Class names are the lines of `classes.txt`, in the root or in `labels`; else the class numbers up to the highest.
    """
    if not (root / "images").is_dir() or not (root / "labels").is_dir():
        raise InputError("expected a data yaml, or the folders `images` and `labels`", root)
    splits = sorted(folder.name for folder in (root / "images").iterdir() if folder.is_dir())
    content: dict[str, object] = {split: f"images/{split}" for split in splits} or {"all": "images"}
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.exists():
            return content | {
                "names": [line.strip() for line in read_text(file, "class list").splitlines() if line.strip()]
            }
    first_words = (
        line.split()[0] for file in (root / "labels").rglob("*.txt") for line, _ in _label_lines(file, raise_error)
    )
    highest = max((int(word) for word in first_words if word.isdecimal()), default=0)
    return content | {"names": [str(number) for number in range(highest + 1)]}


def _class_names(content: dict[str, object], path: str | Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError(f"the numbers of `names` must be 0..{len(names) - 1} without a gap", path, "names")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError("`names` must be a list of class names, or a mapping from 0..C-1 to them", path, "names")
    classes = tuple(map(str, names))
    if len(set(classes)) != len(classes):
        raise InputError("a class name occurs twice", path, "names")
    return classes


def _split_images(base: Path, entry: str) -> list[tuple[str, str]]:
    """(folder, name relative to it) of the images in a folder, or in a text file that lists images.

    Paths in a text file are relative to the file where they start with `./`, else to `base`.
    """
    path = base / entry
    if path.suffix != ".txt":
        return [(str(path), image.relative_to(path).as_posix()) for image in list_images(path)]
    lines = [line.strip() for line in read_text(path, "list of images").splitlines() if line.strip()]
    images = [path.parent / line if line.startswith("./") else base / line for line in lines]
    return [(str(image.parent), image.name) for image in images]


def label_file(image: Path) -> Path:
    """Label file of an image: suffix `.txt`, and `labels` instead of the last folder `images` of the path, if any."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_line(line: str, file: Path, place: str) -> tuple[float, ...]:
    words = line.split()
    try:
        values = tuple(map(float, words))
    except ValueError:
        values = ()
    if len(values) != 5:
        raise InputError(f"expected `class cx cy w h`, found {line.strip()[:60]!r}", file, place)
    return values


def write_yolo(table: AnnotationTable, root: str | Path, split: str = "train") -> Path:
    """Writes a label file per image and an entry in `data.yaml` below a root; images belong in `images/<split>/`.

    Label files are written to the paths that `label_file` returns: in `labels/<split>/`, unless a file name has a
    folder `images`.

    What YOLO cannot represent is lost: ids, areas, `difficult`, and crowds, which are not written. Each call writes one
    split; the classes of all splits must be the same.

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
    content: dict[str, object] = _read_yaml(data) if data.exists() else {}
    if "names" in content and _class_names(content, data) != table.classes:
        raise InputError("has other classes than the split to be written; choose another folder", data)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are left out", DataWarning, stacklevel=2)
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
            near, far = table.boxes[row, :2], table.boxes[row, 2:]
            numbers = np.concatenate([(near + far) / 2, far - near]) / np.tile(scale[index], 2)
            lines.append(" ".join([str(table.labels[row]), *map(repr, numbers.tolist())]))
        write_atomically(root / file, "".join(f"{line}\n" for line in lines))
    content |= {split: f"images/{split}", "names": dict(enumerate(table.classes))}
    write_atomically(data, yaml.safe_dump(content, sort_keys=False))
    return data
