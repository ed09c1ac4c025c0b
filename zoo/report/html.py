"""The report as one self-contained page: no script, no font, no picture is fetched from anywhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from zoo.report.draw import class_color, format_score, text_color
from zoo.report.examples import Detections, Example, Matching, Objects, match_detections
from zoo.report.plots import learning_curves, series_of
from zoo.report.results import Results, Run
from zoo.report.tables import COLUMNS, class_table, legend, main_table, ranked, run_labels, verdict

DEFAULT_SHOWN_SCORE = 0.5
_MAX_TAGS = 6  # a picture with more boxes names none: labels would hide it; colours and pointing at a box tell


@dataclass
class Shape:
    """A box on a picture."""

    x: float
    y: float
    width: float
    height: float
    kind: str  # "truth" "ignored" "right" "false" "missed": how the line is drawn
    color: str
    text_color: str
    title: str  # what it says when pointed at
    tag: str  # what is written beside it; "" for nothing


@dataclass
class View:
    """A picture once, with the boxes of the ground truth or of one run."""

    name: str
    counts: str
    shapes: list[Shape]


@dataclass
class Picture:
    """A test image with its views side by side."""

    name: str
    width: int
    height: int
    uri: str
    views: list[View]


def render_html(results: Results, examples: list[Example]) -> str:
    """Render the page; the same results and examples give the same text.

    Pictures are embedded once each; boxes are vectors on top, so that a picture costs the same for any number of runs.
    """
    runs = ranked(results.runs)
    labels = run_labels(results.runs)
    environment = Environment(
        loader=PackageLoader("zoo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        verdict=verdict(results),
        columns=COLUMNS,
        groups=_group_columns(),
        runs=runs,
        failed=[run for run in results.runs if run.status == "failed"],
        labels=labels,
        rows=main_table(runs),
        legend=legend(runs),
        class_rows=class_table(runs, results.classes),
        class_colors=[class_color(index) for index in range(len(results.classes))],
        series=series_of(runs),
        panels=learning_curves(runs, labels),
        pictures=[_make_picture(example, runs, labels, results.classes) for example in examples],
        shown_scores=[
            (labels[run.folder], format_score(shown_score(run)), run.shown_score is not None) for run in runs
        ],
    )


def shown_score(run: Run) -> float:
    """Score from which detections of a run are drawn."""
    return DEFAULT_SHOWN_SCORE if run.shown_score is None else run.shown_score


def _group_columns() -> list[tuple[str, int]]:
    """Neighbouring columns of one group, for the upper row of the table's head: (name, number of columns)."""
    groups: dict[str, int] = {}
    for column in COLUMNS:
        groups[column.group] = groups.get(column.group, 0) + 1
    return list(groups.items())


def _make_picture(example: Example, runs: list[Run], labels: dict[str, str], classes: Sequence[str]) -> Picture:
    views = [_view_truth(example.truth, classes)]
    for run in runs:
        if run.folder in example.predictions:
            detections, score = example.predictions[run.folder], shown_score(run)
            views.append(_view_run(labels[run.folder], detections, example.truth, score, classes))
    uri = "data:image/jpeg;base64," + base64.b64encode(example.jpeg).decode()
    return Picture(example.name, example.width, example.height, uri, views)


def _view_truth(truth: Objects, classes: Sequence[str]) -> View:
    tagged = len(truth.boxes) <= _MAX_TAGS
    shapes = [
        _make_shape(box, label, "ignored" if ignored else "truth", _name(classes, label), tagged)
        for box, label, ignored in zip(truth.boxes, truth.labels, truth.ignored, strict=True)
    ]
    num_ignored = truth.ignored.count(True)
    counts = _count(len(shapes) - num_ignored, "object")
    return View("Ground truth", f"{counts}, {num_ignored} ignored" if num_ignored else counts, shapes)


def _view_run(name: str, detections: Detections, truth: Objects, min_score: float, classes: Sequence[str]) -> View:
    matching = match_detections(detections, truth, min_score)
    tagged = len(matching.verdicts) <= _MAX_TAGS
    shapes = [
        _make_shape(box, label, "missed", f"missed: {_name(classes, label)}", False)
        for box, label, found, ignored in zip(truth.boxes, truth.labels, matching.found, truth.ignored, strict=True)
        if not found and not ignored
    ]
    shown = list(zip(detections.boxes, detections.labels, detections.scores, strict=True))[: len(matching.verdicts)]
    for (box, label, score), kind in reversed(list(zip(shown, matching.verdicts, strict=True))):  # the surest on top
        shapes.append(_make_shape(box, label, kind, f"{_name(classes, label)} {format_score(score)}", tagged))
    return View(name, _count_matches(matching, truth), shapes)


def _make_shape(box: tuple[float, float, float, float], label: int, kind: str, text: str, tagged: bool) -> Shape:
    x1, y1, x2, y2 = box
    width, height = round(max(0.0, x2 - x1), 1), round(max(0.0, y2 - y1), 1)
    color = class_color(label)
    return Shape(x1, y1, width, height, kind, color, text_color(color), text, text if tagged else "")


def _count_matches(matching: Matching, truth: Objects) -> str:
    num_objects = truth.ignored.count(False)
    return f"{sum(matching.found)} of {num_objects} found, {matching.verdicts.count('false')} false"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
