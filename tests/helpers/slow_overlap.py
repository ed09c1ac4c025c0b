"""COCO's overlap of two boxes, for tests against slow loops."""

import numpy as np


def overlap(box: np.ndarray, other: np.ndarray, crowd: bool) -> float:
    """IoU of xyxy boxes; if `other` is a crowd region, intersection over the area of `box`."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(width, 0) * max(height, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return both / (area if crowd else area + (other[2] - other[0]) * (other[3] - other[1]) - both)
