"""OverFeat's trunk: layers, stride, receptive field, and fine stride as section 3.3 defines it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.nn.overfeat import OverFeat
from zoo.nn.receptive_field import receptive_field


@pytest.fixture(scope="module")
def trunk() -> OverFeat:
    return OverFeat()


def test_layers_of_table_3(trunk: OverFeat) -> None:
    convolutions = [layer for layer in trunk.network if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in convolutions] == [
        (96, 7, 2), (256, 7, 1), (512, 3, 1), (512, 3, 1), (1024, 3, 1), (1024, 3, 1),
    ]  # fmt: skip


def test_stride_is_12_with_sizes_rounded_up(trunk: OverFeat) -> None:
    with torch.no_grad():
        (features,) = trunk(torch.zeros(1, 3, 97, 84))
    assert features.shape == (1, 1024, 9, 7)


def test_receptive_field_of_the_dilated_classifier_is_317_pixels(trunk: OverFeat) -> None:
    """The paper's window of 221 pixels, and 48 on each side: four padded 3x3 convolutions at stride 12."""
    before, after = receptive_field(trunk, 12, "overfeat")
    assert before + after + (5 - 1) * 3 * 12 == 221 + 2 * 4 * 12


def test_fine_stride_equals_pooling_at_all_nine_offsets(trunk: OverFeat) -> None:
    """Section 3.3: pool 3x3 without overlap at each offset, classify each map with 5x5 cells, interleave."""
    torch.manual_seed(0)
    features = torch.randn(1, 4, 23, 26)
    plain, dilated = nn.Conv2d(4, 2, 5), nn.Conv2d(4, 2, 5, dilation=3)
    dilated.load_state_dict(plain.state_dict())
    fine = dilated(trunk.network[-1](features)[:, :, 1:-1, 1:-1])  # without the pool's padding
    for y in range(3):
        for x in range(3):
            expected = plain(F.max_pool2d(features[:, :, y:, x:], 3))
            torch.testing.assert_close(fine[:, :, y::3, x::3], expected, atol=1e-5, rtol=1e-5)
