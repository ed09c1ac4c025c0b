"""Curves, thresholds, calibration and confusion matrix compared with slow loops and with torchmetrics."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from slow_overlap import overlap
from torchmetrics.classification import BinaryCalibrationError

from zoo.errors import InputError
from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.curves import best_thresholds, calibration, confusion_matrix, precision_recall

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_images": st.integers(1, 8),
        "num_classes": st.integers(1, 4),
        "max_objects": st.sampled_from([0, 1, 5, 12]),
        "max_detections": st.sampled_from([0, 3, 30]),
        "grid": st.booleans(),
    }
)
reproducible = settings(max_examples=60, deadline=None, derandomize=True)


def judge(ground_truth: GroundTruth, predictions: Predictions) -> list[tuple[int, float, bool]]:
    """COCO's matching at 0.5, one detection at a time: row, score and correctness of the detections that count."""
    judged = []
    for image, image_id in enumerate(ground_truth.image_ids):
        for label in range(len(ground_truth.classes)):
            rows = np.flatnonzero((predictions.image_ids == image_id) & (predictions.labels == label)).tolist()
            rows.sort(key=lambda row: -predictions.scores[row])
            objects = np.flatnonzero((ground_truth.image_index == image) & (ground_truth.labels == label)).tolist()
            objects = [t for t in objects if not ground_truth.iscrowd[t]]
            crowds = np.flatnonzero(
                (ground_truth.image_index == image) & (ground_truth.labels == label) & ground_truth.iscrowd
            )
            for row in rows[:100]:
                box = predictions.boxes[row].astype(np.float64)
                # of equal overlaps the last object, as in COCO
                free = sorted(((overlap(box, ground_truth.boxes[t], False), t) for t in objects), reverse=True)
                if free and free[0][0] >= 0.5:
                    objects.remove(free[0][1])
                    judged.append((row, float(predictions.scores[row]), True))
                elif not any(overlap(box, ground_truth.boxes[t], True) >= 0.5 for t in crowds):
                    judged.append((row, float(predictions.scores[row]), False))
    return judged


def select(predictions: Predictions, keep: np.ndarray) -> Predictions:
    return Predictions(*(getattr(predictions, name)[keep] for name in ("image_ids", "boxes", "scores", "labels")))


def empty_case(classes: list[str], num_images: int) -> tuple[GroundTruth, Predictions]:
    truth = GroundTruth.from_counts(
        classes=classes,
        image_ids=np.arange(num_images),
        counts=np.zeros(num_images, np.int64),
        boxes=np.zeros((0, 4)),
        areas=np.zeros(0),
        labels=np.zeros(0, np.int64),
        iscrowd=np.zeros(0, bool),
        difficult=np.zeros(0, bool),
    )
    return truth, Predictions.from_lists([], [])


# ---- precision-recall curve ----


@given(arguments=arguments.filter(lambda drawn: not drawn["grid"]))  # equal scores: see the test of AP50
@reproducible
def test_precision_is_the_best_at_the_recall_or_above(make_case, arguments):
    case = make_case(**arguments)
    judged = sorted(judge(case.ground_truth, case.predictions), key=lambda entry: -entry[1])
    curves = precision_recall(case.ground_truth, case.predictions)
    for label, name in enumerate(case.ground_truth.classes):
        num_objects = int(((case.ground_truth.labels == label) & ~case.ground_truth.iscrowd).sum())
        assert (name in curves) == (num_objects > 0)
        if not num_objects:
            continue
        right = [is_right for row, _, is_right in judged if case.predictions.labels[row] == label]
        points = [(sum(right[: n + 1]) / num_objects, sum(right[: n + 1]) / (n + 1)) for n in range(len(right))]
        expected = [
            max((precision for recall, precision in points if recall >= at), default=0.0)
            for at in np.linspace(0, 1, 101)
        ]
        assert curves[name] == pytest.approx(expected, abs=1e-12)


