"""Limits of anchors and corner cells against slow computations and hand-written tables."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.ops.boxes import pairwise_iou
from zoo.ops.limits import match_anchors, merged_objects
from zoo.ops.matching import match


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.5, 0.7]), st.booleans())
def test_match_anchors_equals_matching_all_anchors(seed: int, num_objects: int, high: float, tiny: bool) -> None:
    """Objects of any size among anchors with gaps between them, so that some centres lie in no anchor."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(40, 2, generator=generator) * 100
    anchors = torch.cat([corners, corners + 4 + 30 * torch.rand(40, 2, generator=generator)], dim=1)
    corners = torch.rand(num_objects, 2, generator=generator) * 110
    sides = 0.5 + (3 if tiny else 50) * torch.rand(num_objects, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=1)
    iou = pairwise_iou(boxes, anchors)
    matched = match(iou[None], torch.ones(1, num_objects, dtype=torch.bool), 0.3, high, True)[0].tolist()
    overlap, is_matched = match_anchors(boxes, anchors, 0.3, high)
    assert torch.equal(overlap, iou.amax(dim=1))
    assert is_matched.tolist() == [number in matched for number in range(num_objects)]


def test_merged_objects_by_hand() -> None:
    chain = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    assert merged_objects(chain).tolist() == [False, True, False, True]
    assert merged_objects(torch.ones(3, 3, dtype=torch.bool)).tolist() == [False, True, True]
    assert merged_objects(torch.eye(2, dtype=torch.bool)).tolist() == [False, False]
    assert merged_objects(torch.zeros(0, 0, dtype=torch.bool)).tolist() == []
