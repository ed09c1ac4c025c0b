"""Anchor boxes of one cell, of a grid and of a feature pyramid, and anchors that fit the objects of a data set.

Legend: A anchors of a cell, N anchors of a level. Order of a level's anchors: row, column, anchor.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.ops.precision import upcast

STARTS = 10
MAX_PASSES = 300


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


def shape_iou(sides: Float[Tensor, "... 2"], anchors: Float[Tensor, "A 2"]) -> Float[Tensor, "... A"]:
    """IoU of boxes with anchors of the same centre, by widths and heights."""
    shared = sides[..., None, :].minimum(anchors).prod(dim=-1)
    return shared / (sides.prod(dim=-1)[..., None] + anchors.prod(dim=-1) - shared)


def fit_anchors(sides: Float[Tensor, "M 2"], count: int, seed: int = 0) -> Float[Tensor, "A 2"]:
    """Anchors by k-means with the distance 1 - IoU (YOLO9000, arXiv 1612.08242, section 2), by ascending area.

    The first centres are drawn as in k-means++; of several starts the one with the highest mean IoU is taken.

    Args:
        sides: widths and heights of objects.
        count: number of anchors, at most that of the different shapes.
        seed: of the first centres.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = sides.double()
    found = [_cluster(sides, _first_centres(sides, count, generator)) for _ in range(STARTS)]
    best = max(found, key=lambda anchors: float(shape_iou(sides, anchors).amax(dim=1).mean()))
    return best[best.prod(dim=1).argsort()]


def _first_centres(sides: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Shapes drawn with probabilities proportional to the squared distance from those drawn before."""
    chosen = sides[torch.randint(len(sides), (1,), generator=generator)]
    while len(chosen) < count:
        distance = (1 - shape_iou(sides, chosen).amax(dim=1)).clamp(min=0).square()
        # By the cumulative sum, since torch.multinomial is limited to 2^24 values.
        at = distance.cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64) * at[-1]
        chosen = torch.cat([chosen, sides[torch.searchsorted(at, drawn, right=True).clamp(max=len(sides) - 1)]])
    return chosen


def _cluster(sides: Tensor, centres: Tensor) -> Tensor:
    """Move each centre to the mean of the shapes that overlap it most, until nothing changes."""
    nearest = None
    for _ in range(MAX_PASSES):
        now = shape_iou(sides, centres).argmax(dim=1)
        if nearest is not None and torch.equal(now, nearest):
            break
        nearest = now
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, sides)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres
