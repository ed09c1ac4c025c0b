"""Soft-NMS compared with the paper's loop over the candidates of one image."""

import math

import pytest
import torch
from torch import Tensor

from zoo.ops.boxes import pairwise_iou
from zoo.ops.soft_nms import soft_nms


def slow_soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float) -> list[tuple[float, int]]:
    iou = pairwise_iou(boxes, boxes)
    remaining = dict(enumerate(scores.tolist()))
    taken = []
    while remaining:
        best = max(remaining, key=lambda index: remaining[index])
        taken.append((remaining.pop(best), best))
        for other in remaining:
            if labels[other] == labels[best]:
                remaining[other] *= math.exp(-(iou[best, other].item() ** 2) / sigma)
    return taken


@pytest.mark.parametrize("limit", [5, 30, 100])
def test_equals_the_papers_loop(limit: int) -> None:
    torch.manual_seed(0)
    corners = torch.rand(3, 30, 2, dtype=torch.float64) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(3, 30, 2) * 20], dim=-1)
    scores, labels = torch.rand(3, 30, dtype=torch.float64), torch.randint(0, 2, (3, 30))
    found_scores, found = soft_nms(boxes, scores, labels, 0.5, limit)
    for image in range(3):
        expected = slow_soft_nms(boxes[image], scores[image], labels[image], 0.5)[:limit]
        assert found_scores[image].tolist() == pytest.approx([score for score, _ in expected])
        assert found[image].tolist() == [index for _, index in expected]


def test_by_hand() -> None:
    """IoU of the first two is 1/2: 0.8 exp(-(1/2)^2 / 0.5). The third has another class, the fourth is padding."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 10]]])
    scores, index = soft_nms(boxes, torch.tensor([[0.9, 0.8, 0.7, -1.0]]), torch.tensor([[0, 0, 1, 0]]), 0.5, 4)
    assert scores[0].tolist()[:3] == pytest.approx([0.9, 0.7, 0.8 * math.exp(-0.5)])
    assert index[0].tolist() == [0, 2, 1, 3]
    assert scores[0, 3] <= 0


def test_no_candidates() -> None:
    nothing = torch.zeros(2, 0)
    scores, index = soft_nms(torch.zeros(2, 0, 4), nothing, nothing.long(), 0.5, 10)
    assert scores.shape == index.shape == (2, 0)
