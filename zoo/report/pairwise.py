"""Entries held against each other, two at a time, measure by measure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

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
}

_CLASS = "class "  # before the name of a class, where a measure is looked up

_REVERSED: dict[str, Literal["better", "worse", "tie"]] = {"better": "worse", "worse": "better", "tie": "tie"}
_SIGNS = {"better": "\u25b2", "worse": "\u25bc", "tie": "="}  # told apart without colour


@dataclass(frozen=True)
class PairCell:
    """One entry against another in one measure."""

    verdict: str  # of the row's entry
    sign: str
    difference: str
    interval: str
    sentence: str


@dataclass(frozen=True)
class Matrix:
    """All pairs in one measure: the row's entry against the column's; None on the diagonal and where unknown."""

    name: str
    is_class: bool
    cells: list[list[PairCell | None]]


@dataclass(frozen=True)
class HeadToHeadRow:
    """Two entries in one measure, as a place on an axis from -`reach` to `reach`."""

    name: str
    is_class: bool
    cell: PairCell
    at: float  # 0..1 along the axis
    low: float
    high: float


def find_difference(pairs: Iterable[Pair], first: Entry, second: Entry, measure: str) -> Difference | None:
    """The first less the second in a measure or class, whichever way round the file has the pair; None if undefined."""
    for pair in pairs:
        is_reversed = (pair.first, pair.second) == (second.config, first.config)
        if not is_reversed and (pair.first, pair.second) != (first.config, second.config):
            continue
        is_class = measure.startswith(_CLASS)
        known = pair.class_differences if is_class else pair.differences
        found = known.get(measure.removeprefix(_CLASS))
        # A comparison with NaN is false: such differences are undefined.
        if found is None or not found.low <= found.value <= found.high:
            continue
        if not is_reversed:
            return found
        return replace(found, value=-found.value, low=-found.high, high=-found.low, verdict=_REVERSED[found.verdict])
    return None


def pair_matrices(pairs: list[Pair], entries: list[Entry], classes: list[str]) -> list[Matrix]:
    """A matrix for each measure and then for each class in which any pair has a difference."""
    matrices = []
    for measure, name, is_class in _list_measures(classes):
        cells = [[compare(pairs, first, second, measure, name) for second in entries] for first in entries]
        if any(cell for row in cells for cell in row):
            matrices.append(Matrix(name, is_class, cells))
    return matrices


def head_to_head(pairs: list[Pair], entries: list[Entry], classes: list[str]) -> list[HeadToHeadRow]:
    """The better of two entries against the other, a row for each measure and class; none where there are not two.

    All rows share one axis, which has nothing in its middle and holds every interval.
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
    """The first against the second in one measure, in words; None where that is unknown."""
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
