"""Combined detections against hand-worked numbers and slow loops, and the oracle as a bound."""

import numpy as np
import pytest

from zoo.evaluation import GroundTruth, Predictions, evaluate
from zoo.evaluation.ensembles import fuse, oracle_ap, rescore


def make(rows: list[tuple[int, int, float, tuple[float, float, float, float]]]) -> Predictions:
    """From image id, label, score and box."""
    return Predictions(
        image_ids=np.array([row[0] for row in rows], np.int64),
        boxes=np.array([row[3] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], np.float32),
        labels=np.array([row[1] for row in rows], np.int64),
    )


def random_predictions(seed: int, count: int = 300) -> Predictions:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    return Predictions(
        image_ids=random.integers(1, 6, count),
        boxes=np.concatenate([corners, corners + random.uniform(5, 40, (count, 2))], axis=1),
        scores=random.uniform(0.01, 1, count).round(2),
        labels=random.integers(0, 3, count),
    )


def slow_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_rescoring_by_hand() -> None:
    first = make([(7, 0, 0.6, (0, 0, 10, 10)), (7, 0, 0.8, (50, 50, 60, 60)), (8, 1, 0.4, (0, 0, 10, 10))])
    second = make(
        [
            (7, 0, 0.9, (0, 0, 10, 8)),  # IoU 0.8
            (7, 0, 1.0, (0, 0, 10, 6)),  # IoU 0.6
            (7, 1, 1.0, (0, 0, 10, 10)),  # another class
            (7, 0, 1.0, (50, 50, 60, 54)),  # IoU 0.4
            (8, 1, 0.5, (0, 0, 10, 10)),
        ]
    )
    combined = rescore(first, second)
    assert combined.scores.tolist() == pytest.approx([(0.6 + 0.72) / 2, 0.4, (0.4 + 0.5) / 2])
    assert combined.boxes.tolist() == first.boxes.tolist()
    assert combined.labels.tolist() == [0, 0, 1]
    assert rescore(first, make([])).scores.tolist() == pytest.approx([0.3, 0.4, 0.2])
    assert len(rescore(make([]), second)) == 0


def test_rescoring_equals_a_slow_loop() -> None:
    first, second = random_predictions(0), random_predictions(1)
    combined = rescore(first, second)
    for row in range(len(first)):
        boosts = [
            iou * second.scores[other]
            for other in range(len(second))
            if (second.image_ids[other], second.labels[other]) == (first.image_ids[row], first.labels[row])
            and (iou := slow_iou(first.boxes[row].tolist(), second.boxes[other].tolist())) >= 0.5
        ]
        assert combined.scores[row] == pytest.approx((first.scores[row] + max(boosts, default=0)) / 2)


def test_fusion_by_hand() -> None:
    first = make([(7, 0, 0.8, (0, 0, 10, 10)), (7, 0, 0.2, (30, 30, 40, 40))])
    second = make([(7, 0, 0.4, (0, 0, 10, 7)), (7, 1, 0.9, (0, 0, 10, 10)), (7, 0, 0.1, (0, 0, 10, 9))])
    fused = fuse([first, second])
    # Of class 0: 0.8 and 0.4 (IoU 0.7) and 0.1 become one box of three: score 1.3 / 3, y2 (8 + 2.8 + 0.9) / 1.3.
    assert fused.image_ids.tolist() == [7, 7, 7]
    assert fused.labels.tolist() == [0, 0, 1]
    assert fused.scores.tolist() == pytest.approx([1.3 / 3, 0.2 / 2, 0.9 / 2])
    np.testing.assert_allclose(fused.boxes[0], [0, 0, 10, 9], atol=1e-6)
    np.testing.assert_allclose(fused.boxes[1:], [[30, 30, 40, 40], [0, 0, 10, 10]])
    assert len(fuse([make([]), make([])])) == 0
    alone = fuse([make([]), second])
    assert sorted(alone.scores.tolist()) == pytest.approx([0.25, 0.45])  # of 0.4 and 0.1, which overlap


