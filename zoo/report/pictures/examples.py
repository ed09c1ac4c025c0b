"""Test images to look at: chosen, kept beside the results, and matched with what each run said of them.

Examples are kept in one file, `examples.json`, so that the report can be made again without data or training.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import InterpolationMode, resize

from zoo.errors import InputError
from zoo.io.files import convert_json, decode_json, encode_json, write_atomically
from zoo.types import Image, Prediction, Target

_ADVICE = "expected a file that `zoo compare` wrote"
_LONGEST_SIDE = 480  # pixels of the kept picture: forty of them stay below two megabytes
_LEAST_SHOWN = 0.01  # the lowest of all `Run.shown_score`s: detections below it are never drawn
_KEPT_DETECTIONS = 100
_MATCH_IOU = 0.5

Box = tuple[float, float, float, float]
Verdict = Literal["right", "false", "ignored"]


@dataclass
class Objects:
    """What is true of an example."""

    boxes: list[Box] = field(default_factory=list)  # xyxy edges, pixels of the example
    labels: list[int] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)  # crowds and difficult objects: finding them counts neither way


@dataclass
class Detections:
    """What one run said of an example, surest first."""

    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass
class Reason:
    """Why an image is shown."""

    kind: Literal["sample", "pair", "miss", "mistake"]
    runs: list[str] = field(default_factory=list)  # folders; pair: right, wrong; miss: who misses; mistake: who errs
    boxes: list[Box] = field(default_factory=list)  # what it is about; pixels of the example
    label: int | None = None  # class of the missed object, or of the mistake
    score: float | None = None  # of the mistake
    detail: str = ""  # what is there instead


@dataclass
class Example:
    """One test image, its ground truth, and what each run said of it; made by `make_example`."""

    name: str  # file name, or id, of the image
    width: int  # pixels of the kept picture, which all boxes here refer to
    height: int
    jpeg: bytes
    truth: Objects
    predictions: dict[str, Detections]  # folder of a run -> its detections; a failed run has none
    reasons: list[Reason]


@dataclass
class _File:
    """The form of `examples.json`."""

    examples: list[Example]


@dataclass
class Matching:
    """Detections of one image held against its ground truth."""

    verdicts: list[Verdict]  # for each detection
    found: list[bool]  # for each object


def make_example(
    name: str,
    image: Image,
    target: Target,
    predictions: dict[str, Prediction],
    reasons: Sequence[Reason] = (Reason("sample"),),
) -> Example:
    """Make an example of a test image: at most 480 pixels long, with the 100 surest detections of each run.

    Args:
        name: what to call the image on the page: file name or id.
        image: uint8 [3, H, W].
        target: its ground truth, in pixels of `image`.
        predictions: `Run.folder` -> the prediction of that run, in pixels of `image`, surest first, not thresholded.
        reasons: why it is shown, boxes in pixels of `image`.
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
        truth=_to_objects(target, scale),
        predictions={folder: _to_detections(prediction, scale) for folder, prediction in predictions.items()},
        reasons=[replace(reason, boxes=_to_boxes(torch.tensor(reason.boxes) * scale)) for reason in reasons],
    )


def choose_examples(num_objects_per_image: Sequence[int], count: int, seed: int) -> list[int]:
    """Choose images to show, spread from the emptiest to the most crowded.

    The images are sorted by their number of objects and cut into `count` parts of equal size; one is drawn from each.

    Args:
        num_objects_per_image: number of objects of each image of the split.
        count: how many to choose; all are chosen where there are fewer.
        seed: the same seed and data set choose the same images.

    Returns:
        Indices into `num_objects_per_image`, emptiest first.
    """
    order = np.argsort(np.asarray(num_objects_per_image), kind="stable")
    random = np.random.default_rng(seed)
    parts = np.array_split(order, min(count, len(order))) if count and len(order) else []
    return [int(random.choice(part)) for part in parts]


