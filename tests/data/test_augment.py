import numpy as np
import pytest
import torch

from zoo.data.augment import Augment
from zoo.data.sampling import seeded_rng

NO_AUGMENTATION = {"flip": False}


def sample(seed=0, count=4, width=60, height=40):
    """Grey image with one bright rectangle per box, so that boxes can be checked against the pixels."""
    rng = np.random.default_rng(seed)
    image = torch.full((3, height, width), 40, dtype=torch.uint8)
    boxes = []
    for index in range(count):
        # one block in each quarter of the width
        x1, y1 = index * width // count + int(rng.integers(1, 4)), int(rng.integers(1, 12))
        x2, y2 = x1 + int(rng.integers(4, 9)), y1 + int(rng.integers(5, 20))
        image[:, y1:y2, x1:x2] = 100 + 40 * index
        boxes.append([x1, y1, x2, y2])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": boxes,
        "labels": torch.arange(count),
        "image_id": torch.tensor(7),
        "iscrowd": torch.arange(count) % 2 == 0,
        "difficult": torch.arange(count) % 3 == 0,
        "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 2,
        "proposals": torch.cat([boxes, torch.tensor([[0.0, 0, width, height]])]),
    }
    return image, target


def with_masks(image, target):
    """The sample with a mask of each object: the pixels of its colour."""
    masks = [(image[0] == 100 + 40 * int(label)).to(torch.uint8) for label in target["labels"]]
    return image, target | {"masks": torch.stack(masks) if masks else torch.zeros(0, *image.shape[1:]).byte()}


def colour_in(image, box):
    x1, y1, x2, y2 = box.tolist()
    return image[0, int((y1 + y2) / 2), int((x1 + x2) / 2)].item()


def test_without_augmentation_nothing_changes():
    image, target = sample()
    new_image, new_target = Augment(**NO_AUGMENTATION)(image, target)
    assert torch.equal(new_image, image)
    assert type(new_image) is torch.Tensor
    assert all(torch.equal(new_target[key], target[key]) for key in target)


@pytest.mark.parametrize("switch", ["flip", "vertical_flip"])
def test_flips_have_probability_half_and_move_the_boxes(switch):
    image, target = sample()
    flipped = 0
    for seed in range(40):
        with seeded_rng(seed):
            new_image, new_target = Augment(**(NO_AUGMENTATION | {switch: True}))(image, target)
        if torch.equal(new_image, image):
            assert torch.equal(new_target["boxes"], target["boxes"])
            continue
        flipped += 1
        for index, box in enumerate(new_target["boxes"]):
            x1, y1, x2, y2 = map(int, box)
            assert (new_image[:, y1:y2, x1:x2] == 100 + 40 * index).all()
        assert torch.equal(new_target["proposals"][:4], new_target["boxes"])
        assert torch.equal(new_target["area"], target["area"])
    assert 10 < flipped < 30


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(scale_jitter=(0.4, 2.5)),
        Augment(iou_crop=True),
        Augment(translate=0.5),
        Augment(zoom_out=3.0),
        Augment(True, True, (0.5, 2.0), 0.2, True, 2.0, True),
    ],
)
def test_labels_flags_and_areas_follow_their_boxes(augment):
    for seed in range(60):
        image, target = sample(seed, count=seed % 5)
        before = {key: value.clone() for key, value in target.items()}, image.clone()
        with seeded_rng(seed):
            new_image, new = augment(image, target)
        height, width = new_image.shape[1:]
        assert new_image.dtype == torch.uint8
        if not augment.iou_crop and augment.zoom_out == 1:
            assert (height, width) == (40, 60)
        labels = new["labels"]
        assert len(new["boxes"]) == len(labels) == len(new["area"]) == len(new["iscrowd"]) == len(new["difficult"])
        assert torch.equal(new["iscrowd"], labels % 2 == 0)
        assert torch.equal(new["difficult"], labels % 3 == 0)
        for boxes in (new["boxes"], new["proposals"]):
            assert type(boxes) is torch.Tensor
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2] <= width).all()
            assert (boxes[:, 3] <= height).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        if not augment.photometric:
            for label, box in zip(labels, new["boxes"], strict=True):
                assert abs(colour_in(new_image, box) - (100 + 40 * label)) <= 40
        area = (new["boxes"][:, 2] - new["boxes"][:, 0]) * (new["boxes"][:, 3] - new["boxes"][:, 1])
        torch.testing.assert_close(new["area"], area / 2)  # half of the box, as before
        # the arguments are unchanged
        assert torch.equal(before[1], image)
        assert all(torch.equal(before[0][key], target[key]) for key in target)


def test_scale_jitter_covers_its_range_and_drops_objects_outside():
    image, target = sample()
    factors, counts = [], []
    for seed in range(80):
        with seeded_rng(seed):
            _, new = Augment(flip=False, scale_jitter=(0.5, 2.0))(image, target)
        counts.append(len(new["boxes"]))
        if counts[-1] == 4:
            factors.append((new["area"].sum() / target["area"].sum()).sqrt().item())
    assert min(factors) < 0.6
    assert min(counts) < 4  # large content is cropped
    with pytest.raises(ValueError, match="scale_jitter"):
        Augment(scale_jitter=(2.0, 1.0))


