"""Gaussian radius tested by moving box corners; gaussians and peaks compared with loops over cells."""

import math

import pytest
import torch
from torch import Tensor

from zoo.ops.boxes import pairwise_iou
from zoo.ops.heatmap import draw_gaussians, gaussian_radius, top_peaks


@pytest.mark.parametrize("min_iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("size", [(20.0, 20.0), (40.0, 9.0), (3.0, 50.0)])
def test_lowest_iou_within_the_radius_is_the_required_one(size: tuple[float, float], min_iou: float) -> None:
    box = torch.tensor([[100.0, 100.0, 100 + size[0], 100 + size[1]]], dtype=torch.float64)
    radius = gaussian_radius(torch.tensor(size, dtype=torch.float64), min_iou).item()
    steps = torch.linspace(-1, 1, 9, dtype=torch.float64) * radius
    moved = box + torch.cartesian_prod(steps, steps, steps, steps)
    assert pairwise_iou(box, moved).min().item() == pytest.approx(min_iou)


def test_radius_by_hand() -> None:
    """A square of side 1 with both corners moved inwards: (1 - 2r)^2 = 0.3."""
    assert gaussian_radius(torch.ones(2), 0.3).item() == pytest.approx((1 - math.sqrt(0.3)) / 2)
    assert gaussian_radius(torch.tensor([[4.0, 4.0], [0.0, 0.0]]), 0.3).tolist() == pytest.approx(
        [2 - 2 * math.sqrt(0.3), 0]
    )


def test_radius_of_the_original_code() -> None:
    """`gaussian_radius` of princeton-vl/CornerNet since March 2019, for 40 x 40 cells at IoU 0.3."""
    assert gaussian_radius(torch.tensor([40.0, 40.0]), 0.3).item() == pytest.approx(9.04555, abs=1e-5)


def slow_gaussians(cells: Tensor, radii: Tensor, labels: Tensor, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    maps = torch.zeros(shape, dtype=torch.float64)
    for b, m in mask.nonzero().tolist():
        (x, y), r, c = cells[b, m].tolist(), radii[b, m].item(), labels[b, m].item()
        sigma = (2 * r + 1) / 6
        for i in range(max(y - r, 0), min(y + r + 1, shape[2])):
            for j in range(max(x - r, 0), min(x + r + 1, shape[3])):
                value = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2))
                maps[b, c, i, j] = max(maps[b, c, i, j].item(), value)
    return maps


@pytest.mark.parametrize("num_objects", [6, 70])
def test_gaussians_equal_a_slow_loop(num_objects: int) -> None:
    """Fewer and more than are drawn at once, some at the borders, many overlapping."""
    torch.manual_seed(0)
    cells = torch.stack([torch.randint(0, side, (2, num_objects)) for side in (11, 8)], dim=-1)
    radii, labels = torch.randint(0, 5, (2, num_objects)), torch.randint(0, 3, (2, num_objects))
    mask = torch.rand(2, num_objects) < 0.6
    found = draw_gaussians(cells, radii, labels, mask, 3, (8, 11), torch.float64)
    torch.testing.assert_close(found, slow_gaussians(cells, radii, labels, mask, (2, 3, 8, 11)))
    b, m = mask.nonzero(as_tuple=True)
    assert (found[b, labels[b, m], cells[b, m, 1], cells[b, m, 0]] == 1).all()


def test_no_objects() -> None:
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    maps = draw_gaussians(torch.zeros(2, 0, 2, dtype=torch.int64), nothing, nothing, nothing.bool(), 3, (4, 5))
    assert maps.shape == (2, 3, 4, 5)
    assert maps.abs().sum() == 0


def test_peaks() -> None:
    logits = torch.full((2, 2, 4, 5), -5.0)
    logits[0, 0, 1, 1], logits[0, 0, 1, 2], logits[0, 0, 3, 4] = 3.0, 2.0, 1.0  # the second is next to the first
    logits[0, 1, 1, 2] = 2.5  # another class's map
    values, labels, cells = top_peaks(logits, 3)
    assert values[0].tolist() == [3, 2.5, 1]
    assert labels[0].tolist() == [0, 1, 0]
    assert cells[0].tolist() == [1 * 5 + 1, 1 * 5 + 2, 3 * 5 + 4]
    values, _, _ = top_peaks(logits, 1000)
    assert values.shape == (2, 40)
    assert values[0].isfinite().sum() < 40
    assert values[1].tolist() == [-5.0] * 40  # cells of equal values are all peaks
