"""YOLO's files, in and out: `images/*.jpg` beside `labels/*.txt`, one line an object (class cx cy w h), and a yaml.

Centre and size are relative to the width and height of the image.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from zoo.data.formats.raw import Complain, ListedTwiceError, RawSplit, refuse, select_valid_boxes
from zoo.data.images import SUFFIXES, image_sizes, list_images, load_image
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


@dataclass(frozen=True)
class Yolo(Source):
    """One split in YOLO's format.

    Args:
        data: the yaml that names the classes (`names`, a list or a mapping from number to name) and, for each split, a
            folder of images, a text file that lists images, or a list of such; relative to its own folder, or to `path`
            where it has one. A folder that holds `images` and `labels` will do too, with the classes in `classes.txt`.
        split: a key of that yaml; the name of a folder in `images`, or `all` where that has none.
    """

    data: str
    split: str = "train"

    def read(self, strict: bool = False, classes: tuple[str, ...] | None = None) -> AnnotationTable:
        """See `Source.read`; the classes are always the yaml's."""
        return read_yolo(self.data, self.split, strict=strict)

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index), (int(table.widths[index]), int(table.heights[index])))


def read_yolo(data: str | Path, split: str, *, strict: bool = False) -> AnnotationTable:
    """Reads one split; see `Yolo` for the arguments.

    Image ids are 1..N in the order of the paths. An image without a label file has no objects. Sizes come from the
    headers of the images, since YOLO's files do not have them.

    Raises:
        InputError: a yaml that is missing, does not parse, or lacks the split or the names; a missing image; a line
            that is not five numbers; a class number without a name; bad boxes under `strict`.
    """
    raw = parse_yolo(data, split, refuse)
    check_files(raw.paths(), data)
    unknown = np.flatnonzero(raw.labels < 0)
    if len(unknown):
        row = int(unknown[0])
        raise InputError(
            f"class {raw.class_word(row)} has no name; the data file names 0..{len(raw.classes) - 1}",
            *raw.object_place(row),
        )
    raw = raw.with_sizes(image_sizes(raw.paths()))
    return raw.table(np.ones(len(raw), bool), select_valid_boxes(raw, strict))


def parse_yolo(data: str | Path, split: str, complain: Complain) -> RawSplit:
    """What the files of a split say, true or not; sizes are not among that, so boxes stay relative.

    Args:
        data: as for `Yolo`.
        split: as for `Yolo`.
        complain: told of each image named twice and each line that is not five numbers; it is then left out.

    Raises:
        InputError: a yaml that is missing, does not parse, or lacks the split or the names.
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
            complain(ListedTwiceError(f"image {Path(folder, name)} is named twice in split {split!r}", data))
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
        for line, place in _label_lines(file, complain):
            try:
                rows.append(_read_line(line, file, place))
            except InputError as error:
                complain(error)
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
        image_word=lambda row: str(paths[image_index[row]]),
        class_word=lambda row: f"{values[row, 0]:g}",
        relative=True,
    )


def read_data_file(data: str | Path) -> tuple[dict[str, object], Path]:
    """What a data yaml, or a folder without one, says, and the folder that its entries are relative to.

    Raises:
        InputError: it is missing or does not parse; a folder that has not both `images` and `labels`.
    """
    if Path(data).is_dir():
        return _describe_folder(Path(data)), Path(data)
    content = _read_yaml(Path(data))
    return content, Path(data).parent / str(content.get("path") or "")


def _label_lines(file: Path, complain: Complain) -> list[tuple[str, str]]:
    """(line, its place) of the lines that say something."""
    try:
        text = read_text(file, "label file")
    except InputError as error:
        complain(error)
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
    """What a data yaml would say of `images/<split>` and `labels/<split>`; without such folders the one split is `all`.

    Names are the lines of `classes.txt`, in the folder or among the labels; else the numbers up to the highest.
    """
    if not (root / "images").is_dir() or not (root / "labels").is_dir():
        raise InputError("expected a data yaml, or the folders `images` and `labels`", root)
    splits = sorted(folder.name for folder in (root / "images").iterdir() if folder.is_dir())
    content: dict[str, object] = {split: f"images/{split}" for split in splits} or {"all": "images"}
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.exists():
            return content | {"names": [line.strip() for line in read_text(file, "list").splitlines() if line.strip()]}
    first_words = (
        line.split()[0] for file in (root / "labels").rglob("*.txt") for line, _ in _label_lines(file, refuse)
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
    """(folder, name below it) of the images of a folder, or of a text file that lists them.

    Paths in such a file are relative to the file where they start with `./`, else to `base`.
    """
    path = base / entry
    if path.suffix != ".txt":
        return [(str(path), image.relative_to(path).as_posix()) for image in list_images(path)]
    lines = [line.strip() for line in read_text(path, "list of images").splitlines() if line.strip()]
    images = [path.parent / line if line.startswith("./") else base / line for line in lines]
    return [(str(image.parent), image.name) for image in images]


def label_file(image: Path) -> Path:
    """YOLO's rule: the last folder `images` of the path becomes `labels`; without one, the text is beside the image."""
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
    """Writes a label file an image and an entry in `data.yaml` below a root; images belong in `images/<split>/`.

    Label files lie where `label_file` looks for them: in `labels/<split>/`, but for names that hold a folder `images`.

    What YOLO has no word for is lost: ids, areas, `difficult`, and crowds, which are left out (they are no objects).
    Splits are written one after the other; their classes must agree.

    Args:
        table: what to write.
        root: is made if need be.
        split: train, val or test.

    Returns:
        The path of `data.yaml`.

    Raises:
        InputError: an image whose suffix is none of an image; two images that would share a label file; `data.yaml` is
            there with other classes.
    """
    root = Path(root)
    data = root / "data.yaml"
    content: dict[str, object] = _read_yaml(data) if data.exists() else {}
    if "names" in content and _class_names(content, data) != table.classes:
        raise InputError("names other classes than the split to be written; choose another folder", data)
    if table.iscrowd.any():
        warnings.warn(f"{int(table.iscrowd.sum())} crowds are left out", DataWarning, stacklevel=2)
    files: dict[Path, str] = {}  # label file -> name of its image
    for index in range(len(table)):
        name = table.file_name(index)
        if Path(name).suffix.lower() not in SUFFIXES:
            raise InputError(f"image {name} has no suffix of an image", root)
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
        write_text(root / file, "".join(f"{line}\n" for line in lines))
    content |= {split: f"images/{split}", "names": dict(enumerate(table.classes))}
    write_text(data, yaml.safe_dump(content, sort_keys=False))
    return data
