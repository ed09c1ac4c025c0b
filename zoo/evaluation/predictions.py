"""Detections of a set of images as columns, with their masks.

Legend:
    D  detections of all images
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64

from zoo.data.masks import Masks, encode_stack
from zoo.evaluation.ground_truth import ObjectMasks
from zoo.ops.paste import image_masks
from zoo.types import Prediction


@dataclass(frozen=True, eq=False)
class Predictions:
    """Detections of all images in four columns, 36 bytes each instead of a dict each, and their masks, if any.

    Detections of one image are in the order in which the detector returned them, which breaks ties of equal scores.
    Boxes and scores are f32 from a detector and f64 from a file, since another tool's file may have different scores
    that would be equal in f32.
    """

    image_ids: Int64[np.ndarray, " D"]
    boxes: Float[np.ndarray, "D 4"]  # xyxy, pixels of the given image
    scores: Float[np.ndarray, " D"]
    labels: Int64[np.ndarray, " D"]  # 0 .. C - 1
    masks: ObjectMasks | None = None

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    @classmethod
    def from_lists(
        cls,
        image_ids: Sequence[int],
        predictions: Sequence[Prediction],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> "Predictions":
        """Pack a detector's predictions, one `Prediction` for each image, on any device, possibly empty.

        Args:
            image_ids: of each image.
            predictions: of each image.
            sizes: (height, width) of each image; masks, which need them, are left out without.
        """
        counts = [len(prediction["scores"]) for prediction in predictions]
        if len(image_ids) != len(counts):
            raise ValueError(f"{len(image_ids)} image ids for {len(counts)} predictions")
        if not counts:
            return cls(
                np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            )
        # concatenated first: one copy from the device for each column, not three for each image
        return cls(
            image_ids=np.repeat(np.asarray(image_ids, dtype=np.int64), counts),
            boxes=torch.cat([prediction["boxes"] for prediction in predictions]).float().cpu().numpy(),
            scores=torch.cat([prediction["scores"] for prediction in predictions]).float().cpu().numpy(),
            labels=torch.cat([prediction["labels"] for prediction in predictions]).cpu().numpy(),
            masks=None if sizes is None else _pack_masks(predictions, sizes, counts),
        )

    def of_image(self, image_id: int) -> Prediction:
        """One image's boxes as tensors, highest score first; empty for an unknown image id."""
        rows = self.rows_of_image(image_id)
        return Prediction(
            boxes=torch.from_numpy(self.boxes[rows]).float(),
            scores=torch.from_numpy(self.scores[rows]).float(),
            labels=torch.from_numpy(self.labels[rows]),
        )

    def rows_of_image(self, image_id: int) -> Int64[np.ndarray, " K"]:
        """Indices of one image's detections, highest score first."""
        rows = np.flatnonzero(self.image_ids == image_id)
        return rows[np.argsort(-self.scores[rows], kind="stable")]  # a file may have any order


def encode_masks(found: Prediction, height: int, width: int) -> list[bytes]:
    """Compressed run lengths of the masks of an image's detections; [] without masks."""
    masks = image_masks(found, height, width)
    return [] if masks is None else encode_stack(masks.cpu().numpy())


def _pack_masks(
    predictions: Sequence[Prediction], sizes: Sequence[tuple[int, int]], counts: Sequence[int]
) -> ObjectMasks | None:
    if not all("masks" in found for found in predictions):
        return None
    runs = Masks.pack(
        text for found, size in zip(predictions, sizes, strict=True) for text in encode_masks(found, *size)
    )
    heights, widths = np.repeat(np.array(sizes, np.int64).reshape(-1, 2), counts, axis=0).T
    return ObjectMasks(runs, heights, widths)


def to_xywh(boxes: Float[np.ndarray, "D 4"]) -> Float[np.ndarray, "D 4"]:
    """COCO's x, y, width, height in f64 from xyxy edges in f32 or f64."""
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide
