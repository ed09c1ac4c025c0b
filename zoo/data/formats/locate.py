"""Find image files that are not where the annotations say.

Annotations name images as the computer that wrote them saw these: with backslashes, as URLs, below a folder of another
machine, or relative to another folder. Where a listed file does not exist, it is searched for below the data set by its
base name, and among several files of that name by the longest common end of both paths.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from zoo.data.images import SUFFIXES
from zoo.data.source import find_missing


@dataclass(frozen=True)
class Located:
    """Image files of a split.

    Args:
        paths: one for each listed name; the path as listed where no file was found.
        note: what was done about names that are not paths of files, in one sentence; "" if nothing was.
    """

    paths: list[Path]
    note: str = ""


def locate_images(names: Sequence[str], folder: Path, root: Path) -> Located:
    """Paths of listed images, relative to `folder` where they exist there, else found below `root`.

    Args:
        names: as listed in the annotations.
        folder: that the names should be relative to.
        root: folder of the data set, which is searched at any depth.
    """
    paths = [folder / name for name in names]
    missing = find_missing(paths)
    if not missing:
        return Located(paths)
    index = _index_images(root)
    found: dict[int, Path] = {}
    ambiguous: dict[int, list[Path]] = {}
    for place in missing:
        candidates = _best_matches(names[place], index)
        if len(candidates) == 1:
            found[place] = candidates[0]
        elif candidates:
            ambiguous[place] = candidates
    used = Counter(path.parent for place, path in enumerate(paths) if place not in set(missing))
    used.update(path.parent for path in found.values())
    for place, candidates in ambiguous.items():
        most = max(used[path.parent] for path in candidates)
        likely = [path for path in candidates if used[path.parent] == most]
        if most and len(likely) == 1:  # one folder holds the other images of the split
            found[place] = likely[0]
    for place, path in found.items():
        paths[place] = path
    if not found:
        return Located(paths)
    first = min(found)
    return Located(
        paths,
        f"{len(found)} of {len(names)} images are not in {folder} under their listed names and were found by base name"
        f" below {root}, the first {names[first]} as {os.path.relpath(found[first], root)}",
    )


def name_variants(name: str) -> list[PurePosixPath]:
    """A listed name, with separators of POSIX, as it is and decoded from a URL; without drive, host and query."""
    variants = [name.replace("\\", "/")]
    if "%" in name or "://" in name:
        parts = urlsplit(variants[0])
        variants.append(unquote(parts.path if parts.scheme in ("http", "https", "file", "s3", "gs") else variants[0]))
    return [PurePosixPath(variant) for variant in dict.fromkeys(variants)]


def _best_matches(name: str, index: dict[str, list[Path]]) -> list[Path]:
    """Files with the base name of a listed name whose paths have the longest common end with it."""
    for variant in name_variants(name):
        candidates = index.get(variant.name, [])
        if candidates:
            lengths = [_common_end(variant.parts, path.parts) for path in candidates]
            return [path for path, length in zip(candidates, lengths, strict=True) if length == max(lengths)]
    return []


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    length = 0
    for ours, theirs in zip(reversed(one), reversed(other), strict=False):
        if ours != theirs:
            break
        length += 1
    return length


def _index_images(root: Path) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(root):
        if path.suffix.lower() in SUFFIXES:
            index[path.name].append(path)
    return dict(index)


def walk_files(root: Path) -> Iterable[Path]:
    """Files below a folder, sorted within each folder; follows symbolic links, and enters each real folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))
