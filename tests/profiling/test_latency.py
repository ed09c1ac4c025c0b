"""Latency by parts with a fake clock, and the end of the network part on real detectors."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from clock import Clock
from forms import FORMS, FRAME
from scenes import make_image, make_target
from tiny_detector import TinyDetector
from torch import Tensor, nn

import zoo.profiling.latency
from zoo.detector import Detector
from zoo.models import MODELS
from zoo.profiling.energy import EnergyCounter, EnergyMeter
from zoo.profiling.latency import (
    PARTS,
    LatencySettings,
    free_memory_mb,
    measure_latencies,
    measure_latency,
    summarise,
    time_batch,
)
from zoo.proposals import SelectiveSearch
from zoo.types import Batch, Image, Prediction


def blank(width: int = 30) -> Image:
    return torch.zeros(3, 20, width, dtype=torch.uint8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(zoo.profiling.latency, "time", clock)
    return clock


class SecondStage(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, values: Tensor) -> Tensor:
        self.clock.now += 0.0625
        return values


class Slow(TinyDetector):
    """A detector whose parts take different powers of two seconds, so that sums are exact."""

    def __init__(self, clock: Clock, stages: int) -> None:
        super().__init__(num_classes=3)
        self.clock = clock
        self.second = SecondStage(clock) if stages == 2 else None
        self.frame.register_forward_hook(lambda *_: self.wait(1))
        self.seen: list[list[int]] = []

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def encode(self, batch: Batch) -> Tensor:
        self.seen.append(batch.given_sizes[:, 0].int().tolist())
        self.wait(2)
        return super().encode(batch)

    def compute_predictions(self, outputs: Tensor, batch: Batch) -> list[Prediction]:
        if self.second is not None:
            self.wait(0.5)  # between the stages
            outputs = self.second(outputs)
        self.wait(4)
        return super().compute_predictions(outputs, batch)


@pytest.mark.parametrize(("stages", "network"), [(1, 2), (2, 2.5625)])
def test_seconds_of_each_part(clock: Clock, monkeypatch: pytest.MonkeyPatch, stages: int, network: float) -> None:
    detector = Slow(clock, stages)
    detector.proposals = SelectiveSearch("single", width=None)

    def search(image: Image, search: SelectiveSearch) -> Tensor:
        clock.now += 8
        return torch.tensor([[0.0, 0.0, 5.0, 5.0]])

    def decode(index: int) -> Image:
        clock.now += 16
        return blank(40 + index)

    monkeypatch.setattr(zoo.profiling.latency, "propose", search)
    found = time_batch(detector, LatencySettings([blank()] * 3, decode), [0, 2])
    assert found == {
        "decode": 32,
        "proposals": 16,
        "frame": 1,
        "network": network,
        "post-processing": 4,
        "total": 53 + network,
    }
    assert tuple(found) == PARTS
    assert detector.seen == [[40, 42]]


def test_absent_parts_are_not_reported(clock: Clock) -> None:
    found = time_batch(Slow(clock, 1), LatencySettings([blank()]), [0])
    assert found == {"frame": 1, "network": 2, "post-processing": 4, "total": 7}


def test_images_are_used_in_turn_and_repeated(clock: Clock) -> None:
    detector = Slow(clock, 1)
    images = [blank(width) for width in (30, 31, 32)]
    result = measure_latency(detector, LatencySettings(images, seconds=34.0), batch=1)
    assert [width for (width,) in detector.seen] == [30, 31, 32, 30, 31, 32, 30, 31]  # warm-up: a pass; then > 34 s
    assert {timing.batches for timing in result.timings} == {5}
    detector.seen.clear()
    measure_latency(detector, LatencySettings(images, seconds=1.0, min_batches=2), batch=4)
    assert detector.seen == [[30, 31, 32, 30], [31, 32, 30, 31]] * 2


def test_warm_up_ends_with_its_time(clock: Clock) -> None:
    detector = Slow(clock, 1)
    measure_latency(detector, LatencySettings([blank(30 + i) for i in range(9)], seconds=6.0))
    assert len(detector.seen) == 2 + 1


def test_median_and_95th_percentile_an_image() -> None:
    totals = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000  # 1 .. 100 ms
    rounds = [
        {"decode": 0.0, "frame": 0.25 * t, "network": 0.5 * t, "post-processing": 0.25 * t, "total": t} for t in totals
    ]
    result = summarise(rounds, batch=2)
    by_part = {timing.part: timing for timing in result.timings}
    assert list(by_part) == ["decode", "frame", "network", "post-processing", "total"]
    assert by_part["total"].median == pytest.approx(50.5 / 2)
    assert by_part["total"].p95 == pytest.approx(95.05 / 2)  # interpolated linearly between ranks
    assert by_part["network"].p95 == pytest.approx(95.05 / 4)
    assert {timing.batch for timing in result.timings} == {2}


def test_in_memory_total_excludes_decoding() -> None:
    rounds = [{"decode": d, "total": d + rest} for d, rest in ((9.0, 0.001), (1.0, 0.002), (5.0, 0.003))]
    assert summarise(rounds, batch=1).in_memory == pytest.approx(2)


def test_energy_excludes_the_warm_up(clock: Clock) -> None:
    meter = EnergyMeter([EnergyCounter(lambda: 100 * clock.now)])  # 100 W
    result = measure_latency(Slow(clock, 1), LatencySettings([blank()] * 4, seconds=20.0, meter=meter), batch=2)
    assert result.joules == pytest.approx(100 * 7 / 2)  # 7 s a batch of two
    assert measure_latency(Slow(clock, 1), LatencySettings([blank()], seconds=1.0)).joules is None


def test_out_of_memory_keeps_the_smaller_batches() -> None:
    class Hungry(TinyDetector):
        def encode(self, batch: Batch) -> Tensor:
            if len(batch.images) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            return super().encode(batch)

    lines: list[str] = []
    results = measure_latencies(
        Hungry(num_classes=3), LatencySettings([blank()], seconds=0.01), [8, 1, 32, 4], log=lines.append
    )
    assert list(results) == [1, 4]
    assert lines[-1] == "batch 8: skipped, out of memory"
    assert len(lines) == 3


def test_batches_beyond_free_memory_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.profiling.latency, "free_memory_mb", lambda: 1000.0)
    lines: list[str] = []
    settings = LatencySettings([blank()], seconds=0.01)
    results = measure_latencies(TinyDetector(num_classes=3), settings, [1, 8, 32], memory_mb=100.0, log=lines.append)
    assert list(results) == [1, 8]
    assert lines[-1] == "batch 32: skipped, needs up to 3200 MB but 1000 MB are free"
    assert list(measure_latencies(TinyDetector(num_classes=3), settings, [1], memory_mb=2000.0)) == [1]


def test_free_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert free_memory_mb(file) is None
    file.write_text("MemTotal:       4000000 kB\nMemAvailable:   1000000 kB\n")
    assert free_memory_mb(file) == 1024
    file.write_text("MemTotal:       4000000 kB\n")
    assert free_memory_mb(file) is None


def test_modes_gradients_and_hooks_are_restored() -> None:
    detector = TinyDetector(num_classes=3)
    detector.body.eval()
    modes = [module.training for module in detector.modules()]
    entered: list[int] = []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append(1)
        assert not torch.is_grad_enabled()
        yield

    result = measure_latency(detector, LatencySettings([blank()], context=context, seconds=0.0, min_batches=4))
    assert len(entered) == 2 + 4
    assert result.in_memory > 0
    assert [module.training for module in detector.modules()] == modes
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize(
    "form", ["retinanet", "faster_rcnn", "fast_rcnn", "rcnn", "sliding_window in crops, with merging"]
)
def test_post_processing_contains_no_layer(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks at each layer, a part lasts as many seconds as layers run in it."""
    torch.manual_seed(0)
    name, arguments = FORMS[form]
    detector: Detector = MODELS[name](num_classes=3, **({"frame": FRAME} | arguments)).eval()
    image = make_image(96, 128, make_target([[10, 12, 60, 70], [70, 20, 120, 88]], [0, 2]))
    clock = Clock()
    count = itertools.count(1)
    for layer in (module for module in detector.modules() if not list(module.children())):
        if layer is not detector.frame:
            layer.register_forward_pre_hook(lambda *_: setattr(clock, "now", float(next(count))))
    monkeypatch.setattr(zoo.profiling.latency, "time", clock)
    predictions: list[Prediction] = []
    unframe = detector.frame.unframe
    monkeypatch.setattr(detector.frame, "unframe", lambda *args: predictions.extend(unframe(*args)) or predictions)
    found = time_batch(detector, LatencySettings([image], context=torch.no_grad), [0])
    assert found["network"] == next(count) - 1 > 0
    assert found["frame"] == found["post-processing"] == 0
    again = detector([image])[0]
    assert torch.equal(predictions[0]["boxes"], again["boxes"])
    assert torch.equal(predictions[0]["scores"], again["scores"])