@given(arguments=arguments)
@reproducible
def test_mean_precision_is_ap50(make_case, arguments):
    case = make_case(**arguments)
    scores = evaluate(case.ground_truth, case.predictions, ["coco"])
    curves = precision_recall(case.ground_truth, case.predictions)
    measured = {name: values["AP50"] for name, values in scores.per_class.items() if values["AP50"] >= 0}
    assert {name: np.mean(curve) for name, curve in curves.items()} == pytest.approx(measured)


# ---- best threshold ----


@given(arguments=arguments)
@reproducible
def test_best_threshold_equals_a_search_over_all_scores(make_case, arguments):
    case = make_case(**arguments)
    found = best_thresholds(case.ground_truth, case.predictions)
    for label, name in enumerate(case.ground_truth.classes):
        num_objects = int(((case.ground_truth.labels == label) & ~case.ground_truth.iscrowd).sum())
        best = (0.0, 0.0, 0.0, 0.0)
        for score in np.unique(case.predictions.scores)[::-1]:
            # matched again without the lower-scoring detections
            kept = select(case.predictions, case.predictions.scores >= score)
            judged = judge(case.ground_truth, kept)
            own = [is_right for row, _, is_right in judged if kept.labels[row] == label]
            if own and sum(own):
                precision, recall = sum(own) / len(own), sum(own) / num_objects
                f1 = 2 * precision * recall / (precision + recall)
                if f1 > best[0] + 1e-12:
                    best = (f1, float(score), precision, recall)
        assert (name in found) == (best[0] > 0)
        if name in found:
            entry = found[name]
            assert (entry.f1, entry.score, entry.precision, entry.recall) == pytest.approx(best)


def test_threshold_keeps_all_detections_of_equal_score():
    truth = GroundTruth.from_counts(
        classes=["a"],
        image_ids=np.arange(1),
        counts=np.array([2]),
        boxes=np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]),
        areas=np.full(2, 100.0),
        labels=np.zeros(2, np.int64),
        iscrowd=np.zeros(2, bool),
        difficult=np.ones(2, bool),  # ignored by COCO's protocol
    )
    predictions = Predictions(
        image_ids=np.zeros(4, np.int64),
        boxes=np.array([[0.0, 0, 10, 10], [100, 0, 110, 10], [120, 0, 130, 10], [50, 50, 60, 60]]),
        scores=np.array([0.5, 0.5, 0.5, 0.4]),
        labels=np.zeros(4, np.int64),
    )
    best = best_thresholds(truth, predictions)["a"]
    # at .5: 1 of 3 correct and 1 of 2 found, F1 .4; at .4: 2 of 4 and 2 of 2, F1 2/3
    assert (best.score, best.precision, best.recall, best.f1) == pytest.approx((0.4, 0.5, 1.0, 2 / 3))


# ---- calibration ----


@given(arguments=arguments)
@reproducible
def test_calibration_equals_a_slow_loop_and_torchmetrics(make_case, arguments):
    case = make_case(**arguments)
    judged = judge(case.ground_truth, case.predictions)
    found = calibration(case.ground_truth, case.predictions)
    if not judged:
        assert found is None
        return
    assert found is not None
    members: dict[int, list[tuple[float, bool]]] = {}
    for _, score, right in judged:
        members.setdefault(min(int(score * 10), 9), []).append((score, right))
    expected = [[*np.mean(members[at], axis=0).tolist(), len(members[at])] for at in sorted(members)]
    bins = [[entry.confidence, entry.precision, entry.count] for entry in found.bins]
    np.testing.assert_allclose(bins, expected, rtol=0, atol=1e-6)
    error = sum(count * abs(confidence - precision) for confidence, precision, count in expected) / len(judged)
    assert found.error == pytest.approx(error, abs=1e-6)
    if not arguments["grid"]:  # torchmetrics' bin limits are f32
        metric = BinaryCalibrationError(n_bins=10, norm="l1")
        scores, right = torch.tensor([entry[1] for entry in judged]), torch.tensor([int(entry[2]) for entry in judged])
        assert found.error == pytest.approx(float(metric(scores, right)), abs=1e-5)


