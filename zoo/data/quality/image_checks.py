"""What is wrong with image files: with each on its own, against its annotation, and in two splits at once."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data.formats.raw import RawSplit
from zoo.data.images import SUFFIXES
from zoo.data.quality.findings import Finding
from zoo.data.quality.image_files import ImageFile, bit_distances, find_near_duplicates
from zoo.data.source import printable

QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def image_findings(split: str, raw: RawSplit, files: Mapping[Path, ImageFile | None]) -> Iterator[Finding]:
    """Images that are missing, cannot be decoded, are turned, or have another size than the annotation says.

    Args:
        split: its name.
        raw: the split.
        files: what each path holds; None for a file that is missing.
    """
    if raw.folders and len(raw) and not any(Path(folder).is_dir() for folder in raw.folders):
        yield Finding("missing_image", split, raw.folders[0], None, f"folder of {len(raw)} images is missing")
        return
    for index, path in enumerate(raw.paths()):
        file = files[path]
        if file is None:
            place = ": ".join(part for part in raw.image_place(index) if part)
            yield Finding("missing_image", split, str(path), None, f"no such file; {place} names it", index)
            continue
        if file.fault is not None:
            yield Finding("broken_image", split, str(path), None, file.fault, index)
            continue
        if file.orientation != 1:
            message = f"is to be shown turned (EXIF orientation {file.orientation})"
            yield Finding("rotated_image", split, str(path), None, message, index)
        said = (int(raw.widths[index]), int(raw.heights[index]))
        if said not in possible_sizes(file) and said != (0, 0):
            message = f"image is {file.width}x{file.height}, its annotation says {said[0]}x{said[1]}"
            yield Finding("wrong_size", split, *_annotation_place(raw, index), message, index)


def _annotation_place(raw: RawSplit, index: int) -> tuple[str, str | None]:
    """Where the size of an image is said."""
    return (str(raw.annotation_files[index]), "size") if raw.annotation_files else raw.image_place(index)


def possible_sizes(file: ImageFile) -> list[tuple[int, int]]:
    """Sizes that an annotation may give an image: upright, and as it lies in the file."""
    upright = (file.width, file.height)
    return [upright, upright[::-1]] if file.orientation in QUARTER_TURNS else [upright]


def object_findings(split: str, raw: RawSplit, broken: set[int]) -> Iterator[Finding]:
    """Images without an object.

    Args:
        split: its name.
        raw: the split.
        broken: images of which something worse was found.
    """
    counts = np.bincount(raw.image_index[raw.image_index >= 0], minlength=len(raw))
    for index in np.flatnonzero(counts == 0).tolist():
        if index in broken:
            continue
        without_file = raw.annotation_files and not raw.annotation_files[index].exists()
        message = f"has no label file ({raw.annotation_files[index]})" if without_file else "has no object"
        yield Finding("image_without_objects", split, str(raw.path(index)), None, message, index)


def stray_findings(raws: Mapping[str, RawSplit]) -> Iterator[Finding]:
    """Image files that no split names, and annotation files of images that are not there."""
    listed = {path for raw in raws.values() for path in raw.paths()}
    annotations = {file for raw in raws.values() for file in raw.annotation_files}
    folders = sorted({Path(folder) for raw in raws.values() for folder in raw.folders})
    stems = set()
    for path in sorted({path for folder in folders for path in _files_below(folder)}):
        if path.suffix.lower() in SUFFIXES:
            stems.add(path.stem)
            if path not in listed:
                yield Finding("unlisted_image", "", printable(path), None, "no split names this image")
    suffixes = {file.parent: file.suffix for file in annotations}
    # label folders may lie in each other
    below = {path for folder, suffix in suffixes.items() for path in _files_below(folder) if path.suffix == suffix}
    for path in sorted(below - annotations):
        if path.stem not in stems | {"classes"}:
            yield Finding("annotation_without_image", "", printable(path), None, "there is no image of this name")


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def duplicate_findings(raws: Mapping[str, RawSplit], files: Mapping[Path, ImageFile | None]) -> Iterator[Finding]:
    """Images that two splits share, and identical files in one split.

    The finding is of the image in the earlier split (train before val before test), which is the one to give up: what
    is measured on must not have been learned.

    Args:
        raws: splits, in the order train, val, test.
        files: what each path holds; None for a file that is missing.
    """
    usable: dict[str, list[tuple[int, Path, ImageFile]]] = {}
    for split, raw in raws.items():
        pairs = [(index, path, files[path]) for index, path in enumerate(raw.paths())]
        usable[split] = [(i, path, file) for i, path, file in pairs if file is not None and file.fault is None]
        yield from _identical(split, usable[split])
    splits = list(usable)
    for at, earlier in enumerate(splits):
        told: set[int] = set()
        for later in splits[at + 1 :]:
            for index, path, other, why in _shared(usable[earlier], usable[later]):
                if index not in told:
                    told.add(index)
                    message = f"is also in {later}: {other} ({why})"
                    yield Finding("in_two_splits", earlier, str(path), None, message, index)


def _identical(split: str, files: list[tuple[int, Path, ImageFile]]) -> Iterator[Finding]:
    seen: dict[bytes, Path] = {}
    for index, path, file in files:
        first = seen.setdefault(file.digest, path)
        if first != path:
            yield Finding("same_image_twice", split, str(path), None, f"the same file as {first}", index)


def _shared(
    ours: list[tuple[int, Path, ImageFile]], theirs: list[tuple[int, Path, ImageFile]]
) -> Iterator[tuple[int, Path, Path, str]]:
    """(place, path, path of the other, why) of each of our images that is also among theirs."""
    by_digest: dict[bytes, Path] = {}
    for _, path, file in theirs:
        by_digest.setdefault(file.digest, path)
    seen = [
        [(i, path, file.fingerprint) for i, path, file in side if file.fingerprint is not None]
        for side in (ours, theirs)
    ]
    prints = [np.array([mark for _, _, mark in side], np.uint64).reshape(-1, 4) for side in seen]
    twins: dict[int, tuple[int, Path]] = defaultdict(lambda: (256, Path()))  # the nearest of each
    for mine, other in find_near_duplicates(prints[0], prints[1]).tolist():
        distance = int(bit_distances(prints[0][mine : mine + 1], prints[1][other : other + 1])[0, 0])
        place = seen[0][mine][0]
        twins[place] = min(twins[place], (distance, seen[1][other][1]))
    for index, path, file in ours:
        if file.digest in by_digest:
            twin = by_digest[file.digest]
            yield index, path, twin, "the same file" if twin == path else "the same bytes"
        elif index in twins:
            distance, twin = twins[index]
            yield index, path, twin, f"the same picture: {distance} of 255 bits differ"
