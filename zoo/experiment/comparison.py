"""Many detectors, one data set, one budget, one report.

Each run has a folder of its own and trains in a process of its own: a crash, or a kernel that kills for memory, takes
one run with it and not the others; GPU memory and random states start afresh; and where the Trainer starts one process
a GPU, those start from the run's own command line. What a run needs to go on is in its folder, so a comparison that
was stopped is taken up by the same command.

    <out>/<config>_seed<k>/
        run.json            what was asked for: the folder answers for this and nothing else
        config.yaml         the whole configuration; `zoo fit --config` takes it
        checkpoints/        best.ckpt by validation AP, last.ckpt to go on from
        metrics.csv         and TensorBoard's events
        predictions.json    of the test split, COCO results
        result.json         numbers, cost and learning curve; its presence says that the run is over
    <out>/results.json, examples.json, report.md, report.html
"""

import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.experiment.analysis import SPLITS, describe_data, finish
from zoo.experiment.launch import CAN_FORK, launch_command, launch_fork, warm_up
from zoo.experiment.run import failed_run, final_split, read_result
from zoo.io.files import write_atomically
from zoo.profiling.hardware import describe_hardware, list_versions
from zoo.report.benchmark_results import FILE_NAME as BENCHMARK_FILE
from zoo.report.benchmark_results import with_benchmark
from zoo.report.entries import ranked, run_labels
from zoo.report.results import Results, Run
from zoo.report.tables import COLUMNS, main_table
from zoo.training.configuration import DEFAULT_SEED, first_difference, instantiate, make_parser, parse
from zoo.training.trainer import explained, model_key


@dataclass(frozen=True)
class Budget:
    """How long each model may train; one of the three is set. Learning rate schedules stretch to it.

    Args:
        epochs: passes over the training images.
        images: training images, counted again each time they are seen; rounded up to whole batches.
        minutes: of the clock, validations during the training included.
    """

    epochs: int | None = None
    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.epochs, self.images, self.minutes) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InputError("a budget is one of --epochs, --images and --minutes, above 0")

    def trainer_arguments(self, batch_size: int) -> dict[str, Any]:
        """The budget as Trainer arguments, for optimizer steps that see this many images."""
        if self.epochs is not None:
            return {"max_epochs": self.epochs, "max_steps": -1, "max_time": None}
        if self.images is not None:
            return {"max_epochs": -1, "max_steps": math.ceil(self.images / batch_size), "max_time": None}
        assert self.minutes is not None
        seconds = round(self.minutes * 60)
        return {"max_epochs": -1, "max_steps": -1, "max_time": {"seconds": seconds}}

    def __str__(self) -> str:
        name, value = next((name, value) for name, value in asdict(self).items() if value is not None)
        return f"{value:g} {name if value != 1 else name.removesuffix('s')}"


# What `zoo compare` without arguments does: about 10 minutes for all seven detectors on two CPU cores.
DEFAULT_BUDGET = Budget(images=3500)


@dataclass(frozen=True)
class Job:
    """One run to do."""

    config_name: str  # name of the model file without .yaml
    seed: int
    folder: Path
    config: str  # yaml
    identity: dict[str, Any]  # what the folder answers for
    processes: int = 1  # of its Trainer, on all machines


class ComparisonInterrupted(KeyboardInterrupt):
    """The comparison was interrupted; the same command goes on with it."""


