"""Windows cut out of a batch of images and stretched to one size, with context around them.

R-CNN, arXiv 1311.2524, appendix A, "warp".

Legend: B images, n windows, R most windows of an image, S side of a crop.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.precision import upcast


def warp_windows(
    images: Float[Tensor, "B 3 H W"],
    sizes: Float[Tensor, "B 2"],
    image: Int64[Tensor, "n"],
    boxes: Float[Tensor, "n 4"],
    side: int,
    context: int,
) -> Float[Tensor, "n 3 S S"]:
    """Cut windows out and stretch them to S x S, whatever their shape; what lies outside of an image is its mean, 0.

    A window is first widened so that in the crop `context` pixels on each side lie around it. A pixel of a crop is
    what lies at its centre, between the four nearest pixels of the image (bilinear, not smoothed, as in the original).

    All windows of an image are read as one tall picture, so the whole batch is one call; the number of windows of the
    fullest image is read back for that.

    Args:
        images: framed, normalised.
        sizes: (width, height) of the part of each frame that is image.
        image: that each window lies in, ascending.
        boxes: windows, in framed pixels.
        side: S.
        context: pixels of the crop.
    """
    wide = upcast(images)  # bf16 has no places between the pixels of a large image
    height, width = images.shape[2:]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 * (side / (side - 2 * context))
    x, in_columns = _axis_places(centres[:, 0], halves[:, 0], sizes[image, 0], side)
    y, in_rows = _axis_places(centres[:, 1], halves[:, 1], sizes[image, 1], side)

    counts = torch.bincount(image, minlength=len(images))
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(image), device=image.device) - first[image]
    most = int(counts.max())
    grid = boxes.new_zeros(len(images), most, side, side, 2, dtype=wide.dtype)
    # grid_sample wants -1..1 from edge to edge.
    grid[image, slot, :, :, 0] = (x * (2 / width) - 1).to(grid.dtype)[:, None, :]
    grid[image, slot, :, :, 1] = (y * (2 / height) - 1).to(grid.dtype)[:, :, None]
    tall = F.grid_sample(wide, grid.view(len(images), most * side, side, 2), align_corners=False)
    crops = tall.view(len(images), 3, most, side, side).transpose(1, 2)[image, slot].to(images.dtype)
    return crops * (in_rows[:, None, :, None] & in_columns[:, None, None, :])


def _axis_places(
    centre: Float[Tensor, "n"], half: Float[Tensor, "n"], limit: Float[Tensor, "n"], side: int
) -> tuple[Float[Tensor, "n S"], Bool[Tensor, "n S"]]:
    """Along one axis: where each pixel of a crop lies in the image, and whether it does."""
    offsets = (torch.arange(side, device=centre.device, dtype=centre.dtype) + 0.5) * (2 / side) - 1
    place = centre[:, None] + half[:, None] * offsets
    inside = (place >= 0) & (place < limit[:, None])
    # From the centre of the outermost pixel on there is nothing to lie between: padding must not be mixed in.
    return place.clamp(min=0.5).minimum(limit[:, None] - 0.5), inside
