"""Recognise data sets in YOLO format; see `zoo.data.formats.recognise`."""

import re
import warnings
from pathlib import Path

from zoo.data.formats.yolo import Yolo
from zoo.data.formats.yolo.data_file import DATA_SUFFIXES, SPLITS, find_entry, find_layout, read_data_file
from zoo.data.source import DataWarning, Source
from zoo.errors import InputError


def yolo_file(path: Path) -> dict[str, Source]:
    """Splits of a data yaml or of Darknet's obj.data; {} for other files.

    A test split without images, as some tools always write it, is left out with a warning.
    """
    if path.suffix not in DATA_SUFFIXES:
        return {}
    content, _ = read_data_file(path)
    if "names" not in content:
        return {}
    splits = [key for key in SPLITS if isinstance(content.get(key), str | list) and content[key]]
    if len(splits) > 1 and "test" in splits and isinstance(content["test"], str):
        found, _ = find_entry(path.parent, str(content.get("path") or ""), content["test"])
        if not found.exists():
            warnings.warn(f"{path}: test: {found} does not exist; the split is left out", DataWarning, stacklevel=4)
            splits.remove("test")
    return {split: Yolo(str(path), split) for split in splits}


def yolo_folder(path: Path) -> dict[str, Source]:
    """Splits of a folder with a data file, or with images and label files in one of the layouts of `find_layout`.

    Yaml files of other programs are passed over with a warning.
    """
    files = [file for file in sorted(path.iterdir()) if file.suffix in DATA_SUFFIXES and file.is_file()]
    files.sort(key=lambda file: (file.suffix == ".data", file.stem != "data"))  # data.yaml first, obj.data last
    used: Path | None = None
    found: dict[str, Source] = {}
    for file in files:
        try:
            splits = yolo_file(file)
        except InputError as error:
            if used is None and _mentions_names(file):  # a damaged data file
                raise
            warnings.warn(f"{error}; the file is passed over", DataWarning, stacklevel=3)
            continue
        if not splits:
            warnings.warn(f"{file}: has no `names` and splits; the file is passed over", DataWarning, stacklevel=3)
        elif used is None:
            used, found = file, splits
        else:
            warnings.warn(f"{file}: is passed over, since {used.name} is used", DataWarning, stacklevel=3)
    if found:
        return found
    layout = find_layout(path)
    if any(place.endswith("/images") for place in layout.values()):
        for folder in sorted(path.iterdir()):
            if folder.name not in layout and (folder / "images").is_dir():
                warnings.warn(f"{folder}: has images but no labels; the split is left out", DataWarning, stacklevel=3)
    for split in layout:
        name = _usual_name(split)
        found[split if name in found or name in layout else name] = Yolo(str(path), split)
    return found


def _mentions_names(path: Path) -> bool:
    """Whether a file that cannot be read as a data file looks like one."""
    with path.open("rb") as file:
        return re.search(rb"^names\s*[:=]", file.read(1 << 20), re.MULTILINE) is not None


def _usual_name(folder: str) -> str:
    """Name of the split of a folder: `Train`, `train2017`, `train_images` -> `train`; others are kept."""
    found = re.fullmatch(r"(trainval|train|val|test)(ing|idation)?([_-]?(\d+|set|images|data))?", folder.lower())
    return found[1] if found else folder