def compare(
    models: Sequence[Path],
    data: Path,
    trainer: Path,
    out: Path,
    budget: Budget | None = None,
    seeds: Sequence[int] = (DEFAULT_SEED,),
    names: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    command: str | None = None,
    launch: Callable[[Path], int] | None = None,
) -> Results:
    """Train and test each model with each seed, and write the report.

    Args:
        models: model files.
        data: data file.
        trainer: trainer file.
        out: folder of the comparison; runs that are finished in it are kept, unfinished ones go on.
        budget: None for what the trainer file says.
        seeds: one run a seed and model.
        names: of the models, in their order; the names of their files if not given.
        overrides: single values for all models, as on the command line: ["--data.batch_size", "4"].
        command: for the report.
        launch: does the run of a folder and gives back its exit code; a process of its own if not given.

    Returns:
        All runs, failed ones too.

    Raises:
        InputError: before anything is trained: files, configurations or data cannot be used, or a folder of `out`
            holds a run of another configuration.
        ComparisonInterrupted: by the keyboard or a signal; what is done is kept.
    """
    if launch is None:
        warm_up()
    jobs, module = prepare(models, data, trainer, out, budget, seeds, names, overrides)
    runs: list[Run] = []
    start = time.monotonic()
    with _interruptible():
        for number, job in enumerate(jobs, start=1):
            title = f"[{number}/{len(jobs)}] {job.config_name} seed {job.seed}"
            done = read_finished(job.folder)
            if done is not None:
                print(f"{title}: done before, kept", flush=True)
                runs.append(done)
                continue
            going_on = " (goes on)" if (job.folder / "checkpoints" / "last.ckpt").exists() else ""
            print(f"{title}{going_on}", flush=True)
            run = do(job, launch or (launch_fork if CAN_FORK and job.processes == 1 else launch_command))
            runs.append(run)
            minutes = (time.monotonic() - start) / 60
            outcome = f"AP {run.metrics['AP']:.3f}" if run.status == "done" else f"failed: {run.error}"
            print(f"{title}: {outcome}  ({minutes:.1f} min since the start)", flush=True)
    results = collect(runs, jobs, module, command or shlex.join(sys.argv), data, out)
    finish(results, module, out, progress=partial(print, flush=True))
    return results


def prepare(
    models: Sequence[Path],
    data: Path,
    trainer: Path,
    out: Path,
    budget: Budget | None,
    seeds: Sequence[int],
    names: Sequence[str] | None,
    overrides: Sequence[str],
    count: Callable[[Namespace], int] | None = None,
) -> tuple[list[Job], DetectionDataModule]:
    """Resolve all configurations, and build everything once: what cannot work fails before anything is trained.

    Args:
        models: as all up to `overrides`, see `compare`.
        data: a file.
        trainer: a file.
        out: folder of the comparison.
        budget: or None.
        seeds: of each model.
        names: of the models, or None.
        overrides: single values.
        count: number of processes that train a configuration; `count_processes` if not given.

    Returns:
        The runs, whose folders hold nothing else, and the data.

    Raises:
        InputError: files, configurations or data cannot be used, or a folder of `out` holds a run of another
            configuration.
    """
    count = count or count_processes
    names = [model.stem for model in models] if names is None else list(names)
    if not models:
        raise InputError("no model to compare; give --models FILE...")
    if len(names) != len(models):
        raise InputError(f"{len(names)} names for {len(models)} models", place="--names")
    for values, what in ((names, "--names"), ([str(seed) for seed in seeds], "--seeds")):
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{value} is there twice; each run needs its own folder (see --names)", place=what)
    parser = make_parser()
    jobs: list[Job] = []
    module: DetectionDataModule | None = None
    for name, model in zip(names, models, strict=True):
        args = ["--model", str(model), "--data", str(data), "--trainer", str(trainer), *overrides]
        config = parse(parser, args)
        if config.get("model") is None:
            raise InputError("holds no class_path of a detector", file=model)
        built = instantiate(parser, config)
        detector: Detector = built.model
        module = module or built.data
        check_measurable(module, built.trainer)
        processes = count(config)
        if budget is not None:
            per_step = module.batch_size * (config.trainer.accumulate_grad_batches or 1) * processes
            for key, value in budget.trainer_arguments(per_step).items():
                config[f"trainer.{key}"] = value
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1 and config.trainer.max_time is None:
            raise InputError("no budget: give --epochs, --images or --minutes, or max_epochs", file=trainer)
        annotations = {split: module.table(split).fingerprint() for split in SPLITS if split in module.sources}
        for seed in seeds:
            config["seed_everything"] = config["data.seed"] = seed
            text = parser.dump(config, skip_unset=False)
            identity = {
                **yaml.safe_load(text),
                "detector": model_key(detector),
                "annotations": annotations,
                "budget": describe_budget(config, budget),
            }
            jobs.append(Job(name, seed, out / f"{name}_seed{seed}", text, identity, processes))
    assert module is not None
    for job in jobs:
        check_folder(job)
    return jobs, module


def check_measurable(module: DetectionDataModule, trainer: Namespace) -> None:
    """What a run of a comparison ends with: its best or last checkpoint, tested.

    Raises:
        InputError: there is nothing to train or to measure on, or the Trainer's arguments keep no such checkpoint.
    """
    module.table("train")
    final_split(module)
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    if trainer.enable_checkpointing is False or any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        raise InputError(
            "a comparison keeps the best and the last checkpoint itself, and tests the best; leave out"
            " enable_checkpointing and ModelCheckpoint",
            place="trainer",
        )


