"""The front door: `zoo <verb> ...`.

Verbs are imported when they are called, so that `zoo --help` and a mistyped verb answer at once. What a user handed in
and cannot be used ends in one line on stderr and exit code 2; `--debug`, or ZOO_DEBUG=1, shows the traceback.
"""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from zoo.errors import InputError, Preempted, SharedInputError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(args: Sequence[str] | None = None) -> int:
    """Do what a command line says.

    Args:
        args: without the program's name; those of the process if not given.

    Returns:
        The exit code: 0 done, 1 a run failed, 2 bad input, 130 interrupted, 143 told to make room.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words or os.environ.get("ZOO_DEBUG", "0") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK
    if words[0] == "--version":
        from zoo import __version__

        print(__version__)
        return OK
    try:
        return _call(words[0], words[1:])
    except SystemExit as leave:  # --help and --print_config
        return leave.code if isinstance(leave.code, int) else OK if leave.code is None else FAILED
    except Preempted as stop:
        if str(stop):
            print(f"zoo: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt as interrupt:
        print(f"\nzoo: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        known = _find_input_error(error)
        if known is None:
            raise
        if debug:
            traceback.print_exc()
        if not isinstance(known, SharedInputError):
            print(f"zoo: {' '.join(str(known).split())}", file=sys.stderr)
        return BAD_INPUT


def _call(verb: str, args: list[str]) -> int:
    if verb not in VERBS:
        raise InputError(f"no verb {verb!r}; there are {', '.join(VERBS)}")
    return VERBS[verb][1](verb, args)


def _train_or_measure(verb: str, args: list[str]) -> int:
    from zoo.cli.training import TrainingCLI

    TrainingCLI([verb, *args])
    return OK


def _predict(verb: str, args: list[str]) -> int:
    parser = _Parser(prog=f"zoo {verb}", description=VERBS[verb][0], allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, and folders of them")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--score", type=float, default=0.3, help="detections below it are left out (0.3)")
    parser.add_argument("--batch_size", type=int, default=4, help="images at once (4)")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (auto)")
    parser.add_argument("--devices", type=int, default=1, help="that share the images (1)")
    parser.add_argument("--precision", default="32-true", help="as Lightning names it (32-true)")
    options = parser.parse_args(args)

    from zoo.inference.predict import predict
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    count = predict(
        options.checkpoint,
        options.images,
        options.out,
        options.score,
        options.batch_size,
        options.accelerator,
        options.precision,
        options.devices,
    )
    if count:  # the first process alone has them
        print(f"{count} image{'s' if count != 1 else ''} done: {options.out}")
    return OK


def _export(verb: str, args: list[str]) -> int:
    parser = _Parser(prog=f"zoo {verb}", description=VERBS[verb][0], allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="model.onnx")
    options = parser.parse_args(args)

    from zoo.export.onnx import export
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    agreement = export(options.checkpoint, options.out)
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB; {agreement.num_detections} detections of three "
        f"images as in PyTorch, boxes to {agreement.box_difference:.1e} px, scores to {agreement.score_difference:.1e}"
    )
    return OK


def _evaluate(verb: str, args: list[str]) -> int:
    from pytorch_lightning.cli import LightningArgumentParser
    from rich.console import Console

    from zoo.data.module import DetectionDataModule
    from zoo.evaluation.coco import Engine
    from zoo.evaluation.scores import evaluate_file, scores_table
    from zoo.training.configuration import instantiate, parse

    parser = LightningArgumentParser(exit_on_error=False, prog=f"zoo {verb}", description=VERBS[verb][0])
    parser.add_argument("--predictions", type=str, required=True, help="COCO-results json")
    parser.add_argument("--split", type=str, default="test", choices=["train", "val", "test"])
    parser.add_argument("--engine", type=Engine, default="hotcoco", help="who computes COCO's numbers")
    parser.add_lightning_class_args(DetectionDataModule, "data")
    built = instantiate(parser, parse(parser, args))
    scores = evaluate_file(built.predictions, built.data.table(built.split), engine=built.engine)
    Console().print(scores_table(scores))
    return OK


def _benchmark(verb: str, args: list[str]) -> int:
    from pytorch_lightning.cli import LightningArgumentParser
    from rich.console import Console

    from zoo.data.module import DetectionDataModule
    from zoo.experiment.benchmark import benchmark, print_benchmarks
    from zoo.io.files import encode_json, write_atomically
    from zoo.report.benchmark_results import Benchmarks
    from zoo.training.configuration import instantiate, parse
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    parser = LightningArgumentParser(exit_on_error=False, prog=f"zoo {verb}", description=VERBS[verb][0])
    parser.add_argument("runs", nargs="*", type=Path, default=[], help="folders of runs; each keeps what is found")
    parser.add_argument("--checkpoint", nargs="+", type=Path, default=[], help="files, with --data")
    parser.add_argument("--out", type=Path | None, default=None, help="json with all figures")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32], help="images at once (1 8 32)")
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each of them (5)")
    parser.add_argument("--accelerator", type=str | None, default=None, help="cpu, gpu, ... (the run's own, or auto)")
    parser.add_argument("--precision", type=str | None, default=None, help="(the run's own, or 32-true)")
    parser.add_lightning_class_args(DetectionDataModule, "data")
    built = instantiate(parser, parse(parser, args))
    found = benchmark(
        built.runs,
        built.checkpoint,
        built.data,
        built.batch_sizes,
        built.seconds,
        built.accelerator,
        built.precision,
        say=partial(print, file=sys.stderr, flush=True),
    )
    print_benchmarks(found, Console())
    if built.out is not None:
        write_atomically(built.out, encode_json(Benchmarks(found, shlex.join(["zoo", verb, *args]))))
    return OK


def _proposals(verb: str, args: list[str]) -> int:
    from dataclasses import fields

    from pytorch_lightning.cli import LightningArgumentParser
    from rich.console import Console
    from rich.progress import track

    from zoo.data.module import ANNOTATED, DetectionDataModule
    from zoo.experiment.recall import measure_recall, recall_table
    from zoo.proposals import SelectiveSearch
    from zoo.training.configuration import instantiate, parse, proposals_of_model
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    parser = LightningArgumentParser(exit_on_error=False, prog=f"zoo {verb}", description=VERBS[verb][0])
    text = "a model file: search as its detector does, but for what is said here"
    parser.add_argument("--model", type=str | None, default=None, help=text)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that search")
    parser.add_class_arguments(SelectiveSearch)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    config = parse(parser, args)
    if config.model is not None:
        parser.set_defaults(proposals_of_model(config.model))
        config = parse(parser, args)
    data: DetectionDataModule = instantiate(parser, config).data
    try:
        data.proposals = SelectiveSearch(**{field.name: config[field.name] for field in fields(SelectiveSearch)})
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.workers < 0:
        raise InputError(f"--workers is {config.workers}; 0 searches in this process")
    splits = [split for split in ANNOTATED if split in data.sources]
    if not splits:
        raise InputError("no data set is given; give --data FILE")
    data.setup()  # what is wrong with the last split is said before the work on the first begins
    console = Console(stderr=True)
    recalls = {}
    for split in splits:
        watch = partial(track, description=split, console=console, disable=not console.is_terminal)
        recalls[split] = measure_recall(data, split, config.workers, watch)
    Console().print(recall_table(recalls))
    return OK


def _compare(verb: str, args: list[str]) -> int:
    parser = _Parser(
        prog=f"zoo {verb}",
        description=f"{VERBS[verb][0]} Single values of all runs can be set as in `zoo fit`: --data.batch_size 4",
        allow_abbrev=False,
    )
    parser.add_argument("--models", type=Path, nargs="+", metavar="FILE", help="model files (every detector, tiny)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="data file or data set (the built-in shapes)")
    parser.add_argument("--trainer", type=Path, metavar="FILE", help="trainer file (one CPU)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder; what is done in it is kept (runs/<data>)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each and model (0)")
    parser.add_argument("--names", nargs="+", help="of the models (the names of their files)")
    parser.add_argument("--epochs", type=int, help="budget of each run ...")
    parser.add_argument("--images", type=int, help="... or this ...")
    parser.add_argument("--minutes", type=float, help="... or this (what the trainer file says)")
    where = parser.add_mutually_exclusive_group()
    text = "train nothing: print a SLURM script with one task a run, for sbatch"
    where.add_argument("--array", action="store_true", help=text)
    where.add_argument("--collect", action="store_true", help="train nothing: report what these tasks have left")
    options, overrides = parser.parse_known_args(args)
    others = [word for word in overrides if word.startswith("-") and not word.startswith(_OVERRIDES)]
    if others or (overrides and not overrides[0].startswith("-")):
        raise InputError(f"unrecognized arguments: {' '.join(others or overrides)}")

    from zoo.experiment.comparison import DEFAULT_BUDGET, Budget, compare, prepare, print_table
    from zoo.experiment.slurm import collect_runs, count_processes_elsewhere, write_job_array
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    configs = find_configs()
    limits = {"epochs": options.epochs, "images": options.images, "minutes": options.minutes}
    budget: Budget | None = None  # what the trainer file says
    if any(limit is not None for limit in limits.values()):
        budget = Budget(**limits)
    elif options.models is None and options.trainer is None:
        budget = DEFAULT_BUDGET
    data = options.data or configs / "data" / "shapes.yaml"
    out = options.out or Path("runs", data.stem)
    asked = (
        options.models or sorted((configs / "models").glob("*_tiny.yaml")),
        data,
        options.trainer or configs / "trainers" / "cpu.yaml",
        out,
        budget,
        options.seeds,
        options.names,
        overrides,
    )
    command = ["zoo", verb, *args]
    if not (options.array or options.collect):
        results = compare(*asked, command=shlex.join(command))
    else:
        jobs, module = prepare(*asked, count=count_processes_elsewhere)
        if options.array:
            afterwards = shlex.join("--collect" if word == "--array" else word for word in command)
            script, count = write_job_array(jobs, module, out, afterwards)
            print(script, end="")
            print(f"{count} run{'s' if count != 1 else ''} to do; afterwards: {afterwards}", file=sys.stderr)
            return OK
        results = collect_runs(jobs, module, shlex.join(command), data, out)
    print_table(results)
    print(f"report: {out / 'report.html'}")
    return FAILED if any(run.status == "failed" for run in results.runs) else OK


def _stats(verb: str, args: list[str]) -> int:
    parser = _Parser(prog=f"zoo {verb}", description=VERBS[verb][0], allow_abbrev=False)
    parser.add_argument("data", type=Path, metavar="DATA", help=_DATA)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    options = parser.parse_args(args)

    from zoo.cli.data import show_statistics

    show_statistics(options.data, options.html, options.json, shlex.join(["zoo", verb, *args]))
    return OK


def _doctor(verb: str, args: list[str]) -> int:
    epilog = "Exit code: 0 no error (there may be warnings), 1 errors, 2 DATA cannot be used at all."
    parser = _Parser(prog=f"zoo {verb}", description=VERBS[verb][0], epilog=epilog, allow_abbrev=False)
    parser.add_argument("data", type=Path, metavar="DATA", help=_DATA)
    parser.add_argument("--json", action="store_true", help="print every finding, for other programs")
    text = "write a cleaned copy and changes.json to a new or empty folder (boxes and classes; masks are lost)"
    parser.add_argument("--fix", type=Path, metavar="OUT", help=text)
    options = parser.parse_args(args)

    from zoo.cli.data import show_findings

    return FAILED if show_findings(options.data, options.json, options.fix) else OK


def _report(verb: str, args: list[str]) -> int:
    parser = _Parser(prog=f"zoo {verb}", description=VERBS[verb][0], allow_abbrev=False)
    text = "folders of comparisons or of runs; COCO-results json files of other frameworks, or folders of them"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (that of the one comparison)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="data file or data set (as the runs say)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the test images; 0: no intervals (1000)")
    parser.add_argument("--verify", action="store_true", help="score the kept predictions again, and write nothing")
    options = parser.parse_args(args)
    if options.resamples < 0:
        raise InputError(f"--resamples is {options.resamples}; 0 leaves the intervals out")

    from zoo.experiment.analysis import finish, gather, verify
    from zoo.experiment.comparison import print_table
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    say = partial(print, file=sys.stderr, flush=True)
    if options.verify:
        if len(options.runs) > 1:
            raise InputError("--verify takes the folder of one report")
        outcome = verify(options.runs[0], say)
        for difference in outcome.different:
            print(difference)
        same = outcome.compared - len(outcome.different)
        print(f"{same} of {outcome.compared} figures come out as they are in {options.runs[0] / 'results.json'}")
        return FAILED if outcome.different else OK
    out = options.out
    if out is None:
        first = options.runs[0]
        if len(options.runs) > 1 or first.is_file() or (first / "result.json").exists():
            raise InputError("give --out DIR; only the report of one whole comparison has a folder of its own")
        out = first
    results, module = gather(options.runs, out, options.data)
    finish(results, module, out, options.resamples, say)
    print_table(results)
    print(f"report: {out / 'report.html'}")
    return OK


def find_configs() -> Path:
    """Where the configurations of the package are: inside it when installed, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


