"""Anchors compared with hand-computed ones and with torchvision's generator."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from zoo.ops.anchors import cell_anchors, grid_anchors, middle_cell_anchors, pyramid_anchors


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
