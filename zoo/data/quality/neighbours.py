"""Pairs of boxes in the same image, and their IoU, vectorised with numpy.

Legend:
    T  boxes of all images        P  pairs of a block
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64


def same_image_pairs(image_index: Int64[np.ndarray, " T"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of boxes in the same image, each once, in blocks.

    The k-th block pairs each box with the k-th box after it in its image. A box occurs at most once on each side of a
    block, so that results can be accumulated by box without `ufunc.at`. Memory is linear in the number of boxes, time
    in the number of pairs.

    Args:
        image_index: image of each box, in any order.

    Yields:
        Rows i64 [P] of the first and of the second box of each pair, in the order of `image_index`.
    """
    order = np.argsort(image_index, kind="stable")
    _, firsts, counts = np.unique(image_index[order], return_index=True, return_counts=True)
    after = np.repeat(firsts + counts, counts) - np.arange(len(order)) - 1  # number of boxes that follow in the image
    active, distance = np.flatnonzero(after >= 1), 1
    while len(active):
        yield order[active], order[active + distance]
        distance += 1
        active = active[after[active] >= distance]


def pair_iou(boxes: Float64[np.ndarray, "P 4"], others: Float64[np.ndarray, "P 4"]) -> Float64[np.ndarray, " P"]:
    """IoU [P] of boxes with the boxes of the same rows; 0 where both have no area."""
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    union = areas[0] + areas[1] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def highest_iou(boxes: Float64[np.ndarray, "T 4"], image_index: Int64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    """Highest IoU [T] of each box with another box of its image; 0 without another box."""
    best = np.zeros(len(boxes))
    for first, second in same_image_pairs(image_index):
        iou = pair_iou(boxes[first], boxes[second])
        best[first] = np.maximum(best[first], iou)
        best[second] = np.maximum(best[second], iou)
    return best
