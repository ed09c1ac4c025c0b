"""Contract tests of every detector: each entry of MODELS needs at least one configuration in FORMS."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from forms import FORMS, FRAME
from scenes import make_image, make_target
from torch import Tensor

import zoo
from zoo.detector import Detector, Recipe
from zoo.models import MODELS
from zoo.types import RawBatch, Target

NUM_CLASSES = 3
RECIPE = Recipe("adamw", lr=1e-3, warmup_steps=0, schedule="constant")


def build(form: str, class_names: Sequence[str] = ("red", "green", "blue")) -> Detector:
    torch.manual_seed(0)
    name, arguments = FORMS[form]
    arguments = {"frame": FRAME, "recipe": RECIPE} | arguments
    return MODELS[name](num_classes=len(class_names), class_names=class_names, **arguments)


def test_every_detector_has_a_form() -> None:
    assert {name for name, _ in FORMS.values()} == set(MODELS)


@pytest.fixture(params=list(FORMS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def detector(name: str) -> Detector:
    return build(name)


def test_the_outputs_of_the_classes_are_declared(detector: Detector, name: str) -> None:
    sizes = {key: value.shape for key, value in detector.state_dict().items()}
    more = build(name, ["red", "green", "blue", "black", "white"]).state_dict()
    declared = detector.class_rows()
    rows = {key: declared.get(key, declared.get(key.rpartition(".")[0])) for key in sizes}
    found = {key: labels for key, labels in rows.items() if labels is not None}
    assert set(found) == {key for key, size in sizes.items() if size != more[key].shape}
    for key, labels in found.items():
        assert len(labels) == sizes[key][0]
        assert set(labels) <= {-1, 0, 1, 2}
        assert len({labels.count(label) for label in range(NUM_CLASSES)}) == 1


def make_batch() -> RawBatch:
    """Images of different sizes: with two objects, without objects, with a crowd region and an object."""
    targets = [
        make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2], 7),
        make_target([], [], 8),
        make_target([[5, 5, 40, 45], [50, 60, 90, 110]], [1, 1], 9),
    ]
    targets[2]["iscrowd"][0] = True
    sizes = [(96, 128), (100, 100), (130, 97)]
    return [make_image(*size, target) for size, target in zip(sizes, targets, strict=True)], targets


def assert_valid(prediction: dict[str, Tensor], image: Tensor) -> None:
    boxes, scores, labels = prediction["boxes"], prediction["scores"], prediction["labels"]
    height, width = image.shape[-2:]
    assert boxes.shape == (len(scores), 4)
    assert labels.shape == scores.shape
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert (boxes[:, 0] >= 0).all()
    assert (boxes[:, 1] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (scores.diff() <= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((labels >= 0) & (labels < NUM_CLASSES)).all()
    if "masks" in prediction:
        masks = prediction["masks"]
        assert masks.dtype == torch.float32
        assert masks.shape == (len(scores), *masks.shape[1:])
        assert ((masks >= 0) & (masks <= 1)).all()


def lower_threshold(detector: Detector) -> None:
    """Lower the score threshold so that an untrained detector has detections."""
    assert hasattr(detector, "score_threshold")
    detector.score_threshold = 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_finite_scalars_with_equal_names_in_both_modes(detector: Detector, training: bool) -> None:
    losses = detector.train(training).compute_raw_losses(make_batch())
    other = detector.train(not training).compute_raw_losses(make_batch())
    assert losses.keys() == other.keys()
    for loss in losses.values():
        assert loss.shape == ()
        assert math.isfinite(float(loss))


def test_gradients_reach_every_trainable_parameter(detector: Detector) -> None:
    sum(detector.train().compute_raw_losses(make_batch()).values()).backward()
    without = [key for key, value in detector.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert all(torch.isfinite(value.grad).all() for value in detector.parameters() if value.grad is not None)


def test_a_batch_without_objects_has_finite_losses_and_gradients(detector: Detector) -> None:
    images, _ = make_batch()
    losses = detector.train().compute_raw_losses((images, [make_target([], []) for _ in images]))
    total = sum(losses.values())
    total.backward()
    assert math.isfinite(float(total))
    assert all(torch.isfinite(value.grad).all() for value in detector.parameters() if value.grad is not None)


def test_crowds_and_difficult_objects_do_not_affect_losses(detector: Detector) -> None:
    images = make_batch()[0][2:]
    plain = make_target([[50, 60, 90, 110]], [1])

    def losses(target: Target) -> dict[str, float]:
        torch.manual_seed(0)
        make_image(*images[0].shape[1:], target)  # gives the target its masks
        with torch.no_grad():
            return {key: float(value) for key, value in detector.eval().compute_raw_losses((images, [target])).items()}

    two = make_target([[50, 60, 90, 110], [5, 5, 40, 45]], [1, 1])
    assert any(abs(value - losses(plain)[key]) > 1e-2 for key, value in losses(two).items()), "an object changes them"
    for flag in ("iscrowd", "difficult"):
        flagged = {**two, flag: torch.tensor([False, True])}
        for key, value in losses(flagged).items():
            # Padding by another slot changes some random numbers.
            assert value == pytest.approx(losses(plain)[key], rel=2e-3, abs=2e-3), key


def test_predictions_keep_the_contract(detector: Detector) -> None:
    lower_threshold(detector)
    images, _ = make_batch()
    with torch.no_grad():
        predictions = detector.eval()(images)
    assert len(predictions) == len(images)
    assert sum(len(prediction["scores"]) for prediction in predictions) > 0
    for prediction, image in zip(predictions, images, strict=True):
        assert_valid(prediction, image)


def test_a_batch_equals_its_singles(detector: Detector) -> None:
    """With images of equal size, since padding affects features near the border of an image."""
    lower_threshold(detector)
    detector = detector.double().eval()
    targets = [make_target([[10 + 5 * i, 12, 60, 70]], [i], i) for i in range(3)]
    images = [make_image(96, 128, target, seed) for seed, target in enumerate(targets)]
    with torch.no_grad():
        batched = detector(images)
        single = [detector([image])[0] for image in images]
    for one, other in zip(batched, single, strict=True):
        assert len(one["scores"]) == len(other["scores"]) > 0
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=0)


def test_targets_do_not_change_predictions(detector: Detector) -> None:
    lower_threshold(detector)
    images, targets = make_batch()
    with torch.no_grad():
        without = detector.eval()(images)
        with_targets = detector.validation_step((images, targets), 0)["predictions"]
    for one, other in zip(without, with_targets, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["labels"], other["labels"])


def test_predictions_have_the_same_keys_in_training_mode(detector: Detector) -> None:
    images, _ = make_batch()
    with torch.no_grad():
        found = detector.train()(images)
    keys = {"boxes", "scores", "labels"} | ({"masks"} if detector.mask_side else set())
    assert all(set(prediction) == keys for prediction in found)


def test_a_checkpoint_round_trips(name: str, detector: Detector, tmp_path: Path) -> None:
    lower_threshold(detector)
    checkpoint = {"state_dict": detector.state_dict()}
    detector.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    loaded = zoo.load(tmp_path / "last.ckpt")
    lower_threshold(loaded)
    assert type(loaded) is type(detector)
    assert loaded.class_names == ("red", "green", "blue")
    assert loaded.recipe == RECIPE
    assert loaded.frame.config == detector.frame.config
    images, _ = make_batch()
    detector.configure_model()
    with torch.no_grad():
        for one, other in zip(detector.eval()(images), loaded(images), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])
            assert torch.equal(one["scores"], other["scores"])


def test_the_same_seed_gives_the_same_step(name: str) -> None:
    def step() -> tuple[float, Tensor]:
        detector = build(name).train()
        torch.manual_seed(1)
        total = sum(detector.compute_raw_losses(make_batch()).values())
        total.backward()
        return float(total), next(iter(detector.parameters())).grad

    (loss, gradient), (again, gradient_again) = step(), step()
    assert loss == again
    torch.testing.assert_close(gradient, gradient_again, rtol=1e-5, atol=1e-7)


def test_class_names_and_their_number_must_agree(name: str) -> None:
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        MODELS[FORMS[name][0]](num_classes=3, class_names=["a", "b"])


# After 150 steps the box of an object is 2 to 9 pixels off, by seed; after 300 it is 1 pixel off.
STEPS = {"faster_rcnn of the paper": 300}


@pytest.mark.slow
def test_one_image_can_be_overfitted(name: str, detector: Detector) -> None:
    """After 150 steps (or STEPS) the objects of one image are detected, with higher scores than anything else."""
    torch.manual_seed(0)
    steps = STEPS.get(name, 150)
    target = make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2])
    images = [make_image(96, 128, target)]
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    detector.train()
    for step in range(steps):
        for group in optimizer.param_groups:  # boxes do not converge at the full rate
            group["lr"] = 1e-3 * min(1.0, 0.05 + 0.95 * (steps - step) / (steps / 3))
        optimizer.zero_grad()
        total = sum(detector.compute_raw_losses((images * 2, [target] * 2)).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        found = detector.eval()(images)[0]
    assert sorted(found["labels"][:2].tolist()) == [0, 2]
    expected = target["boxes"][0 if found["labels"][0] == 0 else 1]
    torch.testing.assert_close(found["boxes"][0], expected, atol=4, rtol=0)
    assert (found["scores"][:2] > 0.5).all()
    assert (found["scores"][2:] < found["scores"][1]).all()
