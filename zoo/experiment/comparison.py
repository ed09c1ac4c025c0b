"""`zoo compare`: train and test several detectors on one data set under one budget, and write one report.

Each run has its own folder and its own process: a crash, or a process killed for lack of memory, ends one run and not
the others; GPU memory and random states start fresh; and where the Trainer starts one process per GPU, it repeats the
command line of the run and not that of the comparison. The folder of a run holds all that resuming needs, so the same
command resumes a comparison that was stopped.

    <out>/<config>_seed<k>/
        run.json            the requested configuration; a run with another one is refused in this folder
        config.yaml         the full configuration; `zoo fit --config` accepts it
        checkpoints/        best.ckpt by validation AP, last.ckpt to resume from
        metrics.csv         and TensorBoard's event files
        predictions.json    predictions on the test split, COCO results
        result.json         metrics, cost and learning curve; exists once the run has ended
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
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from zoo.callbacks.progress import describe_seconds
from zoo.data.module import ANNOTATED, DetectionDataModule
from zoo.data.summary import check_objects, describe_split
from zoo.detector import Detector
from zoo.errors import InputError, Interrupted, Preempted
from zoo.experiment.analysis import analyse_and_report
from zoo.experiment.budget import Budget, validation_interval
from zoo.experiment.gather import describe_data
from zoo.experiment.launch import CAN_FORK, launch_command, launch_fork, warm_up
from zoo.experiment.run import failed_run, final_split, read_result
from zoo.io.files import write_atomically
from zoo.io.ownership import own_folder
from zoo.profiling.hardware import describe_hardware, list_versions
from zoo.report.benchmark_results import FILE_NAME as BENCHMARK_FILE
from zoo.report.benchmark_results import with_benchmark
from zoo.report.results import Results, Run
from zoo.training.configuration import DEFAULT_SEED, first_difference, instantiate, make_parser, parse
from zoo.training.start import start_detector
from zoo.training.trainer import convert_trainer_errors, model_key


@dataclass(frozen=True)
class RunSpec:
    """A planned run: one model with one seed."""

    config_name: str  # name of the model file without .yaml
    seed: int
    folder: Path
    config: str  # yaml
    identity: dict[str, Any]  # content of run.json, which later plans for this folder are compared with
    processes: int = 1  # of its Trainer, on all nodes


class ComparisonInterrupted(KeyboardInterrupt):
    """The comparison was interrupted; the same command resumes it."""


def run_comparison(
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
        out: folder of the comparison; finished runs in it are kept, unfinished ones are resumed.
        budget: None for that of the trainer file.
        seeds: seeds of each model.
        names: names of the models, in the same order; their file names if not given.
        overrides: single values for all models, as on the command line: ["--data.batch_size", "4"].
        command: command line shown in the report.
        launch: executes the run of a folder and returns its exit code; starts a process if not given.

    Returns:
        The results of all runs, including failed ones.

    Raises:
        InputError: files, configurations or data cannot be used, or a folder of `out` holds a run of another
            configuration, or another process works there; raised before anything is trained.
        ComparisonInterrupted: Ctrl-C or SIGTERM; finished runs and checkpoints are kept.
    """
    if launch is None:
        warm_up()
    specs, module = plan_runs(models, data, trainer, out, budget, seeds, names, overrides)
    for split in ANNOTATED:
        if split in module.sources:
            print(describe_split(split, module.table(split)), flush=True)
    with own_folder(out):
        runs = _execute_runs(specs, launch)
        results = assemble_results(runs, specs, module, command or shlex.join(sys.argv), data, out)
        analyse_and_report(results, module, out, progress=partial(print, flush=True))
    return results


def _execute_runs(specs: Sequence[RunSpec], launch: Callable[[Path], int] | None) -> list[Run]:
    """Results of all runs; finished ones are kept, the others started or resumed one after the other."""
    runs: list[Run] = []
    start, trained = time.monotonic(), 0
    with _interruptible():
        for number, spec in enumerate(specs, start=1):
            title = f"[{number}/{len(specs)}] {spec.config_name} seed {spec.seed}"
            done = read_finished(spec.folder)
            if done is not None:
                print(f"{title}: already finished, kept", flush=True)
                runs.append(done)
                continue
            resumes = " (resumes)" if (spec.folder / "checkpoints" / "last.ckpt").exists() else ""
            print(f"{title}{resumes}", flush=True)
            run = start_run(spec, launch or (launch_fork if CAN_FORK and spec.processes == 1 else launch_command))
            runs.append(run)
            outcome = f"AP {run.metrics['AP']:.3f}" if run.status == "done" else f"failed: {run.error}"
            trained += 1
            print(f"{title}: {outcome}", flush=True)
            print(_describe_time(time.monotonic() - start, trained, len(specs) - number), flush=True)
    return runs


