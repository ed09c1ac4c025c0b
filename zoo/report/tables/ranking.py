"""Ranking table: entries by AP, with intervals and the difference to the first."""

from dataclasses import dataclass

from zoo.report.entries import Entry
from zoo.report.number_format import MISSING, format_ap, format_cost, format_interval
from zoo.report.plots.axes import nice_range
from zoo.report.plots.pareto import find_latency
from zoo.report.results import Pair
from zoo.report.tables.pairwise import PairCell, compare


@dataclass(frozen=True)
class RankingRow:
    """One entry of the ranking."""

    label: str
    detail: str
    ap: str
    interval: str  # "" if unknown
    at: float  # 0..1, position of AP on an axis shared by all rows; so are low and high
    low: float
    high: float
    spread: str  # minimum and maximum over seeds; "" for one seed
    against: PairCell | None  # this entry compared with the first; None for the first and where unknown
    ap50: str
    latency: str
    parameters: str


def ranking_table(pairs: list[Pair], entries: list[Entry]) -> list[RankingRow]:
    """A row per entry, in the given order."""
    intervals = [entry.interval("AP") for entry in entries]
    scores = [entry.metric("AP") for entry in entries]
    known = [score for score in scores if score is not None]
    ends = [end for interval in intervals if interval for end in (interval.low, interval.high)] + known
    # Dots and intervals, unlike bars, need no axis from zero: the axis covers the range of the values.
    start, *_, end = nice_range(min(ends, default=0.0), max(ends, default=1.0), 8)
    latencies = [entry.mean(lambda run: latency.value if (latency := find_latency(run)) else None) for entry in entries]
    sizes = [
        entry.mean(lambda run: None if run.cost.parameters is None else run.cost.parameters / 1e6) for entry in entries
    ]
    rows = []
    for entry, score, interval, latency, size in zip(entries, scores, intervals, latencies, sizes, strict=True):
        spread = entry.spread("AP")
        ap50 = entry.metric("AP50")
        middle = start if score is None else score
        low, high = (interval.low, interval.high) if interval else (middle, middle)
        rows.append(
            RankingRow(
                label=entry.label,
                detail=entry.detail if entry.is_external else entry.config,  # the metrics table lists its seeds
                ap=MISSING if score is None else format_ap(score),
                interval=format_interval(interval) if interval else "",
                at=(middle - start) / (end - start),
                low=(low - start) / (end - start),
                high=(high - start) / (end - start),
                spread=MISSING.join(map(format_ap, spread)) if spread else "",
                against=compare(pairs, entry, entries[0], "AP", "AP"),
                ap50=MISSING if ap50 is None else format_ap(ap50),
                latency=MISSING if latency is None else format_cost(latencies)(latency),
                parameters=MISSING if size is None else format_cost(sizes)(size),
            )
        )
    return rows