def match_detections(detections: Detections, truth: Objects, min_score: float) -> Matching:
    """Say which detections are right: surest first, each takes the free object of its class that it overlaps most.

    An overlap (IoU) of at least 0.5 is needed. A detection that meets only an ignored object counts neither way.

    Args:
        detections: of one image, surest first.
        truth: the image's objects.
        min_score: detections below are left out; `verdicts` is as long as the part that remains.
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


def best_f1_score(predictions: Iterable[Prediction], targets: Iterable[Target]) -> float:
    """Score from which detections up F1 at IoU 0.5 is best, all images and classes together: a `Run.shown_score`.

    Args:
        predictions: of each image, surest first.
        targets: of the same images.

    Returns:
        One of 0.01, 0.02 .. 0.99, the lowest of those that are equally good.
    """
    scores: dict[Verdict, list[float]] = {"right": [], "false": [], "ignored": []}
    num_objects = 0
    for prediction, target in zip(predictions, targets, strict=True):
        detections = Detections(
            _to_boxes(prediction["boxes"]), prediction["labels"].tolist(), prediction["scores"].tolist()
        )
        truth = _to_objects(target)
        # What the surest detections match does not depend on the less sure ones: one matching serves all thresholds.
        verdicts = match_detections(detections, truth, -math.inf).verdicts
        for verdict, score in zip(verdicts, detections.scores, strict=True):
            scores[verdict].append(score)
        num_objects += truth.ignored.count(False)
    thresholds = np.arange(round(100 * _LEAST_SHOWN), 100) / 100
    num_right, num_false = (
        len(scores[verdict]) - np.searchsorted(np.sort(scores[verdict]), thresholds) for verdict in ("right", "false")
    )
    f1 = 2 * num_right / np.maximum(num_right + num_false + num_objects, 1)
    return float(thresholds[f1.argmax()])


def write_examples(path: str | Path, examples: list[Example]) -> None:
    """Write `examples.json`, whole or not at all; pictures are JPEG in base64."""
    write_atomically(Path(path), encode_json(_File(examples)))


def read_examples(path: str | Path) -> list[Example]:
    """Read an `examples.json`.

    Raises:
        InputError: the file is missing, is no json, or is not of this form; names the file and the place.
    """
    path = Path(path)
    examples = convert_json(decode_json(path, _ADVICE), _File, path, _ADVICE).examples
    for index, example in enumerate(examples):
        truth = example.truth
        lengths = {"truth": (len(truth.boxes), len(truth.labels), len(truth.ignored))}
        for folder, found in example.predictions.items():
            lengths[f"predictions[{folder!r}]"] = (len(found.boxes), len(found.labels), len(found.scores))
        for place, columns in lengths.items():
            if len(set(columns)) > 1:
                raise InputError(
                    f"columns of different lengths {columns}", file=path, place=f"examples[{index}].{place}"
                )
    return examples


def _encode_jpeg(image: Image) -> bytes:
    content = io.BytesIO()
    picture = PillowImage.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    picture.save(content, "JPEG", quality=80, optimize=True, progressive=True)  # both: a twentieth smaller
    return content.getvalue()


def _to_objects(target: Target, scale: float = 1.0) -> Objects:
    return Objects(
        boxes=_to_boxes(target["boxes"] * scale),
        labels=target["labels"].tolist(),
        ignored=(target["iscrowd"] | target["difficult"]).tolist(),
    )


def _to_detections(prediction: Prediction, scale: float) -> Detections:
    kept = int((prediction["scores"][:_KEPT_DETECTIONS] >= _LEAST_SHOWN).sum())
    return Detections(
        boxes=_to_boxes(prediction["boxes"][:kept] * scale),
        labels=prediction["labels"][:kept].tolist(),
        scores=[round(score, 4) for score in prediction["scores"][:kept].tolist()],
    )


def _to_boxes(boxes: Tensor) -> list[Box]:
    # A tenth of a pixel is enough to see.
    return [(round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)) for x1, y1, x2, y2 in boxes.tolist()]