def test_fusion_equals_the_papers_steps() -> None:
    """Steps 1 to 6 of section 3 with lists of boxes, image by image and class by class."""
    members = [random_predictions(2), random_predictions(3)]
    fused = fuse(members)
    expected = []
    for image in range(1, 6):
        for label in range(3):
            boxes = [
                (float(m.scores[row]), m.boxes[row])
                for m in members
                for row in range(len(m))
                if (m.image_ids[row], m.labels[row]) == (image, label)
            ]
            clusters: list[list[tuple[float, np.ndarray]]] = []
            for score, box in sorted(boxes, key=lambda pair: -pair[0]):
                middles = [sum(s * b for s, b in cluster) / sum(s for s, _ in cluster) for cluster in clusters]
                overlaps = [slow_iou(middle.tolist(), box.tolist()) for middle in middles]
                if overlaps and max(overlaps) > 0.55:
                    clusters[overlaps.index(max(overlaps))].append((score, box))
                else:
                    clusters.append([(score, box)])
            for cluster in clusters:
                total = sum(s for s, _ in cluster)
                middle = sum(s * b for s, b in cluster) / total
                expected.append((image, label, total / len(cluster) * min(len(cluster), 2) / 2, *middle.tolist()))
    found = zip(fused.image_ids, fused.labels, fused.scores, *fused.boxes.T, strict=True)
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-9)


def ground_truth() -> GroundTruth:
    return GroundTruth.from_counts(
        classes=("cat", "dog", "cow"),
        image_ids=np.array([1, 2]),
        counts=np.array([3, 2]),
        boxes=np.array([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 60, 60], [0, 0, 10, 10], [5, 5, 30, 30]], np.float64),
        areas=np.array([100.0, 400, 3600, 100, 625]),
        labels=np.array([0, 0, 1, 0, 1]),
        iscrowd=np.array([False, False, True, False, False]),
        difficult=np.zeros(5, bool),
    )


def test_oracle_takes_the_better_box_of_each_object() -> None:
    """Three cats: IoU 1 by the first, 0.8 by the second, 0.6 and 0.7 by both; one dog is missed, one is a crowd."""
    first = make([(1, 0, 0.1, (0, 0, 10, 10)), (2, 0, 0.9, (0, 0, 10, 6)), (1, 1, 0.9, (0, 0, 60, 60))])
    second = make([(1, 0, 0.5, (20, 20, 40, 36)), (2, 0, 0.2, (0, 0, 10, 7)), (1, 1, 0.9, (20, 20, 40, 40))])
    # Recall 3/3 at .50 to .70, 2/3 at .75 and .80, 1/3 above: 101, 67 and 34 of the 101 recalls are reached.
    cats = (5 * 101 + 2 * 67 + 3 * 34) / 1010
    assert oracle_ap(ground_truth(), [first, second]) == pytest.approx(cats / 2)
    assert oracle_ap(ground_truth(), [first]) < oracle_ap(ground_truth(), [first, second])
    assert oracle_ap(ground_truth(), [make([])]) == 0


def test_no_choice_among_the_boxes_exceeds_the_oracle() -> None:
    objects = random_predictions(9, 60)
    order = np.argsort(objects.image_ids, kind="stable")
    truth = GroundTruth.from_counts(
        classes=("a", "b", "c"),
        image_ids=np.arange(1, 6),
        counts=np.bincount(objects.image_ids, minlength=6)[1:],
        boxes=objects.boxes[order],
        areas=np.full(60, 100.0),
        labels=objects.labels[order],
        iscrowd=np.zeros(60, bool),
        difficult=np.zeros(60, bool),
    )
    shifted = Predictions(objects.image_ids, objects.boxes + 2.0, objects.scores, objects.labels)
    members = [shifted, random_predictions(4, 600)]
    bound = oracle_ap(truth, members)
    for combined in (*members, rescore(*members), rescore(*members[::-1])):
        assert evaluate(truth, combined, ["coco"]).metrics["AP"] <= bound
    assert oracle_ap(truth, [objects]) == pytest.approx(evaluate(truth, objects, ["coco"]).metrics["AP"])
