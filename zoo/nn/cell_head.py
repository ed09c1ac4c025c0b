"""A head that maps a feature map of S x S cells to a fixed number of linear outputs in each cell.

Legend: B images, D channels, S cells per side, G = S * S cells.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from zoo.nn.darknet import LEAK, LocalConv

HeadKind = Literal["fc", "local", "conv"]


class CellHead(nn.Module):
    """Hidden layers with leaky ReLU, dropout, and a linear output.

    The output of a fully connected layer is ordered as darknet's: each group of outputs for all cells, cells row by
    row. That of a convolution has all groups of a cell in its channels.

    Args:
        kind: of the hidden layers: fully connected over all cells ("fc"), 3x3 with separate weights for each cell
            ("local"), or 1x1 convolutions ("conv"). The output is a 1x1 convolution in "conv", else fully connected.
        in_channels: D.
        grid: S.
        widths: of the hidden layers.
        dropout: before the output.
        sizes: numbers of outputs of a cell, in groups.
    """

    def __init__(
        self,
        kind: HeadKind,
        in_channels: int,
        grid: int,
        widths: Sequence[int],
        dropout: float,
        sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.kind = kind
        self.sizes = sizes
        num_cells = grid * grid
        hidden: list[nn.Module] = [nn.Flatten()] if kind == "fc" else []
        width = in_channels * num_cells if kind == "fc" else in_channels
        for next_width in widths:
            hidden += [_hidden_layer(kind, width, next_width, grid), nn.LeakyReLU(LEAK)]
            width = next_width
        if kind == "local":
            hidden.append(nn.Flatten())
            width *= num_cells
        self.hidden = nn.Sequential(*hidden, nn.Dropout(dropout))
        self.output: nn.Linear | nn.Conv2d
        if kind == "conv":
            self.output = nn.Conv2d(width, sum(sizes), 1)
        else:
            self.output = nn.Linear(width, num_cells * sum(sizes))

    def forward(self, features: Float[Tensor, "B D S S"]) -> list[Float[Tensor, "B G _"]]:
        """Each group of outputs, for all cells."""
        values = self.output(self.hidden(features))
        if isinstance(self.output, nn.Conv2d):
            return list(values.permute(0, 2, 3, 1).flatten(1, 2).split(self.sizes, dim=2))
        num_cells = values.shape[1] // sum(self.sizes)
        groups = values.split([num_cells * size for size in self.sizes], dim=1)
        return [group.view(len(values), num_cells, -1) for group in groups]


def _hidden_layer(kind: HeadKind, width: int, next_width: int, grid: int) -> nn.Module:
    if kind == "fc":
        return nn.Linear(width, next_width)
    if kind == "local":
        return LocalConv(width, next_width, grid)
    return nn.Conv2d(width, next_width, 1)
