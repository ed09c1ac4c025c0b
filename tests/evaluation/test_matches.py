"""Matches and weighted AP compared with both engines, with sets of repeated images, and with hand-computed cases."""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.bootstrap import KEYS
from zoo.evaluation.coco import load_hotcoco, pack_detections, run_tables
from zoo.evaluation.ground_truth import ragged_indices
from zoo.evaluation.matches import collect_matches
from zoo.evaluation.reweighting import average_precisions
from zoo.evaluation.scores import order_detections

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_images": st.integers(1, 12),
        "num_classes": st.integers(1, 5),
        "max_objects": st.sampled_from([0, 1, 5, 12]),
        "max_detections": st.sampled_from([0, 3, 30, 300]),  # above 100 of a class the lowest-scoring are not used
        "grid": st.booleans(),  # equal scores and equal overlaps
    }
)
reproducible = settings(max_examples=40, deadline=None, derandomize=True)


def coco_table(ground_truth: GroundTruth, predictions: Predictions) -> np.ndarray:
    """AP of hotcoco by class, area range and IoU threshold; NaN where undefined."""
    run = load_hotcoco(ground_truth, pack_detections(*order_detections(ground_truth, predictions)))
    precision, _ = run_tables(run)
    ap = precision[:, :, :, :, 2].mean(axis=1).transpose(1, 2, 0)
    return np.where(ap < 0, np.nan, ap)


def repeat_images(
    ground_truth: GroundTruth, predictions: Predictions, times: np.ndarray, ranked: bool
) -> tuple[GroundTruth, Predictions]:
    """The set that holds image i `times[i]` times under new ids, copies of an image in sequence.

    Args:
        ground_truth: of each image once.
        predictions: of each image once.
        times: number of copies of each image.
        ranked: replace scores by ranks in the canonical order of the original set, so that none are equal.
    """
    index, boxes, scores, labels = order_detections(ground_truth, predictions)
    if ranked:
        rank = np.empty(len(scores))
        rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        scores = -rank
    num_images = len(ground_truth.image_ids)
    drawn = np.repeat(np.arange(num_images), times)
    counts = np.bincount(ground_truth.image_index, minlength=num_images)
    objects = ragged_indices(counts, drawn)
    copied = GroundTruth.from_counts(
        classes=ground_truth.classes,
        image_ids=np.arange(len(drawn)),
        counts=counts[drawn],
        boxes=ground_truth.boxes[objects],
        areas=ground_truth.areas[objects],
        labels=ground_truth.labels[objects],
        iscrowd=ground_truth.iscrowd[objects],
        difficult=ground_truth.difficult[objects],
    )
    found = np.bincount(index, minlength=num_images)
    rows = ragged_indices(found, drawn)
    ids = np.repeat(np.arange(len(drawn)), found[drawn])
    return copied, Predictions(ids, boxes[rows], scores[rows], labels[rows])


def assert_equal_tables(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)  # NaN equals NaN


@given(arguments=arguments)
@reproducible
def test_weights_of_one_equal_the_engine(make_case: Callable, arguments: dict) -> None:
    case = make_case(**arguments)
    matches = collect_matches(case.ground_truth, case.predictions)
    once = np.ones((1, arguments["num_images"]), np.int64)
    assert_equal_tables(average_precisions(matches, once)[0], coco_table(case.ground_truth, case.predictions))


@given(arguments=arguments)
@reproducible
def test_weighted_ap_equals_evaluation_of_the_repeated_images(make_case: Callable, arguments: dict) -> None:
    case = make_case(**arguments)
    rng = np.random.default_rng(arguments["seed"])
    num_images = arguments["num_images"]
    times = np.stack([np.bincount(rng.integers(0, num_images, num_images), minlength=num_images) for _ in range(3)])
    ours = average_precisions(collect_matches(case.ground_truth, case.predictions), times)
    for weighted, drawn in zip(ours, times, strict=True):
        assert_equal_tables(
            weighted, coco_table(*repeat_images(case.ground_truth, case.predictions, drawn, ranked=True))
        )


@given(arguments=arguments)
@settings(reproducible, max_examples=20)
def test_ties_between_images_do_not_need_ranks(make_case: Callable, arguments: dict) -> None:
    case = make_case(**arguments)
    index, boxes, _, labels = order_detections(case.ground_truth, case.predictions)
    rank = np.arange(len(index)) - np.searchsorted(index, index)  # in its image: the same scores in every image
    tied = Predictions(case.ground_truth.image_ids[index], boxes, -rank.astype(np.float64), labels)
    times = np.random.default_rng(arguments["seed"]).integers(0, 4, arguments["num_images"])
    times[0] += 1
    ours = average_precisions(collect_matches(case.ground_truth, tied), times[None])[0]
    assert_equal_tables(ours, coco_table(*repeat_images(case.ground_truth, tied, times, ranked=False)))


