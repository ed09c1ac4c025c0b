"""Plots of a report as SVG files, for a README, a paper or a talk."""

from zoo.report.entries import find_entries
from zoo.report.jinja import make_environment
from zoo.report.plots.axes import Plot
from zoo.report.plots.bars import error_plot, time_plots
from zoo.report.plots.curves import precision_recall_plots, reliability_plots
from zoo.report.plots.learning_curves import learning_curves
from zoo.report.plots.pareto import pareto_plot
from zoo.report.results import Results
from zoo.report.tables.masks import mask_entries


def collect_plots(results: Results) -> list[Plot]:
    """All plots that the results have values for."""
    entries = find_entries(results)
    found = [
        pareto_plot(entries),
        error_plot(entries),
        error_plot(mask_entries(entries), of_masks=True),
        *(plot for _, plot in precision_recall_plots(entries, results.classes)),
        *reliability_plots(entries),
        *time_plots(entries).values(),
        *learning_curves(entries),
    ]
    return [plot for plot in found if plot is not None]


def render_plots(results: Results) -> dict[str, str]:
    """File name without `.svg` -> SVG text: the plots of the page with a title, in the viewer's colour scheme."""
    template = make_environment().get_template("plot_file.svg.j2")
    return {plot.name: template.render(plot=plot).strip() + "\n" for plot in collect_plots(results)}
