"""Tables of confusions, AP by slice, score thresholds and ceilings of each entry."""

import json
from collections import Counter
from dataclasses import dataclass

import yaml

from zoo.report.entries import Entry
from zoo.report.number_format import MISSING, Value, defined, format_ap, format_or_missing, format_share
from zoo.report.results import Ceiling, Threshold
from zoo.report.tables.runs import Cell, mark_best

BACKGROUND = "background"
SIZES = (  # COCO's, by area in pixels
    ("APs", "small", "area below 32² pixels"),
    ("APm", "medium", "32² to 96² pixels"),
    ("APl", "large", "above 96² pixels"),
)
_MAX_MATRIX = 12  # classes; of a larger matrix, only the largest entries are listed
_MAX_CONFUSIONS = 15


@dataclass(frozen=True)
class ConfusionCell:
    """Count of one true class predicted as one class."""

    text: str
    share: float  # of its row
    kind: str  # "right" "wrong" "none"
    sentence: str


@dataclass(frozen=True)
class Confusion:
    """An entry's confusion matrix, or its largest entries where there are many classes."""

    label: str
    names: list[str]  # of rows and columns; empty where only the largest entries are given
    rows: list[list[ConfusionCell]]
    largest: list[tuple[str, str, int, str]]  # true class, predicted class, count, share of the true class


@dataclass(frozen=True)
class SliceRow:
    """AP on one slice of the objects, a cell per entry."""

    name: str
    objects: str
    cells: list[Cell]


@dataclass(frozen=True)
class ThresholdTable:
    """Score thresholds of one run by class, also as YAML and JSON text."""

    label: str
    rows: list[tuple[str, Threshold]]
    yaml: str
    json: str


@dataclass(frozen=True)
class CeilingRow:
    """A ceiling of an entry beside the recall and AP50 that it reaches."""

    label: str
    limit: str
    meaning: str
    share: str
    objects: int
    reach: float  # 0..1, share of all other objects
    recall: Cell
    ap50: Cell


def confusions(entries: list[Entry], classes: list[str]) -> list[Confusion]:
    """Confusion matrices at IoU .50, counts summed over seeds; entries without one are left out."""
    names = [*classes, BACKGROUND]
    found = []
    for entry in entries:
        matrices = [m for run in entry.runs if len(m := run.analysis.confusion) == len(names)]
        if not matrices or any(len(row) != len(names) for matrix in matrices for row in matrix):
            continue
        counts = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
        small = len(classes) <= _MAX_MATRIX
        found.append(
            Confusion(
                entry.label,
                names if small else [],
                [_confusion_row(row, true, names) for true, row in enumerate(counts)] if small else [],
                [] if small else _largest_confusions(counts, names),
            )
        )
    return found


def slice_groups(entries: list[Entry]) -> list[list[SliceRow]]:
    """AP by size, aspect and crowding: a group of rows each, a row per slice of any run, the best entry marked.

    Sizes are COCO's APs, APm and APl where these have intervals, otherwise the runs' own slices by size.
    """
    groups: dict[str, dict[str, int]] = {}  # group -> slice -> objects, in order of first appearance
    for run in (run for entry in entries for run in entry.runs):
        for group, slices in run.analysis.slices.items():
            for item in slices:
                groups.setdefault(group, {}).setdefault(item.name, item.objects)
    sizes = _size_rows(entries, list(groups.get("size", {}).items()))
    found = [sizes] if sizes else []
    for group, names in groups.items():
        if group == "size" and sizes:
            continue
        found.append(
            [
                SliceRow(name, f"{objects:,}", mark_best([_slice_ap(e, group, name) for e in entries], format_ap))
                for name, objects in names.items()
            ]
        )
    return found


