"""Statistics of a data set as sentences, as a table and as one self-contained HTML page."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from zoo.data.quality.stats import GRID, OVERLAPPING, Distribution, Histogram, SplitStatistics, Statistics
from zoo.report.jinja import make_environment

CROWDED = 10
"""Median boxes per image from which a data set is called crowded."""
MANY_SMALL = 0.3
"""Share of small objects from which a data set has many of them; COCO has 0.41."""
UNBALANCED = 10.0
"""Ratio of objects of the most to the least frequent class from which a data set is called unbalanced."""

# Size of a histogram in SVG units (pixels on a wide screen), and the margins for labels
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 48
_MAX_TICKS = 9


@dataclass(frozen=True)
class Row:
    """A row of the table: a statistic with its value for each split."""

    group: str
    name: str
    cells: list[str]


@dataclass(frozen=True)
class Bin:
    """Hover area of a histogram bin, and its tooltip."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Panel:
    """Histogram of all splits, as SVG geometry."""

    title: str
    x_label: str
    lines: list[tuple[int, str]]  # index of the split, path
    bins: list[Bin]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Bar:
    """Number of objects and images of a class in one split."""

    objects: str
    images: str
    share: float  # objects relative to the most frequent class


@dataclass(frozen=True)
class HeatMap:
    """Heat map of box centres over the image, one split."""

    split: str
    width: int
    height: int
    cells: list[tuple[float, float, float, float, float, str]]  # x, y, width, height, strength, text


def headlines(statistics: Statistics) -> list[str]:
    """Sentences on size, crowding, small objects and class balance of the first split, normally train."""
    split, stats = next(iter(statistics.splits.items()))
    images, boxes = sum(s.images for s in statistics.splits.values()), sum(s.boxes for s in statistics.splits.values())
    classes = len(stats.classes)
    parts = [
        f"{_count(images, 'image')} with {_count(boxes, 'box', 'boxes')} of {_count(classes, 'class', 'classes')}"
        + (f" in {len(statistics.splits)} splits." if len(statistics.splits) > 1 else ".")
    ]
    if not stats.boxes:
        return [*parts, f"{split.capitalize()} has no box."]
    median, most = stats.boxes_an_image.median, stats.boxes_an_image.max
    crowded = "Crowded" if median >= CROWDED else "Not crowded"
    parts.append(
        f"{crowded}: half of the {split} images have {median:g} boxes or more, at most {most:g}; "
        f"{_percent(stats.overlapping)} of the boxes overlap another by IoU {OVERLAPPING:g} or more."
    )
    small = stats.by_size["small"] / stats.boxes
    many = "Many small objects" if small >= MANY_SMALL else "Few small objects" if small else "No small objects"
    large = stats.by_size["large"] / stats.boxes
    parts.append(f"{many}: {_percent(small)} are below 32x32 pixels, {_percent(large)} above 96x96.")
    ordered = sorted((c for c in stats.classes if c.objects), key=lambda c: c.objects)
    if len(ordered) > 1:
        unbalanced = "Unbalanced" if stats.imbalance >= UNBALANCED else "Balanced"
        parts.append(
            f"{unbalanced}: {ordered[-1].name} has {stats.imbalance:,.3g} times as many objects as {ordered[0].name}."
        )
    elif classes > 1:
        parts.append(f"Of {classes} classes only {ordered[0].name} has objects.")
    return parts


