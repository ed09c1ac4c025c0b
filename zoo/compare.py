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
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.callbacks import LearningCurve, MeanAveragePrecision
from zoo.cost import count_flops, count_parameters, measure_latency
from zoo.data.module import DetectionDataModule, Split
from zoo.detector import Detector
from zoo.errors import InputError
from zoo.evaluation.predictions import Predictions, read_coco_results, write_coco_results
from zoo.hardware import describe_hardware, list_versions
from zoo.report.examples import Example, best_f1_score, choose_examples, make_example
from zoo.report.files import write_atomically
from zoo.report.results import Cost, CurvePoint, Results, Run
from zoo.report.tables import COLUMNS, main_table, ranked, run_labels
from zoo.report.write import write_report
from zoo.run import (
    DEFAULT_SEED,
    find_input_error,
    instantiate,
    make_parser,
    make_trainer,
    model_key,
    one_callback,
    one_line,
    parse,
    quieten,
)

NUM_EXAMPLES = 8
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LATENCY_IMAGES = 16
LATENCY_SECONDS = 3.0


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


# What `zoo compare` without arguments does: under 4 minutes for all detectors on two CPU cores.
DEFAULT_BUDGET = Budget(epochs=12)


@dataclass(frozen=True)
class Job:
    """One run to do."""

    config_name: str  # name of the model file without .yaml
    seed: int
    folder: Path
    config: str  # yaml
    identity: dict[str, Any]  # what the folder answers for


class Stopped(KeyboardInterrupt):
    """The comparison was interrupted; the same command goes on with it."""


# ------------------------------------------------------------------------------------------------------------ parent


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
        Stopped: by the keyboard or a signal; what is done is kept.
    """
    jobs, module = prepare(models, data, trainer, out, budget, seeds, names, overrides)
    for job in jobs:
        check_folder(job)
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
            run = do(job, launch or launch_process)
            runs.append(run)
            minutes = (time.monotonic() - start) / 60
            outcome = f"AP {run.metrics['AP']:.3f}" if run.status == "done" else f"failed: {run.error}"
            print(f"{title}: {outcome}  ({minutes:.1f} min since the start)", flush=True)
    results = collect(runs, jobs, module, command or shlex.join(sys.argv), data)
    write_report(results, out, pick_examples(runs, module, out))
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
) -> tuple[list[Job], DetectionDataModule]:
    """Resolve all configurations, and build everything once: what cannot work fails before anything is trained."""
    names = [model.stem for model in models] if names is None else list(names)
    if not models:
        raise InputError("no model to compare; give --models FILE...")
    if len(names) != len(models):
        raise InputError(f"{len(names)} names for {len(models)} models", place="--names")
    for values, what in ((names, "--names"), (list(seeds), "--seeds")):
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
        if budget is not None:
            per_step = module.batch_size * (config.trainer.accumulate_grad_batches or 1) * count_processes(config)
            for key, value in budget.trainer_arguments(per_step).items():
                config[f"trainer.{key}"] = value
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1 and config.trainer.max_time is None:
            raise InputError("no budget: give --epochs, --images or --minutes, or max_epochs", file=trainer)
        annotations = {split: module.table(split).fingerprint() for split in SPLITS if split in module.sources}
        for seed in seeds:
            config["seed_everything"] = config["data.seed"] = seed
            text = parser.dump(config, skip_none=False)
            identity = {
                **yaml.safe_load(text),
                "detector": model_key(detector),
                "annotations": annotations,
                "budget": describe_budget(config, budget),
            }
            jobs.append(Job(name, seed, out / f"{name}_seed{seed}", text, identity))
    assert module is not None
    return jobs, module


def count_processes(config: Namespace) -> int:
    """Number of processes that a Trainer of this configuration starts, on all nodes."""
    plain = {key: config.trainer[key] for key in ("accelerator", "devices", "strategy", "num_nodes")}
    return int(Trainer(**plain, logger=False, enable_checkpointing=False, enable_progress_bar=False).world_size)


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


def first_difference(theirs: Any, ours: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """(place, theirs, ours) of the first value in which two configurations differ, None where they are the same."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            found = first_difference(theirs.get(key), ours.get(key), f"{place}.{key}" if place else str(key))
            if found is not None:
                return found
        return None
    return None if theirs == ours else (place, theirs, ours)


