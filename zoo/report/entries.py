"""Entries of a report: the runs of one configuration with seeds averaged, their labels and their order."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zoo.report.number_format import Value, defined, mean
from zoo.report.results import Interval, Results, Run


@dataclass(frozen=True)
class Entry:
    """A configuration and its finished runs, one per seed."""

    label: str
    model: str
    config: str
    runs: list[Run]

    @property
    def is_external(self) -> bool:
        """Whether only the predictions are known, which another program made."""
        return all(run.is_external for run in self.runs)

    @property
    def seeds(self) -> str:
        """Seeds of the runs as text; "" where they are unknown."""
        return " ".join(str(run.seed) for run in self.runs if not run.is_external)

    @property
    def detail(self) -> str:
        """Configuration and seeds as text."""
        if self.is_external:
            return "predictions of another program"
        seeds = sorted({run.seed for run in self.runs})
        return f"{self.config}, seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"

    def mean(self, value: Callable[[Run], Value]) -> Value:
        """Mean of `value(run)` over seeds; undefined values are left out."""
        return mean(value(run) for run in self.runs)

    def metric(self, name: str) -> Value:
        """Mean of a metric over seeds; None where undefined."""
        return self.mean(lambda run: metric(run, name))

    def interval(self, name: str) -> Interval | None:
        """95% interval of a metric over test images; with several seeds, the mean of their bounds."""
        return _average([run.analysis.intervals.get(name) for run in self.runs])

    def class_interval(self, class_name: str) -> Interval | None:
        """95% interval of the AP of a class, averaged over seeds like `interval`."""
        return _average([run.analysis.class_intervals.get(class_name) for run in self.runs])

    def spread(self, name: str) -> tuple[float, float] | None:
        """Minimum and maximum of a metric over seeds; None where fewer than two have it."""
        values = [value for run in self.runs if (value := metric(run, name)) is not None]
        return (min(values), max(values)) if len(values) > 1 else None


def find_entries(results: Results) -> list[Entry]:
    """Entries with a finished run, highest mean AP first; ties, and entries without AP at the end, keep their order."""
    labels = config_labels(results.runs)
    runs_per_config: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in results.runs:
        if run.status == "done":
            runs_per_config[run.model, run.config].append(run)
    entries = [Entry(labels[key], *key, runs) for key, runs in runs_per_config.items()]
    return sorted(entries, key=lambda entry: -_or_lowest(entry.metric("AP")))


def first_runs(entries: Iterable[Entry]) -> list[Run]:
    """The run with the lowest seed of each entry, for parts of the report that show one run of each."""
    return [min(entry.runs, key=lambda run: run.seed) for entry in entries]


def ranked(runs: Iterable[Run]) -> list[Run]:
    """Finished runs, highest AP first; ties keep their order."""
    done = [run for run in runs if run.status == "done"]
    return sorted(done, key=lambda run: -_or_lowest(metric(run, "AP")))


def metric(run: Run, name: str) -> Value:
    """A metric of a run; None where undefined: absent, NaN, or the -1 of COCO's tools."""
    return defined(run.metrics.get(name))


def class_metric(run: Run, class_name: str, name: str) -> Value:
    """A metric of one class; None where undefined."""
    return defined(run.per_class.get(class_name, {}).get(name))


def find_timing(entry: Entry, batch: int, part: str) -> tuple[Value, Value]:
    """Median and 95th percentile, ms per image, of one part of inference at one batch size, seeds averaged."""
    found = [t for run in entry.runs for t in run.cost.timings if t.batch == batch and t.part == part]
    return mean(defined(t.median) for t in found), mean(defined(t.p95) for t in found)


def run_labels(runs: list[Run]) -> dict[str, str]:
    """Label of each run: its model, with configuration, seed and folder as far as needed to be unique.

    Returns:
        `Run.folder` -> label.
    """
    configs = config_labels(runs)
    names = {run.folder: configs[run.model, run.config] for run in runs}
    for detail in (lambda run: f"seed {run.seed}", lambda run: run.folder):
        same_label = defaultdict(list)
        for run in runs:
            same_label[names[run.folder]].append(run)
        for group in same_label.values():
            if len(group) > 1:
                names.update({run.folder: f"{names[run.folder]}, {detail(run)}" for run in group})
    return names


def config_labels(runs: Iterable[Run]) -> dict[tuple[str, str], str]:
    """Label of each configuration: `(Run.model, Run.config)` -> label."""
    names = {(run.model, run.config): run.name or run.model for run in runs}
    models = [model for model, _ in names]
    return {
        (model, config): name + (f", {config}" if models.count(model) > 1 else "")
        for (model, config), name in names.items()
    }


def _average(intervals: list[Interval | None]) -> Interval | None:
    values, lows, highs = ([getattr(i, end) for i in intervals if i] for end in ("value", "low", "high"))
    middle, low, high = (mean(map(defined, ends)) for ends in (values, lows, highs))
    if middle is None or low is None or high is None:
        return None
    return Interval(middle, low, high)


def _or_lowest(value: Value) -> float:
    return -1.0 if value is None else value
