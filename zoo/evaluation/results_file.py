"""Reading and writing COCO-results json: detections of a set of images, with masks as run lengths.

Legend:
    D  detections of all images      N  images      C  classes
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int64
from pycocotools import mask as coco_mask

from zoo.data.masks import Masks, check_runs, compress_runs, expand_runs, find_bad_runs
from zoo.errors import InputError
from zoo.evaluation.ground_truth import ObjectMasks
from zoo.evaluation.predictions import Predictions, to_xywh
from zoo.io.files import atomic_path

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
_CHUNK = 50_000  # json entries encoded at once: bounds the memory for the python objects to about 20 MB


class _Segmentation(msgspec.Struct, gc=False):
    """Run lengths of a mask: compressed as text, or a list of counts."""

    size: tuple[_Side, _Side]  # height, width of the image
    counts: str | list[_Int64]


class _Result(msgspec.Struct, gc=False, omit_defaults=True, kw_only=True):
    """One entry of a COCO-results json; other keys are ignored."""

    image_id: _Int64 | float | str
    category_id: _Int64 | float | str
    bbox: tuple[float, float, float, float] | None = None  # x, y, width, height; of the mask where there is none
    score: float
    # A list is of polygons, or empty; pycocotools adds one of the box to results that it has loaded.
    segmentation: _Segmentation | list[Any] | None = None
    file_name: str | None = None
    category_name: str | None = None


class _ListedImage(msgspec.Struct, gc=False):
    id: _Int64 | float | str
    file_name: str


class _ListedCategory(msgspec.Struct, gc=False):
    id: _Int64 | float | str
    name: str


class _Document(msgspec.Struct, gc=False):
    annotations: list[_Result]
    images: list[_ListedImage] | None = None
    categories: list[_ListedCategory] | None = None


@dataclass(frozen=True, eq=False)
class ResultsFile:
    """Content of a predictions file, with images and classes as the file has them.

    Args:
        boxes: xyxy, pixels of the image.
        scores: as in the file.
        image_keys: `image_id` of each detection, a number or text.
        class_keys: `category_id` of each detection, a number or text.
        file_names: of each detection, "" where an entry has none; None if no entry has one.
        class_names: of each detection, "" where an entry has none; None if no entry has one.
        listed_images: file names by `image_id`, of files with a list `images`.
        listed_classes: class names by `category_id`, of files with a list `categories`.
        masks: of each detection; None if no entry has one.
    """

    boxes: Float[np.ndarray, "D 4"]
    scores: Float[np.ndarray, " D"]
    image_keys: list[int | str]
    class_keys: list[int | str]
    file_names: list[str] | None = None
    class_names: list[str] | None = None
    listed_images: dict[int | str, str] | None = None
    listed_classes: dict[int | str, str] | None = None
    masks: ObjectMasks | None = None


def write_coco_results(
    predictions: Predictions,
    path: str | Path,
    class_ids: Sequence[int] | Int64[np.ndarray, " C"],
    file_names: Mapping[int, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write detections as COCO-results json: a list of image_id, category_id, bbox [x, y, w, h], score, and masks.

    With the names of files and classes, entries have `file_name` and `category_name`, too: unlike ids, names mean the
    same to other programs. Widths are differences in f64, so that `read_coco_results` restores each f32 edge exactly.

    Args:
        predictions: detections to write.
        path: the file, written atomically; its folder is created if it does not exist.
        class_ids: the data set's category id for each label.
        file_names: of the images, by image id.
        class_names: in the order of the labels.

    Raises:
        InputError: a label has no category id, or the file cannot be written.
    """
    ids = np.asarray(class_ids, dtype=np.int64)
    bad = np.flatnonzero((predictions.labels < 0) | (predictions.labels >= len(ids)))
    if len(bad):
        raise InputError(
            f"a detection has label {predictions.labels[bad[0]]}, but there are {len(ids)} category ids",
            file=path,
            place=f"image {predictions.image_ids[bad[0]]}",
        )
    encoder = msgspec.json.Encoder()
    try:
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as stream:
            stream.write(b"[")
            for start in range(0, len(predictions), _CHUNK):
                rows = slice(start, start + _CHUNK)
                bbox = to_xywh(predictions.boxes[rows])
                image_ids, labels = predictions.image_ids[rows].tolist(), predictions.labels[rows].tolist()
                columns = {
                    "image_id": image_ids,
                    "category_id": ids[predictions.labels[rows]].tolist(),
                    "bbox": map(tuple, bbox.tolist()),
                    "score": predictions.scores[rows].tolist(),
                    "segmentation": _segmentations(predictions.masks, range(start, start + len(bbox))),
                    "file_name": [None if file_names is None else file_names[image_id] for image_id in image_ids],
                    "category_name": [None if class_names is None else class_names[label] for label in labels],
                }
                of_entries = zip(*columns.values(), strict=True)
                entries = encoder.encode([_Result(**dict(zip(columns, row, strict=True))) for row in of_entries])
                stream.write(b",\n" if start else b"\n")
                stream.write(entries[1:-1])
            stream.write(b"\n]\n")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=path) from error


