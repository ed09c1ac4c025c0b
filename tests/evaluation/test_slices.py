"""AP of slices compared with a slow implementation of COCO's rule for sizes, and with COCO's own sizes."""

from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from slow_overlap import overlap

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.slices import ASPECTS, CROWDING, SIZES, evaluate_slices

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_images": st.integers(1, 8),
        "num_classes": st.integers(1, 3),
        "max_objects": st.sampled_from([1, 5, 14]),
        "max_detections": st.sampled_from([0, 3, 30]),
        "grid": st.booleans(),
    }
)


def average_precision(
    ground_truth: GroundTruth,
    predictions: Predictions,
    has_object: np.ndarray,
    has_detection: np.ndarray,
    threshold: float,
) -> float:
    """COCO's AP of a slice: the mean over classes with an object in it."""
    precisions = []
    for label in range(len(ground_truth.classes)):
        num_objects, judged = 0, []
        for image, image_id in enumerate(ground_truth.image_ids):
            here = (ground_truth.image_index == image) & (ground_truth.labels == label)
            wanted = np.flatnonzero(here & ~ground_truth.iscrowd & has_object).tolist()
            others = np.flatnonzero(here & ~(~ground_truth.iscrowd & has_object)).tolist()
            num_objects += len(wanted)
            rows = np.flatnonzero((predictions.image_ids == image_id) & (predictions.labels == label)).tolist()
            rows.sort(key=lambda row: -predictions.scores[row])
            for row in rows[:100]:
                box = predictions.boxes[row].astype(np.float64)

                def best(objects: list[int], box: np.ndarray = box) -> int | None:
                    reached = [
                        (iou, t)
                        for t in objects
                        if (iou := overlap(box, ground_truth.boxes[t], bool(ground_truth.iscrowd[t]))) >= threshold
                    ]
                    return max(reached)[1] if reached else None

                if (found := best(wanted)) is not None:
                    wanted.remove(found)
                    judged.append((predictions.scores[row], True))
                elif (found := best(others)) is not None:
                    if not ground_truth.iscrowd[found]:
                        others.remove(found)
                elif has_detection[row]:
                    judged.append((predictions.scores[row], False))
        if not num_objects:
            continue
        judged.sort(key=lambda entry: -entry[0])
        right = np.cumsum([is_right for _, is_right in judged])
        points = [(count / num_objects, count / (n + 1)) for n, count in enumerate(right)]
        precisions.append(
            np.mean([max((p for r, p in points if r >= at), default=0.0) for at in np.linspace(0, 1, 101)])
        )
    return float(np.mean(precisions)) if precisions else -1.0


def sort_by_image(case) -> Predictions:
    """Detections sorted by image, the order that breaks ties of equal scores."""
    order = np.argsort(case.predictions.image_ids, kind="stable")
    return Predictions(*(getattr(case.predictions, name)[order] for name in ("image_ids", "boxes", "scores", "labels")))


def check(
    found: list,
    ground_truth: GroundTruth,
    predictions: Predictions,
    members: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    for entry, (has_object, has_detection) in zip(found, members, strict=True):
        assert entry.objects == (has_object & ~ground_truth.iscrowd).sum()
        ap = [
            average_precision(ground_truth, predictions, has_object, has_detection, threshold)
            for threshold in np.linspace(0.5, 0.95, 10)
        ]
        assert pytest.approx(ap[0], abs=1e-12) == entry.AP50
        assert pytest.approx(np.mean(ap), abs=1e-12) == entry.AP


@given(arguments=arguments)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_aspect_slices_equal_a_slow_loop(make_case, arguments):
    case = make_case(**arguments)
    predictions = sort_by_image(case)

    def tall_between_wide(boxes: np.ndarray) -> list[np.ndarray]:
        ratio = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) / (boxes[:, 3] - boxes[:, 1])
        return [ratio < 0.5, (ratio >= 0.5) & (ratio <= 2), ratio > 2]

    members = zip(
        tall_between_wide(case.ground_truth.boxes),
        tall_between_wide(predictions.boxes.astype(np.float64)),
        strict=True,
    )
    check(evaluate_slices(case.ground_truth, predictions)["aspect"], case.ground_truth, predictions, list(members))


