"""Crop windows of a batch of images and warp them to one size, with context around them.

R-CNN, arXiv 1311.2524, appendix A, "warp".

Legend: B images, n windows, S side of a crop.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.precision import upcast


def warp_windows(
    images: Float[Tensor, "B 3 H W"],
    sizes: Float[Tensor, "B 2"],
    image: Int64[Tensor, " n"],
    boxes: Float[Tensor, "n 4"],
    side: int,
    context: int,
) -> Float[Tensor, "n 3 S S"]:
    """Crops of windows, warped to S x S regardless of their aspect ratio; 0 (the mean) outside of the image.

    A window is first enlarged so that it is surrounded by `context` pixels of the crop on each side. A pixel of a crop
    is sampled at its centre, bilinearly from the four nearest pixels of the image, without smoothing, as in the
    original.

    All windows of an image are sampled as one tall image, so the whole batch is one call; this reads the largest
    number of windows of an image back from the device.

    Args:
        images: framed, normalised.
        sizes: (width, height) of the part of each frame that is image.
        image: index of the image that each window lies in, ascending.
        boxes: windows, in framed pixels.
        side: S.
        context: in pixels of the crop.
    """
    wide = upcast(images)  # bf16 cannot represent positions between the pixels of a large image
    height, width = images.shape[2:]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 * (side / (side - 2 * context))
    x, in_columns = _sample_positions(centres[:, 0], halves[:, 0], sizes[image, 0], side)
    y, in_rows = _sample_positions(centres[:, 1], halves[:, 1], sizes[image, 1], side)

    counts = torch.bincount(image, minlength=len(images))
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(image), device=image.device) - first[image]
    most = int(counts.max())
    grid = boxes.new_zeros(len(images), most, side, side, 2, dtype=wide.dtype)
    # grid_sample takes coordinates of -1..1 from edge to edge.
    grid[image, slot, :, :, 0] = (x * (2 / width) - 1).to(grid.dtype)[:, None, :]
    grid[image, slot, :, :, 1] = (y * (2 / height) - 1).to(grid.dtype)[:, :, None]
    tall = F.grid_sample(wide, grid.view(len(images), most * side, side, 2), align_corners=False)
    crops = tall.view(len(images), 3, most, side, side).transpose(1, 2)[image, slot].to(images.dtype)
    return crops * (in_rows[:, None, :, None] & in_columns[:, None, None, :])


def _sample_positions(
    centre: Float[Tensor, " n"], half: Float[Tensor, " n"], limit: Float[Tensor, " n"], side: int
) -> tuple[Float[Tensor, "n S"], Bool[Tensor, "n S"]]:
    """Positions of a crop's pixels in the image along one axis, and whether they lie inside."""
    offsets = (torch.arange(side, device=centre.device, dtype=centre.dtype) + 0.5) * (2 / side) - 1
    position = centre[:, None] + half[:, None] * offsets
    inside = (position >= 0) & (position < limit[:, None])
    # Beyond the centre of the outermost pixel there is no second pixel to interpolate with: exclude the padding.
    return position.clamp(min=0.5).minimum(limit[:, None] - 0.5), inside
