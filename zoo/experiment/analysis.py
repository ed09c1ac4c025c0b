"""From what runs left behind to what a report says of them: scores, intervals, verdicts, errors. No training.

`zoo compare` ends here and `zoo report` begins here, so a report that is made again has the same numbers, and `verify`
shows it. Detectors of other frameworks take part by their predictions (COCO-results json) alone.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from zoo.data.formats.recognise import data_arguments, is_data_set
from zoo.data.module import DetectionDataModule, Split
from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation.bootstrap import KEYS, Bootstrap, bootstrap
from zoo.evaluation.curves import best_thresholds, calibration, confusion_matrix, precision_recall
from zoo.evaluation.errors import tide_errors
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.matches import collect_matches
from zoo.evaluation.predictions import Predictions, read_coco_results
from zoo.evaluation.scores import evaluate
from zoo.evaluation.slices import slices
from zoo.experiment.ceilings import ceilings
from zoo.experiment.run import final_split, read_result
from zoo.profiling.hardware import list_versions
from zoo.report.benchmark_results import with_benchmark
from zoo.report.entries import find_entries, first_runs
from zoo.report.pictures.examples import Example, best_f1_score, make_example
from zoo.report.pictures.selection import choose_pictures
from zoo.report.pictures.views import shown_score
from zoo.report.results import (
    Analysis,
    Calibration,
    Ceiling,
    Difference,
    Interval,
    Pair,
    Results,
    Run,
    Slice,
    Threshold,
    read_results,
)
from zoo.report.write import write_report
from zoo.training.configuration import build_data, instantiate, make_parser, parse, read_yaml

T = TypeVar("T")

NUM_PICTURES = 40
NUM_SAMPLED = 8
"""Pictures that are chosen without regard to what any run says of them."""

RESAMPLES = 1000
SPLITS: tuple[Split, ...] = ("train", "val", "test")

SAME = 1e-9
"""Figures that differ by no more are the same: another processor may add in another order."""

Progress = Callable[[str], None]


# ------------------------------------------------------------------------------------------------------- runs, found


def gather(paths: Sequence[Path], out: Path, data: Path | None = None) -> tuple[Results, DetectionDataModule]:
    """Runs of comparisons, and predictions of others, as one comparison that has not been analysed yet.

    Args:
        paths: folders of comparisons, folders of runs, COCO-results files, and folders of such files.
        out: the folder that the report goes to; runs are named relative to it.
        data: a data file or a data set; where it is not given, the data is that of the runs.

    Raises:
        InputError: nothing usable at a path, runs on different images or classes, or predictions of others without
            a run or a data file that says what is true.
    """
    found = [folder for path in paths for folder in find_runs(path)]
    if not found:
        raise InputError("no runs; give folders that `zoo compare` wrote, or COCO-results files")
    if len({os.path.realpath(folder) for folder in found}) < len(found):
        raise InputError("a run is given twice", file=paths[0])
    ours = [folder for folder in found if folder.is_dir()]
    section, origin = read_data_config(ours, data)
    module = build_data(yaml.safe_load(section), origin)
    runs = [_read_run(folder, out, module) if folder.is_dir() else _external_run(folder, out) for folder in found]
    for run, folder in _ours(runs, found):
        if run.status == "done" and not run.analysis.ceilings:  # of runs that were trained before there were any
            run.analysis.ceilings = find_ceilings(folder / "config.yaml", module)
    former = [read_results(file) for file in dict.fromkeys(_former_results(folder) for folder in ours) if file.exists()]
    check_configurations(runs, found)
    budgets = {json.loads((folder / "run.json").read_text())["budget"] for folder in ours}
    results = Results(
        runs=runs,
        data=describe_data(
            module, data.stem if data is not None else str(former[0].data["name"]) if former else "data"
        ),
        classes=list(module.class_names),
        budget=" or ".join(sorted(budgets)) or "unknown",
        command="\n".join(dict.fromkeys(result.command for result in former)) or "unknown",
        hardware="; ".join(dict.fromkeys(result.hardware for result in former)) or "unknown",
        versions=former[0].versions if former else list_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprints={split: module.table(split).fingerprint() for split in SPLITS if split in module.sources},
        configs={run.config: (folder / "config.yaml").read_text() for run, folder in _ours(runs, found)},
        data_config=section,
    )
    return results, module


def find_runs(path: Path) -> list[Path]:
    """Folders of finished or failed runs at a path; files of predictions where nobody here has trained.

    Raises:
        InputError: there is neither.
    """
    if path.is_file():
        return [path]
    if (path / "result.json").exists():
        return [path]
    folders = sorted(file.parent for file in path.glob("*/result.json"))
    if folders:
        return folders
    others = sorted(path.glob("*.json"))
    if not others:
        advice = "expected a folder that `zoo compare` wrote, a run in it, or COCO-results json files"
        raise InputError(f"no runs here; {advice}" if path.exists() else f"no such file or folder; {advice}", file=path)
    return others


def _read_run(folder: Path, out: Path, module: DetectionDataModule) -> Run:
    run = read_result(folder)
    if run is None:
        raise InputError("is damaged; do the run again with `zoo compare`", file=folder / "result.json")
    split = final_split(module)
    recorded = json.loads((folder / "run.json").read_text())["annotations"].get(split)
    if recorded != module.table(split).fingerprint():
        raise InputError(
            f"was measured on other annotations of the {split} split (fingerprint {recorded}) than there are now"
            f" ({module.table(split).fingerprint()}); runs of one report need the same images",
            file=folder,
        )
    return replace(with_benchmark(run, folder), folder=os.path.relpath(folder, out))


def _external_run(file: Path, out: Path) -> Run:
    name = file.parent.name if file.stem == "predictions" else file.stem
    return Run(model=name, config=name, seed=0, folder=os.path.relpath(file, out), status="done")


def check_configurations(runs: Sequence[Run], found: Sequence[Path]) -> None:
    """Make sure that runs of one name are seeds of one thing: they are averaged.

    Raises:
        InputError: a name stands for two models or budgets, or has a seed twice; names the second run.
    """
    known: dict[str, Any] = {}
    seeds: set[tuple[str, int]] = set()
    for run, folder in zip(runs, found, strict=True):
        identity = json.loads((folder / "run.json").read_text()) if folder.is_dir() else {}
        what = [identity.get("model"), identity.get("budget")]
        if known.setdefault(run.config, what) != what or (run.config, run.seed) in seeds:
            raise InputError(
                f"another run is called {run.config}, and is not another seed of the same model and budget;"
                " report them apart, or give the runs of one comparison other names (--names)",
                file=folder,
            )
        seeds.add((run.config, run.seed))


def _former_results(folder: Path) -> Path:
    return folder.parent / "results.json"


def _ours(runs: Sequence[Run], found: Sequence[Path]) -> Iterator[tuple[Run, Path]]:
    return ((run, folder) for run, folder in zip(runs, found, strict=True) if folder.is_dir())


def read_data_config(runs: Sequence[Path], data: Path | None) -> tuple[str, Path]:
    """The text that describes the data, and its file: the one given, or that of the first run."""
    if data is not None and is_data_set(data):
        return yaml.safe_dump(data_arguments(data), sort_keys=False), data
    if data is not None:
        read_yaml(data)
        return data.read_text(), data
    if not runs:
        raise InputError("predictions alone do not say what is true; give --data FILE")
    file = runs[0] / "config.yaml"
    return yaml.safe_dump(read_yaml(file)["data"], sort_keys=False), file


def find_ceilings(config: Path, module: DetectionDataModule) -> list[Ceiling]:
    """What the representation of a run's detector cannot give of the measured objects; no weights are needed."""
    parser = make_parser()
    detector = instantiate(parser, parse(parser, ["--config", str(config)])).model
    split = final_split(module)
    return ceilings(detector, module.table(split), module.sources[split])


