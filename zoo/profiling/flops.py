"""What a detector costs whatever it runs on: parameters, floating point operations, memory of its tensors.

How long it takes is `zoo.profiling.latency`'s matter, and what that draws from the mains `zoo.profiling.energy`'s.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from zoo.detector import Detector
from zoo.nn.roi import RoIHead
from zoo.types import Image, Target

# RoIAlign reads each sample by bilinear interpolation: four products, added up; a product with its addition counts 2.
_FLOPS_PER_SAMPLE = 8
# Where the sampling ratio is left to the kernel it depends on the boxes; 2 x 2 samples a bin is what papers set.
_USUAL_SAMPLING_RATIO = 2


def count_parameters(detector: Detector) -> int:
    """Number of all parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in detector.parameters())


@dataclass(frozen=True)
class Operations:
    """What one image takes.

    Args:
        flops: floating point operations of the network.
        image: the input in words: "640x480 framed to 427x320".
        proposals: regions that a two-stage detector's second stage looked at; None for one stage.
    """

    flops: float
    image: str
    proposals: int | None


def count_flops(detector: Detector, image: Image, target: Target | None = None) -> Operations:
    """Floating point operations to detect the objects of one image.

    Counts convolutions, matrix products, attention and RoIAlign, a multiplication with its addition as 2. Elementwise
    operations, resizing and NMS are not counted, as everywhere.
    (torchvision's published GFLOPs count such a pair as 1.)

    Args:
        detector: on any device; compiled parts run uncompiled here, or nothing could be seen of them.
        image: uint8 [3, H, W].
        target: carries region proposals, for a detector that needs some; without, they are computed.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with evaluating(detector), torch.compiler.set_stance("force_eager"), _counting_regions(detector) as regions:
        framed = detector.frame_batch([image], None if target is None else [target])
        with counter:
            detector.compute_predictions(detector.encode(framed), framed)
    if framed.proposal_mask is not None:
        regions = [int(framed.proposal_mask.sum())]
    width, height = (int(side) for side in framed.sizes[0].tolist())
    given = f"{image.shape[2]}x{image.shape[1]} framed to {width}x{height}"
    return Operations(float(counter.get_total_flops()), given, sum(regions) if regions else None)


def measure_memory(
    detector: Detector,
    image: Image,
    target: Target | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float | None:
    """The most that the tensors of a pass held at once, weights included: what `torch.cuda` calls allocated.

    On a CPU the same is added up from what its allocator handed out and took back, so the figure does not hang on what
    the process did before, nor on the size of Python and its libraries.

    Args:
        detector: on any device.
        image: uint8 [3, H, W].
        target: carries region proposals, for a detector that needs some.
        context: entered around the pass.

    Returns:
        MB (10^6 bytes); None where the device does not tell.
    """
    device = detector.device
    targets = None if target is None else [target]
    kept = image.nbytes + sum(tensor.nbytes for tensor in (*detector.parameters(), *detector.buffers()))
    with evaluating(detector), context():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            detector([image], targets)
            return (kept + torch.cuda.max_memory_allocated(device) - before) / 1e6
        if device.type == "cpu":
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells the terminal that it starts
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                detector([image], targets)
            return (kept + _highest_sum(profiler)) / 1e6
    return None


def _highest_sum(profiler: profile) -> int:
    """Bytes: the peak of what was allocated less what was freed."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    highest = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()  # type: ignore[attr-defined]  # it is there, the stub lacks it
        highest = max(highest, total)
    return highest


@contextmanager
def _counting_regions(detector: Detector) -> Iterator[list[int]]:
    """While this is entered, the regions that a RoI head reads are put down, without padding."""
    regions: list[int] = []

    def put_down(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        regions.append(int(inputs[1].sum()))

    hooks = [head.register_forward_pre_hook(put_down) for head in detector.modules() if isinstance(head, RoIHead)]
    try:
        yield regions
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode without gradients; each module is put back into its own mode afterwards."""
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _roi_align_flops(
    features: Sequence[int],
    rois: Sequence[int],
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool = False,
    out_shape: Sequence[int] = (),
) -> int:
    samples = (sampling_ratio if sampling_ratio > 0 else _USUAL_SAMPLING_RATIO) ** 2
    return math.prod(out_shape) * samples * _FLOPS_PER_SAMPLE


def _embedding_bag_flops(
    table: Sequence[int], index: Sequence[int], *unused: object, out_shape: Sequence[object] = ()
) -> int:
    """RoIAlign over a pyramid is a weighted sum of rows (`zoo.nn.roi.pyramid_roi_align`)."""
    return 2 * math.prod(index) * table[1]


_FORMULAS = {
    torch.ops.torchvision.roi_align: _roi_align_flops,
    torch.ops.aten._embedding_bag: _embedding_bag_flops,
    torch.ops.aten._embedding_bag_forward_only: _embedding_bag_flops,
}
