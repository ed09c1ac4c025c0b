"""The report in GitHub's Markdown, for a README or a pull request."""

import html
from collections.abc import Iterable

from zoo.report.results import Results
from zoo.report.tables import (
    COLUMNS,
    Cell,
    class_table,
    evaluated_images,
    facts,
    legend,
    main_table,
    ranked,
    run_labels,
    verdict,
)


def render_markdown(results: Results) -> str:
    """Render the tables and the reproduction block; curves and pictures are in the HTML page beside it."""
    runs = ranked(results.runs)
    labels = run_labels(results.runs)
    name = results.data.get("name", "one data set")
    lines = [f"# Object detectors on {_escape(str(name))}", "", _escape(verdict(results)), ""]
    if runs:
        head = ["Detector", "Seed", *(f"{c.name} ({c.unit})" if c.unit else c.name for c in COLUMNS)]
        rows = [
            [_escape(labels[run.folder]), str(run.seed), *_format_cells(cells)]
            for run, cells in zip(runs, main_table(runs), strict=True)
        ]
        lines += [*_format_table(head, rows), ""]
        lines += [f"On the {evaluated_images(results)}. Accuracies from 0 to 1. **Bold**: best of the column.", ""]
        lines += [f"- {_escape(term)}: {_escape(meaning)}" for term, meaning in legend(runs)]
        lines += [""]
    failed = [run for run in results.runs if run.status == "failed"]
    if failed:
        lines += ["## Failed", ""]
        lines += [f"- **{_escape(labels[r.folder])}**: {_escape(r.error or 'no message was kept')}" for r in failed]
        lines += [""]
    if runs:
        cells_per_class = class_table(runs, results.classes)
        rows = [
            [_escape(class_name), *_format_cells(cells)]
            for class_name, cells in zip(results.classes, cells_per_class, strict=True)
        ]
        head = ["Class", *(_escape(labels[run.folder]) for run in runs)]
        lines += ["## AP by class", "", *_format_table(head, rows), ""]
    lines += [
        "Learning curves, and images with every detector's boxes side by side, are in [report.html](report.html).",
        "",
    ]
    lines += ["## Reproduction", "", *_format_code(results.command), ""]
    lines += [f"- {_escape(term)}: {_escape(fact)}" for term, fact in facts(results)]
    for config, text in results.configs.items():
        # GitHub reads this line as HTML, not as Markdown.
        lines += ["", f"<details><summary>{html.escape(config)}</summary>", "", *_format_code(text), "", "</details>"]
    return "\n".join(lines) + "\n"


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
