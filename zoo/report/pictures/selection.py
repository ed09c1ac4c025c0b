"""Which test images are worth a look: where only one of two is right, the worst misses, the surest mistakes.

Legend:
    N  images      T  objects of all images      M  objects of an image

A detection is right as in the page's pictures: at IoU 0.5, from the score on at which the run's detections are shown.
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

_REUSED = 0.5  # an image that is shown anyway serves for a pair where it tells half as much as the one that tells most
_SEEN = 0.1  # IoU with an object below which a detection is nowhere near it


@dataclass(frozen=True)
class Choice:
    """An image to show, and why; boxes of the reasons are in its own pixels."""

    image_id: int
    reasons: list[Reason]


@dataclass(frozen=True)
class Mistake:
    """A false detection."""

    image: int  # a place in `GroundTruth.image_ids`
    box: tuple[float, float, float, float]
    label: int
    score: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one run makes of all images."""

    found: Bool[np.ndarray, "T"]
    nearest: Float[np.ndarray, "T"]  # greatest IoU of each object with any shown detection, of whatever class
    num_false: Int64[np.ndarray, "N"]
    mistakes: list[Mistake] = field(default_factory=list)  # surest first


def choose_pictures(
    truth: GroundTruth,
    predictions: Mapping[str, Predictions],
    shown_scores: Mapping[str, float],
    count: int,
    num_sampled: int,
    seed: int,
) -> list[Choice]:
    """Choose up to `count` images: a plain sample, of the others a quarter misses, a quarter mistakes, then pairs.

    Where pairs leave room, misses and mistakes fill it. An image is chosen once, with all its reasons. Runs take
    turns, so that none fills a category alone.

    Args:
        truth: of all images of the measured split.
        predictions: folder of a run -> what it said; one run of each configuration, not several seeds.
        shown_scores: folder of a run -> score from which its detections are shown.
        count: how many images at most.
        num_sampled: how many of them are a sample from the emptiest to the most crowded, without regard to any run.
        seed: of that sample.

    Returns:
        The sample first, then misses, mistakes and pairs, in the order in which they were chosen.
    """
    outcomes = {folder: judge(truth, said, shown_scores[folder]) for folder, said in predictions.items()}
    num_objects = np.bincount(truth.image_index, minlength=len(truth.image_ids))
    chosen: dict[int, list[Reason]] = {
        image: [Reason("sample")] for image in choose_examples(num_objects.tolist(), min(num_sampled, count), seed)
    }
    quarter = max(0, count - len(chosen)) // 4
    _take(chosen, worst_misses(truth, outcomes), len(chosen) + quarter)
    _take(chosen, surest_mistakes(truth, outcomes), len(chosen) + quarter)
    _take_pairs(chosen, truth, outcomes, count)
    _take(chosen, _in_turn([worst_misses(truth, outcomes), surest_mistakes(truth, outcomes)]), count)
    return [Choice(int(truth.image_ids[image]), reasons) for image, reasons in chosen.items()]


def judge(truth: GroundTruth, predictions: Predictions, min_score: float) -> Outcome:
    """Match what a run says, from a score on, with what is true, image by image."""
    shown = np.flatnonzero(predictions.scores >= min_score)
    order = shown[np.lexsort((-predictions.scores[shown], predictions.image_ids[shown]))]  # stable: equal scores stay
    image_ids = predictions.image_ids[order]
    firsts = np.searchsorted(image_ids, truth.image_ids)
    lasts = np.searchsorted(image_ids, truth.image_ids, side="right")
    found, nearest = np.zeros(len(truth.labels), bool), np.zeros(len(truth.labels))
    num_false = np.zeros(len(truth.image_ids), np.int64)
    mistakes = []
    for image in range(len(truth.image_ids)):
        rows, objects = order[firsts[image] : lasts[image]], objects_of(truth, image)
        said = Detections(
            [tuple(box) for box in predictions.boxes[rows].tolist()],
            predictions.labels[rows].tolist(),
            predictions.scores[rows].tolist(),
        )
        matching = match_detections(said, _to_objects(truth, objects), min_score)
        found[objects] = matching.found
        nearest[objects] = _nearest(truth.boxes[objects], predictions.boxes[rows])
        false = [at for at, verdict in enumerate(matching.verdicts) if verdict == "false"]
        num_false[image] = len(false)
        mistakes += [Mistake(image, said.boxes[at], said.labels[at], said.scores[at]) for at in false]
    mistakes.sort(key=lambda mistake: -mistake.score)
    return Outcome(found, nearest, num_false, mistakes)


