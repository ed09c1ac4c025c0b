"""Latency of a detector for a batch of images, by parts.

    decode           image files -> uint8 images in memory; only if the images are files
    proposals        selective search of each image, without a cache; only if the detector uses proposals
    frame            copy to the device, resize, normalise, pad to a batch
    network          from the framed batch to the end of the last layer. For two-stage detectors this includes the steps
                     between the stages: Faster R-CNN's proposal selection, RoI pooling, R-CNN's cropping
    post-processing  after the last layer: scores, boxes, NMS, mapping to image pixels (and R-CNN's SVMs)
    total            the sum of these, batch by batch

The device is synchronised before the clock starts and before it stops. In between, CUDA events mark the boundaries of
the parts, so that timing does not synchronise the GPU.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from zoo.detector import Detector
from zoo.profiling.energy import EnergyMeter
from zoo.profiling.flops import evaluation_mode
from zoo.proposals import propose
from zoo.report.results import Part, Timing
from zoo.types import Image, Target

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class LatencyResult:
    """Latency and energy at one batch size.

    Args:
        timings: milliseconds an image, for each part that applies.
        in_memory: median of the total without decoding, milliseconds an image.
        joules: energy an image; None without a meter.
    """

    timings: list[Timing]
    in_memory: float
    joules: float | None


@dataclass(frozen=True)
class LatencySettings:
    """Images and options of a latency measurement.

    Args:
        images: in memory, on the CPU; used in turn and repeatedly.
        decode: reads image `index` from its file; None if there are no files.
        context: entered around each batch, for example the autocast of a Lightning precision plugin.
        seconds: duration of the measurement of a batch size ...
        min_batches: ... and minimum number of batches.
        meter: energy meter of the device.
    """

    images: Sequence[Image]
    decode: Callable[[int], Image] | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    seconds: float = 3.0
    min_batches: int = 1
    meter: EnergyMeter | None = None


def measure_latencies(
    detector: Detector,
    settings: LatencySettings,
    batches: Sequence[int],
    memory_mb: float | None = None,
    log: Callable[[str], object] = print,
) -> dict[int, LatencyResult]:
    """Measure several batch sizes, smallest first, up to the largest that fits in memory.

    Args:
        detector: on the device to measure.
        settings: for all batch sizes.
        batches: batch sizes.
        memory_mb: peak memory of one image, including weights. On a CPU, where running out of memory would kill the
            process, batch sizes above 1 are skipped if this times the size exceeds the free memory.
        log: called with a line about each batch size.

    Returns:
        Results by batch size.
    """
    results: dict[int, LatencyResult] = {}
    for batch in sorted(set(batches)):
        free = free_memory_mb() if detector.device.type == "cpu" else None
        if batch > 1 and memory_mb is not None and free is not None and batch * memory_mb > free:
            log(f"batch {batch}: skipped, needs up to {batch * memory_mb:.0f} MB but {free:.0f} MB are free")
            break
        try:
            results[batch] = measure_latency(detector, settings, batch)
        except (torch.OutOfMemoryError, MemoryError):
            log(f"batch {batch}: skipped, out of memory")
            break
        log(f"batch {batch}: {results[batch].in_memory:.1f} ms an image")
    return results


def measure_latency(detector: Detector, settings: LatencySettings, batch: int = 1) -> LatencyResult:
    """Measure one batch size, after a warm-up: two batches, then up to a pass over the images or `settings.seconds`."""
    images, seconds = settings.images, settings.seconds
    rounds: list[dict[str, float]] = []
    with evaluation_mode(detector):
        start = time.perf_counter()
        for number, indices in enumerate(_cycle_batches(len(images), batch)):
            if number >= 2 and (number * batch >= len(images) or time.perf_counter() - start > seconds):
                break
            time_batch(detector, settings, indices)
        if settings.meter is not None:
            settings.meter.start()
        start = time.perf_counter()
        for indices in _cycle_batches(len(images), batch):
            rounds.append(time_batch(detector, settings, indices))
            if len(rounds) >= settings.min_batches and time.perf_counter() - start > seconds:
                break
        joules = None if settings.meter is None else settings.meter.stop() / (batch * len(rounds))
    return summarise(rounds, batch, joules)


def free_memory_mb(file: Path = Path("/proc/meminfo")) -> float | None:
    """Memory available without swapping in MB; None on systems without /proc/meminfo."""
    if not file.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024 / 1e6


def time_batch(detector: Detector, settings: LatencySettings, indices: Sequence[int]) -> dict[str, float]:
    """Seconds of each part, by the names in `PARTS`, for a batch of the images with these indices."""
    device, decode = detector.device, settings.decode
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    if decode is None:
        images = [settings.images[index] for index in indices]
    else:
        images = [decode(index) for index in indices]
        seconds["decode"] = time.perf_counter() - start
    targets = None
    if detector.proposals is not None:
        start = time.perf_counter()
        targets = [_make_target(propose(image, detector.proposals)) for image in images]
        seconds["proposals"] = time.perf_counter() - start

    _synchronize(device)
    start = time.perf_counter()
    frame_start, network_start, network_end = _run(detector, images, targets, settings.context)
    _synchronize(device)
    duration = time.perf_counter() - start
    seconds["frame"] = _elapsed_seconds(frame_start, network_start)
    seconds["network"] = _elapsed_seconds(network_start, network_end)
    seconds["post-processing"] = duration - seconds["frame"] - seconds["network"]
    return seconds | {"total": sum(seconds.values())}


def summarise(rounds: Sequence[dict[str, float]], batch: int, joules: float | None = None) -> LatencyResult:
    """Median and 95th percentile over batches.

    Args:
        rounds: seconds of each part of each batch.
        batch: batch size.
        joules: energy an image.
    """
    times = {part: [1000 * seconds[part] / batch for seconds in rounds] for part in PARTS if part in rounds[0]}
    timings = [
        Timing(batch, part, float(np.median(values)), float(np.percentile(values, 95)), len(rounds))
        for part, values in times.items()
    ]
    decoding = times.get("decode", [0.0] * len(rounds))
    in_memory = float(np.median(np.subtract(times["total"], decoding)))
    return LatencyResult(timings, in_memory, joules)


Timestamp: TypeAlias = float | torch.cuda.Event


def _run(
    detector: Detector,
    images: Sequence[Image],
    targets: Sequence[Target] | None,
    context: Callable[[], AbstractContextManager[object]],
) -> tuple[Timestamp, Timestamp, Timestamp]:
    """Run `Detector.forward`; return the times of the start of framing, the start of the network and its end."""
    device = detector.device
    with context():
        frame_start = _timestamp(device)
        batch = detector.frame_batch(images, targets)
        network_start = _timestamp(device)
        outputs = detector.encode(batch)
        network_end = _timestamp(device)

        def record(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal network_end
            network_end = _timestamp(device)

        hook = register_module_forward_hook(record)  # layers of second stages run in compute_predictions
        try:
            predictions = detector.compute_predictions(outputs, batch)
        finally:
            hook.remove()
        detector.frame.unframe(predictions, batch)
    return frame_start, network_start, network_end


def _timestamp(device: torch.device) -> Timestamp:
    """The current time; on a GPU an event in its stream, recorded without synchronisation."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    _synchronize(device)
    return time.perf_counter()


def _elapsed_seconds(first: Timestamp, second: Timestamp) -> float:
    """Seconds between two times; events must have completed."""
    if isinstance(first, float) or isinstance(second, float):
        assert isinstance(first, float)
        assert isinstance(second, float)
        return second - first
    return float(first.elapsed_time(second)) / 1000


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _cycle_batches(num_images: int, batch: int) -> Iterator[list[int]]:
    """Image indices of successive batches, repeating the images endlessly."""
    indices = cycle(range(num_images))
    while True:
        yield list(islice(indices, batch))


def _make_target(proposals: Tensor) -> Target:
    """A target with proposals and no objects."""
    empty = torch.zeros(0)
    return Target(
        boxes=empty.view(0, 4),
        labels=empty.long(),
        image_id=torch.tensor(0),
        iscrowd=empty.bool(),
        difficult=empty.bool(),
        area=empty,
        proposals=proposals,
    )
