"""Which pixels a cell of a convolutional network sees.

A NaN goes wherever a pixel goes: through convolutions, norms, activations and maxima, and never back to a number. So
the cells that a row of NaN reaches are the cells that see it, whatever the network is made of.
"""

import torch
from torch import nn

from zoo.errors import InputError

LARGEST = 2048
"""Pixels; a network that sees further is taken for one that sees the whole image."""


@torch.no_grad()
def receptive_field(network: nn.Module, stride: int, name: str) -> tuple[int, int]:
    """How far a cell sees: cell c of the last map sees pixels stride * c - before .. stride * c + after - 1.

    Args:
        network: images [B, 3, H, W] -> list of maps, the last with cells every `stride` pixels; on the CPU.
        stride: of the last map.
        name: of the network, for the error.

    Returns:
        before, after: for example 105 and 106 for ResNet-18 at stride 16.

    Raises:
        InputError: each cell sees the whole image (squeeze-and-excitation, group norm, attention, ...), or what a cell
            sees has holes, or depends on where the cell lies.
    """
    training = network.training
    network.eval()
    try:
        length = 16 * stride
        while length <= max(LARGEST, 16 * stride):
            start = length // 2 // stride * stride
            # One image for each place of the row within a cell, as high as needed and not wide.
            images = torch.zeros(stride, 3, length, max(96, 2 * stride))
            for shift in range(stride):
                images[shift, :, start + shift] = torch.nan
            reached = network(images)[-1].isnan().any(dim=1).any(dim=2)  # [stride, cells]
            if not (reached[:, 0] | reached[:, -1]).any():
                cells = torch.arange(reached.shape[1]) * stride
                distances = torch.arange(start, start + stride)[:, None] - cells  # of the row from a cell's first pixel
                seen = distances[reached]
                before, after = -int(seen.min()), int(seen.max()) + 1
                if not torch.equal(reached, (distances >= -before) & (distances < after)):
                    raise InputError(f"trunk {name!r}: what a cell sees has holes, or depends on where the cell lies")
                return before, after
            length *= 2
    finally:
        network.train(training)
    raise InputError(
        f"trunk {name!r} sees the whole image in each cell (squeeze-and-excitation, group norm or attention?), "
        "so a window cut out of the image is not what it sees there"
    )
