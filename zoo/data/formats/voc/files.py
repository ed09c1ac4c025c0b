"""Find the xml files and the images of a split in VOC format.

An image has the name of its xml file without the suffix. Where there is no such image, as after images were renamed, it
is the image that <filename> or <path> in the xml file names.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from zoo.data.formats.raw import ListedTwiceError, OnError
from zoo.data.formats.voc.annotation_file import VocFile
from zoo.data.images import SUFFIXES, require_utf8_name, walk_files
from zoo.data.source import read_text
from zoo.errors import InputError

# second word of a line in a split file of one class: has objects of the class, has none, has only difficult ones
_CLASS_FLAGS = frozenset({"1", "-1", "0"})


@dataclass(frozen=True)
class FoundImages:
    """Images of a split.

    Args:
        paths: one for each xml file; a path that does not exist where no image was found.
        renamed: indices of the images that were found by <filename> or <path>.
    """

    paths: list[Path]
    renamed: list[int]


def split_file(root: str | Path, split: str) -> Path:
    """Path of the file that lists the images of a split: in `ImageSets/Main`, or in `ImageSets` if it is only there."""
    path, above = Path(root, "ImageSets", "Main", f"{split}.txt"), Path(root, "ImageSets", f"{split}.txt")
    return above if above.is_file() and not path.is_file() else path


def read_split(path: Path, annotations: Path, on_error: OnError) -> list[str]:
    """Unique names of a split file: paths of xml files below `annotations`, without suffix.

    A line is one name, which may have blanks and may be in double quotes. The second word of the lines of a split file
    of one class (1, -1 or 0) and the suffix of an image are not part of the name, unless there is such an xml file.
    """
    lines = [line.strip() for line in read_text(path, "split file").splitlines()]
    seen: dict[str, None] = {}
    for number, line in enumerate(filter(None, lines), start=1):
        name = _listed_name(line, annotations)
        if name in seen:
            on_error(ListedTwiceError(f"image {name} is listed twice", path, f"entry {number}"))
        seen[name] = None
    return list(seen)


def _listed_name(line: str, annotations: Path) -> str:
    name = line
    words = line.rsplit(maxsplit=1)
    if len(words) == 2 and words[1] in _CLASS_FLAGS:
        name = words[0]
    if len(name) > 2 and name[0] == name[-1] == '"':
        name = name[1:-1]
    choices = dict.fromkeys([line, name, _without_suffix(name)])
    if len(choices) == 1:
        return line
    return next((choice for choice in choices if Path(annotations, f"{choice}.xml").exists()), name)


def list_xml_files(folder: Path) -> list[Path]:
    """All xml files below a folder, sorted by path, without hidden files and folders.

    Raises:
        InputError: there is no xml file, or the name of one is not UTF-8.
    """
    found = sorted(path for path in walk_files(folder) if is_xml(path) and not is_hidden(path.relative_to(folder)))
    if not found:
        raise InputError("no xml file in this folder", folder)
    for path in found:
        require_utf8_name(path.relative_to(folder), folder)
    return found


def is_xml(path: Path) -> bool:
    """Whether a file has the suffix `.xml`, in upper or lower case."""
    return path.suffix.lower() == ".xml"


def is_hidden(path: Path) -> bool:
    """Whether a relative path has a part that operating systems hide, such as `._a.xml` in archives of macOS."""
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def find_images(
    folder: Path, names: Sequence[str], files: Sequence[Path], contents: Sequence[VocFile], on_error: OnError
) -> FoundImages:
    """Image of each xml file.

    Args:
        folder: folder of the images, which may be in sub-folders.
        names: paths of the xml files relative to the folder of annotations, without suffix. An image of this path below
            `folder` comes first, then one of this base name in another sub-folder of `folder`.
        files: xml files, for messages.
        contents: content of each xml file.
        on_error: called with the error for each xml file with several possible images; the first of them is then used.
    """
    listings: dict[Path, dict[str, list[str]]] = {}  # folder -> stem -> file names
    paths: list[Path] = []
    missing: list[int] = []
    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        expected = Path(folder, name)
        if expected.parent not in listings:
            listings[expected.parent] = _list_by_stem(expected.parent)
        here = listings[expected.parent].get(expected.name, [])
        if here:
            chosen = here[0] if len(here) == 1 else next((n for n in here if n in content.image_names), here[0])
            paths.append(expected.with_name(chosen))
        else:
            suffixes = (PurePosixPath(image).suffix for image in content.image_names)
            suffix = next((suffix for suffix in suffixes if suffix.lower() in SUFFIXES), ".jpg")
            paths.append(expected.with_name(expected.name + suffix))
            missing.append(index)
    if not missing:
        return FoundImages(paths, [])
    below: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(folder):
        if path.suffix.lower() in SUFFIXES:
            below[path.stem].append(path)
    renamed = []
    for index in missing:
        own = PurePosixPath(names[index])
        for stem in dict.fromkeys([own.name, *map(_without_suffix, contents[index].image_names)]):
            found = _nearest(below.get(stem, []), Path(folder, own), contents[index].image_names)
            if not found:
                continue
            if len(found) > 1:
                listed = " and ".join(map(str, found[:2]))
                message = f"{len(found)} images have the name of this file ({listed}); keep one"
                on_error(InputError(message, files[index]))
            paths[index] = found[0]
            if stem != own.name:
                renamed.append(index)
            break
    return FoundImages(paths, renamed)


def _list_by_stem(folder: Path) -> dict[str, list[str]]:
    """Stem -> names of the images in a folder, sorted (a.jpg before a.png)."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    try:
        with os.scandir(folder) as entries:
            present = sorted(entry.name for entry in entries)
    except OSError:
        return {}  # `check_files` reports missing images
    for name in present:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            by_stem[stem].append(name)
    return by_stem


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of equal items at the end of two sequences."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _nearest(candidates: list[Path], expected: Path, image_names: Sequence[str]) -> list[Path]:
    """Candidates with a name in the xml file, if any, and of these the ones whose folders end as the expected ones."""
    named = [path for path in candidates if path.name in image_names] or candidates
    if len(named) <= 1:
        return named
    lengths = [_common_end(expected.parent.parts, path.parent.parts) for path in named]
    return [path for path, length in zip(named, lengths, strict=True) if length == max(lengths)]
