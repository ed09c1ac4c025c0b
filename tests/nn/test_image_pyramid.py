"""Canvas of an image pyramid: no overlap, each level in its slot, little wasted area."""

import torch

from zoo.nn.image_pyramid import Slot, draw_canvas, place_levels, plan_shelves, slot_cells, slot_windows


def test_slots_do_not_overlap_and_hold_their_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        count = int(torch.randint(1, 8, (), generator=generator))
        sizes = [tuple(size) for size in torch.randint(1, 40, (count, 2), generator=generator).tolist()]
        shelves = plan_shelves([(8.0 * rows, 8.0 * columns) for rows, columns in sizes], 24)
        assert sorted(level for shelf in shelves for level in shelf) == list(range(count))
        slots, columns = place_levels(sizes, shelves, gap=3)
        taken = torch.zeros(300, columns + 3)
        for slot, size in zip(slots, sizes, strict=True):
            assert (slot.rows, slot.columns) == size
            assert slot.left + slot.columns <= columns
            taken[slot.top : slot.top + slot.rows + 3, slot.left : slot.left + slot.columns + 3] += 1
        assert taken.max() == 1
        # Each level is in its slot, and everything else is zero.
        levels = [torch.full((1, 3, 2 * size[0] - 1, 2 * size[1]), 1.0 + n) for n, size in enumerate(sizes)]
        canvas = draw_canvas(levels, slots, shelves, columns, stride=2)
        assert canvas.shape[2:] == (2 * max(slot.top + slot.rows for slot in slots), 2 * columns)
        for level, slot in zip(levels, slots, strict=True):
            part = canvas[
                :, :, 2 * slot.top : 2 * (slot.top + slot.rows), 2 * slot.left : 2 * (slot.left + slot.columns)
            ]
            assert torch.equal(part[:, :, :-1], level)
            part.zero_()
        assert canvas.abs().max() == 0


def test_shelves_by_hand() -> None:
    """Two small levels side by side; both levels in one row of a wider canvas; tallest first in any order."""
    assert plan_shelves([(16.0, 24.0), (11.0, 16.0), (8.0, 12.0), (5.0, 8.0)], 0) == [[0], [1], [2, 3]]
    assert plan_shelves([(4.0, 16.0), (4.0, 16.0)], 2) == [[0, 1]]
    assert plan_shelves([(3.0, 8.0), (9.0, 8.0)], 0) == [[1], [0]]


def test_slot_cells_are_flat_indices_of_the_canvas() -> None:
    assert slot_cells(Slot(top=3, left=5, rows=2, columns=2), 10, torch.device("cpu")).tolist() == [35, 36, 45, 46]


def test_windows_worked_by_hand() -> None:
    """The level is half as wide as the frame and as high; cell 0 sees pixels -27 .. 27, so its middle is 0.5."""
    first = torch.tensor([[-11.5, -11.5, 12.5, 12.5]])
    boxes = slot_windows(first, Slot(top=3, left=5, rows=2, columns=2), 8, shape=(48.0, 24.0), side=24)
    assert boxes.tolist() == [
        [-23.0, -11.5, 25.0, 12.5],
        [-7.0, -11.5, 41.0, 12.5],
        [-23.0, -3.5, 25.0, 20.5],
        [-7.0, -3.5, 41.0, 20.5],
    ]
