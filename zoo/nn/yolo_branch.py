"""The branch of a level of YOLOv3 (arXiv 1804.02767, section 2.3; cfg/yolov3.cfg, cfg/yolov3-tiny.cfg)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.darknet import ConvUnit

BOX_NUMBERS = 5  # t_x, t_y, t_w, t_h, objectness
START_OBJECTNESS = 0.01


class Branch(nn.Module):
    """Convolutions of one level and its output.

    Args:
        channels: of the trunk's map.
        coarser: channels of the coarser level's branch; None for the coarsest level.
        width: of the 1x1 convolutions; the 3x3 ones have twice as many channels.
        depth: number of convolutions before the place where the next level starts, 1x1 and 3x3 in turn.
        num_anchors: of a cell.
        num_classes: C.
    """

    def __init__(
        self, channels: int, coarser: int | None, width: int, depth: int, num_anchors: int, num_classes: int
    ) -> None:
        super().__init__()
        self.lateral = None if coarser is None else ConvUnit(coarser, width, 1)
        if self.lateral is not None:
            channels += width
        layers: list[nn.Module] = []
        for number in range(depth):
            size, out_channels = (3, 2 * width) if number % 2 else (1, width)
            layers.append(ConvUnit(channels, out_channels, size))
            channels = out_channels
        self.body = nn.Sequential(*layers)
        self.last = ConvUnit(channels, 2 * width, 3)
        self.output = nn.Conv2d(2 * width, num_anchors * (BOX_NUMBERS + num_classes), 1)
        self.channels = channels
        init_output(self.output, num_anchors)

    def forward(
        self, features: Float[Tensor, "B _ H W"], coarser: Tensor | None
    ) -> tuple[Float[Tensor, "B _ H W"], Float[Tensor, "B _ H W"]]:
        """Map for the next finer level, and outputs of the cells: 5 + C numbers of each anchor."""
        if self.lateral is not None and coarser is not None:
            factor = features.shape[-1] // coarser.shape[-1]
            upsampled = F.interpolate(self.lateral(coarser), scale_factor=float(factor), mode="nearest")
            features = torch.cat([upsampled, features], dim=1)
        features = self.body(features)
        return features, self.output(self.last(features))


def init_output(output: nn.Conv2d, num_anchors: int) -> None:
    """Small weights: boxes of the anchor's size in the middle of their cell, with a low objectness."""
    nn.init.normal_(output.weight, std=0.01)
    assert output.bias is not None
    with torch.no_grad():
        output.bias.zero_()
        output.bias.view(num_anchors, -1)[:, BOX_NUMBERS - 1] = math.log(START_OBJECTNESS / (1 - START_OBJECTNESS))