def _size_rows(entries: list[Entry], objects_per_size: list[tuple[str, int]]) -> list[SliceRow]:
    rows = []
    for metric, size, meaning in SIZES:
        intervals = [entry.interval(metric) for entry in entries]
        if any(intervals):
            objects = next((f"{count:,}" for name, count in objects_per_size if name.startswith(size)), MISSING)
            cells = mark_best([entry.metric(metric) for entry in entries], format_ap, intervals=intervals)
            rows.append(SliceRow(f"{size}: {meaning}", objects, cells))
    return rows


def _slice_ap(entry: Entry, group: str, name: str) -> Value:
    return entry.mean(
        lambda run: next((defined(item.AP) for item in run.analysis.slices.get(group, []) if item.name == name), None)
    )


def threshold_tables(entries: list[Entry], labels: dict[str, str], classes: list[str]) -> list[ThresholdTable]:
    """A threshold table per run, since scores differ between seeds; `labels` maps `Run.folder` to a label."""
    tables = []
    for run in (run for entry in entries for run in entry.runs):
        known = run.analysis.thresholds
        rows = [(name, known[name]) for name in classes if name in known and defined(known[name].score) is not None]
        if rows:
            scores = {name: round(threshold.score, 4) for name, threshold in rows}
            text = yaml.safe_dump(scores, sort_keys=False, allow_unicode=True)
            tables.append(ThresholdTable(labels[run.folder], rows, text, json.dumps(scores, ensure_ascii=False)))
    return tables


def ceiling_rows(entries: list[Entry]) -> list[CeilingRow]:
    """Ceilings of each entry on this data, beside the recall and AP50 that it reaches."""
    rows = []
    for entry in entries:
        seen: dict[str, Ceiling] = {}
        for run in entry.runs:  # the same for every seed
            for ceiling in run.analysis.ceilings:
                seen.setdefault(ceiling.limit, ceiling)
        for ceiling in seen.values():
            share = defined(ceiling.share)
            if share is None:
                continue
            recall, ap50 = (mark_best([entry.metric(name)], format_ap)[0] for name in ("AR100", "AP50"))
            reach = max(0.0, 1.0 - share)
            rows.append(
                CeilingRow(
                    entry.label,
                    ceiling.limit,
                    ceiling.meaning,
                    format_share(share),
                    ceiling.objects,
                    reach,
                    recall,
                    ap50,
                )
            )
    return rows


def format_threshold(threshold: Threshold) -> list[str]:
    """Score, F1, precision and recall as text."""
    values = (threshold.score, threshold.f1, threshold.precision, threshold.recall)
    return [format_or_missing(value, 2) for value in values]


def _confusion_row(row: list[int], true: int, names: list[str]) -> list[ConfusionCell]:
    total = sum(row)
    cells = []
    for predicted, count in enumerate(row):
        is_background = names[true] == names[predicted] == BACKGROUND and true == predicted == len(names) - 1
        if is_background:
            cells.append(ConfusionCell(MISSING, 0.0, "none", "background predicted as background: not counted"))
            continue
        share = count / total if total else 0.0
        if predicted == len(names) - 1:
            sentence = f"{names[true]} missed: {count:,} of {total:,}"
        elif true == len(names) - 1:
            sentence = f"{names[predicted]} predicted on background: {count:,} of {total:,}"
        else:
            sentence = f"{names[true]} predicted as {names[predicted]}: {count:,} of {total:,}"
        cells.append(ConfusionCell(f"{count:,}", share, "right" if true == predicted else "wrong", sentence))
    return cells


def _largest_confusions(counts: list[list[int]], names: list[str]) -> list[tuple[str, str, int, str]]:
    last = len(names) - 1  # background: misses and false positives are part of the TIDE errors
    wrong = Counter({(t, p): counts[t][p] for t in range(last) for p in range(last) if t != p and counts[t][p]})
    return [
        (names[true], names[predicted], count, format_share(count / sum(counts[true])))
        for (true, predicted), count in wrong.most_common(_MAX_CONFUSIONS)
    ]
