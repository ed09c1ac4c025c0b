"""Heat maps of points: gaussian radius, drawing gaussians, finding peaks (CornerNet, arXiv 1808.01244, section 3.2).

Legend: B images, M objects of an image (padded), C classes, H x W cells of a map, D channels, K peaks.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.precision import upcast

OBJECTS_AT_ONCE = 32
"""Gaussians drawn in one step: bounds the memory for a crowded batch to B x 32 x H x W values."""


def gaussian_radius(sizes: Float[Tensor, "... 2"], min_iou: float) -> Float[Tensor, "..."]:
    """Largest r such that moving both corners of a box by up to (r, r) each keeps IoU >= min_iou.

    The minimum of three cases, each the root of a quadratic, with w, h the sides and t the IoU:

        one corner moves in, one out:  (w - r)(h - r) / (2 w h - (w - r)(h - r)) = t
        both move in:                  (w - 2r)(h - 2r) / (w h) = t
        both move out:                 w h / ((w + 2r)(h + 2r)) = t

    The original code uses wrong roots in all three ((b + sqrt(b^2 - 4ac)) / 2 for any a), at an IoU of 0.7. For a
    square of side s its radius is 0.27 s; the paper's 0.3 with the right roots gives 0.23 s, and 0.7 would give 0.08 s.
    The authors' CornerNet-Lite also has the right roots.

    Args:
        sizes: width and height of boxes, in any unit.
        min_iou: t, in 0..1.

    Returns:
        r in the same unit.
    """
    total, area = sizes.sum(dim=-1), sizes.prod(dim=-1)
    one_in_one_out = (total - (total**2 - 4 * area * (1 - min_iou) / (1 + min_iou)).clamp(min=0).sqrt()) / 2
    both_in = (total - (total**2 - 4 * area * (1 - min_iou)).clamp(min=0).sqrt()) / 4
    both_out = ((total**2 + 4 * area * (1 - min_iou) / min_iou).sqrt() - total) / 4
    return one_in_one_out.minimum(both_in).minimum(both_out)


def draw_gaussians(
    cells: Int64[Tensor, "B M 2"],
    radii: Int64[Tensor, "B M"],
    labels: Int64[Tensor, "B M"],
    mask: Bool[Tensor, "B M"],
    num_classes: int,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B C H W"]:
    """Target heat maps: a gaussian around each point on its class's map, the maximum where several overlap.

    exp(-(dx^2 + dy^2) / 2 sigma^2) within `radius` cells to each side and 0 beyond, exactly 1 at each point. Sigma is a
    third of the distance from the point to the far edge of its outermost cells, (radius + 1/2) / 3, as in the original
    code.

    Args:
        cells: (column, row) of each point.
        radii: in cells.
        labels: class of each point.
        mask: which points are real, not padding.
        num_classes: C.
        size: (H, W).
        dtype: of the maps.
    """
    height, width = size
    maps = torch.zeros(len(cells), num_classes, height, width, dtype=dtype, device=cells.device)
    columns, rows = (_profile(cells[..., axis], radii, length, dtype) for axis, length in enumerate((width, height)))
    columns = columns * mask[..., None]
    for start in range(0, cells.shape[1], OBJECTS_AT_ONCE):
        part = slice(start, start + OBJECTS_AT_ONCE)
        gaussians = rows[:, part, :, None] * columns[:, part, None, :]
        maps.scatter_reduce_(1, labels[:, part, None, None].expand_as(gaussians), gaussians, "amax")
    return maps


def _profile(centres: Tensor, radii: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The gaussians along one axis, [B, M, length]; they are separable."""
    distance = (torch.arange(length, device=centres.device) - centres[..., None]).to(dtype)
    radius = radii[..., None].to(dtype)
    profile = torch.exp(-distance.square() / (2 * ((radius + 0.5) / 3).square()))
    return torch.where(distance.abs() <= radius, profile, 0.0)


def top_peaks(
    logits: Float[Tensor, "B C H W"], limit: int
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """The highest local maxima of each image over all classes; K = min(limit, C x H x W).

    A peak is not lower than any of its eight neighbours on the same map. Where an image has fewer than K peaks, the
    remaining entries have a logit of minus infinity.

    Returns:
        Logits, highest first; labels; cells as row x W + column.
    """
    batch, _, height, width = logits.shape
    highest = F.max_pool2d(logits, 3, stride=1, padding=1)
    peaks = logits.masked_fill(logits < highest, -torch.inf).reshape(batch, -1)
    values, index = peaks.topk(min(limit, peaks.shape[1]), dim=1)
    return values, index // (height * width), index % (height * width)


def gather_cells(maps: Float[Tensor, "B D H W"], index: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    """Values of the maps at some cells of each image, at least float32."""
    found = maps.flatten(2).gather(2, index[:, None].expand(-1, maps.shape[1], -1))
    return upcast(found).transpose(1, 2)


def corner_cells(
    boxes: Float[Tensor, "... M 4"], size: tuple[int, int]
) -> tuple[Int64[Tensor, "... M 2"], Int64[Tensor, "... M 2"]]:
    """(column, row) of each box's top-left and bottom-right corner on maps of `size` (height, width).

    Args:
        boxes: in cells.
        size: H, W.
    """
    cells = boxes[..., :2].floor().long(), boxes[..., 2:].ceil().long() - 1
    top_left, bottom_right = (
        torch.stack((cell[..., 0].clamp(0, size[1] - 1), cell[..., 1].clamp(0, size[0] - 1)), dim=-1) for cell in cells
    )
    return top_left, bottom_right
