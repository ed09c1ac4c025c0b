"""Example images of a report: making, reading and writing them, and matching detections to their ground truth.

Examples are stored in one file, `examples.json`, so that the report can be rendered again without data or training.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image as PillowImage
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import InterpolationMode, resize

from zoo.errors import InputError
from zoo.io.files import convert_json, decode_json, encode_json, write_atomically
from zoo.report.pictures.outlines import trace
from zoo.types import Image, Prediction, Target

_ADVICE = "expected a file that `zoo compare` wrote"
_LONGEST_SIDE = 480  # pixels of the stored picture: forty pictures stay below two megabytes
_DIGITS = 4  # of a stored score
_MAX_DETECTIONS = 100
_MATCH_IOU = 0.5

Box = tuple[float, float, float, float]
Verdict = Literal["right", "false", "ignored"]
MaskPixels: TypeAlias = Bool[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"]


@dataclass
class Objects:
    """Ground truth of an example."""

    boxes: list[Box] = field(default_factory=list)  # xyxy edges, pixels of the example
    labels: list[int] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)  # crowds and difficult objects: neither hits nor misses count
    masks: list[str] = field(default_factory=list)  # outlines as SVG path data; "" for none; empty without any masks


@dataclass
class Detections:
    """Detections of one run in an example, highest score first."""

    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)  # as those of `Objects`; only of the first, which are drawn


@dataclass
class Reason:
    """Reason to show an image."""

    kind: Literal["sample", "pair", "miss", "mistake"]
    runs: list[str] = field(
        default_factory=list
    )  # folders; pair: correct run, wrong run; miss: runs that miss it; mistake: its run
    boxes: list[Box] = field(default_factory=list)  # boxes to mark; pixels of the example
    label: int | None = None  # class of the missed object or false positive
    score: float | None = None  # of the false positive
    detail: str = ""  # what is at the place of the false positive


@dataclass
class Example:
    """One test image with its ground truth and the detections of each run; made by `make_example`."""

    name: str  # file name, or id, of the image
    width: int  # pixels of the stored picture, which all boxes here refer to
    height: int
    jpeg: bytes
    truth: Objects
    predictions: dict[str, Detections]  # `Run.folder` -> its detections; failed runs are absent
    reasons: list[Reason]


@dataclass
class _File:
    """Content of `examples.json`."""

    examples: list[Example]


@dataclass
class Matching:
    """Detections of one image matched to its ground truth."""

    verdicts: list[Verdict]  # for each detection
    found: list[bool]  # for each object


def make_example(
    name: str,
    image: Image,
    target: Target,
    predictions: dict[str, Prediction],
    reasons: Sequence[Reason] = (Reason("sample"),),
    truth_masks: Iterable[MaskPixels] = (),
    masks: Mapping[str, Iterable[MaskPixels]] | None = None,
) -> Example:
    """Make an example of a test image: longer side at most 480 pixels, the 100 highest-scoring detections of each run.

    Args:
        name: file name or id, shown on the page.
        image: uint8 [3, H, W].
        target: its ground truth, in pixels of `image`.
        predictions: `Run.folder` -> its prediction, in pixels of `image`, highest score first, not thresholded.
        reasons: reasons to show it, boxes in pixels of `image`.
        truth_masks: of the objects.
        masks: `Run.folder` -> those of its first detections.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    if scale < 1.0:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = resize(image, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return Example(
        name=name,
        width=image.shape[-1],
        height=image.shape[-2],
        jpeg=_encode_jpeg(image),
        truth=replace(_to_objects(target, scale), masks=[trace(mask, scale) for mask in truth_masks]),
        predictions={
            folder: _to_detections(prediction, scale, (masks or {}).get(folder, ()))
            for folder, prediction in predictions.items()
        },
        reasons=[replace(reason, boxes=_to_boxes(torch.tensor(reason.boxes) * scale)) for reason in reasons],
    )


def choose_examples(num_objects_per_image: Sequence[int], count: int, seed: int) -> list[int]:
    """Sample images stratified by number of objects, from the emptiest to the most crowded.

    The images are sorted by their number of objects and cut into `count` parts of equal size; one is drawn from each.

    Args:
        num_objects_per_image: number of objects of each image of the split.
        count: number of images to choose; all are chosen if there are fewer.
        seed: the same seed and data set give the same images.

    Returns:
        Indices into `num_objects_per_image`, emptiest first.
    """
    order = np.argsort(np.asarray(num_objects_per_image), kind="stable")
    random = np.random.default_rng(seed)
    parts = np.array_split(order, min(count, len(order))) if count and len(order) else []
    return [int(random.choice(part)) for part in parts]


def match_detections(detections: Detections, truth: Objects, min_score: float) -> Matching:
    """Match detections greedily by score, each to the unmatched object of its class with the highest IoU, at least 0.5.

    A detection that overlaps only an ignored object is ignored.

    Args:
        detections: of one image, highest score first.
        truth: ground truth of the image.
        min_score: detections below it are left out, and have no element in `verdicts`.
    """
    num_shown = sum(score >= min_score for score in detections.scores)
    found = [False] * len(truth.boxes)
    if not num_shown or not truth.boxes:
        return Matching(verdicts=["false"] * num_shown, found=found)
    ious = box_iou(torch.tensor(detections.boxes[:num_shown]), torch.tensor(truth.boxes)).tolist()
    verdicts: list[Verdict] = []
    for ious_per_object, label in zip(ious, detections.labels[:num_shown], strict=True):
        verdict: Verdict = "false"
        best, best_iou = -1, _MATCH_IOU
        for at, iou in enumerate(ious_per_object):
            if truth.labels[at] != label or iou < _MATCH_IOU:
                continue
            if truth.ignored[at]:
                verdict = "ignored"
            elif not found[at] and iou >= best_iou:
                best, best_iou = at, iou
        if best >= 0:
            found[best] = True
            verdict = "right"
        verdicts.append(verdict)
    return Matching(verdicts=verdicts, found=found)


def best_f1_score(predictions: Iterable[Prediction], targets: Iterable[Target]) -> float | None:
    """Score threshold with the best F1 at IoU 0.5 over all images and classes together, for `Run.shown_score`.

    F1 is evaluated at every score that occurs, so scores may have any range.

    Args:
        predictions: of each image, highest score first.
        targets: of the same images.

    Returns:
        The best score, rounded down to four digits; the highest among ties. None without a correct detection.
    """
    scores: dict[Verdict, list[float]] = {"right": [], "false": [], "ignored": []}
    num_objects = 0
    for prediction, target in zip(predictions, targets, strict=True):
        detections = Detections(
            _to_boxes(prediction["boxes"]), prediction["labels"].tolist(), prediction["scores"].tolist()
        )
        truth = _to_objects(target)
        # Matches of a detection do not depend on detections of lower score: one matching serves all thresholds.
        verdicts = match_detections(detections, truth, -math.inf).verdicts
        for verdict, score in zip(verdicts, detections.scores, strict=True):
            scores[verdict].append(score)
        num_objects += truth.ignored.count(False)
    if not scores["right"]:
        return None
    thresholds = np.unique(scores["right"])[::-1]
    num_right, num_false = (
        len(scores[verdict]) - np.searchsorted(np.sort(scores[verdict]), thresholds) for verdict in ("right", "false")
    )
    f1 = 2 * num_right / np.maximum(num_right + num_false + num_objects, 1)
    return _round_down(float(thresholds[f1.argmax()]))


def write_examples(path: str | Path, examples: list[Example]) -> None:
    """Write `examples.json` atomically; pictures are JPEG in base64."""
    write_atomically(Path(path), encode_json(_File(examples)))


def read_examples(path: str | Path) -> list[Example]:
    """Read an `examples.json`.

    Raises:
        InputError: the file is missing, is not JSON, or does not match the schema; names the file and the place.
    """
    path = Path(path)
    examples = convert_json(decode_json(path, _ADVICE), _File, path, _ADVICE).examples
    for index, example in enumerate(examples):
        truth = example.truth
        lengths = {"truth": (len(truth.boxes), len(truth.labels), len(truth.ignored))}
        for folder, kept in example.predictions.items():
            lengths[f"predictions[{folder!r}]"] = (len(kept.boxes), len(kept.labels), len(kept.scores))
        for place, columns in lengths.items():
            if len(set(columns)) > 1:
                raise InputError(
                    f"columns have different lengths {columns}", file=path, place=f"examples[{index}].{place}"
                )
        parts: dict[str, Objects | Detections] = {"truth": truth, **example.predictions}
        for place, part in parts.items():
            if len(part.masks) > len(part.boxes):
                raise InputError("has more masks than boxes", file=path, place=f"examples[{index}].{place}")
    return examples


def _encode_jpeg(image: Image) -> bytes:
    content = io.BytesIO()
    picture = PillowImage.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    picture.save(content, "JPEG", quality=80, optimize=True, progressive=True)  # the two flags save 5%
    return content.getvalue()


def _to_objects(target: Target, scale: float = 1.0) -> Objects:
    return Objects(
        boxes=_to_boxes(target["boxes"] * scale),
        labels=target["labels"].tolist(),
        ignored=(target["iscrowd"] | target["difficult"]).tolist(),
    )


def _to_detections(prediction: Prediction, scale: float, masks: Iterable[MaskPixels]) -> Detections:
    return Detections(
        boxes=_to_boxes(prediction["boxes"][:_MAX_DETECTIONS] * scale),
        labels=prediction["labels"][:_MAX_DETECTIONS].tolist(),
        scores=[float(f"{score:.{_DIGITS}g}") for score in prediction["scores"][:_MAX_DETECTIONS].tolist()],
        masks=[trace(mask, scale) for mask in islice(masks, _MAX_DETECTIONS)],
    )


def _round_down(score: float) -> float:
    """A score rounded down to the digits of stored scores, which are rounded to the nearest and so not below it."""
    step = 10.0 ** (math.floor(math.log10(abs(score))) + 1 - _DIGITS) if score else 1.0
    return float(f"{math.floor(score / step) * step:.{_DIGITS}g}")


def _to_boxes(boxes: Tensor) -> list[Box]:
    # A tenth of a pixel is precise enough for drawing.
    return [(round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)) for x1, y1, x2, y2 in boxes.tolist()]