def do(job: Job, launch: Callable[[Path], int]) -> Run:
    """Start a run, or go on with it, and give back what came of it."""
    (job.folder / "result.json").unlink(missing_ok=True)
    write_atomically(job.folder / "config.yaml", job.config)
    write_atomically(job.folder / "run.json", json.dumps(job.identity, indent=2) + "\n")
    code = launch(job.folder)
    run = read_result(job.folder)
    if run is None:
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = "; was there memory enough?" if code == -signal.SIGKILL else ""
        run = failed_run(job.folder, f"its process ended with {what}{hint}")
    return run


def launch_process(folder: Path) -> int:
    """Do a run in a process of its own, which shares our terminal. An interrupt is handed on and waited for."""
    process = subprocess.Popen([sys.executable, "-m", "zoo.compare", str(folder)])
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)  # to finish writing
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the comparison in order: `Stopped` is raised once the child has ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Stopped("stopped; the same command goes on from here") from interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def read_result(folder: Path) -> Run | None:
    """What a run left behind; None where it is not over, or its file is damaged."""
    try:
        return msgspec.json.decode((folder / "result.json").read_bytes(), type=Run)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_finished(folder: Path) -> Run | None:
    """The result of a run that was done with success; failed ones are tried again."""
    run = read_result(folder)
    return run if run is not None and run.status == "done" else None


def collect(runs: list[Run], jobs: Sequence[Job], module: DetectionDataModule, command: str, data: Path) -> Results:
    """All that is known of a comparison."""
    described: dict[str, str | int] = {"name": data.stem, "classes": module.num_classes}
    for split in SPLITS:
        if split in module.sources:
            described[split] = len(module.table(split))
    return Results(
        runs=runs,
        data=described,
        classes=list(module.class_names),
        budget=jobs[0].identity["budget"],
        command=command,
        hardware=describe_hardware(),
        versions=list_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprints=dict(jobs[0].identity["annotations"]),
        configs={job.config_name: job.config for job in jobs},
    )


def pick_examples(runs: Sequence[Run], module: DetectionDataModule, out: Path) -> list[Example]:
    """Test images, spread from the emptiest to the most crowded, with what each run said of them."""
    split = final_split(module)
    table = module.table(split)
    said = {
        run.folder: read_coco_results(out / run.folder / "predictions.json", table.image_ids, table.class_ids)
        for run in runs
        if run.status == "done"
    }
    examples = []
    counts = [table.rows(index).stop - table.rows(index).start for index in range(len(table))]
    for index in choose_examples(counts, NUM_EXAMPLES, seed=DEFAULT_SEED):
        image_id = int(table.image_ids[index])
        image = module.sources[split].load_image(table, index)
        predictions = {folder: predictions.of_image(image_id) for folder, predictions in said.items()}
        examples.append(make_example(table.file_name(index), image, table.target(index), predictions))
    return examples


