"""`zoo benchmark`: what finished checkpoints cost, with the weights and in the precision that gave their AP."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.data.module import DetectionDataModule
from zoo.errors import InputError
from zoo.experiment.run import final_split, measure_cost
from zoo.models import load, read_checkpoint
from zoo.profiling.hardware import describe_hardware, list_versions
from zoo.profiling.latency import PARTS
from zoo.report.benchmark_results import FILE_NAME, Benchmark, write_benchmark
from zoo.report.results import Cost, Timing
from zoo.training.configuration import build_data, read_yaml
from zoo.training.trainer import make_inference_trainer

LEAST_BATCHES = 5
"""Of a size that are timed however long they take, so that a 95th percentile says something."""

RESOURCES_LEGEND = (
    "GFLOPs: of one image framed to that size, with so many proposals; a multiplication with its addition is 2. "
    "memory: the most that tensors held at once at batch 1, weights included."
)
TIMES_LEGEND = (
    "decode: file to image. search: selective search, without a cache. frame: to the device, resized, normalised. "
    "network: to the end of the last layer, with what lies between two stages. post: scores, boxes, NMS. "
    "total: all of these."
)


@dataclass(frozen=True)
class Subject:
    """A checkpoint to be measured.

    Args:
        name: for tables.
        checkpoint: the file.
        data: whose test images are taken, or validation images where there are none.
        accelerator: as Lightning names it.
        precision: as Lightning names it.
    """

    name: str
    checkpoint: Path
    data: DetectionDataModule
    accelerator: str
    precision: str


def subject_of_run(folder: Path, accelerator: str | None = None, precision: str | None = None) -> Subject:
    """The tested checkpoint of a run of `zoo compare` or `zoo fit`, its data, its device and its precision.

    Args:
        folder: of the run.
        accelerator: in place of the run's own.
        precision: in place of the run's own.

    Raises:
        InputError: the folder holds no such run.
    """
    if not folder.is_dir():
        raise InputError("no such folder; give the folder of a run, or --checkpoint FILE --data DATA", folder)
    found = [file for name in ("best", "last") if (file := folder / "checkpoints" / f"{name}.ckpt").exists()]
    if not found:
        raise InputError("holds no checkpoints/best.ckpt or last.ckpt; is it the folder of a run?", folder)
    file = folder / "config.yaml"
    config = read_yaml(file)
    if not isinstance(config, dict) or not {"data", "trainer"} <= config.keys():
        raise InputError("says nothing of data and trainer; expected what a run writes down", file)
    trainer = config["trainer"]
    return Subject(
        folder.resolve().name,
        found[0],
        build_data(config["data"], file),
        accelerator or trainer.get("accelerator") or "auto",
        precision or trainer.get("precision") or "32-true",
    )


def benchmark(
    runs: Sequence[Path],
    checkpoints: Sequence[Path],
    data: DetectionDataModule | None,
    batches: Sequence[int],
    seconds: float,
    accelerator: str | None,
    precision: str | None,
    say: Callable[[str], object],
) -> list[Benchmark]:
    """Measure runs and checkpoints one after the other. What is found of a run is kept in its folder as `cost.json`.

    Args:
        runs: folders of `zoo compare` or `zoo fit`.
        checkpoints: files, to be measured on `data`.
        data: as for `zoo fit`.
        batches: images at once.
        seconds: to time each of them.
        accelerator: None for each run's own; for a checkpoint "auto".
        precision: None for each run's own; for a checkpoint "32-true". What another one than a run's own costs is not
            kept in its folder: its AP is not of that.
        say: takes lines of progress.

    Raises:
        InputError: something given cannot be used; all is looked at before anything is measured.
    """
    if not runs and not checkpoints:
        raise InputError("nothing to measure; give folders of runs, or --checkpoint FILE --data DATA")
    if not batches or min(batches) < 1:
        raise InputError("want numbers of images from 1 on", place="--batch_sizes")
    if checkpoints and (data is None or not data.sources):
        raise InputError("--checkpoint needs the images to measure with; give --data DATA")
    subjects = [subject_of_run(run, accelerator, precision) for run in runs]
    for checkpoint in checkpoints:
        assert data is not None
        name = checkpoint.parent.parent.name if checkpoint.stem in ("best", "last") else checkpoint.stem
        subjects.append(
            Subject(name or checkpoint.stem, checkpoint, data, accelerator or "auto", precision or "32-true")
        )
    for subject in subjects:
        read_checkpoint(subject.checkpoint)
        make_inference_trainer(subject.accelerator, subject.precision)
        subject.data.table(final_split(subject.data))
    found: list[Benchmark] = []
    for number, subject in enumerate(subjects):
        title = f"[{number + 1}/{len(subjects)}] {subject.name}, {subject.precision}"
        say(title)
        found.append(measure(subject, batches, seconds, partial(_say_after, say, title)))
        if number < len(runs) and precision is None:
            write_benchmark(found[-1], runs[number] / FILE_NAME)
    return found


def _say_after(say: Callable[[str], object], title: str, line: str) -> None:
    say(f"{title}: {line}")


def measure(
    subject: Subject, batches: Sequence[int], seconds: float, say: Callable[[str], object] = print
) -> Benchmark:
    """Measure one checkpoint.

    Args:
        subject: the checkpoint.
        batches: images at once; those that memory does not suffice for are left out.
        seconds: to time each.
        say: takes a line about each.

    Raises:
        InputError: the checkpoint or the data cannot be used, or the accelerator or precision is not to be had.
    """
    detector = load(subject.checkpoint)
    trainer = make_inference_trainer(subject.accelerator, subject.precision)
    trainer.precision_plugin.convert_module(detector)
    split = final_split(subject.data)
    cost = measure_cost(detector, trainer, subject.data, split, Cost(), batches, seconds, LEAST_BATCHES, say)
    return Benchmark(
        name=subject.name,
        checkpoint=str(subject.checkpoint),
        images=f"{subject.data.name} {split}",
        precision=subject.precision,
        hardware=describe_hardware(),
        device=str(trainer.strategy.root_device),
        threads=torch.get_num_threads(),
        versions=list_versions(),
        cost=cost,
    )


# ---------------------------------------------------------------------------------------------------------- terminal

_NOTHING = "-"
_SHORT = {"proposals": "search", "post-processing": "post"}


def print_benchmarks(benchmarks: Sequence[Benchmark], console: Console) -> None:
    """Two tables: what each takes, and how long, the median over the 95th percentile.

    Names are broken between their words to make the tables as wide as the console. No word and no number is cut: on a
    console too narrow for the figures, lines run over.
    """
    for hardware, device, threads in dict.fromkeys((each.hardware, each.device, each.threads) for each in benchmarks):
        words = f"{hardware}; on {device}, {threads} thread{'s' if threads != 1 else ''}"
        console.print(words, highlight=False, soft_wrap=True)
    console.print(_resources_table(benchmarks, console.width), crop=False)
    console.print(RESOURCES_LEGEND, style="dim", highlight=False)
    counts = sorted({timing.batches for each in benchmarks for timing in each.cost.timings})
    if not counts:  # memory sufficed for none of the batches
        return
    of = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    console.print(f"\nms an image: the median, below it the 95th percentile, of {of} batches", highlight=False)
    console.print(_times_table(benchmarks, console.width), crop=False)
    console.print(TIMES_LEGEND, style="dim", highlight=False)


def _resources_table(benchmarks: Sequence[Benchmark], width: int) -> Table:
    columns: dict[str, list[Text]] = {
        "precision": [Text(each.precision) for each in benchmarks],
        "framed to": [Text((each.cost.flops_input or _NOTHING).rpartition(" ")[2]) for each in benchmarks],
        "params\nM": [_number(each.cost.parameters, 1e-6, 2) for each in benchmarks],
        "GFLOPs": [_number(each.cost.flops, 1e-9, 2) for each in benchmarks],
        "proposals": [_number(each.cost.proposals, 1, 0) for each in benchmarks],
        "memory\nMB": [_number(each.cost.peak_memory_mb, 1, 0) for each in benchmarks],
        "energy\nJ/image": [_number(each.cost.joules_per_image, 1, 2) for each in benchmarks],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell.plain != _NOTHING for cell in cells)}
    return _make_table([each.name for each in benchmarks], shown, width)


def _times_table(benchmarks: Sequence[Benchmark], width: int) -> Table:
    timings = [timing for each in benchmarks for timing in each.cost.timings]
    shown = [part for part in PARTS if part in {timing.part for timing in timings}]
    names: list[str] = []
    columns: dict[str, list[Text]] = {
        name: [] for name in ("batch", *(_SHORT.get(part, part) for part in shown), "img/s")
    }
    for each in benchmarks:
        for number, batch in enumerate(dict.fromkeys(timing.batch for timing in each.cost.timings)):
            parts: dict[str, Timing] = {timing.part: timing for timing in each.cost.timings if timing.batch == batch}
            rate = Text(f"{1000 / parts['total'].median:.1f}")
            names.append(each.name if number == 0 else "")
            row = [Text(str(batch)), *(_two_lines(parts.get(part)) for part in shown), rate]
            for cells, cell in zip(columns.values(), row, strict=True):
                cells.append(cell)
    return _make_table(names, columns, width)


def _make_table(names: Sequence[str], columns: Mapping[str, Sequence[Text]], width: int) -> Table:
    """A table whose first column, the names, takes no more than the others leave of the width, if that can be."""
    widths = {
        name: max(len(line) for text in (name, *(cell.plain for cell in cells)) for line in text.split("\n"))
        for name, cells in columns.items()
    }
    rest = sum(widths.values()) + len(widths)
    broken = [break_name(name, width - rest) for name in names]
    longest = max((len(line) for name in broken for line in name.split("\n")), default=0)
    # No edge and no padding: the box itself keeps columns a space apart. The width is said, or columns would be cut.
    table = Table(width=longest + rest, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    for row, name in enumerate(broken):
        table.add_row(name, *(cells[row] for cells in columns.values()))
    return table


def break_name(name: str, width: int) -> str:
    """A name on lines of at most so many characters, broken between words only; a longer word has a line of its own."""
    lines = [""]
    for word in re.findall(r"[^\W_]+[\W_]*|[\W_]+", name):  # "faster_", "rcnn_", "seed0"
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _two_lines(timing: Timing | None) -> Text:
    if timing is None:
        return Text(_NOTHING)
    digits = 2 if timing.p95 < 10 else 1
    return Text.assemble(f"{timing.median:.{digits}f}\n", (f"{timing.p95:.{digits}f}", "dim"))


def _number(value: float | None, factor: float, digits: int) -> Text:
    return Text(_NOTHING if value is None else f"{value * factor:.{digits}f}")
