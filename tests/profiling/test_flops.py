"""Parameters, FLOPs and memory against hand-worked values."""

from types import SimpleNamespace

import pytest
import torch
from forms import FORMS, FRAME
from scenes import make_image, make_target
from tiny_detector import TinyDetector
from torch import nn
from torchvision.ops import roi_align

import zoo.detector.base
import zoo.profiling.flops
from zoo.detector import Detector
from zoo.models import MODELS
from zoo.models.faster_rcnn import FasterRCNN
from zoo.nn.roi import pyramid_roi_align
from zoo.profiling.flops import count_flops, count_parameters, measure_memory
from zoo.proposals import SelectiveSearch, propose
from zoo.types import Batch

IMAGE = torch.zeros(3, 20, 30, dtype=torch.uint8)


class WithRoIAlign(TinyDetector):
    def encode(self, batch: Batch) -> torch.Tensor:
        rois = torch.tensor([[0.0, 0.0, 0.0, 8.0, 8.0]]).repeat(5, 1)
        roi_align(batch.images, rois, output_size=(7, 7), sampling_ratio=2)
        return super().encode(batch)


class WithOurRoIAlign(TinyDetector):
    def encode(self, batch: Batch) -> torch.Tensor:
        rois = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]).repeat(1, 5, 1)
        pyramid_roi_align([batch.images], rois, (4,), side=7, samples=2)
        return super().encode(batch)


def test_frozen_parameters_are_counted() -> None:
    detector = TinyDetector(num_classes=3)
    detector.body.requires_grad_(False)
    assert count_parameters(detector) == (3 * 64 + 1) * 4 + (4 + 1) * 7


def test_flops_of_convolutions() -> None:
    operations = count_flops(TinyDetector(num_classes=3), IMAGE)
    assert operations.flops == 2 * 16 * (3 * 64 * 4 + 4 * 7)
    assert operations.input_size == "30x20 framed to 32x32"
    assert operations.proposals is None


@pytest.mark.parametrize("kind", [WithRoIAlign, WithOurRoIAlign])
def test_flops_of_roi_align(kind: type[TinyDetector]) -> None:
    more = count_flops(kind(num_classes=3), IMAGE).flops - count_flops(TinyDetector(num_classes=3), IMAGE).flops
    # 5 regions of 3 channels and 49 bins, 2 x 2 samples each, 4 multiply-adds a sample
    assert more == 5 * 3 * 49 * 4 * 8


def test_selective_search_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def counted(image: torch.Tensor, search: SelectiveSearch) -> torch.Tensor:
        searched.append(image.shape[2])
        return propose(image, search)

    monkeypatch.setattr(zoo.detector.base, "propose", counted)
    detector = TinyDetector(num_classes=3)
    plain = count_flops(detector, IMAGE)
    assert searched == []
    detector.proposals = SelectiveSearch("single", width=None)
    assert count_flops(detector, IMAGE).flops == plain.flops
    assert searched == [30]


def build(form: str, **changes: object) -> Detector:
    torch.manual_seed(0)
    name, arguments = FORMS[form]
    return MODELS[name](num_classes=3, **{"frame": FRAME, **arguments, **changes})


@pytest.mark.parametrize("form", ["fast_rcnn", "rcnn"])
def test_number_of_searched_proposals(form: str) -> None:
    image = make_image(96, 128, make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2]))
    detector = build(form)
    assert detector.proposals is not None
    assert count_flops(detector, image).proposals == len(propose(image, detector.proposals)) > 1


def test_number_and_flops_of_the_rpn_s_proposals() -> None:
    image = make_image(96, 128, make_target([[10, 12, 60, 70]], [0]))
    many, few = (count_flops(build("faster_rcnn", proposals_after_nms=(50, number)), image) for number in (12, 5))
    assert (many.proposals, few.proposals) == (12, 5)
    detector = build("faster_rcnn")
    assert isinstance(detector, FasterRCNN)
    head = detector.roi_head
    layers = [layer for layer in (*head.fcs, head.class_logits, head.box_deltas) if isinstance(layer, nn.Linear)]
    products = sum(layer.in_features * layer.out_features for layer in layers)
    # cost of a proposal: its pooled cells (8 operations a sample, 4 samples) and the head
    pooled = detector.roi_pooling.side**2 * 4 * 8 * layers[0].in_features // detector.roi_pooling.side**2
    assert many.flops - few.flops == 7 * (2 * products + pooled)


def test_one_stage_detector_has_no_proposals() -> None:
    assert count_flops(build("yolov1"), torch.zeros(3, 96, 128, dtype=torch.uint8)).proposals is None


def test_cpu_memory_is_that_of_tensors() -> None:
    held = 5_000_000

    class Holding(TinyDetector):
        def encode(self, batch: Batch) -> torch.Tensor:
            for _ in range(3):  # only one exists at a time
                torch.empty(held, dtype=torch.uint8).zero_()
            return super().encode(batch)

    plain, holding = (measure_memory(kind(num_classes=3), IMAGE) for kind in (TinyDetector, Holding))
    weights = 4 * count_parameters(TinyDetector(num_classes=3))
    frame = 4 * 3 * 32 * 32
    assert plain is not None
    assert holding is not None
    assert (weights + frame + IMAGE.nbytes) / 1e6 < plain < 0.2
    assert holding == pytest.approx(held / 1e6, abs=0.2)


def test_gpu_memory_excludes_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = TinyDetector(num_classes=3)
    monkeypatch.setattr(TinyDetector, "device", property(lambda self: torch.device("cuda")))
    fake = SimpleNamespace(
        reset_peak_memory_stats=lambda device: None,
        memory_allocated=lambda device: 40_000_000,  # includes other tensors
        max_memory_allocated=lambda device: 43_000_000,
    )
    monkeypatch.setattr(zoo.profiling.flops.torch, "cuda", fake)
    kept = 4 * count_parameters(detector) + IMAGE.nbytes
    assert measure_memory(detector, IMAGE) == pytest.approx((3_000_000 + kept) / 1e6)


def test_modes_and_hooks_are_restored() -> None:
    detector = TinyDetector(num_classes=3)
    detector.body.eval()
    modes = [module.training for module in detector.modules()]
    count_flops(detector, IMAGE)
    measure_memory(detector, IMAGE)
    assert [module.training for module in detector.modules()] == modes
    assert torch.is_grad_enabled()
    head = build("faster_rcnn").get_submodule("roi_head")
    assert not head._forward_pre_hooks