def describe_data(module: DetectionDataModule, name: str) -> dict[str, str | int]:
    """Name (or the one given, where it has none), number of classes, and images of each split."""
    described: dict[str, str | int] = {"name": module.name or name, "classes": module.num_classes}
    return described | {split: len(module.table(split)) for split in SPLITS if split in module.sources}


# ---------------------------------------------------------------------------------------------------- what they say


def read_predictions(results: Results, table: AnnotationTable, out: Path) -> dict[str, Predictions]:
    """What each finished run said of the images: `Run.folder` -> its predictions."""
    said = {}
    for run in results.runs:
        if run.status == "done":
            kept = Path(os.path.normpath(out / run.folder))  # `out` may not be there yet, and then has no `..`
            file = kept / "predictions.json" if kept.is_dir() else kept
            said[run.folder] = read_coco_results(file, table.image_ids, table.class_ids)
    return said


def analyse(
    results: Results,
    said: Mapping[str, Predictions],
    table: AnnotationTable,
    resamples: int = RESAMPLES,
    progress: Progress = lambda text: None,
) -> None:
    """Fill in what follows from the predictions: figures, errors, intervals, verdicts.

    Args:
        results: runs that were gathered or have just ended; changed in place.
        said: `Run.folder` -> predictions, of each finished run.
        table: annotations of the images.
        resamples: of the bootstrap; 0 for no intervals and no verdicts.
        progress: is told what comes next.
    """
    truth = GroundTruth.from_table(table)
    done = [run for run in results.runs if run.status == "done"]
    for run in done:
        progress(f"errors of {run.folder}")
        measure(run, truth, said[run.folder], table)
    if not resamples or not done:
        return
    progress(f"{resamples} resamples of {len(truth.image_ids)} images")
    by_config = defaultdict(list)
    for run in done:
        by_config[run.config].append(run.folder)
    matches = {folder: collect_matches(truth, predictions) for folder, predictions in said.items()}
    # One bootstrap of both, so that all see the same resamples; no path is called `all of ...`.
    alone = {folder: [matches[folder]] for folder in said}
    together = {_all_of(config): [matches[folder] for folder in folders] for config, folders in by_config.items()}
    drawn = bootstrap(alone | together, resamples)
    results.resamples, results.class_images = resamples, drawn.class_images
    for run in done:
        run.analysis.intervals = {key: Interval(*drawn.interval(run.folder, key)) for key in KEYS}
        run.analysis.class_intervals = {
            name: Interval(*drawn.class_interval(run.folder, name)) for name in truth.classes
        }
    results.pairs = [
        _compare_entries(drawn, first, second, truth.classes) for first, second in combinations(by_config, 2)
    ]


