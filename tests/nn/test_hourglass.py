"""Hourglass networks: map sizes, channels, and which parameters get gradients."""

import pytest
import torch
from torch import nn

from zoo.nn.hourglass import Hourglass, Residual, StackedHourglass, UpsampledTrunk
from zoo.nn.trunk import Trunk

CHANNELS, DEPTHS = (16, 24, 32), (1, 2, 2)


def test_hourglass_104_has_the_papers_layers() -> None:
    """Five times down by stride-2 residuals, two each; four residuals at the bottom; no pooling anywhere."""
    with torch.device("meta"):
        network = StackedHourglass(2, (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), 128, 256)
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in network.modules())
    for hourglass in network.hourglasses:
        widths, level = [], hourglass
        while isinstance(level, Hourglass):
            assert (len(level.skip), len(level.down), len(level.up)) == (2, 2, 2)
            assert level.down[0].conv1.stride == (2, 2)
            widths.append((level.down[0].conv1.in_channels, level.up[-1].conv2.out_channels))
            level = level.inner
        assert widths == [(256, 256), (256, 256), (384, 384), (384, 384), (384, 384)]
        assert len(level) == 4
        assert all(isinstance(residual, Residual) and residual.conv2.out_channels == 512 for residual in level)


@pytest.mark.parametrize("size", [(64, 64), (72, 40), (61, 45), (8, 8)])
def test_each_stack_s_map_has_stride_4_at_any_size(size: tuple[int, int]) -> None:
    network = StackedHourglass(3, CHANNELS, DEPTHS, 16, 20).eval()
    outputs = network(torch.randn(2, 3, *size))
    height, width = (-(-side // 4) for side in size)
    assert [tuple(output.shape) for output in outputs] == [(2, 20, height, width)] * 3


def test_one_hourglass_by_its_parts() -> None:
    """Skip plus the inner maps, each value of which is repeated in 2 x 2 cells."""
    torch.manual_seed(0)
    hourglass = Hourglass(CHANNELS[:2], DEPTHS[:2]).double().eval()
    maps = torch.randn(1, 16, 6, 8, dtype=torch.float64)
    coarse = hourglass.up(hourglass.inner(hourglass.down(maps)))
    assert coarse.shape == (1, 16, 3, 4)
    expected = hourglass.skip(maps) + coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(hourglass(maps), expected)
    odd = torch.randn(1, 16, 5, 7, dtype=torch.float64)
    coarse = hourglass.up(hourglass.inner(hourglass.down(odd)))
    expected = hourglass.skip(odd) + coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, :5, :7]
    torch.testing.assert_close(hourglass(odd), expected)


def test_second_stack_takes_input_and_output_of_the_first() -> None:
    torch.manual_seed(0)
    network = StackedHourglass(2, CHANNELS, DEPTHS, 16, 20)
    first, second = network.eval()(torch.randn(1, 3, 32, 32))
    second.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    # the first output does not depend on the second stack
    network.zero_grad()
    first, _ = network(torch.randn(1, 3, 32, 32))
    first.sum().backward()
    without = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {"hourglasses", "outputs", "from_inputs", "from_outputs", "merged"}


def test_upsampled_trunk_merges_all_levels() -> None:
    network = UpsampledTrunk(Trunk("resnet10t", (4, 8, 16, 32), False, "batch", 0), 24)
    images = torch.randn(2, 3, 64, 96)
    (maps,) = network(images)
    assert maps.shape == (2, 24, 16, 24)
    maps.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("channels", "depths", "stem", "message"),
    [
        ((16, 16), (1,), 16, "give one of each"),
        ((16,), (1,), 16, "give one of each"),
        ((16, 16), (1, 1), 8, "at least 16"),
    ],
)
def test_invalid_widths_raise(channels: tuple[int, ...], depths: tuple[int, ...], stem: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StackedHourglass(1, channels, depths, stem, 16)