def read_coco_results(
    path: str | Path, image_ids: Int64[np.ndarray, " N"], class_ids: Sequence[int] | Int64[np.ndarray, " C"]
) -> Predictions:
    """Read COCO-results json written by any tool; detections keep the order of the file.

    Args:
        path: a json list of objects with image_id, category_id, bbox [x, y, w, h] and score, and segmentation if any.
        image_ids: the data set's image ids, in any order.
        class_ids: the data set's category id for each label.

    Returns:
        Predictions in f64 with labels 0 .. C - 1.

    Raises:
        InputError: the file is missing or is not such a list, or an entry (named by its index in the list) has an
            unknown image or category, a missing key, a score or a box that is not a finite number, or a negative size.
    """
    results = read_results_file(path)
    ids, categories = _int_ids(results.image_keys), _int_ids(results.class_keys)
    _check(np.isin(ids, image_ids), path, lambda i: f"image_id {results.image_keys[i]} is not in the data set")
    _check(
        np.isin(categories, class_ids), path, lambda i: f"category_id {results.class_keys[i]} is not in the data set"
    )
    known = np.asarray(class_ids, dtype=np.int64)
    order = np.argsort(known)
    return Predictions(
        image_ids=ids,
        boxes=results.boxes,
        scores=results.scores,
        labels=order[np.searchsorted(known, categories, sorter=order)],
        masks=results.masks,
    )