def _all_of(config: str) -> str:
    return f"all of {config}"


def _compare_entries(drawn: Bootstrap, first: str, second: str, classes: Sequence[str]) -> Pair:
    return Pair(
        first,
        second,
        {key: Difference(*drawn.difference(_all_of(first), _all_of(second), key)) for key in KEYS},
        {name: Difference(*drawn.class_difference(_all_of(first), _all_of(second), name)) for name in classes},
    )


def measure(run: Run, truth: GroundTruth, predictions: Predictions, table: AnnotationTable) -> None:
    """The figures and errors of one run, by every protocol; what is of its training stays."""
    scores = evaluate(truth, predictions)
    run.metrics, run.per_class = scores.metrics, scores.per_class
    said = (predictions.of_image(int(image_id)) for image_id in table.image_ids)
    run.shown_score = best_f1_score(said, (table.target(index) for index in range(len(table))))
    reliability = calibration(truth, predictions)
    run.analysis = Analysis(
        errors=tide_errors(truth, predictions),
        curves=precision_recall(truth, predictions),
        confusion=confusion_matrix(truth, predictions, run.shown_score).tolist(),
        slices={by: [_convert(part, Slice) for part in parts] for by, parts in slices(truth, predictions).items()},
        calibration=None if reliability is None else _convert(reliability, Calibration),
        thresholds={name: _convert(best, Threshold) for name, best in best_thresholds(truth, predictions).items()},
        ceilings=run.analysis.ceilings,
    )


def _convert(value: Any, form: type[T]) -> T:
    """A figure of `zoo.evaluation` in the form that `results.json` gives it: the same fields."""
    return msgspec.convert(asdict(value), form)


