"""Splits and classes of a data set in YOLO format: a data yaml, Darknet's obj.data, or a layout of folders."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from zoo.data.formats.locate import locate_images
from zoo.data.images import SUFFIXES, list_images, walk_files
from zoo.data.source import read_text
from zoo.errors import InputError

YAML_SUFFIXES = (".yaml", ".yml")
DATA_SUFFIXES = (*YAML_SUFFIXES, ".data")
"""Suffixes of files that describe a data set: of a data yaml and of Darknet's obj.data."""

SPLITS = ("train", "trainval", "val", "valid", "test", "all")
"""Splits that a data file may have; its other keys describe the data set."""

_MAX_CLASSES = 10_000  # without a list of names
_NULL = ("", "~", "null", "Null", "NULL")
# Files with a class name a line: LabelImg, Darknet and CVAT, Roboflow's export for Darknet.
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")


@dataclass(frozen=True)
class SplitImages:
    """Image files of a split.

    Args:
        listed: (folder, file name relative to it) of each image, in the order of the list or folder.
        notes: where folders and images were found that are not where the data file says, a sentence each.
    """

    listed: list[tuple[str, str]]
    notes: list[str]


def read_data_file(data: str | Path) -> tuple[dict[str, object], Path]:
    """Content of a data file (or of a folder without one), and the folder of its relative paths, which may not exist.

    All scalars are texts as they are written, so that a class may be called `no` or `1e3`; keys without a value are
    left out. A file with class names only has the splits of `find_layout` for its folder.

    Raises:
        InputError: the file is missing or invalid, or images and labels are not found in the folder.
    """
    path = Path(data)
    if path.is_dir():
        return _describe_folder(path), path
    content = _read_darknet(path) if path.suffix == ".data" else read_yaml(path)
    content = {key: value for key, value in content.items() if value not in _NULL}
    if "names" in content and not any(split in content for split in SPLITS):
        content = {**find_layout(path.parent), **content}
    return content, path.parent / _plain(str(content.get("path") or ""))


