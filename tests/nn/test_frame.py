"""Framing against hand-worked sizes and torchvision's transform; boxes mapped to the frame and back."""

import pytest
import torch
from scenes import make_image, make_target
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from zoo.nn.frame import IMAGENET_MEAN, IMAGENET_STD, Frame, FrameConfig, _trace_frame, _trace_framed_size
from zoo.types import Prediction


@pytest.mark.parametrize(
    ("given", "framed"),
    [
        ((480, 640), (240, 320)),  # the shorter side becomes 240
        ((640, 480), (320, 240)),
        ((100, 600), (66, 400)),  # 240 would make the longer side 1440: 400 is the most
        ((240, 240), (240, 240)),
    ],
)
def test_framed_sizes(given: tuple[int, int], framed: tuple[int, int]) -> None:
    assert FrameConfig(min_size=240, max_size=400).framed_size(*given) == framed
    assert FrameConfig(min_size=64, max_size=64, stretch=True).framed_size(*given) == (64, 64)


def test_images_are_resized_for_training_only() -> None:
    target = make_target([[10, 20, 50, 60]], [0])
    images, targets = [make_image(100, 140, target)], [target]
    frame = Frame(FrameConfig(min_size=50, max_size=100, native_at_test=True))
    trained, tested = frame(images, targets, for_training=True), frame(images, targets)
    assert trained.sizes.tolist() == [[70, 50]]
    assert trained.boxes.tolist() == [[[5, 10, 25, 30]]]
    assert tested.sizes.tolist() == [[140, 100]]
    assert tested.boxes.tolist() == [[[10, 20, 50, 60]]]
    assert tested.images.shape == (1, 3, 128, 160)


def test_same_pixels_as_torchvision() -> None:
    images = [make_image(120, 181, make_target([[10, 10, 50, 60]], [0])), make_image(77, 50, make_target([], []))]
    config = FrameConfig(min_size=96, max_size=150)
    theirs = GeneralizedRCNNTransform(96, 150, list(IMAGENET_MEAN), list(IMAGENET_STD))
    expected, _ = theirs([image.double() / 255 for image in images])
    batch = Frame(config, channels_last=True).double()(images)
    torch.testing.assert_close(batch.images, expected.tensors, atol=1e-12, rtol=0)
    assert [(int(h), int(w)) for w, h in batch.sizes] == expected.image_sizes
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_targets_are_scaled_padded_and_masked() -> None:
    targets = [make_target([[10, 20, 50, 60], [0, 0, 100, 100]], [2, 1], 5), make_target([], [], 6)]
    targets[0]["difficult"][1] = True
    images = [make_image(100, 100, targets[0]), make_image(100, 200, targets[1])]
    batch = Frame(FrameConfig(min_size=50, max_size=400))(images, targets)
    assert batch.boxes.tolist() == [[[5, 10, 25, 30], [0, 0, 50, 50]], [[0] * 4] * 2]
    assert batch.mask.tolist() == [[True, False], [False, False]]
    assert batch.labels[0].tolist() == [2, 1]
    assert batch.image_ids.tolist() == [5, 6]
    assert batch.images.shape == (2, 3, 64, 128)  # 50 and 100, padded to multiples of 32
    assert batch.sizes.tolist() == [[50, 50], [100, 50]]
    assert batch.images[0, :, 50:].abs().sum() == 0, "padding is 0 after normalising"


def test_masks_are_resized_as_torchvision_does_and_placed_as_their_image() -> None:
    targets = [make_target([[10, 20, 50, 60], [0, 0, 90, 90]], [2, 1]), make_target([[5, 5, 30, 40]], [0])]
    images = [make_image(100, 140, targets[0]), make_image(77, 50, targets[1])]
    generator = torch.Generator().manual_seed(0)
    for image, target in zip(images, targets, strict=True):
        shape = (len(target["labels"]), *image.shape[1:])
        target["masks"] = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
    theirs = GeneralizedRCNNTransform(96, 150, list(IMAGENET_MEAN), list(IMAGENET_STD))
    _, expected = theirs([image / 255 for image in images], [dict(target) for target in targets])
    batch = Frame(FrameConfig(min_size=96, max_size=150))(images, targets)
    assert batch.masks is not None
    assert batch.masks.shape == (2, 2, *batch.images.shape[-2:])
    for masks, target in zip(batch.masks, expected, strict=True):
        count, height, width = target["masks"].shape
        assert torch.equal(masks[:count, :height, :width], target["masks"])
        assert masks.sum() == target["masks"].sum(), "padding is 0"
    boxed = Frame(FrameConfig(min_size=64, max_size=64, letterbox=True))(images[:1], targets[:1])
    assert boxed.masks is not None
    assert boxed.masks[0, :, :9].sum() == boxed.masks[0, :, 55:].sum() == 0, "64 x 45, with 9 rows of grey above"
    assert boxed.masks[0, :, 9:54].sum() > 0
    assert Frame(FrameConfig(96, 150))(images, [make_target([], [])] * 2).masks is None


