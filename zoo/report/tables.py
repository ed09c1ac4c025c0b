"""What the report says in words and numbers, before it becomes HTML or Markdown: one source for both."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from zoo.report.results import Results, Run

MISSING = "\u2013"  # an en dash stands where nothing was measured, or nothing is defined

MODEL_NAMES = {
    "sliding_window": "Sliding window",
    "rcnn": "R-CNN",
    "fast_rcnn": "Fast R-CNN",
    "faster_rcnn": "Faster R-CNN",
    "yolov1": "YOLOv1",
    "retinanet": "RetinaNet",
    "cornernet": "CornerNet",
}

Value: TypeAlias = float | None


@dataclass(frozen=True)
class Column:
    """One column of the main table."""

    group: str
    name: str
    unit: str  # "" for pure numbers
    legend: str
    value: Callable[[Run], Value]
    is_score: bool = False  # 0..1
    lower_is_better: bool = False


@dataclass(frozen=True)
class Cell:
    """One figure as it is shown."""

    text: str
    best: bool = False
    share: float = 0.0  # length of the bar behind it, 0..1


def metric(run: Run, name: str) -> Value:
    """A metric, or None where it is undefined: absent, NaN, or the -1 of COCO's tools."""
    return _defined(run.metrics.get(name))


def class_metric(run: Run, class_name: str, name: str) -> Value:
    """A metric of one class, None where undefined."""
    return _defined(run.per_class.get(class_name, {}).get(name))