def test_scores_outside_of_0_to_1_have_no_calibration(case):
    logits = Predictions(
        case.predictions.image_ids, case.predictions.boxes, case.predictions.scores * 9, case.predictions.labels
    )
    assert calibration(case.ground_truth, logits) is None
    assert best_thresholds(case.ground_truth, logits).keys() == set(case.ground_truth.classes)


# ---- confusion matrix ----


def slow_confusion_matrix(ground_truth: GroundTruth, predictions: Predictions, min_score: float) -> np.ndarray:
    num_classes = len(ground_truth.classes)
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    counted = {row for row, _, _ in judge(ground_truth, predictions)}
    for image, image_id in enumerate(ground_truth.image_ids):
        rows = [row for row in np.flatnonzero(predictions.image_ids == image_id).tolist() if row in counted]
        rows = [row for row in rows if predictions.scores[row] >= min_score]
        rows.sort(key=lambda row: (-predictions.scores[row], predictions.labels[row]))
        free = np.flatnonzero((ground_truth.image_index == image) & ~ground_truth.iscrowd).tolist()
        free.sort(key=lambda t: ground_truth.labels[t])
        for row in rows:
            box = predictions.boxes[row].astype(np.float64)
            true = num_classes
            overlaps = [overlap(box, ground_truth.boxes[t], False) for t in free]
            if overlaps and max(overlaps) >= 0.5:
                last = max(at for at, value in enumerate(overlaps) if value == max(overlaps))
                true = ground_truth.labels[free.pop(last)]
            matrix[true, predictions.labels[row]] += 1
        for t in free:
            matrix[ground_truth.labels[t], num_classes] += 1
    return matrix


@given(arguments=arguments, min_score=st.sampled_from([0.0, 0.3, 0.5, 2.0]))
@reproducible
def test_confusion_matrix_equals_a_slow_loop(make_case, arguments, min_score):
    case = make_case(**arguments)
    found = confusion_matrix(case.ground_truth, case.predictions, min_score)
    np.testing.assert_array_equal(found, slow_confusion_matrix(case.ground_truth, case.predictions, min_score))
    objects = case.ground_truth.labels[~case.ground_truth.iscrowd]
    np.testing.assert_array_equal(
        found.sum(axis=1)[:-1], np.bincount(objects, minlength=len(case.ground_truth.classes))
    )
    assert found[-1, -1] == 0


# ---- empty and invalid input ----


@pytest.mark.parametrize("classes", [[], ["a", "b"]])
@pytest.mark.parametrize("num_images", [0, 2])
def test_no_objects_and_no_detections(classes, num_images):
    truth, predictions = empty_case(classes, num_images)
    assert precision_recall(truth, predictions) == {}
    assert best_thresholds(truth, predictions) == {}
    assert calibration(truth, predictions) is None
    np.testing.assert_array_equal(confusion_matrix(truth, predictions, 0.5), np.zeros((len(classes) + 1,) * 2))


def test_no_detections(case):
    _, predictions = empty_case([], 0)
    assert set(map(tuple, precision_recall(case.ground_truth, predictions).values())) == {(0.0,) * 101}
    assert best_thresholds(case.ground_truth, predictions) == {}
    assert calibration(case.ground_truth, predictions) is None
    missed = confusion_matrix(case.ground_truth, predictions, 0.5)
    assert missed[:, -1].sum() == missed.sum() == (~case.ground_truth.iscrowd).sum()


@pytest.mark.parametrize("measure", [precision_recall, best_thresholds, calibration])
def test_unknown_image_is_an_input_error(case, measure):
    other = Predictions(
        case.predictions.image_ids + 5000, case.predictions.boxes, case.predictions.scores, case.predictions.labels
    )
    with pytest.raises(InputError, match="no ground truth"):
        measure(case.ground_truth, other)