@given(arguments=arguments)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_crowding_slices_equal_evaluation_of_the_images_in_the_slice(make_case, arguments):
    case = make_case(**arguments)
    truth = case.ground_truth
    counts = np.bincount(truth.image_index[~truth.iscrowd], minlength=len(truth.image_ids))
    found = evaluate_slices(truth, case.predictions)["crowding"]
    for entry, kept in zip(found, (counts <= 4, (counts >= 5) & (counts <= 9), counts >= 10), strict=True):
        inside = np.isin(case.predictions.image_ids, truth.image_ids[kept])
        columns = (getattr(case.predictions, name)[inside] for name in ("image_ids", "boxes", "scores", "labels"))
        expected = evaluate(truth.of_images(truth.image_ids[kept]), Predictions(*columns), ["coco"]).metrics
        assert pytest.approx((expected["AP"], expected["AP50"]), abs=1e-12) == (entry.AP, entry.AP50)
        assert entry.objects == counts[kept].sum()


@given(arguments=arguments)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_size_slices_equal_coco(make_case, arguments):
    case = make_case(**arguments)
    expected = evaluate(case.ground_truth, case.predictions, ["coco"]).metrics
    found = evaluate_slices(case.ground_truth, case.predictions)["size"]
    assert [entry.AP for entry in found] == pytest.approx([expected[key] for key in ("APs", "APm", "APl")], abs=1e-12)


def test_size_slices_equal_the_slow_loop(case):
    """Checks the slow loop: it implements COCO's rule for sizes."""
    predictions = sort_by_image(case)
    area = (predictions.boxes[:, 2:].astype(np.float64) - predictions.boxes[:, :2]).prod(axis=1)
    members = [
        ((case.ground_truth.areas >= low) & (case.ground_truth.areas <= high), (area >= low) & (area <= high))
        for low, high in ((0, 32**2), (32**2, 96**2), (96**2, 1e10))
    ]
    check(evaluate_slices(case.ground_truth, predictions)["size"], case.ground_truth, predictions, members)


def test_every_object_is_in_one_aspect_slice_and_one_crowding_slice(case):
    found = evaluate_slices(case.ground_truth, case.predictions)
    num_objects = int((~case.ground_truth.iscrowd).sum())
    assert sum(entry.objects for entry in found["aspect"]) == num_objects
    assert sum(entry.objects for entry in found["crowding"]) == num_objects
    names = {"size": [*SIZES], "aspect": [*ASPECTS], "crowding": [*CROWDING]}
    assert {key: [entry.name for entry in entries] for key, entries in found.items()} == names


@pytest.mark.parametrize(
    ("box", "index"),
    [
        ((0.0, 0.0, 10.0, 20.0), 1),  # exactly twice as high
        ((0.0, 0.0, 10.0, 21.0), 0),
        ((0.0, 0.0, 20.0, 10.0), 1),
        ((0.0, 0.0, 21.0, 10.0), 2),
        ((0.0, 0.0, 0.0, 10.0), 0),  # no width
        ((0.0, 0.0, 0.0, 0.0), 1),  # a point
    ],
)
def test_limits_of_aspect_slices(box, index):
    truth = GroundTruth.from_counts(
        classes=["a"],
        image_ids=np.arange(1),
        counts=np.array([1]),
        boxes=np.array([box]),
        areas=np.ones(1),
        labels=np.zeros(1, np.int64),
        iscrowd=np.zeros(1, bool),
        difficult=np.zeros(1, bool),
    )
    found = evaluate_slices(truth, Predictions.from_lists([], []))
    assert [entry.objects for entry in found["aspect"]] == [int(at == index) for at in range(3)]
    assert [entry.AP for entry in found["aspect"]] == [0.0 if at == index else -1.0 for at in range(3)]


@pytest.mark.parametrize(
    "change", [lambda truth: truth.of_images(truth.image_ids[:0]), lambda truth: only_crowds(truth)]
)
def test_ap_is_undefined_without_objects(case, change: Callable[[GroundTruth], GroundTruth]):
    truth = change(case.ground_truth)
    inside = np.isin(case.predictions.image_ids, truth.image_ids)
    columns = (getattr(case.predictions, name)[inside] for name in ("image_ids", "boxes", "scores", "labels"))
    for entries in evaluate_slices(truth, Predictions(*columns)).values():
        assert [(entry.objects, entry.AP, entry.AP50) for entry in entries] == [(0, -1.0, -1.0)] * 3


def only_crowds(truth: GroundTruth) -> GroundTruth:
    return replace(truth, iscrowd=np.ones(len(truth.labels), bool))


def test_unknown_image_is_an_input_error(case):
    other = replace(case.predictions, image_ids=case.predictions.image_ids + 5000)
    with pytest.raises(InputError, match="no ground truth"):
        evaluate_slices(case.ground_truth, other)
