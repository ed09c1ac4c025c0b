"""Masks of boxes, placed in images (Mask R-CNN, arXiv 1703.06870, section 3.1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from zoo.types import Prediction


def image_masks(found: Prediction, height: int, width: int) -> Bool[Tensor, "K H W"] | None:
    """Masks of the detections of an image of this size; None from a detector without masks."""
    return paste_masks(found["masks"], found["boxes"], height, width) if "masks" in found else None


def paste_masks(
    masks: Float[Tensor, "N S S"], boxes: Float[Tensor, "N 4"], height: int, width: int
) -> Bool[Tensor, "N H W"]:
    """Masks resized to their boxes and placed in an image, where they are at least 0.5.

    As in Detectron and torchvision: a border of zeros is added, the box grows with it, its edges are cut to whole
    pixels, and the mask is resized to one pixel more than their distance.

    Args:
        masks: probabilities.
        boxes: xyxy in pixels of the image.
        height: of the image.
        width: of the image.
    """
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    side = masks.shape[-1]
    padded = F.pad(masks, (1, 1, 1, 1))
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    edges = torch.cat([centres - halves, centres + halves], dim=1).long().tolist()
    for image, mask, (x1, y1, x2, y2) in zip(pasted, padded, edges, strict=True):
        rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        resized = F.interpolate(mask[None, None], size=(rows, columns), mode="bilinear", align_corners=False)[0, 0]
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        if left < right and top < bottom:
            image[top:bottom, left:right] = resized[top - y1 : bottom - y1, left - x1 : right - x1] >= 0.5
    return pasted
