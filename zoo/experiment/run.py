"""One run of a comparison: trained, tested and measured in a process of its own, from what its folder says.

`zoo.experiment.comparison` writes `run.json` and `config.yaml` into the folder and starts `python -m zoo.experiment.run <folder>`; what comes
back is `result.json`, whether the run went well or not. Where a run has several processes, all of them do this (srun
and torchrun start them so, and Lightning starts the others by the first one's command), and the first one writes.
"""

import json
import math
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from pytorch_lightning import Trainer, seed_everything

from zoo.callbacks import LearningCurve, MeanAveragePrecision
from zoo.data.module import DetectionDataModule
from zoo.detector import Detector
from zoo.errors import InputError, Preempted
from zoo.evaluation.predictions import write_coco_results
from zoo.experiment.ceilings import ceilings
from zoo.profiling.energy import find_meter
from zoo.profiling.flops import count_flops, count_parameters, measure_memory
from zoo.profiling.hardware import describe_hardware
from zoo.profiling.latency import LatencySettings, measure_latencies
from zoo.report.results import Cost, CurvePoint, Run, read_run, write_run
from zoo.training.configuration import find_input_error, instantiate, make_parser, one_line, parse
from zoo.training.trainer import (
    find_callback,
    make_trainer,
    model_key,
    preserve_metrics_csv,
    process_rank,
    silence_lightning,
    together,
)

FinalSplit = Literal["val", "test"]  # what the numbers of a comparison are for

LATENCY_IMAGES = 16
LATENCY_SECONDS = 1.5


def main(folder: Path) -> int:
    """Do the run of a folder; `result.json` says what came of it, `error.log` what exactly went wrong.

    Processes beside the first one have an `error_<rank>.log` each: what went wrong may have gone wrong there alone.

    Returns:
        Exit code: 0 done, 1 failed, 143 told to make room, which leaves no result: the same command goes on.
    """
    silence_lightning()
    try:
        run = execute(folder)
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
    # Of a failure the process knows most that fails first: the others fail because they miss it.
    if process_rank() == 0 if run.status == "done" else not file.exists():
        write_run(run, file)
    return 0 if run.status == "done" else 1


def execute(folder: Path) -> Run:
    """Train as config.yaml says, from last.ckpt where there is one, and test the best checkpoint."""
    parser = make_parser()
    config = parse(parser, ["--config", str(folder / "config.yaml")])
    seed_everything(config.seed_everything, workers=True, verbose=False)
    built = instantiate(parser, config)
    detector: Detector = built.model
    module: DetectionDataModule = built.data
    if process_rank() == 0:
        preserve_metrics_csv(folder)
    # Under SLURM Lightning goes on from such files in the root folder, unasked. In one that all runs share they would
    # be another run's; in ours they are of no use, since last.ckpt has all that counts.
    for unasked in folder.glob("hpc_ckpt_*"):
        unasked.unlink(missing_ok=True)
    arguments = built.trainer.as_dict() | {"default_root_dir": str(folder)}
    trainer = make_trainer(arguments, module, folder, folder.name)

    last = folder / "checkpoints" / "last.ckpt"
    with together(trainer):
        trainer.fit(detector, datamodule=module, ckpt_path=last if last.exists() else None, weights_only=True)
    # What training cost is read now: loading a checkpoint takes the callbacks back to where they were then.
    curve = find_callback(trainer, LearningCurve)
    points = msgspec.convert(curve.points, list[CurvePoint])
    cost = Cost(train_images_per_s=curve.train_images_per_s, train_minutes=curve.train_minutes)
    split = final_split(module)
    final = trainer.test if split == "test" else trainer.validate
    with together(trainer):
        best = choose_checkpoint(trainer, detector, module, folder, points, curve.images_seen)
        final(detector, datamodule=module, ckpt_path=best, verbose=False, weights_only=True)
    map_callback = find_callback(trainer, MeanAveragePrecision)
    scores, predictions = map_callback.scores(split), map_callback.predictions(split)
    run = Run(
        model_key(detector),
        folder.name.removesuffix(f"_seed{config.seed_everything}"),
        config.seed_everything,
        folder.name,
        "done",
        curve=points,
        hardware=_hardware(trainer),
    )
    if trainer.is_global_zero and scores is not None and predictions is not None:
        write_coco_results(predictions, folder / "predictions.json", module.class_ids)
        run.metrics, run.per_class = scores.metrics, scores.per_class
        run.analysis.ceilings = ceilings(detector, module.table(split), module.sources[split])
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
    curve = find_callback(trainer, LearningCurve)
    epoch, minutes, loss = trainer.current_epoch + 1, curve.train_minutes, curve.mean_loss
    before = max((point.AP for point in points), default=-math.inf)
    # From the file, and not from memory: a run that was stopped here has nothing else when it comes here again.
    trainer.validate(detector, datamodule=module, ckpt_path=last, verbose=False, weights_only=True)
    found = {key: float(trainer.callback_metrics[f"val/{key}"]) for key in ("AP", "AP50")}
    points.append(CurvePoint(epoch, images_seen, minutes, found["AP"], found["AP50"], loss))
    if trainer.is_global_zero and (not best.exists() or found["AP"] > before):
        partial = best.with_name(f".{best.name}.partial")
        shutil.copyfile(last, partial)
        partial.replace(best)
    trainer.strategy.barrier()  # nobody reads it before it is there
    return best


def measure_cost(
    detector: Detector,
    trainer: Trainer,
    module: DetectionDataModule,
    split: FinalSplit,
    training: Cost,
    batches: Sequence[int] = (1,),
    seconds: float = LATENCY_SECONDS,
    least: int = 1,
    say: Callable[[str], object] = lambda line: None,
) -> Cost:
    """What training cost, completed by what images cost on the Trainer's device and in its precision.

    Images come bare, so region proposals are computed for each, and not taken from the cache: they count in its time.

    Args:
        detector: with the weights to measure.
        trainer: its device and precision are measured.
        module: has the images.
        split: whose first images are taken.
        training: what is known already.
        batches: sizes of batch to time; the others are left out where memory does not suffice.
        seconds: to time each ...
        least: ... and batches of it at least.
        say: takes a line about each size.
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
    conditions = LatencySettings(images, decode, context, seconds, least, find_meter(device))
    speeds = measure_latencies(detector, conditions, batches, memory, say)
    alone = speeds.get(1)
    return replace(
        training,
        parameters=count_parameters(detector),
        flops=operations.flops,
        flops_input=operations.image,
        proposals=operations.proposals,
        peak_memory_mb=memory,
        ms_per_image=None if alone is None else alone.in_memory,
        joules_per_image=None if alone is None else alone.joules,
        timings=[timing for speed in speeds.values() for timing in speed.timings],
    )


def final_split(module: DetectionDataModule) -> FinalSplit:
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


def _hardware(trainer: Trainer) -> str:
    one = describe_hardware()
    return one if trainer.num_nodes == 1 else f"{trainer.num_nodes} nodes, the first one: {one}"


def read_result(folder: Path) -> Run | None:
    """What a run left behind; None where it is not over, or its file is damaged."""
    try:
        return read_run(folder / "result.json")
    except InputError:
        return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
