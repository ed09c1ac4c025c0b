"""Anchor assignment compared with a hand-written table and with torchvision's matcher."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from zoo.ops.matching import BACKGROUND, IGNORED, gather_matched, match

# rows: objects; columns: anchors
IOU = torch.tensor([[[0.80, 0.45, 0.10, 0.00, 0.30], [0.20, 0.42, 0.10, 0.39, 0.20]]])
REAL = torch.tensor([[True, True]])


def test_thresholds_by_hand() -> None:
    # 0.8 is matched; 0.45 is between the thresholds; 0.10, 0.39 and 0.30 are below 0.4
    assert match(IOU, REAL, 0.4, 0.5, False).tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_best_anchor_of_an_object_is_matched_to_the_object_that_it_overlaps_most() -> None:
    # The second object's best anchor is 1 (0.42), but that one overlaps the first object more (0.45).
    assert match(IOU, REAL, 0.4, 0.5, True).tolist() == [[0, 0, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_padding_is_not_matched() -> None:
    padded = torch.tensor([[True, False]])
    iou = IOU.clone()
    iou[0, 1] = 0.9
    assert match(iou, padded, 0.4, 0.5, True).tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_object_without_overlap_is_not_matched() -> None:
    iou = torch.zeros(1, 1, 3)
    assert match(iou, torch.tensor([[True]]), 0.4, 0.5, True).tolist() == [[BACKGROUND] * 3]


def test_no_objects() -> None:
    assert match(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool), 0.4, 0.5, True).tolist() == [[-1] * 3] * 2
    assert gather_matched(torch.zeros(2, 0, 4), torch.full((2, 3), -1)).shape == (2, 3, 4)


@pytest.mark.parametrize("keep_best", [True, False])
def test_same_as_torchvision(keep_best: bool) -> None:
    iou = torch.rand(4, 6, 200, generator=torch.Generator().manual_seed(0))
    # Rounded, so that there are ties.
    iou = (iou * 20).round() / 20
    found = match(iou, torch.ones(4, 6, dtype=torch.bool), 0.4, 0.7, keep_best)
    for one, matched in zip(iou, found, strict=True):
        assert torch.equal(matched, Matcher(0.7, 0.4, allow_low_quality_matches=keep_best)(one))
