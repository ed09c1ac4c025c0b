"""Anchors of a level: the boxes of one cell, repeated over a grid.

Legend: A anchors a cell, H, W cells of a level's grid. Order of a level's anchors: row, column, anchor.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.ops.precision import upcast


def cell_anchors(sizes: Sequence[float | int], aspect_ratios: Sequence[float | int]) -> Float[Tensor, "A 4"]:
    """Anchors around the origin: each aspect ratio (height / width) at each size, area about size squared.

    Edges are rounded to whole pixels as py-faster-rcnn and torchvision do, so that weights trained there fit.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32)
    scales = torch.tensor(sizes, dtype=torch.float32)
    height_factors = ratios.sqrt()
    widths = ((1 / height_factors)[:, None] * scales).flatten()
    heights = (height_factors[:, None] * scales).flatten()
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()


def grid_anchors(
    cell: Float[Tensor, "A 4"], grid_size: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "N 4"]:
    """A cell's anchors at each place of a grid of (rows, columns), `stride` = pixels down, pixels across."""
    (rows, columns), (down, across) = grid_size, stride
    cell = upcast(cell)  # the buffers of a bf16 detector
    y = torch.arange(rows, device=cell.device, dtype=cell.dtype) * down
    x = torch.arange(columns, device=cell.device, dtype=cell.dtype) * across
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((shift_x, shift_y, shift_x, shift_y), dim=-1)
    return (shifts[:, :, None] + cell).flatten(0, 2)


def pyramid_anchors(
    cells: Sequence[Float[Tensor, "A 4"]], grid_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[Float[Tensor, "N 4"]]:
    """Anchors of each level of a pyramid over frames of `image_size` (height, width).

    A level's stride is what the frame divides into, rounded down, as in torchvision: where padding makes a coarse
    grid one cell larger than height / stride, its cells move together a little.
    """
    height, width = image_size
    return [
        grid_anchors(cell, (rows, columns), (height // rows, width // columns))
        for cell, (rows, columns) in zip(cells, grid_sizes, strict=True)
    ]
