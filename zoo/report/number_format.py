"""Number formatting, shared by HTML, Markdown and plots."""

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from zoo.report.results import Difference, Interval

MISSING = "\u2013"  # en dash, for what was not measured or is undefined
MINUS = "\u2212"

Value: TypeAlias = float | None


def defined(value: int | float | None) -> Value:
    """The value as a float; None where undefined: None, NaN, or the -1 of COCO's tools."""
    return None if value is None or math.isnan(value) or value < 0 else float(value)


def mean(values: Iterable[Value]) -> Value:
    """Mean of the defined values; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def format_ap(value: float, decimals: int = 3) -> str:
    """An accuracy without the leading zero: `.512`."""
    text = f"{value:.{decimals}f}"
    return text[1:] if text.startswith("0.") else text


def format_or_missing(value: int | float | None, decimals: int = 3) -> str:
    """An accuracy as `format_ap` writes it; a dash where undefined."""
    known = defined(value)
    return MISSING if known is None else format_ap(known, decimals)


def format_signed(value: float, decimals: int = 3) -> str:
    """A signed difference: `+.031`, with a typographic minus sign, and no sign if it rounds to zero."""
    text = format_ap(abs(value), decimals)
    if not text.strip(".0"):
        return text
    return ("+" if value > 0 else MINUS) + text


def format_interval(interval: Interval) -> str:
    """An interval of accuracies: `[.57, .64]`; a third decimal would be below its width."""
    return f"[{format_ap(interval.low, 2)}, {format_ap(interval.high, 2)}]"


def format_difference_interval(difference: Difference) -> str:
    """An interval of a difference: `[+.012, +.050]`; three decimals, to see which side of zero an end is on."""
    return f"[{format_signed(difference.low)}, {format_signed(difference.high)}]"


def format_cost(values: Iterable[Value]) -> Callable[[float], str]:
    """Formatter of one column: three digits for its smallest value, but at most two decimals."""
    smallest = min((value for value in values if value), default=1.0)
    decimals = min(2, max(0, 2 - math.floor(math.log10(smallest))))
    return lambda value: f"{value:,.{decimals}f}"


def format_ms(value: float) -> str:
    """A time in ms with three significant digits; more only before the decimal point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def format_share(value: float) -> str:
    """A share in per cent: `2.4%`; a share above 0 is never written as zero."""
    return "under 0.1%" if 0 < value < 0.0005 else f"{100 * value:.1f}%"