def print_table(results: Results) -> None:
    """The report's main table in the terminal."""
    console = Console()
    table = Table(title=f"{results.data['name']}, {results.budget}", title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(f"{column.name}\n{column.unit}".rstrip(), justify="right")
    names = run_labels(results.runs)
    runs = ranked(results.runs)
    for run, cells in zip(runs, main_table(runs), strict=True):
        table.add_row(names[run.folder], *(Text(cell.text, "bold" if cell.best else "") for cell in cells))
    console.print(table)
    for run in results.runs:
        if run.status == "failed":
            console.print(f"{names[run.folder]} failed: {run.error}", markup=False, highlight=False)


# ------------------------------------------------------------------------------------------------------------- child


def main(folder: Path) -> int:
    """Do the run of a folder; `result.json` says what came of it, `error.log` what exactly went wrong.

    Returns:
        Exit code: 0 done, 1 failed.
    """
    quieten()
    try:
        run = execute(folder)
    except Exception as error:
        traceback.print_exc(file=(folder / "error.log").open("w"))
        known = find_input_error(error)
        text = str(known) if known is not None else f"{type(error).__name__}: {one_line(str(error))} (see error.log)"
        run = failed_run(folder, text)
    if not _is_first_process():
        return 0 if run.status == "done" else 1
    write_atomically(folder / "result.json", msgspec.json.format(msgspec.json.encode(run), indent=2))
    return 0 if run.status == "done" else 1


def execute(folder: Path) -> Run:
    """Train as config.yaml says, from last.ckpt where there is one, and test the best checkpoint."""
    parser = make_parser()
    config = parse(parser, ["--config", str(folder / "config.yaml")])
    seed_everything(config.seed_everything, workers=True, verbose=False)
    built = instantiate(parser, config)
    detector: Detector = built.model
    module: DetectionDataModule = built.data
    _keep_metrics(folder)
    trainer = make_trainer(built.trainer.as_dict(), module, folder, folder.name)

    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(detector, datamodule=module, ckpt_path=last if last.exists() else None)
    # What training cost is read now: loading a checkpoint takes the callbacks back to where they were then.
    curve = one_callback(trainer, LearningCurve)
    points = [CurvePoint(**point) for point in curve.points]
    cost = Cost(train_images_per_s=curve.train_images_per_s, train_minutes=curve.train_minutes)
    best = choose_checkpoint(trainer, detector, module, folder, points, curve.images_seen)

    split = final_split(module)
    final = trainer.test if split == "test" else trainer.validate
    final(detector, datamodule=module, ckpt_path=best, verbose=False)
    ruler = one_callback(trainer, MeanAveragePrecision)
    scores, predictions = ruler.scores(split), ruler.predictions(split)
    run = Run(
        model_key(detector),
        folder.name.removesuffix(f"_seed{config.seed_everything}"),
        config.seed_everything,
        folder.name,
        "done",
        curve=points,
    )
    if trainer.is_global_zero and scores is not None and predictions is not None:
        write_coco_results(predictions, folder / "predictions.json", module.class_ids)
        run.metrics, run.per_class = scores.metrics, scores.per_class
        run.shown_score = best_score_to_show(predictions, module, split)
        run.cost = measure_cost(detector, trainer, module, split, cost)
    return run


def choose_checkpoint(
    trainer: Trainer,
    detector: Detector,
    module: DetectionDataModule,
    folder: Path,
    points: list[CurvePoint],
    images_seen: int,
) -> Path:
    """The checkpoint to test: the best on the validation split, or the last where there is none.

    A budget can end between two validations; then the final weights are validated too, added to the learning curve,
    and are the best if they are.
    """
    best, last = folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"
    if "val" not in module.sources:
        return last
    if points and points[-1].images_seen == images_seen:
        return best
    epoch, minutes = trainer.current_epoch + 1, one_callback(trainer, LearningCurve).train_minutes
    before = max((point.AP for point in points), default=-math.inf)
    trainer.validate(detector, datamodule=module, verbose=False)
    found = {key: float(trainer.callback_metrics[f"val/{key}"]) for key in ("AP", "AP50")}
    points.append(CurvePoint(epoch, images_seen, minutes, found["AP"], found["AP50"], math.nan))
    if not best.exists() or found["AP"] > before:
        trainer.save_checkpoint(best)
    return best


def measure_cost(
    detector: Detector, trainer: Trainer, module: DetectionDataModule, split: Split, training: Cost
) -> Cost:
    """What training cost, completed by what one image costs on the Trainer's device and in its precision."""
    device = trainer.strategy.root_device
    detector.to(device)
    table = module.table(split)
    indices = range(min(LATENCY_IMAGES, len(table)))
    images = [module.sources[split].load_image(table, index).to(device) for index in indices]
    flops, flops_input = count_flops(detector, images[0])
    latency = measure_latency(
        detector, images, context=trainer.precision_plugin.forward_context, seconds=LATENCY_SECONDS
    )
    parameters = count_parameters(detector)
    return replace(training, parameters=parameters, flops=flops, flops_input=flops_input, ms_per_image=latency)


def best_score_to_show(predictions: Predictions, module: DetectionDataModule, split: Split) -> float:
    """The score from which on detections are drawn."""
    table = module.table(split)
    said = (predictions.of_image(int(image_id)) for image_id in table.image_ids)
    return best_f1_score(said, (table.target(index) for index in range(len(table))))


def final_split(module: DetectionDataModule) -> Split:
    """The split that the numbers are for: test, or val where there is no test."""
    if "test" in module.sources:
        return "test"
    if "val" in module.sources:
        return "val"
    raise InputError("the data has neither a test nor a val split to measure on")


def failed_run(folder: Path, error: str) -> Run:
    """A run that came to nothing, named from its folder."""
    identity = json.loads((folder / "run.json").read_text())
    seed = identity["seed_everything"]
    return Run(identity["detector"], folder.name.removesuffix(f"_seed{seed}"), seed, folder.name, "failed", error=error)


def _keep_metrics(folder: Path) -> None:
    """Lightning's CSV logger starts its file anew; what an earlier part of the run logged is kept beside it."""
    metrics = folder / "metrics.csv"
    if metrics.exists():
        part = len(list(folder.glob("metrics_part*.csv"))) + 1
        metrics.rename(folder / f"metrics_part{part}.csv")


def _is_first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