def read_yaml(path: Path) -> dict[str, object]:
    """Content of a yaml file with all scalars as texts; tags of other programs are ignored.

    Raises:
        InputError: the file is missing, does not parse, or is not a mapping.
    """
    try:
        content = yaml.load(read_text(path, "data file"), yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = None if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
        raise InputError(f"yaml does not parse: {getattr(error, 'problem', error)}", path, place) from None
    if not isinstance(content, dict):
        raise InputError("expected keys such as `train`, `val` and `names`", path)
    return content


def _read_darknet(path: Path) -> dict[str, object]:
    """Content of Darknet's obj.data: a line `key = value` each for `train`, `valid` and `names`."""
    content: dict[str, object] = {}
    for number, line in enumerate(read_text(path, "data file").splitlines(), start=1):
        key, equals, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        if not equals:
            raise InputError(f"expected `key = value`, found {line.strip()[:60]!r}", path, f"line {number}")
        content[key.strip()] = value.strip()
    return content


def class_names(content: dict[str, object], data: str | Path) -> tuple[str, ...]:
    """Class names of a data file: its list or mapping `names`, or the lines of the file that `names` gives.

    Raises:
        InputError: there are none, a number or a name is missing, or a name occurs twice.
    """
    names = content.get("names")
    if isinstance(names, str):
        found, _ = find_entry(Path(data).parent, str(content.get("path") or ""), names)
        if found.is_file():
            names = read_names(found)
    if isinstance(names, dict):
        numbers = {int(key): name for key, name in names.items() if str(key).isdecimal()}
        if len(numbers) != len(names) or set(numbers) != set(range(len(names))):
            raise InputError(f"the numbers of `names` must be 0..{len(names) - 1} without a gap", data, "names")
        names = [numbers[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError("`names` must be a list of class names, or a mapping from 0..C-1 to them", data, "names")
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("a class name is empty or not a text", data, "names")
    if len(set(names)) != len(names):
        raise InputError("a class name occurs twice", data, "names")
    return tuple(names)


def read_names(path: Path) -> list[str]:
    """Class names in a text file, one a line.

    Raises:
        InputError: the file cannot be read, or has an empty line between names, which makes the numbers uncertain.
    """
    names = [line.strip() for line in read_text(path, "list of classes").rstrip().splitlines()]
    if "" in names:
        raise InputError("an empty line between class names; remove it", path, f"line {names.index('') + 1}")
    return names


def _plain(path: str) -> str:
    """A path with the separators of POSIX."""
    return path.replace("\\", "/")


def _parts(path: str) -> list[str]:
    """Parts of a path without drive, root, `.` and `..`."""
    parts = [part for part in _plain(path).split("/") if part not in ("", ".", "..")]
    return parts[1:] if parts and re.fullmatch("[A-Za-z]:", parts[0]) else parts


def _is_absolute(path: str) -> bool:
    return _plain(path).startswith("/") or re.match("[A-Za-z]:", path) is not None


def find_entry(root: Path, prefix: str, entry: str) -> tuple[Path, str]:
    """Folder or file that a data file names, and a note where it is not the path as written.

    A path that does not exist is searched for without its leading parts (`..`, drive, folders of another machine):
    directly below the folder of the data file, or two folders deeper; and as written below the working directory. The
    last part `images` alone does not identify a split.

    Args:
        root: folder of the data file.
        prefix: entry `path` of the data file; "" if there is none.
        entry: path as written.

    Returns:
        The only match; the path as written where there is none.

    Raises:
        InputError: several folders or files match.
    """
    written = root / _plain(prefix) / _plain(entry)
    leads_out = _plain(entry).startswith("../")  # Roboflow writes this for folders beside the data file
    if written.exists() and not leads_out:
        return written, ""
    parts = _parts(entry)
    wanted = parts if _is_absolute(entry) else _parts(prefix) + parts
    tails = [wanted[start:] for start in range(len(wanted))]
    tails = [tail for tail in tails if tail != ["images"] or len(parts) == 1]
    direct = [path for tail in tails if _is_usable(path := root.joinpath(*tail))][:1]
    if written.exists():
        if not [path for path in direct if path.parts[-len(parts) :] == tuple(parts)]:
            return written, ""
        found = _distinct([written, *direct])
    else:
        here = Path.cwd() / _plain(prefix) / _plain(entry)
        found = _distinct([*direct, *filter(_is_usable, [here])])
    for tail in [] if found else tails:
        pattern = "/".join(re.sub(r"([*?[])", r"[\1]", part) for part in tail)
        deeper = [path for above in ("*", "*/*") for path in sorted(root.glob(f"{above}/{pattern}"))]
        found = _distinct(filter(_is_usable, deeper))
        if found:
            break
    if len(found) > 1:
        raise InputError(
            f"it is not certain which file or folder {entry} means: {', '.join(map(str, found[:3]))}; correct the path",
            root,
        )
    if not found:
        return written, ""
    return found[0], f"{entry} is not in {root / _plain(prefix)}; {os.path.relpath(found[0], root)} is used"


def _is_usable(path: Path) -> bool:
    """Whether a path is a file, or a folder with images at any depth."""
    return path.is_file() or (path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in walk_files(path)))


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Paths without those that lead to the same file as an earlier one."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def list_split(data: str | Path, content: dict[str, object], base: Path, entry: str) -> SplitImages:
    """Images of an entry of a data file: of a folder, or of a text file that lists images.

    Paths in a text file are relative to the file where they start with `./`, else to `base`; images that are not there
    are searched for by base name.

    Args:
        data: the data file, or a folder without one.
        content: of the data file.
        base: folder of the relative paths.
        entry: path as written in the data file.

    Raises:
        InputError: the folder or file does not exist; see `find_entry`.
    """
    root = Path(data) if Path(data).is_dir() else Path(data).parent
    path, note = find_entry(root, str(content.get("path") or ""), entry)
    notes = [note] if note else []
    if path.suffix != ".txt" and not path.is_file():
        if not path.is_dir():
            raise InputError(f"no such folder; nor was {entry} found below {root} without leading folders", path)
        return SplitImages([(str(path), image.relative_to(path).as_posix()) for image in list_images(path)], notes)
    lines = [line.strip() for line in read_text(path, "list of images").splitlines() if line.strip()]
    names = [str(path.parent / line) if line.startswith("./") else line for line in lines]
    located = locate_images(names, base, root)
    notes += [located.note] if located.note else []
    return SplitImages([(str(image.parent), image.name) for image in located.paths], notes)


def find_layout(root: Path) -> dict[str, str]:
    """Image folder of each split, relative to the root, of a data set without a data file; {} if it is none.

    These layouts are tried in turn: `images/<split>` beside `labels/<split>`; `<split>/images` beside `<split>/labels`;
    images beside their label files, in `images`, in the root, or in the sub-folders of either, which are the splits.
    Without sub-folders the split is called `all`.
    """
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return {folder.name: f"images/{folder.name}" for folder in _sub_folders(root / "images")} or {"all": "images"}
    splits = [folder.name for folder in _sub_folders(root) if (folder / "images").is_dir()]
    found = {split: f"{split}/images" for split in splits if (root / split / "labels").is_dir()}
    if found:
        return found
    for folder in (root / "images", root):
        if not folder.is_dir():
            continue
        place = folder.relative_to(root).as_posix()
        if _has_labelled_image(folder.iterdir()):
            return {"all": place}
        found = {
            split.name: split.relative_to(root).as_posix()
            for split in _sub_folders(folder)
            if _has_labelled_image(walk_files(split))
        }
        if found:
            return found
    return {}


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_labelled_image(files: Iterable[Path]) -> bool:
    """Whether an image has a text file beside it that starts with a row of a label file."""
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            label = file.with_suffix(".txt")
            if label.is_file() and starts_with_a_row(label):
                return True
    return False


def starts_with_a_row(file: Path) -> bool:
    """Whether the first line of a text file that is not blank is a row of a label file."""
    return any(_class_number(line) is not None for line in _lines(file)[:1])


def _describe_folder(root: Path) -> dict[str, object]:
    """Content of a data file for a folder without one; see `find_layout`.

    Class names are the lines of `classes.txt` (or `obj.names`, `_darknet.labels`) in the root or beside the labels;
    else the class numbers up to the highest.
    """
    splits = find_layout(root)
    if not splits:
        raise InputError("expected a data yaml, obj.data, or folders of images and YOLO labels", root)
    places = [(place, root / place) for place in splits.values()]
    if (root / "images").is_dir() and (root / "labels").is_dir():
        folders = [root / "labels"]
    else:  # images beside a folder of labels, or beside their label files
        folders = [folder.parent / "labels" if place.endswith("/images") else folder for place, folder in places]
    candidates = dict.fromkeys([root, root / "images", *folders, *(folder.parent for folder in folders)])
    files = [folder / name for folder in candidates for name in _NAME_FILES if folder.is_relative_to(root)]
    lists = {file: read_names(file) for file in files if file.is_file()}
    if lists:
        first, names = next(iter(lists.items()))
        for file, other in lists.items():
            if other != names:
                raise InputError(f"has other classes than {first}; keep one list of classes", file)
        return {**splits, "names": names}
    texts = (file for folder in folders for file in walk_files(folder) if file.suffix == ".txt")
    numbers = (_class_number(line) for file in texts for line in _lines(file))
    highest = max((number for number in numbers if number is not None), default=0)
    return {**splits, "names": [str(number) for number in range(highest + 1)]}


def _lines(file: Path) -> list[str]:
    """Lines of a text file that are not blank; none of a file that cannot be read."""
    try:
        return [line for line in read_text(file, "label file").splitlines() if line.strip()]
    except InputError:
        return []


def _class_number(line: str) -> int | None:
    """Class number of a row of a label file, which may be written as 1 or 1.0; None for other lines.

    Numbers of `_MAX_CLASSES` and above are more likely to be something else.
    """
    try:
        number, *values = map(float, line.split())
    except ValueError:
        return None
    return int(number) if len(values) >= 4 and 0 <= number < _MAX_CLASSES and number % 1 == 0 else None
