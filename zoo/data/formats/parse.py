"""Parse the splits of a data set in any format, and give them a common list of classes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from zoo.data.formats.coco import Coco, parse_coco
from zoo.data.formats.raw import OnError, RawSplit, raw_from_table
from zoo.data.formats.voc import Voc, infer_classes
from zoo.data.formats.yolo import Yolo, parse_yolo
from zoo.data.source import Source

TRAIN_SPLITS = ("train", "trainval")
"""Names of splits that are used for training."""


def parse_splits(
    sources: Mapping[str, Source], on_error: Callable[[str], OnError], with_masks: bool = False
) -> dict[str, RawSplit]:
    """Parses all splits of a data set, without validation.

    As in a DataModule, splits without a list of classes use that of the first split, if it has one.

    Args:
        sources: source of each split.
        on_error: split -> function that is called with the error for every record that cannot be parsed and is skipped.
        with_masks: whether to read masks, too.

    Raises:
        InputError: a source cannot be read at all.
    """
    first_classes: tuple[str, ...] | None = None
    raws: dict[str, RawSplit] = {}
    for number, (split, source) in enumerate(sources.items()):
        raws[split] = parse_source(source, on_error(split), first_classes, with_masks)
        if number == 0 and getattr(source, "classes", ()) is not None:
            first_classes = raws[split].classes
    return raws


def parse_source(
    source: Source, on_error: OnError, classes: tuple[str, ...] | None = None, with_masks: bool = False
) -> RawSplit:
    """Parses one source, without validation; `classes` is used where it does not define its own.

    Raises:
        InputError: the source cannot be read at all.
    """
    match source:
        case Coco():
            return parse_coco(source.annotations, source.images, on_error, classes, with_masks)
        case Voc():
            return source.parse(classes, on_error, with_masks)
        case Yolo():
            return parse_yolo(source.data, source.split, on_error)
        case _:
            return raw_from_table(source.read(with_masks=with_masks))


def origin(source: Source) -> str:
    """File or folder of a source; the name of its class for images that are generated in memory."""
    match source:
        case Coco():
            return source.annotations
        case Voc():
            where = source.roots if source.split is not None else [Path(r, source.annotations) for r in source.roots]
            return ", ".join(map(str, where))
        case Yolo():
            return source.data
        case _:
            return type(source).__name__


def distinct_sources(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Merges splits with equal sources: where `val` and `test` are the same, they become one split `val/test`.

    Training splits are never merged with others: evaluating on training images is an error that the doctor reports.
    """
    grouped: dict[tuple[bool, str], tuple[list[str], Source]] = {}
    for split, source in sources.items():
        key = split in TRAIN_SPLITS, repr(source)  # a source may hold lists, which have no hash
        grouped.setdefault(key, ([], source))[0].append(split)
    return {"/".join(splits): source for splits, source in grouped.values()}


def share_classes(raws: Mapping[str, RawSplit], sources: Mapping[str, Source]) -> dict[str, RawSplit]:
    """Gives all splits one list of classes: those of the first split, followed by those of the others.

    VOC splits without a list of classes have the class names that occur in them. If no split has a list, the result is
    VOC's twenty classes where these include all names, else the sorted names.
    """
    names = list(dict.fromkeys(name for raw in raws.values() for name in raw.classes))
    lists = {raw.classes for raw in raws.values()}
    if len(lists) <= 1:
        return dict(raws)
    if all(isinstance(source, Voc) and not source.classes for source in sources.values()):
        found = {raw.classes[label] for raw in raws.values() for label in np.unique(raw.labels[raw.labels >= 0])}
        names = list(infer_classes(found))
    ids: dict[str, int] = {}
    for raw in raws.values():
        for name, class_id in zip(raw.classes, raw.class_ids.tolist(), strict=True):
            ids.setdefault(name, class_id)
    given = [ids.get(name, -1) for name in names]
    class_ids = np.array(given if len(set(given)) == len(given) else range(1, len(names) + 1), np.int64)
    return {split: raw.with_classes(tuple(names), class_ids) for split, raw in raws.items()}
