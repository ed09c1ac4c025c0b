"""Anchor boxes of one cell, of a grid and of a feature pyramid.

Legend: A anchors of a cell, N anchors of a level. Order of a level's anchors: row, column, anchor.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.ops.precision import upcast


def cell_anchors(sizes: Sequence[float | int], aspect_ratios: Sequence[float | int]) -> Float[Tensor, "A 4"]:
    """Anchors centred at the origin: each aspect ratio (height / width) at each size, area about size squared.

    Edges are rounded to whole pixels, as in py-faster-rcnn and torchvision, so that weights trained there fit.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32)
    scales = torch.tensor(sizes, dtype=torch.float32)
    height_factors = ratios.sqrt()
    widths = ((1 / height_factors)[:, None] * scales).flatten()
    heights = (height_factors[:, None] * scales).flatten()
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()


def middle_cell_anchors(
    stride: int, scales: Sequence[float | int], aspect_ratios: Sequence[float | int]
) -> Float[Tensor, "A 4"]:
    """Anchors centred on the middle of a cell of `stride` pixels, as py-faster-rcnn makes them.

    Each aspect ratio (height / width) of the cell's area, its sides rounded to whole pixels, times each scale.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32)
    widths = (stride / ratios.sqrt()).round()
    heights = (widths * ratios).round()
    halves = torch.tensor(scales, dtype=torch.float32)[:, None] * torch.stack((widths, heights), dim=1)[:, None] / 2
    return stride / 2 + torch.cat((-halves, halves), dim=2).flatten(0, 1)


def grid_anchors(
    cell: Float[Tensor, "A 4"], grid_size: tuple[int, int], stride: tuple[float | int, float | int]
) -> Float[Tensor, "N 4"]:
    """Cell anchors shifted to every cell of a grid.

    Args:
        cell: anchors of one cell, see `cell_anchors`.
        grid_size: (rows, columns).
        stride: (vertical, horizontal) distance between cells in pixels.
    """
    (rows, columns), (down, across) = grid_size, stride
    cell = upcast(cell)  # a bf16 detector has bf16 buffers
    y = torch.arange(rows, device=cell.device, dtype=cell.dtype) * down
    x = torch.arange(columns, device=cell.device, dtype=cell.dtype) * across
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((shift_x, shift_y, shift_x, shift_y), dim=-1)
    return (shifts[:, :, None] + cell).flatten(0, 2)


def pyramid_anchors(
    cells: Sequence[Float[Tensor, "A 4"]], grid_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[Float[Tensor, "N 4"]]:
    """Anchors of each pyramid level for frames of `image_size` (height, width).

    A level's stride is frame size / grid size, rounded down, as in torchvision: where padding makes a coarse grid one
    cell larger than height / stride, its cells lie slightly closer together.
    """
    height, width = image_size
    return [
        grid_anchors(cell, (rows, columns), (height // rows, width // columns))
        for cell, (rows, columns) in zip(cells, grid_sizes, strict=True)
    ]
