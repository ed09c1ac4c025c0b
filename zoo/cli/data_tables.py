"""Terminal output of `zoo stats` and `zoo doctor`."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.data.quality.cleaning import Change
from zoo.data.quality.doctor import Inspection
from zoo.data.quality.findings import KINDS, Finding, count_kinds
from zoo.data.quality.stats import Statistics
from zoo.report.dataset import class_rows, headlines, statistics_rows

_SHOWN = 5  # findings of each kind; --json prints all
_SHOWN_CLASSES = 20
_BAR_WIDTH = 10  # characters


def print_statistics(statistics: Statistics, console: Console) -> None:
    """Print summary sentences, notes, and a table of statistics and one of classes with a column for each split."""
    for sentence in headlines(statistics):
        console.print(escape(sentence), highlight=False)
    for note in statistics.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, caption="pixels; median (5%-95%)", caption_justify="left")
    for name in ("", *statistics.splits):
        table.add_column(escape(name), justify="right" if name else "left", no_wrap=not name)
    rows = statistics_rows(statistics)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(row.name, *row.cells, end_section=following is not None and following.group != row.group)
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("class", *statistics.splits):
        table.add_column(escape(name), no_wrap=name != "class")
    classes = class_rows(statistics)
    for name, bars in classes[:_SHOWN_CLASSES]:
        cells = [f"{'█' * round(_BAR_WIDTH * bar.share):{_BAR_WIDTH}} {bar.objects}" for bar in bars]
        table.add_row(escape(name), *cells)
    console.print(table)
    if len(classes) > _SHOWN_CLASSES:
        more = len(classes) - _SHOWN_CLASSES
        console.print(f"and {more} more classes (--html and --json contain all)", highlight=False)


def print_findings(inspection: Inspection, console: Console) -> None:
    """Print the first findings of each kind, errors before warnings."""
    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in inspection.findings:
        by_kind[finding.kind].append(finding)
    for severity, color in (("error", "red"), ("warning", "yellow")):
        for kind, findings in by_kind.items():
            if not findings or KINDS[kind].severity != severity:
                continue
            console.print(
                f"[{color}]{severity}[/{color}] [bold]{KINDS[kind].title}: {len(findings)}[/bold]", highlight=False
            )
            console.print(f"  {KINDS[kind].advice}", style="dim", highlight=False)
            for finding in findings[:_SHOWN]:
                where = ": ".join(part for part in (finding.file, finding.place) if part)
                split = f"{finding.split} " if finding.split else ""
                console.print(
                    f"  {escape(split)}{escape(where)}: {escape(finding.message)}", highlight=False, soft_wrap=True
                )
            if len(findings) > _SHOWN:
                console.print(f"  and {len(findings) - _SHOWN} more (--json lists all)", highlight=False)
    images, boxes = sum(map(len, inspection.raws.values())), sum(len(raw.labels) for raw in inspection.raws.values())
    examined = f"{images:,} images and {boxes:,} boxes in {', '.join(inspection.raws)}"
    console.print(
        f"{examined}: {_count(inspection.num_errors, 'error')}, {_count(inspection.num_warnings, 'warning')}",
        highlight=False,
    )


def findings_document(data: Path, inspection: Inspection, changes: list[Change] | None) -> dict[str, object]:
    """The JSON document that `zoo doctor --json` prints."""
    document: dict[str, object] = {
        "data": str(data),
        "splits": {split: {"images": len(raw), "boxes": len(raw.labels)} for split, raw in inspection.raws.items()},
        "errors": inspection.num_errors,
        "warnings": inspection.num_warnings,
        "counts": count_kinds(inspection.findings),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "split": finding.split,
                "file": finding.file,
                "place": finding.place,
                "message": finding.message,
                "advice": finding.advice,
            }
            for finding in inspection.findings
        ],
    }
    return document if changes is None else document | {"changes": changes}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