def format_ap(value: float) -> str:
    """Three decimals without the leading zero: `.512`."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def format_cost(values: Iterable[Value]) -> Callable[[float], str]:
    """How to write the figures of one column: with so many decimals, at most two, that the least has three digits."""
    least = min((value for value in values if value), default=1.0)
    decimals = min(2, max(0, 2 - math.floor(math.log10(least))))
    return lambda value: f"{value:,.{decimals}f}"


def _metric_column(group: str, name: str, legend: str) -> Column:
    return Column(group, name, "", legend, lambda run: metric(run, name), is_score=True)


def _scaled(value: int | float | None, scale: float) -> Value:
    return None if value is None else value * scale


COLUMNS = (
    _metric_column("COCO", "AP", "average precision over IoU .50 to .95 in steps of .05, mean over classes"),
    _metric_column("COCO", "AP50", "the same at IoU .50 alone"),
    _metric_column("COCO", "AP75", "the same at IoU .75 alone"),
    _metric_column("COCO by size", "APs", "AP of small objects: area below 32² pixels"),
    _metric_column("COCO by size", "APm", "AP of medium objects: 32² to 96² pixels"),
    _metric_column("COCO by size", "APl", "AP of large objects: above 96² pixels"),
    _metric_column("VOC", "VOC07", "PASCAL VOC 2007: IoU .50, interpolated at 11 points of recall"),
    _metric_column("VOC", "VOC10", "PASCAL VOC 2010: IoU .50, area under the whole curve"),
    Column(
        "Cost",
        "Parameters",
        "M",
        "millions of trained and frozen weights",
        lambda run: _scaled(run.cost.parameters, 1e-6),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "FLOPs",
        "G",
        "billions of floating-point operations for one image, a multiply-add counted as two",
        lambda run: _scaled(run.cost.flops, 1e-9),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "Training",
        "images/s",
        "images seen in a second of training",
        lambda run: _defined(run.cost.train_images_per_s),
    ),
    Column(
        "Cost",
        "Training",
        "min",
        "minutes of training, without the validations between",
        lambda run: _defined(run.cost.train_minutes),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "Inference",
        "ms/image",
        "milliseconds an image at batch 1: everything from the image to its boxes, region proposals included, median",
        lambda run: _defined(run.cost.ms_per_image),
        lower_is_better=True,
    ),
)


def ranked(runs: Iterable[Run]) -> list[Run]:
    """The runs that finished, highest AP first; equal ones keep their order."""
    done = [run for run in runs if run.status == "done"]
    return sorted(done, key=lambda run: -_or_lowest(metric(run, "AP")))


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


def main_table(runs: list[Run]) -> list[list[Cell]]:
    """Cells of the main table, a row for each run, a column for each of `COLUMNS`; the best of a column is marked."""
    columns = []
    for column in COLUMNS:
        values = [column.value(run) for run in runs]
        text = format_ap if column.is_score else format_cost(values)
        columns.append(_mark_best(values, text, column.lower_is_better))
    return [list(row) for row in zip(*columns, strict=True)]


def class_table(runs: list[Run], classes: list[str]) -> list[list[Cell]]:
    """AP by class, a row for each class, a column for each run; the best of a row is marked."""
    return [_mark_best([class_metric(run, name, "AP") for run in runs], format_ap, False) for name in classes]


def verdict(results: Results) -> str:
    """One plain sentence: who leads by what, on which data, under which budget."""
    by_config: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in results.runs:
        if run.status == "done" and metric(run, "AP") is not None:
            by_config[run.model, run.config].append(run)
    num_failed = sum(run.status == "failed" for run in results.runs)
    failures = f" Failed: {num_failed} of {len(results.runs)} runs." if num_failed else ""
    if not by_config:
        return f"No run on {_name_data(results)} has an AP to compare.{failures}"

    scores = {key: sum(metric(run, "AP") or 0.0 for run in runs) / len(runs) for key, runs in by_config.items()}
    order = sorted(scores, key=lambda key: -scores[key])
    names = config_labels(results.runs)
    first = order[0]
    seeds = sorted({run.seed for runs in by_config.values() for run in runs})
    under = f"trained for {results.budget}, "
    under += f"seed {seeds[0]}." if len(seeds) == 1 else f"mean over seeds {', '.join(map(str, seeds))}."
    where = f"On {_name_data(results)}, {names[first]}"
    score = format_ap(scores[first])
    if len(order) == 1:
        return f"{where} reaches AP {score}, {under}{failures}"
    level = [key for key in order if format_ap(scores[key]) == score]
    if len(level) > 1:
        others = " and ".join(names[key] for key in level[1:])
        return f"{where} and {others} lead level with AP {score}; each {under}{failures}"
    second = order[1]
    # The difference of the rounded figures, so that a reader who subtracts them finds the same.
    lead = format_ap(round(scores[first], 3) - round(scores[second], 3))
    runner_up = f"{names[second]} ({format_ap(scores[second])})"
    return f"{where} leads with AP {score}, {lead} ahead of {runner_up}; each {under}{failures}"


def evaluated_images(results: Results) -> str:
    """Which images the accuracies are of: the test split's, or the validation split's where there is none."""
    return "test images" if "test" in results.data else "validation images" if "val" in results.data else "images"


def facts(results: Results) -> list[tuple[str, str]]:
    """What it takes to do it again, besides command and configurations: (name, fact)."""
    order = ["name", "train", "val", "test"]  # then the rest, as the file has it
    keys = sorted(results.data, key=lambda key: order.index(key) if key in order else len(order))
    return [
        ("Data", ", ".join(f"{key} {results.data[key]}" if key != "name" else f"{results.data[key]}" for key in keys)),
        *((f"Fingerprint, {split}", fingerprint) for split, fingerprint in results.fingerprints.items()),
        ("Budget", results.budget),
        ("Hardware", results.hardware),
        ("Versions", ", ".join(f"{package} {version}" for package, version in results.versions.items())),
        ("Made", results.created),
    ]


def legend(runs: list[Run]) -> list[tuple[str, str]]:
    """What each column of the main table means: (name, meaning)."""
    lines = [(f"{column.name}, {column.unit}" if column.unit else column.name, column.legend) for column in COLUMNS]
    inputs = sorted({run.cost.flops_input for run in runs if run.cost.flops_input})
    if inputs:
        lines.append(("Input of FLOPs", "; ".join(inputs)))
    return lines


def _name_data(results: Results) -> str:
    name = results.data.get("name", "the data")
    number = results.data.get("test", results.data.get("val"))
    return f"{name}" if number is None else f"the {number} {evaluated_images(results)} of {name}"


def _mark_best(values: list[Value], text: Callable[[float], str], lower_is_better: bool) -> list[Cell]:
    """Cells of figures that compete; those shown as the best one is shown are marked, unless there is only one."""
    known = [value for value in values if value is not None]
    best = text(min(known) if lower_is_better else max(known)) if len(known) > 1 else None
    return [
        Cell(MISSING) if value is None else Cell(text(value), text(value) == best, min(1.0, max(0.0, value)))
        for value in values
    ]


def _defined(value: Value) -> Value:
    return None if value is None or math.isnan(value) or value < 0 else value


def _or_lowest(value: Value) -> float:
    return -1.0 if value is None else value
