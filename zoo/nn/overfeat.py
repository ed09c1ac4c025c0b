"""OverFeat's trunk (Sermanet et al., arXiv 1312.6229, table 3: the accurate model, layers 1 to 6).

    convolution 7x7 / 2, 96   max pooling 3x3 / 3     convolution 3x3, 512   convolution 3x3, 512
    convolution 7x7 / 1, 256  max pooling 2x2 / 2     convolution 3x3, 1024  convolution 3x3, 1024   max pooling 3x3 / 3

The last pooling implements "fine stride" (section 3.3): the paper pools at all nine offsets and applies the classifier
to each of the nine maps. Pooling with stride 1 followed by a 5x5 classifier with dilation 3 computes the same values,
so the stride between windows is 12 pixels, not 36.

Deviations: the first two convolutions are padded, too (paper: layers 3 to 6 only), so that windows may extend over the
border of an image; weights are initialised as by He et al. (arXiv 1502.01852), since six layers do not train from
N(0, 0.01^2).
"""

from typing import Final

from jaxtyping import Float
from torch import Tensor, nn


class OverFeat(nn.Module):
    """OverFeat trunk: one feature map [B, 1024, ceil(H / 12), ceil(W / 12)]; interface of `zoo.nn.trunk.Trunk`."""

    strides: Final = (12,)
    channels: Final = (1024,)

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2, padding=3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, ceil_mode=True),
            nn.Conv2d(96, 256, 7, padding=3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(256, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 1024, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=1, padding=1),
        )
        for layer in self.network:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The feature map, in a list."""
        return [self.network(images)]
