"""Recognise the format of a data set and return its splits as sources."""

import gzip
import os
import re
import shlex
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from zoo.data.formats.coco import Coco
from zoo.data.formats.coco.images import root_folder
from zoo.data.formats.locate import find_images
from zoo.data.formats.voc.layouts import find_voc, find_xml_folders
from zoo.data.formats.yolo.data_file import DATA_SUFFIXES, SPLITS, read_data_file
from zoo.data.formats.yolo.layouts import yolo_file, yolo_folder
from zoo.data.images import SUFFIXES
from zoo.data.source import DataWarning, Source
from zoo.errors import InputError
from zoo.io.paths import name_variants

EXPECTED = (
    "expected a COCO json, a VOC folder (JPEGImages, Annotations, ImageSets/Main), a YOLO data.yaml, or a folder with "
    "annotations/*.json, VOC2007 and the like, data.yaml, or images and labels"
)
# Bytes at the start of a json file that are searched to recognise its format.
_NUM_START_BYTES = 1 << 20
_BLANK = b" \t\r\n\xef\xbb\xbf"  # blanks and the byte-order mark
# Name of a split -> split of the DataModule; later keys take precedence.
_USED_AS = {"trainval": "train", "train": "train", "valid": "val", "val": "val", "test": "test"}


def recognise(data: str | Path) -> dict[str, Source]:
    """Recognises the format of a data set and returns its splits.

    COCO: a json file, or a folder with `annotations/*.json`, with json files, or with a json file in each sub-folder;
    also gzip files of these. Files of images without annotations are left out with a warning.
    VOC: a folder with JPEGImages, Annotations and ImageSets/Main, or a devkit of such folders (a split is the union of
    the folders that have it), or xml files beside their images or in a folder beside that of the images (see
    `find_xml_folders`). YOLO: a data yaml, Darknet's obj.data, a folder that contains one, or a folder with images and
    label files (see `find_layout`).

    Returns:
        Sources by split, train first and test last; without `trainval` where there are `train` and `val`.

    Raises:
        InputError: the path does not exist, or is none of these.
    """
    path = Path(data)
    if not path.exists():
        raise InputError("no such file or folder; " + EXPECTED, path)
    recognisers: tuple[Callable[[Path], Mapping[str, Source]], ...] = (
        (_coco_folder, find_voc, find_xml_folders, yolo_folder) if path.is_dir() else (_coco_file, yolo_file)
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
    return path.name.endswith((".json", ".json.gz")) or (
        path.suffix in DATA_SUFFIXES and "names" in read_data_file(path)[0]
    )


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
            f"the splits are {', '.join(sources)}; write a data configuration that sets `train`, `val` and `test`, or "
            f"divide the images: zoo split {shlex.quote(str(data))} --out DIR",
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


def _in_order(found: Mapping[str, Source]) -> dict[str, Source]:
    if {"train", "val"} <= found.keys():
        found = {split: source for split, source in found.items() if split != "trainval"}
    ranks = {split: rank for rank, split in enumerate(SPLITS)}
    return dict(sorted(found.items(), key=lambda item: (ranks.get(item[0], len(ranks)), item[0])))


def _coco_file(path: Path) -> dict[str, Source]:
    return {split_name(_stem(path)): Coco(str(path), str(_image_folder(path)))} if _is_coco(path, 1) else {}


def _coco_folder(path: Path) -> dict[str, Source]:
    unusable: list[Path] = []
    for pattern in ("annotations/instances_*", "annotations/*", "*", "*/*"):
        # outside of `annotations`, json files of other kinds are more likely
        needed = 1 if pattern.startswith("annotations") else 2
        files = _json_files(path, pattern)
        without = [file for file in files if _is_without_annotations(file)]
        usable = [file for file in files if file not in without and _is_coco(file, needed)]
        if usable:
            for file in without:
                warnings.warn(f"{file}: has images without a list `annotations`; left out", DataWarning, stacklevel=4)
            return _coco_sources(path, usable)
        unusable += [file for file in without if file not in unusable and _is_coco(file, needed)]
    return _coco_sources(path, unusable)  # the reader reports the error


def _coco_sources(path: Path, files: list[Path]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for file in files:
        inside = file.parent.name if file.parent not in (path, path / "annotations") else ""
        split = split_name(inside or _stem(file))
        # several files of one split, such as train2014 and train2017, get different names
        unique = (file.parent / _stem(file)).relative_to(path).as_posix()
        name = next(name for name in (split, _stem(file), inside, unique) if name and name not in found)
        found[name] = Coco(str(file), str(_image_folder(file)))
    return found


def _json_files(folder: Path, pattern: str) -> list[Path]:
    """Json files, and gzip files of json files that are not there, sorted by path."""
    files = sorted([*folder.glob(f"{pattern}.json"), *folder.glob(f"{pattern}.json.gz")])
    return [file for file in files if file.suffix == ".json" or file.with_suffix("") not in files]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Opens a json file or a gzip file of one."""
    file = path.open("rb")
    start = file.read(2)
    file.seek(0)
    if start != b"\x1f\x8b":
        return file
    file.close()
    return gzip.open(path)


def _read_beginning(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read(_NUM_START_BYTES)
    except (EOFError, OSError, zlib.error):  # a damaged gzip file, which the reader reports
        return b'{"images" "annotations"'


def _is_coco(path: Path, needed: int) -> bool:
    """Whether a json file looks like detection annotations.

    A truncated file without its last keys is accepted, since the reader's error message is more specific than "not
    recognised".

    Args:
        path: any file.
        needed: how many of the keys `images` and `annotations` must be present; one is enough in files of which only
            the beginning is searched.
    """
    if not path.name.endswith((".json", ".json.gz")):
        return False
    start = _read_beginning(path)
    found = sum(key in start for key in (b'"images"', b'"annotations"'))
    return start.lstrip(_BLANK)[:1] == b"{" and found >= (1 if len(start) == _NUM_START_BYTES else needed)


def _is_without_annotations(path: Path) -> bool:
    """Whether a json file lists images and is complete, but has no list of annotations, as for a test split.

    The file is read up to the key `annotations`.
    """
    start = _read_beginning(path)
    if not all(key in start for key in (b'"images"', b'"file_name"')) or start.lstrip(_BLANK)[:1] != b"{":
        return False
    end = b""
    try:
        with _open(path) as file:
            while block := file.read(_NUM_START_BYTES):
                if re.search(rb'"annotations"\s*:', end + block):
                    return False
                end = (end + block)[-64:]
    except (EOFError, OSError, zlib.error):
        return False
    return end.rstrip().endswith(b"}")


def _image_folder(annotations: Path) -> Path:
    """Image folder of a COCO json: the folder with the first image of the file, else the most likely folder."""
    stem = _stem(annotations).removeprefix("instances_")
    here, above = annotations.parent, annotations.parent.parent
    split = split_name(stem)
    candidates = [above / stem, above / "images" / stem, above / split, above / "images" / split, above / "images"]
    candidates += [here / stem, here / split, here / "images" / stem, here / "images", here, above]
    name = _first_image(annotations)
    if name:
        for variant in [name, *map(str, name_variants(name))]:
            for folder in candidates:
                if os.path.isfile(folder / variant):
                    return folder
        elsewhere = _folder_with(name, root_folder(annotations), split)
        if elsewhere is not None:
            return elsewhere
    for folder in candidates[:-2]:  # the first image may be missing
        if folder.is_dir() and any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir()):
            return folder
    return here if here.name != "annotations" else above / stem


def _folder_with(name: str, root: Path, split: str) -> Path | None:
    """Folder below `root` that a listed name is relative to; among several the only one that is named like the split.

    For a file that is found by its base name only, the folder that it is in.
    """
    paths = find_images(name, root)
    if len(paths) > 1:
        paths = [path for path in paths if split in map(split_name, path.relative_to(root).parts[:-1])]
    if len(paths) != 1:
        return None
    for variant in name_variants(name):
        length = len(variant.parts)
        if paths[0].parts[-length:] == variant.parts:
            return Path(*paths[0].parts[:-length])
    return paths[0].parent


def _first_image(annotations: Path) -> str | None:
    """First file name in a COCO json; only the beginning of the file is searched."""
    found = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', _read_beginning(annotations))
    try:
        name = None if found is None else msgspec.json.decode(found[1], type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):  # the reader reports the error
        return None
    return name if name and "\0" not in name else None
