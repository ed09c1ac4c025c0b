"""Plot elements as SVG geometry (ticks, marks, lines, bars), and helpers for axes, paths and labels."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

LABEL_HEIGHT = 16  # SVG units, height of a line of text
CHARACTER_WIDTH = 7.6  # SVG units, upper estimate for a bold letter, since text is not measured


@dataclass
class Tick:
    """An axis tick."""

    position: float
    text: str


@dataclass
class Mark:
    """A point with its tooltip."""

    x: float
    y: float
    text: str
    radius: float = 2.2
    hollow: bool = False


@dataclass
class Line:
    """A curve, or points alone, of one entry."""

    series: int  # index of the colour, shared by the runs of one configuration
    name: str
    marks: list[Mark] = field(default_factory=list)
    path: str = ""  # the `d` of an SVG path; "" for points alone
    whiskers: str = ""  # `d` of an SVG path with the intervals
    label: str = ""  # "" where another line of the series is labelled
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"
    leader: bool = True  # whether to draw a dotted line from the last mark to the label
    thin: bool = False


@dataclass
class Bar:
    """A horizontal bar with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str  # CSS class: `s3` for the colour of entry 3, `part1` for the second part of a stacked bar
    text: str


@dataclass
class Caption:
    """Text in a plot."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = ""  # a CSS class


@dataclass
class Plot:
    """Axes and everything drawn between them."""

    name: str  # file name without .svg
    title: str
    summary: str  # text alternative for screen readers
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_label: str = ""
    y_label: str = ""
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)  # `d` of the SVG paths of thin grey lines
    probe: str = ""  # "from to": values at the ends of the x axis, for plots whose tooltip shows all lines at one x


def nice_ticks(highest: float, max_steps: int) -> list[float]:
    """Ticks 0, s, 2s .. to the first not below `highest`; s is the step of `nice_step`."""
    if highest <= 0:
        return [0.0, 1.0]
    step = nice_step(highest, max_steps)
    count = math.ceil(highest / step - 1e-9)
    return [round(step * at, 10) for at in range(count + 1)]


def nice_step(length: float, max_steps: int) -> float:
    """Smallest step, 1, 2 or 5 times a power of ten, of which at most `max_steps` fit into `length` > 0."""
    exponent = math.floor(math.log10(length / max_steps))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    return next(step for step in steps if length / step <= max_steps + 1e-9)


def nice_range(low: float, high: float, max_steps: int) -> list[float]:
    """Ticks that enclose a range: the first is not above `low`, the last not below `high`."""
    step = nice_step(max(high - low, 1e-3), max_steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * at, 10) for at in range(first, max(last, first + 1) + 1)]


def format_tick(value: float) -> str:
    """Label of a tick: `0`, `.25`, `1,000`."""
    return "0" if value == 0 else f"{value:,g}".removeprefix("0")


def svg_path(points: list[tuple[float, float]]) -> str:
    """`d` of an SVG path through points; points on the straight line between their neighbours are left out."""
    kept: list[tuple[float, float]] = []
    for x, y in ((round(x, 1), round(y, 1)) for x, y in points):
        while len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            is_straight = abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) < 1e-6
            is_forward = (x1 - x0) * (x - x1) + (y1 - y0) * (y - y1) >= 0
            if not (is_straight and is_forward):
                break
            kept.pop()
        kept.append((x, y))
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in kept)


def simplify_curve(points: list[tuple[float, float]], tolerance: float) -> list[tuple[float, float]]:
    """Subset of the points of a curve, x ascending, whose polyline is within `tolerance` in y of all points.

    The first and the last point are kept, and so are both of two points with the same x (a step).
    """
    kept = points[:1]
    start = 0
    while start < len(points) - 1:
        end = start + 1
        while end + 1 < len(points) and _is_nearly_straight(points[start : end + 2], tolerance):
            end += 1
        kept.append(points[end])
        start = end
    return kept


def _is_nearly_straight(points: list[tuple[float, float]], tolerance: float) -> bool:
    """Whether all points are within `tolerance` in y of the line from the first to the last."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    if len({x for x, _ in points}) < len(points):
        return False
    slope = (y1 - y0) / (x1 - x0)
    return all(abs(y0 + slope * (x - x0) - y) <= tolerance for x, y in points[1:-1])


def spread_labels(lines: list[Line], top: float, bottom: float) -> None:
    """Move labels vertically until none overlap; the order is kept, and they stay in `top..bottom` if they fit."""
    lines = sorted(lines, key=lambda line: line.label_y)
    for above, below in pairwise(lines):
        below.label_y = max(below.label_y, above.label_y + LABEL_HEIGHT)
    limit = bottom
    for line in reversed(lines):
        line.label_y = min(line.label_y, limit)
        limit = line.label_y - LABEL_HEIGHT
    for line in lines:
        line.label_y = max(line.label_y, top)
        top = line.label_y + LABEL_HEIGHT
