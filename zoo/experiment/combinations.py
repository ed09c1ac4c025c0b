"""Combinations of the detectors of a report, from their saved predictions (`zoo report --combine`)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from zoo.data.table import AnnotationTable
from zoo.errors import InputError
from zoo.evaluation.bootstrap import Bootstrap
from zoo.evaluation.ensembles import fuse, oracle_ap, rescore
from zoo.evaluation.ground_truth import GroundTruth
from zoo.evaluation.identity import write_predictions
from zoo.evaluation.predictions import Predictions
from zoo.evaluation.scores import evaluate
from zoo.report.entries import config_labels
from zoo.report.results import Combination, Difference, Interval, Results

METRICS = ("AP", "AP50", "AP75")
ALL = "all"


@dataclass(frozen=True)
class Combined:
    """Predictions of two configurations combined in one way, by seed."""

    first: str  # Run.config
    second: str
    method: Literal["rescored", "fused"]
    by_seed: dict[int, Predictions]

    @property
    def key(self) -> str:
        """Names it among all; differs from every `Run.folder`."""
        return f"{self.first} {self.method} {self.second}"


def choose_pairs(results: Results, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of configurations to combine.

    Args:
        results: the runs.
        names: of configurations or detectors in the report, of which all pairs are taken; or "all".

    Raises:
        InputError: an unknown name, or only one.
    """
    labels = config_labels(run for run in results.runs if run.status == "done")
    configs = {config: label for (_, config), label in labels.items()}
    named = configs if list(names) == [ALL] else (_find_config(name, configs) for name in names)
    chosen = list(dict.fromkeys(named))
    if len(chosen) < 2:
        raise InputError(f"--combine needs two detectors or more, or all; this report has {', '.join(configs)}")
    return list(combinations(chosen, 2))


def _find_config(name: str, configs: Mapping[str, str]) -> str:
    for config, label in configs.items():
        if name in (config, label):
            return config
    raise InputError(f"--combine {name}: no such detector in this report; choose from {', '.join(configs)}, or all")


def combine_runs(
    results: Results, predictions: Mapping[str, Predictions], pairs: Sequence[tuple[str, str]]
) -> list[Combined]:
    """Each pair in three ways, seed by seed: the boxes of either rescored by the other, and those of both fused.

    Args:
        results: the runs.
        predictions: of each finished run, keyed by `Run.folder`.
        pairs: of configurations.

    Raises:
        InputError: two configurations have no seed in common.
    """
    found: dict[str, dict[int, Predictions]] = defaultdict(dict)
    for run in results.runs:
        if run.status == "done":
            found[run.config][run.seed] = predictions[run.folder]
    combined = []
    for first, second in pairs:
        seeds = [seed for seed in found[first] if seed in found[second]]
        if not seeds:
            raise InputError(f"--combine: {first} and {second} have no seed in common")
        for one, other in ((first, second), (second, first)):
            rescored = {seed: rescore(found[one][seed], found[other][seed]) for seed in seeds}
            combined.append(Combined(one, other, "rescored", rescored))
        fused = {seed: fuse([found[first][seed], found[second][seed]]) for seed in seeds}
        combined.append(Combined(first, second, "fused", fused))
    return combined


def evaluate_combined(
    combined: Sequence[Combined],
    results: Results,
    predictions: Mapping[str, Predictions],
    ground_truth: GroundTruth,
    drawn: Bootstrap | None,
    entry_keys: Mapping[str, str],
) -> list[Combination]:
    """Metrics of combinations, and their differences from their parts, seeds averaged.

    Args:
        combined: result of `combine_runs`.
        results: the runs.
        predictions: of each finished run, keyed by `Run.folder`.
        ground_truth: of the evaluated images.
        drawn: resamples of all entries and, by `Combined.key`, combinations; None for no intervals.
        entry_keys: key of each configuration in `drawn`.
    """
    folders = {(run.config, run.seed): run.folder for run in results.runs}
    oracles: dict[frozenset[str], float] = {}
    rows = []
    for item in combined:
        scores = [evaluate(ground_truth, found, ["coco"]).metrics for found in item.by_seed.values()]
        parts = frozenset((item.first, item.second))
        if parts not in oracles:
            bounds = [
                oracle_ap(ground_truth, [predictions[folders[part, seed]] for part in (item.first, item.second)])
                for seed in item.by_seed
            ]
            oracles[parts] = sum(bounds) / len(bounds)
        differences = {}
        if drawn is not None:
            for part in (item.first, item.second):
                differences[part] = Difference(*drawn.difference(item.key, entry_keys[part], "AP"))
        rows.append(
            Combination(
                first=item.first,
                second=item.second,
                method=item.method,
                metrics={name: sum(score[name] for score in scores) / len(scores) for name in METRICS},
                oracle=oracles[parts],
                intervals={} if drawn is None else {"AP": Interval(*drawn.interval(item.key, "AP"))},
                differences=differences,
            )
        )
    return rows


def write_combined(combined: Sequence[Combined], folder: Path, table: AnnotationTable) -> None:
    """Write the predictions of each combination and seed as COCO-results json."""
    for item in combined:
        for seed, found in item.by_seed.items():
            name = f"{item.first}_{item.method}_{item.second}_seed{seed}.json"
            write_predictions(found, folder / name, table)
