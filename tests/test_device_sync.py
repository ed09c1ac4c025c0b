"""A training step waits for its device nowhere but where this file says so.

A wait is an operation whose result has a size that depends on values, or a value that Python reads. On a CPU the
dispatcher tells which operations are called; where a GPU is at hand, CUDA itself is asked, too.
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

WAITS = {
    "aten._local_scalar_dense.default": "item",  # item, int, float, bool, tolist of one value
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "nonzero",
    "aten.repeat_interleave.Tensor": "repeat_interleave",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "torchvision.nms.default": "nms",
}
TESTED = [*MODELS, "faster_rcnn of torchvision's second", "yolov1 of the paper", "faster_rcnn of the paper"]

# What may wait in a step of two images, and how often on a CPU, where NMS is called by level (on a GPU by image).
ALLOWED: dict[str, dict[str, int]] = {
    # The RPN's proposals are what NMS keeps, and how many that is nobody knows before: one wait an image for the boxes
    # that have an area, one for those that are kept. They are padded to a fixed number right after.
    "faster_rcnn": {"nonzero": 2, "nms": 10},
    "faster_rcnn of the paper": {"nonzero": 2, "nms": 2},
    # Batch norm over regions must not see empty slots: those that are filled are picked out (one mask), read, and put
    # back (one mask for logits, one for deltas); the backward pass does each of the three once more.
    "faster_rcnn of torchvision's second": {"nonzero": 2, "nms": 10, "mask": 6},
    # Batch norm over windows must not see empty slots (mask), and crops are cut image by image, as many slots for each
    # as the fullest has (item).
    "rcnn": {"mask": 1, "item": 1},
}

# The same for CUDA: functions that may wait while a step runs; everything outside of them may not.
MAY_WAIT: dict[str, list[tuple[Any, str]]] = {
    "faster_rcnn": [(zoo.models.faster_rcnn, "nms_in_groups")],
    "faster_rcnn of the paper": [(zoo.models.faster_rcnn, "nms_in_groups")],
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
        make_target(boxes[place], [place] * len(boxes[place]), place) | {"proposals": proposals} for place in range(2)
    ]
    images = [make_image(96, 128, target, seed).to(device) for seed, target in enumerate(targets)]
    return images, [{key: value.to(device) for key, value in target.items()} for target in targets]


class Waits(TorchDispatchMode):
    """Counts operations that a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name in WAITS:
            self.found[WAITS[name]] += 1
        if name.startswith(("aten.index.Tensor", "aten.index_put")):
            indices = [index for index in args[1] if index is not None]
            self.found["mask"] += any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", TESTED)
def test_a_step_waits_where_it_is_allowed_to(form: str) -> None:
    detector = build(form)
    batch = make_batch()
    with Waits() as waits:
        torch.stack(list(detector.compute_raw_losses(batch).values())).sum().backward()
    assert {name: count for name, count in waits.found.items() if count} == ALLOWED.get(form, {})


def test_that_test_would_notice() -> None:
    with Waits() as waits:
        values = torch.arange(3.0)
        float(values.sum())
        values[values > 1]
    assert waits.found["item"] == 1
    assert waits.found["mask"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("form", [form for form in TESTED if "torchvision's" not in form])
def test_cuda_finds_no_other_wait(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in MAY_WAIT.get(form, []):
        monkeypatch.setattr(place, name, allow(getattr(place, name)))
    detector = build(form).cuda()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4, foreach=True)
    batch = make_batch("cuda")
    for is_watched in (False, True):  # the first step allocates and chooses kernels
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if is_watched else "default")
        try:
            torch.stack(list(detector.compute_raw_losses(batch).values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def allow(function: Callable[..., Any]) -> Callable[..., Any]:
    def waiting(*args: Any, **kwargs: Any) -> Any:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return waiting
