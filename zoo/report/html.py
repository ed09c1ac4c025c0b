"""The report as one self-contained page: no script, no font, no picture is fetched from anywhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import ImageFont

from zoo.report.draw import class_color, format_score, text_color
from zoo.report.examples import Box, Detections, Example, Matching, Objects, match_detections
from zoo.report.plots import learning_curves
from zoo.report.results import Results, Run
from zoo.report.tables import (
    COLUMNS,
    class_table,
    evaluated_images,
    facts,
    legend,
    main_table,
    model_name,
    ranked,
    run_labels,
    verdict,
)

DEFAULT_SHOWN_SCORE = 0.5
_MAX_TAGS = 8  # boxes; fuller pictures name none, which would hide them: colours, and pointing at a box, tell


# Text cannot be measured in the page: a font of similar widths says how large a tag's plate must be.
_TAG_FONT = ImageFont.load_default(100)


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
    tag: str  # what is written on it; "" for nothing
    tag_width: float  # of the tag's text, in units of the font size


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
        images=evaluated_images(results),
        columns=COLUMNS,
        groups=_group_columns(),
        runs=runs,
        failed=[run for run in results.runs if run.status == "failed"],
        labels=labels,
        rows=main_table(runs),
        legend=legend(runs),
        facts=facts(results),
        class_rows=class_table(runs, results.classes),
        class_colors=[class_color(index) for index in range(len(results.classes))],
        names={run.folder: model_name(run.model) for run in results.runs},
        panels=learning_curves(runs),
        pictures=[_make_picture(example, runs, labels, results.classes) for example in examples],
        any_ignored=any(any(example.truth.ignored) for example in examples),
        default_score=format_score(DEFAULT_SHOWN_SCORE),
        best_scores=[
            f"{labels[run.folder]} {format_score(run.shown_score)}" for run in runs if run.shown_score is not None
        ],
        default_scored=[labels[run.folder] for run in runs if run.shown_score is None],
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
    matchings = {
        run.folder: match_detections(example.predictions[run.folder], example.truth, shown_score(run))
        for run in runs
        if run.folder in example.predictions
    }
    num_boxes = [len(example.truth.boxes), *(len(matching.verdicts) for matching in matchings.values())]
    tagged = max(num_boxes) <= _MAX_TAGS  # all views alike
    views = [_view_truth(example.truth, classes, tagged)]
    for folder, matching in matchings.items():
        shapes = _shape_detections(example.predictions[folder], example.truth, matching, classes, tagged)
        views.append(View(labels[folder], _count_matches(matching, example.truth), shapes))
    uri = "data:image/jpeg;base64," + base64.b64encode(example.jpeg).decode()
    return Picture(example.name, example.width, example.height, uri, views)


def _view_truth(truth: Objects, classes: Sequence[str], tagged: bool) -> View:
    shapes = [
        _make_shape(box, label, "ignored" if ignored else "truth", _name(classes, label), tagged)
        for box, label, ignored in zip(truth.boxes, truth.labels, truth.ignored, strict=True)
    ]
    num_ignored = truth.ignored.count(True)
    counts = _count(len(shapes) - num_ignored, "object")
    return View("Ground truth", f"{counts}, {num_ignored} ignored" if num_ignored else counts, shapes)


def _shape_detections(
    detections: Detections, truth: Objects, matching: Matching, classes: Sequence[str], tagged: bool
) -> list[Shape]:
    shapes = [
        _make_shape(box, label, "missed", f"missed: {_name(classes, label)}", tagged=False)
        for box, label, found, ignored in zip(truth.boxes, truth.labels, matching.found, truth.ignored, strict=True)
        if not found and not ignored
    ]
    for at, kind in reversed(list(enumerate(matching.verdicts))):  # the surest is drawn last, on top
        label = detections.labels[at]
        text = f"{_name(classes, label)} {format_score(detections.scores[at])}"
        shapes.append(_make_shape(detections.boxes[at], label, kind, text, tagged))
    return shapes


def _make_shape(box: Box, label: int, kind: str, text: str, tagged: bool) -> Shape:
    x1, y1, x2, y2 = box
    width, height = round(max(0.0, x2 - x1), 1), round(max(0.0, y2 - y1), 1)
    color = class_color(label)
    tag = text if tagged else ""
    return Shape(x1, y1, width, height, kind, color, text_color(color), text, tag, _TAG_FONT.getlength(tag) / 100)


def _count_matches(matching: Matching, truth: Objects) -> str:
    num_objects = truth.ignored.count(False)
    return f"{sum(matching.found)} of {num_objects} found, {matching.verdicts.count('false')} false"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
