"""The feature levels of SSD (arXiv 1512.02325, section 2.1, figure 2) and of SSDLite (arXiv 1801.04381, section 6.2).

The paper's: conv4_3 of VGG-16, L2-normalised, then fc6 and fc7 as convolutions on conv5_3, then further convolutions of
decreasing size. SSDLite's: two maps of any trunk, then depthwise separable convolutions of stride 2.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_large
from torchvision.ops import Conv2dNormActivation

from zoo.errors import InputError
from zoo.nn.trunk import hidden_layers
from zoo.ops.precision import upcast

ExtraLevels = Literal["ssd300", "ssd512", "separable"]

NORM_SCALE = 20.0  # of conv4_3, section 3.1
FC_CHANNELS = 1024
SEPARABLE_WIDTHS = (512, 256, 256, 128)
SEPARABLE_LEVELS = 6


class Extra(NamedTuple):
    """An added level: a 1x1 convolution, and another convolution that reduces the map."""

    hidden: int
    channels: int
    size: int
    stride: int
    padding: int


EXTRAS: dict[str, tuple[Extra, ...]] = {
    "ssd300": (Extra(256, 512, 3, 2, 1), Extra(128, 256, 3, 2, 1), Extra(128, 256, 3, 1, 0), Extra(128, 256, 3, 1, 0)),
    "ssd512": (Extra(256, 512, 3, 2, 1), *(Extra(128, 256, 3, 2, 1),) * 3, Extra(128, 256, 4, 1, 1)),
}

SEPARABLE_EPS = 0.001
separable_norm = partial(nn.BatchNorm2d, eps=SEPARABLE_EPS, momentum=0.03)


class ScaledNorm(nn.Module):
    """L2 normalisation over the channels and a learned scale of each, as in ParseNet (arXiv 1506.04579)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), NORM_SCALE))

    def forward(self, features: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """Features of length `scale` where all scales are equal."""
        normalised = F.normalize(upcast(features)) * upcast(self.scale)[:, None, None]
        return normalised.to(features.dtype)


class AtrousHead(nn.Sequential):
    """pool5 of stride 1, fc6 as a 3x3 convolution of dilation 6, and fc7 as a 1x1 convolution, on conv5_3.

    Args:
        channels: of conv5_3.
        trunk: name of the VGG, and ...
        pretrained: ... its weights, of whose classifier every fourth channel and every third cell are taken
            (section 2.1: "subsample parameters from fc6 and fc7"); False for random weights.
    """

    def __init__(self, channels: int, trunk: str, pretrained: bool | str) -> None:
        fc6 = nn.Conv2d(channels, FC_CHANNELS, 3, padding=6, dilation=6)
        fc7 = nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)
        super().__init__(nn.MaxPool2d(3, 1, 1), fc6, nn.ReLU(inplace=True), fc7, nn.ReLU(inplace=True))
        init_xavier(self)
        layers = hidden_layers(trunk, pretrained) if pretrained else []
        if layers:
            (weight6, bias6), (weight7, bias7) = layers  # [4096, 7, 7, 512] and [4096, 1, 1, 4096]
            with torch.no_grad():
                fc6.weight.copy_(weight6[::4, ::3, ::3].permute(0, 3, 1, 2))
                fc6.bias.copy_(bias6[::4])  # type: ignore[union-attr]
                fc7.weight.copy_(weight7[::4, :, :, ::4].permute(0, 3, 1, 2))
                fc7.bias.copy_(bias7[::4])  # type: ignore[union-attr]


