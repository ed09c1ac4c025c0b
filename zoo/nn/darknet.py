"""darknet's layers, the trunks of YOLOv1 (arXiv 1506.02640) and YOLOv3 (1804.02767), and darknet weights files.

Original code: pjreddie/darknet (cfg/yolov1, cfg/yolov3.cfg, cfg/yolov3-tiny.cfg, src/parser.c, src/local_layer.c).
Deviation: darknet adds 1e-6 to the standard deviation of its batch norm on CPUs and 1e-5 to the variance on GPUs; here
it is the latter, as in PyTorch.

A weights file is little-endian: int32 major, minor, revision; number of images seen, int64 from version 0.2 on and
int32 before; then float32 values of each layer in network order:

    convolution     biases [O], scales [O], rolling means [O], rolling variances [O], weights [O, I, k, k]; without
                    batch norm biases [O], weights [O, I, k, k]
    local           biases [O * S * S], weights [S * S, O, I * k * k]
    connected       biases [O], weights [O, I]; [I, O] where major or minor is above 1000

Biases and scales of a convolution are bias and weight of its batch norm. Connected layers have no batch norm here.
A file has no layer names or shapes, so only the total number of values can be checked.

Legend: B images, I input and O output channels, k side of a kernel, S side of a map.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError

LEAK = 0.1
HEADER_INTS = 3
TRANSPOSED_FROM = 1000
"""Files with a larger major or minor version store connected weights transposed, [I, O]."""


class Conv(NamedTuple):
    """Kernel size, output channels and stride of a trunk's convolution."""

    size: int
    channels: int
    stride: int = 1


class Residual(NamedTuple):
    """Output channels of a residual block, a 1x1 convolution to half of them and a 3x3 one."""

    channels: int


Layer = Conv | Residual | Literal["pool", "pool of stride 1"]

TRUNKS: dict[str, tuple[Layer, ...]] = {
    # Figure 3 of the paper: the layers pre-trained on ImageNet; darknet's extraction.conv.weights.
    "darknet20": (
        *(Conv(7, 64, 2), "pool"),
        *(Conv(3, 192), "pool"),
        *(Conv(1, 128), Conv(3, 256), Conv(1, 256), Conv(3, 512), "pool"),
        *(Conv(1, 256), Conv(3, 512)) * 4,
        *(Conv(1, 512), Conv(3, 1024), "pool"),
        *(Conv(1, 512), Conv(3, 1024)) * 2,
    ),
    # Fast YOLO, up to its last pooling.
    "darknet6": tuple(layer for width in (16, 32, 64, 128, 256, 512) for layer in (Conv(3, width), "pool")),
    # Table 1 of YOLOv3; darknet53.conv.74.
    "darknet53": (
        *(Conv(3, 32), Conv(3, 64, 2), Residual(64)),
        *(Conv(3, 128, 2), *(Residual(128),) * 2),
        *(Conv(3, 256, 2), *(Residual(256),) * 8),
        *(Conv(3, 512, 2), *(Residual(512),) * 8),
        *(Conv(3, 1024, 2), *(Residual(1024),) * 4),
    ),
    # Tiny YOLOv3, up to its first branch.
    "darknet7": (
        *(layer for width in (16, 32, 64, 128, 256) for layer in (Conv(3, width), "pool")),
        *(Conv(3, 512), "pool of stride 1", Conv(3, 1024)),
    ),
}


class ConvUnit(nn.Module):
    """Convolution, batch norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, a=LEAK)

    def forward(self, features: Float[Tensor, "B I _ _"]) -> Float[Tensor, "B O _ _"]:
        """Feature maps with sides divided by the stride."""
        return F.leaky_relu(self.norm(self.conv(features)), LEAK)


class ResidualUnit(nn.Sequential):
    """The residual block of Darknet-53."""

    def __init__(self, channels: int) -> None:
        super().__init__(ConvUnit(channels, channels // 2, 1), ConvUnit(channels // 2, channels, 3))

    def forward(self, features: Float[Tensor, "B I H W"]) -> Float[Tensor, "B I H W"]:
        """Feature maps of the same shape."""
        return features + super().forward(features)


class LocalConv(nn.Module):
    """Locally connected 3x3 layer, with separate weights at each cell of a square map: darknet's `local` layer."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        fan_in = 9 * in_channels
        self.side = side
        self.weight = nn.Parameter(torch.randn(side * side, out_channels, fan_in) * math.sqrt(2 / fan_in))
        self.bias = nn.Parameter(torch.zeros(out_channels * side * side))

    def forward(self, features: Float[Tensor, "B I S S"]) -> Float[Tensor, "B O S S"]:
        """Feature maps of the same size."""
        patches = F.unfold(features, 3, padding=1)  # [B, 9 * I, S * S]
        cells = torch.bmm(self.weight, patches.permute(2, 1, 0))  # [S * S, O, B]
        return (cells.permute(2, 1, 0).flatten(1) + self.bias).view(len(features), -1, self.side, self.side)


