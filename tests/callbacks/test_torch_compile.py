"""torch.compile does not change losses, gradients, boxes or parameter names."""

import pytest
import torch
from forms import FORMS, FRAME
from pytorch_lightning import Trainer
from scenes import make_image, make_target

from zoo.callbacks import TorchCompile
from zoo.callbacks.torch_compile import modules_to_compile
from zoo.detector import Detector
from zoo.models import MODELS


def build(form: str) -> Detector:
    torch.manual_seed(0)
    key, arguments = FORMS[form]
    return MODELS[key](num_classes=3, **({"frame": FRAME, "channels_last": False} | arguments)).eval()


@pytest.mark.parametrize("form", MODELS)
def test_compiled_parts_hold_all_weights_and_are_all_called(form: str) -> None:
    detector = build(form)
    called: set[torch.nn.Module] = set()
    parts = list(modules_to_compile(detector))
    for part in parts:
        part.register_forward_hook(lambda module, *_: called.add(module))
    inside = {parameter for part in parts for parameter in part.parameters()}
    assert inside == set(detector.parameters())
    targets = [make_target([[10, 12, 60, 70]], [1])]
    detector.compute_raw_losses(([make_image(96, 128, targets[0])], targets))
    assert called == set(parts)


@pytest.mark.parametrize(
    ("form", "backend"),
    [("yolov1", "aot_eager")] + [pytest.param(form, "inductor", marks=pytest.mark.slow) for form in MODELS],
)
def test_losses_gradients_and_boxes_do_not_change(form: str, backend: str) -> None:
    detectors = build(form).double(), build(form).double()
    TorchCompile(backend).setup(Trainer(accelerator="cpu", logger=False, barebones=True), detectors[1], "fit")
    targets = [make_target([[10, 12, 60, 70]], [1]), make_target([[20, 30, 90, 80], [5, 5, 50, 40]], [0, 2])]
    images = [make_image(96, 128, target, seed) for seed, target in enumerate(targets)]
    totals, boxes = [], []
    for detector in detectors:
        torch.manual_seed(3)
        total = torch.stack(list(detector.compute_raw_losses((images, targets)).values())).sum()
        total.backward()
        totals.append(total.detach())
        detector.score_threshold = 1e-4  # type: ignore[assignment]
        boxes.append([prediction["boxes"] for prediction in detector(images)])
    torch.testing.assert_close(totals[1], totals[0])
    for (name, one), (_, other) in zip(detectors[0].named_parameters(), detectors[1].named_parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(boxes[1], boxes[0])
    assert detectors[1].state_dict().keys() == detectors[0].state_dict().keys()
