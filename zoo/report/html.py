"""The report as one self-contained page: no script, no font, no picture is fetched from anywhere."""

import base64
import hashlib

from markupsafe import Markup

from zoo.report.bars import ERRORS, PARTS, SIDES, error_plot, time_plots
from zoo.report.breakdown import ceiling_rows, confusions, format_threshold, slice_groups, threshold_tables
from zoo.report.caution import caution
from zoo.report.contenders import Contender, find_contenders, find_timing, first_runs, model_name, run_labels
from zoo.report.curves import precision_recall_plots, reliability_plots
from zoo.report.draw import class_color, format_score
from zoo.report.environment import make_environment
from zoo.report.examples import Example
from zoo.report.figures import format_ap
from zoo.report.pairs import duel, pair_matrices
from zoo.report.pareto import pareto_plot
from zoo.report.pictures import DEFAULT_SHOWN_SCORE, list_categories, make_picture
from zoo.report.plots import learning_curves
from zoo.report.results import Results, Run
from zoo.report.standing import standings_table
from zoo.report.tables import COLUMNS, class_table, contender_table, cost_table, legend, main_table, time_table
from zoo.report.words import evaluated_images, facts, reading, verdict


def render_html(results: Results, examples: list[Example]) -> str:
    """Render the page; the same results and examples give the same text.

    Pictures are embedded once each; boxes are vectors on top, so that a picture costs the same for any number of runs.
    The page's own script is let in by its hash, and nothing else is.
    """
    contenders = find_contenders(results)
    runs = [run for contender in contenders for run in contender.runs]
    shown = first_runs(contenders)  # in pictures: several seeds of one detector would crowd the others out
    environment = make_environment()
    loader = environment.loader
    assert loader is not None
    script = loader.get_source(environment, "report.js")[0]
    return environment.get_template("report.html.j2").render(
        results=results,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdict=verdict(results),
        caution=caution(results),
        reading=reading(contenders),
        images=evaluated_images(results),
        contenders=contenders,
        labels=run_labels(results.runs),
        names={run.folder: model_name(run.model) for run in results.runs},
        failed=[run for run in results.runs if run.status == "failed"],
        class_colors=[class_color(index) for index in range(len(results.classes))],
        facts=facts(results),
        **_accuracy(results, contenders, runs),
        **_errors(results, contenders, run_labels(results.runs)),
        **_costs(contenders),
        **_pictures(results, examples, shown),
    )


def _accuracy(results: Results, contenders: list[Contender], runs: list[Run]) -> dict[str, object]:
    return {
        "standings": standings_table(results.pairs, contenders),
        "pareto": pareto_plot(contenders),
        "matrices": pair_matrices(results.pairs, contenders, results.classes) if len(contenders) > 2 else [],
        "duel": duel(results.pairs, contenders, results.classes),
        "columns": COLUMNS,
        "groups": _group_columns(),
        "rows": contender_table(contenders),
        "run_rows": main_table(runs) if len(runs) > len(contenders) else [],
        "runs": runs,
        "legend": legend(runs),
        "class_rows": class_table(contenders, results.classes) if contenders else [],
    }


def _errors(results: Results, contenders: list[Contender], labels: dict[str, str]) -> dict[str, object]:
    return {
        "error_plot": error_plot(contenders),
        "error_kinds": [*ERRORS.values(), *SIDES.values()],
        "confusions": confusions(contenders, results.classes),
        "precision_recall": precision_recall_plots(contenders, results.classes),
        "slices": slice_groups(contenders),
        "format_ap": format_ap,
        "reliability": reliability_plots(contenders),
        "thresholds": threshold_tables(contenders, labels, results.classes),
        "format_threshold": format_threshold,
        "ceilings": ceiling_rows(contenders),
    }


def _costs(contenders: list[Contender]) -> dict[str, object]:
    plots = time_plots(contenders)
    parts = [
        part for part in PARTS if any(find_timing(c, batch, part)[0] is not None for c in contenders for batch in plots)
    ]
    return {
        "time_plots": plots,
        "time_tables": {batch: time_table(contenders, batch, [*parts, "total"]) for batch in plots},
        "time_parts": parts,
        "costs": cost_table(contenders),
        "learning": learning_curves(contenders),
    }


def _pictures(results: Results, examples: list[Example], runs: list[Run]) -> dict[str, object]:
    labels = run_labels(runs)
    return {
        "pictures": [make_picture(example, runs, labels, results.classes) for example in examples],
        "categories": list_categories(examples, labels),
        "any_ignored": any(any(example.truth.ignored) for example in examples),
        "default_score": format_score(DEFAULT_SHOWN_SCORE),
        "best_scores": [
            f"{labels[run.folder]} {format_score(run.shown_score)}" for run in runs if run.shown_score is not None
        ],
        "default_scored": [labels[run.folder] for run in runs if run.shown_score is None],
    }


def _group_columns() -> list[tuple[str, int]]:
    """Neighbouring columns of one group, for the upper row of the table's head: (name, number of columns)."""
    groups: dict[str, int] = {}
    for column in COLUMNS:
        groups[column.group] = groups.get(column.group, 0) + 1
    return list(groups.items())
