"""Stacked hourglass networks (Newell et al., arXiv 1603.06937), as modified by CornerNet (arXiv 1808.01244, 3.5).

    stem: 7x7 stride 2, residual stride 2      ->  maps of stride 4
    hourglass: down by stride-2 residuals (no max pooling), up by nearest neighbour, a skip of residuals at each level
    between stacks: ReLU(norm 1x1(input) + norm 1x1(output)), then a residual

Hourglass-104 is two hourglasses of five downsamplings with channels 256 | 256, 384, 384, 384, 512 and 2, 2, 2, 2, 2, 4
residuals. The names `conv1`, `bn1`, ... of a residual are those of the original code.

Legend: B images, C_0 channels of the outermost level, H x W cells at stride 4.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.trunk import Trunk


class ConvNorm(nn.Module):
    """Padded convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        return F.relu(self.bn(self.conv(maps)), inplace=True)


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.skip = nn.Sequential(
            *([nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)] * changes)
        )

    def forward(self, maps: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        inner = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.skip(maps), inplace=True)


def _residuals(in_channels: int, out_channels: int, depth: int, stride: int = 1) -> nn.Sequential:
    """`depth` residuals, the first of which changes channels and size."""
    first = Residual(in_channels, out_channels, stride)
    return nn.Sequential(first, *(Residual(out_channels, out_channels) for _ in range(depth - 1)))


class Hourglass(nn.Module):
    """Hourglass module: one level, with the coarser levels nested inside it.

    Args:
        channels: C_0, C_1, ... of this level and the coarser ones; at least two.
        depths: residuals of each level.
    """

    def __init__(self, channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        here, below, depth = channels[0], channels[1], depths[0]
        self.skip = _residuals(here, here, depth)
        self.down = _residuals(here, below, depth, stride=2)
        is_last = len(channels) == 2
        self.inner = _residuals(below, below, depths[1]) if is_last else Hourglass(channels[1:], depths[1:])
        # Here the last one changes the number of channels.
        self.up = nn.Sequential(*(Residual(below, below) for _ in range(depth - 1)), Residual(below, here))

    def forward(self, maps: Float[Tensor, "B C_0 H W"]) -> Float[Tensor, "B C_0 H W"]:
        """Maps of the same size. Sides may be odd: upsampled maps are cropped."""
        coarse = self.up(self.inner(self.down(maps)))
        return self.skip(maps) + F.interpolate(coarse, size=maps.shape[-2:], mode="nearest")


class StackedHourglass(nn.Module):
    """Stem and a sequence of hourglasses, each with its own output for intermediate supervision.

    Args:
        num_stacks: number of hourglasses.
        channels: of each level.
        depths: residuals of each level.
        stem_channels: of the 7x7 convolution.
        out_channels: of each stack's output.

    Raises:
        ValueError: numbers of depths and channels differ, fewer than two levels, or maps of fewer than 16 channels.
    """

    def __init__(
        self,
        num_stacks: int,
        channels: Sequence[int],
        depths: Sequence[int],
        stem_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        if len(channels) != len(depths) or len(channels) < 2:
            raise ValueError(
                f"hourglass channels {tuple(channels)}, depths {tuple(depths)}: give one of each for two or more levels"
            )
        # With fewer channels, stride-2 shortcuts make oneDNN write past its buffers on CPUs (uxlfoundation/oneDNN issue
        # 6035).
        if min(stem_channels, *channels) < 16:
            raise ValueError(f"hourglass channels {tuple(channels)}, stem {stem_channels}: each must be at least 16")
        width = channels[0]
        self.stem = nn.Sequential(ConvNorm(3, stem_channels, 7, stride=2), Residual(stem_channels, width, stride=2))
        self.hourglasses = nn.ModuleList(Hourglass(channels, depths) for _ in range(num_stacks))
        self.outputs = nn.ModuleList(ConvNorm(width, out_channels, 3) for _ in range(num_stacks))
        self.from_inputs = nn.ModuleList(_projection(width, width) for _ in range(num_stacks - 1))
        self.from_outputs = nn.ModuleList(_projection(out_channels, width) for _ in range(num_stacks - 1))
        self.merged = nn.ModuleList(Residual(width, width) for _ in range(num_stacks - 1))

    def forward(self, images: Float[Tensor, "B 3 _ _"]) -> list[Float[Tensor, "B _ H W"]]:
        """Output of each stack, [B, out_channels, H, W]; predictions use the last."""
        maps = self.stem(images)
        outputs: list[Tensor] = []
        for index, (hourglass, output) in enumerate(zip(self.hourglasses, self.outputs, strict=True)):
            outputs.append(output(hourglass(maps)))
            if index < len(self.merged):
                maps = F.relu(self.from_inputs[index](maps) + self.from_outputs[index](outputs[-1]))
                maps = self.merged[index](maps)
        return outputs


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


class UpsampledTrunk(nn.Module):
    """A trunk used instead of hourglasses: its levels merged at the finest one, as a single stack.

    The top-down path of a feature pyramid (arXiv 1612.03144) with batch norm and only its finest level: 1x1
    convolutions, upsampling by 2 and addition, and one 3x3 convolution.

    Args:
        trunk: its first level is the finest.
        out_channels: of the output map.
    """

    def __init__(self, trunk: Trunk, out_channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.laterals = nn.ModuleList(_projection(channels, out_channels) for channels in trunk.channels)
        self.output = ConvNorm(out_channels, out_channels, 3)

    def forward(self, images: Float[Tensor, "B 3 _ _"]) -> list[Float[Tensor, "B _ H W"]]:
        """One map, in a list as `StackedHourglass` returns it."""
        maps = [lateral(level) for lateral, level in zip(self.laterals, self.trunk(images), strict=True)]
        merged = maps[-1]
        for finer in reversed(maps[:-1]):
            merged = finer + F.interpolate(merged, size=finer.shape[-2:], mode="nearest")
        return [self.output(F.relu(merged))]
