"""darknet's layers, trunks and weights files."""

import re
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.nn.darknet import ConvUnit, Darknet, LocalConv, ResidualUnit, darknet_rows, read_darknet

VERSIONS = [(0, 1), (0, 2), (1001, 0)]  # seen as int32; as int64; as int32 and connected weights transposed


def write_darknet(file: Path, numbers: Tensor, major: int = 0, minor: int = 2) -> None:
    """Write a file as darknet's save_weights does: header, then the values."""
    seen = struct.pack("<q" if minor == 2 else "<i", 64)
    file.write_bytes(struct.pack("<iii", major, minor, 0) + seen + numbers.to(torch.float32).numpy().tobytes())


class Small(nn.Module):
    """One layer of each kind, on a 3x3 map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvUnit(2, 4, 3)
        self.local = LocalConv(4, 5, 3)
        self.connected = nn.Linear(45, 6)


@pytest.mark.parametrize(("major", "minor"), VERSIONS)
def test_values_are_assigned_to_layers_in_file_order(tmp_path: Path, major: int, minor: int) -> None:
    sizes = [4, 4, 4, 4, 4 * 2 * 9, 5 * 9, 9 * 5 * 36, 6, 6 * 45]
    write_darknet(tmp_path / "small.weights", torch.arange(sum(sizes)), major, minor)
    state = read_darknet(tmp_path / "small.weights", Small())
    # each layer's values follow those of the previous layer
    assert state["conv.norm.bias"].tolist() == [0, 1, 2, 3]
    assert state["conv.norm.weight"].tolist() == [4, 5, 6, 7]
    assert state["conv.norm.running_mean"].tolist() == [8, 9, 10, 11]
    assert state["conv.norm.running_var"].tolist() == [12, 13, 14, 15]
    assert torch.equal(state["conv.conv.weight"], torch.arange(16.0, 88).view(4, 2, 3, 3))
    assert torch.equal(state["local.bias"], torch.arange(88.0, 133))
    assert torch.equal(state["local.weight"], torch.arange(133.0, 1753).view(9, 5, 36))
    assert torch.equal(state["connected.bias"], torch.arange(1753.0, 1759))
    weight = torch.arange(1759.0, 2029)
    expected = weight.view(45, 6).T if major > 1000 else weight.view(6, 45)
    assert torch.equal(state["connected.weight"], expected)
    assert list(state) == [name for name, _ in darknet_rows(Small())]


def test_network_read_from_a_file_against_plain_functions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    beta, scale, mean = torch.randn(3, 4)
    variance = torch.rand(4) + 0.5
    kernel, local_bias, local_kernel = torch.randn(4, 2, 3, 3), torch.randn(5, 3, 3), torch.randn(3, 3, 5, 4, 3, 3)
    bias, weight = torch.randn(6), torch.randn(6, 45)
    parts = [beta, scale, mean, variance, kernel, local_bias, local_kernel, bias, weight]
    write_darknet(tmp_path / "small.weights", torch.cat([part.flatten() for part in parts]))

    network = Small().eval()
    network.load_state_dict(read_darknet(tmp_path / "small.weights", network), strict=False)
    image = torch.randn(1, 2, 3, 3)
    found = network.connected(network.local(network.conv(image)).flatten(1))

    def columns(values: Tensor) -> Tensor:
        return values[:, None, None]

    normed = columns(scale) * (F.conv2d(image, kernel, padding=1)[0] - columns(mean)) / columns(variance + 1e-5).sqrt()
    hidden = normed + columns(beta)
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    padded = F.pad(hidden, (1, 1, 1, 1))
    local = local_bias.clone()
    for row in range(3):
        for column in range(3):
            patch = padded[:, row : row + 3, column : column + 3]
            for channel in range(5):
                local[channel, row, column] += (local_kernel[row, column, channel] * patch).sum()
    torch.testing.assert_close(found[0], weight @ local.flatten() + bias, rtol=1e-4, atol=1e-4)


def test_local_layer_has_separate_weights_at_each_cell_and_image_independence() -> None:
    layer = LocalConv(2, 3, 4)
    images = torch.randn(2, 2, 4, 4)
    before = layer(images)
    torch.testing.assert_close(before[1:], layer(images[1:]))
    with torch.no_grad():
        layer.weight[6] += 1  # the cell in row 1, column 2
    assert (layer(images) != before).any(dim=(0, 1)).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("name", "stride", "channels", "num_convs", "num_numbers"),
    # 89,721,616 and 162,482,580 bytes: published sizes of the files of the first 20 and 52 convolutions, with headers
    # of 16 and 20 bytes
    [
        ("darknet20", 32, 1024, 20, (89_721_616 - 16) // 4),
        ("darknet6", 64, 512, 6, 9 * 174_640 + 4 * 1_008),
        ("darknet53", 32, 1024, 52, (162_482_580 - 20) // 4),
        ("darknet7", 32, 1024, 7, 9 * (174_640 + 512 * 1024) + 4 * 2_032),
    ],
)
def test_trunks_have_the_papers_layers(name: str, stride: int, channels: int, num_convs: int, num_numbers: int) -> None:
    with torch.device("meta"):
        trunk = Darknet(name)
    assert sum(isinstance(module, nn.Conv2d) for module in trunk.modules()) == num_convs
    assert (trunk.strides, trunk.channels) == ((stride,), [channels])
    assert trunk(torch.zeros(1, 3, 128, 192, device="meta"))[0].shape == (1, channels, 128 // stride, 192 // stride)
    assert sum(torch.Size(shape).numel() for _, shape in darknet_rows(trunk)) == num_numbers


def test_levels_are_the_last_maps_of_their_strides() -> None:
    """Those that darknet's routes name: layers 36 and 61 of YOLOv3's cfg, 8 of tiny YOLOv3's."""
    image = torch.rand(1, 3, 64, 96)
    for name, strides, channels in (("darknet53", (8, 16, 32), [256, 512, 1024]), ("darknet7", (16, 32), [256, 1024])):
        trunk = Darknet(name, strides=strides).eval()
        assert trunk.channels == channels
        levels = trunk(image)
        assert [tuple(level.shape[1:]) for level in levels] == [
            (width, 64 // stride, 96 // stride) for width, stride in zip(channels, strides, strict=True)
        ]
        assert torch.equal(levels[-1], trunk.layers(image))
    assert torch.equal(levels[0], trunk.layers[:9](image)), "before the pooling"


def test_residual_units_add_their_input() -> None:
    unit = ResidualUnit(6).eval()
    features = torch.randn(2, 6, 5, 7)
    assert [unit[0].conv.weight.shape, unit[1].conv.weight.shape] == [(3, 6, 1, 1), (6, 3, 3, 3)]
    torch.testing.assert_close(unit(features), features + unit[1](unit[0](features)))


def test_pooling_of_stride_1_takes_right_and_lower_neighbours() -> None:
    pool = Darknet("darknet7").layers[11]
    image = torch.tensor([[[[1.0, 2, 3], [9, 4, 5], [6, -8, -7]]]])
    assert pool(image)[0, 0].tolist() == [[9, 5, 5], [9, 5, 5], [6, -7, -7]]


def test_pretrained_trunk_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "trunk.weights"
    write_darknet(file, torch.arange(1_575_792) % 1000)
    trunk = Darknet("darknet6", str(file))
    first = trunk.layers[0]
    assert isinstance(first, ConvUnit)
    assert first.norm.weight.tolist() == list(range(16, 32))
    last = trunk.layers[-2]
    assert isinstance(last, ConvUnit)
    assert last.conv.weight.flatten()[-1].item() == 791


def test_unusable_files_raise(tmp_path: Path) -> None:
    file = tmp_path / "some.weights"
    with pytest.raises(InputError, match=r"some\.weights: no such weights file"):
        read_darknet(file, Small())
    file.write_bytes(b"short")
    with pytest.raises(InputError, match="too short"):
        read_darknet(file, Small())
    write_darknet(file, torch.zeros(2028))
    with pytest.raises(InputError, match=re.escape("holds 2,028 values after its header, but the network has 2,029")):
        read_darknet(file, Small())
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match="not a header and float32 values"):
        read_darknet(file, Small())
    with pytest.raises(InputError, match=r"--model\.pretrained FILE"):
        Darknet("darknet6", pretrained=True)
