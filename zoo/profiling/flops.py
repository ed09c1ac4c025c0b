"""Number of parameters, floating point operations and peak memory of a detector."""

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

# RoIAlign interpolates each sample bilinearly: four multiply-adds, each counted as 2.
_FLOPS_PER_SAMPLE = 8
# An adaptive sampling ratio depends on the boxes; papers use 2 x 2 samples a bin.
_DEFAULT_SAMPLING_RATIO = 2


def count_parameters(detector: Detector) -> int:
    """Number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in detector.parameters())


@dataclass(frozen=True)
class Operations:
    """Operations for one image.

    Args:
        flops: floating point operations of the network.
        input_size: for example "640x480 framed to 427x320".
        proposals: number of regions processed by the second stage; None for one-stage detectors.
    """

    flops: float
    input_size: str
    proposals: int | None


def count_flops(detector: Detector, image: Image, target: Target | None = None) -> Operations:
    """Floating point operations to detect the objects of one image.

    Counts convolutions, matrix products, attention and RoIAlign, with a multiply-add as 2 (torchvision's published
    GFLOPs count it as 1). Elementwise operations, resizing and NMS are not counted, as is usual.

    Args:
        detector: on any device; compiled parts run eagerly, so that their operations are counted.
        image: uint8 [3, H, W].
        target: with region proposals, for a detector that uses them; without, they are computed.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with evaluation_mode(detector), torch.compiler.set_stance("force_eager"), _record_num_rois(detector) as num_rois:
        framed = detector.frame_batch([image], None if target is None else [target])
        with counter:
            detector.compute_predictions(detector.encode(framed), framed)
    if framed.proposal_mask is not None:
        num_rois = [int(framed.proposal_mask.sum())]
    width, height = (int(side) for side in framed.sizes[0].tolist())
    input_size = f"{image.shape[2]}x{image.shape[1]} framed to {width}x{height}"
    return Operations(float(counter.get_total_flops()), input_size, sum(num_rois) if num_rois else None)


def measure_memory(
    detector: Detector,
    image: Image,
    target: Target | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float | None:
    """Peak memory of all tensors during a forward pass, including weights (allocated memory in terms of `torch.cuda`).

    On a CPU it is summed from the allocations and releases of torch's allocator, so it does not depend on what the
    process did before, nor on the memory of Python and its libraries.

    Args:
        detector: on any device.
        image: uint8 [3, H, W].
        target: with region proposals, for a detector that uses them.
        context: entered around the pass.

    Returns:
        MB (10^6 bytes); None for devices other than CPUs and CUDA GPUs.
    """
    device = detector.device
    targets = None if target is None else [target]
    kept = image.nbytes + sum(tensor.nbytes for tensor in (*detector.parameters(), *detector.buffers()))
    with evaluation_mode(detector), context():
        allocated = peak_allocated(lambda: detector([image], targets), device)
    return None if allocated is None else (kept + allocated) / 1e6


def peak_allocated(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of tensors that a call has allocated at its peak, beyond those before; None as in `measure_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "cpu":
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a message
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        return _peak_bytes(profiler)
    return None


def _peak_bytes(profiler: profile) -> int:
    """Peak of allocated minus freed bytes."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()  # type: ignore[attr-defined]  # missing in the type stub
        peak = max(peak, total)
    return peak


@contextmanager
def _record_num_rois(detector: Detector) -> Iterator[list[int]]:
    """Context that records the number of RoIs in each call of a RoI head, without padding."""
    counts: list[int] = []

    def record(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        counts.append(int(inputs[1].sum()))

    hooks = [head.register_forward_pre_hook(record) for head in detector.modules() if isinstance(head, RoIHead)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluation_mode(detector: Detector) -> Iterator[None]:
    """Context of evaluation mode without gradients; restores the mode of each module afterwards."""
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
    samples = (sampling_ratio if sampling_ratio > 0 else _DEFAULT_SAMPLING_RATIO) ** 2
    return math.prod(out_shape) * samples * _FLOPS_PER_SAMPLE


def _embedding_bag_flops(
    table: Sequence[int], index: Sequence[int], *unused: object, out_shape: Sequence[object] = ()
) -> int:
    """Weighted sums of table rows, by which `zoo.nn.roi.pyramid_roi_align` computes RoIAlign."""
    return 2 * math.prod(index) * table[1]


_FORMULAS = {
    torch.ops.torchvision.roi_align: _roi_align_flops,
    torch.ops.aten._embedding_bag: _embedding_bag_flops,
    torch.ops.aten._embedding_bag_forward_only: _embedding_bag_flops,
}
