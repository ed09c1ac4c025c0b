"""One run of a comparison: train, test and measure the detector that a run folder configures.

`zoo.experiment.comparison` writes `run.json` and `config.yaml` into the folder and starts
`python -m zoo.experiment.run <folder>`, which writes `result.json`, for a failed run too. Where a run has several
processes, all of them execute this module (srun and torchrun start them so, and Lightning starts the others by the
command of the first one), and the first one writes the files.
"""

import json
import math
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from pytorch_lightning import Trainer, seed_everything

from zoo.callbacks import LearningCurve, MeanAveragePrecision
from zoo.data.module import DetectionDataModule
from zoo.data.source import DataWarning
from zoo.detector import Detector
from zoo.errors import InputError, Preempted
from zoo.evaluation.identity import write_predictions
from zoo.experiment.ceilings import compute_ceilings
from zoo.io.files import atomic_path
from zoo.io.ownership import own_folder
from zoo.io.parent import end_with_starter, start_others_by_command
from zoo.nn.pretrained import WeightsWarning
from zoo.profiling.energy import find_energy_meter
from zoo.profiling.flops import count_flops, count_parameters, measure_memory
from zoo.profiling.hardware import describe_hardware
from zoo.profiling.latency import LatencySettings, measure_latencies
from zoo.report.results import Cost, CurvePoint, Run, read_run, write_run
from zoo.training.configuration import find_input_error, instantiate, make_parser, parse
from zoo.training.loggers import finish_loggers
from zoo.training.parser_errors import one_line
from zoo.training.start import resume_pixels, start_detector
from zoo.training.trainer import (
    find_callback,
    make_trainer,
    model_key,
    process_rank,
    silence_lightning,
    terminate_children_on_error,
)

FinalSplit = Literal["val", "test"]  # the split that the metrics of a comparison are computed on

LATENCY_IMAGES = 16
LATENCY_SECONDS = 1.5


def main(folder: Path) -> int:
    """Execute the run of a folder: write `result.json`, and on failure the traceback to `error.log`.

    Processes other than the first write an `error_<rank>.log` each, since an error may occur in one of them only.

    Returns:
        Exit code: 0 done, 1 failed, 143 or 130 stopped by a signal; these write no result, and the same command resumes
        the run.
    """
    code = _train_and_write(folder)
    finish_loggers(code)
    return code


def _train_and_write(folder: Path) -> int:
    silence_lightning()
    for category in (DataWarning, WeightsWarning):
        warnings.filterwarnings("ignore", category=category)  # printed when the comparison was planned
    try:
        run = train_and_test(folder)
    except Preempted as stop:
        if process_rank() == 0:
            print(f"{folder.name}: {stop}", flush=True)
        return stop.exit_code
    except Exception as error:
        name = "error.log" if process_rank() == 0 else f"error_{process_rank()}.log"
        with (folder / name).open("w") as log:
            traceback.print_exc(file=log)
        known = find_input_error(error)
        text = str(known) if known is not None else f"{type(error).__name__}: {one_line(str(error))} (see {name})"
        run = failed_run(folder, text)
    file = folder / "result.json"
    # The process that fails first knows the cause of a failure: the others fail because it is gone.
    if process_rank() == 0 if run.status == "done" else not file.exists():
        write_run(run, file)
    return 0 if run.status == "done" else 1


def train_and_test(folder: Path) -> Run:
    """Train as configured by config.yaml, resuming from last.ckpt where it exists, and test the best checkpoint."""
    parser = make_parser()
    config = parse(parser, ["--config", str(folder / "config.yaml")])
    seed_everything(config.seed_everything, workers=True, verbose=False)
    built = instantiate(parser, config)
    detector: Detector = built.model
    module: DetectionDataModule = built.data
    # Under SLURM, Lightning resumes from hpc_ckpt_* files in the root folder without being asked. In a root folder
    # that all runs share they could belong to another run; in the run folder they are superseded by last.ckpt.
    for checkpoint in folder.glob("hpc_ckpt_*"):
        checkpoint.unlink(missing_ok=True)
    arguments = built.trainer.as_dict() | {"default_root_dir": str(folder)}
    trainer = make_trainer(arguments, module, folder, folder.name, built.logger)

    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        resume_pixels(detector, config, last)
    else:
        start_detector(detector, config)  # what it takes was printed when the comparison was planned
    with terminate_children_on_error(trainer):
        trainer.fit(detector, datamodule=module, ckpt_path=last if last.exists() else None, weights_only=True)
    # Training cost is read before testing: loading a checkpoint resets the callbacks to the state at its time.
    curve = find_callback(trainer, LearningCurve)
    points = msgspec.convert(curve.points, list[CurvePoint])
    cost = Cost(train_images_per_s=curve.train_images_per_s, train_minutes=curve.train_minutes)
    split = final_split(module)
    final = trainer.test if split == "test" else trainer.validate
    with terminate_children_on_error(trainer):
        best = choose_checkpoint(trainer, detector, module, folder, points, curve.images_seen)
        final(detector, datamodule=module, ckpt_path=best, verbose=False, weights_only=True)
    mean_ap = find_callback(trainer, MeanAveragePrecision)
    scores, predictions = mean_ap.scores(split), mean_ap.predictions(split)
    run = Run(
        model_key(detector),
        folder.name.removesuffix(f"_seed{config.seed_everything}"),
        config.seed_everything,
        folder.name,
        "done",
        name=detector.display_name,
        curve=points,
        hardware=_hardware(trainer),
    )
    if trainer.is_global_zero and scores is not None and predictions is not None:
        write_predictions(predictions, folder / "predictions.json", module.table(split))
        run.metrics, run.per_class = scores.metrics, scores.per_class
        run.analysis.ceilings = compute_ceilings(detector, module.table(split), module.sources[split])
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
    """The checkpoint to test: the best on the validation split, or the last where there is no such split.

    A budget can end between two validations; then the final weights are validated and added to the learning curve, and
    become the best checkpoint if their AP is the highest.
    """
    best, last = folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt"
    if "val" not in module.sources:
        return last
    if points and points[-1].images_seen == images_seen:
        return best
    curve = find_callback(trainer, LearningCurve)
    epoch, minutes, loss = trainer.current_epoch + 1, curve.train_minutes, curve.mean_loss
    before = max((point.AP for point in points), default=-math.inf)
    # Validate the file and not the weights in memory: a run resumed at this point has only the file.
    trainer.validate(detector, datamodule=module, ckpt_path=last, verbose=False, weights_only=True)
    found = {key: float(trainer.callback_metrics[f"val/{key}"]) for key in ("AP", "AP50")}
    points.append(CurvePoint(epoch, images_seen, minutes, found["AP"], found["AP50"], loss))
    if trainer.is_global_zero and (not best.exists() or found["AP"] > before):
        with atomic_path(best) as temporary:
            shutil.copyfile(last, temporary)
    trainer.strategy.barrier()  # no process may read the checkpoint before it is written
    return best


