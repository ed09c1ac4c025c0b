"""Gradients of a step of several processes equal those of one process with the joined batch."""

from pathlib import Path

import pytest
import torch
from forms import FORMS, FRAME, NARROW
from processes import run_group
from scenes import make_image, make_target
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import zoo.models.faster_rcnn
from zoo.detector import Detector
from zoo.models import MODELS
from zoo.ops.sampling import sample
from zoo.types import RawBatch

# More than there are, so that nothing is sampled at random: samples differ between a batch and its parts.
EVERYTHING = 100_000
SAMPLED: dict[str, dict[str, object]] = {
    "faster_rcnn": {"rois_per_image": EVERYTHING},
    "mask_rcnn": {"rois_per_image": EVERYTHING},
    "fast_rcnn": {"rois_per_image": EVERYTHING},
    "rcnn": {"windows_per_batch": EVERYTHING},
    "sliding_window": {"windows_per_image": EVERYTHING},
}
TESTED = [form for form in FORMS if "of darknet" not in form and "in crops" not in form]


def build(form: str) -> Detector:
    """Detector in evaluation mode, since dropout and batch norm differ between a batch and its parts."""
    torch.manual_seed(0)
    key, arguments = FORMS[form]
    arguments = {"frame": FRAME, "channels_last": False} | arguments | NARROW.get(form, {}) | SAMPLED.get(key, {})
    return MODELS[key](num_classes=3, **arguments).double().eval()


def make_batch(indices: list[int]) -> RawBatch:
    """Batch of these of three images, which have two objects, none and one."""
    objects: list[tuple[list[list[float]], list[int]]] = [
        ([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2]),
        ([], []),
        ([[5, 5, 40, 45]], [1]),
    ]
    targets = [make_target(*objects[index], index) for index in indices]
    return [make_image(96, 128, target, index) for index, target in zip(indices, targets, strict=True)], targets


class TotalLoss(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: RawBatch) -> Tensor:
        return torch.stack(list(self.detector.compute_raw_losses(batch).values())).sum()


def gradients(module: nn.Module, batch: RawBatch) -> dict[str, Tensor]:
    """Gradients by parameter name, without random sampling in the RPN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            zoo.models.faster_rcnn,
            "sample",
            lambda positive, negative, num, positive_fraction: sample(positive, negative, EVERYTHING, 0.5),
        )
        module(batch).backward()
    return {
        key.removeprefix("module."): value.grad for key, value in module.named_parameters() if value.grad is not None
    }


def step_in_a_group(rank: int, form: str) -> dict[str, Tensor]:
    torch.distributed.init_process_group("gloo")
    module = DistributedDataParallel(TotalLoss(build(form)))
    gradients(module, make_batch([rank]))
    module.zero_grad()
    return gradients(module, make_batch([rank]))  # DDP reports unused parameters at the second step


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", TESTED)
def test_gradients_equal_those_of_the_joined_batch(form: str, world_size: int, tmp_path: Path) -> None:
    """The second process has an image without objects, so its number of positives is zero."""
    expected = gradients(TotalLoss(build(form)), make_batch(list(range(world_size))))
    largest = max(float(value.abs().max()) for value in expected.values())
    for found in run_group(step_in_a_group, world_size, tmp_path, form):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7 * largest, msg=key)


def make_similar_images(indices: list[int]) -> RawBatch:
    """Images with the same boxes but other pixels and labels, so that equal numbers of regions are sampled."""
    boxes = [[10, 12, 60, 70], [70, 20, 120, 88]]
    proposals = torch.tensor([[5.0 * i, 4.0 * i, 5 * i + 30 + i, 4 * i + 40] for i in range(12)])
    targets = [make_target(boxes, [index, 2 - index], index) | {"proposals": proposals} for index in indices]
    return [make_image(96, 128, target, index) for index, target in zip(indices, targets, strict=True)], targets


@pytest.mark.parametrize("form", TESTED)
def test_accumulated_gradients_equal_those_of_the_larger_batch(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal numbers of regions sampled in each image, by which some losses are normalised."""
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.linspace(1, 0, shape[-1]).expand(shape))
    monkeypatch.setitem(SAMPLED, "faster_rcnn", {"rois_per_image": 16})
    monkeypatch.setitem(SAMPLED, "mask_rcnn", {"rois_per_image": 8})  # two positives, as many as objects
    monkeypatch.setitem(SAMPLED, "sliding_window", {"windows_per_image": 16})
    expected = plain_gradients(build(form), [make_similar_images([0, 1])])
    found = plain_gradients(build(form), [make_similar_images([0]), make_similar_images([1])])
    largest = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7 * largest, msg=key)


def plain_gradients(detector: Detector, batches: list[RawBatch]) -> dict[str, Tensor]:
    """Gradients accumulated as by a Trainer, which divides each loss by the number of batches."""
    for batch in batches:
        (TotalLoss(detector)(batch) / len(batches)).backward()
    return {key: value.grad for key, value in detector.named_parameters() if value.grad is not None}
