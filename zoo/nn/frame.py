"""Framing: resize, normalise and pad raw images to a Batch, and map predictions back to image pixels.

Raw images of any size are handled here; detectors work in framed pixels. Resizing follows torchvision's
GeneralizedRCNNTransform (bilinear, half-pixel centres, no antialiasing), so that weights trained there get the same
pixels here. Normalising commutes with resizing and is done after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.ops.postprocess import select
from zoo.types import Batch, Image, Prediction, Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

GREY = 255 / 2
"""Pixel value of the border of letterboxed frames."""

MAX_CELLS = 2**16
"""Upper bound, under export, of a frame's side in multiples of the divisor, so that no product of sizes overflows."""


@dataclass(frozen=True)
class FrameConfig:
    """Resizing, padding and normalisation of images.

    Args:
        min_size: the shorter side of an image is resized to this many pixels ...
        max_size: ... unless the longer side would then be longer than this.
        stretch: resize every image to min_size x min_size instead, ignoring its aspect ratio (YOLOv1).
        letterbox: resize every image to fit into min_size x min_size instead, in the middle of a grey square (YOLOv3).
        native_at_test: resize images in training only; all other passes are on the images' own size (CornerNet).
        divisor: frames are padded to multiples of this, usually the network's largest stride.
        mean: of each channel, on the scale 0..1; None for that of the trunk's pretrained weights, or ImageNet's.
        std: of each channel, on the scale 0..1; None as for the mean.
    """

    min_size: int = 800
    max_size: int = 1333
    stretch: bool = False
    letterbox: bool = False
    native_at_test: bool = False
    divisor: int = 32
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Check sizes, divisor and std, and that images are resized in one way."""
        if not 0 < self.min_size <= self.max_size:
            raise ValueError(f"min_size {self.min_size}, max_size {self.max_size}: must be 0 < min_size <= max_size")
        if self.divisor < 1 or min(self.std or IMAGENET_STD) <= 0:
            raise ValueError("divisor must be at least 1 and every std above 0")
        if self.stretch + self.letterbox + self.native_at_test > 1:
            raise ValueError("stretch, letterbox and native_at_test exclude each other")

    def framed_size(self, height: int, width: int, for_training: bool = False) -> tuple[int, int]:
        """(height, width) to which an image of the given size is resized."""
        if self.stretch:
            return self.min_size, self.min_size
        if torch.compiler.is_exporting():
            return _trace_framed_size(self, height, width)
        if self.native_at_test and not for_training:
            return height, width
        if self.letterbox:
            longer = max(height, width)
            return max(height * self.min_size // longer, 1), max(width * self.min_size // longer, 1)
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the padded frame of an image resized to the given size."""
        if self.letterbox:
            height = width = self.min_size
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def place(self, height: int, width: int) -> tuple[int, int]:
        """(top, left) of an image resized to the given size, in its frame."""
        return ((self.min_size - height) // 2, (self.min_size - width) // 2) if self.letterbox else (0, 0)


class Frame(nn.Module):
    """Frame raw images for a network, and map its predictions back to image pixels."""

    placement: Tensor

    def __init__(self, config: FrameConfig, channels_last: bool = False) -> None:
        super().__init__()
        self.config = config
        self.mean, self.std = config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD
        self.channels_last = channels_last
        # Empty: its device and dtype follow the detector's, and frames are made with them. Mean and std are not
        # buffers, since those would be rounded to float32 before a detector is converted to float64.
        self.register_buffer("placement", torch.empty(0), persistent=False)

    def forward(
        self,
        images: Sequence[Image],
        targets: Sequence[Target] | None = None,
        proposals: Sequence[Float[Tensor, "_ 4"]] | None = None,
        for_training: bool = False,
    ) -> Batch:
        """Frame images, with targets and region proposals if given.

        Args:
            images: uint8 [3, H, W], any sizes.
            targets: one for each image; boxes, labels, image ids, flags and masks, if any, are read.
            proposals: [P, 4] of each image, in its pixels.
            for_training: whether the losses are trained on; matters with `native_at_test` only.
        """
        framed_sizes = [self.config.framed_size(image.shape[1], image.shape[2], for_training) for image in images]
        batch_images = self._stack(images, framed_sizes)
        given_sizes = _tensor_like([[image.shape[2], image.shape[1]] for image in images], batch_images)
        sizes = _tensor_like([[width, height] for height, width in framed_sizes], batch_images)
        scales = sizes / given_sizes
        offsets = _tensor_like([self.config.place(*size)[::-1] for size in framed_sizes], batch_images)
        if self.config.letterbox:
            sizes = torch.full_like(sizes, self.config.min_size)
        boxes, labels, mask, ids = _pad_targets(targets or [], scales, offsets, len(images))
        padded, proposal_mask = (None, None) if proposals is None else _pad_proposals(proposals, scales, offsets)
        masks = self._frame_masks(targets or [], framed_sizes, batch_images, boxes.shape[1])
        rest = (mask, ids, padded, proposal_mask, masks)
        return Batch(batch_images, sizes, scales, offsets, given_sizes, boxes, labels, *rest)

    def _frame_masks(
        self, targets: Sequence[Target], framed_sizes: Sequence[tuple[int, int]], images: Tensor, num_objects: int
    ) -> UInt8[Tensor, "B M H W"] | None:
        """Masks resized as torchvision does (nearest pixel) and placed as their images; None if no target has them."""
        if not any("masks" in target for target in targets):
            return None
        shape = (len(targets), num_objects, *images.shape[-2:])
        framed = torch.zeros(shape, dtype=torch.uint8, device=images.device)
        for index, (target, (height, width)) in enumerate(zip(targets, framed_sizes, strict=True)):
            if not len(target["labels"]):
                continue
            masks = target["masks"].to(images.device, non_blocking=True)
            if masks.shape[-2:] != (height, width):
                masks = F.interpolate(masks[None].float(), size=(height, width))[0].to(torch.uint8)
            top, left = self.config.place(height, width)
            framed[index, : len(masks), top : top + height, left : left + width] = masks
        return framed

    def _stack(self, images: Sequence[Image], framed_sizes: Sequence[tuple[int, int]]) -> Tensor:
        device, dtype = self.placement.device, self.placement.dtype
        mean = _tensor_like([[255 * value for value in self.mean]], self.placement).view(3, 1, 1)
        std = _tensor_like([[255 * value for value in self.std]], self.placement).view(3, 1, 1)
        if torch.compiler.is_exporting():
            return _trace_frame(self.config, torch.stack(list(images)).to(dtype), framed_sizes[0], mean, std)
        heights, widths = zip(*framed_sizes, strict=True)
        height, width = self.config.padded_size(max(heights), max(widths))
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (len(images), 3, height, width)
        batch = torch.empty(shape, device=device, dtype=dtype, memory_format=memory_format).zero_()
        if self.config.letterbox:
            batch[:, :, : self.config.min_size, : self.config.min_size] = (GREY - mean) / std
        for framed, image, (h, w) in zip(batch, images, framed_sizes, strict=True):
            top, left = self.config.place(h, w)
            pixels = image[None].to(device, non_blocking=True).to(dtype)
            if image.shape[-2:] != (h, w):
                pixels = _resize(pixels, (h, w))
            # In place and image by image, so that the padding stays 0 after normalising, as in torchvision.
            torch.sub(pixels[0], mean, out=framed[:, top : top + h, left : left + w]).div_(std)
        return batch

    @staticmethod
    def unframe(predictions: list[Prediction], batch: Batch) -> list[Prediction]:
        """Map predictions in framed pixels to pixels of the given images, and clip their boxes to the image.

        Detections whose clipped box is empty are dropped.
        """
        unframed = []
        places = zip(predictions, batch.scales, batch.offsets, batch.given_sizes, strict=True)
        for prediction, scale, offset, size in places:
            boxes = (prediction["boxes"] - offset.repeat(2)) / scale.repeat(2)
            boxes = torch.minimum(boxes.clamp(min=0), size.repeat(2))
            keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            kept = select({**prediction, "boxes": boxes.float(), "scores": prediction["scores"].float()}, keep)
            unframed.append(kept)
        return unframed


def _resize(images: Float[Tensor, "B 3 _ _"], size: tuple[int, int]) -> Float[Tensor, "B 3 _ _"]:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


# Under torch.export the image size is symbolic. Python arithmetic would fix the size of the example image, so the same
# is computed with tensors, and the values read back from them are the symbolic sizes.


def _trace_framed_size(config: FrameConfig, height: int, width: int) -> tuple[int, int]:
    """`FrameConfig.framed_size` under export; in float64 as in Python, so that both truncate to the same integers."""
    sides = torch.tensor([height, width], dtype=torch.float64)
    if config.letterbox:
        framed = (sides * config.min_size / sides.max()).long().clamp(min=1).tolist()
        return framed[0], framed[1]
    # Tensors on both sides: torch computes number / tensor as number * reciprocal, which rounds twice.
    limits = torch.tensor([config.min_size, config.max_size], dtype=torch.float64)
    scale = (limits / torch.stack([sides.min(), sides.max()])).min()
    if config.native_at_test:
        scale = torch.ones_like(scale)
    framed_height, framed_width = (sides * scale).long().clamp(min=1).tolist()
    return framed_height, framed_width


def _trace_frame(
    config: FrameConfig, images: Float[Tensor, "B 3 _ _"], size: tuple[int, int], mean: Tensor, std: Tensor
) -> Float[Tensor, "B 3 _ _"]:
    """Resize, normalise and pad images of one size, under export."""
    resized = _resize(images, size)
    if config.letterbox:
        resized, size = _trace_letterbox(config, resized, size), (config.min_size, config.min_size)
    cells = [(side + config.divisor - 1) // config.divisor for side in size]
    if not (config.stretch or config.letterbox):
        # Read back again, so that the network's shapes are multiples of one symbol and not of rounded-up quotients.
        cells = torch.tensor(cells).tolist()
        for count in cells:
            torch._check(count > 0)
            torch._check(count < MAX_CELLS)
    bottom, right = (count * config.divisor - side for count, side in zip(cells, size, strict=True))
    torch._check(bottom >= 0)
    torch._check(right >= 0)
    return F.pad((resized - mean) / std, (0, right, 0, bottom))


def _trace_letterbox(
    config: FrameConfig, images: Float[Tensor, "B 3 _ _"], size: tuple[int, int]
) -> Float[Tensor, "B 3 _ _"]:
    """Resized images in the middle of grey squares."""
    top, left = config.place(*size)
    bottom, right = config.min_size - size[0] - top, config.min_size - size[1] - left
    for border in (top, left, bottom, right):
        torch._check(border >= 0)
    return F.pad(images - GREY, (left, right, top, bottom)) + GREY


def get_proposals(batch: Batch) -> tuple[Float[Tensor, "B P 4"], Bool[Tensor, "B P"]]:
    """Region proposals of a batch, and the mask of those that are not padding.

    Raises:
        ValueError: the batch was framed without proposals.
    """
    if batch.proposals is None or batch.proposal_mask is None:
        raise ValueError("this batch has no region proposals; frame it with Detector.frame_batch")
    return batch.proposals, batch.proposal_mask


def _tensor_like(rows: Sequence[Sequence[float | int]], other: Tensor) -> Tensor:
    """Tensor of the rows on the device of `other`; copied from pinned memory on CUDA, which does not block."""
    table = torch.tensor(rows, dtype=torch.promote_types(other.dtype, torch.float32))  # bf16 cannot represent 1078
    if other.device.type == "cuda":
        return table.pin_memory().to(other.device, non_blocking=True)
    return table.to(other.device)


def _pad_targets(
    targets: Sequence[Target], scales: Tensor, offsets: Tensor, num_images: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes [B, M, 4] in framed pixels, labels [B, M], mask [B, M] of objects to train on, image ids [B]."""
    device = scales.device
    max_count = max((len(target["labels"]) for target in targets), default=0)
    boxes = scales.new_zeros(num_images, max_count, 4)
    labels = torch.zeros(num_images, max_count, dtype=torch.int64, device=device)
    mask = torch.zeros(num_images, max_count, dtype=torch.bool, device=device)
    for index, target in enumerate(targets):
        count = len(target["labels"])
        boxes[index, :count] = target["boxes"]
        labels[index, :count] = target["labels"]
        # Crowd regions and difficult objects are not trained on, as in torchvision's and Girshick's code.
        mask[index, :count] = ~(target["iscrowd"] | target["difficult"])
    boxes = boxes * scales.repeat(1, 2)[:, None] + offsets.repeat(1, 2)[:, None]
    ids = (
        torch.stack([target["image_id"] for target in targets]) if targets else torch.arange(num_images, device=device)
    )
    return boxes, labels, mask, ids


def _pad_proposals(proposals: Sequence[Tensor], scales: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals [B, P, 4] in framed pixels and their mask [B, P]; P is at least 1."""
    scales, offsets = scales.repeat(1, 2)[:, None], offsets.repeat(1, 2)[:, None]
    if torch.compiler.is_exporting():  # of any number, the same for all images: padded with boxes without area
        padded = torch.stack(list(proposals)) * scales + offsets
        return padded, (padded[..., 2:] > padded[..., :2]).all(dim=-1)
    max_count = max(1, *(len(boxes) for boxes in proposals))
    padded = scales.new_zeros(len(proposals), max_count, 4)
    mask = torch.zeros(len(proposals), max_count, dtype=torch.bool, device=scales.device)
    for index, boxes in enumerate(proposals):
        padded[index, : len(boxes)] = boxes
        mask[index, : len(boxes)] = True
    return padded * scales + offsets, mask
