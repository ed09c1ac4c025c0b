"""List image files, check and copy them; a source of images without annotations."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from zoo.data.source import Source, printable
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.io.decoding import load_image, upright_size
from zoo.types import Image

# Formats that Pillow can open but that hold documents, films or measurements.
_OTHER_FORMATS = frozenset({"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "MIC", "MPEG", "PDF", "WMF"})

SUFFIXES = frozenset(
    suffix
    for suffix, form in PILImage.registered_extensions().items()
    if form in PILImage.OPEN and form not in _OTHER_FORMATS
)
"""Suffixes of image files that Pillow can open, in lower case."""


def require_utf8_name(name: Path, listed_in: str | Path | None = None) -> None:
    """Checks that the name of an image file is UTF-8.

    Args:
        name: as the file system returns it.
        listed_in: folder in which it was found, for the message.

    Raises:
        InputError: the name is not UTF-8.
    """
    shown = printable(name)
    if shown != str(name):
        raise InputError(f"image name {shown} is not UTF-8; rename the file", listed_in and printable(listed_in))


def walk_files(root: Path) -> Iterator[Path]:
    """Files below a folder, sorted within each folder; follows symbolic links, and enters each real folder once.

    Links are followed after all folders that are reached without them, so that a file that can be reached both ways is
    listed under its real path.
    """
    seen: set[str] = set()
    waiting = [Path(root)]
    while waiting:
        for folder, folders, files in os.walk(waiting.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            waiting += [Path(folder, name) for name in folders if os.path.islink(Path(folder, name))]
            yield from (Path(folder, name) for name in sorted(files))


def list_images(folder: str | Path) -> list[Path]:
    """Image files below a folder, at any depth and behind symbolic links, sorted by path.

    Raises:
        InputError: the folder does not exist or has no images, or a file name is not UTF-8.
    """
    if not Path(folder).is_dir():
        raise InputError("no such folder", file=folder)
    found = sorted(path for path in walk_files(Path(folder)) if path.suffix.lower() in SUFFIXES and path.is_file())
    for path in found:
        require_utf8_name(path.relative_to(folder), folder)
    if not found:
        raise InputError(
            "no image in this folder (looked for all suffixes that Pillow reads, such as .jpg)", file=folder
        )
    return found


def find_unreadable(files: Sequence[Path]) -> dict[Path, InputError]:
    """Files that cannot be decoded, with the reasons; decodes all of them, with a thread per core."""

    def check(file: Path) -> InputError | None:
        try:
            load_image(file)
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        return {file: error for file, error in zip(files, pool.map(check, files), strict=True) if error is not None}


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Image files among files and folders, which are searched at any depth.

    Raises:
        InputError: a path is a URL, a folder has no images, or there is no path at all.
    """
    files: list[Path] = []
    for path in paths:
        if "://" in path:
            raise InputError("is a URL; download the image and give the file", path)
        files += list_images(path) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise InputError("no image to predict on; give image files or folders")
    return files


@dataclass(frozen=True)
class ImageFolder(Source):
    """Images without annotations, for prediction.

    Args:
        paths: image files, and folders that are searched at any depth. Image ids are 0, 1, ... in order.
    """

    paths: list[str] = field(default_factory=list)

    def read(
        self, strict: bool = False, classes: tuple[str, ...] | None = None, with_masks: bool = False
    ) -> AnnotationTable:
        """See `Source.read`; the table has no objects, and `classes` as its classes."""
        files = list_inputs(self.paths)
        for file in files:
            require_utf8_name(Path(file.name))
        sizes = image_sizes(files)
        folders = sorted({str(file.parent) for file in files})
        numbers = {folder: number for number, folder in enumerate(folders)}
        return AnnotationTable.from_rows(
            classes=classes or (),
            image_ids=np.arange(len(files)),
            widths=sizes[:, 0],
            heights=sizes[:, 1],
            file_names=[file.name for file in files],
            folders=folders,
            folder_ids=np.array([numbers[str(file.parent)] for file in files], np.int64),
            image_index=np.zeros(0, np.int64),
            boxes=np.zeros((0, 4)),
            labels=np.zeros(0, np.int64),
        )

    def load_image(self, table: AnnotationTable, index: int) -> Image:
        """See `Source.load_image`."""
        return load_image(table.path(index))


def write_images(table: AnnotationTable, source: Source, folder: str | Path) -> None:
    """Writes the images of a table below a folder, under their file names; existing files are copied unchanged.

    Args:
        table: annotations that were read from `source`.
        source: draws the images that have no file.
        folder: created if it does not exist.

    Raises:
        InputError: an image cannot be read.
    """
    for index in range(len(table)):
        target = Path(folder, table.file_name(index))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.stem}.partial{target.suffix}")
        if table.folders:
            partial.write_bytes(table.path(index).read_bytes())
        else:
            pixels = source.load_image(table, index).permute(1, 2, 0).contiguous().numpy()
            PILImage.fromarray(pixels).save(partial)
        partial.replace(target)


def image_sizes(paths: Sequence[Path]) -> NDArray[np.int32]:
    """(width, height) [N, 2] of image files after EXIF rotation, from their headers."""
    return np.array([upright_size(path) for path in paths], np.int32).reshape(-1, 2)
