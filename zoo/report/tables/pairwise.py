"""Differences between every two entries, for each metric and class."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from zoo.evaluation.scores import MASK_PREFIX
from zoo.report.entries import Entry
from zoo.report.number_format import format_difference_interval, format_signed
from zoo.report.results import Difference, Pair

MEASURES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP of small objects",
    "APm": "AP of medium objects",
    "APl": "AP of large objects",
    f"{MASK_PREFIX}AP": "AP of masks",
    f"{MASK_PREFIX}AP50": "AP50 of masks",
    f"{MASK_PREFIX}AP75": "AP75 of masks",
}

_CLASS = "class "  # prefix of a measure that is the AP of a class

_REVERSED: dict[str, Literal["better", "worse", "tie"]] = {"better": "worse", "worse": "better", "tie": "tie"}
_SIGNS = {"better": "\u25b2", "worse": "\u25bc", "tie": "="}  # distinguishable without colour


@dataclass(frozen=True)
class PairCell:
    """Difference of one entry from another in one measure, as text."""

    verdict: str  # of the row's entry: "better" "worse" "tie"
    sign: str
    difference: str
    interval: str
    sentence: str


@dataclass(frozen=True)
class Matrix:
    """All pairs in one measure, row minus column; None on the diagonal and where unknown."""

    name: str
    is_class: bool
    cells: list[list[PairCell | None]]


@dataclass(frozen=True)
class HeadToHeadRow:
    """Difference of two entries in one measure, as positions on an axis that is symmetric around zero."""

    name: str
    is_class: bool
    cell: PairCell
    at: float  # 0..1 along the axis, as are low and high
    low: float
    high: float


def find_difference(pairs: Iterable[Pair], first: Entry, second: Entry, measure: str) -> Difference | None:
    """First minus second in a measure, in whichever order `pairs` has the two; None if undefined or unknown."""
    for pair in pairs:
        is_reversed = (pair.first, pair.second) == (second.config, first.config)
        if not is_reversed and (pair.first, pair.second) != (first.config, second.config):
            continue
        is_class = measure.startswith(_CLASS)
        known = pair.class_differences if is_class else pair.differences
        found = known.get(measure.removeprefix(_CLASS))
        # Comparisons with NaN are false, so undefined differences are skipped here.
        if found is None or not found.low <= found.value <= found.high:
            continue
        if not is_reversed:
            return found
        return replace(found, value=-found.value, low=-found.high, high=-found.low, verdict=_REVERSED[found.verdict])
    return None


def pair_matrices(pairs: list[Pair], entries: list[Entry], classes: list[str]) -> list[Matrix]:
    """A matrix per measure, then per class, in which any pair has a difference."""
    matrices = []
    for measure, name, is_class in _list_measures(classes):
        cells = [[compare(pairs, first, second, measure, name) for second in entries] for first in entries]
        if any(cell for row in cells for cell in row):
            matrices.append(Matrix(name, is_class, cells))
    return matrices


def head_to_head(pairs: list[Pair], entries: list[Entry], classes: list[str]) -> list[HeadToHeadRow]:
    """First minus second of exactly two entries, a row per measure and class; empty for any other number.

    All rows share one axis, with zero in its middle and wide enough for every interval.
    """
    if len(entries) != 2:
        return []
    first, second = entries
    found = []
    for measure, name, is_class in _list_measures(classes):
        difference = find_difference(pairs, first, second, measure)
        cell = compare(pairs, first, second, measure, name)
        if difference and cell:
            found.append((name, is_class, cell, difference))
    reach = max((max(abs(d.low), abs(d.high)) for *_, d in found), default=0.0) or 1.0
    return [
        HeadToHeadRow(name, is_class, cell, *((0.5 + end / reach / 2) for end in (d.value, d.low, d.high)))
        for name, is_class, cell, d in found
    ]


def compare(pairs: list[Pair], first: Entry, second: Entry, measure: str, name: str) -> PairCell | None:
    """Difference of the first from the second in one measure, as text; None where unknown."""
    difference = None if first is second else find_difference(pairs, first, second, measure)
    if difference is None:
        return None
    text, interval = format_signed(difference.value), format_difference_interval(difference)
    relation = "ties with" if difference.verdict == "tie" else f"is {difference.verdict} than"
    sentence = f"{first.label} {relation} {second.label}: {name} {text}, 95% interval {interval}"
    return PairCell(difference.verdict, _SIGNS[difference.verdict], text, interval, sentence)


def _list_measures(classes: list[str]) -> list[tuple[str, str, bool]]:
    return [(measure, name, False) for measure, name in MEASURES.items()] + [
        (_CLASS + name, name, True) for name in classes
    ]
