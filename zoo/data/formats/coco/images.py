"""Paths and sizes of the images that a COCO file lists."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.data.formats.coco.records import ImageRecord
from zoo.data.formats.locate import locate_images
from zoo.data.formats.raw import split_paths
from zoo.errors import InputError
from zoo.io.decoding import upright_size

_ANNOTATION_FOLDERS = frozenset({"annotations", "labels"})


def root_folder(annotations: str | Path) -> Path:
    """Folder of the data set of a json file: its folder, or the one above a folder `annotations` or `labels`."""
    folder = Path(annotations).parent
    for place in (folder, folder.parent):
        if place.name.lower() in _ANNOTATION_FOLDERS:
            return place.parent
    return folder


def locate_listed(
    records: Sequence[ImageRecord], annotations: str | Path, images: str | Path
) -> tuple[list[str], tuple[str, ...], NDArray[np.int64], list[str]]:
    """(file names, folders, folder id of each name, notes) of listed images; see `locate_images`."""
    names = [record.file_name for record in records]
    no_notes: list[str] = []
    as_listed = names, (str(images),), np.zeros(len(names), np.int64), no_notes
    if str(images) == "":
        return as_listed
    folder, root = Path(images), root_folder(annotations)
    try:
        present = set(os.listdir(folder))
    except OSError:
        present = set()
    if all(name in present for name in names):  # much faster than a Path for each
        return as_listed
    inside = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(root))
    located = locate_images(names, folder, root if inside or not present else folder)
    if not located.note:
        return as_listed
    return *split_paths(located.paths, folder), [located.note]


def image_sizes(records: Sequence[ImageRecord], path: Callable[[int], Path]) -> tuple[NDArray[np.int32], list[str]]:
    """((width, height) [N, 2], notes) of images; from their files where they have neither, 0 where there is no file.

    Args:
        records: of the file.
        path: index -> path of the image file.
    """
    sides = [(record.width or 0, record.height or 0) for record in records]
    sizes = np.array(sides, np.int32).reshape(-1, 2)
    without = np.flatnonzero((sizes == 0).all(1)).tolist()
    read = 0
    for index in without:
        try:
            sizes[index] = upright_size(path(index))
            read += 1
        except InputError:  # reported by reader and doctor
            continue
    note = f"{read} of {len(records)} images have no width and height; these were read from the image files"
    return sizes, [note] if read else []