def objects_of(truth: GroundTruth, image: int) -> slice:
    """Rows of the objects of one image."""
    return slice(*np.searchsorted(truth.image_index, [image, image + 1]).tolist())


def image_f1(truth: GroundTruth, outcome: Outcome) -> Float[np.ndarray, "N"]:
    """F1 of each image: 2 right / (2 right + missed + false), and 1 where nothing is there and nothing is said."""
    counts = ~ignored(truth)
    size = len(truth.image_ids)
    right = np.bincount(truth.image_index[outcome.found & counts], minlength=size)
    missed = np.bincount(truth.image_index[~outcome.found & counts], minlength=size)
    wrong = missed + outcome.num_false
    return np.where(right + wrong > 0, 2 * right / np.maximum(2 * right + wrong, 1), 1.0)


def only_one_right(truth: GroundTruth, right: Outcome, wrong: Outcome) -> list[tuple[int, float]]:
    """Images with an object that only the first of two runs finds, the greatest difference of their F1 first.

    Returns:
        (image, difference); those where the second has the higher F1 all the same are left out.
    """
    advantage = image_f1(truth, right) - image_f1(truth, wrong)
    images = np.unique(truth.image_index[right.found & ~wrong.found])
    images = images[advantage[images] > 0]
    order = images[np.argsort(-advantage[images], kind="stable")]
    return [(int(image), float(advantage[image])) for image in order]


def worst_misses(truth: GroundTruth, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[int, Reason]]:
    """Missed objects, for each run in turn the largest and clearest that it has nothing near to.

    How bad a miss is: sqrt(area) * (1 - greatest IoU with another object) * (1 - IoU of the nearest detection).
    """
    clearness = np.sqrt(truth.areas) * (1.0 - _greatest_overlap(truth))
    counts = ~ignored(truth)

    def of_run(outcome: Outcome) -> Iterator[tuple[int, Reason]]:
        missed = np.flatnonzero(~outcome.found & counts)
        badness = (clearness * (1.0 - outcome.nearest))[missed]
        for row in missed[np.argsort(-badness, kind="stable")]:
            missing = [folder for folder, other in outcomes.items() if not other.found[row]]
            box, label = tuple(truth.boxes[row].tolist()), int(truth.labels[row])
            yield int(truth.image_index[row]), Reason("miss", missing, [box], label)

    return _in_turn(of_run(outcome) for outcome in outcomes.values())


def surest_mistakes(truth: GroundTruth, outcomes: Mapping[str, Outcome]) -> Iterator[tuple[int, Reason]]:
    """False detections, for each run in turn the one of the highest score, and what is there instead."""

    def of_run(folder: str, outcome: Outcome) -> Iterator[tuple[int, Reason]]:
        for mistake in outcome.mistakes:
            detail = explain(truth, mistake)
            yield mistake.image, Reason("mistake", [folder], [mistake.box], mistake.label, mistake.score, detail)

    return _in_turn(of_run(folder, outcome) for folder, outcome in outcomes.items())


