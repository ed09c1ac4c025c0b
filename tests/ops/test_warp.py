"""Warped crops compared with a slow loop over pixels and hand-computed crops."""

import math

import torch
from torch import Tensor

from zoo.ops.warp import warp_windows


def slow_warp(image: Tensor, width: int, height: int, box: list[float], side: int, context: int) -> Tensor:
    """One crop, pixel by pixel: the box fills side - 2 context pixels of it; 0 outside of the image."""
    x1, y1, x2, y2 = box
    pixel_width, pixel_height = (x2 - x1) / (side - 2 * context), (y2 - y1) / (side - 2 * context)
    crop = torch.zeros(3, side, side, dtype=image.dtype)
    for row in range(side):
        for column in range(side):
            x = x1 + (column - context + 0.5) * pixel_width
            y = y1 + (row - context + 0.5) * pixel_height
            if not (0 <= x < width and 0 <= y < height):
                continue
            left, top = math.floor(x - 0.5), math.floor(y - 0.5)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - 0.5 - top - i)) * (1 - abs(x - 0.5 - left - j))
                pixel = image[:, min(max(top + i, 0), height - 1), min(max(left + j, 0), width - 1)]
                crop[:, row, column] += weight * pixel
    return crop


def test_crops_equal_a_slow_loop() -> None:
    """Windows inside the image, over its edges and next to its padding, small ones and the whole image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 24, 32, dtype=torch.float64, generator=generator)
    sizes = torch.tensor([[32.0, 24.0], [20.0, 24.0], [30.0, 17.0]], dtype=torch.float64)
    for number, (width, height) in enumerate(sizes.long().tolist()):
        images[number, :, height:] = 0
        images[number, :, :, width:] = 0
    windows = [
        (0, [4.0, 5.0, 20.0, 13.5]),
        (0, [0.0, 0.0, 32.0, 24.0]),
        (0, [7.25, 3.5, 9.0, 5.0]),
        (2, [0.0, 2.0, 8.0, 17.0]),
        (2, [20.5, 10.0, 30.0, 17.0]),
    ]
    image = torch.tensor([number for number, _ in windows])
    boxes = torch.tensor([box for _, box in windows], dtype=torch.float64)
    for side, context in ((12, 0), (13, 3)):
        crops = warp_windows(images, sizes, image, boxes, side, context)
        for crop, (number, box) in zip(crops, windows, strict=True):
            width, height = sizes[number].long().tolist()
            torch.testing.assert_close(crop, slow_warp(images[number], width, height, box, side, context))


def test_positions_are_not_rounded_to_bf16() -> None:
    """In bf16 neighbouring pixels beyond 256 would have the same position."""
    columns = torch.arange(640.0).remainder(2).expand(1, 3, 8, 640)
    box, size = torch.tensor([[600.0, 0.0, 608.0, 8.0]]), torch.tensor([[640.0, 8.0]])
    image = torch.zeros(1, dtype=torch.int64)
    crop = warp_windows(columns.bfloat16(), size, image, box, side=8, context=0)
    assert crop.dtype == torch.bfloat16
    torch.testing.assert_close(crop.float(), warp_windows(columns, size, image, box, side=8, context=0))
    assert crop[0, 0, 0].tolist() == [0, 1] * 4


def test_context_by_hand() -> None:
    """A box of 8 x 8 pixels with a side of 16 and a context of 4 gives the 16 x 16 pixels around it unchanged."""
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(1, 3, 32, 32)
    crop = warp_windows(
        image, torch.tensor([[32.0, 32.0]]), torch.tensor([0]), torch.tensor([[10.0, 12.0, 18.0, 20.0]]), 16, 4
    )
    torch.testing.assert_close(crop[0], image[0, :, 8:24, 6:22])


def test_pixels_outside_of_the_image_are_the_mean() -> None:
    images = torch.ones(1, 3, 16, 16)
    crop = warp_windows(
        images, torch.tensor([[16.0, 16.0]]), torch.tensor([0]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]), 227, 16
    )[0]
    expected = torch.zeros(3, 227, 227)
    expected[:, 16:-16, 16:-16] = 1  # exactly 16 pixels of the crop on each side are context, all of it outside
    torch.testing.assert_close(crop, expected)