def _describe_time(elapsed: float, trained: int, left: int) -> str:
    """Time of all runs so far, and an estimate of the rest: runs have one budget, but differ in speed."""
    runs = f"{left} run{'s' if left != 1 else ''} left, about {describe_seconds(elapsed / trained * left)}"
    return f"all runs: {describe_seconds(elapsed)}, {runs}" if left else f"all runs: {describe_seconds(elapsed)}"


def plan_runs(
    models: Sequence[Path],
    data: Path,
    trainer: Path,
    out: Path,
    budget: Budget | None,
    seeds: Sequence[int],
    names: Sequence[str] | None,
    overrides: Sequence[str],
    count: Callable[[Namespace], int] | None = None,
) -> tuple[list[RunSpec], DetectionDataModule]:
    """Plan all runs: resolve their configurations and build each once, so that errors come before any training.

    Args:
        models: model files; this and the arguments up to `overrides` are those of `run_comparison`.
        data: data file.
        trainer: trainer file.
        out: folder of the comparison.
        budget: None for that of the trainer file.
        seeds: seeds of each model.
        names: names of the models, or None.
        overrides: single values for all models.
        count: number of processes that train a configuration; `count_processes` if not given.

    Returns:
        The runs, and the data.

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
                raise InputError(f"{value} is given twice; each run needs its own folder (see --names)", place=what)
    parser = make_parser()
    specs: list[RunSpec] = []
    module: DetectionDataModule | None = None
    for name, model in zip(names, models, strict=True):
        args = ["--model", str(model), "--data", str(data), "--trainer", str(trainer), *overrides]
        config = parse(parser, args)
        if config.get("model") is None:
            raise InputError("has no class_path; give the class of a detector", file=model)
        built = instantiate(parser, config)
        detector: Detector = built.model
        started = start_detector(detector, config)
        if started is not None:
            print(f"{name}: {started}", flush=True)
        module = module or built.data
        if detector.mask_side:
            module.want_masks(True)
            if "train" in module.sources and not module.table("train").has_masks:
                raise InputError(f"{name} is trained on masks, but the train split has none; leave it out", file=data)
        check_splits_and_checkpoints(module, built.trainer, data)
        processes = count(config)
        if budget is not None:
            per_step = module.batch_size * (config.trainer.accumulate_grad_batches or 1) * processes
            for key, value in budget.trainer_arguments(per_step).items():
                config[f"trainer.{key}"] = value
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1 and config.trainer.max_time is None:
            raise InputError("sets no budget; give --epochs, --images or --minutes, or max_epochs", file=trainer)
        validate_often(config.trainer, module, processes)
        annotations = {split: module.table(split).fingerprint() for split in ANNOTATED if split in module.sources}
        for seed in seeds:
            config["seed_everything"] = config["data.seed"] = seed
            text = parser.dump(config, skip_unset=False)
            described = yaml.safe_load(text)
            del described["logger"]  # a run may go on with others
            identity = {
                **described,
                "detector": model_key(detector),
                "display_name": detector.display_name or model_key(detector),
                "annotations": annotations,
                "budget": describe_budget(config, budget),
            }
            specs.append(RunSpec(name, seed, out / f"{name}_seed{seed}", text, identity, processes))
    assert module is not None
    for spec in specs:
        check_folder(spec)
    return specs, module


def check_splits_and_checkpoints(module: DetectionDataModule, trainer: Namespace, data: Path) -> None:
    """Check that the data has the splits to train and test on, and that the run writes its own checkpoints.

    Args:
        module: the data.
        trainer: arguments of the Trainer.
        data: data file, for the message.

    Raises:
        InputError: the data has no training split, or none to evaluate on, or no objects in one of these, or the
            Trainer's arguments replace the checkpoints of a comparison.
    """
    for needed in (("train",), ("test", "val")):
        if not set(needed) & set(module.sources):
            raise InputError(
                f"has no {' or '.join(needed)} images; name them in the data configuration, or divide the images: zoo "
                f"split {shlex.quote(str(data))} --out DIR",
                file=data,
            )
    for split in ("train", final_split(module)):
        check_objects(split, module.table(split))
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    if trainer.enable_checkpointing is False or any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        raise InputError(
            "a comparison writes the best and the last checkpoint itself; leave out enable_checkpointing and"
            " ModelCheckpoint",
            place="trainer",
        )


def validate_often(trainer: Namespace, module: DetectionDataModule, processes: int) -> None:
    """Let a training of few epochs validate within them, for a learning curve, unless its arguments say when."""
    given = (trainer.val_check_interval, trainer.limit_train_batches, trainer.max_time)
    if any(value is not None for value in given) or trainer.check_val_every_n_epoch != 1 or "val" not in module.sources:
        return
    epoch_batches = max(math.ceil(len(module.table("train")) / processes) // module.batch_size, 1)
    limits = [] if trainer.max_epochs in (None, -1) else [trainer.max_epochs * epoch_batches]
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps * (trainer.accumulate_grad_batches or 1))
    if limits:
        trainer.val_check_interval = validation_interval(min(limits), epoch_batches)


def count_processes(config: Namespace) -> int:
    """Number of processes on all nodes that a Trainer of this configuration uses."""
    plain = {key: config.trainer[key] for key in ("accelerator", "devices", "strategy", "num_nodes")}
    with convert_trainer_errors():
        trainer = Trainer(**plain, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return int(trainer.world_size)


def describe_budget(config: Namespace, budget: Budget | None) -> str:
    """The budget as text for the report; without a `Budget`, the limit that the configuration sets."""
    if budget is not None:
        return str(budget)
    trainer = config.trainer
    if trainer.max_time is not None:
        return f"{trainer.max_time} of training"
    return f"{trainer.max_epochs} epochs" if trainer.max_steps == -1 else f"{trainer.max_steps} steps"


def check_folder(spec: RunSpec) -> None:
    """Check that the run folder is new or holds a run of the same configuration.

    Raises:
        InputError: names the first value that differs.
    """
    file = spec.folder / "run.json"
    if not file.exists():
        return
    try:
        recorded = json.loads(file.read_text())
    except ValueError as error:
        raise InputError("is not valid JSON; delete this run's folder to train it again", file=file) from error
    difference = first_difference(recorded, spec.identity)
    if difference is not None:
        place, theirs, ours = difference
        raise InputError(
            f"this folder holds a run with {_shorten(theirs)}, now it is {_shorten(ours)};"
            " give another --out, or delete the folder to train it again",
            file=spec.folder,
            place=place,
        )


def start_run(spec: RunSpec, launch: Callable[[Path], int]) -> Run:
    """Start or resume a run in a process, wait for it, and return its result.

    Raises:
        KeyboardInterrupt: a signal stopped the run, which resumes with the same command.
    """
    with own_folder(spec.folder):  # a task of a job array may be working in it
        write_folder(spec)
        code = launch(spec.folder)
    if code in (Preempted.exit_code, Interrupted.exit_code):
        raise KeyboardInterrupt
    run = read_result(spec.folder)
    if run is None:
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        run = failed_run(spec.folder, f"its process ended with {what}{hint}")
    return run


def write_folder(spec: RunSpec) -> None:
    """Write `config.yaml` and `run.json`, which `zoo.experiment.run` reads; delete results of earlier weights."""
    for name in ("result.json", BENCHMARK_FILE):
        (spec.folder / name).unlink(missing_ok=True)
    write_atomically(spec.folder / "config.yaml", spec.config)
    write_atomically(spec.folder / "run.json", json.dumps(spec.identity, indent=2) + "\n")


@contextmanager
def _interruptible() -> Iterator[None]:
    """On Ctrl-C and SIGTERM, raise `ComparisonInterrupted` once the process of the current run has ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice: the wait for the run goes on
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # other threads may not set signal handlers
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise ComparisonInterrupted("stopped; run the same command again to resume") from interrupt
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def read_finished(folder: Path) -> Run | None:
    """The result of a run that has finished successfully, otherwise None: failed runs are repeated."""
    run = read_result(folder)
    return run if run is not None and run.status == "done" else None


def assemble_results(
    runs: list[Run], specs: Sequence[RunSpec], module: DetectionDataModule, command: str, data: Path, out: Path
) -> Results:
    """The results of a comparison before analysis: runs, data, budget, hardware and versions."""
    identity = specs[0].identity
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
        configs={spec.config_name: spec.config for spec in specs},
        data_config=yaml.safe_dump(identity["data"], sort_keys=False),
    )


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
