"""Table of the metrics of masks."""

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.evaluation.scores import MASK_PREFIX
from zoo.report.entries import Entry
from zoo.report.number_format import format_ap, format_interval, format_or_missing
from zoo.report.tables.runs import Cell, mark_best

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NOTE = (
    "COCO's metrics with the IoU of masks in place of that of boxes; small, medium and large go by the area of the "
    "mask. Box AP is that of the boxes of the same detections. Detectors without masks are left out."
)


@dataclass(frozen=True)
class MaskRow:
    """Metrics of one detector's masks."""

    label: str
    cells: list[Cell]  # COLUMNS
    interval: str  # 95% interval of AP; "" if unknown
    box_ap: str


def mask_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose masks were evaluated."""
    return [entry for entry in entries if entry.metric(f"{MASK_PREFIX}AP") is not None]


def mask_rows(entries: Sequence[Entry]) -> list[MaskRow]:
    """A row for each entry with masks, highest mask AP first."""
    found = sorted(mask_entries(entries), key=lambda entry: -(entry.metric(f"{MASK_PREFIX}AP") or 0.0))
    columns = [mark_best([entry.metric(MASK_PREFIX + name) for entry in found], format_ap) for name in COLUMNS]
    rows = []
    for entry, *cells in zip(found, *columns, strict=True):
        interval = entry.interval(f"{MASK_PREFIX}AP")
        text = format_interval(interval) if interval and interval.low <= interval.high else ""
        rows.append(MaskRow(entry.label, list(cells), text, format_or_missing(entry.metric("AP"))))
    return rows