def read_results_file(path: str | Path) -> ResultsFile:
    """Content of a predictions file: a COCO-results list, or an object with this list as `annotations`.

    Raises:
        InputError: the file is missing or is neither, or an entry (named by its index in the list) has a missing key, a
            score or a box that is not a finite number, a negative size, neither a box nor a mask, a mask that is not
            run lengths, or none while others have one.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    try:
        content = msgspec.json.decode(text, type=list[_Result] | _Document)
    except msgspec.ValidationError as error:
        problem, _, json_path = str(error).partition(" - at ")
        place = re.search(r"\[(\d+)\]", json_path)
        message = f"{problem[0].lower()}{problem[1:]}{f' at {json_path}' if json_path else ''}"
        raise InputError(
            f"{message}; COCO results are a list of image_id, category_id, bbox [x, y, w, h] and score",
            file=path,
            place=f"entry {place[1]}" if place else None,
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _explain_malformed(text, path) from error
    document = content if isinstance(content, _Document) else _Document(content)
    entries = document.annotations
    masks = _read_masks(entries, path)
    bbox = _read_bbox(entries, masks, path)
    # a bound far above the size of any image, so that later products stay finite
    _check(np.all(np.abs(bbox) < 1e9, axis=1), path, lambda i: f"bbox {bbox[i].tolist()} is not a box in pixels")
    _check(np.all(bbox[:, 2:] >= 0, axis=1), path, lambda i: f"bbox {bbox[i].tolist()} has a negative width or height")
    return ResultsFile(
        boxes=_to_xyxy(bbox),
        scores=np.fromiter((entry.score for entry in entries), np.float64, len(entries)),
        image_keys=[_plain_key(entry.image_id) for entry in entries],
        class_keys=[_plain_key(entry.category_id) for entry in entries],
        file_names=_names([entry.file_name for entry in entries]),
        class_names=_names([entry.category_name for entry in entries]),
        listed_images=_by_key([(image.id, image.file_name) for image in document.images or []]),
        listed_classes=_by_key([(category.id, category.name) for category in document.categories or []]),
        masks=masks,
    )


def _read_bbox(entries: Sequence[_Result], masks: ObjectMasks | None, path: str | Path) -> Float[np.ndarray, "D 4"]:
    """Box of each entry; that of its mask where it has none."""
    missing = [number for number, entry in enumerate(entries) if entry.bbox is None]
    if missing and masks is None:
        raise InputError("has neither `bbox` nor run lengths as `segmentation`", path, f"entry {missing[0]}")
    bbox = np.array([entry.bbox or (0, 0, 0, 0) for entry in entries], dtype=np.float64).reshape(-1, 4)
    if missing and masks is not None:
        bbox[missing] = coco_mask.toBbox(masks.select(np.array(missing)).run_lengths())
    return bbox


def _read_masks(entries: Sequence[_Result], path: str | Path) -> ObjectMasks | None:
    """Masks of all entries; None if no entry has one."""
    have = [isinstance(entry.segmentation, _Segmentation) for entry in entries]
    if not any(have):
        return None
    runs, sizes = [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry.segmentation, _Segmentation):
            message = f"has no run lengths as `segmentation`, but entry {have.index(True)} has"
            raise InputError(message, file=path, place=f"entry {number}")
        counts = entry.segmentation.counts
        runs.append(counts.encode() if isinstance(counts, str) else compress_runs(np.array(counts, np.int64)))
        sizes.append(entry.segmentation.size)
    heights, widths = np.array(sizes, np.int64).T
    for number in find_bad_runs(runs, heights, widths)[:1].tolist():
        try:
            check_runs(expand_runs(runs[number]), *sizes[number])
        except ValueError as error:
            raise InputError(str(error), file=path, place=f"entry {number}") from error
    return ObjectMasks(Masks.pack(runs), heights, widths)


def _segmentations(masks: ObjectMasks | None, rows: range) -> list[_Segmentation | None]:
    if masks is None:
        return [None] * len(rows)
    runs = masks.select(np.array(rows, np.int64)).run_lengths()
    return [_Segmentation(tuple(run["size"]), run["counts"].decode()) for run in runs]


def _plain_key(key: int | float | str) -> int | str:
    """A whole number in any notation as int, other keys as text."""
    return int(key) if isinstance(key, float) and key.is_integer() else key if isinstance(key, int) else str(key)


def _by_key(pairs: list[tuple[int | float | str, str]]) -> dict[int | str, str] | None:
    return {_plain_key(key): name for key, name in pairs} or None


def _names(names: list[str | None]) -> list[str] | None:
    return [name or "" for name in names] if any(names) else None


def _int_ids(keys: Sequence[int | str]) -> Int64[np.ndarray, " D"]:
    """Keys as ids; -2^63, which no data set has, for text."""
    return np.fromiter((key if isinstance(key, int) else -(2**63) for key in keys), np.int64, len(keys))


def _to_xyxy(bbox: Float[np.ndarray, "D 4"]) -> Float[np.ndarray, "D 4"]:
    """Inverse of `to_xywh`; x + w becomes the nearest f32 edge if they differ by no more than the sum's rounding."""
    boxes = bbox.copy()
    boxes[:, 2:] += bbox[:, :2]
    far = boxes[:, 2:]
    edge = far.astype(np.float32).astype(np.float64)
    rounding = np.spacing(np.abs(bbox).max(axis=1, initial=0.0, keepdims=True))
    boxes[:, 2:] = np.where(np.abs(edge - far) <= rounding, edge, far)
    return boxes


def _check(good: Bool[np.ndarray, " D"], path: str | Path, message: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        raise InputError(message(bad[0]), file=path, place=f"entry {bad[0]}")


def _explain_malformed(text: bytes, path: str | Path) -> InputError:
    """Error for json that msgspec rejects, found with Python's parser, which reports the line and accepts NaN."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        return InputError(f"is not json: {error.msg}", file=path, place=f"line {error.lineno} column {error.colno}")
    except UnicodeDecodeError as error:
        return InputError("is not json: not utf-8 text", file=path, place=f"byte {error.start}")
    except RecursionError:
        return InputError("is nested too deeply; COCO results are a flat list", file=path)
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        numbers = {"score": [entry.get("score")], "bbox": entry.get("bbox")} if isinstance(entry, dict) else {}
        for key, values in numbers.items():
            if any(isinstance(value, float) and not np.isfinite(value) for value in values or ()):
                return InputError(f"{key} is not a finite number", file=path, place=f"entry {i}")
    return InputError("is not json: it contains NaN or Infinity", file=path)
