"""The mask branch of Mask R-CNN (arXiv 1703.06870): head and loss.

Legend: B images, M objects, R RoIs of an image (padded), N RoIs, D channels, S side of the masks (28), C classes.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from zoo.ops.distributed import mean_count
from zoo.ops.precision import upcast

POOLED_SIDE = 14
"""Side of the pooled RoIs; the masks are twice as large."""


class MaskHead(nn.Module):
    """Four 3x3 convolutions, a 2x2 deconvolution of stride 2, and a mask of each class (section 3, figure 4, right).

    Args:
        in_channels: D of the pooled RoIs.
        num_convs: 3x3 convolutions.
        width: their channels.
        num_classes: C.
        batch_norm: after each of the convolutions.
    """

    def __init__(self, in_channels: int, num_convs: int, width: int, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            in_channels = width
        self.tower = nn.Sequential(*layers)
        self.upsample = nn.ConvTranspose2d(in_channels, width, 2, 2)
        self.output = nn.Conv2d(width, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "N D _ _"]) -> Float[Tensor, "N C S S"]:
        """Logits of the mask of each class."""
        return self.output(F.relu(self.upsample(self.tower(pooled))))


@torch.no_grad()
def mask_targets(
    masks: UInt8[Tensor, "B M H W"], matched: Int64[Tensor, "B R"], boxes: Float[Tensor, "B R 4"], side: int
) -> Float[Tensor, "B R S S"]:
    """Masks of the matched objects inside RoIs, by RoIAlign, as torchvision makes them: shares between 0 and 1.

    Args:
        masks: of the objects, in framed pixels.
        matched: index of the object of each RoI.
        boxes: of the RoIs.
        side: S.
    """
    if masks.shape[1] == 0:
        return boxes.new_zeros(*matched.shape, side, side)
    targets = []
    for of_image, index, rois in zip(masks, matched.clamp(min=0), boxes, strict=True):  # one image in float at a time
        rows = torch.cat([index[:, None].to(rois.dtype), rois], dim=1)
        targets.append(roi_align(of_image[:, None].to(rois.dtype), rows, (side, side), 1.0)[:, 0])
    return torch.stack(targets)


def masks_of_class(logits: Float[Tensor, "N C S S"], labels: Int64[Tensor, " N"]) -> Float[Tensor, "N S S"]:
    """The logits of one class's mask; of the first class for negative labels."""
    index = labels.clamp(min=0)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return upcast(logits.gather(1, index)[:, 0])  # one class in float32, not all


def mask_loss(
    logits: Float[Tensor, "N C S S"],
    labels: Int64[Tensor, " N"],
    targets: Float[Tensor, "N S S"],
    positive: Bool[Tensor, " N"],
) -> Float[Tensor, ""]:
    """L_mask (section 3): binary cross-entropy of the mask of the RoI's class, mean over pixels and positive RoIs.

    Their number is averaged over processes.
    """
    own = masks_of_class(logits, labels)
    loss = F.binary_cross_entropy_with_logits(own, targets, reduction="none").mean(dim=(1, 2))
    return torch.where(positive, loss, 0.0).sum() / mean_count(positive.sum())
