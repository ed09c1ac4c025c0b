"""Small images and targets for tests of detectors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.types import Target


def make_target(boxes: Sequence[Sequence[float]], labels: Sequence[int], image_id: int = 0) -> Target:
    """Target with these objects, none of them crowd or difficult."""
    edges = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(
        boxes=edges,
        labels=torch.tensor(labels, dtype=torch.int64),
        image_id=torch.tensor(image_id),
        iscrowd=torch.zeros(len(edges), dtype=torch.bool),
        difficult=torch.zeros(len(edges), dtype=torch.bool),
        area=(edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1]),
    )


def make_image(height: int, width: int, target: Target, seed: int = 0) -> Tensor:
    """Grey noise with a uniform rectangle for each object, coloured by class; the target gets the masks of these."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(90, 130, (3, height, width), dtype=torch.uint8, generator=generator)
    colours = torch.tensor([[230, 40, 40], [40, 220, 60], [50, 60, 240]], dtype=torch.uint8)
    for box, label in zip(target["boxes"].round().long().tolist(), target["labels"].tolist(), strict=True):
        x1, y1, x2, y2 = box
        image[:, y1:y2, x1:x2] = colours[label % 3][:, None, None]
    target["masks"] = torch.zeros(len(target["labels"]), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].round().long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return image
