import pytest
import torch

from zoo.report.pictures.draw import class_color, draw_boxes, text_color

GREY = torch.full((3, 500, 600), 128, dtype=torch.uint8)


def rgb(label: int) -> list[int]:
    color = class_color(label)
    return [int(color[at : at + 2], 16) for at in (1, 3, 5)]


def test_edges_are_drawn_and_the_inside_is_left_alone():
    boxes = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    drawn = draw_boxes(GREY, boxes, torch.tensor([2]), ["a", "b", "c"], torch.tensor([0.5]))
    assert drawn.shape == GREY.shape
    assert drawn.dtype == torch.uint8
    # Edges 100..300 are the pixels 100..299.
    for row, column in [(200, 200), (399, 200), (300, 100), (300, 299)]:
        assert drawn[:, row, column].tolist() == rgb(2)
    assert (drawn[:, 204:396, 104:296] == 128).all()
    assert (drawn[:, 400:] == 128).all()
    assert (drawn[:, 200:400, 300:] == 128).all()
    assert (drawn[:, 150:200] != 128).any(), "name and score are above the box"
    assert (GREY == 128).all(), "the given image is not modified"


def test_no_boxes_leave_the_image_unchanged():
    drawn = draw_boxes(GREY, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ["a"], torch.zeros(0))
    assert torch.equal(drawn, GREY)


def test_small_images_are_enlarged_by_an_integer_factor():
    drawn = draw_boxes(GREY[:, :50, :64], torch.tensor([[8.0, 20.0, 40.0, 45.0]]), torch.tensor([0]), ["a"])
    assert drawn.shape == (3, 400, 512)
    assert drawn[:, 45 * 8 - 1, 24 * 8].tolist() == rgb(0)
    assert (drawn[:, 20 * 8 + 4 : 45 * 8 - 4, 8 * 8 + 4 : 40 * 8 - 4] == 128).all()


def test_first_box_is_drawn_on_top():
    boxes = torch.tensor([[100.0, 100.0, 200.0, 200.0]]).repeat(2, 1)
    drawn = draw_boxes(GREY, boxes, torch.tensor([1, 0]), ["a", "b"])
    assert drawn[:, 199, 150].tolist() == rgb(1)


def test_many_boxes_beyond_the_border_can_be_drawn():
    boxes = torch.rand(60, 4) * 400
    boxes[:, 2:] += boxes[:, :2] + 1  # many reach beyond the image
    assert draw_boxes(GREY, boxes, torch.arange(60) % 90, [f"name {at}" for at in range(90)]).shape == GREY.shape


def test_class_and_text_colors():
    colors = [class_color(label) for label in range(90)]
    assert len(set(colors[:20])) == 20
    assert all(len(color) == 7 and color[0] == "#" for color in colors)
    assert text_color("#ffffff") == "#000000"
    assert text_color("#000000") == "#ffffff"


@pytest.mark.parametrize("label", range(7))
def test_color_of_a_class_does_not_depend_on_the_picture(label: int):
    boxes = torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    first = draw_boxes(GREY, boxes, torch.tensor([label]), ["x"] * 7)
    second = draw_boxes(GREY, boxes.repeat(30, 1), torch.full((30,), label), ["x"] * 7)
    assert torch.equal(first[:, 399, 200], second[:, 399, 200])
