"""Receptive fields against hand-worked layers, and networks without a bounded one."""

import pytest
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.nn.receptive_field import receptive_field
from zoo.nn.trunk import Trunk


class Listed(nn.Module):
    """A network that returns its map in a list, as trunks do."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]


@pytest.mark.parametrize(
    ("layers", "stride", "field"),
    [
        # cell c: pixels c - 1, c, c + 1
        ([nn.Conv2d(3, 4, 3, padding=1)], 1, (1, 2)),
        # unpadded: pixels 4c .. 4c + 3
        ([nn.Conv2d(3, 4, 4, stride=4)], 4, (0, 4)),
        # ResNet's first two: the convolution's cell i sees 2i - 3 .. 2i + 3, the pool its cells 2c - 1 .. 2c + 1
        ([nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 4, (5, 6)),
        # a pool of 2 sees 2i, 2i + 1; the convolution its cells c - 1 .. c + 1
        ([nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1)], 2, (2, 4)),
    ],
)
def test_layers_by_hand(layers: list[nn.Module], stride: int, field: tuple[int, int]) -> None:
    network = Listed(*layers).train()
    assert receptive_field(network, stride, "mine") == field
    assert network.training


def test_zero_weights_do_not_shrink_the_field() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    assert receptive_field(Listed(convolution, nn.ReLU()), 1, "mine") == (1, 2)


def test_resnet18_at_stride_16() -> None:
    """7x7 / 2, pool 3x3 / 2, four 3x3 at stride 4, then a 3x3 / 2 and three 3x3 twice: 11 + 32 + 8 + 48 + 16 + 96."""
    trunk = Trunk("resnet18", (16,), pretrained=False, norm="batch", frozen_stages=0)
    before, after = receptive_field(trunk, 16, "resnet18")
    assert before + after == 211
    assert (before, after) == (105, 106)  # a cell's middle is the pixel 16c


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
def test_norms_over_the_whole_image_raise(layer: nn.Module) -> None:
    with pytest.raises(InputError, match="'mine' sees the whole image"):
        receptive_field(Listed(nn.Conv2d(3, 4, 3, 16, 1), layer), 16, "mine")


def test_squeeze_and_excitation_raises() -> None:
    trunk = Trunk("mobilenetv3_small_050", (8,), pretrained=False, norm="batch", frozen_stages=0)
    with pytest.raises(InputError, match="squeeze-and-excitation"):
        receptive_field(trunk, 8, "mobilenetv3_small_050")


def test_a_field_with_holes_raises() -> None:
    with pytest.raises(InputError, match="has holes"):
        receptive_field(Listed(nn.Conv2d(3, 4, 3, dilation=2, padding=2)), 1, "mine")
