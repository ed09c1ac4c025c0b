"""A training step synchronises with its device only where this file allows it.

A synchronisation is an operation whose output size depends on values, or a value read by Python. On a CPU these
operations are counted in the dispatcher; on a GPU, CUDA's sync debug mode is checked as well.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import FORMS, FRAME
from scenes import make_image, make_target
from torch.utils._python_dispatch import TorchDispatchMode

import zoo.models.faster_rcnn
import zoo.models.rcnn
from zoo.detector import Detector
from zoo.models import MODELS
from zoo.types import RawBatch

SYNC_OPERATIONS = {
    "aten._local_scalar_dense.default": "item",  # item, int, float, bool, tolist of one value
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "nonzero",
    "aten.repeat_interleave.Tensor": "repeat_interleave",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "torchvision.nms.default": "nms",
}
TESTED = [*MODELS, "faster_rcnn of torchvision's second", "yolov1 of the paper", "faster_rcnn of the paper"]

# Allowed synchronisations in a step of two images on a CPU, where NMS is called by level (on a GPU by image).
ALLOWED: dict[str, dict[str, int]] = {
    # The number of RPN proposals kept by NMS depends on values: one synchronisation an image for the boxes that are not
    # empty, one for those that are kept. They are then padded to a fixed number.
    "faster_rcnn": {"nonzero": 2, "nms": 10},
    "faster_rcnn of the paper": {"nonzero": 2, "nms": 2},
    # As Faster R-CNN; on a CPU only, RoIs are pooled for masks up to the largest number of positive ones of an image
    # (item), and the positive ones are selected for the mask head (nonzero).
    "mask_rcnn": {"nonzero": 3, "nms": 10, "item": 1},
    # Batch norm over regions must not see empty slots: filled slots are selected (one mask) and the results are written
    # back (one mask for logits, one for deltas); the backward pass repeats each of the three.
    "faster_rcnn of torchvision's second": {"nonzero": 2, "nms": 10, "mask": 6},
    # Batch norm over windows must not see empty slots (mask), and crops are cut image by image, with the maximum number
    # of filled slots over images for each (item).
    "rcnn": {"mask": 1, "item": 1},
}

# The same for CUDA: the only functions that may synchronise during a step.
MAY_SYNC: dict[str, list[tuple[Any, str]]] = {
    "faster_rcnn": [(zoo.models.faster_rcnn, "nms_by_level")],
    "faster_rcnn of the paper": [(zoo.models.faster_rcnn, "nms_by_level")],
    "mask_rcnn": [(zoo.models.faster_rcnn, "nms_by_level")],
    "rcnn": [(zoo.models.rcnn, "sample_windows"), (zoo.models.rcnn, "warp_windows")],
}


def build(form: str) -> Detector:
    torch.manual_seed(0)
    key, arguments = FORMS[form]
    return MODELS[key](num_classes=3, **({"frame": FRAME} | arguments)).train()


def make_batch(device: str = "cpu") -> RawBatch:
    boxes = [[[10, 12, 60, 70], [70, 20, 120, 88]], [[5, 5, 40, 45]]]
    proposals = torch.tensor([[5.0 * i, 4.0 * i, 6 * i + 30, 4 * i + 40] for i in range(12)])
    targets = [
        make_target(boxes[index], [index] * len(boxes[index]), index) | {"proposals": proposals} for index in range(2)
    ]
    images = [make_image(96, 128, target, seed).to(device) for seed, target in enumerate(targets)]
    return images, [{key: value.to(device) for key, value in target.items()} for target in targets]


class SyncCounter(TorchDispatchMode):
    """Counts operations that synchronise with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name in SYNC_OPERATIONS:
            self.found[SYNC_OPERATIONS[name]] += 1
        if name.startswith(("aten.index.Tensor", "aten.index_put")):
            indices = [index for index in args[1] if index is not None]
            self.found["mask"] += any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", TESTED)
def test_a_step_synchronises_only_where_allowed(form: str) -> None:
    detector = build(form)
    batch = make_batch()
    with SyncCounter() as counter:
        torch.stack(list(detector.compute_raw_losses(batch).values())).sum().backward()
    assert {name: count for name, count in counter.found.items() if count} == ALLOWED.get(form, {})


def test_sync_counter_counts_items_and_masks() -> None:
    with SyncCounter() as counter:
        values = torch.arange(3.0)
        float(values.sum())
        values[values > 1]
    assert counter.found["item"] == 1
    assert counter.found["mask"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("form", [form for form in TESTED if "torchvision's" not in form])
def test_cuda_reports_no_other_synchronisation(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in MAY_SYNC.get(form, []):
        monkeypatch.setattr(module, name, allow_sync(getattr(module, name)))
    detector = build(form).cuda()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4, foreach=True)
    batch = make_batch("cuda")
    for is_checked in (False, True):  # the first step allocates and chooses kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if is_checked else "default")
        try:
            torch.stack(list(detector.compute_raw_losses(batch).values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def allow_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return call
