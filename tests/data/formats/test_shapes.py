import numpy as np
import pytest
import torch

from zoo.data.formats.shapes import SHAPE_CLASSES, Shapes, draw
from zoo.errors import InputError


@pytest.fixture(scope="module")
def table():
    return Shapes(400, seed=0).read()


def test_images_depend_on_seed_and_index_only(table):
    assert Shapes(30, seed=0).read().target(29)["boxes"].equal(table.target(29)["boxes"])
    assert Shapes(30, seed=1).read().fingerprint() != Shapes(30, seed=0).read().fingerprint()
    assert np.array_equal(draw(0, 5), draw(0, 5))
    assert not np.array_equal(draw(0, 5), draw(1, 5))


def test_images_match_the_table_and_its_selections(table):
    source = Shapes(400, seed=0)
    part = table.select([17, 3])
    for index in range(2):
        image = source.load_image(part, index)
        assert image.dtype == torch.uint8
        assert image.shape == (3, part.heights[index], part.widths[index])
    assert torch.equal(source.load_image(part, 1), source.load_image(table, 3))


def test_sizes_classes_and_images_without_objects(table):
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]).max(1)
    assert np.percentile(sides, 99) > 9 * np.percentile(sides, 1)
    assert np.bincount(table.labels, minlength=6).min() > 0.7 * table.num_objects / len(SHAPE_CLASSES)
    empty = (np.diff(table.offsets) == 0).mean()
    assert 0.02 < empty < 0.1


def test_boxes_lie_in_the_image_on_quarter_pixels(table):
    width = np.repeat(table.widths, np.diff(table.offsets))
    height = np.repeat(table.heights, np.diff(table.offsets))
    assert (table.boxes[:, :2] >= 0).all()
    assert (table.boxes[:, 2] <= width).all()
    assert (table.boxes[:, 3] <= height).all()
    assert (table.boxes * 4 == np.round(table.boxes * 4)).all()
    assert (table.boxes[:, 2:] - table.boxes[:, :2] >= 1).all()


def test_boxes_are_tight_around_the_drawn_objects(table, monkeypatch):
    """Painting an object changes only pixels inside its box, and some at each of its sides."""
    import zoo.data.formats.shapes as shapes

    monkeypatch.setattr(shapes, "_background", lambda rng, width, height: np.zeros((height, width, 3), np.float32))
    scene = shapes._scene(np.random.default_rng([0, 0, 0]))
    target = table.target(0)
    labelled = [part for part in scene.parts if part.label >= 0]
    assert len(labelled) == len(target["boxes"]) > 0
    for part, box in zip(labelled, target["boxes"].tolist(), strict=True):
        canvas = np.zeros((scene.height, scene.width, 3), np.float32)
        shapes._paint(np.random.default_rng(1), canvas, part)
        ys, xs = np.nonzero(np.abs(canvas).sum(2))
        assert (np.floor(box[0]), np.floor(box[1])) == (xs.min(), ys.min())
        assert (np.ceil(box[2]), np.ceil(box[3])) == (xs.max() + 1, ys.max() + 1)


def test_masks_do_not_overlap():
    import zoo.data.formats.shapes as shapes

    for index in range(20):
        scene = shapes._scene(np.random.default_rng([0, index, 0]))
        count = np.zeros((scene.height * 4, scene.width * 4), int)
        for part in scene.parts:
            rows, columns = part.mask.shape
            count[part.top : part.top + rows, part.left : part.left + columns] += part.mask
        assert count.max() <= 1


def test_invalid_arguments():
    with pytest.raises(InputError, match="num_images >= 1"):
        Shapes(0).read()
