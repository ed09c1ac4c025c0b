"""What travels between the rooms of the house: shapes, units and the coordinate convention, said once.

Legend:
    B  images in a batch        H, W  height and width in pixels
    M  objects of an image      C     foreground classes
    K  detections of an image   P     region proposals of an image

Boxes are continuous edges (x1, y1, x2, y2) in pixels of the image they belong to: 0 <= x1 < x2 <= W and
0 <= y1 < y2 <= H, so area = (x2 - x1) * (y2 - y1). Pixel i covers [i, i + 1]. VOC's inclusive 1-based
xmin..xmax reads as the edges xmin - 1 .. xmax, which makes its "+ 1" arithmetic and ours the same number.

Labels are 0 .. C - 1; a slot for background is a detector's private matter.
"""

from dataclasses import dataclass
from typing import NotRequired, TypeAlias, TypedDict

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Image: TypeAlias = UInt8[Tensor, "3 _ _"]  # RGB [3, H, W]; unnamed axes, as images of a list differ in size

Losses: TypeAlias = dict[str, Float[Tensor, ""]]
"""Already weighted scalars; the total is their sum, and nothing but losses is in it."""


class Target(TypedDict):
    """What is true of one image; M may be 0."""

    boxes: Float[Tensor, "M 4"]  # f32 xyxy, pixels of the image that it comes with
    labels: Int64[Tensor, "M"]
    image_id: Int64[Tensor, ""]  # the data set's own id (COCO's where the data is COCO)
    iscrowd: Bool[Tensor, "M"]
    difficult: Bool[Tensor, "M"]
    area: Float[Tensor, "M"]  # f32 pixels^2; the segment's where the data has one, else the box's
    proposals: NotRequired[Float[Tensor, "P 4"]]  # only for detectors that declare `proposals`


class Prediction(TypedDict):
    """What a detector says of one image, in that image's pixels, surest first."""

    boxes: Float[Tensor, "K 4"]
    scores: Float[Tensor, "K"]  # descending, in 0..1
    labels: Int64[Tensor, "K"]


Sample: TypeAlias = tuple[Image, Target]
RawBatch: TypeAlias = tuple[list[Image], list[Target]]
"""What a loader hands to a detector: images of any sizes, untouched, and their targets."""


@dataclass
class Batch:
    """Images framed for a network, and their targets padded to one length.

    Everything here is in framed pixels. `scales` leads back: framed = given * scale.
    """

    images: Float[Tensor, "B 3 H W"]  # normalised, zero-padded at the right and the bottom
    sizes: Float[Tensor, "B 2"]  # (width, height) of the part of each frame that is image
    scales: Float[Tensor, "B 2"]  # (x, y)
    given_sizes: Float[Tensor, "B 2"]  # (width, height) of each image as it was given
    boxes: Float[Tensor, "B M 4"]
    labels: Int64[Tensor, "B M"]
    mask: Bool[Tensor, "B M"]  # objects to learn from: neither padding, nor crowd, nor difficult
    image_ids: Int64[Tensor, "B"]
    proposals: Float[Tensor, "B P 4"] | None = None
    proposal_mask: Bool[Tensor, "B P"] | None = None
