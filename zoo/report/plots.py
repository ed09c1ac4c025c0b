"""Learning curves as geometry; the page's template draws them as SVG in its own colours, light or dark."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from zoo.report.results import CurvePoint, Run
from zoo.report.tables import config_labels, format_ap, run_labels

# Size of a panel in SVG units (pixels on a wide screen), and the room for tick and line labels around the plot.
WIDTH, HEIGHT = 560, 340
LEFT, TOP, BOTTOM = 44, 14, 46
_LABEL_HEIGHT = 16
_LABEL_WIDTH = 9  # of a character, generously: nobody measures text here


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

    series: int  # a colour; runs of one configuration share it
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
    right: int
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def learning_curves(runs: list[Run]) -> list[Panel]:
    """AP on the validation images against images seen, and against minutes.

    Args:
        runs: in the order in which colours are given.

    Returns:
        Two panels, or none where no run recorded a defined AP while it trained.
    """
    curves = [(run, [point for point in run.curve if not math.isnan(point.AP) and point.AP >= 0]) for run in runs]
    curves = [(run, points) for run, points in curves if points]
    if not curves:
        return []
    return [
        _make_panel(curves, "images seen in training", lambda point: float(point.images_seen)),
        _make_panel(curves, "minutes of training", lambda point: point.minutes),
    ]


def nice_ticks(highest: float, most: int) -> list[float]:
    """Round values 0, s, 2s .. from 0 to the first that is not below `highest`, s = 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    exponent = math.floor(math.log10(highest / most))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    step = next(step for step in steps if highest / step <= most + 1e-9)
    count = math.ceil(highest / step - 1e-9)
    return [round(step * at, 10) for at in range(count + 1)]


def _make_panel(curves: list[tuple[Run, list[CurvePoint]]], x_label: str, x_of: Callable[[CurvePoint], float]) -> Panel:
    runs = [run for run, _ in curves]
    names, labels = config_labels(runs), run_labels(runs)
    # The x axis ends with the data, not with the next round number: budgets are rarely round.
    x_end = max(x_of(point) for _, points in curves for point in points) or 1.0
    y_values = nice_ticks(max(point.AP for _, points in curves for point in points), 6)
    bottom, right = HEIGHT - BOTTOM, WIDTH - 16 - _LABEL_WIDTH * max(len(name) for name in names.values())
    right = max(right, WIDTH // 2)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + (right - LEFT) * x / x_end, 1), round(bottom - (bottom - TOP) * y / y_values[-1], 1)

    panel = Panel(
        x_label=x_label,
        x_ticks=[Tick(place(x, 0.0)[0], f"{x:,g}") for x in nice_ticks(x_end, 6) if x <= x_end],
        y_ticks=[Tick(place(0.0, y)[1], "0" if y == 0 else f"{y:g}".removeprefix("0")) for y in y_values],
        right=right,
    )
    series = {key: number for number, key in enumerate(names)}
    for run, points in curves:
        key = (run.model, run.config)
        marks = [Mark(*place(x_of(point), point.AP), _describe(labels[run.folder], point)) for point in points]
        is_first = all(line.series != series[key] for line in panel.lines)
        panel.lines.append(Line(series[key], marks, names[key] if is_first else "", marks[-1].y))
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
