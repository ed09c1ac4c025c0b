"""Bar plots: TIDE errors of each entry, and inference time by part."""

import math

from zoo.report.entries import Entry, find_timing
from zoo.report.number_format import Value, format_ap, format_cost, format_or_missing
from zoo.report.plots.axes import CHARACTER_WIDTH, Bar, Caption, Plot, Tick, format_tick, nice_ticks
from zoo.report.results import Run

# TIDE's error types in the order of its paper; `zoo.evaluation.errors` defines them.
MAIN_ERRORS = {
    "Cls": ("Class", "localised correctly, wrong class"),
    "Loc": ("Location", "correct class, IoU .10 to .50"),
    "Both": ("Both", "wrong class and poorly localised"),
    "Dupe": ("Duplicate", "another box on an object that is already detected"),
    "Bkg": ("Background", "no object at this place"),
    "Miss": ("Missed", "an undetected object that no other error covers"),
}
SPECIAL_ERRORS = {
    "FP": ("False positives", "all detections that match no object"),
    "FN": ("False negatives", "all objects that no detection matches"),
}
TIME_PARTS = {  # of inference, in the order in which they run
    "decode": "decode the file",
    "proposals": "region proposals",
    "frame": "resize, normalise, pad",
    "network": "network",
    "post-processing": "post-processing",
}

_ROW, _BAR = 26.0, 12.0  # SVG units, heights
_CLIP = 5.0  # a bar this many times as long as the second longest is cut off, so that the others stay readable


def error_plot(entries: list[Entry], of_masks: bool = False) -> Plot | None:
    """TIDE errors of boxes or masks: a row per entry, a column per type, all bars on one scale; None without errors."""
    kinds = (*MAIN_ERRORS, *SPECIAL_ERRORS)
    values = {kind: [error_share(entry, kind, of_masks) for entry in entries] for kind in kinds}
    known = [value for column in values.values() for value in column if value is not None]
    if not known:
        return None
    left, column_width, gap, top = 8 + CHARACTER_WIDTH * max(len(entry.label) for entry in entries), 112.0, 20.0, 44.0
    largest = max(known) or 1.0
    scale = (column_width - 50) / largest  # 50 units for the number beside the bar
    bars, captions, rules = [], [], []
    bottom = top + _ROW * len(entries)
    for at, (kind, (name, _)) in enumerate((MAIN_ERRORS | SPECIAL_ERRORS).items()):
        x = left + column_width * at + (gap if kind in SPECIAL_ERRORS else 0)
        captions.append(Caption(x, top - 14, name, kind="head"))
        rules.append(f"M{x:g} {top - 4}V{bottom}")
        for row, (entry, value) in enumerate(zip(entries, values[kind], strict=True)):
            middle, width = top + _ROW * (row + 0.5), round(scale * (value or 0.0), 1)
            captions.append(Caption(x + width + 5, middle, format_or_missing(value), kind="value"))
            if value is not None:
                text = f"{entry.label}, {name.lower()}: {format_ap(value)} of AP50 lost"
                bars.append(Bar(x, middle - _BAR / 2, width, _BAR, f"s{row % 7}", text))
    captions += _row_labels(entries, left, top)
    summaries = []
    for row, entry in enumerate(entries):
        shares = [f"{name} {format_or_missing(values[kind][row])}" for kind, (name, _) in MAIN_ERRORS.items()]
        summaries.append(f"{entry.label}: {', '.join(shares)}")
    return Plot(
        name="tide_masks" if of_masks else "tide",
        title=f"AP50{' of masks' if of_masks else ''} lost to each type of error (TIDE)",
        summary=f"AP50{' of masks' if of_masks else ''} lost to each type of error. " + "; ".join(summaries),
        width=round(left + column_width * 8 + gap),
        height=round(bottom + 8),
        left=left,
        right=left + column_width * 8 + gap,
        top=top,
        bottom=bottom,
        captions=captions,
        bars=bars,
        rules=rules,
    )


