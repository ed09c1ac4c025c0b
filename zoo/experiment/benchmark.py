"""`zoo benchmark`: parameters, FLOPs, memory and latency of checkpoints, those of runs in the precision of their AP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from zoo.data.module import DetectionDataModule
from zoo.detector.checkpoint import find_checkpoint, read_checkpoint
from zoo.errors import InputError
from zoo.experiment.run import final_split, measure_cost
from zoo.io.configurations import read_yaml
from zoo.profiling.hardware import describe_hardware, list_versions
from zoo.report.benchmark_results import FILE_NAME, Benchmark, write_benchmark
from zoo.report.results import Cost
from zoo.training.configuration import build_data
from zoo.training.trainer import make_inference_trainer
from zoo.weights import find_published, load

MIN_BATCHES = 5
"""Batches timed at each batch size regardless of the time limit, so that the 95th percentile is meaningful."""


@dataclass(frozen=True)
class BenchmarkTarget:
    """A checkpoint to measure.

    Args:
        name: label in tables.
        checkpoint: the file.
        data: data set whose test images (validation images where there is no test split) are used.
        accelerator: Lightning's name.
        precision: Lightning's name.
    """

    name: str
    checkpoint: Path
    data: DetectionDataModule
    accelerator: str
    precision: str


def target_of_run(folder: Path, accelerator: str | None = None, precision: str | None = None) -> BenchmarkTarget:
    """The best or last checkpoint of a run of `zoo compare` or `zoo fit`, with its data, device and precision.

    Args:
        folder: the run's folder.
        accelerator: replaces the run's own.
        precision: replaces the run's own.

    Raises:
        InputError: the folder holds no such run.
    """
    if not folder.is_dir():
        raise InputError("no such folder; give the folder of a run, or --checkpoint FILE --data DATA", folder)
    checkpoint = find_checkpoint(folder)
    file = folder / "config.yaml"
    config = read_yaml(file)
    if not isinstance(config, dict) or not {"data", "trainer"} <= config.keys():
        raise InputError("has no data and trainer sections; expected the configuration that a run writes", file)
    trainer = config["trainer"]
    return BenchmarkTarget(
        folder.resolve().name,
        checkpoint,
        build_data(config["data"], file),
        accelerator or trainer.get("accelerator") or "auto",
        precision or trainer.get("precision") or "32-true",
    )


def benchmark_checkpoints(
    runs: Sequence[Path],
    checkpoints: Sequence[Path],
    data: DetectionDataModule | None,
    batches: Sequence[int],
    seconds: float,
    accelerator: str | None,
    precision: str | None,
    log: Callable[[str], object],
) -> list[Benchmark]:
    """Measure runs and checkpoints one after the other; write the result of each run to `cost.json` in its folder.

    Args:
        runs: folders of `zoo compare` or `zoo fit`.
        checkpoints: checkpoint files, measured on `data`.
        data: data set for `checkpoints`.
        batches: batch sizes to time.
        seconds: how long to time each batch size.
        accelerator: None for each run's own, and "auto" for checkpoints.
        precision: None for each run's own, and "32-true" for checkpoints. With a given precision no `cost.json` is
            written, since the run's AP was measured in the run's own precision.
        log: called with each line of progress.

    Raises:
        InputError: an input cannot be used; all inputs are checked before anything is measured.
    """
    if not runs and not checkpoints:
        raise InputError("nothing to measure; give folders of runs, or --checkpoint FILE --data DATA")
    if not batches or min(batches) < 1:
        raise InputError("batch sizes must be at least 1", place="--batch_sizes")
    if checkpoints and (data is None or not data.sources):
        raise InputError("--checkpoint needs the images to measure with; give --data DATA")
    targets = [target_of_run(run, accelerator, precision) for run in runs]
    for checkpoint in checkpoints:
        assert data is not None
        name = checkpoint.parent.parent.name if checkpoint.stem in ("best", "last") else checkpoint.stem
        targets.append(
            BenchmarkTarget(name or checkpoint.stem, checkpoint, data, accelerator or "auto", precision or "32-true")
        )
    for target in targets:
        if find_published(target.checkpoint) is None:
            read_checkpoint(target.checkpoint)
        make_inference_trainer(target.accelerator, target.precision)
        target.data.table(final_split(target.data))
    benchmarks: list[Benchmark] = []
    for number, target in enumerate(targets):
        title = f"[{number + 1}/{len(targets)}] {target.name}, {target.precision}"
        log(title)
        benchmarks.append(measure_target(target, batches, seconds, partial(_log_with_title, log, title)))
        if number < len(runs) and precision is None:
            write_benchmark(benchmarks[-1], runs[number] / FILE_NAME)
    return benchmarks


def _log_with_title(log: Callable[[str], object], title: str, line: str) -> None:
    log(f"{title}: {line}")


def measure_target(
    target: BenchmarkTarget, batches: Sequence[int], seconds: float, log: Callable[[str], object] = print
) -> Benchmark:
    """Measure one checkpoint.

    Args:
        target: the checkpoint.
        batches: batch sizes to time; those that do not fit in memory are left out.
        seconds: how long to time each batch size.
        log: called with a line about each batch size.

    Raises:
        InputError: the checkpoint or the data cannot be used, or the accelerator or precision is not available.
    """
    detector = load(target.checkpoint)
    trainer = make_inference_trainer(target.accelerator, target.precision)
    trainer.precision_plugin.convert_module(detector)
    split = final_split(target.data)
    cost = measure_cost(detector, trainer, target.data, split, Cost(), batches, seconds, MIN_BATCHES, log)
    return Benchmark(
        name=target.name,
        checkpoint=str(target.checkpoint),
        images=f"{target.data.name} {split}",
        precision=target.precision,
        hardware=describe_hardware(),
        device=str(trainer.strategy.root_device),
        threads=torch.get_num_threads(),
        versions=list_versions(),
        cost=cost,
    )