_OVERRIDES = ("--data.", "--model.", "--trainer.")
_DATA = "a data configuration, a COCO json, a VOC folder, a YOLO data.yaml, or a folder of one of these"

VERBS: dict[str, tuple[str, Callable[[str, list[str]], int]]] = {
    "fit": ("Train a detector.", _train_or_measure),
    "validate": ("Measure a checkpoint on the validation split.", _train_or_measure),
    "test": ("Measure a checkpoint on the test split.", _train_or_measure),
    "predict": ("Detect objects in image files and folders.", _predict),
    "compare": ("Train and test several detectors under one budget, and write one report.", _compare),
    "report": ("Make a report of finished runs, or of others' predictions; --verify checks one.", _report),
    "proposals": ("Search a data set for region proposals, keep them, and report their recall.", _proposals),
    "export": ("Write a detector to ONNX, and check the file against PyTorch.", _export),
    "benchmark": ("Measure what checkpoints cost: parameters, FLOPs, memory, time by parts, energy.", _benchmark),
    "stats": ("What a data set is like: sizes, crowding, balance, overlap, positions.", _stats),
    "doctor": ("What is wrong with a data set, and a cleaned copy of it.", _doctor),
    "evaluate": ("Measure a predictions file (COCO-results json) by all protocols.", _evaluate),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it as every other bad input is said."""
        raise InputError(f"{message} (see {self.prog} --help)")


def _find_input_error(error: BaseException) -> InputError | None:
    if (
        "zoo.training.configuration" not in sys.modules
    ):  # nothing heavy is loaded yet, so nothing can have wrapped the error
        return error if isinstance(error, InputError) else None
    from zoo.training.configuration import find_input_error

    return find_input_error(error)


def _overview() -> str:
    lines = ["Train and compare object detectors: same data, same budget, same evaluation, one report.", ""]
    lines += [f"  zoo {verb:10s} {text}" for verb, (text, _) in VERBS.items()]
    lines += [
        "",
        "  zoo fit --model configs/models/retinanet_tiny.yaml --data configs/data/shapes.yaml \\",
        "          --trainer configs/trainers/cpu.yaml",
        "  zoo compare     every detector, tiny, on the built-in shapes, on a CPU",
        "",
        "zoo <verb> --help says more; --debug shows the traceback of an error.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
