"""The page's plots as files of their own, for a README, a paper or a talk."""

from zoo.report.axes import Plot
from zoo.report.bars import error_plot, time_plots
from zoo.report.contenders import find_contenders
from zoo.report.curves import precision_recall_plots, reliability_plots
from zoo.report.environment import make_environment
from zoo.report.pareto import pareto_plot
from zoo.report.plots import learning_curves
from zoo.report.results import Results


def collect_plots(results: Results) -> list[Plot]:
    """All plots that the results have figures for."""
    contenders = find_contenders(results)
    found = [
        pareto_plot(contenders),
        error_plot(contenders),
        *(plot for _, plot in precision_recall_plots(contenders, results.classes)),
        *reliability_plots(contenders),
        *time_plots(contenders).values(),
        *learning_curves(contenders),
    ]
    return [plot for plot in found if plot is not None]


def render_plots(results: Results) -> dict[str, str]:
    """Name of a file without `.svg` -> its text: drawn as in the page, with a title, light or dark as the viewer is."""
    template = make_environment().get_template("plot_file.svg.j2")
    return {plot.name: template.render(plot=plot).strip() + "\n" for plot in collect_plots(results)}
