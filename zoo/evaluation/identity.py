"""Write predictions with names, read those of any program, and match their images and classes to those of a data set.

Numbers that stand for images and classes differ between programs, names do not. Images are matched by the first of
these rules that a file allows, and classes likewise:

    1. `file_name` of an entry                        1. `category_name` of an entry
    2. `file_name` in the file's list `images`        2. `name` in the file's list `categories`
    3. `image_id` as the stem of a file name          3. `category_id` as a name
    4. `image_id` as an id of the data set            4. `category_id` as an id of the data set

Rules 3 and 4 are guesses: the one that matches more entries is used, and where both match all and differ, the one with
which more detections overlap an object. A guess that leaves most entries unmatched, or that fits far worse than the
same numbers shifted by one, is refused.

Legend: D detections, N images and T objects of the data set.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from zoo.errors import InputError
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.results_file import ResultsFile, read_results_file, write_coco_results
from zoo.io.paths import best_matches

if TYPE_CHECKING:
    from zoo.data.table import AnnotationTable

_SAMPLED = 20_000  # highest-scoring detections that decide between two guesses
_OVERLAP = 0.5  # IoU
_FAR_WORSE = 0.5  # of the overlapping detections of the other guess


@dataclass(frozen=True)
class MatchedPredictions:
    """Predictions with image ids and labels of a data set.

    Args:
        predictions: those of images and classes of the data set.
        notes: how they were matched, and what is wrong with them, a sentence each.
        warnings: what makes the metrics meaningless, a sentence each.
    """

    predictions: Predictions
    notes: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class _Match:
    """One way to match entries: what each entry has, and its index in the data set, -1 where unmatched."""

    keys: Sequence[str | int]
    index: Int64[np.ndarray, " D"]
    rule: str

    @property
    def num_matched(self) -> int:
        return int((self.index >= 0).sum())


def write_predictions(predictions: Predictions, path: str | Path, table: "AnnotationTable") -> None:
    """Write detections of a data set as COCO-results json, with the names of its files and classes.

    Raises:
        InputError: see `write_coco_results`.
    """
    file_names = {image_id: table.file_name(index) for index, image_id in enumerate(table.image_ids.tolist())}
    write_coco_results(predictions, path, table.class_ids, file_names, table.classes)


def read_predictions(path: str | Path, table: "AnnotationTable") -> MatchedPredictions:
    """Read a predictions file of any program for a data set.

    Args:
        path: COCO-results json: a list of `image_id`, `category_id`, `bbox` [x, y, w, h] and `score`, with or without
            `segmentation` (run lengths), `file_name` and `category_name`; or an object with this list as
            `annotations`, and with `images` and `categories`.
        table: annotations of the images.

    Raises:
        InputError: the file cannot be read, most entries match no image or class, another numbering fits better, or a
            mask is not of its image's size.
    """
    results = read_results_file(path)
    images = _choose(
        _match_images(results, table),
        lambda match: _count_overlaps(results, match.index, None, table),
        path,
        "image",
    )
    classes = _choose(
        _match_classes(results, table),
        lambda match: _count_overlaps(results, images.index, match.index, table),
        path,
        "category",
    )
    _refuse_shifted_images(results, images, table, path)
    notes = [_describe(images, "image"), _describe(classes, "category"), *_describe_scores(results)]
    kept = np.flatnonzero((images.index >= 0) & (classes.index >= 0))
    predictions = Predictions(
        image_ids=table.image_ids[images.index[kept]],
        boxes=results.boxes[kept],
        scores=results.scores[kept],
        labels=classes.index[kept],
        masks=None if results.masks is None else results.masks.select(kept),
    )
    _check_mask_sizes(results, images, table, path)
    warnings = [*_describe_boxes(predictions, table), *_describe_shifted_classes(results, images, classes, table)]
    return MatchedPredictions(predictions, notes, warnings)


# ----------------------------------------------------------------------------------------------------------- matching


def _match_images(results: ResultsFile, table: "AnnotationTable") -> list[_Match]:
    names = [table.file_name(index) for index in range(len(table))]
    by_base: dict[str, list[PurePosixPath]] = defaultdict(list)
    for name in names:
        by_base[PurePosixPath(name).name].append(PurePosixPath(name))
    numbers = {PurePosixPath(name): index for index, name in enumerate(names)}

    def of_name(name: str | int) -> int:
        found = best_matches(str(name), by_base)
        return numbers[found[0]] if len(found) == 1 else -1

    if results.file_names is not None:
        return [_match(results.file_names, of_name, "by `file_name`")]
    if results.listed_images is not None:
        listed = results.listed_images
        return [_match(results.image_keys, lambda key: of_name(listed.get(key, "")), "by the file's list `images`")]
    stems: dict[str | int, int] = {}
    for index, name in enumerate(names):
        stem = PurePosixPath(name).stem
        for key in (stem, int(stem)) if stem.isdecimal() else (stem, name, PurePosixPath(name).name):
            stems[key] = -1 if key in stems else index  # two files of one stem are none
    ids = {image_id: index for index, image_id in enumerate(table.image_ids.tolist())}
    return [
        _match(results.image_keys, lambda key: stems.get(key, -1), "by `image_id` as the stem of a file name"),
        _match(results.image_keys, lambda key: ids.get(_as_int(key), -1), "by `image_id` as an id of the data set"),
    ]


def _match_classes(results: ResultsFile, table: "AnnotationTable") -> list[_Match]:
    labels = {name: label for label, name in enumerate(table.classes)}

    def of_name(name: str | int) -> int:
        return labels.get(str(name), -1)

    if results.class_names is not None:
        return [_match(results.class_names, of_name, "by `category_name`")]
    if results.listed_classes is not None:
        listed = results.listed_classes
        return [_match(results.class_keys, lambda key: of_name(listed.get(key, "")), "by the file's list `categories`")]
    ids = {class_id: label for label, class_id in enumerate(table.class_ids.tolist())}
    return [
        _match(results.class_keys, of_name, "by `category_id` as a name"),
        _match(results.class_keys, lambda key: ids.get(_as_int(key), -1), "by `category_id` as an id of the data set"),
    ]


def _match(keys: Sequence[str | int], index_of: Callable[[str | int], int], rule: str) -> _Match:
    known = {key: index_of(key) for key in set(keys)}
    return _Match(keys, np.fromiter((known[key] for key in keys), np.int64, len(keys)), rule)


def _as_int(key: str | int) -> int:
    """A key as an id; -2^63, which no data set has, for text that is not a number."""
    try:
        return int(key)
    except ValueError:
        return -(2**63)


def _choose(matches: list[_Match], count_overlaps: Callable[[_Match], int], path: str | Path, what: str) -> _Match:
    most = max(match.num_matched for match in matches)
    best = [match for match in matches if match.num_matched == most]
    if len(best) > 1 and not all(np.array_equal(match.index, best[0].index) for match in best):
        best.sort(key=count_overlaps, reverse=True)  # stable: of equal ones the first rule
        best[0] = replace(best[0], rule=f"{best[0].rule} (several rules match all; more detections overlap with this)")
    num_entries = len(best[0].index)
    if best[0].num_matched * 2 < num_entries:
        first = int(np.flatnonzero(best[0].index < 0)[0])
        raise InputError(
            f"only {best[0].num_matched} of {num_entries} detections have the {what} of the data set, {best[0].rule};"
            f" write `{'file_name' if what == 'image' else 'category_name'}` into each entry",
            path,
            f"entry {first}",
        )
    return best[0]


def _describe(match: _Match, what: str) -> str:
    matched = {key for key, index in zip(match.keys, match.index.tolist(), strict=True) if index >= 0}
    plural = {"image": "images", "category": "categories"}[what]
    entries = f"{match.num_matched} of {len(match.index)} detections"
    return f"{plural} matched {match.rule}: {len(matched)} of {len(set(match.keys))} {plural}, {entries}"


# ------------------------------------------------------------------------------------------------------- plausibility


def _count_overlaps(
    results: ResultsFile,
    images: Int64[np.ndarray, " D"],
    labels: Int64[np.ndarray, " D"] | None,
    table: "AnnotationTable",
) -> int:
    """Detections of the sample that overlap an object of their image, and of their class if there are labels."""
    sample = np.argsort(-results.scores, kind="stable")[:_SAMPLED]
    sample = sample[images[sample] >= 0]
    sample = sample[np.argsort(images[sample], kind="stable")]
    starts = np.flatnonzero(np.diff(images[sample], prepend=-1))
    count = 0
    for rows in np.split(sample, starts[1:]) if len(sample) else []:
        objects = table.rows(int(images[rows[0]]))
        overlaps = _pairwise_iou(results.boxes[rows], table.boxes[objects]) >= _OVERLAP
        if labels is not None:
            overlaps &= labels[rows][:, None] == table.labels[objects]
        count += int(overlaps.any(axis=1).sum())
    return count


def _pairwise_iou(boxes: Float[np.ndarray, "D 4"], others: Float[np.ndarray, "T 4"]) -> Float[np.ndarray, "D T"]:
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=2)
    areas, other_areas = ((edges[:, 2:] - edges[:, :2]).prod(axis=1) for edges in (boxes, others))
    union = areas[:, None] + other_areas - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _refuse_shifted_images(results: ResultsFile, images: _Match, table: "AnnotationTable", path: str | Path) -> None:
    """Ids of another numbering, such as positions from 0, are not taken for those of the data set."""
    if not images.rule.startswith("by `image_id` as an id"):
        return
    ids = {image_id: index for index, image_id in enumerate(table.image_ids.tolist())}
    own = _count_overlaps(results, images.index, None, table)
    for shift in (1, -1):
        index = [ids.get(_as_int(key) + shift, -1) for key in results.image_keys]
        other = _count_overlaps(results, np.array(index, np.int64), None, table)
        if own < other * _FAR_WORSE:
            raise InputError(
                f"image ids do not fit the data set: {own} detections overlap an object, but {other} would if all ids"
                f" were {'larger' if shift > 0 else 'smaller'} by one; write `file_name` into each entry",
                path,
            )


def _check_mask_sizes(results: ResultsFile, images: _Match, table: "AnnotationTable", path: str | Path) -> None:
    if results.masks is None:
        return
    matched = np.flatnonzero(images.index >= 0)
    found = np.stack([results.masks.widths, results.masks.heights], axis=1)[matched]
    expected = np.stack([table.widths, table.heights], axis=1)[images.index[matched]]
    wrong = np.flatnonzero((found != expected).any(axis=1))
    if len(wrong):
        (width, height), (image_width, image_height) = found[wrong[0]], expected[wrong[0]]
        raise InputError(
            f"its mask has {width} x {height} pixels, but its image has {image_width} x {image_height}",
            path,
            f"entry {matched[wrong[0]]}",
        )


def _describe_shifted_classes(
    results: ResultsFile, images: _Match, classes: _Match, table: "AnnotationTable"
) -> list[str]:
    if not classes.rule.startswith("by `category_id` as an id"):
        return []
    own = _count_overlaps(results, images.index, classes.index, table)
    ids = {class_id: label for label, class_id in enumerate(table.class_ids.tolist())}
    for shift in (1, -1):
        index = [ids.get(_as_int(key) + shift, -1) for key in results.class_keys]
        other = _count_overlaps(results, images.index, np.array(index, np.int64), table)
        if own < other * _FAR_WORSE:
            change = "larger" if shift > 0 else "smaller"
            return [
                f"category ids do not fit the data set: {own} detections overlap an object of their class, but {other}"
                f" would if all category ids were {change} by one; write `category_name` into each entry"
            ]
    return []


def _describe_scores(results: ResultsFile) -> list[str]:
    """Scores that are not probabilities; AP depends on their order alone."""
    if not len(results.scores) or (results.scores.min() >= 0 and results.scores.max() <= 1):
        return []
    lowest, highest = f"{results.scores.min():.4g}", f"{results.scores.max():.4g}"
    return [f"scores are {lowest} to {highest}, not 0 to 1: metrics use their order, calibration is left out"]


def _describe_boxes(predictions: Predictions, table: "AnnotationTable") -> list[str]:
    """Coordinates that no detection in pixels of these images has."""
    boxes = predictions.boxes
    if not len(boxes):
        return []
    if (boxes[:, 2:] - boxes[:, :2]).max() < 1:
        return ["all boxes are smaller than a pixel; are they fractions of the image? COCO results are in pixels"]
    order = np.argsort(table.image_ids)
    index = order[np.searchsorted(table.image_ids, predictions.image_ids, sorter=order)]
    sizes = np.stack([table.widths, table.heights], axis=1)[index]
    if (boxes[:, 2:] > sizes + 1).any(axis=1).all():
        return ["all boxes end outside their image; are they of images of another size, or corners instead of sizes?"]
    return []
