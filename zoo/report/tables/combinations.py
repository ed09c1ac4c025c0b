"""Table of combinations of detectors."""

from dataclasses import dataclass

from zoo.report.entries import Entry
from zoo.report.number_format import (
    MISSING,
    format_difference_interval,
    format_interval,
    format_or_missing,
    format_signed,
)
from zoo.report.results import Combination, Difference, Results

RESCORED = "rescored by"
NOTE = (
    "Rescored by: the boxes of the first detector; those that the second one has, too, gain in score (YOLO's paper, "
    "section 4.3). Fused: overlapping boxes of both are averaged (weighted boxes fusion). Oracle: AP of the better box "
    "of the two for each object, without any false positive; no choice among their boxes exceeds it. Differences are "
    "from each detector alone, with 95% intervals on the same resampled images."
)


@dataclass(frozen=True)
class PartCell:
    """Difference of a combination from one of its detectors, as text."""

    label: str
    difference: str
    interval: str
    verdict: str  # of the combination: "better" "worse" "tie"; "" without a bootstrap


@dataclass(frozen=True)
class CombinationRow:
    """A combination of two detectors."""

    label: str
    ap: str
    interval: str  # "" if unknown
    parts: list[PartCell]
    ap50: str
    oracle: str


def combination_rows(results: Results, entries: list[Entry]) -> list[CombinationRow]:
    """A row per combination, highest AP first."""
    labels = {entry.config: entry.label for entry in entries}
    ordered = sorted(results.combinations, key=lambda item: -item.metrics["AP"])
    return [_make_row(item, labels) for item in ordered]


def _make_row(item: Combination, labels: dict[str, str]) -> CombinationRow:
    first, second = labels[item.first], labels[item.second]
    interval = item.intervals.get("AP")
    return CombinationRow(
        label=f"{first} {RESCORED} {second}" if item.method == "rescored" else f"{first} and {second} fused",
        ap=format_or_missing(item.metrics["AP"]),
        interval=format_interval(interval) if interval and interval.low <= interval.high else "",
        parts=[_make_cell(labels[part], item.differences.get(part)) for part in (item.first, item.second)],
        ap50=format_or_missing(item.metrics["AP50"]),
        oracle=format_or_missing(item.oracle),
    )


def _make_cell(label: str, difference: Difference | None) -> PartCell:
    # Comparisons with NaN are false, so undefined differences have no text.
    if difference is None or not difference.low <= difference.value <= difference.high:
        return PartCell(label, MISSING, "", "")
    interval = format_difference_interval(difference)
    return PartCell(label, format_signed(difference.value), interval, difference.verdict)
