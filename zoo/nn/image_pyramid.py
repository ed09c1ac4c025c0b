"""All levels of an image pyramid on one canvas: where they lie, and the canvas itself.

A convolutional network then sees the whole pyramid in one pass, and batch norm has one statistic for all of it. Levels
lie in shelves, from left to right, with a gap between any two that is as wide as what reads them sees beyond a level.

Legend: B images; a cell is stride x stride pixels of the canvas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Slot:
    """Where a level lies on the canvas, in cells of the trunk."""

    top: int
    left: int
    rows: int
    columns: int


def plan_shelves(sizes: Sequence[tuple[float, float]], gap: int) -> list[list[int]]:
    """Levels of (height, width) in rows on a canvas of little area: for each row, from the top, the levels in it.

    Tallest first, as many in a row as its width takes; the width is that of the first n levels side by side, and n is
    tried out.
    """
    order = sorted(range(len(sizes)), key=lambda level: -sizes[level][0])
    widest = max(width for _, width in sizes)
    best, best_area = [order], math.inf
    for first in range(1, len(order) + 1):
        limit = max(widest, sum(sizes[level][1] + gap for level in order[:first]) - gap)
        shelves: list[list[int]] = []
        left = math.inf
        for level in order:
            if left + sizes[level][1] > limit:
                shelves.append([])
                left = 0.0
            shelves[-1].append(level)
            left += sizes[level][1] + gap
        area = limit * (sum(sizes[shelf[0]][0] + gap for shelf in shelves) - gap)
        if area < best_area:
            best, best_area = shelves, area
    return best


def place_levels(
    sizes: Sequence[tuple[int, int]], shelves: Sequence[Sequence[int]], gap: int
) -> tuple[list[Slot], int]:
    """Slot of each level of (rows, columns), `gap` empty cells between levels; and the columns of the canvas."""
    slots = {}
    top = canvas_columns = 0
    for shelf in shelves:
        left = 0
        for level in shelf:
            rows, columns = sizes[level]
            slots[level] = Slot(top, left, rows, columns)
            left += columns + gap
        top += max(sizes[level][0] for level in shelf) + gap
        canvas_columns = max(canvas_columns, left - gap)
    return [slots[level] for level in range(len(sizes))], canvas_columns


def draw_canvas(
    levels: Sequence[Float[Tensor, "B 3 _ _"]],
    slots: Sequence[Slot],
    shelves: Sequence[Sequence[int]],
    columns: int,
    stride: int,
) -> Float[Tensor, "B 3 _ _"]:
    """The levels in their slots, zeros elsewhere; pieced together, not written into, as torch.export wants it."""
    drawn = []
    bottom = 0  # of the shelf above
    for shelf in shelves:
        top = slots[shelf[0]].top
        height = max(slots[level].rows for level in shelf)
        parts = []
        right = 0  # of the level before
        for level in shelf:
            slot, image = slots[level], levels[level]
            to_whole_cells = slot.columns * stride - image.shape[3], 0, height * stride - image.shape[2]
            parts.append(F.pad(image, ((slot.left - right) * stride, *to_whole_cells)))
            right = slot.left + slot.columns
        drawn.append(F.pad(torch.cat(parts, dim=3), (0, (columns - right) * stride, (top - bottom) * stride, 0)))
        bottom = top + height
    return torch.cat(drawn, dim=2)


def slot_cells(slot: Slot, columns: int, device: torch.device) -> Int64[Tensor, "_"]:
    """Numbers of a level's cells on a canvas of so many columns, row by row."""
    rows = torch.arange(slot.top, slot.top + slot.rows, device=device)
    return (rows[:, None] * columns + torch.arange(slot.left, slot.left + slot.columns, device=device)).flatten()
