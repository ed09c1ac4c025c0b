"""The HTML report: one self-contained page that fetches no script, font or picture."""

import base64
import hashlib

from markupsafe import Markup

from zoo.report.entries import Entry, find_entries, find_timing, first_runs, run_labels
from zoo.report.jinja import make_environment
from zoo.report.number_format import format_ap
from zoo.report.pictures.draw import class_color, format_score
from zoo.report.pictures.examples import Example
from zoo.report.pictures.views import DEFAULT_SHOWN_SCORE, list_categories, make_picture
from zoo.report.plots.bars import MAIN_ERRORS, SPECIAL_ERRORS, TIME_PARTS, error_plot, time_plots
from zoo.report.plots.curves import precision_recall_plots, reliability_plots
from zoo.report.plots.learning_curves import learning_curves
from zoo.report.plots.pareto import pareto_plot
from zoo.report.results import Results, Run
from zoo.report.summary_text import evaluated_images, headline, interval_notes, reproduction_facts
from zoo.report.tables.breakdown import ceiling_rows, confusions, format_threshold, slice_groups, threshold_tables
from zoo.report.tables.combinations import NOTE, combination_rows
from zoo.report.tables.masks import COLUMNS as MASK_COLUMNS
from zoo.report.tables.masks import NOTE as MASK_NOTE
from zoo.report.tables.masks import mask_entries, mask_rows
from zoo.report.tables.pairwise import head_to_head, pair_matrices
from zoo.report.tables.ranking import ranking_table
from zoo.report.tables.runs import COLUMNS, class_table, cost_table, entry_table, legend, run_table, time_table
from zoo.report.warnings import report_warnings


def render_html(results: Results, examples: list[Example]) -> str:
    """Render the HTML report; equal results and examples give the same text.

    Each picture is embedded once with boxes as SVG on top, so its size does not depend on the number of runs. The
    content security policy allows only the page's own script, by its hash.
    """
    entries = find_entries(results)
    runs = [run for entry in entries for run in entry.runs]
    shown = first_runs(entries)  # one seed per entry in pictures, so that every detector fits
    environment = make_environment()
    loader = environment.loader
    assert loader is not None
    script = loader.get_source(environment, "report.js")[0]
    return environment.get_template("report.html.j2").render(
        results=results,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headline=headline(results),
        warnings=report_warnings(results),
        interval_notes=interval_notes(entries),
        images=evaluated_images(results),
        entries=entries,
        labels=run_labels(results.runs),
        names={run.folder: run.name or run.model for run in results.runs},
        failed=[run for run in results.runs if run.status == "failed"],
        class_colors=[class_color(index) for index in range(len(results.classes))],
        facts=reproduction_facts(results),
        **_accuracy(results, entries, runs),
        **_errors(results, entries, run_labels(results.runs)),
        **_costs(entries),
        **_pictures(results, examples, shown),
    )


def _accuracy(results: Results, entries: list[Entry], runs: list[Run]) -> dict[str, object]:
    return {
        "ranking": ranking_table(results.pairs, entries),
        "pareto": pareto_plot(entries),
        "matrices": pair_matrices(results.pairs, entries, results.classes) if len(entries) > 2 else [],
        "head_to_head": head_to_head(results.pairs, entries, results.classes),
        "combinations": combination_rows(results, entries),
        "combination_note": NOTE,
        "mask_rows": mask_rows(entries),
        "mask_columns": MASK_COLUMNS,
        "mask_note": MASK_NOTE,
        "mask_error_plot": error_plot(mask_entries(entries), of_masks=True),
        "columns": COLUMNS,
        "groups": _group_columns(),
        "rows": entry_table(entries),
        "run_rows": run_table(runs) if len(runs) > len(entries) else [],
        "runs": runs,
        "legend": legend(runs),
        "class_rows": class_table(entries, results.classes) if entries else [],
    }


def _errors(results: Results, entries: list[Entry], labels: dict[str, str]) -> dict[str, object]:
    return {
        "error_plot": error_plot(entries),
        "error_kinds": [*MAIN_ERRORS.values(), *SPECIAL_ERRORS.values()],
        "confusions": confusions(entries, results.classes),
        "precision_recall": precision_recall_plots(entries, results.classes),
        "slices": slice_groups(entries),
        "format_ap": format_ap,
        "reliability": reliability_plots(entries),
        "thresholds": threshold_tables(entries, labels, results.classes),
        "format_threshold": format_threshold,
        "ceilings": ceiling_rows(entries),
    }


def _costs(entries: list[Entry]) -> dict[str, object]:
    plots = time_plots(entries)
    parts = [
        part
        for part in TIME_PARTS
        if any(find_timing(entry, batch, part)[0] is not None for entry in entries for batch in plots)
    ]
    return {
        "time_plots": plots,
        "time_tables": {batch: time_table(entries, batch, [*parts, "total"]) for batch in plots},
        "time_parts": parts,
        "costs": cost_table(entries),
        "learning": learning_curves(entries),
    }


def _pictures(results: Results, examples: list[Example], runs: list[Run]) -> dict[str, object]:
    labels = run_labels(runs)
    made = [make_picture(example, runs, labels, results.classes) for example in examples]
    return {
        "pictures": made,
        "categories": list_categories(examples, labels),
        "any_masks": any(shape.mask for picture in made for view in picture.views for shape in view.shapes),
        "any_ignored": any(any(example.truth.ignored) for example in examples),
        "default_score": format_score(DEFAULT_SHOWN_SCORE),
        "best_scores": [
            f"{labels[run.folder]} {format_score(run.shown_score)}" for run in runs if run.shown_score is not None
        ],
        "default_scored": [labels[run.folder] for run in runs if run.shown_score is None],
    }


def _group_columns() -> list[tuple[str, int]]:
    """Column groups for the upper header row: (name, number of columns)."""
    groups: dict[str, int] = {}
    for column in COLUMNS:
        groups[column.group] = groups.get(column.group, 0) + 1
    return list(groups.items())