def statistics_rows(statistics: Statistics) -> list[Row]:
    """Rows of the statistics table, splits side by side."""
    splits = list(statistics.splits.values())

    def row(group: str, name: str, value: Callable[[SplitStatistics], str]) -> Row:
        return Row(group, name, [value(split) for split in splits])

    def part(count: Callable[[SplitStatistics], int]) -> Callable[[SplitStatistics], str]:
        return lambda s: f"{count(s):,} ({_percent(count(s) / s.boxes)})" if s.boxes else "-"

    rows = [
        row("Images", "images", lambda s: f"{s.images:,}"),
        row("Images", "without a box", lambda s: f"{s.empty_images:,}"),
        row("Images", "image width", lambda s: _spread(s.image_width)),
        row("Images", "image height", lambda s: _spread(s.image_height)),
        row("Boxes", "boxes", lambda s: f"{s.boxes:,}"),
        row("Boxes", "per image, mean", lambda s: _number(s.boxes_an_image.mean)),
        row("Boxes", "per image", lambda s: _spread(s.boxes_an_image)),
        row("Boxes", "per image, maximum", lambda s: _number(s.boxes_an_image.max)),
        row("Boxes", "width", lambda s: _spread(s.box_width)),
        row("Boxes", "height", lambda s: _spread(s.box_height)),
        row("Boxes", "area", lambda s: _spread(s.box_area)),
        row("Boxes", "width / height", lambda s: _spread(s.box_aspect)),
        row("Sizes", "small, below 32x32", part(lambda s: s.by_size["small"])),
        row("Sizes", "medium", part(lambda s: s.by_size["medium"])),
        row("Sizes", "large, from 96x96", part(lambda s: s.by_size["large"])),
        row("Overlap", f"IoU {OVERLAPPING:g} with another box", lambda s: _percent(s.overlapping)),
        row("Overlap", "with another of its class", lambda s: _percent(s.overlapping_alike)),
        row(
            "Classes", "classes with objects", lambda s: f"{sum(c.objects > 0 for c in s.classes)} of {len(s.classes)}"
        ),
        row("Classes", "most / least frequent", lambda s: _number(s.imbalance)),
    ]
    rare: list[tuple[str, str, Callable[[SplitStatistics], int]]] = [
        ("Images", "of unknown size, left out", lambda s: s.skipped_images),
        ("Boxes", "crowd regions (no boxes)", lambda s: s.crowds),
        ("Boxes", "difficult", lambda s: s.difficult),
        ("Boxes", "invalid, left out", lambda s: s.skipped_boxes),
    ]
    for group, name, count in rare:
        if any(count(split) for split in splits):
            at = max(number for number, other in enumerate(rows) if other.group == group) + 1
            rows.insert(at, Row(group, name, [f"{count(split):,}" for split in splits]))
    return rows


def class_rows(statistics: Statistics) -> list[tuple[str, list[Bar]]]:
    """Class names with a bar per split, most frequent class first."""
    splits = list(statistics.splits.values())
    most = [max((c.objects for c in split.classes), default=0) for split in splits]
    totals = [sum(split.classes[label].objects for split in splits) for label in range(len(splits[0].classes))]
    rows = []
    for label in sorted(range(len(totals)), key=lambda label: (-totals[label], label)):
        counts = [split.classes[label] for split in splits]
        bars = [
            Bar(f"{count.objects:,}", f"{count.images:,}", count.objects / highest if highest else 0.0)
            for count, highest in zip(counts, most, strict=True)
        ]
        rows.append((splits[0].classes[label].name, bars))
    return rows


def panels(statistics: Statistics) -> list[Panel]:
    """Histograms of boxes per image, box size, shape and overlap."""
    side, share = "square root of the area, pixels", "square root of the share of the image"
    highest = "highest IoU with another box of the image"
    return [
        _panel(statistics, "Boxes per image", "boxes", "images", lambda s: s.count_histogram, _whole_range),
        _panel(statistics, "Size of boxes", side, "boxes", lambda s: s.side_histogram, _plain_range),
        _panel(statistics, "Size in the image", share, "boxes", lambda s: s.relative_histogram, _plain_range),
        _panel(statistics, "Shape of boxes", "width / height", "boxes", lambda s: s.aspect_histogram, _plain_range),
        _panel(statistics, "Overlap", highest, "boxes", lambda s: s.overlap_histogram, _plain_range),
    ]


