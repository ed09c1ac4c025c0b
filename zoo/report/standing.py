"""The first table of the report: who stands where, and whether that is certain."""

from dataclasses import dataclass

from zoo.report.axes import nice_range
from zoo.report.contenders import Contender
from zoo.report.figures import MISSING, format_ap, format_cost, format_interval
from zoo.report.pairs import PairCell, compare
from zoo.report.pareto import find_latency
from zoo.report.results import Pair


@dataclass(frozen=True)
class StandingRow:
    """One contender, best first."""

    label: str
    detail: str
    ap: str
    interval: str  # "" where none is known
    at: float  # 0..1, places of AP and of its interval along one scale for all
    low: float
    high: float
    spread: str  # over seeds, "" for one
    against: PairCell | None  # the leader, seen from here; None for the leader and where it is unknown
    ap50: str
    latency: str
    parameters: str


def standings_table(pairs: list[Pair], contenders: list[Contender]) -> list[StandingRow]:
    """A row for each contender, in their order."""
    intervals = [contender.interval("AP") for contender in contenders]
    scores = [contender.metric("AP") for contender in contenders]
    known = [score for score in scores if score is not None]
    ends = [end for interval in intervals if interval for end in (interval.low, interval.high)] + known
    # Dots and their intervals need no common zero, as bars would: the scale shows what there is.
    start, *_, end = nice_range(min(ends, default=0.0), max(ends, default=1.0), 8)
    latencies = [
        contender.mean(lambda run: latency.value if (latency := find_latency(run)) else None)
        for contender in contenders
    ]
    sizes = [
        contender.mean(lambda run: None if run.cost.parameters is None else run.cost.parameters / 1e6)
        for contender in contenders
    ]
    rows = []
    for contender, score, interval, latency, size in zip(contenders, scores, intervals, latencies, sizes, strict=True):
        spread = contender.spread("AP")
        ap50 = contender.metric("AP50")
        middle = start if score is None else score
        low, high = (interval.low, interval.high) if interval else (middle, middle)
        rows.append(
            StandingRow(
                label=contender.label,
                detail=contender.config,  # its seeds stand in the next table
                ap=MISSING if score is None else format_ap(score),
                interval=format_interval(interval) if interval else "",
                at=(middle - start) / (end - start),
                low=(low - start) / (end - start),
                high=(high - start) / (end - start),
                spread=MISSING.join(map(format_ap, spread)) if spread else "",
                against=compare(pairs, contender, contenders[0], "AP", "AP"),
                ap50=MISSING if ap50 is None else format_ap(ap50),
                latency=MISSING if latency is None else format_cost(latencies)(latency),
                parameters=MISSING if size is None else format_cost(sizes)(size),
            )
        )
    return rows
