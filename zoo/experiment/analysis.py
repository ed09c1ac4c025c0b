"""Evaluation of finished runs: metrics, error types, bootstrap intervals, pairwise differences, example pictures.

`zoo compare` and `zoo report` share this code, so a report made again from the same predictions has the same numbers.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zoo.data.module import DetectionDataModule
from zoo.data.table import AnnotationTable
from zoo.evaluation.bootstrap import KEYS, Bootstrap, bootstrap
from zoo.evaluation.curves import best_thresholds, calibration, confusion_matrix, precision_recall
from zoo.evaluation.errors import tide_errors
from zoo.evaluation.ground_truth import GroundTruth, ObjectMasks
from zoo.evaluation.identity import read_predictions
from zoo.evaluation.matches import collect_matches
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.scores import MASK_PREFIX, describe_detection_limit, evaluate_boxes_and_masks, have_masks
from zoo.evaluation.slices import evaluate_slices
from zoo.experiment.combinations import Combined, combine_runs, evaluate_combined, write_combined
from zoo.experiment.run import final_split
from zoo.report.entries import find_entries, first_runs, run_labels
from zoo.report.pictures.examples import Example, MaskPixels, best_f1_score, make_example
from zoo.report.pictures.selection import choose_pictures
from zoo.report.pictures.views import shown_score
from zoo.report.results import (
    Analysis,
    Calibration,
    Difference,
    Interval,
    Pair,
    Results,
    Run,
    Slice,
    Threshold,
)
from zoo.report.write import write_report

T = TypeVar("T")

NUM_PICTURES = 40
NUM_SAMPLED = 8
"""How many of the pictures are sampled independently of all predictions."""

RESAMPLES = 1000
COMBINED = "combined"
"""Folder of the predictions of combinations, in that of the report."""

Progress = Callable[[str], None]


def read_run_predictions(
    results: Results, module: DetectionDataModule, out: Path, progress: Progress
) -> tuple[AnnotationTable, dict[str, Predictions]]:
    """Annotations, with masks if any predictions have them, and predictions of each finished run by `Run.folder`.

    Says how the predictions of other programs were matched.
    """
    split = final_split(module)
    table = module.table(split)
    predictions = {}
    labels = run_labels(results.runs)
    for run in results.runs:
        if run.status == "done":
            path = Path(os.path.normpath(out / run.folder))  # normalised, since `..` fails while `out` does not exist
            file = path / "predictions.json" if path.is_dir() else path
            matched = read_predictions(file, table)
            predictions[run.folder] = matched.predictions
            for note in (*matched.notes, *matched.warnings) if path.is_file() else matched.warnings:
                progress(f"{labels[run.folder]}: {note}")
    masked = {run.config for run in results.runs if run.folder in predictions and _has_masks(run, predictions)}
    for run in results.runs:
        if run.config in masked and run.folder in predictions and not len(predictions[run.folder]):
            # A file without detections does not say that they would have masks.
            predictions[run.folder] = replace(predictions[run.folder], masks=ObjectMasks.none())
    if masked:
        module.want_masks(True)
    return module.table(split), predictions


def _has_masks(run: Run, predictions: Mapping[str, Predictions]) -> bool:
    return predictions[run.folder].masks is not None or f"{MASK_PREFIX}AP" in run.metrics


def analyse(
    results: Results,
    predictions: Mapping[str, Predictions],
    table: AnnotationTable,
    resamples: int = RESAMPLES,
    progress: Progress = lambda text: None,
    combined: Sequence[Combined] = (),
) -> None:
    """Fill in all results that depend on predictions: metrics, errors, intervals, pairwise differences.

    Args:
        results: the runs; modified in place.
        predictions: predictions of each finished run, keyed by `Run.folder`.
        table: annotations of the evaluated images.
        resamples: number of bootstrap resamples; 0 skips intervals and differences.
        progress: called with a description of each step.
        combined: combinations of the runs.
    """
    ground_truth = GroundTruth.from_table(table)
    limit = describe_detection_limit(ground_truth)
    results.notes = [f"{limit[0].upper()}{limit[1:]}."] if limit else []
    done = [run for run in results.runs if run.status == "done"]
    labels = run_labels(results.runs)
    for run in done:
        progress(f"errors of {labels[run.folder]}")
        evaluate_run(run, ground_truth, predictions[run.folder], table)
    by_config = defaultdict(list)
    for run in done:
        by_config[run.config].append(run.folder)
    entry_keys = {config: _entry_key(config) for config in by_config}
    if not resamples or not done:
        results.combinations = evaluate_combined(combined, results, predictions, ground_truth, None, entry_keys)
        return
    progress(f"{resamples} resamples of {len(ground_truth.image_ids)} images")
    matches = {folder: collect_matches(ground_truth, found) for folder, found in predictions.items()}
    # One bootstrap over single runs and over entries (all seeds of a configuration), so that all share the resamples.
    of_runs = {folder: [matches[folder]] for folder in predictions}
    of_entries = {entry_keys[config]: [matches[folder] for folder in folders] for config, folders in by_config.items()}
    of_combined = {
        item.key: [collect_matches(ground_truth, found) for found in item.by_seed.values()] for item in combined
    }
    drawn = bootstrap(of_runs | of_entries | of_combined, resamples)
    results.resamples, results.class_images = resamples, drawn.class_images
    for run in done:
        run.analysis.intervals = {key: Interval(*drawn.interval(run.folder, key)) for key in KEYS}
        run.analysis.class_intervals = {
            name: Interval(*drawn.class_interval(run.folder, name)) for name in ground_truth.classes
        }
    results.pairs = [
        _compare_entries(drawn, first, second, ground_truth.classes) for first, second in combinations(by_config, 2)
    ]
    _analyse_masks(results, predictions, ground_truth, resamples)
    results.combinations = evaluate_combined(combined, results, predictions, ground_truth, drawn, entry_keys)


def _entry_key(config: str) -> str:
    """Bootstrap key of all seeds of a configuration; differs from every `Run.folder`."""
    return f"all of {config}"


def _analyse_masks(
    results: Results, predictions: Mapping[str, Predictions], ground_truth: GroundTruth, resamples: int
) -> None:
    """Add intervals and differences of mask AP, on the same resamples as those of boxes; for runs with masks only."""
    matches = {
        run.folder: collect_matches(ground_truth, predictions[run.folder], by_masks=True)
        for run in results.runs
        if run.status == "done" and have_masks(ground_truth, predictions[run.folder])
    }
    by_config = defaultdict(list)
    for run in results.runs:
        if run.folder in matches:
            by_config[run.config].append(matches[run.folder])
    of_entries = {_entry_key(config): found for config, found in by_config.items()}
    drawn = bootstrap({folder: [found] for folder, found in matches.items()} | of_entries, resamples)
    for run in results.runs:
        if run.folder in matches:
            for key in KEYS:
                run.analysis.intervals[f"{MASK_PREFIX}{key}"] = Interval(*drawn.interval(run.folder, key))
    for pair in results.pairs:
        if pair.first in by_config and pair.second in by_config:
            for key in KEYS:
                difference = drawn.difference(_entry_key(pair.first), _entry_key(pair.second), key)
                pair.differences[f"{MASK_PREFIX}{key}"] = Difference(*difference)


def _compare_entries(drawn: Bootstrap, first: str, second: str, classes: Sequence[str]) -> Pair:
    return Pair(
        first,
        second,
        {key: Difference(*drawn.difference(_entry_key(first), _entry_key(second), key)) for key in KEYS},
        {name: Difference(*drawn.class_difference(_entry_key(first), _entry_key(second), name)) for name in classes},
    )


def evaluate_run(run: Run, ground_truth: GroundTruth, predictions: Predictions, table: AnnotationTable) -> None:
    """Fill in the metrics and errors of one run; cost, learning curve and ceilings are kept."""
    scores = evaluate_boxes_and_masks(ground_truth, predictions)
    run.metrics, run.per_class = scores.metrics, scores.per_class
    per_image = (predictions.of_image(int(image_id)) for image_id in table.image_ids)
    run.shown_score = best_f1_score(per_image, (table.target(index) for index in range(len(table))))
    reliability = calibration(ground_truth, predictions)
    thresholds = best_thresholds(ground_truth, predictions)
    run.analysis = Analysis(
        errors=tide_errors(ground_truth, predictions),
        mask_errors=tide_errors(ground_truth, predictions, by_masks=True)
        if have_masks(ground_truth, predictions)
        else {},
        curves=precision_recall(ground_truth, predictions),
        confusion=confusion_matrix(ground_truth, predictions, shown_score(run)).tolist(),
        slices={
            by: [_convert(part, Slice) for part in parts]
            for by, parts in evaluate_slices(ground_truth, predictions).items()
        },
        calibration=None if reliability is None else _convert(reliability, Calibration),
        thresholds={name: _convert(best, Threshold) for name, best in thresholds.items()},
        ceilings=run.analysis.ceilings,
    )


def _convert(value: Any, form: type[T]) -> T:
    """Convert a dataclass of `zoo.evaluation` to the class with the same fields in `zoo.report.results`."""
    return msgspec.convert(asdict(value), form)


def analyse_and_report(
    results: Results,
    module: DetectionDataModule,
    out: Path,
    resamples: int = RESAMPLES,
    progress: Progress = lambda text: None,
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Analyse runs, choose example pictures, and write the report into the folder `out`.

    The predictions of pairs of configurations that are to be combined are written to `out/combined`.
    """
    table, predictions = read_run_predictions(results, module, out, progress)
    if pairs:
        progress(f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of detectors combined")
    combined = combine_runs(results, predictions, pairs)
    analyse(results, predictions, table, resamples, progress, combined)
    write_combined(combined, out / COMBINED, table)
    progress("pictures and report")
    write_report(results, out, pick_examples(results, predictions, module))


def pick_examples(
    results: Results, predictions: Mapping[str, Predictions], module: DetectionDataModule
) -> list[Example]:
    """Selected test images with the predictions of the first seed of each entry."""
    split = final_split(module)
    table, source = module.table(split), module.sources[split]
    runs = first_runs(find_entries(results))
    shown = {run.folder: predictions[run.folder] for run in runs}
    scores = {run.folder: shown_score(run) for run in runs}
    index_of = {int(image_id): index for index, image_id in enumerate(table.image_ids)}
    ground_truth = GroundTruth.from_table(table)
    examples = []
    for choice in choose_pictures(ground_truth, shown, scores, NUM_PICTURES, NUM_SAMPLED, seed=0):
        index = index_of[choice.image_id]
        of_image = {folder: found.of_image(choice.image_id) for folder, found in shown.items()}
        image = source.load_image(table, index)
        masks = {folder: _drawn_masks(found, choice.image_id, scores[folder]) for folder, found in shown.items()}
        examples.append(
            make_example(
                table.file_name(index),
                image,
                table.target(index),
                of_image,
                choice.reasons,
                _object_masks(table, index),
                masks,
            )
        )
    return examples


def _object_masks(table: AnnotationTable, index: int) -> Iterator[MaskPixels]:
    """Masks of one image's objects, if they were read."""
    if table.masks is not None:
        for row in range(table.rows(index).start, table.rows(index).stop):
            yield table.masks.decode(row, int(table.heights[index]), int(table.widths[index]))


def _drawn_masks(predictions: Predictions, image_id: int, score: float) -> Iterator[MaskPixels]:
    """Masks of one image's detections from a score on, highest score first."""
    found = predictions.masks
    if found is None:
        return
    for row in predictions.rows_of_image(image_id):
        if predictions.scores[row] >= score:
            yield found.masks.decode(int(row), int(found.heights[row]), int(found.widths[row]))