def measure_cost(
    detector: Detector,
    trainer: Trainer,
    module: DetectionDataModule,
    split: FinalSplit,
    training: Cost,
    batches: Sequence[int] = (1,),
    seconds: float = LATENCY_SECONDS,
    min_batches: int = 1,
    log: Callable[[str], object] = lambda line: None,
) -> Cost:
    """The given training cost, completed by the inference cost on the Trainer's device and in its precision.

    Region proposals are computed for each image and not read from the cache, so the latency includes them.

    Args:
        detector: the detector with its weights.
        trainer: provides device and precision.
        module: has the images.
        split: the split whose first images are used.
        training: the cost of training.
        batches: batch sizes to time; those that do not fit in memory are left out.
        seconds: how long to time each batch size.
        min_batches: batches to time at each batch size regardless of `seconds`.
        log: called with a line about each batch size.

    Raises:
        InputError: the split has no images.
    """
    device = trainer.strategy.root_device
    detector.to(device)
    table, source = module.table(split), module.sources[split]
    if not len(table):
        raise InputError(f"the {split} split has no images to measure with")
    context = trainer.precision_plugin.forward_context
    indices = range(min(max(LATENCY_IMAGES, *batches), len(table)))
    images = [source.load_image(table, index) for index in indices]
    operations = count_flops(detector, images[0])
    memory = measure_memory(detector, images[0], context=context)
    decode = partial(source.load_image, table) if table.folders else None
    settings = LatencySettings(images, decode, context, seconds, min_batches, find_energy_meter(device))
    speeds = measure_latencies(detector, settings, batches, memory, log)
    single = speeds.get(1)
    return replace(
        training,
        parameters=count_parameters(detector),
        flops=operations.flops,
        flops_input=operations.input_size,
        proposals=operations.proposals,
        peak_memory_mb=memory,
        ms_per_image=None if single is None else single.in_memory,
        joules_per_image=None if single is None else single.joules,
        timings=[timing for speed in speeds.values() for timing in speed.timings],
    )


def final_split(module: DetectionDataModule) -> FinalSplit:
    """The split that metrics are computed on: test, or val where there is no test split.

    Raises:
        InputError: there is neither.
    """
    if "test" in module.sources:
        return "test"
    if "val" in module.sources:
        return "val"
    raise InputError("the data has neither a test nor a val split to evaluate on; name one in the data file")


def read_identity(folder: Path) -> dict[str, Any]:
    """Content of `run.json`: what the run of a folder was asked for.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = folder / "run.json"
    try:
        identity = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError("is missing or damaged; delete this run's folder and repeat the run", file) from error
    if (
        not isinstance(identity, dict)
        or not {"annotations", "budget", "detector", "display_name", "seed_everything"} <= identity.keys()
    ):
        raise InputError("is damaged; delete this run's folder and repeat the run", file)
    return identity


def failed_run(folder: Path, error: str) -> Run:
    """A run with status "failed", its model and seed read from run.json."""
    identity = read_identity(folder)
    seed = identity["seed_everything"]
    config = folder.name.removesuffix(f"_seed{seed}")
    return Run(identity["detector"], config, seed, folder.name, "failed", error=error, name=identity["display_name"])


def _hardware(trainer: Trainer) -> str:
    one = describe_hardware()
    return one if trainer.num_nodes == 1 else f"{trainer.num_nodes} nodes, the first one: {one}"


def read_result(folder: Path) -> Run | None:
    """The content of result.json; None where it does not exist or is damaged."""
    try:
        return read_run(folder / "result.json")
    except InputError:
        return None


def _execute(folder: Path) -> int:
    """Execute the run of a folder in a process of its own; the comparison owns the folder of a run that it started."""
    is_of_comparison = end_with_starter()
    start_others_by_command()
    with nullcontext() if is_of_comparison or process_rank() else own_folder(folder):
        return main(folder)


if __name__ == "__main__":
    try:
        sys.exit(_execute(Path(sys.argv[1])))
    except InputError as error:  # another process works in the folder
        sys.exit(f"zoo: {error}")
