"""Test images of the HTML page: views with boxes and masks, one for the ground truth and one for each run."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageFont

from zoo.report.pictures.draw import class_color, format_score, text_color
from zoo.report.pictures.examples import Box, Detections, Example, Matching, Objects, Reason, match_detections
from zoo.report.results import Run
from zoo.report.summary_text import join_words

DEFAULT_SHOWN_SCORE = 0.5
_MAX_TAGS = 8  # boxes; above this, labels would hide the picture, so only colours and tooltips name the class

# Text cannot be measured while rendering the page, so a font of similar widths gives the size of a label's plate.
_TAG_FONT = ImageFont.load_default(100)

CATEGORIES = {
    "sample": "A sample, from the emptiest to the most crowded",
    "miss": "Worst misses",
    "mistake": "False positives of highest score",
}


@dataclass
class Shape:
    """A box drawn on a picture."""

    x: float
    y: float
    width: float
    height: float
    kind: str  # CSS class: "truth" "ignored" "right" "false" "missed"
    color: str
    text_color: str
    title: str  # tooltip
    tag: str  # label, "" for none
    tag_width: float  # of the label, in units of the font size
    mask: str  # SVG path data, "" for none


@dataclass
class View:
    """A picture with the boxes of the ground truth or of one run."""

    name: str
    counts: str
    shapes: list[Shape]


@dataclass
class Note:
    """Reason to show a picture, as text."""

    category: str
    text: str
    boxes: list[Box]


@dataclass
class Picture:
    """A test image with its views side by side."""

    name: str
    width: int
    height: int
    uri: str
    views: list[View]
    notes: list[Note]


@dataclass
class Category:
    """A group of pictures to choose on the page."""

    key: str
    label: str
    group: str  # heading above it, "" for none
    count: int
    views: list[str]  # names of the one or two views to show first


def make_picture(example: Example, runs: list[Run], labels: dict[str, str], classes: Sequence[str]) -> Picture:
    """Views and notes of an example; `labels` maps `Run.folder` to a label."""
    matchings = {
        run.folder: match_detections(example.predictions[run.folder], example.truth, shown_score(run))
        for run in runs
        if run.folder in example.predictions
    }
    num_boxes = [len(example.truth.boxes), *(len(matching.verdicts) for matching in matchings.values())]
    tagged = max(num_boxes) <= _MAX_TAGS  # in all views or in none
    views = [_ground_truth_view(example.truth, classes, tagged)]
    for folder, matching in matchings.items():
        shapes = _make_detection_shapes(example.predictions[folder], example.truth, matching, classes, tagged)
        views.append(View(labels[folder], _count_matches(matching, example.truth), shapes))
    uri = "data:image/jpeg;base64," + base64.b64encode(example.jpeg).decode()
    notes = [
        Note(_category_key(reason), _describe_reason(reason, labels, classes), reason.boxes)
        for reason in example.reasons
        if all(folder in labels for folder in reason.runs)
    ]
    return Picture(example.name, example.width, example.height, uri, views, notes)


def list_categories(examples: list[Example], labels: dict[str, str]) -> list[Category]:
    """Categories with at least one picture, "All pictures" first; a pair of runs has one for each correct run."""
    counts: dict[str, int] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for example in examples:
        known = [reason for reason in example.reasons if all(folder in labels for folder in reason.runs)]
        for key in dict.fromkeys(map(_category_key, known)):
            counts[key] = counts.get(key, 0) + 1
        pairs |= {_category_key(r): (labels[r.runs[0]], labels[r.runs[1]]) for r in known if r.kind == "pair"}
    truth = "Ground truth"
    found = [Category("all", "All pictures", "", len(examples), [truth])]
    found += [Category(key, label, "", counts[key], [truth]) for key, label in CATEGORIES.items() if key in counts]
    found += [
        Category(key, f"{right} correct, {wrong} not", "Only one is correct", counts[key], [right, wrong])
        for key, (right, wrong) in sorted(pairs.items(), key=lambda item: list(labels.values()).index(item[1][0]))
    ]
    return found


def shown_score(run: Run) -> float:
    """Score from which detections of a run are drawn."""
    return DEFAULT_SHOWN_SCORE if run.shown_score is None else run.shown_score


def _category_key(reason: Reason) -> str:
    return " / ".join(["pair", *reason.runs]) if reason.kind == "pair" else reason.kind


def _describe_reason(reason: Reason, labels: dict[str, str], classes: Sequence[str]) -> str:
    names = [labels[folder] for folder in reason.runs]
    class_name = "" if reason.label is None else _name(classes, reason.label)
    if reason.kind == "pair":
        return f"{_count(len(reason.boxes), 'object')} found by {names[0]}, missed by {names[1]}"
    if reason.kind == "miss":
        return f"{class_name} missed by {join_words(names)}"
    if reason.kind == "mistake":
        score = "" if reason.score is None else f" {format_score(reason.score)}"
        return f"{names[0]} predicts {class_name}{score}; {reason.detail}"
    return "part of the sample"


def _ground_truth_view(truth: Objects, classes: Sequence[str], tagged: bool) -> View:
    shapes = [
        _make_shape(box, label, "ignored" if ignored else "truth", _name(classes, label), tagged, mask)
        for box, label, ignored, mask in zip(
            truth.boxes, truth.labels, truth.ignored, _pad(truth.masks, len(truth.boxes)), strict=True
        )
    ]
    num_ignored = truth.ignored.count(True)
    counts = _count(len(shapes) - num_ignored, "object")
    return View("Ground truth", f"{counts}, {num_ignored} ignored" if num_ignored else counts, shapes)


def _make_detection_shapes(
    detections: Detections, truth: Objects, matching: Matching, classes: Sequence[str], tagged: bool
) -> list[Shape]:
    shapes = [
        _make_shape(box, label, "missed", f"missed: {_name(classes, label)}", tagged=False)
        for box, label, found, ignored in zip(truth.boxes, truth.labels, matching.found, truth.ignored, strict=True)
        if not found and not ignored
    ]
    masks = _pad(detections.masks, len(detections.boxes))
    for at, kind in reversed(list(enumerate(matching.verdicts))):  # highest score last, on top
        label = detections.labels[at]
        text = f"{_name(classes, label)} {format_score(detections.scores[at])}"
        shapes.append(_make_shape(detections.boxes[at], label, kind, text, tagged, masks[at]))
    return shapes


def _pad(masks: list[str], count: int) -> list[str]:
    return masks + [""] * (count - len(masks))


def _make_shape(box: Box, label: int, kind: str, text: str, tagged: bool, mask: str = "") -> Shape:
    x1, y1, x2, y2 = box
    width, height = round(max(0.0, x2 - x1), 1), round(max(0.0, y2 - y1), 1)
    color = class_color(label)
    tag = text if tagged else ""
    tag_width = _TAG_FONT.getlength(tag) / 100
    return Shape(x1, y1, width, height, kind, color, text_color(color), text, tag, tag_width, mask)


def _count_matches(matching: Matching, truth: Objects) -> str:
    num_objects = truth.ignored.count(False)
    return f"{sum(matching.found)} of {num_objects} found, {matching.verdicts.count('false')} false"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else f"class {label}"
