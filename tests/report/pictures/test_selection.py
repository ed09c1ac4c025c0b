"""Selection of pictures, on small cases with results computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions
from zoo.report.pictures.selection import (
    FalsePositive,
    choose_pictures,
    explain_false_positive,
    image_f1,
    images_won,
    match_predictions,
    top_false_positives,
    worst_misses,
)

A, B, C, D = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 80, 40), (0, 50, 10, 60)


def make_ground_truth(
    objects: list[tuple[int, tuple, int]], image_ids: tuple[int, ...] = (1, 2, 3), difficult=()
) -> GroundTruth:
    """Objects as (image id, box, label), images ascending."""
    boxes = np.array([box for _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
    ids = np.array(image_ids, dtype=np.int64)
    return GroundTruth(
        classes=("a", "b"),
        image_ids=ids,
        image_index=np.searchsorted(ids, [image for image, _, _ in objects]).astype(np.int64),
        boxes=boxes,
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        labels=np.array([label for *_, label in objects], dtype=np.int64),
        iscrowd=np.zeros(len(objects), bool),
        difficult=np.isin(np.arange(len(objects)), difficult),
    )


def make_predictions(detections: list[tuple[int, tuple, int, float]]) -> Predictions:
    """Detections as (image id, box, label, score), in any order of images."""
    return Predictions(
        image_ids=np.array([image for image, *_ in detections], dtype=np.int64),
        boxes=np.array([box for _, box, *_ in detections], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for *_, score in detections], dtype=np.float64),
        labels=np.array([label for _, _, label, _ in detections], dtype=np.int64),
    )


GROUND_TRUTH = make_ground_truth([(1, A, 0), (1, B, 1), (2, C, 0)])


def test_matches_and_f1_of_a_run():
    predictions = make_predictions([(2, (0, 0, 5, 5), 1, 0.7), (1, A, 0, 0.9), (1, B, 0, 0.8), (2, C, 0, 0.3)])
    matches = match_predictions(GROUND_TRUTH, predictions, 0.5)
    assert matches.found.tolist() == [True, False, False], "the third scores below the threshold"
    assert matches.nearest.tolist() == [1.0, 1.0, 0.0], "the second is covered by another class"
    assert matches.num_false.tolist() == [1, 1, 0]
    assert [(m.image, m.score) for m in matches.false_positives] == [(0, 0.8), (1, 0.7)]
    # Image 1: 1 right, 1 missed, 1 false. Image 2: 1 missed, 1 false. Image 3: no object, no detection.
    assert image_f1(GROUND_TRUTH, matches).tolist() == [0.5, 0.0, 1.0]


def test_difficult_objects_are_ignored():
    ground_truth = make_ground_truth([(1, A, 0), (1, B, 1)], difficult=[1])
    without, with_difficult = (
        match_predictions(ground_truth, make_predictions([(1, A, 0, 0.9)]), 0.5),
        match_predictions(ground_truth, make_predictions([(1, A, 0, 0.9), (1, B, 1, 0.9)]), 0.5),
    )
    assert image_f1(ground_truth, without)[0] == image_f1(ground_truth, with_difficult)[0] == 1.0
    assert [reason.boxes for _, reason in worst_misses(ground_truth, {"without": without})] == []


def test_images_won_by_finding_what_the_other_run_misses():
    perfect = match_predictions(GROUND_TRUTH, make_predictions([(1, A, 0, 0.9), (1, B, 1, 0.9), (2, C, 0, 0.9)]), 0.5)
    half = match_predictions(GROUND_TRUTH, make_predictions([(1, A, 0, 0.9)]), 0.5)
    # Image 2: F1 1 against 0. Image 1: 1 against 2/3.
    assert images_won(GROUND_TRUTH, perfect, half) == [(1, 1.0), (0, pytest.approx(1 / 3))]
    assert images_won(GROUND_TRUTH, half, perfect) == []


def test_image_is_not_won_with_many_false_positives():
    half = match_predictions(GROUND_TRUTH, make_predictions([(1, A, 0, 0.9)]), 0.5)
    noisy = match_predictions(
        GROUND_TRUTH,
        make_predictions([(1, A, 0, 0.9), (1, B, 1, 0.9), *((1, (50, y, 60, y + 9), 0, 0.9) for y in range(9))]),
        0.5,
    )
    assert images_won(GROUND_TRUTH, noisy, half) == []


def test_worst_miss_is_large_without_overlap_and_without_near_detection():
    overlapping = (1, (0, 0, 10, 9), 1)
    ground_truth = make_ground_truth([(1, A, 0), overlapping, (1, D, 0), (2, C, 0)])
    blind = match_predictions(ground_truth, make_predictions([]), 0.5)
    misses = [reason.boxes[0] for _, reason in worst_misses(ground_truth, {"blind": blind})]
    assert misses == [C, D, A, (0, 0, 10, 9)], "then the smaller, then those that overlap"
    # IoU .4: 40 * .6 = 24 is still the worst.
    near = match_predictions(ground_truth, make_predictions([(2, (40, 0, 80, 16), 0, 0.9)]), 0.5)
    assert next(reason.boxes[0] for _, reason in worst_misses(ground_truth, {"near": near})) == C
    nearer = match_predictions(ground_truth, make_predictions([(2, C, 1, 0.9)]), 0.5)  # detected as another class
    assert next(reason.boxes[0] for _, reason in worst_misses(ground_truth, {"nearer": nearer})) == D


def test_miss_names_all_runs_that_miss_it_and_runs_take_turns():
    matches_per_run = {
        "blind": match_predictions(GROUND_TRUTH, make_predictions([]), 0.5),
        "half": match_predictions(GROUND_TRUTH, make_predictions([(2, C, 0, 0.9), (1, A, 0, 0.9)]), 0.5),
    }
    misses = list(worst_misses(GROUND_TRUTH, matches_per_run))
    assert [(reason.boxes[0], reason.runs) for _, reason in misses][:2] == [(C, ["blind"]), (B, ["blind", "half"])]


@pytest.mark.parametrize(
    ("box", "label", "text"),
    [
        ((60, 60, 70, 70), 0, "no object there"),
        (A, 0, "duplicate of a detected object"),
        (A, 1, "the object is a"),
        ((0, 0, 10, 4), 0, "poorly localised, IoU .40"),
        ((0, 0, 10, 4), 1, "nearest object is a, IoU .40"),
    ],
)
def test_explain_false_positive(box, label: int, text: str):
    detection = FalsePositive(0, tuple(map(float, box)), label, 0.9)
    assert explain_false_positive(GROUND_TRUTH, detection) == text
    assert explain_false_positive(make_ground_truth([]), detection) == "no object there"


def test_false_positives_by_score_runs_in_turn():
    noisy = match_predictions(GROUND_TRUTH, make_predictions([(1, D, 0, 0.6), (3, D, 1, 0.95)]), 0.5)
    calm = match_predictions(GROUND_TRUTH, make_predictions([(2, D, 0, 0.55)]), 0.5)
    found = [
        (image, reason.runs, reason.score)
        for image, reason in top_false_positives(GROUND_TRUTH, {"noisy": noisy, "calm": calm})
    ]
    assert found == [(2, ["noisy"], 0.95), (1, ["calm"], 0.55), (0, ["noisy"], 0.6)]


def test_each_picture_is_chosen_once_with_all_reasons():
    predictions = {
        "right": make_predictions([(1, A, 0, 0.9), (1, B, 1, 0.9), (2, C, 0, 0.9)]),
        "wrong": make_predictions([(1, A, 0, 0.9), (3, D, 1, 0.9)]),
    }
    choices = choose_pictures(GROUND_TRUTH, predictions, {"right": 0.5, "wrong": 0.5}, count=3, num_sampled=1, seed=0)
    assert sorted(choice.image_id for choice in choices) == [1, 2, 3]
    kinds = {choice.image_id: [(reason.kind, reason.runs) for reason in choice.reasons] for choice in choices}
    assert ("pair", ["right", "wrong"]) in kinds[2]
    assert ("sample", []) in [kind for reasons in kinds.values() for kind in reasons]
    assert not any(runs == ["wrong", "right"] for reasons in kinds.values() for _, runs in reasons)
    pair = next(r for choice in choices for r in choice.reasons if r.kind == "pair" and choice.image_id == 2)
    assert pair.boxes == [C]


def test_choose_pictures_without_images_or_objects():
    nothing = make_ground_truth([], image_ids=())
    assert choose_pictures(nothing, {}, {}, 40, 8, 0) == []
    assert choose_pictures(nothing, {"run": make_predictions([])}, {"run": 0.5}, 40, 8, 0) == []
    sample = choose_pictures(make_ground_truth([]), {"run": make_predictions([])}, {"run": 0.5}, 40, 8, 0)
    assert len(sample) == 3


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12), num_sampled=st.integers(0, 6))
def test_at_most_count_pictures_and_none_twice(seed: int, count: int, num_sampled: int):
    random = np.random.default_rng(seed)
    ids = tuple(range(5, 5 + int(random.integers(1, 15))))
    boxes = random.integers(0, 60, (40, 2))
    objects = sorted(
        (int(random.choice(ids)), (*box, *(box + 20)), int(random.integers(2)))
        for box in boxes.tolist()
        for box in [np.array(box)]
    )
    ground_truth = make_ground_truth(objects, ids)
    predictions = {
        name: make_predictions(
            [(i, b, label, float(random.random())) for i, b, label in objects if random.random() < 0.7]
        )
        for name in ("x", "y", "z")
    }
    choices = choose_pictures(ground_truth, predictions, dict.fromkeys(predictions, 0.4), count, num_sampled, seed)
    chosen = [choice.image_id for choice in choices]
    assert len(chosen) == len(set(chosen)) <= min(count, len(ids))
    assert set(chosen) <= set(ids)
    assert all(choice.reasons for choice in choices)
    for choice in choices:
        for reason in choice.reasons:
            if reason.kind == "pair":
                f1 = {
                    run: image_f1(ground_truth, match_predictions(ground_truth, predictions[run], 0.4))[
                        ids.index(choice.image_id)
                    ]
                    for run in reason.runs
                }
                assert f1[reason.runs[0]] > f1[reason.runs[1]]
                assert reason.boxes
