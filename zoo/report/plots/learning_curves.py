"""Learning curves: validation AP against images seen and against minutes."""

from collections.abc import Callable

from zoo.report.entries import Entry, run_labels
from zoo.report.number_format import defined, format_ap
from zoo.report.plots.axes import (
    CHARACTER_WIDTH,
    Line,
    Mark,
    Plot,
    Tick,
    format_tick,
    nice_ticks,
    spread_labels,
    svg_path,
)
from zoo.report.results import CurvePoint, Run

# Size of a panel in SVG units (pixels on a wide screen), and the margins for tick and line labels.
WIDTH, HEIGHT = 560, 340
LEFT, TOP, BOTTOM = 44.0, 14.0, 46.0


def learning_curves(entries: list[Entry]) -> list[Plot]:
    """AP on the validation images against images seen, and against minutes; a line per seed.

    Args:
        entries: all entries, in the order of their colours.

    Returns:
        Two plots, or none if no run has a defined AP during training.
    """
    if not any(_defined_points(run) for entry in entries for run in entry.runs):
        return []
    return [
        _plot("learning-images", "images seen in training", entries, lambda point: float(point.images_seen)),
        _plot("learning-minutes", "minutes of training", entries, lambda point: point.minutes),
    ]


def _plot(name: str, x_label: str, entries: list[Entry], x_of: Callable[[CurvePoint], float]) -> Plot:
    all_points = [point for entry in entries for run in entry.runs for point in _defined_points(run)]
    # The x axis ends with the data rather than at a round number, since budgets are rarely round.
    x_end = max(map(x_of, all_points)) or 1.0
    y_values = nice_ticks(max(point.AP for point in all_points), 6)
    bottom = HEIGHT - BOTTOM
    right = max(WIDTH - 20 - CHARACTER_WIDTH * max(len(entry.label) for entry in entries), WIDTH / 2)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + (right - LEFT) * x / x_end, 1), round(bottom - (bottom - TOP) * y / y_values[-1], 1)

    labels = run_labels([run for entry in entries for run in entry.runs])
    lines: list[Line] = []
    for series, entry in enumerate(entries):
        label = entry.label  # one label for all seeds
        for run in entry.runs:
            marks = [
                Mark(*place(x_of(point), point.AP), _describe(labels[run.folder], point))
                for point in _defined_points(run)
            ]
            if not marks:
                continue
            marks[-1].radius = 3.2
            path = svg_path([(mark.x, mark.y) for mark in marks])
            lines.append(Line(series, labels[run.folder], marks, path, "", label, right + 10, marks[-1].y))
            label = ""
    spread_labels([line for line in lines if line.label], TOP, bottom)
    title = f"AP on the validation images against {x_label}"
    return Plot(
        name=name,
        title=title,
        summary="; ".join([title, *(line.marks[-1].text for line in lines)]),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=right,
        top=TOP,
        bottom=bottom,
        x_label=x_label,
        x_ticks=[Tick(place(x, 0.0)[0], f"{x:,g}") for x in nice_ticks(x_end, 6) if x <= x_end],
        y_ticks=[Tick(place(0.0, y)[1], format_tick(y)) for y in y_values],
        lines=lines,
    )


def _defined_points(run: Run) -> list[CurvePoint]:
    return [point for point in run.curve if defined(point.AP) is not None]


def _describe(label: str, point: CurvePoint) -> str:
    return (
        f"{label}: AP {format_ap(point.AP)} after {point.images_seen:,} images, {point.minutes:.1f} minutes "
        f"(epoch {point.epoch})"
    )
