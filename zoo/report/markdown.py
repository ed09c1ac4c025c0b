"""The report as GitHub-flavoured Markdown, for a README or a pull request."""

import html
from collections.abc import Iterable

from zoo.report.entries import Entry, find_entries, run_labels
from zoo.report.number_format import format_or_missing
from zoo.report.plots.bars import MAIN_ERRORS, SPECIAL_ERRORS, error_share
from zoo.report.plots.pareto import pareto_plot
from zoo.report.results import Results
from zoo.report.summary_text import evaluated_images, headline, interval_notes, reproduction_facts
from zoo.report.tables.breakdown import ceiling_rows
from zoo.report.tables.combinations import NOTE, combination_rows
from zoo.report.tables.masks import COLUMNS as MASK_COLUMNS
from zoo.report.tables.masks import NOTE as MASK_NOTE
from zoo.report.tables.masks import mask_entries, mask_rows
from zoo.report.tables.pairwise import pair_matrices
from zoo.report.tables.ranking import ranking_table
from zoo.report.tables.runs import COLUMNS, Cell, class_table, entry_table, legend
from zoo.report.warnings import report_warnings


def render_markdown(results: Results) -> str:
    """Render the headline, tables and reproduction block; curves and pictures are only in the HTML page."""
    entries = find_entries(results)
    name = results.data.get("name", "one data set")
    lines = [f"# Object detectors on {_escape(str(name))}", "", _escape(headline(results)), ""]
    for warning in report_warnings(results):
        lines += [f"> {_escape(warning)}", ""]
    if entries:
        lines += _ranking(results, entries)
        lines += _pairs(results, entries)
        lines += _combinations(results, entries)
        lines += _metrics(results, entries)
        lines += _masks(entries)
    lines += _failures(results)
    if entries:
        lines += _classes(results, entries)
        lines += _errors(entries)
        lines += _ceilings(entries)
    lines += [
        "Learning curves, precision-recall curves, confusion matrices, calibration, score thresholds, and images with"
        " every detector's boxes are in [report.html](report.html); its plots are in [plots](plots).",
        "",
    ]
    lines += ["## Reproduction", "", *_format_code(results.command), ""]
    lines += [f"- {_escape(term)}: {_escape(fact)}" for term, fact in reproduction_facts(results)]
    for config, text in results.configs.items():
        # GitHub parses this line as HTML, not as Markdown.
        lines += ["", f"<details><summary>{html.escape(config)}</summary>", "", *_format_code(text), "", "</details>"]
    return "\n".join(lines) + "\n"


def _ranking(results: Results, entries: list[Entry]) -> list[str]:
    rows = ranking_table(results.pairs, entries)
    has_interval, has_seeds, has_verdict = (
        any(getattr(row, key) for row in rows) for key in ("interval", "spread", "against")
    )
    head = ["Detector", "AP", *(["95% interval"] if has_interval else []), *(["Seeds"] if has_seeds else [])]
    head += [*(["Difference to first"] if has_verdict else []), "AP50", "ms/image", "M weights"]
    body = [
        [
            _escape(row.label),
            row.ap,
            *([_escape(row.interval)] if has_interval else []),
            *([row.spread] if has_seeds else []),
            *([f"{row.against.verdict} {row.against.difference}" if row.against else ""] if has_verdict else []),
            row.ap50,
            row.latency,
            row.parameters,
        ]
        for row in rows
    ]
    lines = [*_format_table(head, body), ""]
    if pareto_plot(entries):
        lines += ["![Accuracy against latency](plots/pareto.svg)", ""]
    return lines


def _pairs(results: Results, entries: list[Entry]) -> list[str]:
    matrices = [m for m in pair_matrices(results.pairs, entries, []) if m.name == "AP"]
    if not matrices:
        return []
    rows = [
        [
            _escape(entry.label),
            *(f"{cell.sign} {cell.difference} {_escape(cell.interval)}" if cell else "" for cell in row),
        ]
        for entry, row in zip(entries, matrices[0].cells, strict=True)
    ]
    head = ["AP of row minus column", *(_escape(entry.label) for entry in entries)]
    lines = ["## Pairwise differences", "", *_format_table(head, rows), ""]
    key = "\u25b2 better, \u25bc worse, = tie: the 95% interval of the difference contains 0."
    return [*lines, f"{key} {interval_notes(entries)}", ""]


