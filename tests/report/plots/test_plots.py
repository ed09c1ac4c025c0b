"""Geometry of the plots, compared with positions computed by hand."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import make_results

from zoo.report.entries import find_entries
from zoo.report.plots.axes import Line, Mark, nice_range, simplify_curve, spread_labels, svg_path
from zoo.report.plots.bars import MAIN_ERRORS, error_plot, time_plots
from zoo.report.plots.curves import precision_recall_plots, reliability_plots
from zoo.report.plots.files import collect_plots, render_plots
from zoo.report.plots.pareto import find_pareto_points, pareto_front, pareto_plot
from zoo.report.results import Interval, ReliabilityBin, Timing


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=12))
def test_svg_path_goes_through_all_points(points):
    rounded = [(x / 2, y / 2) for x, y in points]
    corners = [tuple(numbers(corner)) for corner in svg_path(rounded).removeprefix("M").split("L")]
    assert corners[0] == rounded[0]
    assert corners[-1] == rounded[-1]
    for x, y in rounded:
        spans = zip(corners, corners[1:] or corners, strict=False)
        distances = [
            abs((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / max(math.hypot(x1 - x0, y1 - y0), 1e-9)
            for (x0, y0), (x1, y1) in spans
            if min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
        ]
        assert (x, y) in corners or min(distances) < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.sampled_from([0.0, 0.2, 3.0]))
def test_simplified_curve_is_within_tolerance(heights, tolerance):
    points = [(float(x), y / 3) for x, y in enumerate(heights)]
    kept = simplify_curve(points, tolerance)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    for x, y in points:
        x0, y0 = next(corner for corner in reversed(kept) if corner[0] <= x)
        x1, y1 = next(corner for corner in kept if corner[0] >= x)
        between = y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        assert abs(between - y) <= tolerance + 1e-9


def test_simplified_curve_has_fewer_points_and_keeps_steps():
    bow = [(float(x), 300 - 200 * (x / 100) ** 8) for x in range(101)]
    assert 5 < len(simplify_curve(bow, 0.2)) < 35
    stairs = [(0.0, 0.0), (1.0, 0.0), (1.0, 5.0), (2.0, 5.0)]
    assert simplify_curve(stairs, 0.2) == stairs
    assert simplify_curve([], 0.2) == []


def test_svg_path_of_a_horizontal_line_has_two_points():
    assert svg_path([(float(x), 5.0) for x in range(100)]) == "M0 5L99 5"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.21, 0.64, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        (0.565, 0.641, [0.56, 0.58, 0.6, 0.62, 0.64, 0.66]),
        (0.5, 0.5, [0.5, 0.5002]),
    ],
)
def test_nice_range_ends_at_round_numbers(low: float, high: float, ticks: list[float]):
    assert nice_range(low, high, 6) == pytest.approx(ticks)


def test_labels_do_not_cover_each_other():
    lines = [Line(0, str(y), label_y=float(y)) for y in (100, 101, 102, 290, 295)]
    spread_labels(lines, 0.0, 300.0)
    places = [line.label_y for line in lines]
    assert places == sorted(places)
    assert min(b - a for a, b in pairwise(places)) >= 16
    assert places[-1] <= 300


def test_pareto_front():
    # AP .61 .60 .52 .50 .41 .33 .21 at 29 52 88 140 11 900 31 ms
    points = find_pareto_points(find_entries(make_results(7)))
    assert [point.label for point in pareto_front(points)] == ["YOLOv1", "Faster R-CNN"]
    assert [point.latency.high for point in points[:2]] == pytest.approx([29 * 1.2, 52 * 1.2])


def test_of_equal_points_only_the_better_is_on_the_front():
    results = make_results(3)
    for run, ap in zip(results.runs, (0.5, 0.5, 0.6), strict=True):
        run.metrics["AP"] = ap
    for run, ms in zip(results.runs, (10.0, 20.0, 20.0), strict=True):
        run.cost.timings = []
        run.cost.ms_per_image = ms
    assert [s.label for s in pareto_front(find_pareto_points(find_entries(results)))] == ["Faster R-CNN", "CornerNet"]


def test_positions_in_the_pareto_plot():
    results = make_results(2)
    for run, ms, ap in zip(results.runs, (10.0, 40.0), (0.4, 0.6), strict=True):
        run.cost.timings = [Timing(1, "total", ms, 2 * ms)]
        run.metrics["AP"] = ap
        run.analysis.intervals["AP"] = Interval(ap, ap - 0.1, ap + 0.1)
    plot = pareto_plot(find_entries(results))
    assert plot is not None
    end = 80 * 1.08
    slow, fast = (line.marks[0] for line in plot.lines)
    assert fast.x == pytest.approx(plot.left + (plot.right - plot.left) * 10 / end, abs=0.1)
    assert slow.x == pytest.approx(plot.left + (plot.right - plot.left) * 40 / end, abs=0.1)
    # The axis is from .3 to .7.
    assert fast.y == pytest.approx(plot.bottom - (plot.bottom - plot.top) / 4, abs=0.1)
    x, low, high, x_again, y, far = numbers(plot.lines[1].whiskers)
    assert (x, x_again, y) == (fast.x, fast.x, fast.y)
    assert [low, high] == pytest.approx([plot.bottom, (plot.bottom + plot.top) / 2], abs=0.1)
    assert far == pytest.approx(plot.left + (plot.right - plot.left) * 20 / end, abs=0.1)


def test_labels_in_the_pareto_plot_cover_no_point_and_no_other_label():
    plot = pareto_plot(find_entries(make_results(7)))
    assert plot is not None
    boxes = []
    for line in plot.lines:
        width = 7.0 * len(line.label)
        left = line.label_x - (width if line.anchor == "end" else 0)
        boxes.append((left, line.label_y - 7, left + width, line.label_y + 7))
    for at, (x1, y1, x2, y2) in enumerate(boxes):
        assert x1 >= 0
        assert x2 <= plot.width
        assert not any(x1 < mark.x < x2 and y1 < mark.y < y2 for line in plot.lines for mark in line.marks)
        for a1, b1, a2, b2 in boxes[:at]:
            assert x2 <= a1 or a2 <= x1 or y2 <= b1 or b2 <= y1


def test_no_pareto_plot_without_latency_or_with_one_entry():
    results = make_results(2)
    for run in results.runs:
        run.cost.timings, run.cost.ms_per_image = [], None
    assert pareto_plot(find_entries(results)) is None
    assert pareto_plot(find_entries(make_results(1))) is None


def test_bars_of_errors_share_one_scale():
    entries = find_entries(make_results(3))
    plot = error_plot(entries)
    assert plot is not None
    lost = [run.analysis.errors[kind] for kind in (*MAIN_ERRORS, "FP", "FN") for entry in entries for run in entry.runs]
    ratios = [bar.width / value for bar, value in zip(plot.bars, lost, strict=True)]
    assert max(ratios) - min(ratios) < 0.05 * max(ratios)
    assert max(bar.width for bar in plot.bars) == 62
    for run in (run for entry in entries for run in entry.runs):
        run.analysis.errors = {}
    assert error_plot(entries) is None


def test_time_bars_are_stacked_end_to_end():
    entries = find_entries(make_results(2))
    plots = time_plots(entries)
    assert list(plots) == [1, 8, 32]
    key, first = plots[1].bars[:4], plots[1].bars[4:8]
    assert [bar.kind for bar in key] == [bar.kind for bar in first]
    assert [bar.kind for bar in first] == ["part0", "part2", "part3", "part4"], "proposals were not measured"
    for bar, following in pairwise(first):
        assert following.x == pytest.approx(bar.x + bar.width, abs=0.15)
    total = sum(bar.width for bar in first)
    assert [bar.width / total for bar in first] == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.01)


def test_one_very_slow_detector_leaves_the_others_readable():
    results = make_results(2)
    results.runs[1].cost.timings = [Timing(1, "network", 5000.0, 5000.0), Timing(1, "total", 5000.0, 5000.0)]
    plot = time_plots(find_entries(results))[1]
    assert any(caption.text.endswith("(cut off)") for caption in plot.captions)
    assert max(bar.x + bar.width for bar in plot.bars) <= plot.right + 0.1
    assert sum(bar.width for bar in plot.bars[4:8]) > 0.5 * (plot.right - plot.left)


def test_precision_recall_is_averaged_over_classes_and_seeds():
    results = make_results(1, seeds=(0, 1), classes=("a", "b", "c"))
    for run, level in zip(results.runs, (0.2, 0.6), strict=True):
        run.analysis.curves = {"a": [level] * 101, "b": [level + 0.2] * 101}
    plots = precision_recall_plots(find_entries(results), results.classes)
    assert [name for name, _ in plots] == ["mean over classes", "a", "b"]
    heights = [(plot.bottom - numbers(plot.lines[0].path)[1]) / (plot.bottom - plot.top) for _, plot in plots]
    assert heights == pytest.approx([0.5, 0.4, 0.6], abs=0.001)
    assert plots[0][1].lines[0].label.startswith(".500")


def test_curves_with_undefined_points_are_left_out():
    results = make_results(1)
    for curve in results.runs[0].analysis.curves.values():
        curve[3] = math.nan
    assert precision_recall_plots(find_entries(results), results.classes) == []


def test_reliability_of_calibrated_scores_is_on_the_diagonal():
    results = make_results(1)
    calibration = results.runs[0].analysis.calibration
    assert calibration is not None
    calibration.bins = [ReliabilityBin(0.25, 0.25, 100), ReliabilityBin(0.75, 0.75, 25), ReliabilityBin(1.0, 0.0, 0)]
    (plot,) = reliability_plots(find_entries(results))
    low, high, none = plot.lines[0].marks
    assert (low.x - plot.left) == pytest.approx(plot.bottom - low.y) == pytest.approx((plot.right - plot.left) / 4)
    assert (high.x - plot.left) == pytest.approx(plot.bottom - high.y)
    assert (low.radius / high.radius) == pytest.approx(2, rel=0.05), "areas are proportional to counts"
    assert none.radius > 0
    results.runs[0].analysis.calibration = None
    assert reliability_plots(find_entries(results)) == []


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_plot_files_are_valid_and_complete(seeds: tuple[int, ...]):
    results = make_results(seeds=seeds)
    files = render_plots(results)
    assert {
        "pareto",
        "tide",
        "precision-recall",
        "learning-images",
        "time-batch1",
        "reliability-1-faster-r-cnn",
    } <= set(files)
    for plot in collect_plots(results):
        root = ElementTree.fromstring(files[plot.name])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        text = files[plot.name]
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert text.count("<circle") == sum(len(line.marks) for line in plot.lines)
        assert text.count('class="block') == len(plot.bars)
        assert "<script" not in text
        assert "url(" not in text


def test_names_are_escaped_in_plot_files():
    results = make_results(2)
    for run in results.runs:
        run.model = f'"><script>{run.model}'
    for text in render_plots(results).values():
        assert "<script" not in text
        ElementTree.fromstring(text)


def test_tooltip_of_a_pareto_point(results):
    plot = pareto_plot(find_entries(make_results(2)))
    assert plot is not None
    assert plot.lines[0].marks[0].text == ("Faster R-CNN: AP .610 [.57, .64], 29 ms, 95% within 34.8 ms, on the front")
    assert isinstance(plot.lines[0].marks[0], Mark)
