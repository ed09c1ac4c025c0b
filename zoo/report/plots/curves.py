"""Precision against recall, and how sure against how right."""

import re

from zoo.report.entries import Entry
from zoo.report.number_format import defined, format_ap, mean
from zoo.report.plots.axes import (
    CHARACTER,
    Caption,
    Line,
    Mark,
    Plot,
    Tick,
    format_tick,
    spread_labels,
    thin_out,
    trace,
)
from zoo.report.results import Calibration

_WIDTH, _HEIGHT = 560, 380
_LEFT, _TOP, _BOTTOM = 44.0, 14.0, 46.0
_RECALLS = 101
_SLACK = 0.2  # SVG units: .0006 of precision, where a hundred curves of a hundred points make a page heavy
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

_PANEL, _MARGIN_LEFT, _MARGIN_TOP, _MARGIN_BOTTOM = 168.0, 38.0, 40.0, 40.0  # of a small plot
_LARGEST_DOT = 7.0

ALL_CLASSES = "mean over classes"


def precision_recall_plots(entries: list[Entry], classes: list[str]) -> list[tuple[str, Plot]]:
    """Precision at 101 points of recall at IoU .50: first the mean over classes, then each class that has a curve.

    Returns:
        (name of the class, plot); none where no run has curves.
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
    """For each entry with a calibration: share of right detections against their score; on the diagonal is honest.

    With several seeds, each has its line.
    """
    return [
        _reliability_plot(entry, series, calibrations)
        for series, entry in enumerate(entries)
        if (calibrations := [c for run in entry.runs if (c := run.analysis.calibration) and c.bins])
    ]


def _curve(entry: Entry, class_name: str) -> list[float]:
    """Precision at each recall, seeds averaged; empty where no seed has it whole."""
    found = [curve for run in entry.runs if (curve := run.analysis.curves.get(class_name))]
    found = [curve for curve in found if len(curve) == _RECALLS and all(defined(p) is not None for p in curve)]
    return [sum(column) / len(column) for column in zip(*found, strict=True)]


def _precision_recall_plot(entries: list[Entry], curves: list[list[float]], name: str, what: str) -> Plot:
    bottom = _HEIGHT - _BOTTOM
    right = max(_WIDTH - 20 - CHARACTER * max(len(entry.label) + 5 for entry in entries), _WIDTH / 2)
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
        # Curves end on the floor together: names stand in the order of the areas below, largest on top.
        path = trace(thin_out(points, _SLACK))
        lines.append(Line(series, entry.label, [], path, label=label, label_x=right + 10, label_y=-area))
        areas.append(f"{entry.label} {format_ap(area)}")
    spread_labels(lines, _TOP + 8, bottom)
    return Plot(
        name=name,
        title=f"Precision against recall at IoU .50, {what}",
        summary=f"Precision against recall at IoU .50, {what}; areas: {', '.join(areas)}",
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
                f"{format_ap(b.precision, 2)} of them right",
                round(max(1.8, _LARGEST_DOT * (b.count / most) ** 0.5), 1),
            )
            for b in bins
        ]
        path = trace([(mark.x, mark.y) for mark in marks]) if len(marks) > 1 else ""
        lines.append(Line(series, entry.label, marks, path, thin=True))
    error = mean(defined(calibration.error) for calibration in calibrations)
    told = "" if error is None else f"ECE {format_ap(error)}"
    return Plot(
        name=f"reliability-{series + 1}-" + re.sub(r"\W+", "-", entry.label.lower()).strip("-"),
        title=f"Reliability of {entry.label}",
        summary=f"Reliability of {entry.label}, {told}; "
        + ", ".join(
            f"score {format_ap(b.confidence, 2)} right {format_ap(b.precision, 2)}" for b in calibrations[0].bins
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
            Caption(left, 28.0, told, kind="value"),
        ],
        rules=[f"M{left} {bottom}L{right} {top}"],
    )
