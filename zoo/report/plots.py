"""Learning curves as geometry; the page's template draws them as SVG in its own colours, light or dark."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from zoo.report.results import CurvePoint, Run
from zoo.report.tables import format_ap

# Size of a panel in SVG units (pixels on a wide screen), and the room for tick and line labels around the plot.
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 44, 128, 14, 46
_LABEL_HEIGHT = 16


@dataclass
class Tick:
    """A place on an axis."""

    position: float
    text: str


@dataclass
class Mark:
    """One validation: a place on a line, and what to say when it is pointed at."""

    x: float
    y: float
    text: str


@dataclass
class Line:
    """The curve of one run."""

    series: int  # runs of one configuration share a colour
    marks: list[Mark]
    label: str  # "" where another line of the series has it
    label_y: float = 0.0

    @property
    def path(self) -> str:
        """The `d` of an SVG path."""
        return "M" + "L".join(f"{mark.x:.1f} {mark.y:.1f}" for mark in self.marks)


@dataclass
class Panel:
    """AP against one measure of effort."""

    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def learning_curves(runs: list[Run], labels: dict[str, str]) -> list[Panel]:
    """AP on the validation images against images seen, and against minutes.

    Args:
        runs: in the order in which colours are given.
        labels: `Run.folder` -> what to call it.

    Returns:
        Two panels, or none where no run recorded a defined AP while it trained.
    """
    curves = [(run, [point for point in run.curve if not math.isnan(point.AP) and point.AP >= 0]) for run in runs]
    curves = [(run, points) for run, points in curves if points]
    if not curves:
        return []
    return [
        _make_panel(curves, labels, series_of(runs), "images seen in training", lambda point: float(point.images_seen)),
        _make_panel(curves, labels, series_of(runs), "minutes of training", lambda point: point.minutes),
    ]


def series_of(runs: list[Run]) -> dict[str, int]:
    """`Run.folder` -> number of its colour: runs of one configuration share it."""
    configs = list(dict.fromkeys((run.model, run.config) for run in runs))
    return {run.folder: configs.index((run.model, run.config)) for run in runs}


def nice_ticks(highest: float, most: int) -> list[float]:
    """Round values 0, s, 2s .. from 0 to the first that is not below `highest`, s = 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    exponent = math.floor(math.log10(highest / most))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    step = next(step for step in steps if highest / step <= most + 1e-9)
    count = math.ceil(highest / step - 1e-9)
    return [round(step * at, 10) for at in range(count + 1)]


def _make_panel(
    curves: list[tuple[Run, list[CurvePoint]]],
    labels: dict[str, str],
    series: dict[str, int],
    x_label: str,
    x_of: Callable[[CurvePoint], float],
) -> Panel:
    x_values = nice_ticks(max(x_of(point) for _, points in curves for point in points), 6)
    y_values = nice_ticks(max(point.AP for _, points in curves for point in points), 6)
    # The x axis ends with the data, not with the next round number: budgets are rarely round.
    x_end = max(x_of(point) for _, points in curves for point in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        return round(LEFT + (right - LEFT) * x / x_end, 1), round(bottom - (bottom - TOP) * y / y_values[-1], 1)

    panel = Panel(
        x_label=x_label,
        x_ticks=[Tick(place(x, 0)[0], f"{x:,g}") for x in x_values if x <= x_end],
        y_ticks=[Tick(place(0, y)[1], "0" if y == 0 else f"{y:g}".removeprefix("0")) for y in y_values],
    )
    named: set[int] = set()
    for run, points in curves:
        number = series[run.folder]
        marks = [Mark(*place(x_of(point), point.AP), _describe(labels[run.folder], point)) for point in points]
        name = labels[run.folder] if number not in named else ""
        named.add(number)
        panel.lines.append(Line(number, marks, name, marks[-1].y))
    _spread_labels([line for line in panel.lines if line.label])
    return panel


def _describe(label: str, point: CurvePoint) -> str:
    return (
        f"{label}: AP {format_ap(point.AP)} after {point.images_seen:,} images, {point.minutes:.1f} minutes "
        f"(epoch {point.epoch})"
    )


def _spread_labels(lines: list[Line]) -> None:
    """Move labels apart up and down until none covers another; they stay in order and inside the plot."""
    lines.sort(key=lambda line: line.label_y)
    for above, below in pairwise(lines):
        below.label_y = max(below.label_y, above.label_y + _LABEL_HEIGHT)
    limit = float(HEIGHT - BOTTOM)
    for line in reversed(lines):
        line.label_y = min(line.label_y, limit)
        limit = line.label_y - _LABEL_HEIGHT
