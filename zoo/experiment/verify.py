"""`zoo report --verify`: recompute the values of a report from its saved predictions and compare them."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from zoo.errors import InputError
from zoo.experiment.analysis import Progress, analyse, read_run_predictions
from zoo.experiment.combinations import combine_runs
from zoo.experiment.run import final_split
from zoo.report.results import (
    Analysis,
    Results,
    read_results,
)
from zoo.training.configuration import build_data

TOLERANCE = 1e-9
"""Absolute tolerance of floats: another processor may sum in another order."""


@dataclass
class Verification:
    """Result of recomputing the values of a report."""

    compared: int  # number of values
    different: list[str]  # "model_seed0.metrics.AP: 0.612 in results.json, 0.611 now"


def verify_report(folder: Path, progress: Progress = lambda text: None) -> Verification:
    """Evaluate the saved predictions of a report again and compare every value with `results.json`.

    Costs and learning curves, which were measured during training, and ceilings, which do not depend on predictions,
    are not compared.

    Raises:
        InputError: a file is missing or damaged, or the annotations have changed.
    """
    results = read_results(folder / "results.json")
    if not results.data_config:
        raise InputError("has no data_config; make the report again with `zoo report`", file=folder / "results.json")
    module = build_data(yaml.safe_load(results.data_config), folder / "results.json")
    split = final_split(module)
    table = module.table(split)
    if table.fingerprint() != results.fingerprints.get(split):
        raise InputError(
            f"annotations of the {split} split have changed since the report: fingerprint {table.fingerprint()},"
            f" in the report {results.fingerprints.get(split)}",
            file=folder / "results.json",
        )
    # before the metrics are cleared: they tell that a run without detections has masks
    table, predictions = read_run_predictions(results, module, folder, progress)
    again = deepcopy(results)
    for run in again.runs:
        run.metrics, run.per_class, run.shown_score = {}, {}, None
        run.analysis = Analysis(ceilings=run.analysis.ceilings)
    again.pairs, again.combinations = [], []
    pairs = [(item.first, item.second) for item in results.combinations if item.method == "fused"]
    combined = combine_runs(again, predictions, pairs)
    analyse(again, predictions, table, results.resamples, progress, combined)
    recorded, now = _collect_values(results), _collect_values(again)
    different = [
        f"{place}: {recorded.get(place)} in results.json, {now.get(place)} now"
        for place in dict.fromkeys([*recorded, *now])
        if not _is_same(recorded.get(place), now.get(place))
    ]
    return Verification(len(recorded.keys() | now.keys()), different)


def _collect_values(results: Results) -> dict[str, Any]:
    """Every value that depends on predictions, keyed by its path in the report."""
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
    for item in results.combinations:
        walk(msgspec.to_builtins(item), f"{item.first} {item.method} {item.second}")
    return found


def _is_same(recorded: Any, now: Any) -> bool:
    if isinstance(recorded, float) and isinstance(now, float):
        return math.isclose(recorded, now, rel_tol=0, abs_tol=TOLERANCE) or (math.isnan(recorded) and math.isnan(now))
    return recorded == now
