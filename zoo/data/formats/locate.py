"""Find image files that are not where the annotations say.

Annotations name images as the computer that wrote them saw these: with backslashes, as URLs, below a folder of another
machine, or relative to another folder. Where a listed file does not exist, it is searched for below the data set by its
base name, and among several files of that name by the longest common end of both paths.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.images import SUFFIXES, walk_files
from zoo.data.source import find_missing
from zoo.io.paths import best_matches


@dataclass(frozen=True)
class Located:
    """Image files of a split.

    Args:
        listed: path of each listed name, the folder of the images joined with it.
        found: path of each that was found elsewhere, by its index.
        note: what was done about names that are not paths of files, in one sentence; "" if nothing was.
    """

    listed: list[str]
    found: dict[int, Path]
    note: str = ""

    @property
    def paths(self) -> list[Path]:
        """One for each name; the path as listed where no file was found."""
        return [self.found.get(index) or Path(path) for index, path in enumerate(self.listed)]


def locate_images(names: Sequence[str], folder: Path, root: Path) -> Located:
    """Paths of listed images, relative to `folder` where they exist there, else found below `root`.

    Args:
        names: as listed in the annotations.
        folder: that the names should be relative to.
        root: folder of the data set, which is searched at any depth.
    """
    listed = [os.path.join(folder, name) for name in names]  # texts: a Path for each takes a second for COCO's
    missing = find_missing(listed)
    index = _index_images(root) if missing else {}
    if not index:
        return Located(listed, {})
    found: dict[int, Path] = {}
    ambiguous: dict[int, list[Path]] = {}
    absent = set(missing)
    folders = [os.path.dirname(path) for path in listed]
    parents = {path: Path(path) for path in set(folders)}
    used = Counter(parents[path] for place, path in enumerate(folders) if place not in absent)
    used_folders = set(used)
    for place in missing:
        candidates = best_matches(names[place], index)
        parent = parents[folders[place]]
        if parent in used_folders:
            # The folder is right, so the file is missing, and one of its name elsewhere is another image.
            candidates = [path for path in candidates if path.parent == parent]
        if len(candidates) == 1:
            found[place] = candidates[0]
        elif candidates:
            ambiguous[place] = candidates
    used.update(path.parent for path in found.values())
    for place, candidates in ambiguous.items():
        most = max(used[path.parent] for path in candidates)
        likely = [path for path in candidates if used[path.parent] == most]
        if most and len(likely) == 1:  # one folder holds the other images of the split
            found[place] = likely[0]
    if not found:
        return Located(listed, found)
    first = min(found)
    return Located(
        listed,
        found,
        f"{len(found)} of {len(names)} images are not in {folder} under their listed names and were found by base name"
        f" below {root}, the first {names[first]} as {os.path.relpath(found[first], root)}",
    )


def find_images(name: str, root: Path) -> list[Path]:
    """Image files below `root` that a listed name may mean; see `best_matches`."""
    return best_matches(name, _index_images(root))


def _index_images(root: Path) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(root):
        if path.suffix.lower() in SUFFIXES:
            index[path.name].append(path)
    return dict(index)