def test_weighted_ap_equals_pycocotools_on_the_repeated_images(case) -> None:
    times = np.random.default_rng(0).integers(0, 4, len(case.ground_truth.image_ids))
    ap = average_precisions(collect_matches(case.ground_truth, case.predictions), times[None])[0]
    truth, found = repeat_images(case.ground_truth, case.predictions, times, ranked=True)
    metrics = evaluate(truth, found, ["coco"], engine="pycocotools").metrics
    ours = [ap[:, 0], ap[:, 0, 0], ap[:, 0, 5], ap[:, 1], ap[:, 2], ap[:, 3]]
    for key, values in zip(KEYS, ours, strict=True):
        assert np.nanmean(values) == pytest.approx(metrics[key], abs=1e-9)


def small_case() -> tuple[GroundTruth, Predictions]:
    """Image 1: one object found, one lower-scoring false positive. Image 2: two objects, one found, lowest score."""
    square = np.array([0.0, 0.0, 50.0, 50.0])
    truth = GroundTruth.from_counts(
        classes=["thing", "nothing"],
        image_ids=np.array([1, 2]),
        counts=np.array([1, 2]),
        boxes=np.stack([square, square, square + 100]),
        areas=np.full(3, 2500.0),
        labels=np.zeros(3, np.int64),
        iscrowd=np.zeros(3, bool),
        difficult=np.zeros(3, bool),
    )
    found = Predictions(
        image_ids=np.array([1, 1, 2]),
        boxes=np.stack([square, square + 200, square]).astype(np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.zeros(3, np.int64),
    )
    return truth, found


@pytest.mark.parametrize(
    ("times", "ap"),
    [
        # correct, wrong, correct of 3: precision 1 to a recall of 1/3 (34 of 101 recalls), then 2/3 to 2/3 (33)
        ((1, 1), (34 + 33 * 2 / 3) / 101),
        # correct, correct, wrong, wrong of 2
        ((2, 0), 1.0),
        # correct, correct of 4: recall up to 1/2 (51)
        ((0, 2), 51 / 101),
        # correct, correct, wrong, wrong, correct of 4: 1 to 1/2 (51), then 3/5 to 3/4 (25)
        ((2, 1), (51 + 25 * 3 / 5) / 101),
        # correct, wrong, correct, correct of 5: 1 to 1/5 (0.2 is reached: 21), then 3/4 to 3/5 (0.6 is reached: 40)
        ((1, 2), (21 + 40 * 3 / 4) / 101),
    ],
)
def test_weighted_ap_by_hand(times: tuple[int, int], ap: float) -> None:
    table = average_precisions(collect_matches(*small_case()), np.array([times]))[0]
    np.testing.assert_allclose(table[0, [0, 2]], ap)  # all sizes, and medium
    assert np.isnan(table[0, [1, 3]]).all()
    assert np.isnan(table[1]).all()


@pytest.mark.parametrize(("order", "ap50"), [((0, 1), 1.0), ((1, 0), 51 / 101)])
def test_of_equal_overlaps_the_last_object_is_matched(order: tuple[int, int], ap50: float) -> None:
    objects = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10]])[list(order)]
    truth = GroundTruth.from_counts(
        classes=["thing"],
        image_ids=np.array([7]),
        counts=np.array([2]),
        boxes=objects,
        areas=np.full(2, 100.0),
        labels=np.zeros(2, np.int64),
        iscrowd=np.zeros(2, bool),
        difficult=np.zeros(2, bool),
    )
    # the higher-scoring one overlaps both objects equally; the other one is correct only if the left object is free
    boxes = np.array([[2.0, 0, 12, 10], [0, 0, 10, 10]])
    found = Predictions(np.array([7, 7]), boxes, np.array([0.9, 0.8]), np.zeros(2, np.int64))
    table = average_precisions(collect_matches(truth, found), np.ones((1, 1), np.int64))[0]
    assert table[0, 0, 0] == pytest.approx(ap50)
    assert_equal_tables(table, coco_table(truth, found))


def test_boxes_without_area_are_not_matched(case) -> None:
    flat = case.ground_truth.boxes.copy()
    flat[::2, 2] = flat[::2, 0]
    truth = GroundTruth(**{**vars(case.ground_truth), "boxes": flat})
    found = Predictions(truth.image_ids[truth.image_index], flat, np.linspace(1, 0, len(flat)), truth.labels)
    ours = average_precisions(collect_matches(truth, found), np.ones((1, len(truth.image_ids)), np.int64))[0]
    assert_equal_tables(ours, coco_table(truth, found))


def test_detections_of_unknown_images_are_an_input_error(case) -> None:
    some = case.ground_truth.of_images(case.ground_truth.image_ids[:5])
    with pytest.raises(InputError, match="has predictions but no ground truth"):
        collect_matches(some, case.predictions)
