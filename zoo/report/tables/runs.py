"""Metrics and costs of runs, entries and classes, as formatted cells shared by HTML and Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zoo.report.entries import Entry, class_metric, find_timing, metric
from zoo.report.number_format import MISSING, Value, defined, format_ap, format_cost, mean
from zoo.report.plots.pareto import find_latency
from zoo.report.results import Interval, Run


@dataclass(frozen=True)
class Column:
    """One column of the metrics table."""

    group: str
    name: str
    unit: str  # "" for pure numbers
    legend: str
    value: Callable[[Run], Value]
    is_score: bool = False  # 0..1
    lower_is_better: bool = False


@dataclass(frozen=True)
class Cell:
    """A formatted value of a table."""

    text: str
    best: bool = False
    share: float = 0.0  # length of its bar, 0..1
    low: float | None = None  # 95% interval, if known
    high: float | None = None
    spread: str = ""  # minimum and maximum over seeds; "" for one seed


def _metric_column(group: str, name: str, legend: str) -> Column:
    return Column(group, name, "", legend, lambda run: metric(run, name), is_score=True)


def _scaled(value: int | float | None, scale: float) -> Value:
    return None if value is None else value * scale


COLUMNS = (
    _metric_column("COCO", "AP", "average precision over IoU .50 to .95 in steps of .05, mean over classes"),
    _metric_column("COCO", "AP50", "AP at IoU .50 alone"),
    _metric_column("COCO", "AP75", "AP at IoU .75 alone"),
    _metric_column("COCO by size", "APs", "AP of small objects: area below 32² pixels"),
    _metric_column("COCO by size", "APm", "AP of medium objects: 32² to 96² pixels"),
    _metric_column("COCO by size", "APl", "AP of large objects: above 96² pixels"),
    _metric_column("VOC", "VOC07", "PASCAL VOC 2007: IoU .50, interpolated at 11 points of recall"),
    _metric_column("VOC", "VOC10", "PASCAL VOC 2010: IoU .50, area under the full precision-recall curve"),
    Column(
        "Cost",
        "Parameters",
        "M",
        "millions of weights, trained and frozen",
        lambda run: _scaled(run.cost.parameters, 1e-6),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "FLOPs",
        "G",
        "billions of floating-point operations per image; a multiply-add counts as two",
        lambda run: _scaled(run.cost.flops, 1e-9),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "Training",
        "images/s",
        "training images per second",
        lambda run: defined(run.cost.train_images_per_s),
    ),
    Column(
        "Cost",
        "Training",
        "min",
        "minutes of training, validation excluded",
        lambda run: defined(run.cost.train_minutes),
        lower_is_better=True,
    ),
    Column(
        "Cost",
        "Inference",
        "ms/image",
        "median milliseconds per image at batch 1, from file to boxes, region proposals included",
        lambda run: None if (latency := find_latency(run)) is None else latency.value,
        lower_is_better=True,
    ),
)


_COSTS: tuple[tuple[str, str, Callable[[Run], Value]], ...] = (
    ("Parameters", "M", lambda run: _scaled(run.cost.parameters, 1e-6)),
    ("FLOPs", "G/image", lambda run: _scaled(run.cost.flops, 1e-9)),
    ("Proposals", "in these FLOPs", lambda run: _scaled(run.cost.proposals, 1.0)),
    ("Peak memory", "MB", lambda run: defined(run.cost.peak_memory_mb)),
    ("Energy", "J/image", lambda run: defined(run.cost.joules_per_image)),
)


def run_table(runs: Sequence[Run]) -> list[list[Cell]]:
    """Metrics table: a row per run, a column for each of `COLUMNS`; the best of a column is marked."""
    return _table([[run] for run in runs])


def entry_table(entries: Sequence[Entry]) -> list[list[Cell]]:
    """Metrics table with a row per entry, seeds averaged."""
    return _table([entry.runs for entry in entries])


def class_table(entries: Sequence[Entry], classes: list[str]) -> list[list[Cell]]:
    """AP by class: a row per class, a column per entry; the best of a row is marked."""
    return [
        mark_best(
            [mean(class_metric(run, name, "AP") for run in entry.runs) for entry in entries],
            format_ap,
            intervals=[entry.class_interval(name) for entry in entries],
        )
        for name in classes
    ]


def mark_best(
    values: Sequence[Value],
    text: Callable[[float], str],
    lower_is_better: bool = False,
    intervals: Sequence[Interval | None] = (),
    spreads: Sequence[str] = (),
) -> list[Cell]:
    """Format values as cells; all that look the same as the best are marked, unless only one value is known."""
    known = [value for value in values if value is not None]
    best = text(min(known) if lower_is_better else max(known)) if len(known) > 1 else None
    cells = []
    for at, value in enumerate(values):
        if value is None:
            cells.append(Cell(MISSING))
            continue
        interval = intervals[at] if intervals else None
        low, high = (interval.low, interval.high) if interval else (None, None)
        share = min(1.0, max(0.0, value))
        cells.append(Cell(text(value), text(value) == best, share, low, high, spreads[at] if spreads else ""))
    return cells


def cost_table(entries: Sequence[Entry]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Costs other than time: (name, unit) of each column with a known value, and a row per entry."""
    columns, heads = [], []
    for name, unit, value in _COSTS:
        values = [entry.mean(value) for entry in entries]
        if any(v is not None for v in values):
            heads.append((name, unit))
            if name == "Proposals":  # neither more nor fewer is better
                columns.append([Cell(MISSING if v is None else f"{v:,.0f}") for v in values])
            else:
                columns.append(mark_best(values, format_cost(values), lower_is_better=True))
    return heads, [list(row) for row in zip(*columns, strict=True)]


def time_table(entries: Sequence[Entry], batch: int, parts: Sequence[str]) -> list[list[str]]:
    """`median (95th percentile)` in milliseconds per image: a row per entry, a column per part."""
    columns = []
    for part in parts:
        timings = [find_timing(entry, batch, part) for entry in entries]
        text = format_cost([median for median, _ in timings])
        columns.append(
            [
                MISSING if median is None else text(median) + ("" if p95 is None else f" ({text(p95)})")
                for median, p95 in timings
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def legend(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, meaning) of each column of the metrics table."""
    lines = [(f"{column.name}, {column.unit}" if column.unit else column.name, column.legend) for column in COLUMNS]
    inputs = sorted({run.cost.flops_input for run in runs if run.cost.flops_input})
    if inputs:
        lines.append(("Input of FLOPs", "; ".join(inputs)))
    return lines


def _table(groups: Sequence[Sequence[Run]]) -> list[list[Cell]]:
    columns = []
    for column in COLUMNS:
        values = [mean(column.value(run) for run in group) for group in groups]
        text = format_ap if column.is_score else format_cost(values)
        spreads = [_spread([column.value(run) for run in group], text) for group in groups]
        columns.append(mark_best(values, text, column.lower_is_better, spreads=spreads))
    return [list(row) for row in zip(*columns, strict=True)]


def _spread(values: Sequence[Value], text: Callable[[float], str]) -> str:
    """Minimum and maximum over seeds as `.512–.530`; "" where they are equal."""
    known = [value for value in values if value is not None]
    ends = [text(end(known)) for end in (min, max)] if known else []
    return MISSING.join(ends) if len(set(ends)) > 1 else ""
