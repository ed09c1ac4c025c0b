"""How long a detector takes for a batch of images, part by part.

    decode           image files -> uint8 images in memory; only where the images are files
    proposals        selective search of each image, without a cache; only where the detector asks for proposals
    frame            copied to the device, resized, normalised, padded to a batch
    network          from the framed batch to the end of the last layer. With two stages that holds what lies between
                     them: Faster R-CNN's choice of proposals, the pooling of regions, R-CNN's cutting of crops
    post-processing  all that follows: scores, boxes, NMS, back to the pixels of the images (and R-CNN's SVMs)
    total            the sum of these, batch by batch

The device is waited for before the clock starts and before it stops; in between a GPU's own clock is read where one
part ends and the next begins, so that nothing is held up by being measured.
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
from zoo.profiling.flops import evaluating
from zoo.proposals import propose
from zoo.report.results import Part, Timing
from zoo.types import Image, Target

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class LatencyResult:
    """What was found at one batch size.

    Args:
        timings: milliseconds an image; of parts that there are.
        in_memory: median milliseconds an image without decoding: the total of images that are in memory.
        joules: an image; None without a meter.
    """

    timings: list[Timing]
    in_memory: float
    joules: float | None


@dataclass(frozen=True)
class LatencySettings:
    """Under which time is measured.

    Args:
        images: in memory, on the CPU; taken in turn, and again from the first where a batch wants more.
        decode: reads image `index` of these from its file; None where there are no files.
        context: entered around each batch, for example the autocast of a Lightning precision plugin.
        seconds: how long to measure a size of batch ...
        least: ... and how many batches at least.
        meter: of the device's energy.
    """

    images: Sequence[Image]
    decode: Callable[[int], Image] | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    seconds: float = 3.0
    least: int = 1
    meter: EnergyMeter | None = None


def measure_latencies(
    detector: Detector,
    conditions: LatencySettings,
    batches: Sequence[int],
    memory_mb: float | None = None,
    say: Callable[[str], object] = print,
) -> dict[int, LatencyResult]:
    """Several batch sizes, smallest first, as far as memory goes.

    Args:
        detector: on the device to measure.
        conditions: of all of them.
        batches: images at once.
        memory_mb: what one image takes, weights included. On a CPU, where too large a batch would end the process, a
            batch is left out if so many times this is not free.
        say: takes a line about each, and why one is left out.
    """
    speeds: dict[int, LatencyResult] = {}
    for batch in sorted(set(batches)):
        free = free_memory_mb() if detector.device.type == "cpu" else None
        if batch > 1 and memory_mb is not None and free is not None and batch * memory_mb > free:
            say(f"batch {batch}: left out, would take up to {batch * memory_mb:.0f} MB and {free:.0f} MB are free")
            break
        try:
            speeds[batch] = measure_latency(detector, conditions, batch)
        except (torch.OutOfMemoryError, MemoryError):
            say(f"batch {batch}: left out, out of memory")
            break
        say(f"batch {batch}: {speeds[batch].in_memory:.1f} ms an image")
    return speeds


def measure_latency(detector: Detector, conditions: LatencySettings, batch: int = 1) -> LatencyResult:
    """Time batches of one size, after a warm-up: a pass over the images, or as many seconds as are measured."""
    images, seconds = conditions.images, conditions.seconds
    rounds: list[dict[str, float]] = []
    with evaluating(detector):
        start = time.perf_counter()
        for number, indices in enumerate(_in_turn(len(images), batch)):
            if number >= 2 and (number * batch >= len(images) or time.perf_counter() - start > seconds):
                break
            time_batch(detector, conditions, indices)
        if conditions.meter is not None:
            conditions.meter.start()
        start = time.perf_counter()
        for indices in _in_turn(len(images), batch):
            rounds.append(time_batch(detector, conditions, indices))
            if len(rounds) >= conditions.least and time.perf_counter() - start > seconds:
                break
        joules = None if conditions.meter is None else conditions.meter.stop() / (batch * len(rounds))
    return summarise(rounds, batch, joules)


def free_memory_mb(file: Path = Path("/proc/meminfo")) -> float | None:
    """MB that processes can still have without swapping; None where the system does not say."""
    if not file.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024 / 1e6


def time_batch(detector: Detector, conditions: LatencySettings, indices: Sequence[int]) -> dict[str, float]:
    """Seconds of each part for the images with these indices, by the names in `PARTS`."""
    device, decode = detector.device, conditions.decode
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    if decode is None:
        chosen = [conditions.images[index] for index in indices]
    else:
        chosen = [decode(index) for index in indices]
        seconds["decode"] = time.perf_counter() - start
    targets = None
    if detector.proposals is not None:
        start = time.perf_counter()
        targets = [_target_of(propose(image, detector.proposals)) for image in chosen]
        seconds["proposals"] = time.perf_counter() - start

    _wait_for(device)
    start = time.perf_counter()
    began, framed, last = _run(detector, chosen, targets, conditions.context)
    _wait_for(device)
    whole = time.perf_counter() - start
    seconds["frame"] = _between(began, framed)
    seconds["network"] = _between(framed, last)
    seconds["post-processing"] = whole - seconds["frame"] - seconds["network"]
    return seconds | {"total": sum(seconds.values())}


def summarise(rounds: Sequence[dict[str, float]], batch: int, joules: float | None = None) -> LatencyResult:
    """Median and 95th percentile over batches.

    Args:
        rounds: seconds of each part of each batch.
        batch: images in each.
        joules: an image.
    """
    times = {part: [1000 * seconds[part] / batch for seconds in rounds] for part in PARTS if part in rounds[0]}
    timings = [
        Timing(batch, part, float(np.median(values)), float(np.percentile(values, 95)), len(rounds))
        for part, values in times.items()
    ]
    decoding = times.get("decode", [0.0] * len(rounds))
    in_memory = float(np.median(np.subtract(times["total"], decoding)))
    return LatencyResult(timings, in_memory, joules)


Mark: TypeAlias = float | torch.cuda.Event


def _run(
    detector: Detector,
    images: Sequence[Image],
    targets: Sequence[Target] | None,
    context: Callable[[], AbstractContextManager[object]],
) -> tuple[Mark, Mark, Mark]:
    """What `Detector.forward` does; and when framing began, when the network began, and when its last layer ended."""
    device = detector.device
    with context():
        began = _mark(device)
        batch = detector.frame_batch(images, targets)
        framed = _mark(device)
        outputs = detector.encode(batch)
        last = _mark(device)

        def move_on(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal last
            last = _mark(device)

        hook = register_module_forward_hook(move_on)  # second stages have their layers in compute_predictions
        try:
            predictions = detector.compute_predictions(outputs, batch)
        finally:
            hook.remove()
        detector.frame.unframe(predictions, batch)
    return began, framed, last


def _mark(device: torch.device) -> Mark:
    """This moment; on a GPU a place in its queue, which nobody waits for."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    _wait_for(device)
    return time.perf_counter()


def _between(first: Mark, second: Mark) -> float:
    """Seconds; of places in a queue once they are passed."""
    if isinstance(first, float) or isinstance(second, float):
        assert isinstance(first, float)
        assert isinstance(second, float)
        return second - first
    return float(first.elapsed_time(second)) / 1000


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _in_turn(num_images: int, batch: int) -> Iterator[list[int]]:
    """Indices of one batch after the other, for ever."""
    indices = cycle(range(num_images))
    while True:
        yield list(islice(indices, batch))


def _target_of(proposals: Tensor) -> Target:
    """Nothing but proposals."""
    none = torch.zeros(0)
    return Target(
        boxes=none.view(0, 4),
        labels=none.long(),
        image_id=torch.tensor(0),
        iscrowd=none.bool(),
        difficult=none.bool(),
        area=none,
        proposals=proposals,
    )
