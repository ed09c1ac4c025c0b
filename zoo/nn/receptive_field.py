"""Receptive field of a convolutional network, measured with NaN inputs.

NaN propagates through convolutions, norms, activations and max pooling. So the output cells that are NaN for a row of
NaN pixels are those with the row in their receptive field, whatever the layers of the network.
"""

import torch
from torch import nn

from zoo.errors import InputError

MAX_LENGTH = 2048
"""Pixels; a network with a larger receptive field is treated as if each cell saw the whole image."""


@torch.no_grad()
def receptive_field(network: nn.Module, stride: int, name: str) -> tuple[int, int]:
    """Receptive field of a cell: cell c of the last map sees pixels stride * c - before .. stride * c + after - 1.

    Args:
        network: images [B, 3, H, W] -> list of maps, the last with cells every `stride` pixels; on the CPU.
        stride: of the last map.
        name: of the network, for error messages.

    Returns:
        (before, after) in pixels, for example 105 and 106 for ResNet-18 at stride 16.

    Raises:
        InputError: each cell sees the whole image (squeeze-and-excitation, group norm, attention, ...), or the
            receptive field has holes, or differs between cells.
    """
    training = network.training
    network.eval()
    try:
        length = 16 * stride
        while length <= max(MAX_LENGTH, 16 * stride):
            start = length // 2 // stride * stride
            # One image for each offset of the NaN row within a cell.
            images = torch.zeros(stride, 3, length, max(96, 2 * stride))
            for shift in range(stride):
                images[shift, :, start + shift] = torch.nan
            reached = network(images)[-1].isnan().any(dim=1).any(dim=2)  # [stride, cells]
            if not (reached[:, 0] | reached[:, -1]).any():
                cells = torch.arange(reached.shape[1]) * stride
                distances = torch.arange(start, start + stride)[:, None] - cells  # from a cell's first pixel to the row
                seen = distances[reached]
                before, after = -int(seen.min()), int(seen.max()) + 1
                if not torch.equal(reached, (distances >= -before) & (distances < after)):
                    raise InputError(f"trunk {name!r}: its receptive field has holes or differs between cells")
                return before, after
            length *= 2
    finally:
        network.train(training)
    raise InputError(
        f"trunk {name!r} sees the whole image in each cell (squeeze-and-excitation, group norm or attention?), "
        "so its features of a window differ from those of a crop; choose another trunk"
    )
