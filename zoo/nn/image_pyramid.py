"""Pack all levels of an image pyramid into one canvas: the layout, and the canvas image.

A convolutional network then processes the whole pyramid in one pass, with one batch norm statistic for all levels.
Levels are packed in shelves (rows), from left to right. The gap between any two is so wide that no window centred on
one has pixels of the other in its receptive field.

Legend: B images, N windows of all levels; a cell is stride x stride pixels of the canvas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.anchors import grid_anchors
from zoo.ops.precision import upcast


@dataclass(frozen=True)
class Slot:
    """Position and size of a level on the canvas, in cells."""

    top: int
    left: int
    rows: int
    columns: int


def plan_shelves(sizes: Sequence[tuple[float, float]], gap: int) -> list[list[int]]:
    """Assign levels of (height, width) to shelves: for each shelf from the top, the indices of its levels.

    Levels are placed tallest first, as many in a shelf as fit the canvas width. Candidate widths are those of the first
    n levels side by side; the one with the smallest canvas area is used.
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
    """Slot of each level of (rows, columns), with `gap` empty cells between levels; and the canvas width in cells."""
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
    """Canvas with the levels in their slots and zeros elsewhere; by padding and concatenation, for torch.export."""
    drawn = []
    bottom = 0  # edge of the shelf above, in cells
    for shelf in shelves:
        top = slots[shelf[0]].top
        height = max(slots[level].rows for level in shelf)
        parts = []
        right = 0  # edge of the previous level, in cells
        for level in shelf:
            slot, image = slots[level], levels[level]
            to_whole_cells = slot.columns * stride - image.shape[3], 0, height * stride - image.shape[2]
            parts.append(F.pad(image, ((slot.left - right) * stride, *to_whole_cells)))
            right = slot.left + slot.columns
        drawn.append(F.pad(torch.cat(parts, dim=3), (0, (columns - right) * stride, (top - bottom) * stride, 0)))
        bottom = top + height
    return torch.cat(drawn, dim=2)


def slot_cells(slot: Slot, columns: int, device: torch.device) -> Int64[Tensor, " _"]:
    """Flat indices of a level's cells on a canvas with that many columns, row by row."""
    rows = torch.arange(slot.top, slot.top + slot.rows, device=device)
    return (rows[:, None] * columns + torch.arange(slot.left, slot.left + slot.columns, device=device)).flatten()


def resize_for_window(
    images: Float[Tensor, "B 3 H W"], shape: tuple[float, float], side: int
) -> Float[Tensor, "B 3 _ _"]:
    """Images resized so that a window of `shape` (width, height) becomes side x side."""
    if shape == (side, side):
        return images
    scales = (side / shape[1], side / shape[0])
    # By scale factors, not sizes: a pixel of the level then has the same position whatever the frame's size.
    return F.interpolate(upcast(images), scale_factor=scales, mode="bilinear", antialias=True).to(images.dtype)


def slot_windows(
    first: Float[Tensor, "1 4"], slot: Slot, stride: int, shape: tuple[float, float], side: int
) -> Float[Tensor, "_ 4"]:
    """Windows of a level in framed pixels, row by row.

    Args:
        first: the window around cell 0, in pixels of the level.
        slot: of the level.
        stride: between windows, in pixels of the level.
        shape: (width, height) of the level's windows in framed pixels.
        side: of a window on the level.
    """
    on_level = grid_anchors(first, (slot.rows, slot.columns), (stride, stride))
    corners = on_level.view(-1, 2, 2)
    return torch.stack([corners[..., axis] * (shape[axis] / side) for axis in (0, 1)], dim=-1).view(-1, 4)


class ImagePyramid:
    """One level for each window shape, on which windows of that shape are squares of one side; all on one canvas.

    Args:
        shapes: (width, height) of the windows in framed pixels, one level each.
        side: of a window on its level, in pixels.
        stride: of the cells.
        gap: empty cells between two levels.
        frame_size: shorter side of a usual frame, for a compact layout.
    """

    def __init__(
        self, shapes: Sequence[tuple[float, float]], side: int, stride: int, gap: int, frame_size: int
    ) -> None:
        self.shapes, self.side, self.stride, self.gap = shapes, side, stride, gap
        height, width = frame_size, frame_size * 4 / 3
        sizes = [(height * side / window_height, width * side / window_width) for window_width, window_height in shapes]
        self.shelves = plan_shelves(sizes, gap * stride)

    def draw(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B 3 _ _"], list[Slot]]:
        """The canvas, and the slot of each level."""
        levels = [resize_for_window(images, shape, self.side) for shape in self.shapes]
        sizes = [(-(-level.shape[2] // self.stride), -(-level.shape[3] // self.stride)) for level in levels]
        slots, columns = place_levels(sizes, self.shelves, self.gap)
        return draw_canvas(levels, slots, self.shelves, columns, self.stride), slots

    def cells(self, canvas: Float[Tensor, "B 3 _ _"], slots: Sequence[Slot]) -> Int64[Tensor, " N"]:
        """Flat indices of all levels' cells on the canvas."""
        columns = canvas.shape[3] // self.stride
        return torch.cat([slot_cells(slot, columns, canvas.device) for slot in slots])

    def windows(self, first: Float[Tensor, "1 4"], slots: Sequence[Slot]) -> Float[Tensor, "N 4"]:
        """Windows of all levels in framed pixels; `first` is the window around cell 0 of a level, in its pixels."""
        levels = zip(slots, self.shapes, strict=True)
        return torch.cat([slot_windows(first, slot, self.stride, shape, self.side) for slot, shape in levels])
