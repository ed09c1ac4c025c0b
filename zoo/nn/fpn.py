"""Feature pyramid network (Lin et al., arXiv 1612.03144) on a trunk, built from torchvision's parts."""

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

Extra = Literal["pool", "p6p7_from_trunk", "p6p7_from_pyramid"]


class Pyramid(nn.Module):
    """Feature pyramid: maps with the same number of channels at every level, and one or two coarser levels.

    Args:
        in_channels: of the trunk's levels, fine to coarse.
        channels: of every level of the pyramid.
        extra: "pool": one more level by stride-2 subsampling (Faster R-CNN); "p6p7_from_trunk": two more by stride-2
            convolutions, the first on the trunk's last level (the RetinaNet paper); "p6p7_from_pyramid": the same on
            the pyramid's last level (torchvision's first RetinaNet, detectron2's "p5").
        norm: builds the norm layer after each convolution of the pyramid, which then has no bias; None for no norm.
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
            # torchvision infers "from the pyramid" from equal numbers of channels.
            extra_block.use_P5 = False
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels, extra_block, norm)

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        """Pyramid maps of the trunk's maps, both fine to coarse; the extra levels last."""
        return list(self.fpn({str(level): feature for level, feature in enumerate(features)}).values())