def error_share(entry: Entry, kind: str, of_masks: bool = False) -> Value:
    """AP50 lost to one type of error, seeds averaged; slightly negative values of a run count as 0."""

    def lost(run: Run) -> Value:
        value = (run.analysis.mask_errors if of_masks else run.analysis.errors).get(kind)
        return None if value is None or math.isnan(value) else max(0.0, value)

    return entry.mean(lost)


def time_plots(entries: list[Entry]) -> dict[int, Plot]:
    """Stacked bars of inference time by part: batch size -> plot."""
    batches = sorted({t.batch for entry in entries for run in entry.runs for t in run.cost.timings})
    return {batch: _time_plot(entries, batch) for batch in batches}


def _time_plot(entries: list[Entry], batch: int) -> Plot:
    parts = [[(part, find_timing(entry, batch, part)[0] or 0.0) for part in TIME_PARTS] for entry in entries]
    totals = [find_timing(entry, batch, "total") for entry in entries]
    lengths = sorted(
        max(sum(ms for _, ms in row), total or 0.0, p95 or 0.0) for row, (total, p95) in zip(parts, totals, strict=True)
    )
    end = lengths[-1] or 1.0
    if len(lengths) > 1 and 0 < lengths[-2] * _CLIP < end:
        end = lengths[-2] * 1.5
    left, width, top = 8.0 + CHARACTER_WIDTH * max(len(entry.label) for entry in entries), 800, 40.0
    right, bottom = width - 140.0, top + _ROW * len(entries)
    scale = (right - left) / end
    text = format_cost([total for total, _ in totals])
    bars, names = _part_legend([part for part in TIME_PARTS if any(dict(row)[part] for row in parts)], left)
    captions, rules = names + _row_labels(entries, left, top), []
    for row, entry in enumerate(entries):
        x, middle = left, top + _ROW * (row + 0.5)
        for number, (part, ms) in enumerate(parts[row]):
            length = max(0.0, min(ms * scale, right - x))
            if length > 0:
                tooltip = f"{entry.label}, {TIME_PARTS[part]}: {text(ms)} ms per image"
                bars.append(Bar(round(x, 1), middle - _BAR / 2, round(length, 1), _BAR, f"part{number}", tooltip))
            x += length
        total, p95 = totals[row]
        if total is None:
            continue
        if p95 is not None and p95 > total:
            rules.append(f"M{min(left + total * scale, right):.1f} {middle:g}H{min(left + p95 * scale, right):.1f}")
        at = min(max(x, left + max(total, p95 or 0.0) * scale), right) + 8
        cut = " (cut off)" if max(total, p95 or 0.0) > end else ""
        captions.append(Caption(round(at, 1), middle, f"{text(total)} ms{cut}", kind="value"))
    return Plot(
        name=f"time-batch{batch}",
        title=f"Milliseconds per image, batch {batch}",
        summary=f"Milliseconds per image at batch {batch}: "
        + "; ".join(
            f"{entry.label} {text(total)}"
            for entry, (total, _) in zip(entries, totals, strict=True)
            if total is not None
        ),
        width=width,
        height=round(bottom + 50),
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_label=f"milliseconds per image, batch {batch}",
        x_ticks=[Tick(round(left + ms * scale, 1), format_tick(ms)) for ms in nice_ticks(end, 7) if ms <= end],
        captions=captions,
        bars=bars,
        rules=rules,
    )


def _part_legend(parts: list[str], left: float) -> tuple[list[Bar], list[Caption]]:
    """Legend: a small block and the name of each part, in one row above the bars."""
    bars, captions, x = [], [], left
    for part in parts:
        bars.append(Bar(x, 8.0, 10.0, 10.0, f"part{list(TIME_PARTS).index(part)}", TIME_PARTS[part]))
        captions.append(Caption(x + 16, 13.0, TIME_PARTS[part]))
        x += 34 + 0.85 * CHARACTER_WIDTH * len(TIME_PARTS[part])
    return bars, captions


def _row_labels(entries: list[Entry], left: float, top: float) -> list[Caption]:
    return [
        Caption(left - 10, top + _ROW * (row + 0.5), entry.label, "end", f"name s{row % 7}")
        for row, entry in enumerate(entries)
    ]
