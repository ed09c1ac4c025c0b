"""Feature pyramid (Lin et al., arXiv 1612.03144) over a trunk's levels, from torchvision's parts."""

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

Extra = Literal["pool", "p6p7_from_trunk", "p6p7_from_pyramid"]


class Pyramid(nn.Module):
    """Maps of one width at every level, and one or two coarser ones.

    Args:
        in_channels: of the trunk's levels, fine to coarse.
        channels: of every level of the pyramid.
        extra: "pool": one more level by stride-2 subsampling (Faster R-CNN); "p6p7_from_trunk": two by stride-2
            convolutions, the first on the trunk's last level (the RetinaNet paper); "p6p7_from_pyramid": the same on
            the pyramid's last (torchvision's first RetinaNet, detectron2's "p5").
        norm: builds a norm layer after each of the pyramid's convolutions; then they have no bias.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        extra: Extra,
        norm: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        extra_block = {
            "pool": lambda: LastLevelMaxPool(),
            "p6p7_from_trunk": lambda: LastLevelP6P7(in_channels[-1], channels),
            "p6p7_from_pyramid": lambda: LastLevelP6P7(channels, channels),
        }[extra]()
        if extra == "p6p7_from_trunk" and in_channels[-1] == channels:
            # torchvision takes equal widths to mean "from the pyramid".
            extra_block.use_P5 = False
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels, extra_block, norm)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        """Trunk maps, fine to coarse -> pyramid maps, fine to coarse, the extra ones last."""
        return list(self.fpn({str(level): feature for level, feature in enumerate(features)}).values())
