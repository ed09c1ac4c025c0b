import pytest
import torch
from tiny_detector import TinyDetector
from torch import nn
from torchvision.ops import roi_align

import zoo.detector
from zoo.cost import count_flops, count_parameters, measure_latency
from zoo.proposals import SelectiveSearch, propose
from zoo.types import Batch


class WithRoIAlign(TinyDetector):
    def encode(self, batch: Batch) -> torch.Tensor:
        rois = torch.tensor([[0.0, 0.0, 0.0, 8.0, 8.0]]).repeat(5, 1)
        roi_align(batch.images, rois, output_size=(7, 7), sampling_ratio=2)
        return super().encode(batch)


def test_parameters_count_frozen_ones_too() -> None:
    detector = TinyDetector(num_classes=3)
    detector.body.requires_grad_(False)
    assert count_parameters(detector) == (3 * 64 + 1) * 4 + (4 + 1) * 7


def test_flops_are_those_of_the_products() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    flops, given = count_flops(TinyDetector(num_classes=3), image)
    assert flops == 2 * 16 * (3 * 64 * 4 + 4 * 7)
    assert given == "30x20 framed to 32x32"


def test_flops_see_roi_align() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    more = count_flops(WithRoIAlign(num_classes=3), image)[0] - count_flops(TinyDetector(num_classes=3), image)[0]
    # 5 regions of 3 channels and 49 bins, 2 x 2 samples each, 4 products with their additions a sample
    assert more == 5 * 3 * 49 * 4 * 8


def test_measuring_leaves_the_detector_as_it_was() -> None:
    detector = TinyDetector(num_classes=3)
    detector.body.eval()
    modes = [module.training for module in detector.modules()]
    images = [torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(3, 30, 20, dtype=torch.uint8)]
    assert measure_latency(detector, images, seconds=0.02) > 0
    count_flops(detector, images[0])
    assert [module.training for module in detector.modules()] == modes
    assert torch.is_grad_enabled()
    assert isinstance(detector.body, nn.Conv2d)


def test_latency_takes_the_images_in_turn() -> None:
    seen: list[int] = []

    class Watched(TinyDetector):
        def encode(self, batch: Batch) -> torch.Tensor:
            seen.append(int(batch.given_sizes[0, 0]))
            return super().encode(batch)

    images = [torch.zeros(3, 20, width, dtype=torch.uint8) for width in (30, 31, 32)]
    measure_latency(Watched(num_classes=3), images, seconds=1.0)
    assert seen[:3] == [30, 31, 32]  # the warm-up takes each size once
    assert seen[5:8] == [30, 31, 32]


def test_proposals_count_in_time_but_not_in_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def counted(image: torch.Tensor, search: SelectiveSearch) -> torch.Tensor:
        searched.append(image.shape[2])
        return propose(image, search)

    monkeypatch.setattr(zoo.detector, "propose", counted)
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    detector = TinyDetector(num_classes=3)
    plain, _ = count_flops(detector, image)
    assert searched == []
    detector.proposals = SelectiveSearch("single", width=None)
    assert count_flops(detector, image)[0] == plain
    searched.clear()
    seen: list[int] = []
    detector.body.register_forward_hook(lambda module, inputs, outputs: seen.append(30))
    measure_latency(detector, [image], seconds=0.05)
    assert searched == seen  # each time anew
    assert len(seen) > 3