def test_proposals_are_scaled_padded_and_masked() -> None:
    proposals = [torch.tensor([[10.0, 20, 50, 60]]), torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]])]
    images = [make_image(100, 100, make_target([], [])) for _ in proposals]
    frame = Frame(FrameConfig(min_size=200, max_size=400))
    assert frame(images).proposals is None
    batch = frame(images, None, proposals)
    assert batch.proposals is not None
    assert batch.proposal_mask is not None
    assert batch.proposals.shape == (2, 2, 4)
    assert batch.proposals[0, 0].tolist() == [20, 40, 100, 120]
    assert batch.proposal_mask.tolist() == [[True, False], [True, True]]
    none = frame(images, None, [torch.zeros(0, 4)] * 2)
    assert none.proposals is not None
    assert none.proposals.shape == (2, 1, 4), "P is at least 1"


def test_unframe_maps_predictions_to_image_pixels() -> None:
    images = [make_image(100, 150, make_target([], []))]
    frame = Frame(FrameConfig(min_size=50, max_size=400))
    inside, beyond, vanished = [5.0, 10, 25, 30], [60.0, 40, 90, 60], [80.0, 10, 90, 20]
    prediction = Prediction(
        boxes=torch.tensor([inside, beyond, vanished]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([0, 1, 2]),
    )
    (found,) = frame.unframe([prediction], frame(images))
    assert found["boxes"].tolist() == [[10, 20, 50, 60], [120, 80, 150, 100]]
    assert found["labels"].tolist() == [0, 1]


def test_letterbox_puts_images_in_the_middle_of_a_grey_square() -> None:
    config = FrameConfig(min_size=64, max_size=64, letterbox=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    # 100 * 64 // 151 = 42, so 11 rows of grey above and below; 151 x 100 the other way round.
    assert [config.framed_size(100, 151), config.framed_size(151, 100)] == [(42, 64), (64, 42)]
    assert [config.place(42, 64), config.place(64, 41)] == [(11, 0), (0, 11)]
    target = make_target([[30.2, 50, 75.5, 100]], [0])
    image = torch.full((3, 100, 151), 255, dtype=torch.uint8)
    batch = Frame(config)([image], [target], [target["boxes"]])
    expected = torch.full((64, 64), 0.5)
    expected[11:53] = 1
    torch.testing.assert_close(batch.images, expected.expand(1, 3, 64, 64))
    assert batch.sizes.tolist() == [[64, 64]]
    assert batch.proposals is not None
    for boxes in (batch.boxes, batch.proposals):
        torch.testing.assert_close(boxes[0, 0], torch.tensor([12.8, 11 + 21, 32, 53]))
    found = Prediction(boxes=batch.boxes[0], scores=torch.ones(1), labels=torch.zeros(1).long())
    (unframed,) = Frame.unframe([found], batch)
    torch.testing.assert_close(unframed["boxes"], target["boxes"])
    grey = Prediction(boxes=torch.tensor([[5.0, 0, 20, 10]]), scores=torch.ones(1), labels=torch.zeros(1).long())
    assert len(Frame.unframe([grey], batch)[0]["boxes"]) == 0, "a box in the border is outside of the image"
    padded = Frame(FrameConfig(min_size=50, max_size=50, letterbox=True))([image, image[:, :, :60]])
    assert padded.images.shape == (2, 3, 64, 64)
    assert padded.images[:, :, 50:].abs().sum() == padded.images[..., 50:].abs().sum() == 0


@pytest.mark.parametrize("wrong", [{"min_size": 0}, {"min_size": 10, "max_size": 5}, {"std": (1.0, 0.0, 1.0)}])
def test_invalid_configurations_raise(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"min_size|std"):
        FrameConfig(**wrong)


def test_framing_under_export_equals_eager_framing() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 4000, (2000, 2), generator=generator).tolist()
    letterbox = FrameConfig(min_size=96, max_size=96, letterbox=True)
    for config in (FrameConfig(min_size=96, max_size=150), FrameConfig(native_at_test=True), letterbox):
        for height, width in sizes:
            assert _trace_framed_size(config, height, width) == config.framed_size(height, width)
    for config in (FrameConfig(96, 150), FrameConfig(96, 150, stretch=True), FrameConfig(90, 90, letterbox=True)):
        images = [make_image(120, 181, make_target([[10, 10, 50, 60]], [0]), seed) for seed in range(2)]
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        framed = _trace_frame(config, torch.stack(images).float(), config.framed_size(120, 181), mean, std)
        torch.testing.assert_close(framed, Frame(config)(images).images)
