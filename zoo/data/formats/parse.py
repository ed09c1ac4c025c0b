"""Any source in its raw form, and the splits of a data set brought together."""

from collections.abc import Callable, Mapping

import numpy as np

from zoo.data.formats.coco import Coco, parse_coco
from zoo.data.formats.raw import Complain, RawSplit, raw_from_table
from zoo.data.formats.voc import Voc, infer_classes, parse_voc
from zoo.data.formats.yolo import Yolo, parse_yolo
from zoo.data.source import Source

LEARNED = ("train", "trainval")
"""Splits that are learned from."""


def parse_splits(sources: Mapping[str, Source], complain: Callable[[str], Complain]) -> dict[str, RawSplit]:
    """What the files of all splits say, true or not.

    As for a DataModule, a list of classes that the first split was given counts where another has none.

    Args:
        sources: of each split.
        complain: split -> who is told of what cannot be parsed and is left out.

    Raises:
        InputError: a source cannot be read at all.
    """
    settled: tuple[str, ...] | None = None
    raws: dict[str, RawSplit] = {}
    for number, (split, source) in enumerate(sources.items()):
        raws[split] = parse_source(source, complain(split), settled)
        if number == 0 and getattr(source, "classes", ()) is not None:
            settled = raws[split].classes
    return raws


def parse_source(source: Source, complain: Complain, classes: tuple[str, ...] | None = None) -> RawSplit:
    """What the files of one source say; `classes` where it has no list of its own.

    Raises:
        InputError: the source cannot be read at all.
    """
    match source:
        case Coco():
            return parse_coco(source.annotations, source.images, complain)
        case Voc():
            names = classes if source.classes is None else tuple(source.classes)
            return parse_voc(source.roots, source.split, names, complain)
        case Yolo():
            return parse_yolo(source.data, source.split, complain)
        case _:
            return raw_from_table(source.read())


def origin(source: Source) -> str:
    """The file or folder that a source is read from; its class's name for images that are made in memory."""
    match source:
        case Coco():
            return source.annotations
        case Voc():
            return ", ".join(map(str, source.roots))
        case Yolo():
            return source.data
        case _:
            return type(source).__name__


def distinct_sources(sources: Mapping[str, Source]) -> dict[str, Source]:
    """Each source once: where `val` and `test` are the same images, they are one split, `val/test`.

    What is learned from stays apart: that it is measured on as well is a fault, which the doctor has to see.
    """
    grouped: dict[tuple[bool, str], tuple[list[str], Source]] = {}
    for split, source in sources.items():
        key = split in LEARNED, repr(source)  # a source may hold lists, which have no hash
        grouped.setdefault(key, ([], source))[0].append(split)
    return {"/".join(splits): source for splits, source in grouped.values()}


def share_classes(raws: Mapping[str, RawSplit], sources: Mapping[str, Source]) -> dict[str, RawSplit]:
    """The splits with labels of one list of classes: the first split's, and what only others name behind it.

    Where no split of a VOC data set was given a list, each has the names that occur in it; together they may be VOC's
    twenty, else they are sorted.
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
