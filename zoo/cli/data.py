"""`zoo stats`, `doctor`, `split`, `proposals` and `evaluate`: the verbs that need a data set and no training."""

import os
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from zoo.cli.data_tables import findings_document, print_findings, print_statistics
from zoo.cli.exit_codes import FAILED, OK
from zoo.cli.parsers import make_data_parser, make_parser
from zoo.data.formats.recognise import recognise
from zoo.data.formats.yolo.data_file import read_data_file
from zoo.data.quality.cleaned_copy import write_cleaned
from zoo.data.quality.cleaning import Change
from zoo.data.quality.doctor import examine
from zoo.data.quality.findings import CLEANING_FLAGS
from zoo.data.quality.image_files import Item
from zoo.data.quality.stats import compute_statistics
from zoo.data.source import Source
from zoo.errors import InputError
from zoo.io.configurations import name_models
from zoo.io.files import encode_json, require_writable, write_atomically
from zoo.report.dataset import render_statistics

DATA_HELP = "a data configuration, a COCO json, a VOC folder, a YOLO data.yaml, or a folder of one of these"


def stats(args: list[str]) -> int:
    """`zoo stats`: describe a data set."""
    parser = make_parser("stats")
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    options = parser.parse_args(args)
    data: Path = options.data
    for file in filter(None, (options.html, options.json)):
        require_writable(file)
    statistics = compute_statistics(data.stem or str(data), find_sources(data), _Progress("reading image headers"))
    print_statistics(statistics, Console())
    if options.html is not None:
        write_atomically(options.html, render_statistics(statistics, shlex.join(["zoo", "stats", *args])))
        print(f"page: {options.html}")
    if options.json is not None:
        write_atomically(options.json, encode_json(statistics))
        print(f"json: {options.json}")
    return OK


def doctor(args: list[str]) -> int:
    """`zoo doctor`: find errors in a data set; the exit code is 1 if there are any."""
    epilog = "Exit code: 0 no errors (there may be warnings), 1 errors, 2 DATA cannot be read."
    parser = make_parser("doctor", epilog=epilog)
    parser.add_argument("data", type=Path, metavar="DATA", help=DATA_HELP)
    parser.add_argument("--json", action="store_true", help="print every finding as json")
    text = "write a cleaned copy and changes.json to a new or empty folder (boxes, classes, masks)"
    parser.add_argument("--fix", type=Path, metavar="OUT", help=text)
    text = "in the copy, merge classes whose names differ only in case or spaces"
    parser.add_argument("--merge-classes", action="store_true", help=text)
    text = "in the copy, keep near-duplicates of two splits in one of them only"
    parser.add_argument("--drop-near-duplicates", action="store_true", help=text)
    options = parser.parse_args(args)
    data: Path = options.data
    fix: Path | None = options.fix
    if fix is not None:
        require_writable(fix)
    sources = find_sources(data)
    if fix is not None and fix.exists() and (not fix.is_dir() or any(fix.iterdir())):
        raise InputError("already exists; give --fix a new or empty folder", fix)  # before images are decoded
    inspection = examine(sources, _Progress("decoding images"))
    changes: list[Change] | None = None
    if fix is not None:
        flags = [flag for flag in CLEANING_FLAGS if getattr(options, flag.removeprefix("--").replace("-", "_"))]
        changes = write_cleaned(inspection, fix, _Progress("copying images"), flags)
    if options.json:
        print(encode_json(findings_document(data, inspection, changes)).decode(), end="")
    else:
        print_findings(inspection, Console())
        if changes is not None:
            print(f"cleaned copy: {fix} ({len(changes)} changes, listed in {Path(str(fix), 'changes.json')})")
    return FAILED if inspection.num_errors else OK


