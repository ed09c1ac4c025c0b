"""Pairs of boxes that lie in the same image, in blocks that numpy can work on.

Legend:
    T  boxes of all images        P  pairs of a block
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64


def neighbour_pairs(image_index: Int64[np.ndarray, "T"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of boxes with the same image, each once.

    The k-th block pairs each box with the k-th after it in its image, so a box is at most once on each side of a block:
    what is gathered by box needs no `ufunc.at`. Memory is that of a block, time that of the pairs.

    Args:
        image_index: image of each box, in any order.

    Yields:
        Rows i64 [P] of the one and of the other box of each pair; the one comes before the other in `image_index`.
    """
    order = np.argsort(image_index, kind="stable")
    _, firsts, counts = np.unique(image_index[order], return_index=True, return_counts=True)
    after = np.repeat(firsts + counts, counts) - np.arange(len(order)) - 1  # boxes that follow in the image
    active, distance = np.flatnonzero(after >= 1), 1
    while len(active):
        yield order[active], order[active + distance]
        distance += 1
        active = active[after[active] >= distance]


def pair_iou(boxes: Float64[np.ndarray, "P 4"], others: Float64[np.ndarray, "P 4"]) -> Float64[np.ndarray, "P"]:
    """IoU of each box with its other; 0 where both have no area."""
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    union = areas[0] + areas[1] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def highest_iou(boxes: Float64[np.ndarray, "T 4"], image_index: Int64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
    """Each box's highest IoU with another of its image; 0 for a box that is alone."""
    best = np.zeros(len(boxes))
    for ours, theirs in neighbour_pairs(image_index):
        iou = pair_iou(boxes[ours], boxes[theirs])
        best[ours] = np.maximum(best[ours], iou)
        best[theirs] = np.maximum(best[theirs], iou)
    return best
