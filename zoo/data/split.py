"""Divide a data set into training, validation and test images (`zoo split`).

Legend:
    N  images        T  objects        C  classes

The division is stratified by class, and images of one group stay together: frames of one video, or copies of one
photograph. Nearly equal images in training and test would make results look better than they are.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from zoo.data.formats.coco import Coco, write_coco
from zoo.data.source import DataWarning, Source
from zoo.data.table import AnnotationTable, concatenate
from zoo.errors import InputError
from zoo.io.files import write_atomically

SPLITS = ("train", "val", "test")
_MAX_FOLDS = 20
# Roboflow's copies of one image: <image>.rf.<hash>.jpg
_COPY = re.compile(r"^(.+)\.rf\.[^.]+\.\w+$")
# frames of a video: <video>_mp4-12_jpg.rf.<hash>.jpg, <video>.mp4_0012.png, <video>_frame_0012.jpg, frame0012.jpg
_FRAME = re.compile(r"^(.+?[._-](?:mp4|mov|avi|mkv|webm))[._-]|^(.*?)[._ -]*frame[._ -]*\d", re.IGNORECASE)


@dataclass(frozen=True)
class Division:
    """Divided data set.

    Args:
        tables: annotations of each split, without splits of fraction 0.
        num_groups: number of groups of images in all splits together.
    """

    tables: dict[str, AnnotationTable]
    num_groups: int


def divide(
    sources: Mapping[str, Source], fractions: Sequence[float], group: str | None = None, seed: int = 0
) -> Division:
    """Joins the splits of a data set and divides its images into train, val and test.

    Args:
        sources: source of each split.
        fractions: of the images for train, val and test; they add up to 1, and 0 leaves a split out.
        group: regular expression whose first group, in the base name of an image, is the group of the image. Images
            without a match are groups of their own. By default see `default_group`.
        seed: of the division.

    Raises:
        InputError: the data set cannot be read, its splits have different classes or annotate one image differently;
            images are generated in memory; an argument is invalid; there are too few groups of images.
    """
    check_fractions(fractions)
    table = _join(sources)
    if not table.folders:
        raise InputError("images are generated in memory; there are no files to divide")
    groups = _groups(table, group)
    num_groups = int(groups.max(initial=-1)) + 1
    shares = {split: fraction for split, fraction in zip(SPLITS, fractions, strict=False) if fraction > 0}
    if num_groups < len(shares):
        raise InputError(
            f"{len(table)} images are {num_groups} groups, too few for {len(shares)} splits; images with the same "
            "video or photograph in their name stay together: choose groups by --group, such as '(.*)' for none"
        )
    folds = _folds(table, groups, list(shares.values()), seed)
    parts = {split: table.select(np.flatnonzero(folds == number)) for number, split in enumerate(shares)}
    for split, part in parts.items():
        if not len(part):
            raise InputError(f"no image is left for {split}: there are only {num_groups} groups of images; add images")
    _warn_of_missing_classes(table, parts)
    return Division(parts, num_groups)


def check_fractions(fractions: Sequence[float]) -> None:
    """Checks the fractions of train, val and test.

    Raises:
        InputError: they are not two or three numbers of at least 0 that add up to 1, or train is 0.
    """
    text = " ".join(f"{fraction:g}" for fraction in fractions)
    if len(fractions) not in (2, 3) or not all(0 <= fraction < 1 for fraction in fractions) or not fractions[0]:
        raise InputError(f"--fractions {text}: give two or three numbers below 1 for train, val and test")
    if abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"--fractions {text} add up to {sum(fractions):g}; they must add up to 1")


def write_division(division: Division, out: Path, name: str) -> Path:
    """Writes `annotations/instances_<split>.json` and a data configuration; images stay where they are.

    Args:
        division: divided data set.
        out: new or empty folder.
        name: name of the data set, for reports.

    Returns:
        The path of the data configuration, `data.yaml`.

    Raises:
        InputError: `out` is a file or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists and is not an empty folder; give a new or empty folder", out)
    out = out.absolute()
    config: dict[str, object] = {"name": name}
    for split, table in division.tables.items():
        file = out / "annotations" / f"instances_{split}.json"
        write_coco(table, file)
        arguments = {"annotations": str(file), "images": table.folders[0]}
        config[split] = {"class_path": f"{Coco.__module__}.{Coco.__name__}", "init_args": arguments}
    write_atomically(out / "data.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return out / "data.yaml"


def default_group(path: str) -> str:
    """Group of an image by its path: its video, or its photograph where the file is a copy of Roboflow's.

    Frames with a number only (`frame_0012.jpg`) are grouped by folder; other images are groups of their own.
    """
    folder, name = os.path.split(path)
    frame = _FRAME.match(name)
    if frame:
        return (frame[1] or frame[2]) or folder
    copy = _COPY.match(name)
    return copy[1] if copy else path


def _join(sources: Mapping[str, Source]) -> AnnotationTable:
    """All images of a data set, each once, with paths relative to one folder and new ids."""
    tables = _read(sources)
    first_split, first = next(iter(tables.items()))
    for split, table in tables.items():
        if table.classes != first.classes or not np.array_equal(table.class_ids, first.class_ids):
            raise InputError(f"{first_split} and {split} have different classes; `zoo doctor` lists them")
    joined = concatenate(list(tables.values()))
    paths = [os.path.abspath(path) for path in joined.paths()]
    firsts: dict[str, int] = {}
    for index, path in enumerate(paths):
        other = firsts.setdefault(path, index)
        if other != index and not _same_objects(joined, index, other):
            raise InputError("is in two splits with different annotations; remove it from one", path)
    kept = joined.select(list(firsts.values()))
    if not kept.folders:
        return kept
    common = os.path.commonpath([os.path.dirname(path) for path in firsts])
    names = [Path(os.path.relpath(path, common)).as_posix().encode() for path in firsts]
    return replace(
        kept,
        image_ids=np.arange(1, len(kept) + 1),
        annotation_ids=np.arange(1, kept.num_objects + 1),
        folders=(common,),
        folder_ids=np.zeros(len(kept), np.int64),
        name_bytes=b"".join(names),
        name_offsets=np.cumsum([0, *map(len, names)]).astype(np.int64),
    )


def _read(sources: Mapping[str, Source]) -> dict[str, AnnotationTable]:
    """Table of each split, with one list of classes where the splits do not define their classes."""
    first = next(iter(sources.values()))
    tables: dict[str, AnnotationTable] = {}
    if not first.has_classes:
        alike = {split: one for split, one in sources.items() if type(one) is type(first) and not one.has_classes}
        tables = dict(zip(alike, type(first).read_together(list(alike.values())), strict=True))
    classes: tuple[str, ...] | None = None
    for split, source in sources.items():
        if split not in tables:
            tables[split] = source.read(classes=classes)
        classes = tables[split].classes if classes is None else classes
    return {split: tables[split] for split in sources}


def _same_objects(table: AnnotationTable, one: int, other: int) -> bool:
    ours, theirs = table.rows(one), table.rows(other)
    return all(
        np.array_equal(column[ours], column[theirs])
        for column in (table.boxes, table.labels, table.iscrowd, table.difficult)
    )


def _groups(table: AnnotationTable, group: str | None) -> NDArray[np.int64]:
    """Number of the group of each image [N], 0, 1, ... without gaps."""
    names = [table.file_name(index) for index in range(len(table))]
    if group is None:
        keys = [default_group(name) for name in names]
    else:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise InputError(f"--group {group}: is not a regular expression ({error})") from error
        if not pattern.groups:
            raise InputError(f"--group {group}: put the part that images of one group share in parentheses")
        found = [pattern.search(os.path.basename(name)) for name in names]
        missing = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
        if missing:
            warnings.warn(
                f"--group {group}: does not match {len(missing)} of {len(names)} images, which are groups of their "
                f"own, the first {missing[0]}",
                DataWarning,
                stacklevel=3,
            )
        # a separator that no file name has keeps the groups of names apart from the others
        keys = [
            f"\0{name}" if match is None or match[1] is None else match[1]
            for name, match in zip(names, found, strict=True)
        ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def _folds(
    table: AnnotationTable, groups: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Number of the fraction that each image belongs to [N].

    The images are divided into equal folds, of which each split gets several. Each object is a sample of its class for
    the stratification, and an image without objects a sample of a class of its own.
    """
    counts = np.diff(table.offsets)
    empty = np.flatnonzero(counts == 0)
    images = np.concatenate([np.repeat(np.arange(len(table)), counts), empty])
    labels = np.concatenate([table.labels, np.full(len(empty), table.num_classes)])
    most = min(_MAX_FOLDS, len(np.unique(groups)), int(np.bincount(labels).max()))
    shares = _shares(fractions, max(most, len(fractions)))
    splitter = StratifiedGroupKFold(sum(shares), shuffle=True, random_state=seed)
    fold_of_image = np.zeros(len(table), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # said by _warn_of_missing_classes
        try:
            for fold, (_, samples) in enumerate(splitter.split(images, labels, groups[images])):
                fold_of_image[images[samples]] = fold
        except ValueError as error:
            raise InputError(f"the images cannot be divided: {error}") from error
    return np.repeat(np.arange(len(shares)), shares)[fold_of_image]


def _shares(fractions: Sequence[float], most: int) -> list[int]:
    """Folds of each fraction, at least 1, as close to the fractions as at most `most` folds allow, and few of them."""

    def shares(total: int) -> list[int]:
        others = [max(1, round(fraction * total)) for fraction in fractions[1:]]
        return [total - sum(others), *others]

    def error(total: int) -> Fraction:
        exact = [Fraction(fraction).limit_denominator(10_000) for fraction in fractions]
        return max(abs(Fraction(part, total) - want) for part, want in zip(shares(total), exact, strict=True))

    possible = [total for total in range(len(fractions), most + 1) if shares(total)[0] >= 1]
    return shares(min(possible, key=lambda total: (error(total), total)))


def _warn_of_missing_classes(table: AnnotationTable, parts: Mapping[str, AnnotationTable]) -> None:
    occurring = set(table.labels.tolist())
    for split, part in parts.items():
        missing = [table.classes[label] for label in sorted(occurring - set(part.labels.tolist()))]
        if missing:
            names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            warnings.warn(f"{split} has no object of {len(missing)} classes: {names}", DataWarning, stacklevel=3)
