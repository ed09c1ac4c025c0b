"""Precision-recall curves and reliability diagrams."""

import re

from zoo.report.entries import Entry
from zoo.report.number_format import defined, format_ap, mean
from zoo.report.plots.axes import (
    CHARACTER_WIDTH,
    Caption,
    Line,
    Mark,
    Plot,
    Tick,
    format_tick,
    simplify_curve,
    spread_labels,
    svg_path,
)
from zoo.report.results import Calibration

_WIDTH, _HEIGHT = 560, 380
_LEFT, _TOP, _BOTTOM = 44.0, 14.0, 46.0
_RECALLS = 101
_TOLERANCE = 0.2  # SVG units, .0006 of precision; fewer points keep a page with a hundred curves small
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

_PANEL, _MARGIN_LEFT, _MARGIN_TOP, _MARGIN_BOTTOM = 168.0, 38.0, 40.0, 40.0  # of a reliability diagram
_LARGEST_DOT = 7.0

ALL_CLASSES = "mean over classes"


def precision_recall_plots(entries: list[Entry], classes: list[str]) -> list[tuple[str, Plot]]:
    """Precision at 101 recall values at IoU .50: first the mean over classes, then each class that has a curve.

    Returns:
        (class name, plot); empty if no run has curves.
    """
    per_class = {name: [_curve(entry, name) for entry in entries] for name in classes}
    per_class = {name: curves for name, curves in per_class.items() if any(curves)}
    if not per_class:
        return []
    means = []
    for at in range(len(entries)):
        known = [curves[at] for curves in per_class.values() if curves[at]]
        means.append([sum(column) / len(column) for column in zip(*known, strict=True)])
    plots = [(ALL_CLASSES, _precision_recall_plot(entries, means, "precision-recall", ALL_CLASSES))]
    if len(per_class) > 1:
        for number, name in enumerate(classes):
            if name in per_class:
                plot = _precision_recall_plot(entries, per_class[name], f"precision-recall-class{number}", name)
                plots.append((name, plot))
    return plots


def reliability_plots(entries: list[Entry]) -> list[Plot]:
    """Precision of detections against their score, a plot per entry with a calibration; ideal is the diagonal.

    Each seed has its own line.
    """
    return [
        _reliability_plot(entry, series, calibrations)
        for series, entry in enumerate(entries)
        if (calibrations := [c for run in entry.runs if (c := run.analysis.calibration) and c.bins])
    ]


def _curve(entry: Entry, class_name: str) -> list[float]:
    """Precision at each recall, seeds averaged; empty if no seed has a complete curve."""
    found = [curve for run in entry.runs if (curve := run.analysis.curves.get(class_name))]
    found = [curve for curve in found if len(curve) == _RECALLS and all(defined(p) is not None for p in curve)]
    return [sum(column) / len(column) for column in zip(*found, strict=True)]


def _precision_recall_plot(entries: list[Entry], curves: list[list[float]], name: str, class_name: str) -> Plot:
    bottom = _HEIGHT - _BOTTOM
    right = max(_WIDTH - 20 - CHARACTER_WIDTH * max(len(entry.label) + 5 for entry in entries), _WIDTH / 2)
    lines, areas = [], []
    for series, (entry, curve) in enumerate(zip(entries, curves, strict=True)):
        if not curve:
            continue
        points = [
            (_LEFT + (right - _LEFT) * at / (_RECALLS - 1), bottom - (bottom - _TOP) * precision)
            for at, precision in enumerate(curve)
        ]
        area = sum(curve) / len(curve)
        label = f"{format_ap(area)} {entry.label}"
        # All curves end at about the same y, so labels are sorted by area under the curve, largest on top.
        path = svg_path(simplify_curve(points, _TOLERANCE))
        lines.append(Line(series, entry.label, [], path, label=label, label_x=right + 10, label_y=-area))
        areas.append(f"{entry.label} {format_ap(area)}")
    spread_labels(lines, _TOP + 8, bottom)
    return Plot(
        name=name,
        title=f"Precision against recall at IoU .50, {class_name}",
        summary=f"Precision against recall at IoU .50, {class_name}; areas: {', '.join(areas)}",
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        x_label="recall",
        y_label="precision",
        x_ticks=[Tick(round(_LEFT + (right - _LEFT) * value, 1), format_tick(value)) for value in _TICKS],
        y_ticks=[Tick(round(bottom - (bottom - _TOP) * value, 1), format_tick(value)) for value in _TICKS],
        lines=lines,
        probe="0 1",
    )


def _reliability_plot(entry: Entry, series: int, calibrations: list[Calibration]) -> Plot:
    left, top, right, bottom = _MARGIN_LEFT, _MARGIN_TOP, _MARGIN_LEFT + _PANEL, _MARGIN_TOP + _PANEL
    lines = []
    for calibration in calibrations:
        bins = [b for b in calibration.bins if defined(b.precision) is not None and defined(b.confidence) is not None]
        most = max((b.count for b in bins), default=1)
        marks = [
            Mark(
                round(left + _PANEL * b.confidence, 1),
                round(bottom - _PANEL * b.precision, 1),
                f"{entry.label}: {b.count:,} detections of mean score {format_ap(b.confidence, 2)}, "
                f"{format_ap(b.precision, 2)} of them correct",
                round(max(1.8, _LARGEST_DOT * (b.count / most) ** 0.5), 1),
            )
            for b in bins
        ]
        path = svg_path([(mark.x, mark.y) for mark in marks]) if len(marks) > 1 else ""
        lines.append(Line(series, entry.label, marks, path, thin=True))
    error = mean(defined(calibration.error) for calibration in calibrations)
    ece = "" if error is None else f"ECE {format_ap(error)}"
    return Plot(
        name=f"reliability-{series + 1}-" + re.sub(r"\W+", "-", entry.label.lower()).strip("-"),
        title=f"Reliability of {entry.label}",
        summary=f"Reliability of {entry.label}, {ece}; "
        + ", ".join(
            f"score {format_ap(b.confidence, 2)} precision {format_ap(b.precision, 2)}" for b in calibrations[0].bins
        ),
        width=round(right + 16),
        height=round(bottom + _MARGIN_BOTTOM),
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_label="score",
        y_label="",
        x_ticks=[Tick(left + _PANEL * value, format_tick(value)) for value in (0.0, 0.5, 1.0)],
        y_ticks=[Tick(bottom - _PANEL * value, format_tick(value)) for value in (0.0, 0.5, 1.0)],
        lines=lines,
        captions=[
            Caption(left, 12.0, entry.label, kind=f"name s{series % 7}"),
            Caption(left, 28.0, ece, kind="value"),
        ],
        rules=[f"M{left} {bottom}L{right} {top}"],
    )
