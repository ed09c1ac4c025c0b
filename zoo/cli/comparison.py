"""`zoo compare` and `zoo report`."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.cli.exit_codes import FAILED, OK
from zoo.cli.parsers import make_parser
from zoo.cli.training import add_budget_arguments, read_budget
from zoo.errors import InputError
from zoo.io.configurations import (
    NEED_MASKS,
    default_models,
    describe_choice,
    find_configs,
    find_model_file,
    is_built_in,
)
from zoo.io.files import require_writable
from zoo.io.logger_names import PACKAGES, check_loggers

if TYPE_CHECKING:
    from zoo.experiment.budget import Budget

_OVERRIDES = ("--data.", "--model.", "--trainer.")


def compare(args: list[str]) -> int:
    """`zoo compare`: train and test several detectors, and write a report."""
    options, overrides = _parse_compare(args)
    tell = partial(print, file=sys.stderr if options.slurm else sys.stdout, flush=True)  # --slurm prints a script
    if options.models is None:
        models = default_models(options.data, _has_masks(options.data))
        tell(_describe_models(models, options.data))
    else:
        models = [find_model_file(name, options.data) for name in options.models]
        for choice in filter(None, map(describe_choice, options.models, models)):
            tell(choice)

    from zoo.cli.comparison_tables import print_runs
    from zoo.experiment.comparison import plan_runs, run_comparison
    from zoo.experiment.slurm import collect_runs, count_configured_processes, write_job_array
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    configs = find_configs()
    trainer = options.trainer or default_trainer(tell)
    budget = read_budget(options)  # None: that of the trainer file
    if budget is None and options.trainer is None and trainer.stem == "cpu":
        budget = default_budget(options.data)
        tell(_describe_budget(budget))
    data = options.data or configs / "data" / "shapes.yaml"
    out = options.out or Path("runs", data.stem)
    require_writable(out)
    plan = (
        models,
        data,
        trainer,
        out,
        budget,
        options.seeds,
        options.names,
        overrides,
    )
    command = ["zoo", "compare", *args]
    if not (options.slurm or options.collect):
        results = run_comparison(*plan, command=shlex.join(command))
    else:
        runs, module = plan_runs(*plan, count=count_configured_processes)
        if options.slurm:
            collect = shlex.join("--collect" if argument == "--slurm" else argument for argument in command)
            script, count = write_job_array(runs, module, out, collect)
            print(script, end="")
            print(f"{count} unfinished run{'s' if count != 1 else ''}; after the jobs: {collect}", file=sys.stderr)
            return OK
        results = collect_runs(runs, module, shlex.join(command), data, out)
    print_runs(results)
    print(f"report: {out / 'report.html'}")
    return FAILED if any(run.status == "failed" for run in results.runs) else OK


def default_budget(data: Path | None) -> "Budget":
    """The budget on a CPU, for the value of `--data`."""
    from zoo.experiment.budget import DEFAULT_BUDGET, FINE_TUNING_BUDGET

    return DEFAULT_BUDGET if is_built_in(data) else FINE_TUNING_BUDGET


def _has_masks(data: Path | None) -> bool:
    """Whether the training images of the value of `--data` have masks, as the built-in shapes have."""
    if is_built_in(data) or data is None:
        return True
    from zoo.experiment.gather import train_has_masks

    return train_has_masks(data)


def _describe_models(models: Sequence[Path], data: Path | None) -> str:
    kind = "small ones, from scratch" if is_built_in(data) else "MobileNetV2 pretrained on ImageNet, fine-tuned"
    names = ", ".join(file.stem for file in models)
    left_out = not any(file.stem.startswith(NEED_MASKS) for file in models)
    every = f"all detectors{' but those of masks, as this data has none beyond boxes' if left_out else ''}"
    return f"models: {every}, {kind}: {names} (choose others by --models, see zoo models)"


def _describe_budget(budget: "Budget") -> str:
    images = f"{budget.images:,} images, repetitions included"
    return f"budget: each model trains on {images} (change it by --images, --epochs or --minutes)"


def default_trainer(tell: Callable[[str], object]) -> Path:
    """The shipped trainer file for one GPU, which is then told, or for the CPU where there is none."""
    import torch

    folder = find_configs() / "trainers"
    if not torch.cuda.is_available():
        return folder / "cpu.yaml"
    tell(f"trainer: {folder / 'gpu1.yaml'}, since there is a GPU")
    return folder / "gpu1.yaml"


def _parse_compare(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parsed flags of `zoo compare`, and the remaining arguments, which set single values in all configurations."""
    parser = make_parser("compare", "Single values of all runs can be set as in `zoo fit`: --data.batch_size 4")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="detectors, configurations (see zoo models) or files (all; Mask R-CNN if the data has masks)",
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="data file or data set (the built-in shapes)")
    parser.add_argument("--trainer", type=Path, metavar="FILE", help="trainer file (gpu1.yaml or cpu.yaml)")
    text = "folder; finished runs in it are kept, stopped ones resumed (runs/<data>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each model and seed (0)")
    parser.add_argument("--names", nargs="+", help="names of the models (their file names)")
    text = f"metrics go to these, beside metrics.csv: {', '.join(PACKAGES)} (tensorboard)"
    parser.add_argument("--logger", nargs="+", metavar="NAME", help=text)
    add_budget_arguments(parser)
    modes = parser.add_mutually_exclusive_group()
    text = "do not train; print an sbatch script, a job array with one task per run"
    modes.add_argument("--slurm", action="store_true", help=text)
    text = "do not train; write the report of the runs that the job array finished in --out"
    modes.add_argument("--collect", action="store_true", help=text)
    options, overrides = parser.parse_known_args(args)
    unknown = [flag for flag in overrides if flag.startswith("-") and not flag.startswith(_OVERRIDES)]
    if unknown or (overrides and not overrides[0].startswith("-")):
        raise InputError(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if options.logger is not None:
        check_loggers(options.logger)
        overrides += ["--logger", *options.logger]
    return options, overrides


def report(args: list[str]) -> int:
    """`zoo report`: make or verify a report of finished runs."""
    parser = make_parser("report")
    text = "folders of comparisons or of runs; COCO-results json files of other frameworks, or folders of them"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (the comparison, if it is one)")
    parser.add_argument("--data", type=Path, metavar="DATA", help="data file or data set (that of the runs)")
    text = "combine these detectors in pairs: boxes rescored by each other, and fused; all: every pair"
    parser.add_argument("--combine", nargs="+", metavar="NAME", help=text)
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples; 0: no intervals (1000)")
    parser.add_argument("--verify", action="store_true", help="only check the report's values against its predictions")
    options = parser.parse_args(args)
    if options.resamples < 0:
        raise InputError(f"--resamples is {options.resamples}; give 0 or more (0: no intervals)")
    if options.verify:
        return _verify(options.runs)
    out = options.out
    if out is None:
        first = options.runs[0]
        if len(options.runs) > 1 or first.is_file() or (first / "result.json").exists():
            raise InputError("give --out DIR; only the report of a single comparison has a default folder")
        out = first
    require_writable(out)

    from zoo.cli.comparison_tables import print_runs
    from zoo.experiment.analysis import analyse_and_report
    from zoo.experiment.combinations import choose_pairs
    from zoo.experiment.gather import gather_runs
    from zoo.io.ownership import own_folder
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    results, module = gather_runs(options.runs, out, options.data, shlex.join(["zoo", "report", *args]))
    pairs = choose_pairs(results, options.combine) if options.combine else []
    with own_folder(out):
        analyse_and_report(results, module, out, options.resamples, partial(print, file=sys.stderr, flush=True), pairs)
    print_runs(results)
    print(f"report: {out / 'report.html'}")
    return OK


def _verify(folders: Sequence[Path]) -> int:
    from zoo.experiment.verify import verify_report
    from zoo.training.trainer import silence_lightning

    if len(folders) > 1:
        raise InputError("--verify accepts the folder of one report only")
    silence_lightning()
    verification = verify_report(folders[0], partial(print, file=sys.stderr, flush=True))
    for difference in verification.different:
        print(difference)
    same = verification.compared - len(verification.different)
    print(f"{same} of {verification.compared} values are the same as in {folders[0] / 'results.json'}")
    return FAILED if verification.different else OK
