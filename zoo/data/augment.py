"""The augmentations that every detector gets alike: torchvision.transforms.v2, one switch each.

Each transform draws its parameters once and is then applied to the image, the objects' boxes and the region proposals.
Only the objects' boxes have a say in what is drawn: thousands of proposals would let any crop pass as good.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes
from torchvision.tv_tensors import Image as TVImage

from zoo.types import Image, Sample, Target

# ImageNet's mean colour: after normalising, the border that scale jitter leaves is nearly zero, as padding is.
_BORDER_COLOUR = [124.0, 116.0, 104.0]
# What a crop leaves of an object counts as that object down to this part of its box, and not below.
_MIN_VISIBLE = 0.25
# pixels; thinner remains of a box are nothing to learn from
_MIN_SIDE = 1.0


@dataclass(frozen=True)
class Augment:
    """What happens to training images; everything is drawn from torch's global generator.

    Args:
        flip: left to right, half of the time.
        vertical_flip: top to bottom, half of the time (microscopes and satellites know no up).
        scale_jitter: (smallest, largest) factor by which the content grows, or None. The canvas keeps the image's size:
            what grows is cropped at random, what shrinks is laid somewhere on a plain ground.
        translate: largest distance by which the content moves, as a part of the image's width and height. The canvas
            keeps the image's size, as above.
        photometric: brightness, contrast, saturation, hue and channel order, as SSD has them.
        iou_crop: SSD's random crop around objects; changes the size of the image.
    """

    flip: bool = True
    vertical_flip: bool = False
    scale_jitter: tuple[float, float] | None = None
    translate: float = 0.0
    photometric: bool = False
    iou_crop: bool = False

    def __post_init__(self) -> None:
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(
                f"scale_jitter must be (smallest, largest) with 0 < smallest <= largest: {self.scale_jitter}"
            )
        if not 0 <= self.translate < 1:
            raise ValueError(f"translate is a part of the image, from 0 to below 1: {self.translate}")

    def __call__(self, image: Image, target: Target) -> Sample:
        """Augments one image; neither argument is changed.

        Args:
            image: uint8 [3, H, W].
            target: boxes in pixels of that image.

        Returns:
            Image and target; labels, flags and areas follow the boxes that remain.
        """
        sample = _Boxed(image, target)
        if self.photometric:
            sample.apply(v2.RandomPhotometricDistort())
        if self.scale_jitter is not None:
            sample.rescale(*self.scale_jitter)
        if self.translate:
            sample.translate(self.translate)
        if self.iou_crop and len(target["boxes"]):
            sample.apply(v2.RandomIoUCrop())
        if self.flip and torch.rand(()) < 0.5:
            sample.apply(v2.RandomHorizontalFlip(p=1))
        if self.vertical_flip and torch.rand(()) < 0.5:
            sample.apply(v2.RandomVerticalFlip(p=1))
        return sample.finish()


class _Boxed:
    """An image on its way through the transforms, with every box in its pixels."""

    def __init__(self, image: Image, target: Target) -> None:
        self.image: Tensor = TVImage(image)
        self.target = target
        self.boxes = self._boxes(target["boxes"])
        self.proposals = self._boxes(target["proposals"]) if "proposals" in target else None
        # Area of the whole object's box in today's pixels. Zoomed objects have more of it, cropped ones no less.
        self.whole = _areas(self.boxes)
        self.is_cut = False  # flips and colours leave every object whole

    def _boxes(self, boxes: Float[Tensor, "M 4"]) -> BoundingBoxes:
        height, width = self.image.shape[-2:]
        return BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

    def apply(self, transform: v2.Transform) -> None:
        """One of torchvision's transforms, its parameters drawn once."""
        params = transform.make_params([self.image, self.boxes])
        if isinstance(transform, v2.RandomIoUCrop) and not params:
            return  # this time it leaves the image as it is
        self.image = transform.transform(self.image, params)
        if isinstance(transform, v2.RandomPhotometricDistort):
            return
        self.boxes = transform.transform(self.boxes, params)
        self.is_cut |= isinstance(transform, v2.RandomIoUCrop)
        if self.proposals is not None:
            if isinstance(transform, v2.RandomIoUCrop):
                # the transform would use the mask of the objects on them
                place = {key: params[key] for key in ("top", "left", "height", "width")}
                self.proposals = F.clamp_bounding_boxes(F.crop(self.proposals, **place))
            else:
                self.proposals = transform.transform(self.proposals, params)

    def rescale(self, smallest: float, largest: float) -> None:
        """Content larger or smaller on the same canvas."""
        height, width = self.image.shape[-2:]
        factor = math.exp(float(torch.empty(()).uniform_(math.log(smallest), math.log(largest))))
        new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
        # how far the content lies from the canvas' corner; negative where it is larger
        top, left = _place(height - new_height), _place(width - new_width)

        def move(value: Tensor) -> Tensor:
            value = F.resize(value, [new_height, new_width], antialias=True)
            if factor > 1:
                return F.crop(value, -top, -left, height, width)
            fill = _BORDER_COLOUR if isinstance(value, TVImage) else None
            return F.pad(value, [left, top, width - new_width - left, height - new_height - top], fill=fill)

        self.is_cut = True
        self.image = move(self.image)
        self.boxes = move(self.boxes)
        self.whole = self.whole * (new_width / width) * (new_height / height)
        if self.proposals is not None:
            self.proposals = F.clamp_bounding_boxes(move(self.proposals))

    def translate(self, largest: float) -> None:
        """Content shifted on the same canvas."""
        height, width = self.image.shape[-2:]
        share_x, share_y = torch.empty(2).uniform_(-largest, largest).tolist()
        right, down = round(share_x * width), round(share_y * height)

        def move(value: Tensor) -> Tensor:
            fill = _BORDER_COLOUR if isinstance(value, TVImage) else None
            value = F.pad(value, [max(right, 0), max(down, 0), max(-right, 0), max(-down, 0)], fill=fill)
            return F.crop(value, max(-down, 0), max(-right, 0), height, width)

        self.is_cut = True
        self.image = move(self.image)
        self.boxes = move(self.boxes)
        if self.proposals is not None:
            self.proposals = F.clamp_bounding_boxes(move(self.proposals))

    def finish(self) -> Sample:
        """Plain tensors again; objects of which too little is left are gone."""
        target = self.target.copy()
        target["boxes"] = self.boxes.as_subclass(Tensor)
        if self.is_cut:
            height, width = self.image.shape[-2:]
            edges = torch.tensor([width, height, width, height], dtype=torch.float32)
            boxes = target["boxes"].clamp(min=torch.zeros(4), max=edges)
            visible = _areas(boxes)
            keep = _is_wide(boxes) & (visible >= _MIN_VISIBLE * self.whole)
            # a segment's area goes with its box's
            share = visible / _areas(self.target["boxes"]).clamp(min=1e-6)
            target["boxes"] = boxes[keep]
            target["area"] = (self.target["area"] * share)[keep]
            for key in ("labels", "iscrowd", "difficult"):
                target[key] = self.target[key][keep]
        if self.proposals is not None:
            proposals = self.proposals.as_subclass(Tensor)
            target["proposals"] = proposals[_is_wide(proposals)]
        return self.image.as_subclass(Tensor), target


def _place(room: int) -> int:
    """Where to put content on one axis: anywhere in the room that is left, or that is too little (then <= 0)."""
    offset = int(torch.randint(0, abs(room) + 1, ()))
    return offset if room >= 0 else -offset


def _areas(boxes: Float[Tensor, "M 4"]) -> Float[Tensor, "M"]:
    plain = boxes.as_subclass(Tensor)
    return (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])


def _is_wide(boxes: Float[Tensor, "M 4"]) -> Bool[Tensor, "M"]:
    return (boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(dim=1)
