"""Which images are worth a look, on cases that are worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.predictions import Predictions
from zoo.report.pictures.selection import (
    Mistake,
    choose_pictures,
    explain,
    image_f1,
    judge,
    only_one_right,
    surest_mistakes,
    worst_misses,
)

A, B, C, D = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 80, 40), (0, 50, 10, 60)


def make_truth(
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


def say(detections: list[tuple[int, tuple, int, float]]) -> Predictions:
    """Detections as (image id, box, label, score), in any order of images."""
    return Predictions(
        image_ids=np.array([image for image, *_ in detections], dtype=np.int64),
        boxes=np.array([box for _, box, *_ in detections], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for *_, score in detections], dtype=np.float64),
        labels=np.array([label for _, _, label, _ in detections], dtype=np.int64),
    )


TRUTH = make_truth([(1, A, 0), (1, B, 1), (2, C, 0)])


def test_what_a_run_makes_of_the_images():
    said = say([(2, (0, 0, 5, 5), 1, 0.7), (1, A, 0, 0.9), (1, B, 0, 0.8), (2, C, 0, 0.3)])
    outcome = judge(TRUTH, said, 0.5)
    assert outcome.found.tolist() == [True, False, False], "the third was said too faintly"
    assert outcome.nearest.tolist() == [1.0, 1.0, 0.0], "the second is covered, by another class"
    assert outcome.num_false.tolist() == [1, 1, 0]
    assert [(m.image, m.score) for m in outcome.mistakes] == [(0, 0.8), (1, 0.7)]
    # Image 1: 1 right, 1 missed, 1 false. Image 2: 1 missed, 1 false. Image 3: nothing there, nothing said.
    assert image_f1(TRUTH, outcome).tolist() == [0.5, 0.0, 1.0]


def test_difficult_objects_count_neither_way():
    truth = make_truth([(1, A, 0), (1, B, 1)], difficult=[1])
    silent, finder = judge(truth, say([(1, A, 0, 0.9)]), 0.5), judge(truth, say([(1, A, 0, 0.9), (1, B, 1, 0.9)]), 0.5)
    assert image_f1(truth, silent)[0] == image_f1(truth, finder)[0] == 1.0
    assert [reason.boxes for _, reason in worst_misses(truth, {"silent": silent})] == []


def test_only_one_is_right_where_it_finds_what_the_other_misses():
    perfect = judge(TRUTH, say([(1, A, 0, 0.9), (1, B, 1, 0.9), (2, C, 0, 0.9)]), 0.5)
    half = judge(TRUTH, say([(1, A, 0, 0.9)]), 0.5)
    # Image 2: F1 1 against 0. Image 1: 1 against 2/3.
    assert only_one_right(TRUTH, perfect, half) == [(1, 1.0), (0, pytest.approx(1 / 3))]
    assert only_one_right(TRUTH, half, perfect) == []


def test_finding_one_more_at_the_price_of_many_false_is_not_being_right():
    half = judge(TRUTH, say([(1, A, 0, 0.9)]), 0.5)
    loud = judge(
        TRUTH, say([(1, A, 0, 0.9), (1, B, 1, 0.9), *((1, (50, y, 60, y + 9), 0, 0.9) for y in range(9))]), 0.5
    )
    assert only_one_right(TRUTH, loud, half) == []


def test_the_worst_miss_is_large_and_clear_and_has_nothing_near():
    overlapping = (1, (0, 0, 10, 9), 1)
    truth = make_truth([(1, A, 0), overlapping, (1, D, 0), (2, C, 0)])
    blind = judge(truth, say([]), 0.5)
    misses = [reason.boxes[0] for _, reason in worst_misses(truth, {"blind": blind})]
    assert misses == [C, D, A, (0, 0, 10, 9)], "then the smaller, then those that hide each other"
    near = judge(truth, say([(2, (40, 0, 80, 16), 0, 0.9)]), 0.5)  # IoU .4: 40 * .6 = 24 is still the worst
    assert next(reason.boxes[0] for _, reason in worst_misses(truth, {"near": near})) == C
    nearer = judge(truth, say([(2, C, 1, 0.9)]), 0.5)  # there, of another class
    assert next(reason.boxes[0] for _, reason in worst_misses(truth, {"nearer": nearer})) == D


def test_a_miss_names_all_who_miss_it_and_runs_take_turns():
    outcomes = {"blind": judge(TRUTH, say([]), 0.5), "half": judge(TRUTH, say([(2, C, 0, 0.9), (1, A, 0, 0.9)]), 0.5)}
    misses = list(worst_misses(TRUTH, outcomes))
    assert [(reason.boxes[0], reason.runs) for _, reason in misses][:2] == [(C, ["blind"]), (B, ["blind", "half"])]


@pytest.mark.parametrize(
    ("box", "label", "words"),
    [
        ((60, 60, 70, 70), 0, "nothing is there"),
        (A, 0, "a second box on an object that is found already"),
        (A, 1, "there is a"),
        ((0, 0, 10, 4), 0, "the object lies otherwise, IoU .40"),
        ((0, 0, 10, 4), 1, "only a is near, IoU .40"),
    ],
)
def test_what_is_there_instead(box, label: int, words: str):
    assert explain(TRUTH, Mistake(0, tuple(map(float, box)), label, 0.9)) == words
    assert explain(make_truth([]), Mistake(0, tuple(map(float, box)), label, 0.9)) == "nothing is there"


def test_mistakes_surest_first_runs_in_turn():
    loud = judge(TRUTH, say([(1, D, 0, 0.6), (3, D, 1, 0.95)]), 0.5)
    calm = judge(TRUTH, say([(2, D, 0, 0.55)]), 0.5)
    found = [
        (image, reason.runs, reason.score) for image, reason in surest_mistakes(TRUTH, {"loud": loud, "calm": calm})
    ]
    assert found == [(2, ["loud"], 0.95), (1, ["calm"], 0.55), (0, ["loud"], 0.6)]


def test_chosen_pictures_are_each_there_once_with_all_reasons():
    said = {
        "right": say([(1, A, 0, 0.9), (1, B, 1, 0.9), (2, C, 0, 0.9)]),
        "wrong": say([(1, A, 0, 0.9), (3, D, 1, 0.9)]),
    }
    choices = choose_pictures(TRUTH, said, {"right": 0.5, "wrong": 0.5}, count=3, num_sampled=1, seed=0)
    assert sorted(choice.image_id for choice in choices) == [1, 2, 3]
    kinds = {choice.image_id: [(reason.kind, reason.runs) for reason in choice.reasons] for choice in choices}
    assert ("pair", ["right", "wrong"]) in kinds[2]
    assert ("sample", []) in [kind for reasons in kinds.values() for kind in reasons]
    assert not any(runs == ["wrong", "right"] for reasons in kinds.values() for _, runs in reasons)
    pair = next(r for choice in choices for r in choice.reasons if r.kind == "pair" and choice.image_id == 2)
    assert pair.boxes == [C]


def test_nothing_to_choose_from():
    nothing = make_truth([], image_ids=())
    assert choose_pictures(nothing, {}, {}, 40, 8, 0) == []
    assert choose_pictures(nothing, {"run": say([])}, {"run": 0.5}, 40, 8, 0) == []
    assert len(choose_pictures(make_truth([]), {"run": say([])}, {"run": 0.5}, 40, 8, 0)) == 3, "the sample"


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 12), num_sampled=st.integers(0, 6))
def test_never_more_than_asked_for_never_twice(seed: int, count: int, num_sampled: int):
    random = np.random.default_rng(seed)
    ids = tuple(range(5, 5 + int(random.integers(1, 15))))
    boxes = random.integers(0, 60, (40, 2))
    objects = sorted(
        (int(random.choice(ids)), (*box, *(box + 20)), int(random.integers(2)))
        for box in boxes.tolist()
        for box in [np.array(box)]
    )
    truth = make_truth(objects, ids)
    said = {
        name: say([(i, b, label, float(random.random())) for i, b, label in objects if random.random() < 0.7])
        for name in ("x", "y", "z")
    }
    choices = choose_pictures(truth, said, dict.fromkeys(said, 0.4), count, num_sampled, seed)
    chosen = [choice.image_id for choice in choices]
    assert len(chosen) == len(set(chosen)) <= min(count, len(ids))
    assert set(chosen) <= set(ids)
    assert all(choice.reasons for choice in choices)
    for choice in choices:
        for reason in choice.reasons:
            if reason.kind == "pair":
                f1 = {
                    run: image_f1(truth, judge(truth, said[run], 0.4))[ids.index(choice.image_id)]
                    for run in reason.runs
                }
                assert f1[reason.runs[0]] > f1[reason.runs[1]]
                assert reason.boxes
