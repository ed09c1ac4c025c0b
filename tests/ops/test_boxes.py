"""Area, IoU, GIoU and clipping compared with hand-computed values and torchvision.ops."""

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from zoo.ops.boxes import box_area, centred_inside, clip_boxes, paired_giou, pairwise_iou


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    corner, size = torch.rand(2, *shape, 2, generator=torch.Generator().manual_seed(seed)).unbind()
    return torch.cat((corner * 50, corner * 50 + size * 40), dim=-1)


def test_overlaps_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [10, 0, 20, 10]])
    assert box_area(boxes).tolist() == [100, 100, 100, 100]
    # 25 / 175; no overlap; touching edges share no area
    assert pairwise_iou(boxes[:1], boxes)[0].tolist() == pytest.approx([1, 1 / 7, 0, 0])
    # hull of the first two 15 x 15: 1/7 - (225 - 175) / 225; of first and third 30 x 30: 0 - (900 - 200) / 900
    assert paired_giou(boxes[[0, 0]], boxes[[1, 2]]).tolist() == pytest.approx([1 / 7 - 50 / 225, -700 / 900], abs=1e-5)


def test_overlaps_equal_torchvision() -> None:
    boxes1, boxes2 = random_boxes(3, 20), random_boxes(3, 30, seed=1)
    for one, two, iou in zip(boxes1, boxes2, pairwise_iou(boxes1, boxes2), strict=True):
        torch.testing.assert_close(iou, tv.box_iou(one, two))
    giou = tv.generalized_box_iou(boxes1[0], boxes2[0, :20]).diagonal()
    torch.testing.assert_close(paired_giou(boxes1[0], boxes2[0, :20]), giou, atol=1e-5, rtol=0)


def test_empty_sets_and_boxes_without_area() -> None:
    none = torch.zeros(2, 0, 4)
    assert pairwise_iou(none, random_boxes(2, 5)).shape == (2, 0, 5)
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert pairwise_iou(point, point).item() == 0


def test_boxes_are_clipped_to_the_size_of_their_image() -> None:
    boxes = torch.tensor([[[-5.0, 2, 130, 90]], [[-5.0, 2, 130, 90]]])
    sizes = torch.tensor([[100.0, 80], [200, 50]])  # width, height
    assert clip_boxes(boxes, sizes).tolist() == [[[0, 2, 100, 80]], [[0, 2, 130, 50]]]


def test_boxes_centred_on_the_padding_are_outside() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 20, 10, 30], [16, 0, 26, 10]])
    sizes = torch.tensor([[22.0, 40.0], [20.0, 20.0]])
    assert centred_inside(boxes, sizes).tolist() == [[True, True, True], [True, False, False]]
