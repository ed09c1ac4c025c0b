"""Recognise the layouts of folders with xml files in PASCAL VOC format.

VOC itself: JPEGImages, Annotations and ImageSets/Main, or a devkit of such folders. LabelImg, Roboflow and others: xml
files beside the images, or a folder of xml files beside a folder of images; splits, if any, are sub-folders.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zoo.data.formats.voc import Voc
from zoo.data.formats.voc.files import is_hidden, is_xml, split_file
from zoo.data.images import SUFFIXES, walk_files
from zoo.errors import InputError

_ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "annots", "annot", "xml", "xmls", "labels", "label"})
_IMAGE_FOLDERS = frozenset({"jpegimages", "images", "image", "imgs", "img", "pictures", "photos", "frames"})
_SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class _Folders:
    """Names of the folders of images and annotations in a VOC folder."""

    images: str
    annotations: str


_STANDARD = _Folders("JPEGImages", "Annotations")
# bytes at the start of an xml file that are searched for its first tag
_BEGINNING = 1 << 12


def find_voc(path: Path) -> dict[str, Voc]:
    """Splits of a VOC folder or a devkit; empty if the folder is neither.

    Raises:
        InputError: the folder has JPEGImages and Annotations, but neither a split file nor an xml file.
    """
    return _voc_folder(path) or _voc_devkit(path)


def _voc_folder(path: Path) -> dict[str, Voc]:
    names = _folder_names(path)
    if names is None:
        return {}
    return {
        split: Voc([str(path)], split, images=names.images, annotations=names.annotations)
        for split in _listed_splits(path)
    }


def _voc_devkit(path: Path) -> dict[str, Voc]:
    for folder in filter(Path.is_dir, (path / "VOCdevkit", path)):
        roots = [root for root in sorted(folder.iterdir()) if root.is_dir() and _listed_splits(root)]
        found: dict[str, Voc] = {}
        for split in sorted({split for root in roots for split in _listed_splits(root)}):
            having = [root for root in roots if split_file(root, split).is_file()]
            names = {_folder_names(root) for root in having}
            first = names.pop()
            if names or first is None:
                raise InputError("its folders have different names for images and annotations", folder)
            found[split] = Voc(list(map(str, having)), split, images=first.images, annotations=first.annotations)
        if found:
            for root in sorted(folder.iterdir()):
                if root not in roots and _folder_names(root) == _STANDARD:
                    raise InputError("has no split in ImageSets/Main, unlike the folders beside it", root)
            return found
    return {}


def _folder_names(root: Path) -> _Folders | None:
    """Names of the folders of images and annotations of a VOC folder; None for other folders."""
    if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
        return _STANDARD
    if not (root / "ImageSets").is_dir():
        return None
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    images = [name for name in names if name.lower() in _IMAGE_FOLDERS]
    annotations = [name for name in names if name.lower() in _ANNOTATION_FOLDERS]
    if not images or not annotations:
        return None
    return _Folders(images[0], annotations[0])


def _listed_splits(root: Path) -> list[str]:
    """Splits of a VOC folder: files in ImageSets except those of a single class (`cat_train.txt`)."""
    folders = _folder_names(root)
    if folders is None:
        return []
    lists = root / "ImageSets"
    names = [file.stem for file in sorted((lists / "Main").glob("*.txt")) or sorted(lists.glob("*.txt"))]
    if not names and folders == _STANDARD and not any(map(is_xml, walk_files(root / "Annotations"))):
        raise InputError("has Annotations and JPEGImages, but no split in ImageSets/Main and no xml file", root)
    return [name for name in names if not any(name.endswith(f"_{other}") for other in names)]


def find_xml_folders(path: Path) -> dict[str, Voc]:
    """Splits of a folder with VOC's xml files at any depth, and without split files; empty if it has none.

    Sub-folders are splits where each xml file is below a folder whose name has the word train, val or test (or valid,
    validation and so on); else all xml files are one split `all`.
    """
    files = [file for file in walk_files(path) if is_xml(file) and not is_hidden(file.relative_to(path))]
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    by_folder = {folder: files for folder, files in by_folder.items() if any(map(_is_annotation, files))}
    if not by_folder or any(b"names:" in file.read_bytes() for file in path.glob("*.y*ml")):  # YOLO's data yaml
        return {}
    splits: dict[str, list[Path]] = {}
    for folder in by_folder:
        found = _split_folder(folder, path)
        if found is None:
            return {"all": _source([_common_folder(by_folder)], path)}
        split, split_folder = found
        if split_folder not in splits.setdefault(split, []):
            splits[split].append(split_folder)
    if not splits.keys() & {"train", "trainval"}:
        return {"all": _source([_common_folder(by_folder)], path)}
    return {split: _source(folders, path) for split, folders in splits.items()}


def _is_annotation(path: Path) -> bool:
    """Whether an xml file is an <annotation>; files that are damaged before their first tag are not."""
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        start = start.decode("utf-16", "ignore").encode()
    first_tag = re.search(rb"<\s*([^\s<>?!/]+)", re.sub(rb"<!--.*?-->", b"", start, flags=re.DOTALL))
    return first_tag is not None and first_tag[1] == b"annotation"


def _split_folder(folder: Path, root: Path) -> tuple[str, Path] | None:
    """(split, folder that is named like it) of a folder below `root`; None if no part of its path is a split."""
    parts = folder.relative_to(root).parts
    for number, part in enumerate(parts, start=1):
        splits = [_SPLITS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in _SPLITS]
        if splits:
            return splits[-1], Path(root, *parts[:number])
    return None


def _common_folder(folders: Iterable[Path]) -> Path:
    first, *others = folders
    common = first
    while not all(folder.is_relative_to(common) for folder in others):
        common = common.parent
    return common


def _source(folders: list[Path], root: Path) -> Voc:
    """All xml files below the folders of a split, with the folder of their images.

    Raises:
        InputError: several folders have their images in different places.
    """
    if len(folders) == 1:
        images = _image_folder(folders[0], root)
        common = _common_folder([folders[0], images])
        names = [folder.relative_to(common).as_posix() for folder in (images, folders[0])]
        return Voc([str(common)], None, images=names[0], annotations=names[1])
    places = [(folder, _image_folder(folder, root)) for folder in folders]
    if all(folder == images for folder, images in places):
        return Voc(list(map(str, folders)), None, images=".", annotations=".")
    listed = " and ".join(str(folder) for folder in folders[:2])
    raise InputError(f"{listed} are folders of one split with images elsewhere; give each as a root of `Voc`", root)


def _image_folder(annotations: Path, root: Path) -> Path:
    """Folder of the images of the xml files below a folder: the first likely one that has an image of their names.

    Folders that are named like another split are left out, since splits may have images of the same name.
    """
    stems = {file.stem for file in walk_files(annotations) if is_xml(file)}
    # a folder of xml files that was given itself has its images beside it
    candidates = _beside(annotations, root.parent if annotations == root else root)
    candidates += [folder for folder in annotations.parents if folder.is_relative_to(root)]
    own = _split_below(annotations, root)
    for any_name in (False, True):  # images may have other names than their xml files
        if _folders_of_images(annotations, stems, any_name):
            return annotations
        for folder in candidates:
            found = _folders_of_images(folder, stems, any_name)
            same = [one for one in found if _split_below(one, root) == own]
            neutral = [one for one in found if _split_below(one, root) is None]
            if same or neutral:
                return _common_folder(same or neutral)
    return annotations


def _folders_of_images(folder: Path, stems: set[str], any_name: bool) -> list[Path]:
    """Folders at or below `folder` with an image that is named like an xml file, or with any image."""
    images = (path for path in walk_files(folder) if path.suffix.lower() in SUFFIXES)
    return list(dict.fromkeys(path.parent for path in images if any_name or path.stem in stems))


def _split_below(folder: Path, root: Path) -> str | None:
    found = _split_folder(folder, root) if folder.is_relative_to(root) else None
    return None if found is None else found[0]


def _beside(annotations: Path, root: Path) -> list[Path]:
    """Folders of images that correspond to a folder of xml files: `images/train` for `annotations/train`."""
    parts = annotations.relative_to(root).parts
    found: list[Path] = []
    for number in reversed(range(len(parts))):
        above = Path(root, *parts[:number])
        words = re.split(r"[^a-z]+", parts[number].lower())
        if not _ANNOTATION_FOLDERS.intersection(words):
            continue
        others = sorted(folder for folder in above.iterdir() if folder.is_dir() and folder.name != parts[number])
        likely = [folder for folder in others if _is_counterpart(folder.name, parts[number])]
        found += [
            Path(folder, *parts[number + 1 :]) for folder in likely if Path(folder, *parts[number + 1 :]).is_dir()
        ]
        found += likely
    return found


def _is_counterpart(images: str, annotations: str) -> bool:
    """Whether two folder names differ only in the word for images or annotations (`train_images`, `train_labels`)."""
    ours, theirs = (re.findall(r"[a-z]+|\d+", name.lower()) for name in (images, annotations))
    is_image = [word in _IMAGE_FOLDERS for word in ours]
    rest = [word for word, is_word in zip(ours, is_image, strict=True) if not is_word]
    return any(is_image) and rest == [word for word in theirs if word not in _ANNOTATION_FOLDERS]