class Darknet(nn.Module):
    """A darknet trunk without its classifier.

    Args:
        name: key of `TRUNKS`.
        pretrained: a darknet weights file of exactly its layers (extraction.conv.weights for darknet20), or False.
        strides: of the returned levels; None for the last one.

    Raises:
        InputError: `pretrained` is True (there is no download), the file does not fit, or the trunk has no map of a
            stride.
    """

    def __init__(self, name: str, pretrained: bool | str = False, strides: Sequence[int] | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, stride = 3, 1
        last: dict[int, tuple[int, int]] = {}  # index and channels of the last layer of each stride
        for index, layer in enumerate(TRUNKS[name]):
            layers.append(_build(layer, channels))
            channels = channels if isinstance(layer, str) else layer.channels
            stride *= layer.stride if isinstance(layer, Conv) else 1 + (layer == "pool")
            last[stride] = (index, channels)
        self.layers = nn.Sequential(*layers)
        self.strides = tuple(strides or [stride])
        if not set(self.strides) <= set(last):
            raise InputError(f"trunk {name!r} has features at strides {sorted(last)}, not at all of {self.strides}")
        self.channels = [last[stride][1] for stride in self.strides]
        self._levels = [last[stride][0] for stride in self.strides]
        if pretrained is True:
            raise InputError(f"{name} has no download; give a darknet weights file: --model.pretrained FILE")
        if pretrained:
            self.load_state_dict(read_darknet(pretrained, self), strict=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The last feature map [B, C, H / stride, W / stride] of each stride."""
        features, levels = images, []
        for index, layer in enumerate(self.layers):
            features = layer(features)
            if index in self._levels:
                levels.append(features)
        return levels


def _build(layer: Layer, channels: int) -> nn.Module:
    """The module of a layer on an input of so many channels."""
    if isinstance(layer, Conv):
        return ConvUnit(channels, layer.channels, layer.size, layer.stride)
    if isinstance(layer, Residual):
        return ResidualUnit(layer.channels)
    if layer == "pool":
        return nn.MaxPool2d(2, 2)
    # Of the cell and its right and lower neighbours where there are any.
    return nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))


# ------------------------------------------------------------------------------------------------------------- files


def read_darknet(file: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """Read a darknet weights file into a state dict of a network.

    Args:
        file: in the format above.
        network: with its darknet layers (`ConvUnit`, `nn.Conv2d` with a bias, `LocalConv`, `nn.Linear`) registered in
            the file's order.

    Returns:
        Parameters and batch norm statistics by their names in the network.

    Raises:
        InputError: the file does not exist or holds another number of values than the network has.
    """
    transposed, numbers = _read_numbers(Path(file))
    rows = list(darknet_rows(network))
    expected = sum(math.prod(shape) for _, shape in rows)
    if len(numbers) != expected:
        raise InputError(
            f"holds {len(numbers):,} values after its header, but the network has {expected:,}; set the file's layers, "
            "grid, boxes per cell and classes in the model",
            file,
        )
    state = {}
    for name, shape in rows:
        values, numbers = numbers[: math.prod(shape)], numbers[math.prod(shape) :]
        is_connected = len(shape) == 2
        state[name] = values.view(shape[::-1]).T.contiguous() if transposed and is_connected else values.view(shape)
    return state


def darknet_rows(network: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name in the state dict, shape) of each tensor stored in a darknet file, in the file's order."""
    for name, module in network.named_modules():
        if isinstance(module, ConvUnit):
            parts = ["norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight"]
        elif isinstance(module, (LocalConv, nn.Linear)) or (isinstance(module, nn.Conv2d) and module.bias is not None):
            parts = ["bias", "weight"]
        else:
            continue
        state = module.state_dict()
        for part in parts:
            yield f"{name}.{part}" if name else part, tuple(state[part].shape)


def count_values(file: str | Path) -> int:
    """Number of values after a darknet weights file's header.

    Raises:
        InputError: the file does not exist, or is not such a file.
    """
    _, start = _read_header(Path(file))
    return (Path(file).stat().st_size - start) // 4


def _read_numbers(file: Path) -> tuple[bool, Float[Tensor, " N"]]:
    """Whether connected weights are transposed, and all values after the header."""
    transposed, start = _read_header(file)
    return transposed, torch.from_numpy(np.fromfile(file, "<f4", offset=start))


def _read_header(file: Path) -> tuple[bool, int]:
    """Whether connected weights are transposed, and the length of the header in bytes."""
    if not file.is_file():
        raise InputError("no such weights file", file)
    header = np.fromfile(file, "<i4", HEADER_INTS)
    if len(header) < HEADER_INTS:
        raise InputError("is too short for a darknet weights file; give a complete one", file)
    major, minor = int(header[0]), int(header[1])
    transposed = major > TRANSPOSED_FROM or minor > TRANSPOSED_FROM
    seen_bytes = 8 if major * 10 + minor >= 2 and not transposed else 4
    start = 4 * HEADER_INTS + seen_bytes
    size = file.stat().st_size
    if size < start or (size - start) % 4:
        raise InputError(
            f"has {size} bytes, which is not a header and float32 values; give a complete darknet weights file", file
        )
    return transposed, start
