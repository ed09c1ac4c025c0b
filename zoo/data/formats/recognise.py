"""Which data set a file or folder is: its splits as sources, without being told the format."""

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
# Bytes of a json that are looked at to see what it is; of a larger file its beginning has to tell.
_BEGINNING = 1 << 20
_USES = {"trainval": "train", "train": "train", "valid": "val", "val": "val", "test": "test"}  # the later one counts
_ORDER = ("train", "trainval", "val", "valid", "test", "all")


def recognise(data: str | Path) -> dict[str, Source]:
    """The splits of a data set.

    COCO: a json file, or a folder with `annotations/*.json`, with json files, or with folders that hold one each.
    VOC: a folder with JPEGImages, Annotations and ImageSets/Main, or a devkit of such (a split is the union of those
    that have it). YOLO: a data yaml, a folder that holds one, or a folder with `images` and `labels`.

    Returns:
        Sources by split, train first and test last. `trainval` is left out where train and val stand beside it.

    Raises:
        InputError: there is no such file or folder, or it is none of these.
    """
    path = Path(data)
    if not path.exists():
        raise InputError("no such file or folder; " + EXPECTED, path)
    looks: tuple[Callable[[Path], dict[str, Source]], ...] = (
        (_coco_folder, _voc_folder, _voc_devkit, _yolo_folder) if path.is_dir() else (_coco_file, _yolo_file)
    )
    for look in looks:
        found = look(path)
        if found:
            return _in_order(found)
    raise InputError("format is not recognised; " + EXPECTED, path)


def is_data_set(data: str | Path) -> bool:
    """Whether a path holds data itself: a folder, a json, or a YOLO data yaml; other yaml files describe some."""
    path = Path(data)
    if not os.path.isfile(path):  # unlike Path's, says no to whatever is too long to be a name
        return os.path.isdir(path)
    return path.suffix == ".json" or (path.suffix in (".yaml", ".yml") and "names" in read_data_file(path)[0])


def data_arguments(data: str | Path) -> dict[str, Any]:
    """What a data file would say of a data set that `recognise` knows: arguments of `DetectionDataModule`.

    `trainval` is learned from where there is no `train`.

    Raises:
        InputError: it is not recognised, or none of its splits is called train, val or test.
    """
    sources = recognise(data)
    used = {split: sources[name] for name, split in _USES.items() if name in sources}
    if not used:
        raise InputError(
            f"its splits are called {', '.join(sources)}; say in a data file which is train, val and test",
            data,
        )
    described = {
        split: {"class_path": f"{type(source).__module__}.{type(source).__name__}", "init_args": vars(source)}
        for split, source in used.items()
    }
    path = Path(data).absolute()
    return {"name": path.name if path.is_dir() else path.stem, **described}


def split_name(stem: str) -> str:
    """`instances_train2017` -> `train`; `validation` -> `val`; the stem where it says nothing of the kind."""
    words = re.findall(r"trainval|train|valid|val|test", stem.lower())
    return {"valid": "val"}.get(words[-1], words[-1]) if words else stem.removeprefix("instances_")


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
        # beside other things, a json has to look more like one
        needed = 1 if pattern.startswith("annotations") else 2
        for file in sorted(file for file in path.glob(pattern) if _is_coco(file, needed)):
            inside = file.parent.name if file.parent not in (path, path / "annotations") else ""
            split = split_name(inside or file.stem)
            # several files of one split, such as train2014 and train2017: each under its own name
            own = file.relative_to(path).with_suffix("").as_posix()
            name = next(name for name in (split, file.stem, inside, own) if name and name not in found)
            found[name] = Coco(str(file), str(_image_folder(file)))
        if found:
            return found
    return {}


def _is_coco(path: Path, needed: int) -> bool:
    """Whether a json looks like detection annotations.

    A file that is cut off lacks its last key; it counts, since its reader can say more about it than "not recognised".

    Args:
        path: of any file.
        needed: how many of the keys `images` and `annotations` must be there; one will do in a file of which only the
            beginning is looked at.
    """
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
    found = sum(key in start for key in (b'"images"', b'"annotations"'))
    return start.lstrip()[:1] == b"{" and found >= (1 if len(start) == _BEGINNING else needed)


def _image_folder(annotations: Path) -> Path:
    """The folder, in the usual places, that has the first image which the file names; where none has, the likeliest."""
    stem = annotations.stem.removeprefix("instances_")
    here, above = annotations.parent, annotations.parent.parent
    split = split_name(stem)
    places = [above / stem, above / "images" / stem, above / split, above / "images" / split, above / "images"]
    places += [here / stem, here / split, here / "images" / stem, here / "images", here, above]
    name = _first_image(annotations)
    for place in places:
        if name and (place / name).is_file():
            return place
    for place in places[:-2]:  # the first image may be the one that is missing
        if place.is_dir() and any(entry.suffix.lower() in SUFFIXES for entry in place.iterdir()):
            return place
    return here if here.name != "annotations" else above / stem


def _first_image(annotations: Path) -> str | None:
    """The first file name in a COCO json, from its beginning alone."""
    with annotations.open("rb") as file:
        found = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read(_BEGINNING))
    try:
        return None if found is None else str(PurePosixPath(msgspec.json.decode(found[1], type=str)))
    except (msgspec.DecodeError, UnicodeDecodeError):  # the reader can say more about it
        return None


def _voc_splits(path: Path) -> list[str]:
    """Splits of a VOC folder: files in ImageSets/Main, but for those of one class (`cat_train.txt`)."""
    if not (path / "Annotations").is_dir() or not (path / "JPEGImages").is_dir():
        return []
    names = [file.stem for file in (path / "ImageSets" / "Main").glob("*.txt")]
    if not names:
        raise InputError(
            "has Annotations and JPEGImages, but no split; name its images in ImageSets/Main/train.txt", path
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
