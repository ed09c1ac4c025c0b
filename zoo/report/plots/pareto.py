"""AP against latency, with the Pareto front."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from zoo.report.entries import Entry
from zoo.report.number_format import defined, format_ap, format_interval, format_ms, mean
from zoo.report.plots.axes import (
    CHARACTER_WIDTH,
    LABEL_HEIGHT,
    Line,
    Mark,
    Plot,
    Tick,
    format_tick,
    nice_range,
    nice_ticks,
)
from zoo.report.results import Interval, Run

_WIDTH, _HEIGHT = 560, 380
_LEFT, _TOP, _BOTTOM = 44.0, 28.0, 46.0
_LOG_RATIO = 12.0  # slowest over fastest latency from which the axis is logarithmic
_POINT = 5.0  # radius

Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class ParetoPoint:
    """AP and latency of an entry."""

    series: int
    label: str
    accuracy: Interval  # AP; low = high = value where no interval is known
    latency: Interval  # ms per image at batch 1: low = value = median, high = 95th percentile if known


def find_latency(run: Run) -> Interval | None:
    """Milliseconds per image at batch 1: the median as value and low, the 95th percentile, if known, as high."""
    for timing in run.cost.timings:
        if timing.batch == 1 and timing.part == "total" and defined(timing.median):
            return Interval(timing.median, timing.median, max(timing.median, defined(timing.p95) or 0.0))
    median = defined(run.cost.ms_per_image)
    return Interval(median, median, median) if median else None


def find_pareto_points(entries: list[Entry]) -> list[ParetoPoint]:
    """Points of the entries with known AP and latency, seeds averaged."""
    points = []
    for series, entry in enumerate(entries):
        accuracy = entry.metric("AP")
        latencies = [latency for run in entry.runs if (latency := find_latency(run))]
        if accuracy is None or not latencies:
            continue
        middle, high = (mean(getattr(latency, end) for latency in latencies) or 0.0 for end in ("value", "high"))
        interval = entry.interval("AP")
        low_ap, high_ap = (interval.low, interval.high) if interval else (accuracy, accuracy)
        points.append(
            ParetoPoint(series, entry.label, Interval(accuracy, low_ap, high_ap), Interval(middle, middle, high))
        )
    return points


def pareto_front(points: list[ParetoPoint]) -> list[ParetoPoint]:
    """Pareto front of AP and latency, fastest first; of equal points only the first."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda s: (s.latency.value, -s.accuracy.value)):
        if not front or point.accuracy.value > front[-1].accuracy.value:
            front.append(point)
    return front


def pareto_plot(entries: list[Entry]) -> Plot | None:
    """AP with its 95% interval against latency; None where fewer than two entries have both."""
    points = find_pareto_points(entries)
    if len(points) < 2:
        return None
    front = pareto_front(points)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - 24.0
    x_place, x_ticks, is_log = _latency_axis(points, right)
    y_values = nice_range(min(s.accuracy.low for s in points), max(s.accuracy.high for s in points), 6)

    def y_place(value: float) -> float:
        return round(bottom - (bottom - _TOP) * (value - y_values[0]) / (y_values[-1] - y_values[0]), 1)

    corners = [(x_place(s.latency.value), y_place(s.accuracy.value)) for s in front]
    rule = f"M{corners[0][0]:g} {bottom:g}" + "".join(f"H{x:g}V{y:g}" for x, y in corners) + f"H{right:g}"
    taken = [(x, y - 1, x_next, y + 1) for (x, y), (x_next, _) in pairwise([*corners, (right, 0.0)])]
    taken += [(x - 1, y, x + 1, y_before) for (_, y_before), (x, y) in pairwise([(0.0, bottom), *corners])]
    lines = []
    for s in points:
        x, y, x_high = x_place(s.latency.value), y_place(s.accuracy.value), x_place(s.latency.high)
        y_low, y_high = y_place(s.accuracy.low), y_place(s.accuracy.high)
        taken += [
            (x - _POINT, y - _POINT, x + _POINT, y + _POINT),
            (x - 1, y_high, x + 1, y_low),
            (x, y - 1, x_high, y + 1),
        ]
        whiskers = (f"M{x:g} {y_low:g}V{y_high:g}" if y_low > y_high else "") + (
            f"M{x:g} {y:g}H{x_high:g}" if x_high > x else ""
        )
        mark = Mark(x, y, _describe(s, s in front), _POINT, hollow=s not in front)
        lines.append(Line(s.series, s.label, [mark], "", whiskers, s.label, leader=False))
    _label_points(lines, taken, right)
    names = [s.label for s in front]
    return Plot(
        name="pareto",
        title="Accuracy against latency",
        summary=f"AP against milliseconds per image. On the front: {', '.join(names)}. "
        + "; ".join(line.marks[0].text for line in lines),
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        x_label="milliseconds per image, batch 1" + (", logarithmic" if is_log else ""),
        y_label="AP",
        x_ticks=x_ticks,
        y_ticks=[Tick(y_place(y), format_tick(y)) for y in y_values],
        lines=lines,
        rules=[rule],
    )


