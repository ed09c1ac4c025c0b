"""Greedy merging: hand-worked boxes, a slow loop, and what a prediction has to be."""

import math

import pytest
import torch
from torch import Tensor

from zoo.ops.merging import match_scores, merge_by_class, merge_greedily

Box = tuple[float, ...]


def slow_match(a: Box, b: Box) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    distance = math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    return distance / diagonal + 1 - width * height / union


def slow_merge(boxes: list[Box], scores: list[float], max_match: float) -> list[tuple[float, ...]]:
    """Section 4.3, steps (d) to (g): merge the best pair until none is good enough."""
    found = list(zip(boxes, scores, strict=True))
    while len(found) > 1:
        pairs = [(i, j) for i in range(len(found)) for j in range(i + 1, len(found))]
        i, j = min(pairs, key=lambda pair: slow_match(found[pair[0]][0], found[pair[1]][0]))
        (a, s), (b, t) = found[i], found[j]
        if slow_match(a, b) > max_match:
            break
        found[i] = (tuple((s * x + t * y) / (s + t) for x, y in zip(a, b, strict=True)), s + t)
        del found[j]
    return [(*box, score) for box, score in found]


def test_match_scores_by_hand() -> None:
    box = torch.tensor([[0.0, 0, 4, 3]])
    # equal; half of it beside it: distance 2 of a diagonal of hypot(6, 3), IoU 6 / 18; far away: IoU 0
    others = torch.tensor([[0.0, 0, 4, 3], [2, 0, 6, 3], [1000, 0, 1004, 3]])
    expected = [0, 2 / math.hypot(6, 3) + 1 - 1 / 3, 1000 / math.hypot(1004, 3) + 1]
    assert match_scores(box[None], others[None])[0, 0].tolist() == pytest.approx(expected)


def test_two_boxes_become_their_average_with_the_sum_of_scores() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]]])
    merged, scores = merge_greedily(boxes, torch.tensor([[0.75, 0.25, 0.5]]), max_match=0.5)
    assert scores.tolist() == [[1.0, 0.0, 0.5]]
    assert merged[scores > 0].tolist() == [[0.5, 0, 10.5, 10], [50, 50, 60, 60]]
    assert boxes[0, 0].tolist() == [0, 0, 10, 10], "the given boxes are not changed"


def random_boxes(num: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 30
    return torch.cat((corner, corner + 5 + 20 * torch.rand(num, 2, generator=generator, dtype=torch.float64)), dim=1)


@pytest.mark.parametrize("max_match", [0.2, 0.5, 1.0])
def test_merging_equals_a_slow_loop(max_match: float) -> None:
    """Groups of several sizes at once; the places of smaller groups beyond their boxes are empty."""
    generator = torch.Generator().manual_seed(0)
    sizes = [25, 0, 1, 2, 12]
    boxes = torch.stack([random_boxes(25, generator) for _ in sizes])
    scores = torch.rand(len(sizes), 25, generator=generator, dtype=torch.float64)
    scores *= torch.arange(25) < torch.tensor(sizes)[:, None]
    merged, sums = merge_greedily(boxes, scores, max_match)
    for group, size in enumerate(sizes):
        kept = sums[group] > 0
        found = torch.cat((merged[group, kept], sums[group, kept, None]), dim=1)
        expected = slow_merge(
            [tuple(box) for box in boxes[group, :size].tolist()], scores[group, :size].tolist(), max_match
        )
        assert found.tolist() == [pytest.approx(list(row)) for row in expected]


def test_predictions_are_merged_within_their_class_and_sorted() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]]])
    scores = torch.tensor([[[0.6, 0.0], [0.6, 0.0], [0.0, 0.3], [0.9, 0.0]]])
    mask = torch.tensor([[True, True, True, True]])
    (found,) = merge_by_class(boxes, scores, mask, score_threshold=0.001, limit=10)
    assert found["boxes"].tolist() == [[0.5, 0, 10.5, 10], [50, 50, 60, 60], [0, 0, 10, 10]]
    assert found["labels"].tolist() == [0, 0, 1]
    assert found["scores"].tolist() == pytest.approx([1.2 / 2.2, 0.9 / 1.9, 0.3 / 1.3])
    (found,) = merge_by_class(boxes, scores, ~mask, score_threshold=0.001, limit=10)
    assert [found[key].shape[0] for key in ("boxes", "scores", "labels")] == [0, 0, 0]
    (found,) = merge_by_class(boxes, scores, mask, score_threshold=0.001, limit=1)
    assert len(found["scores"]) == 1