def explain(truth: GroundTruth, mistake: Mistake) -> str:
    """What is there instead of what was said."""
    objects = objects_of(truth, mistake.image)
    ious = _ious(truth.boxes[objects], np.array([mistake.box]))[:, 0]
    if not len(ious) or ious.max() < _SEEN:
        return "nothing is there"
    same = np.where(truth.labels[objects] == mistake.label, ious, -1.0)
    if same.max() >= 0.5:
        return "a second box on an object that is found already"
    if ious.max() >= 0.5:
        return f"there is {truth.classes[truth.labels[objects][ious.argmax()]]}"
    if same.max() >= _SEEN:
        return f"the object lies otherwise, IoU {format_ap(same.max(), 2)}"
    return f"only {truth.classes[truth.labels[objects][ious.argmax()]]} is near, IoU {format_ap(ious.max(), 2)}"


def ignored(truth: GroundTruth) -> Bool[np.ndarray, "T"]:
    """Objects that count neither way: crowds and difficult ones."""
    return truth.iscrowd | truth.difficult


def _take(chosen: dict[int, list[Reason]], candidates: Iterable[tuple[int, Reason]], limit: int) -> None:
    """Give images their reasons until there are `limit` images; an image has one reason of a kind and run."""
    for image, reason in candidates:
        if image not in chosen and len(chosen) >= limit:
            return
        reasons = chosen.setdefault(image, [])
        if all((reason.kind, reason.runs) != (other.kind, other.runs) for other in reasons):
            reasons.append(reason)


def _take_pairs(
    chosen: dict[int, list[Reason]], truth: GroundTruth, outcomes: Mapping[str, Outcome], limit: int
) -> None:
    """Give each pair one image after another, in turns; images that are chosen already serve where they tell much."""
    pairs = {pair: only_one_right(truth, outcomes[pair[0]], outcomes[pair[1]]) for pair in permutations(outcomes, 2)}
    turns = max(0, limit - len(chosen))
    for _ in range(turns):
        for (right, wrong), candidates in pairs.items():
            usable = [(image, gain) for image, gain in candidates if image in chosen or len(chosen) < limit]
            if not usable:
                continue
            best = usable[0][1]
            known = [image for image, gain in usable if image in chosen and gain >= _REUSED * best]
            image = known[0] if known else usable[0][0]
            rows = np.arange(len(truth.labels))[objects_of(truth, image)]
            only = rows[outcomes[right].found[rows] & ~outcomes[wrong].found[rows]]
            boxes = [tuple(box) for box in truth.boxes[only].tolist()]
            chosen.setdefault(image, []).append(Reason("pair", [right, wrong], boxes))
            candidates[:] = [candidate for candidate in candidates if candidate[0] != image]
        if len(chosen) >= limit:
            return


def _in_turn(sources: Iterable[Iterator[tuple[int, Reason]]]) -> Iterator[tuple[int, Reason]]:
    """One of each in turn until all are empty."""
    waiting = list(sources)
    while waiting:
        for source in list(waiting):
            candidate = next(source, None)
            if candidate is None:
                waiting.remove(source)
            else:
                yield candidate


def _to_objects(truth: GroundTruth, objects: slice) -> Objects:
    return Objects(
        [tuple(box) for box in truth.boxes[objects].tolist()],
        truth.labels[objects].tolist(),
        ignored(truth)[objects].tolist(),
    )


def _ious(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, "M K"]:
    return box_iou(torch.from_numpy(boxes).double(), torch.from_numpy(others).double()).numpy()


def _nearest(boxes: Float[np.ndarray, "M 4"], others: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, "M"]:
    return _ious(boxes, others).max(axis=1, initial=0.0)


def _greatest_overlap(truth: GroundTruth) -> Float[np.ndarray, "T"]:
    """Greatest IoU of each object with another one of its image."""
    overlap = np.zeros(len(truth.labels))
    for image in range(len(truth.image_ids)):
        objects = objects_of(truth, image)
        ious = _ious(truth.boxes[objects], truth.boxes[objects])
        np.fill_diagonal(ious, 0.0)
        overlap[objects] = ious.max(axis=1, initial=0.0)
    return overlap
