"""Data augmentation with torchvision.transforms.v2, shared by all detectors.

Each transform draws its parameters once and is then applied to the image, the ground-truth boxes and masks and the
region proposals. Only the ground-truth boxes influence the parameters: with thousands of proposals almost any random
crop would meet the required IoU.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, Mask
from torchvision.tv_tensors import Image as TVImage

from zoo.types import Image, Sample, Target

# ImageNet's mean colour: after normalisation the border around the content is nearly zero, like padding.
_BORDER_COLOUR = [124.0, 116.0, 104.0]
# An object is kept while at least this fraction of its box is visible.
_MIN_VISIBLE = 0.25
# Cropped boxes and proposals with a shorter side (pixels) are dropped.
_MIN_SIDE = 1.0


@dataclass(frozen=True)
class Augment:
    """Random augmentation of a training image and its target; draws from torch's global generator.

    Args:
        flip: flip horizontally with probability 0.5.
        vertical_flip: flip vertically with probability 0.5 (for images without an upright direction, as in microscopy).
        scale_jitter: (smallest, largest) scale factor, or None. The image keeps its size: enlarged content is cropped
            at random, reduced content is placed at random on a plain background.
        translate: largest shift, as a fraction of the image's width and height. The image keeps its size.
        photometric: SSD's distortion of brightness, contrast, saturation, hue and channel order.
        zoom_out: with probability 0.5, place the image on a plain canvas up to this many times as wide and high, as
            SSD does (4), for small objects; 1: never.
        iou_crop: SSD's random crop with a minimum IoU with objects (0.1, 0.3, 0.5, 0.7, 0.9, or any); like zoom_out, it
            changes the size of the image.
    """

    flip: bool = True
    vertical_flip: bool = False
    scale_jitter: tuple[float, float] | None = None
    translate: float = 0.0
    photometric: bool = False
    zoom_out: float = 1.0
    iou_crop: bool = False

    def __post_init__(self) -> None:
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(
                f"scale_jitter must be (smallest, largest) with 0 < smallest <= largest: {self.scale_jitter}"
            )
        if not 0 <= self.translate < 1:
            raise ValueError(f"translate must be a fraction of the image, 0 <= translate < 1: {self.translate}")
        if self.zoom_out < 1:
            raise ValueError(f"zoom_out must be at least 1: {self.zoom_out}")

    def __call__(self, image: Image, target: Target) -> Sample:
        """Augments one image and its target; neither argument is changed.

        Args:
            image: uint8 [3, H, W].
            target: boxes in pixels of that image.

        Returns:
            Image and target; labels, flags, areas and masks follow the boxes that remain.
        """
        sample = _AugmentedSample(image, target)
        if self.photometric:
            sample.apply(v2.RandomPhotometricDistort())
        if self.scale_jitter is not None:
            sample.rescale(*self.scale_jitter)
        if self.translate:
            sample.translate(self.translate)
        if self.zoom_out > 1 and torch.rand(()) < 0.5:
            sample.apply(v2.RandomZoomOut({TVImage: _BORDER_COLOUR, "others": 0}, (1.0, self.zoom_out), p=1))
        if self.iou_crop and len(target["boxes"]):
            sample.apply(v2.RandomIoUCrop())
        if self.flip and torch.rand(()) < 0.5:
            sample.apply(v2.RandomHorizontalFlip(p=1))
        if self.vertical_flip and torch.rand(()) < 0.5:
            sample.apply(v2.RandomVerticalFlip(p=1))
        return sample.finish()


class _AugmentedSample:
    """Image, ground-truth boxes and proposals during augmentation; boxes are in pixels of the current image."""

    def __init__(self, image: Image, target: Target) -> None:
        self.image: Tensor = TVImage(image)
        self.target = target
        self.boxes = self._boxes(target["boxes"])
        self.proposals = self._boxes(target["proposals"]) if "proposals" in target else None
        self.masks = Mask(target["masks"]) if "masks" in target else None
        # Areas of the uncropped boxes in current pixels: scaled with the content, unchanged by crops.
        self.full_areas = _areas(self.boxes)
        self.is_cropped = False  # whether objects may be partly outside the image

    def _boxes(self, boxes: Float[Tensor, "M 4"]) -> BoundingBoxes:
        height, width = self.image.shape[-2:]
        return BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

    def apply(self, transform: v2.Transform) -> None:
        """Draws the parameters of a torchvision transform once and applies it to image, boxes and proposals."""
        params = transform.make_params([self.image, self.boxes])
        if isinstance(transform, v2.RandomIoUCrop) and not params:
            return  # the transform drew "no crop"
        self.image = transform.transform(self.image, params)
        if isinstance(transform, v2.RandomPhotometricDistort):
            return
        self.boxes = transform.transform(self.boxes, params)
        if self.masks is not None:
            self.masks = transform.transform(self.masks, params)
        self.is_cropped |= isinstance(transform, v2.RandomIoUCrop)
        if self.proposals is not None:
            if isinstance(transform, v2.RandomIoUCrop):
                # the transform itself would index the proposals with the mask of the objects that it keeps
                window = {key: params[key] for key in ("top", "left", "height", "width")}
                self.proposals = F.clamp_bounding_boxes(F.crop(self.proposals, **window))
            else:
                self.proposals = transform.transform(self.proposals, params)

    def rescale(self, smallest: float, largest: float) -> None:
        """Scales the content by a random factor and keeps the size of the image."""
        height, width = self.image.shape[-2:]
        factor = math.exp(float(torch.empty(()).uniform_(math.log(smallest), math.log(largest))))
        new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
        # offset of the content from the image's top left corner; negative where the content is larger
        top, left = _random_offset(height - new_height), _random_offset(width - new_width)

        def move(value: Tensor) -> Tensor:
            value = F.resize(value, [new_height, new_width], antialias=True)
            if factor > 1:
                return F.crop(value, -top, -left, height, width)
            fill = _BORDER_COLOUR if isinstance(value, TVImage) else None
            return F.pad(value, [left, top, width - new_width - left, height - new_height - top], fill=fill)

        self.is_cropped = True
        self.image = move(self.image)
        self.boxes = move(self.boxes)
        self.full_areas = self.full_areas * (new_width / width) * (new_height / height)
        if self.masks is not None:
            self.masks = move(self.masks)
        if self.proposals is not None:
            self.proposals = F.clamp_bounding_boxes(move(self.proposals))

    def translate(self, largest: float) -> None:
        """Shifts the content by a random distance and keeps the size of the image."""
        height, width = self.image.shape[-2:]
        share_x, share_y = torch.empty(2).uniform_(-largest, largest).tolist()
        right, down = round(share_x * width), round(share_y * height)

        def move(value: Tensor) -> Tensor:
            fill = _BORDER_COLOUR if isinstance(value, TVImage) else None
            value = F.pad(value, [max(right, 0), max(down, 0), max(-right, 0), max(-down, 0)], fill=fill)
            return F.crop(value, max(-down, 0), max(-right, 0), height, width)

        self.is_cropped = True
        self.image = move(self.image)
        self.boxes = move(self.boxes)
        if self.masks is not None:
            self.masks = move(self.masks)
        if self.proposals is not None:
            self.proposals = F.clamp_bounding_boxes(move(self.proposals))

    def finish(self) -> Sample:
        """Returns plain tensors, without the objects of which too little is visible."""
        target = self.target.copy()
        target["boxes"] = self.boxes.as_subclass(Tensor)
        if self.masks is not None:
            target["masks"] = self.masks.as_subclass(Tensor)
        if self.is_cropped:
            height, width = self.image.shape[-2:]
            edges = torch.tensor([width, height, width, height], dtype=torch.float32)
            boxes = target["boxes"].clamp(min=torch.zeros(4), max=edges)
            visible = _areas(boxes)
            keep = _has_min_sides(boxes) & (visible >= _MIN_VISIBLE * self.full_areas)
            # the area of a segment is scaled like that of its box
            share = visible / _areas(self.target["boxes"]).clamp(min=1e-6)
            target["boxes"] = boxes[keep]
            target["area"] = (self.target["area"] * share)[keep]
            if self.masks is not None:
                target["masks"] = target["masks"][keep]
            for key in ("labels", "iscrowd", "difficult"):
                target[key] = self.target[key][keep]
        if self.proposals is not None:
            proposals = self.proposals.as_subclass(Tensor)
            target["proposals"] = proposals[_has_min_sides(proposals)]
        return self.image.as_subclass(Tensor), target


def _random_offset(free: int) -> int:
    """Uniform random offset between 0 and the free pixels on one axis (negative where the content is larger)."""
    offset = int(torch.randint(0, abs(free) + 1, ()))
    return offset if free >= 0 else -offset


def _areas(boxes: Float[Tensor, "M 4"]) -> Float[Tensor, " M"]:
    plain = boxes.as_subclass(Tensor)
    return (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])


def _has_min_sides(boxes: Float[Tensor, "M 4"]) -> Bool[Tensor, " M"]:
    return (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(dim=1)