def _latency_axis(points: list[ParetoPoint], right: float) -> tuple[Callable[[float], float], list[Tick], bool]:
    """Map from latency to x, the ticks, and whether the axis is logarithmic; a linear axis starts at 0."""
    fastest, slowest = min(s.latency.value for s in points), max(s.latency.high for s in points)
    if slowest <= _LOG_RATIO * fastest:
        end = slowest * 1.08
        return (
            lambda ms: round(_LEFT + (right - _LEFT) * ms / end, 1),
            [
                Tick(round(_LEFT + (right - _LEFT) * ms / end, 1), format_tick(ms))
                for ms in nice_ticks(end, 7)
                if ms <= end
            ],
            False,
        )
    low, high = math.log10(fastest / 1.3), math.log10(slowest * 1.3)

    def place(ms: float) -> float:
        return round(_LEFT + (right - _LEFT) * (math.log10(ms) - low) / (high - low), 1)

    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if high - low < 3 else (1,))]
    return place, [Tick(place(ms), format_tick(ms)) for ms in values if low <= math.log10(ms) <= high], True


def _label_points(lines: list[Line], taken: list[Rectangle], right: float) -> None:
    """Place each label beside its point, overlapping `taken` areas and other labels as little as possible."""
    taken = list(taken)
    for line in lines:
        mark, width = line.marks[0], CHARACTER_WIDTH * len(line.label)
        away = _POINT + 5
        places = [  # x of the anchor, y of the text's middle, text-anchor
            (mark.x + away, mark.y - 11, "start"),
            (mark.x + away, mark.y + 12, "start"),
            (mark.x - away, mark.y - 11, "end"),
            (mark.x - away, mark.y + 12, "end"),
            *((mark.x + away, mark.y + down, "start") for down in (-27, 28, -43, 44)),
            *((mark.x - away, mark.y + down, "end") for down in (-27, 28, -43, 44)),
        ]

        def cover(x: float, y: float, anchor: str, width: float = width) -> Rectangle:
            left = x if anchor == "start" else x - width
            return left, y - LABEL_HEIGHT / 2, left + width, y + LABEL_HEIGHT / 2

        def badness(place: tuple[float, float, str]) -> float:
            x1, y1, x2, y2 = here = cover(*place)
            outside = max(0.0, _LEFT - x1) + max(0.0, x2 - right - 20) + max(0.0, 2 - y1) + max(0.0, y2 - _HEIGHT + 40)
            return sum(_overlap(here, other) for other in taken) + 100 * outside

        line.label_x, line.label_y, line.anchor = min(places, key=badness)  # ties: the first
        taken.append(cover(line.label_x, line.label_y, line.anchor))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _describe(point: ParetoPoint, on_front: bool) -> str:
    accuracy, latency = point.accuracy, point.latency
    text = f"{point.label}: AP {format_ap(accuracy.value)}"
    if accuracy.low < accuracy.high:
        text += f" {format_interval(accuracy)}"
    text += f", {format_ms(latency.value)} ms"
    if latency.high > latency.value:
        text += f", 95% within {format_ms(latency.high)} ms"
    return text + (", on the front" if on_front else "")
