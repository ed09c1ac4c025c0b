"""What a detector costs: parameters, floating point operations, and time for one image.

Timing is of everything between an image in memory and boxes in its pixels: region proposals where the detector wants
any (computed, unless the detector was given a cache), framing, network, post-processing. Nothing else (no decoding of
files, no drawing), batch 1, warmed up, the device waited for. Operations are those of the network alone.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.detector import Detector
from zoo.types import Image, Target

# RoIAlign reads each sample by bilinear interpolation: four products, added up; a product with its addition counts 2.
_FLOPS_PER_SAMPLE = 8
# Where the sampling ratio is left to the kernel it depends on the boxes; 2 x 2 samples a bin is what papers set.
_USUAL_SAMPLING_RATIO = 2


def count_parameters(detector: Detector) -> int:
    """Number of all parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in detector.parameters())


def count_flops(detector: Detector, image: Image, target: Target | None = None) -> tuple[float, str]:
    """Floating point operations to detect the objects of one image.

    Counts convolutions, matrix products, attention and RoIAlign, a multiplication with its addition as 2. Elementwise
    operations, resizing and NMS are not counted, as everywhere.
    (torchvision's published GFLOPs count such a pair as 1.)

    Args:
        detector: on any device; compiled parts run uncompiled here, or nothing could be seen of them.
        image: uint8 [3, H, W].
        target: carries region proposals, for a detector that needs some; without, they are computed.

    Returns:
        The number, and the input in words: "640x480 framed to 427x320".
    """
    targets = None if target is None else [target]
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.roi_align: _roi_align_flops})
    with _evaluating(detector), torch.compiler.set_stance("force_eager"):
        framed = detector.frame([image], targets)
        with counter:
            detector([image], targets)
    given = f"{image.shape[2]}x{image.shape[1]}"
    width, height = (int(side) for side in framed.sizes[0].tolist())
    return float(counter.get_total_flops()), f"{given} framed to {width}x{height}"


def measure_latency(
    detector: Detector,
    images: Sequence[Image],
    targets: Sequence[Target] | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    seconds: float = 3.0,
) -> float:
    """Median milliseconds from one image to its detections.

    Args:
        detector: on the device that the images are on.
        images: taken in turn, so that the time does not hang on one image's number of objects.
        targets: carry region proposals, for a detector that needs some; without, they are computed and timed.
        context: entered around each call, for example the autocast of a Lightning precision plugin.
        seconds: how long to measure, after a warm-up that takes each size of image once, at most as long.
    """
    device = images[0].device

    def run(index: int) -> float:
        _wait_for(device)
        start = time.perf_counter()
        with context():
            detector([images[index]], None if targets is None else [targets[index]])
        _wait_for(device)
        return time.perf_counter() - start

    with _evaluating(detector):
        start = time.perf_counter()
        first_of_each_size = {tuple(image.shape): index for index, image in enumerate(images)}.values()
        for index in (*first_of_each_size, 0, 0):
            run(index)
            if time.perf_counter() - start > seconds:
                break
        times: list[float] = []
        start = time.perf_counter()
        while not times or time.perf_counter() - start < seconds:
            times.append(run(len(times) % len(images)))
    return statistics.median(times) * 1000


@contextmanager
def _evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode without gradients; each module is put back into its own mode afterwards."""
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
