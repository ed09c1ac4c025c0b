"""Selection of test images to show: objects found by one of two runs, worst misses, top false positives, a sample.

Legend:
    N  images      T  objects of all images      M  objects of an image

Detections are matched as in the pictures of the page: at IoU 0.5, from the run's shown score on.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torchvision.ops import box_iou

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions
from zoo.report.number_format import format_ap
from zoo.report.pictures.examples import Detections, Objects, Reason, choose_examples, match_detections

_MIN_REUSED_GAIN = 0.5  # an image already chosen serves a pair if its F1 difference is this share of the largest one
_NEAR_IOU = 0.1  # IoU with an object from which a detection counts as near it


@dataclass(frozen=True)
class Choice:
    """An image to show, with reasons; their boxes are in pixels of the image."""

    image_id: int
    reasons: list[Reason]


@dataclass(frozen=True)
class FalsePositive:
    """A detection that matches no object."""

    image: int  # index into `GroundTruth.image_ids`
    box: tuple[float, float, float, float]
    label: int
    score: float


@dataclass(frozen=True, eq=False)
class RunMatches:
    """Detections of one run matched to the ground truth of all images."""

    found: Bool[np.ndarray, " T"]  # whether a detection matches the object
    nearest: Float[np.ndarray, " T"]  # highest IoU of each object with any shown detection of any class
    num_false: Int64[np.ndarray, " N"]  # false positives of each image
    false_positives: list[FalsePositive] = field(default_factory=list)  # highest score first


def choose_pictures(
    ground_truth: GroundTruth,
    predictions: Mapping[str, Predictions],
    shown_scores: Mapping[str, float],
    count: int,
    num_sampled: int,
    seed: int,
) -> list[Choice]:
    """Choose up to `count` images: a sample; of the rest a quarter misses, a quarter false positives, then pairs.

    If there are too few pairs, more misses and false positives are chosen. An image is chosen once, with all its
    reasons. Runs take turns, so that no run fills a category alone.

    Args:
        ground_truth: of all images of the evaluated split.
        predictions: `Run.folder` -> its predictions; one seed of each configuration.
        shown_scores: `Run.folder` -> score from which its detections are shown.
        count: maximum number of images.
        num_sampled: size of the sample from the emptiest to the most crowded image, independent of any run.
        seed: of the sample.

    Returns:
        The sample first, then misses, false positives and pairs, in the order of choice.
    """
    matches_per_run = {
        folder: match_predictions(ground_truth, detections, shown_scores[folder])
        for folder, detections in predictions.items()
    }
    num_objects = np.bincount(ground_truth.image_index, minlength=len(ground_truth.image_ids))
    chosen: dict[int, list[Reason]] = {
        image: [Reason("sample")] for image in choose_examples(num_objects.tolist(), min(num_sampled, count), seed)
    }
    quarter = max(0, count - len(chosen)) // 4
    _add_reasons(chosen, worst_misses(ground_truth, matches_per_run), len(chosen) + quarter)
    _add_reasons(chosen, top_false_positives(ground_truth, matches_per_run), len(chosen) + quarter)
    _add_pairs(chosen, ground_truth, matches_per_run, count)
    _add_reasons(
        chosen,
        _interleave([worst_misses(ground_truth, matches_per_run), top_false_positives(ground_truth, matches_per_run)]),
        count,
    )
    return [Choice(int(ground_truth.image_ids[image]), reasons) for image, reasons in chosen.items()]


def match_predictions(ground_truth: GroundTruth, predictions: Predictions, min_score: float) -> RunMatches:
    """Match the detections of a run with at least `min_score` to the ground truth, image by image."""
    shown = np.flatnonzero(predictions.scores >= min_score)
    order = shown[np.lexsort((-predictions.scores[shown], predictions.image_ids[shown]))]  # stable for equal scores
    image_ids = predictions.image_ids[order]
    firsts = np.searchsorted(image_ids, ground_truth.image_ids)
    lasts = np.searchsorted(image_ids, ground_truth.image_ids, side="right")
    found, nearest = np.zeros(len(ground_truth.labels), bool), np.zeros(len(ground_truth.labels))
    num_false = np.zeros(len(ground_truth.image_ids), np.int64)
    false_positives = []
    for image in range(len(ground_truth.image_ids)):
        rows, objects = order[firsts[image] : lasts[image]], object_rows(ground_truth, image)
        detections = Detections(
            [tuple(box) for box in predictions.boxes[rows].tolist()],
            predictions.labels[rows].tolist(),
            predictions.scores[rows].tolist(),
        )
        matching = match_detections(detections, _to_objects(ground_truth, objects), min_score)
        found[objects] = matching.found
        nearest[objects] = _highest_ious(ground_truth.boxes[objects], predictions.boxes[rows])
        false = [at for at, verdict in enumerate(matching.verdicts) if verdict == "false"]
        num_false[image] = len(false)
        false_positives += [
            FalsePositive(image, detections.boxes[at], detections.labels[at], detections.scores[at]) for at in false
        ]
    false_positives.sort(key=lambda false_positive: -false_positive.score)
    return RunMatches(found, nearest, num_false, false_positives)


def object_rows(ground_truth: GroundTruth, image: int) -> slice:
    """Rows of the ground truth that belong to one image."""
    return slice(*np.searchsorted(ground_truth.image_index, [image, image + 1]).tolist())


def image_f1(ground_truth: GroundTruth, matches: RunMatches) -> Float[np.ndarray, " N"]:
    """F1 of each image, 2 TP / (2 TP + FN + FP); 1 where there are neither objects nor detections."""
    counts = ~ignored(ground_truth)
    size = len(ground_truth.image_ids)
    num_right = np.bincount(ground_truth.image_index[matches.found & counts], minlength=size)
    num_missed = np.bincount(ground_truth.image_index[~matches.found & counts], minlength=size)
    num_wrong = num_missed + matches.num_false
    return np.where(num_right + num_wrong > 0, 2 * num_right / np.maximum(2 * num_right + num_wrong, 1), 1.0)


def images_won(ground_truth: GroundTruth, right: RunMatches, wrong: RunMatches) -> list[tuple[int, float]]:
    """Images with an object that only the first of two runs finds, largest difference of F1 first.

    Returns:
        (image, difference of F1); images where the difference is not positive are left out.
    """
    advantage = image_f1(ground_truth, right) - image_f1(ground_truth, wrong)
    images = np.unique(ground_truth.image_index[right.found & ~wrong.found])
    images = images[advantage[images] > 0]
    order = images[np.argsort(-advantage[images], kind="stable")]
    return [(int(image), float(advantage[image])) for image in order]


def worst_misses(ground_truth: GroundTruth, matches_per_run: Mapping[str, RunMatches]) -> Iterator[tuple[int, Reason]]:
    """Missed objects, the worst of each run in turn.

    Severity of a miss: sqrt(area) * (1 - highest IoU with another object) * (1 - IoU of the nearest detection).
    """
    visibility = np.sqrt(ground_truth.areas) * (1.0 - _max_overlap(ground_truth))
    counts = ~ignored(ground_truth)

    def candidates(matches: RunMatches) -> Iterator[tuple[int, Reason]]:
        missed = np.flatnonzero(~matches.found & counts)
        severity = (visibility * (1.0 - matches.nearest))[missed]
        for row in missed[np.argsort(-severity, kind="stable")]:
            missing = [folder for folder, other in matches_per_run.items() if not other.found[row]]
            box, label = tuple(ground_truth.boxes[row].tolist()), int(ground_truth.labels[row])
            yield int(ground_truth.image_index[row]), Reason("miss", missing, [box], label)

    return _interleave(candidates(matches) for matches in matches_per_run.values())


def top_false_positives(
    ground_truth: GroundTruth, matches_per_run: Mapping[str, RunMatches]
) -> Iterator[tuple[int, Reason]]:
    """False positives with what is at their place, the highest score of each run in turn."""

    def candidates(folder: str, matches: RunMatches) -> Iterator[tuple[int, Reason]]:
        for found in matches.false_positives:
            detail = explain_false_positive(ground_truth, found)
            yield found.image, Reason("mistake", [folder], [found.box], found.label, found.score, detail)

    return _interleave(candidates(folder, matches) for folder, matches in matches_per_run.items())


def explain_false_positive(ground_truth: GroundTruth, detection: FalsePositive) -> str:
    """What is at the place of a false positive, as text."""
    objects = object_rows(ground_truth, detection.image)
    ious = _ious(ground_truth.boxes[objects], np.array([detection.box]))[:, 0]
    if not len(ious) or ious.max() < _NEAR_IOU:
        return "no object there"
    same = np.where(ground_truth.labels[objects] == detection.label, ious, -1.0)
    if same.max() >= 0.5:
        return "duplicate of a detected object"
    nearest = ground_truth.classes[ground_truth.labels[objects][ious.argmax()]]
    if ious.max() >= 0.5:
        return f"the object is {nearest}"
    if same.max() >= _NEAR_IOU:
        return f"poorly localised, IoU {format_ap(same.max(), 2)}"
    return f"nearest object is {nearest}, IoU {format_ap(ious.max(), 2)}"


def ignored(ground_truth: GroundTruth) -> Bool[np.ndarray, " T"]:
    """Mask of ignored objects: crowds and difficult ones."""
    return ground_truth.iscrowd | ground_truth.difficult


def _add_reasons(chosen: dict[int, list[Reason]], candidates: Iterable[tuple[int, Reason]], limit: int) -> None:
    """Add candidates to `chosen` until it has `limit` images; an image has one reason per kind and runs."""
    for image, reason in candidates:
        if image not in chosen and len(chosen) >= limit:
            return
        reasons = chosen.setdefault(image, [])
        if all((reason.kind, reason.runs) != (other.kind, other.runs) for other in reasons):
            reasons.append(reason)


def _add_pairs(
    chosen: dict[int, list[Reason]], ground_truth: GroundTruth, matches_per_run: Mapping[str, RunMatches], limit: int
) -> None:
    """Add images for pairs of runs in turn, reusing images already chosen where their F1 difference is large enough."""
    pairs = {
        pair: images_won(ground_truth, matches_per_run[pair[0]], matches_per_run[pair[1]])
        for pair in permutations(matches_per_run, 2)
    }
    rounds = max(0, limit - len(chosen))
    for _ in range(rounds):
        for (right, wrong), candidates in pairs.items():
            usable = [(image, gain) for image, gain in candidates if image in chosen or len(chosen) < limit]
            if not usable:
                continue
            best = usable[0][1]
            reusable = [image for image, gain in usable if image in chosen and gain >= _MIN_REUSED_GAIN * best]
            image = reusable[0] if reusable else usable[0][0]
            rows = np.arange(len(ground_truth.labels))[object_rows(ground_truth, image)]
            only = rows[matches_per_run[right].found[rows] & ~matches_per_run[wrong].found[rows]]
            boxes = [tuple(box) for box in ground_truth.boxes[only].tolist()]
            chosen.setdefault(image, []).append(Reason("pair", [right, wrong], boxes))
            candidates[:] = [candidate for candidate in candidates if candidate[0] != image]
        if len(chosen) >= limit:
            return


def _interleave(sources: Iterable[Iterator[tuple[int, Reason]]]) -> Iterator[tuple[int, Reason]]:
    """One candidate of each source in turn until all are exhausted."""
    waiting = list(sources)
    while waiting:
        for source in list(waiting):
            candidate = next(source, None)
            if candidate is None:
                waiting.remove(source)
            else:
                yield candidate


def _to_objects(ground_truth: GroundTruth, objects: slice) -> Objects:
    return Objects(
        [tuple(box) for box in ground_truth.boxes[objects].tolist()],
        ground_truth.labels[objects].tolist(),
        ignored(ground_truth)[objects].tolist(),
    )


def _ious(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, "M K"]:
    return box_iou(torch.from_numpy(boxes).double(), torch.from_numpy(others).double()).numpy()


def _highest_ious(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, " M"]:
    return _ious(boxes, others).max(axis=1, initial=0.0)


def _max_overlap(ground_truth: GroundTruth) -> Float[np.ndarray, " T"]:
    """Highest IoU of each object with another object of its image."""
    overlap = np.zeros(len(ground_truth.labels))
    for image in range(len(ground_truth.image_ids)):
        objects = object_rows(ground_truth, image)
        ious = _ious(ground_truth.boxes[objects], ground_truth.boxes[objects])
        np.fill_diagonal(ious, 0.0)
        overlap[objects] = ious.max(axis=1, initial=0.0)
    return overlap