# ------------------------------------------------------------------------------------------------------- the report


def finish(
    results: Results,
    module: DetectionDataModule,
    out: Path,
    resamples: int = RESAMPLES,
    progress: Progress = lambda text: None,
) -> None:
    """Analyse runs, choose the pictures, and write the report into the folder `out`."""
    table = module.table(final_split(module))
    said = read_predictions(results, table, out)
    analyse(results, said, table, resamples, progress)
    progress("pictures and report")
    write_report(results, out, pick_examples(results, said, module))


def pick_examples(results: Results, said: Mapping[str, Predictions], module: DetectionDataModule) -> list[Example]:
    """Test images worth a look, with what the first run of each configuration said of them."""
    split = final_split(module)
    table, source = module.table(split), module.sources[split]
    runs = first_runs(find_entries(results))
    shown = {run.folder: said[run.folder] for run in runs}
    scores = {run.folder: shown_score(run) for run in runs}
    place = {int(image_id): index for index, image_id in enumerate(table.image_ids)}
    truth = GroundTruth.from_table(table)
    examples = []
    for choice in choose_pictures(truth, shown, scores, NUM_PICTURES, NUM_SAMPLED, seed=0):
        index = place[choice.image_id]
        predictions = {folder: predictions.of_image(choice.image_id) for folder, predictions in shown.items()}
        image = source.load_image(table, index)
        examples.append(make_example(table.file_name(index), image, table.target(index), predictions, choice.reasons))
    return examples


# --------------------------------------------------------------------------------------------------- the same again


@dataclass
class Verification:
    """What came of computing a report's figures again."""

    compared: int
    different: list[str]  # "runs[0].metrics.AP: .612 in results.json, .611 now"


def verify(folder: Path, progress: Progress = lambda text: None) -> Verification:
    """Score the kept predictions of a report again and hold every figure against `results.json`.

    Costs and learning curves were measured while the runs went on, and ceilings are of detectors and not of what they
    said: they are not compared.

    Raises:
        InputError: a file is missing or damaged, or the annotations are others than they were.
    """
    results = read_results(folder / "results.json")
    if not results.data_config:
        raise InputError("says nothing of where its data is; make the report again", file=folder / "results.json")
    module = build_data(yaml.safe_load(results.data_config), folder / "results.json")
    split = final_split(module)
    table = module.table(split)
    if table.fingerprint() != results.fingerprints.get(split):
        raise InputError(
            f"annotations of the {split} split are not those of the report: fingerprint {table.fingerprint()},"
            f" the report has {results.fingerprints.get(split)}",
            file=folder / "results.json",
        )
    again = deepcopy(results)
    for run in again.runs:
        run.metrics, run.per_class, run.shown_score = {}, {}, None
        run.analysis = Analysis(ceilings=run.analysis.ceilings)
    again.pairs = []
    analyse(again, read_predictions(again, table, folder), table, results.resamples, progress)
    recorded, now = _figures(results), _figures(again)
    different = [
        f"{place}: {recorded.get(place)} in results.json, {now.get(place)} now"
        for place in dict.fromkeys([*recorded, *now])
        if not _is_same(recorded.get(place), now.get(place))
    ]
    return Verification(len(recorded.keys() | now.keys()), different)


def _figures(results: Results) -> dict[str, Any]:
    """Place -> figure or verdict of everything that follows from predictions."""
    found: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{place}.{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{place}[{index}]")
        else:
            found[place] = value

    for run in results.runs:
        for name in ("metrics", "per_class", "shown_score"):
            walk(getattr(run, name), f"{run.folder}.{name}")
        walk(msgspec.to_builtins(replace(run.analysis, ceilings=[])), f"{run.folder}.analysis")
    for pair in results.pairs:
        walk(msgspec.to_builtins(pair), f"{pair.first} against {pair.second}")
    return found


def _is_same(recorded: Any, now: Any) -> bool:
    if isinstance(recorded, float) and isinstance(now, float):
        return math.isclose(recorded, now, rel_tol=0, abs_tol=SAME) or (math.isnan(recorded) and math.isnan(now))
    return recorded == now