def _panel(
    statistics: Statistics,
    title: str,
    x_label: str,
    unit: str,
    histogram: Callable[[SplitStatistics], Histogram],
    name_bin: Callable[[float, float], str],
) -> Panel:
    histograms = {split: histogram(stats) for split, stats in statistics.splits.items()}
    edges = next(iter(histograms.values())).edges
    filled = [number for h in histograms.values() for number, count in enumerate(h.counts) if count] or [0]
    first, last = min(filled), max(filled) + 1
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    shares = {
        split: [count / max(sum(h.counts), 1) for count in h.counts[first:last]] for split, h in histograms.items()
    }
    highest = max(max(values) for values in shares.values()) or 1.0
    step = next((s for s in (0.02, 0.05, 0.1, 0.2, 0.25) if highest / s <= 5), 0.25)
    top = math.ceil(highest / step - 1e-9) * step

    def x_of(number: int | float) -> float:
        return round(_LEFT + (right - _LEFT) * number / (last - first), 1)

    def y_of(share: int | float) -> float:
        return round(bottom - (bottom - _TOP) * share / top, 1)

    lines = []
    for number, values in enumerate(shares.values()):
        steps = "".join(f"V{y_of(value)}H{x_of(at + 1)}" for at, value in enumerate(values))
        lines.append((number, f"M{x_of(0)} {y_of(0)}{steps}V{y_of(0)}"))
    bins = [
        Bin(
            x_of(at),
            round(x_of(at + 1) - x_of(at), 1),
            f"{name_bin(edges[first + at], edges[first + at + 1])}: "
            + ", ".join(
                f"{split} {h.counts[first + at]:,} {unit} ({_percent(shares[split][at])})"
                for split, h in histograms.items()
            ),
        )
        for at in range(last - first)
    ]
    every = math.ceil((last - first + 1) / _MAX_TICKS)
    if name_bin is _whole_range:  # counts: the label is centred below its bar
        x_ticks = [
            (x_of(at + 0.5), name_bin(edges[first + at], edges[first + at + 1])) for at in range(0, last - first, every)
        ]
    else:
        # Only edges at whole octaves have short labels; label both ends if no edge in the range has one.
        short = [at for at in range(last - first + 1) if len(f"{edges[first + at]:g}") <= 5] or [0, last - first]
        x_ticks = [(x_of(at), f"{edges[first + at]:.5g}") for at in short[:: math.ceil(len(short) / _MAX_TICKS)]]
    y_ticks = [(y_of(step * at), f"{100 * step * at:.0f}%") for at in range(round(top / step) + 1)]
    return Panel(title, f"{x_label} (share of the {unit})", lines, bins, x_ticks, y_ticks)


def heat_maps(statistics: Statistics) -> list[HeatMap]:
    """Heat map of box centres of each split, with the aspect ratio of its median image."""
    maps = []
    for split, stats in statistics.splits.items():
        width = 320
        ratio = stats.image_height.median / stats.image_width.median if stats.images else 1.0
        height = round(width * min(max(ratio, 0.4), 1.6))
        highest = max(map(max, stats.centres)) or 1
        cells = [
            (
                round(column * width / GRID, 1),
                round(row * height / GRID, 1),
                round(width / GRID, 2),
                round(height / GRID, 2),
                round(count / highest, 3),
                f"{count:,} centres",
            )
            for row, counts in enumerate(stats.centres)
            for column, count in enumerate(counts)
            if count
        ]
        maps.append(HeatMap(split, width, height, cells))
    return maps


def render_statistics(statistics: Statistics, command: str) -> str:
    """Render the HTML page: self-contained, and equal statistics give the same text."""
    return (
        make_environment()
        .get_template("data.html.j2")
        .render(
            data=statistics.data,
            splits=list(statistics.splits),
            headlines=headlines(statistics),
            notes=statistics.notes,
            rows=statistics_rows(statistics),
            classes=class_rows(statistics),
            panels=panels(statistics),
            maps=heat_maps(statistics),
            sizes={split: stats.image_sizes for split, stats in statistics.splits.items()},
            command=command,
        )
    )


def _whole_range(low: float, high: float) -> str:
    """Name of a bin of counts: `4-5`."""
    return f"{low:g}" if high - low == 1 else f"{low:g}-{high - 1:g}"


def _plain_range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _spread(values: Distribution) -> str:
    """`median (5th-95th percentile)`; one number where all three are equal."""
    median, low, high = _number(values.median), _number(values.p5), _number(values.p95)
    return median if low == high == median else f"{median} ({low}-{high})"


def _number(value: float) -> str:
    """Three significant digits, and all digits before the decimal point."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f}%" if 0 < share < 0.1 else f"{100 * share:.0f}%"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
