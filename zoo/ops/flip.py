"""Horizontal flips of padded images and of the boxes in them.

Legend: B images in frames of H x W pixels, N boxes each.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def flip_images(images: Float[Tensor, "B C H W"], sizes: Float[Tensor, "B 2"]) -> Float[Tensor, "B C H W"]:
    """Images flipped within their own width, so that the padding stays at the right.

    Args:
        images: padded at the right and the bottom.
        sizes: (width, height) of each without padding.
    """
    columns = torch.arange(images.shape[3], device=images.device)
    width = sizes[:, :1].long()
    source = torch.where(columns < width, width - 1 - columns, columns)
    return images.gather(3, source[:, None, None].expand_as(images))


def flip_boxes(boxes: Float[Tensor, "B N 4"], sizes: Float[Tensor, "B 2"]) -> Float[Tensor, "B N 4"]:
    """Boxes in the flipped images; its own inverse. `sizes` is (width, height) of each image without padding."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = sizes[:, :1]
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
