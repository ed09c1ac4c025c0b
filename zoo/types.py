"""Types passed between the packages (images, targets, predictions, batches): shapes, units, coordinate convention.

Legend:
    B  images in a batch        H, W  height and width in pixels
    M  objects of an image      C     foreground classes
    K  detections of an image   P     region proposals of an image

Boxes are continuous edges (x1, y1, x2, y2) in pixels of the image they belong to: 0 <= x1 < x2 <= W and
0 <= y1 < y2 <= H, so area = (x2 - x1) * (y2 - y1). Pixel i covers [i, i + 1]. VOC's inclusive 1-based
xmin..xmax reads as the edges xmin - 1 .. xmax, so its widths with "+ 1" equal the widths here.

Labels are 0 .. C - 1. A background class exists only inside the detectors that use one.
"""

from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Image: TypeAlias = UInt8[Tensor, "3 _ _"]  # RGB [3, H, W]; unnamed axes, as images of a list differ in size

Losses: TypeAlias = dict[str, Float[Tensor, ""]]
"""Losses by name: weighted scalars whose sum is the total loss, and nothing else."""


class Target(TypedDict):
    """Ground truth of one image; M may be 0."""

    boxes: Float[Tensor, "M 4"]  # f32 xyxy, in pixels of its image
    labels: Int64[Tensor, " M"]
    image_id: Int64[Tensor, ""]  # the data set's own id (COCO's where the data is COCO)
    iscrowd: Bool[Tensor, " M"]
    difficult: Bool[Tensor, " M"]
    area: Float[Tensor, " M"]  # f32 pixels^2; of the segmentation where the data has one, else of the box
    proposals: NotRequired[Float[Tensor, "P 4"]]  # only for detectors that declare `proposals`
    masks: NotRequired[UInt8[Tensor, "M _ _"]]  # 0 or 1, [M, H, W]; only for detectors with a `mask_side`


class Prediction(TypedDict):
    """Detections of one image, in that image's pixels, sorted by descending score."""

    boxes: Float[Tensor, "K 4"]
    scores: Float[Tensor, " K"]  # descending, in 0..1
    labels: Int64[Tensor, " K"]
    masks: NotRequired[Float[Tensor, "K S S"]]  # probabilities in the box (`zoo.ops.paste`)


Sample: TypeAlias = tuple[Image, Target]
RawBatch: TypeAlias = tuple[list[Image], list[Target]]
"""A batch as loaders yield it: unprocessed images of any sizes, and their targets."""


@dataclass
class Batch:
    """Framed images and their targets, padded to the same number of objects.

    All coordinates are in framed pixels: framed = given * scale + offset.
    """

    images: Float[Tensor, "B 3 H W"]  # normalised, zero-padded at the right and the bottom
    sizes: Float[Tensor, "B 2"]  # (width, height) of the image in the padded frame; with the border of a letterbox
    scales: Float[Tensor, "B 2"]  # (x, y)
    offsets: Float[Tensor, "B 2"]  # (x, y); 0 where frames are not letterboxed
    given_sizes: Float[Tensor, "B 2"]  # (width, height) of each image before framing
    boxes: Float[Tensor, "B M 4"]
    labels: Int64[Tensor, "B M"]
    mask: Bool[Tensor, "B M"]  # objects to train on: neither padding, nor crowd, nor difficult
    image_ids: Int64[Tensor, " B"]
    proposals: Float[Tensor, "B P 4"] | None = None
    proposal_mask: Bool[Tensor, "B P"] | None = None
    masks: UInt8[Tensor, "B M H W"] | None = None  # of the objects, 0 or 1; where the targets have them


@dataclass
class FramedObjects:
    """The counted objects of one image, in pixels of the framed image: neither crowds nor difficult ones."""

    boxes: Float[Tensor, "M 4"]
    labels: Int64[Tensor, " M"]
    size: Float[Tensor, "2"]  # (width, height) of the image inside the frame


class Limit(NamedTuple):
    """A limit of a detector's representation, and the objects of an image that it concerns."""

    name: str  # the same for all images: "no anchor reaches IoU 0.5"
    meaning: str  # one sentence
    is_lost: Bool[Tensor, " M"]
