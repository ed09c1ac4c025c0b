"""A plot as geometry: numbers become places here, and a template draws them, in the page and as a file of its own."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

LABEL_HEIGHT = 16  # SVG units, of a line of text
CHARACTER = 7.6  # SVG units, of a bold letter, generously: nobody measures text here


@dataclass
class Tick:
    """A place on an axis."""

    position: float
    text: str


@dataclass
class Mark:
    """A point: a place, and what to say when it is pointed at."""

    x: float
    y: float
    text: str
    radius: float = 2.2
    hollow: bool = False


@dataclass
class Line:
    """A curve, or points, of one entry."""

    series: int  # a colour; runs of one configuration share it
    name: str
    marks: list[Mark] = field(default_factory=list)
    path: str = ""  # the `d` of an SVG path; "" for points alone
    whiskers: str = ""  # thin lines of intervals
    label: str = ""  # "" where another line of the series has it
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"
    leader: bool = True  # whether a dotted line leads from the last mark to the label
    thin: bool = False


@dataclass
class Bar:
    """A horizontal bar, and what to say when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    kind: str  # its CSS class: `s3` for the colour of entry 3, `part1` for the second part of a whole
    text: str


@dataclass
class Caption:
    """Words in a plot."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = ""  # a CSS class


@dataclass
class Plot:
    """A figure: axes, and whatever is drawn between them."""

    name: str  # of its file, without .svg
    title: str
    summary: str  # what the picture says, for those who do not see it
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
    rules: list[str] = field(default_factory=list)  # `d` of thin grey lines
    probe: str = ""  # "from to": values at the x axis' ends, where a line's values are told at any x


def nice_ticks(highest: float, most: int) -> list[float]:
    """Round values 0, s, 2s .. from 0 to the first that is not below `highest`, s = 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    step = nice_step(highest, most)
    count = math.ceil(highest / step - 1e-9)
    return [round(step * at, 10) for at in range(count + 1)]


def nice_step(length: float, most: int) -> float:
    """The least of 1, 2 or 5 times a power of ten of which no more than `most` fit into a length above 0."""
    exponent = math.floor(math.log10(length / most))
    steps = (factor * 10.0**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    return next(step for step in steps if length / step <= most + 1e-9)


def nice_range(low: float, high: float, most: int) -> list[float]:
    """Round values around a range: the first is not above `low`, the last not below `high`."""
    step = nice_step(max(high - low, 1e-3), most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * at, 10) for at in range(first, max(last, first + 1) + 1)]


def format_tick(value: float) -> str:
    """`0`, `.25`, `1,000`."""
    return "0" if value == 0 else f"{value:,g}".removeprefix("0")


def trace(points: list[tuple[float, float]]) -> str:
    """The `d` of a path through points; those that lie on the way between their neighbours are left out."""
    kept: list[tuple[float, float]] = []
    for x, y in ((round(x, 1), round(y, 1)) for x, y in points):
        while len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            is_straight = abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) < 1e-6
            goes_on = (x1 - x0) * (x - x1) + (y1 - y0) * (y - y1) >= 0
            if not (is_straight and goes_on):
                break
            kept.pop()
        kept.append((x, y))
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in kept)


def thin_out(points: list[tuple[float, float]], slack: float) -> list[tuple[float, float]]:
    """Those points of a curve, x ascending, that lines can be drawn through: no other lies further than `slack` in y.

    The first and the last one stay. Steps stay steps: where two points have one x, both are kept.
    """
    kept = points[:1]
    start = 0
    while start < len(points) - 1:
        end = start + 1
        while end + 1 < len(points) and _passes(points[start : end + 2], slack):
            end += 1
        kept.append(points[end])
        start = end
    return kept


def _passes(points: list[tuple[float, float]], slack: float) -> bool:
    """Whether the line from the first to the last point leaves none further away in y than `slack`."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    if len({x for x, _ in points}) < len(points):
        return False
    slope = (y1 - y0) / (x1 - x0)
    return all(abs(y0 + slope * (x - x0) - y) <= slack for x, y in points[1:-1])


def spread_labels(lines: list[Line], top: float, bottom: float) -> None:
    """Move labels apart up and down until none covers another; they keep their order and, if they fit, stay between."""
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
