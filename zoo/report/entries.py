"""Who is compared: runs of one configuration are one entry, its seeds averaged; names and order of all."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zoo.report.number_format import Value, defined, mean
from zoo.report.results import Interval, Results, Run

MODEL_NAMES = {
    "sliding_window": "Sliding window",
    "rcnn": "R-CNN",
    "fast_rcnn": "Fast R-CNN",
    "faster_rcnn": "Faster R-CNN",
    "yolov1": "YOLOv1",
    "retinanet": "RetinaNet",
    "cornernet": "CornerNet",
}


@dataclass(frozen=True)
class Entry:
    """A configuration and all its finished runs, one a seed."""

    label: str
    model: str
    config: str
    runs: list[Run]

    @property
    def detail(self) -> str:
        """Configuration and seeds in words."""
        seeds = sorted({run.seed for run in self.runs})
        return f"{self.config}, seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"

    def mean(self, value: Callable[[Run], Value]) -> Value:
        """Mean over seeds of a figure of a run; those without it are left out."""
        return mean(value(run) for run in self.runs)

    def metric(self, name: str) -> Value:
        """Mean over seeds of a metric, None where it is undefined."""
        return self.mean(lambda run: metric(run, name))

    def interval(self, name: str) -> Interval | None:
        """95% interval of a metric over test images: with several seeds the ends of their intervals, averaged."""
        return _average([run.analysis.intervals.get(name) for run in self.runs])

    def class_interval(self, class_name: str) -> Interval | None:
        """The same of a class's AP."""
        return _average([run.analysis.class_intervals.get(class_name) for run in self.runs])

    def spread(self, name: str) -> tuple[float, float] | None:
        """Least and greatest of a metric over the seeds; None where fewer than two have it."""
        values = [value for run in self.runs if (value := metric(run, name)) is not None]
        return (min(values), max(values)) if len(values) > 1 else None


def find_entries(results: Results) -> list[Entry]:
    """Configurations with a finished run, highest mean AP first; equal ones, and those without AP, keep their order."""
    labels = config_labels(results.runs)
    runs_per_config: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in results.runs:
        if run.status == "done":
            runs_per_config[run.model, run.config].append(run)
    entries = [Entry(labels[key], *key, runs) for key, runs in runs_per_config.items()]
    return sorted(entries, key=lambda entry: -_or_lowest(entry.metric("AP")))


def first_runs(entries: Iterable[Entry]) -> list[Run]:
    """The run of the lowest seed of each: what is shown where only one can be."""
    return [min(entry.runs, key=lambda run: run.seed) for entry in entries]


def ranked(runs: Iterable[Run]) -> list[Run]:
    """The runs that finished, highest AP first; equal ones keep their order."""
    done = [run for run in runs if run.status == "done"]
    return sorted(done, key=lambda run: -_or_lowest(metric(run, "AP")))


def metric(run: Run, name: str) -> Value:
    """A metric, or None where it is undefined: absent, NaN, or the -1 of COCO's tools."""
    return defined(run.metrics.get(name))


def class_metric(run: Run, class_name: str, name: str) -> Value:
    """A metric of one class, None where undefined."""
    return defined(run.per_class.get(class_name, {}).get(name))


def find_timing(entry: Entry, batch: int, part: str) -> tuple[Value, Value]:
    """Median and 95th percentile of one part of the way at one batch size, seeds averaged."""
    found = [t for run in entry.runs for t in run.cost.timings if t.batch == batch and t.part == part]
    return mean(defined(t.median) for t in found), mean(defined(t.p95) for t in found)


def run_labels(runs: list[Run]) -> dict[str, str]:
    """What to call each run: its model, and as much of configuration and seed as it takes to tell it from the others.

    Returns:
        `Run.folder` -> label.
    """
    configs = config_labels(runs)
    names = {run.folder: configs[run.model, run.config] for run in runs}
    for detail in (lambda run: f"seed {run.seed}", lambda run: run.folder):
        alike = defaultdict(list)
        for run in runs:
            alike[names[run.folder]].append(run)
        for group in alike.values():
            if len(group) > 1:
                names.update({run.folder: f"{names[run.folder]}, {detail(run)}" for run in group})
    return names


def config_labels(runs: Iterable[Run]) -> dict[tuple[str, str], str]:
    """What to call the runs of a configuration, all seeds: `(Run.model, Run.config)` -> label."""
    keys = dict.fromkeys((run.model, run.config) for run in runs)
    models = [model for model, _ in keys]
    return {
        (model, config): model_name(model) + (f", {config}" if models.count(model) > 1 else "")
        for model, config in keys
    }


def model_name(model: str) -> str:
    """A detector's name as its paper writes it; the key itself where it is none of ours."""
    return MODEL_NAMES.get(model, model)


def _average(intervals: list[Interval | None]) -> Interval | None:
    values, lows, highs = ([getattr(i, end) for i in intervals if i] for end in ("value", "low", "high"))
    middle, low, high = (mean(map(defined, ends)) for ends in (values, lows, highs))
    if middle is None or low is None or high is None:
        return None
    return Interval(middle, low, high)


def _or_lowest(value: Value) -> float:
    return -1.0 if value is None else value
