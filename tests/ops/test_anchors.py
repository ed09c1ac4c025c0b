"""Anchors compared with hand-computed ones and with torchvision's generator."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from zoo.ops.anchors import cell_anchors, fit_anchors, grid_anchors, middle_cell_anchors, pyramid_anchors, shape_iou


def test_cell_anchors_by_hand() -> None:
    # 16^2 at 1:1; and at height / width 4: 8 wide, 32 high
    assert cell_anchors([16], [1.0, 4.0]).tolist() == [[-8, -8, 8, 8], [-4, -16, 4, 16]]


def test_middle_cell_anchors_are_those_of_py_faster_rcnn() -> None:
    """The table in its `generate_anchors.py`, of 1-based inclusive coordinates, as edges."""
    table = [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
    expected = [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in table]
    assert middle_cell_anchors(16, (8, 16, 32), (0.5, 1.0, 2.0)).tolist() == expected


def test_grid_anchors_are_ordered_row_by_row() -> None:
    anchors = grid_anchors(torch.tensor([[-1.0, -2, 1, 2]]), (2, 3), (10, 20))
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist()
    assert centres == [[0, 0], [20, 0], [40, 0], [0, 10], [20, 10], [40, 10]]


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
def test_pyramid_anchors_equal_torchvision(size: tuple[int, int]) -> None:
    sizes, ratios = ((32, 40, 50), (64, 80, 101)), ((0.5, 1.0, 2.0),) * 2
    grids = [(size[0] // 16, size[1] // 16), (-(-size[0] // 64), -(-size[1] // 64))]
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (expected,) = AnchorGenerator(sizes, ratios)(images, [torch.zeros(1, 1, *grid) for grid in grids])
    cells = [cell_anchors(s, r) for s, r in zip(sizes, ratios, strict=True)]
    torch.testing.assert_close(torch.cat(pyramid_anchors(cells, grids, size)), expected)


def test_iou_of_shapes_by_hand() -> None:
    found = shape_iou(torch.tensor([[20.0, 10.0]]), torch.tensor([[20.0, 10.0], [10.0, 20.0], [40.0, 20.0]]))
    assert found.tolist() == [pytest.approx([1, 100 / 300, 200 / 800])]


def test_fitted_anchors_are_the_middles_of_groups_of_shapes() -> None:
    """Three groups that hardly overlap: each anchor is the mean of one, whatever the seed and the order."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[80.0, 20.0], [20.0, 90.0], [150.0, 150.0]], dtype=torch.float64)
    groups = [middle * (0.9 + 0.2 * torch.rand(40, 2, generator=generator)) for middle in middles]
    expected = torch.stack([group.mean(dim=0) for group in groups])
    shapes = torch.cat(groups)[torch.randperm(120, generator=generator)]
    for seed in range(5):
        torch.testing.assert_close(fit_anchors(shapes, 3, seed), expected)
    assert torch.equal(fit_anchors(shapes, 7, 1), fit_anchors(shapes, 7, 1))


def test_more_anchors_overlap_objects_more() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.rand(300, 2, generator=generator) * 100 + 5
    overlaps = [float(shape_iou(shapes.double(), fit_anchors(shapes, count)).amax(dim=1).mean()) for count in (1, 3, 9)]
    assert overlaps == sorted(overlaps)
    assert overlaps[2] > 0.7
    assert fit_anchors(shapes[:4], 4).sort(dim=0).values.tolist() == shapes[:4].double().sort(dim=0).values.tolist()
