"""Checks of image files: unreadable, different from the annotation, unlisted, or duplicated within or across splits."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data.formats.raw import RawSplit
from zoo.data.formats.yolo.data_file import starts_with_a_row
from zoo.data.images import SUFFIXES, walk_files
from zoo.data.quality.findings import Finding
from zoo.data.quality.image_files import ImageFile, bit_distances, find_near_duplicates
from zoo.data.source import printable

QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def image_findings(split: str, raw: RawSplit, files: Mapping[Path, ImageFile | None]) -> Iterator[Finding]:
    """Images that are missing, cannot be decoded, have an EXIF rotation or unused bits, or another size than annotated.

    Args:
        split: name of the split.
        raw: its parsed content.
        files: properties of each image file; None for missing files.
    """
    if raw.folders and len(raw) and not any(Path(folder).is_dir() for folder in raw.folders):
        yield Finding("missing_image", split, raw.folders[0], None, f"folder of {len(raw)} images is missing")
        return
    for index, path in enumerate(raw.paths()):
        file = files[path]
        if file is None:
            place = ": ".join(part for part in raw.image_place(index) if part)
            yield Finding("missing_image", split, str(path), None, f"no such file; it is listed in {place}", index)
            continue
        if file.error is not None:
            yield Finding("broken_image", split, str(path), None, file.error, index)
            continue
        if file.orientation != 1:
            message = f"has an EXIF rotation (orientation {file.orientation})"
            yield Finding("rotated_image", split, str(path), None, message, index)
        if file.unused_bits:
            bits = 16 - file.unused_bits
            message = f"has no value above {(1 << bits) - 1} and is read as an image of {bits} bits"
            yield Finding("unused_bits", split, str(path), None, message, index)
        annotated = (int(raw.widths[index]), int(raw.heights[index]))
        if annotated not in possible_sizes(file) and annotated != (0, 0):
            message = f"image is {file.width}x{file.height}, its annotation says {annotated[0]}x{annotated[1]}"
            yield Finding("wrong_size", split, *_annotation_place(raw, index), message, index)


def _annotation_place(raw: RawSplit, index: int) -> tuple[str, str | None]:
    """File and place of the annotated size of an image."""
    return (str(raw.annotation_files[index]), "size") if raw.annotation_files else raw.image_place(index)


def possible_sizes(file: ImageFile) -> list[tuple[int, int]]:
    """Valid annotated sizes of an image: with or without EXIF rotation."""
    upright = (file.width, file.height)
    return [upright, upright[::-1]] if file.orientation in QUARTER_TURNS else [upright]


def object_findings(split: str, raw: RawSplit, broken: set[int]) -> Iterator[Finding]:
    """Images without objects.

    Args:
        split: name of the split.
        raw: its parsed content.
        broken: images with errors, which are skipped.
    """
    counts = np.bincount(raw.image_index[raw.image_index >= 0], minlength=len(raw))
    for index in np.flatnonzero(counts == 0).tolist():
        if index in broken:
            continue
        without_file = raw.annotation_files and not raw.annotation_files[index].exists()
        message = f"has no label file ({raw.annotation_files[index]})" if without_file else "has no object"
        yield Finding("image_without_objects", split, str(raw.path(index)), None, message, index)


def stray_findings(raws: Mapping[str, RawSplit]) -> Iterator[Finding]:
    """Image files that are in no split, and annotation files without an image."""
    listed = {path for raw in raws.values() for path in raw.paths()}
    annotations = {file for raw in raws.values() for file in raw.annotation_files}
    folders = sorted({Path(folder) for raw in raws.values() for folder in raw.folders})
    stems = set()
    for path in sorted({path for folder in folders for path in _files_below(folder)}):
        if path.suffix.lower() in SUFFIXES:
            stems.add(path.stem)
            if path not in listed:
                yield Finding("unlisted_image", "", printable(path), None, "this image is in no split")
    suffixes = {file.parent: file.suffix for file in annotations}
    # label folders may be nested
    below = {path for folder, suffix in suffixes.items() for path in _files_below(folder) if path.suffix == suffix}
    places = {path.parent for path in listed}
    for path in sorted(below - annotations):
        if path.suffix == ".txt" and path.parent in places and not starts_with_a_row(path):
            continue  # beside images there are other texts too
        if path.stem not in stems | {"classes"}:
            yield Finding("annotation_without_image", "", printable(path), None, "there is no image with this name")


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in walk_files(folder) if path.is_file()) if folder.is_dir() else []


def duplicate_findings(raws: Mapping[str, RawSplit], files: Mapping[Path, ImageFile | None]) -> Iterator[Finding]:
    """Duplicates and near-duplicates across splits, and identical files within a split.

    Reports the image in the earlier split (train before val before test), which is the one to remove: evaluation images
    must not be used for training.

    Args:
        raws: splits, in the order train, val, test.
        files: properties of each image file; None for missing files.
    """
    usable: dict[str, list[tuple[int, Path, ImageFile]]] = {}
    for split, raw in raws.items():
        pairs = [(index, path, files[path]) for index, path in enumerate(raw.paths())]
        usable[split] = [(i, path, file) for i, path, file in pairs if file is not None and file.error is None]
        yield from _identical(split, usable[split])
    splits = list(usable)
    for at, earlier in enumerate(splits):
        reported: set[int] = set()
        for later in splits[at + 1 :]:
            for index, path, other, reason, is_identical in _shared(usable[earlier], usable[later]):
                if index not in reported:
                    reported.add(index)
                    kind = "in_two_splits" if is_identical else "near_duplicate_in_two_splits"
                    yield Finding(kind, earlier, str(path), None, f"is also in {later}: {other} ({reason})", index)


def _identical(split: str, files: list[tuple[int, Path, ImageFile]]) -> Iterator[Finding]:
    seen: dict[bytes, Path] = {}
    for index, path, file in files:
        first = seen.setdefault(file.digest, path)
        if first != path:
            yield Finding("same_image_twice", split, str(path), None, f"the same file as {first}", index)


def _shared(
    ours: list[tuple[int, Path, ImageFile]], theirs: list[tuple[int, Path, ImageFile]]
) -> Iterator[tuple[int, Path, Path, str, bool]]:
    """(index, path, other path, reason, whether identical) of each of `ours` with a (near-)duplicate in `theirs`."""
    by_digest: dict[bytes, Path] = {}
    for _, path, file in theirs:
        by_digest.setdefault(file.digest, path)
    sides = [
        [(i, path, file.fingerprint) for i, path, file in side if file.fingerprint is not None]
        for side in (ours, theirs)
    ]
    fingerprints = [np.array([value for _, _, value in side], np.uint64).reshape(-1, 4) for side in sides]
    nearest: dict[int, tuple[int, Path]] = defaultdict(lambda: (256, Path()))  # index -> (distance, other path)
    for row, other in find_near_duplicates(fingerprints[0], fingerprints[1]).tolist():
        distance = int(bit_distances(fingerprints[0][row : row + 1], fingerprints[1][other : other + 1])[0, 0])
        index = sides[0][row][0]
        nearest[index] = min(nearest[index], (distance, sides[1][other][1]))
    for index, path, file in ours:
        if file.digest in by_digest:
            other_path = by_digest[file.digest]
            yield index, path, other_path, "the same file" if other_path == path else "the same bytes", True
        elif index in nearest:
            distance, other_path = nearest[index]
            yield index, path, other_path, f"near-duplicate: {distance} of 255 fingerprint bits differ", False
