"""Recognise the format of a data set and return its splits as sources."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from zoo.data.formats.coco import Coco
from zoo.data.formats.voc import Voc, split_file
from zoo.data.formats.yolo import Yolo, read_data_file
from zoo.data.images import SUFFIXES
from zoo.data.source import Source
from zoo.errors import InputError

EXPECTED = (
    "expected a COCO json, a VOC folder (JPEGImages, Annotations, ImageSets/Main), a YOLO data.yaml, or a folder with "
    "annotations/*.json, VOC2007 and the like, data.yaml, or images and labels"
)
# Bytes at the start of a json file that are searched to recognise its format.
_NUM_START_BYTES = 1 << 20
# Name of a split -> split of the DataModule; later keys take precedence.
_USED_AS = {"trainval": "train", "train": "train", "valid": "val", "val": "val", "test": "test"}
_ORDER = ("train", "trainval", "val", "valid", "test", "all")


def recognise(data: str | Path) -> dict[str, Source]:
    """Recognises the format of a data set and returns its splits.

    COCO: a json file, or a folder with `annotations/*.json`, with json files, or with a json file in each sub-folder.
    VOC: a folder with JPEGImages, Annotations and ImageSets/Main, or a devkit of such folders (a split is the union of
    the folders that have it). YOLO: a data yaml, a folder that contains one, or a folder with `images` and `labels`.

    Returns:
        Sources by split, train first and test last; without `trainval` where there are `train` and `val`.

    Raises:
        InputError: the path does not exist, or is none of these.
    """
    path = Path(data)
    if not path.exists():
        raise InputError("no such file or folder; " + EXPECTED, path)
    recognisers: tuple[Callable[[Path], dict[str, Source]], ...] = (
        (_coco_folder, _voc_folder, _voc_devkit, _yolo_folder) if path.is_dir() else (_coco_file, _yolo_file)
    )
    for recogniser in recognisers:
        found = recogniser(path)
        if found:
            return _in_order(found)
    raise InputError("format is not recognised; " + EXPECTED, path)


def is_data_set(data: str | Path) -> bool:
    """Whether a path is a data set (a folder, a json file, or a YOLO data yaml) rather than a data configuration."""
    path = Path(data)
    if not os.path.isfile(path):  # unlike Path.is_file, returns False for names that are too long
        return os.path.isdir(path)
    return path.suffix == ".json" or (path.suffix in (".yaml", ".yml") and "names" in read_data_file(path)[0])


def data_arguments(data: str | Path) -> dict[str, Any]:
    """Arguments of `DetectionDataModule` for a data set that `recognise` can read.

    `trainval` is used for training where there is no `train`.

    Raises:
        InputError: the format is not recognised, or no split is named train, val or test.
    """
    sources = recognise(data)
    used = {split: sources[name] for name, split in _USED_AS.items() if name in sources}
    if not used:
        raise InputError(
            f"the splits are {', '.join(sources)}; write a data configuration that sets `train`, `val` and `test`",
            data,
        )
    arguments = {
        split: {"class_path": f"{type(source).__module__}.{type(source).__name__}", "init_args": vars(source)}
        for split, source in used.items()
    }
    path = Path(data).absolute()
    return {"name": path.name if path.is_dir() else path.stem, **arguments}


def split_name(stem: str) -> str:
    """Split name in a file stem: `instances_train2017` -> `train`, `validation` -> `val`; else the stem itself."""
    found = re.findall(r"trainval|train|valid|val|test", stem.lower())
    return {"valid": "val"}.get(found[-1], found[-1]) if found else stem.removeprefix("instances_")


def _in_order(found: dict[str, Source]) -> dict[str, Source]:
    if {"train", "val"} <= found.keys():
        found = {split: source for split, source in found.items() if split != "trainval"}
    ranks = {split: rank for rank, split in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: (ranks.get(item[0], len(ranks)), item[0])))


def _coco_file(path: Path) -> dict[str, Source]:
    return {split_name(path.stem): Coco(str(path), str(_image_folder(path)))} if _is_coco(path, 1) else {}


def _coco_folder(path: Path) -> dict[str, Source]:
    for pattern in ("annotations/instances_*.json", "annotations/*.json", "*.json", "*/*.json"):
        found: dict[str, Source] = {}
        # outside of `annotations`, json files of other kinds are more likely
        needed = 1 if pattern.startswith("annotations") else 2
        for file in sorted(file for file in path.glob(pattern) if _is_coco(file, needed)):
            inside = file.parent.name if file.parent not in (path, path / "annotations") else ""
            split = split_name(inside or file.stem)
            # several files of one split, such as train2014 and train2017, get different names
            unique = file.relative_to(path).with_suffix("").as_posix()
            name = next(name for name in (split, file.stem, inside, unique) if name and name not in found)
            found[name] = Coco(str(file), str(_image_folder(file)))
        if found:
            return found
    return {}


def _is_coco(path: Path, needed: int) -> bool:
    """Whether a json file looks like detection annotations.

    A truncated file without its last keys is accepted, since the reader's error message is more specific than "not
    recognised".

    Args:
        path: any file.
        needed: how many of the keys `images` and `annotations` must be present; one is enough in files of which only
            the beginning is searched.
    """
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        start = file.read(_NUM_START_BYTES)
    found = sum(key in start for key in (b'"images"', b'"annotations"'))
    return start.lstrip()[:1] == b"{" and found >= (1 if len(start) == _NUM_START_BYTES else needed)


def _image_folder(annotations: Path) -> Path:
    """Image folder of a COCO json: the usual folder with the first image of the file, else the most likely folder."""
    stem = annotations.stem.removeprefix("instances_")
    here, above = annotations.parent, annotations.parent.parent
    split = split_name(stem)
    candidates = [above / stem, above / "images" / stem, above / split, above / "images" / split, above / "images"]
    candidates += [here / stem, here / split, here / "images" / stem, here / "images", here, above]
    name = _first_image(annotations)
    for folder in candidates:
        if name and (folder / name).is_file():
            return folder
    for folder in candidates[:-2]:  # the first image may be missing
        if folder.is_dir() and any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir()):
            return folder
    return here if here.name != "annotations" else above / stem


def _first_image(annotations: Path) -> str | None:
    """First file name in a COCO json; only the beginning of the file is searched."""
    with annotations.open("rb") as file:
        found = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read(_NUM_START_BYTES))
    try:
        return None if found is None else str(PurePosixPath(msgspec.json.decode(found[1], type=str)))
    except (msgspec.DecodeError, UnicodeDecodeError):  # the reader reports the error
        return None


def _voc_splits(path: Path) -> list[str]:
    """Splits of a VOC folder: files in ImageSets/Main except those of a single class (`cat_train.txt`)."""
    if not (path / "Annotations").is_dir() or not (path / "JPEGImages").is_dir():
        return []
    names = [file.stem for file in (path / "ImageSets" / "Main").glob("*.txt")]
    if not names:
        raise InputError(
            "has Annotations and JPEGImages, but no split; list its images in ImageSets/Main/train.txt", path
        )
    return [name for name in names if not any(name.endswith(f"_{other}") for other in names)]


def _voc_folder(path: Path) -> dict[str, Source]:
    return {split: Voc([str(path)], split) for split in _voc_splits(path)}


def _voc_devkit(path: Path) -> dict[str, Source]:
    folders = [path / "VOCdevkit", path]
    for folder in filter(Path.is_dir, folders):
        roots = [root for root in sorted(folder.iterdir()) if root.is_dir() and _voc_splits(root)]
        splits = sorted({split for root in roots for split in _voc_splits(root)})
        if splits:
            return {
                split: Voc([str(root) for root in roots if split_file(root, split).is_file()], split)
                for split in splits
            }
    return {}


def _yolo_file(path: Path) -> dict[str, Source]:
    if path.suffix not in (".yaml", ".yml"):
        return {}
    content, _ = read_data_file(path)
    splits = [key for key in _ORDER if isinstance(content.get(key), str | list) and content[key]]
    return {split: Yolo(str(path), split) for split in splits} if "names" in content else {}


def _yolo_folder(path: Path) -> dict[str, Source]:
    for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
        found = _yolo_file(file)
        if found:
            return found
    if (path / "images").is_dir() and (path / "labels").is_dir():
        content, _ = read_data_file(path)
        return {split: Yolo(str(path), split) for split in content if split != "names"}
    return {}