def _combinations(results: Results, entries: list[Entry]) -> list[str]:
    rows = [
        [
            _escape(row.label),
            f"{row.ap} {_escape(row.interval)}".rstrip(),
            *(f"{cell.verdict} {cell.difference} {_escape(cell.interval)}".strip() for cell in row.parts),
            row.ap50,
            row.oracle,
        ]
        for row in combination_rows(results, entries)
    ]
    head = ["Combination", "AP", "From the first alone", "From the second alone", "AP50", "Oracle"]
    return ["## Combinations", "", *_format_table(head, rows), "", NOTE, ""] if rows else []


def _metrics(results: Results, entries: list[Entry]) -> list[str]:
    head = ["Detector", "Seeds", *(f"{c.name} ({c.unit})" if c.unit else c.name for c in COLUMNS)]
    rows = [
        [_escape(entry.label), entry.seeds or "\u2013", *_format_cells(cells)]
        for entry, cells in zip(entries, entry_table(entries), strict=True)
    ]
    lines = ["## All metrics", "", *_format_table(head, rows), ""]
    lines += [f"On the {evaluated_images(results)}. Accuracies from 0 to 1. **Bold**: best of the column.", ""]
    runs = [run for entry in entries for run in entry.runs]
    return [*lines, *(f"- {_escape(term)}: {_escape(meaning)}" for term, meaning in legend(runs)), ""]


def _masks(entries: list[Entry]) -> list[str]:
    rows = [
        [_escape(row.label), *_format_cells(row.cells), _escape(row.interval), row.box_ap] for row in mask_rows(entries)
    ]
    head = ["Detector", *MASK_COLUMNS, "95% interval of AP", "Box AP"]
    lines = ["## Masks", "", *_format_table(head, rows), "", MASK_NOTE, ""] if rows else []
    return lines + _error_table(mask_entries(entries), of_masks=True)


def _failures(results: Results) -> list[str]:
    labels = run_labels(results.runs)
    failed = [run for run in results.runs if run.status == "failed"]
    lines = [f"- **{_escape(labels[r.folder])}**: {_escape(r.error or 'no error message')}" for r in failed]
    return ["## Failed", "", *lines, ""] if lines else []


def _classes(results: Results, entries: list[Entry]) -> list[str]:
    rows = [
        [_escape(class_name), *_format_cells(cells)]
        for class_name, cells in zip(results.classes, class_table(entries, results.classes), strict=True)
    ]
    head = ["Class", *(_escape(entry.label) for entry in entries)]
    return ["## AP by class", "", *_format_table(head, rows), ""]


def _errors(entries: list[Entry]) -> list[str]:
    table = _error_table(entries, of_masks=False)
    return ["## Errors by type", "", *table] if table else []


def _error_table(entries: list[Entry], of_masks: bool) -> list[str]:
    kinds = {**MAIN_ERRORS, **SPECIAL_ERRORS}
    shares = [[error_share(entry, kind, of_masks) for kind in kinds] for entry in entries]
    if all(share is None for row in shares for share in row):
        return []
    rows = [
        [_escape(entry.label), *(format_or_missing(share) for share in row)]
        for entry, row in zip(entries, shares, strict=True)
    ]
    lines = _format_table(["Detector", *(name for name, _ in kinds.values())], rows)
    return [*lines, "", f"AP50{' of masks' if of_masks else ''} lost to each type of error (TIDE).", ""]


def _ceilings(entries: list[Entry]) -> list[str]:
    rows = [
        [_escape(row.label), _escape(row.limit), row.share, f"{row.objects:,}", row.recall.text, row.ap50.text]
        for row in ceiling_rows(entries)
    ]
    head = ["Detector", "Limit", "Share", "Objects", "AR100", "AP50"]
    return ["## Ceilings", "", *_format_table(head, rows), ""] if rows else []


def _format_cells(cells: Iterable[Cell]) -> list[str]:
    return [f"**{cell.text}**" if cell.best else cell.text for cell in cells]


def _format_table(head: list[str], rows: list[list[str]]) -> list[str]:
    separator = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (head, separator, *rows)]


def _format_code(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, *text.rstrip("\n").split("\n"), fence]


def _escape(text: str) -> str:
    """Escape HTML and Markdown, so that names cannot add tags, table cells or emphasis."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_|[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