def test_translate_covers_its_range_and_does_not_scale():
    image, target = sample()
    shifts, border_sizes = [], []
    for seed in range(80):
        with seeded_rng(seed):
            new_image, new = Augment(flip=False, translate=0.2)(image, target)
        shift = new["boxes"] - target["boxes"][new["labels"]]
        inside = (new["boxes"] > 0).all(1) & (new["boxes"][:, 2] < 60) & (new["boxes"][:, 3] < 40)
        for dx, dy, dx2, dy2 in shift[inside].tolist():
            assert (dx, dy) == (dx2, dy2)
            shifts.append((dx / 60, dy / 40))
        border = new_image[:, new_image[0] == 124]
        assert (border[1:] == torch.tensor([[116], [104]])).all()
        border_sizes.append(border.shape[1])
    dx, dy = np.array(shifts).T
    assert -0.21 < dx.min() < -0.15 < 0.15 < dx.max() < 0.21
    assert -0.21 < dy.min() < -0.15 < 0.15 < dy.max() < 0.21
    assert sum(count > 0 for count in border_sizes) > 70
    with pytest.raises(ValueError, match="translate"):
        Augment(translate=1.0)


def test_zoom_out_covers_its_range_and_does_not_scale():
    image, target = sample()
    factors, places = [], []
    for seed in range(120):
        with seeded_rng(seed):
            new_image, new = Augment(flip=False, zoom_out=4.0)(image, target)
        height, width = new_image.shape[1:]
        shift = new["boxes"] - target["boxes"]
        assert torch.equal(shift[:, :2], shift[:, 2:])  # moved, all alike, and none is lost
        left, top = (int(value) for value in shift[0, :2])
        assert torch.equal(new_image[:, top : top + 40, left : left + 60], image)
        assert torch.equal(new["area"], target["area"])
        factors.append(width / 60)
        assert height / 40 == pytest.approx(factors[-1], abs=0.05)
        if factors[-1] > 1.1:
            places.append((left / (width - 60), top / (height - 40)))
            assert (new_image.sum(dim=(1, 2)) > 0).all()
            border = new_image[:, 0, 0] if left and top else new_image[:, -1, -1]
            assert border.tolist() == [124, 116, 104]
    assert 40 < sum(factor == 1 for factor in factors) < 80
    assert max(factors) > 3.7
    assert np.ptp(np.array(places), axis=0).min() > 0.8
    with pytest.raises(ValueError, match="zoom_out"):
        Augment(zoom_out=0.5)


def test_iou_crop_does_not_depend_on_the_proposals():
    image, target = sample()
    without = {key: value for key, value in target.items() if key != "proposals"}
    for seed in range(20):
        with seeded_rng(seed):
            one = Augment(flip=False, iou_crop=True)(image, target)
        with seeded_rng(seed):
            other = Augment(flip=False, iou_crop=True)(image, without)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1]["boxes"], other[1]["boxes"])


def test_photometric_changes_colours_only():
    image, target = sample()
    with seeded_rng(3):
        new_image, new = Augment(flip=False, photometric=True)(image, target)
    assert not torch.equal(new_image, image)
    assert torch.equal(new["boxes"], target["boxes"])


@pytest.mark.parametrize(
    "augment",
    [
        Augment(True, True),
        Augment(scale_jitter=(0.4, 2.5)),
        Augment(iou_crop=True),
        Augment(translate=0.5),
        Augment(zoom_out=3.0),
        Augment(True, True, (0.5, 2.0), 0.2, False, 2.0, True),
    ],
)
def test_masks_follow_the_pixels_of_their_objects(augment):
    kept = 0
    for seed in range(60):
        image, target = with_masks(*sample(seed, count=seed % 5))
        with seeded_rng(seed):
            new_image, new_target = augment(image, target)
        with seeded_rng(seed):
            plain_image, plain_target = augment(*sample(seed, count=seed % 5))
        assert torch.equal(new_image, plain_image), "masks change nothing else"
        assert torch.equal(new_target["boxes"], plain_target["boxes"])
        masks = new_target["masks"]
        assert type(masks) is torch.Tensor
        assert masks.dtype == torch.uint8
        assert masks.shape == (len(new_target["labels"]), *new_image.shape[1:])
        for box, mask in zip(new_target["boxes"], masks, strict=True):
            # Objects have 100 and more, the background 40; antialiasing mixes the two at the edges.
            assert (new_image[0] > 60)[mask.bool()].sum() >= 0.5 * mask.sum()
            ys, xs = mask.nonzero(as_tuple=True)
            if len(ys):
                found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
                assert (found - box).abs().max() <= 1.5
                kept += 1
    assert kept > 60
