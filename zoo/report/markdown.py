"""The report in GitHub's Markdown, for a README or a pull request."""

import html
from collections.abc import Iterable

from zoo.report.bars import ERRORS, SIDES, error_share
from zoo.report.breakdown import ceiling_rows
from zoo.report.caution import caution
from zoo.report.contenders import Contender, find_contenders, run_labels
from zoo.report.figures import format_or_missing
from zoo.report.pairs import pair_matrices
from zoo.report.pareto import pareto_plot
from zoo.report.results import Results
from zoo.report.standing import standings_table
from zoo.report.tables import COLUMNS, Cell, class_table, contender_table, legend
from zoo.report.words import evaluated_images, facts, reading, verdict


def render_markdown(results: Results) -> str:
    """Render verdict, tables and the reproduction block; curves and pictures are in the HTML page beside it."""
    contenders = find_contenders(results)
    name = results.data.get("name", "one data set")
    lines = [f"# Object detectors on {_escape(str(name))}", "", _escape(verdict(results)), ""]
    warning = caution(results)
    lines += [f"> {_escape(warning)}", ""] if warning else []
    if contenders:
        lines += _standings(results, contenders)
        lines += _pairs(results, contenders)
        lines += _figures(results, contenders)
    lines += _failures(results)
    if contenders:
        lines += _classes(results, contenders)
        lines += _errors(contenders)
        lines += _ceilings(contenders)
    lines += [
        "Learning curves, precision and recall, confusions, calibration with thresholds to paste, and images with every"
        " detector's boxes are in [report.html](report.html); its plots are in [plots](plots).",
        "",
    ]
    lines += ["## Reproduction", "", *_format_code(results.command), ""]
    lines += [f"- {_escape(term)}: {_escape(fact)}" for term, fact in facts(results)]
    for config, text in results.configs.items():
        # GitHub reads this line as HTML, not as Markdown.
        lines += ["", f"<details><summary>{html.escape(config)}</summary>", "", *_format_code(text), "", "</details>"]
    return "\n".join(lines) + "\n"


def _standings(results: Results, contenders: list[Contender]) -> list[str]:
    rows = standings_table(results.pairs, contenders)
    has_interval, has_seeds, has_verdict = (
        any(getattr(row, key) for row in rows) for key in ("interval", "spread", "against")
    )
    head = ["Detector", "AP", *(["95% interval"] if has_interval else []), *(["Seeds"] if has_seeds else [])]
    head += [*(["To the first"] if has_verdict else []), "AP50", "ms/image", "M weights"]
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
    if pareto_plot(contenders):
        lines += ["![Accuracy against latency](plots/pareto.svg)", ""]
    return lines


def _pairs(results: Results, contenders: list[Contender]) -> list[str]:
    matrices = [m for m in pair_matrices(results.pairs, contenders, []) if m.name == "AP"]
    if not matrices:
        return []
    rows = [
        [
            _escape(contender.label),
            *(f"{cell.sign} {cell.difference} {_escape(cell.interval)}" if cell else "" for cell in row),
        ]
        for contender, row in zip(contenders, matrices[0].cells, strict=True)
    ]
    head = ["AP of the row less the column", *(_escape(contender.label) for contender in contenders)]
    lines = ["## Is the difference real", "", *_format_table(head, rows), ""]
    key = "\u25b2 better, \u25bc worse, = tie: the 95% interval of the difference holds 0."
    return [*lines, f"{key} {reading(contenders)}", ""]


def _figures(results: Results, contenders: list[Contender]) -> list[str]:
    head = ["Detector", "Seeds", *(f"{c.name} ({c.unit})" if c.unit else c.name for c in COLUMNS)]
    rows = [
        [_escape(contender.label), " ".join(str(run.seed) for run in contender.runs), *_format_cells(cells)]
        for contender, cells in zip(contenders, contender_table(contenders), strict=True)
    ]
    lines = ["## All figures", "", *_format_table(head, rows), ""]
    lines += [f"On the {evaluated_images(results)}. Accuracies from 0 to 1. **Bold**: best of the column.", ""]
    runs = [run for contender in contenders for run in contender.runs]
    return [*lines, *(f"- {_escape(term)}: {_escape(meaning)}" for term, meaning in legend(runs)), ""]


def _failures(results: Results) -> list[str]:
    labels = run_labels(results.runs)
    failed = [run for run in results.runs if run.status == "failed"]
    lines = [f"- **{_escape(labels[r.folder])}**: {_escape(r.error or 'no message was kept')}" for r in failed]
    return ["## Failed", "", *lines, ""] if lines else []


def _classes(results: Results, contenders: list[Contender]) -> list[str]:
    rows = [
        [_escape(class_name), *_format_cells(cells)]
        for class_name, cells in zip(results.classes, class_table(contenders, results.classes), strict=True)
    ]
    head = ["Class", *(_escape(contender.label) for contender in contenders)]
    return ["## AP by class", "", *_format_table(head, rows), ""]


def _errors(contenders: list[Contender]) -> list[str]:
    kinds = {**ERRORS, **SIDES}
    shares = [[error_share(contender, kind) for kind in kinds] for contender in contenders]
    if all(share is None for row in shares for share in row):
        return []
    rows = [
        [_escape(contender.label), *(format_or_missing(share) for share in row)]
        for contender, row in zip(contenders, shares, strict=True)
    ]
    lines = _format_table(["Detector", *(name for name, _ in kinds.values())], rows)
    return ["## What each gets wrong", "", *lines, "", "AP50 lost to each kind of error (TIDE).", ""]


def _ceilings(contenders: list[Contender]) -> list[str]:
    rows = [
        [_escape(row.label), _escape(row.limit), row.share, f"{row.objects:,}", row.recall.text, row.ap50.text]
        for row in ceiling_rows(contenders)
    ]
    head = ["Detector", "Limit", "Out of reach", "Objects", "AR100", "AP50"]
    return ["## Ceilings", "", *_format_table(head, rows), ""] if rows else []


def _format_cells(cells: Iterable[Cell]) -> list[str]:
    return [f"**{cell.text}**" if cell.best else cell.text for cell in cells]


def _format_table(head: list[str], rows: list[list[str]]) -> list[str]:
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows)]


def _format_code(text: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, *text.rstrip("\n").split("\n"), fence]


def _escape(text: str) -> str:
    """Text as it stands: no HTML, no table cell, no emphasis comes out of a name."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_|[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