class SSDLiteMobileNet(nn.Module):
    """torchvision's trunk of SSDLite: MobileNetV3-Large with a reduced tail (arXiv 1905.02244, section 6.3).

    Its maps are the expansion of the first block of stride 32, at stride 16, and the last layer, at stride 32.
    """

    strides = (16, 32)

    def __init__(self) -> None:
        super().__init__()
        layers = mobilenet_v3_large(norm_layer=separable_norm, reduced_tail=True).features
        index = max(i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False))
        last_stride = layers[index].block
        self.network = nn.Sequential(
            nn.Sequential(*layers[:index], last_stride[0]), nn.Sequential(last_stride[1:], *layers[index + 1 :])
        )
        self.channels = [last_stride[0].out_channels, layers[-1].out_channels]
        init_normal(self)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Maps at strides 16 and 32."""
        fine = self.network[0](images)
        return [fine, self.network[1](fine)]


def check_levels(frame: int, stride: int, kind: ExtraLevels, before: int) -> None:
    """Check that each added level is computed from a map of more than one cell.

    A convolution of a single cell adds nothing. In bf16 on CPUs, a depthwise one of stride 2 has a gradient of NaN.

    Args:
        frame: side in pixels.
        stride: of the last level before them.
        kind: of the added levels.
        before: number of levels before them.

    Raises:
        InputError: the frame is too small.
    """
    side = math.ceil(frame / stride)
    separable = (Extra(0, 0, 3, 2, 1),) * (SEPARABLE_LEVELS - before)
    for number, extra in enumerate(EXTRAS.get(kind, separable)):
        next_side = (side + 2 * extra.padding - extra.size) // extra.stride + 1
        if side <= 1 or next_side < 1:
            raise InputError(
                f"a frame of {frame} pixels is too small for level {before + number + 1}, on a map of {side} x {side}; "
                "set frame.min_size larger, or finer strides"
            )
        side = next_side


def build_extras(kind: ExtraLevels, in_channels: int, before: int) -> tuple[nn.ModuleList, list[int]]:
    """The added levels, each computed from the one before, and their channels.

    Args:
        kind: SSDLite's are as many as make six levels in all.
        in_channels: of the last level before them.
        before: number of levels before them.
    """
    levels: list[nn.Module] = []
    if kind == "separable":
        widths = SEPARABLE_WIDTHS[before - SEPARABLE_LEVELS :]
        for width in widths:
            levels.append(separable_extra(in_channels, width))
            in_channels = width
        extras = nn.ModuleList(levels)
        init_normal(extras)
        return extras, list(widths)
    for extra in EXTRAS[kind]:
        levels.append(
            nn.Sequential(
                nn.Conv2d(in_channels, extra.hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(extra.hidden, extra.channels, extra.size, extra.stride, extra.padding),
                nn.ReLU(inplace=True),
            )
        )
        in_channels = extra.channels
    extras = nn.ModuleList(levels)
    init_xavier(extras)
    return extras, [extra.channels for extra in EXTRAS[kind]]


def separable_extra(in_channels: int, width: int) -> nn.Sequential:
    """SSDLite's added level: 1x1, depthwise 3x3 of stride 2, 1x1."""
    half = width // 2
    options = {"norm_layer": separable_norm, "activation_layer": nn.ReLU6}
    return nn.Sequential(
        Conv2dNormActivation(in_channels, half, kernel_size=1, **options),
        Conv2dNormActivation(half, half, kernel_size=3, stride=2, groups=half, **options),
        Conv2dNormActivation(half, width, kernel_size=1, **options),
    )


def build_predictors(channels: Sequence[int], outputs: Sequence[int], separable: bool) -> nn.ModuleList:
    """A 3x3 convolution for each level; SSDLite's is depthwise and then 1x1."""
    predictors: list[nn.Module] = []
    for width, number in zip(channels, outputs, strict=True):
        if separable:
            depthwise = Conv2dNormActivation(
                width, width, kernel_size=3, groups=width, norm_layer=separable_norm, activation_layer=nn.ReLU6
            )
            predictors.append(nn.Sequential(depthwise, nn.Conv2d(width, number, 1)))
        else:
            predictors.append(nn.Conv2d(width, number, 3, padding=1))
    built = nn.ModuleList(predictors)
    init_normal(built) if separable else init_xavier(built)
    return built


def init_xavier(module: nn.Module) -> None:
    """Xavier uniform weights, as in the original code, and biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_normal(module: nn.Module) -> None:
    """SSDLite's weights, N(0, 0.03^2), and biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
