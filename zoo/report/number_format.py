"""How figures are written: one way for the page, the Markdown and the plots."""

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from zoo.report.results import Difference, Interval

MISSING = "\u2013"  # an en dash stands where nothing was measured, or nothing is defined
MINUS = "\u2212"

Value: TypeAlias = float | None


def defined(value: int | float | None) -> Value:
    """The value, or None where it is undefined: NaN, or the -1 of COCO's tools."""
    return None if value is None or math.isnan(value) or value < 0 else float(value)


def mean(values: Iterable[Value]) -> Value:
    """Mean of those that are defined, None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def format_ap(value: float, decimals: int = 3) -> str:
    """Without the leading zero: `.512`."""
    text = f"{value:.{decimals}f}"
    return text[1:] if text.startswith("0.") else text


def format_or_missing(value: int | float | None, decimals: int = 3) -> str:
    """A figure of 0 to 1, or a dash where it is undefined."""
    known = defined(value)
    return MISSING if known is None else format_ap(known, decimals)


def format_signed(value: float, decimals: int = 3) -> str:
    """A difference: `+.031`, with a true minus sign, and no sign for what rounds to nothing."""
    text = format_ap(abs(value), decimals)
    if not text.strip(".0"):
        return text
    return ("+" if value > 0 else MINUS) + text


def format_interval(interval: Interval) -> str:
    """`[.57, .64]`: an interval of accuracies is never so narrow that a third decimal tells."""
    return f"[{format_ap(interval.low, 2)}, {format_ap(interval.high, 2)}]"


def format_difference_interval(difference: Difference) -> str:
    """`[+.012, +.050]`: three decimals, for it matters whether an end lies beyond nothing."""
    return f"[{format_signed(difference.low)}, {format_signed(difference.high)}]"


def format_cost(values: Iterable[Value]) -> Callable[[float], str]:
    """How to write the figures of one column: with so many decimals, at most two, that the least has three digits."""
    least = min((value for value in values if value), default=1.0)
    decimals = min(2, max(0, 2 - math.floor(math.log10(least))))
    return lambda value: f"{value:,.{decimals}f}"


def format_ms(value: float) -> str:
    """A time to be read in passing: three digits, more only where they are left of the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def format_share(value: float) -> str:
    """A share in per cent: `2.4%`; what is there at all is never written as nothing."""
    return "under 0.1%" if 0 < value < 0.0005 else f"{100 * value:.1f}%"