def split(args: list[str]) -> int:
    """`zoo split`: divide a data set into train, val and test."""
    from zoo.data.split import check_fractions, divide, write_division

    parser = make_parser("split", "Images stay where they are.", epilog="Train on the result by --data OUT/data.yaml.")
    parser.add_argument("data", type=Path, metavar="DATA", help=f"{DATA_HELP}; its splits are joined")
    parser.add_argument("--out", type=Path, metavar="OUT", required=True, help="new or empty folder")
    text = "of the images, for train, val and test; test may be left out (default: .7 .15 .15)"
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.7, 0.15, 0.15], metavar="F", help=text)
    text = (
        "regular expression; images whose file names have the same text in its first parentheses stay together "
        "(default: frames of one video, and Roboflow's copies of one image)"
    )
    parser.add_argument("--group", metavar="REGEX", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the division (default: 0)")
    options = parser.parse_args(args)
    data: Path = options.data
    check_fractions(options.fractions)
    require_writable(options.out)
    division = divide(find_sources(data), options.fractions, options.group, options.seed)
    config = write_division(division, options.out, data.absolute().stem)
    for name, table in division.tables.items():
        print(f"{name}: {len(table)} images, {table.num_objects} objects")
    print(f"{division.num_groups} groups of images; data configuration: {config}")
    return OK


def evaluate(args: list[str]) -> int:
    """`zoo evaluate`: evaluate a predictions file."""
    from zoo.data.module import DetectionDataModule
    from zoo.evaluation.coco import Engine
    from zoo.evaluation.ground_truth import GroundTruth
    from zoo.evaluation.identity import read_predictions
    from zoo.evaluation.scores import describe_detection_limit, evaluate_boxes_and_masks, scores_table
    from zoo.training.configuration import instantiate, parse

    parser = make_data_parser("evaluate")
    parser.add_argument("--predictions", type=str, required=True, help="COCO-results json")
    text = "split whose annotations are the ground truth"
    parser.add_argument("--split", type=Literal["train", "val", "test"], default="test", help=text)
    parser.add_argument("--engine", type=Engine, default="hotcoco", help="package that computes COCO's metrics")
    parser.add_lightning_class_args(DetectionDataModule, "data")
    built = instantiate(parser, parse(parser, args))
    table = built.data.table(built.split)
    matched = read_predictions(built.predictions, table)
    if matched.predictions.masks is not None:
        built.data.want_masks(True)
    ground_truth = GroundTruth.from_table(built.data.table(built.split))
    limit = describe_detection_limit(ground_truth)
    warnings = [*matched.warnings, limit] if limit else matched.warnings
    for note in (*matched.notes, *(f"warning: {warning}" for warning in warnings)):
        print(note, file=sys.stderr)
    scores = evaluate_boxes_and_masks(ground_truth, matched.predictions, engine=built.engine)
    Console().print(scores_table(scores))
    return OK


def proposals(args: list[str]) -> int:
    """`zoo proposals`: compute and cache region proposals, and print their recall."""
    args = name_models(args)
    from dataclasses import fields

    from zoo.data.module import ANNOTATED, DetectionDataModule
    from zoo.experiment.recall import measure_recall, recall_table
    from zoo.proposals import SelectiveSearch
    from zoo.training.configuration import instantiate, parse, proposals_of_model
    from zoo.training.trainer import silence_lightning

    silence_lightning()
    parser = make_data_parser("proposals")
    text = "a detector or a configuration (zoo models), or a file; its search settings are the defaults of the flags"
    parser.add_argument("--model", type=str | None, default=None, help=text)
    parser.add_argument("--workers", type=int | None, default=None, help="processes; 0: this one (one for each core)")
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
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    if workers < 0:
        raise InputError(f"--workers is {workers}; give 0 or more (0: search in this process)")
    splits = [split for split in ANNOTATED if split in data.sources]
    if not splits:
        raise InputError("no data set; give --data DATA")
    data.setup()  # checks the input of all splits before the first search
    console = Console(stderr=True)
    recalls = {}
    for split in splits:
        progress = partial(track, description=split, console=console, disable=not console.is_terminal)
        recalls[split] = measure_recall(data, split, workers, progress)
    Console().print(recall_table(recalls))
    return OK


def find_sources(data: Path) -> dict[str, Source]:
    """The splits of a data configuration (as for `zoo fit --data`) or of a data set that `recognise` reads.

    Raises:
        InputError: the path does not exist, or is neither.
    """
    if data.suffix in (".yaml", ".yml") and data.is_file():
        content, _ = read_data_file(data)
        if "names" not in content:
            return _read_configuration(data)
    return recognise(data)


def _read_configuration(data: Path) -> dict[str, Source]:
    # Importing Lightning takes seconds, and data sets in a known format do not need it.
    from pytorch_lightning.cli import LightningArgumentParser

    from zoo.data.module import ANNOTATED, DetectionDataModule
    from zoo.training.configuration import instantiate, parse

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    module: DetectionDataModule = instantiate(parser, parse(parser, ["--data", str(data)])).data
    sources: dict[str, Source] = {split: module.sources[split] for split in ANNOTATED if split in module.sources}
    if not sources:
        raise InputError("has no split; set at least one of `train`, `val`, `test`", data)
    return sources


class _Progress:
    """Progress bar on stderr, shown only if that is a terminal."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, items: Iterable[Item], count: int) -> Iterable[Item]:
        console = Console(stderr=True)
        return track(items, self.text, count, console=console, transient=True, disable=not console.is_terminal)