def count_processes(config: Namespace) -> int:
    """Number of processes that a Trainer of this configuration starts, on all nodes."""
    plain = {key: config.trainer[key] for key in ("accelerator", "devices", "strategy", "num_nodes")}
    with explained():
        trainer = Trainer(**plain, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return int(trainer.world_size)


def describe_budget(config: Namespace, budget: Budget | None) -> str:
    """The budget in words; where it was not given apart, what the trainer file says."""
    if budget is not None:
        return str(budget)
    trainer = config.trainer
    if trainer.max_time is not None:
        return f"{trainer.max_time} of training"
    return f"{trainer.max_epochs} epochs" if trainer.max_steps == -1 else f"{trainer.max_steps} steps"


def check_folder(job: Job) -> None:
    """Refuse a folder that holds a run of another configuration.

    Raises:
        InputError: names the first value that differs, and says what to do.
    """
    file = job.folder / "run.json"
    if not file.exists():
        return
    try:
        recorded = json.loads(file.read_text())
    except ValueError as error:
        raise InputError("is damaged; delete this run's folder to train it again", file=file) from error
    difference = first_difference(recorded, job.identity)
    if difference is not None:
        place, theirs, ours = difference
        raise InputError(
            f"this folder holds a run with {_short(theirs)}, now it is {_short(ours)};"
            " give another --out, or delete the folder to train it again",
            file=job.folder,
            place=place,
        )


def do(job: Job, launch: Callable[[Path], int]) -> Run:
    """Start a run, or go on with it, and give back what came of it."""
    write_folder(job)
    code = launch(job.folder)
    run = read_result(job.folder)
    if run is None:
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; was there memory enough?" if code == -signal.SIGKILL else ""
        run = failed_run(job.folder, f"its process ended with {what}{hint}")
    return run


def write_folder(job: Job) -> None:
    """Write down what a run has to do, for `zoo.experiment.run`."""
    for former in ("result.json", BENCHMARK_FILE):  # of the weights that were there before
        (job.folder / former).unlink(missing_ok=True)
    write_atomically(job.folder / "config.yaml", job.config)
    write_atomically(job.folder / "run.json", json.dumps(job.identity, indent=2) + "\n")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the comparison in order: `ComparisonInterrupted` is raised once the child has ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise ComparisonInterrupted("stopped; the same command goes on from here") from interrupt
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def read_finished(folder: Path) -> Run | None:
    """The result of a run that was done with success; failed ones are tried again."""
    run = read_result(folder)
    return run if run is not None and run.status == "done" else None


def collect(
    runs: list[Run], jobs: Sequence[Job], module: DetectionDataModule, command: str, data: Path, out: Path
) -> Results:
    """All that is known of a comparison before it is analysed."""
    identity = jobs[0].identity
    return Results(
        runs=[with_benchmark(run, out / run.folder) for run in runs],
        data=describe_data(module, data.stem),
        classes=list(module.class_names),
        budget=identity["budget"],
        command=command,
        hardware="; ".join(dict.fromkeys(run.hardware for run in runs if run.hardware)) or describe_hardware(),
        versions=list_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprints=dict(identity["annotations"]),
        configs={job.config_name: job.config for job in jobs},
        data_config=yaml.safe_dump(identity["data"], sort_keys=False),
    )


def print_table(results: Results) -> None:
    """The report's main table in the terminal, as two that fit into it: how good, and at what cost."""
    console = Console()
    runs = ranked(results.runs)
    names = run_labels(results.runs)
    cells = main_table(runs)
    is_cost = [column.group == "Cost" for column in COLUMNS]
    for wanted, title in ((False, f"{results.data['name']}, {results.budget}"), (True, "cost")):
        chosen = [index for index, cost in enumerate(is_cost) if cost is wanted]
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("")
        for index in chosen:
            table.add_column(f"{COLUMNS[index].name}\n{COLUMNS[index].unit}".rstrip(), justify="right", no_wrap=True)
        for run, row in zip(runs, cells, strict=True):
            texts = (Text(row[index].text, "bold" if row[index].best else "") for index in chosen)
            table.add_row(names[run.folder], *texts)
        console.print(table)
    for run in results.runs:
        if run.status == "failed":
            console.print(f"{names[run.folder]} failed: {run.error}", markup=False, highlight=False, soft_wrap=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
