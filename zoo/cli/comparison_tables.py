"""Terminal output of `zoo compare` and `zoo report`."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.report.entries import ranked, run_labels
from zoo.report.number_format import MISSING
from zoo.report.results import Results
from zoo.report.tables.runs import COLUMNS, run_table


def print_runs(results: Results) -> None:
    """Print the report's main table as two tables that fit a terminal, accuracy and cost, and the failed runs.

    A table without a value is left out.
    """
    console = Console()
    runs = ranked(results.runs)
    names = run_labels(results.runs)
    cells = run_table(runs)
    is_cost = [column.group == "Cost" for column in COLUMNS]
    name = ", ".join(filter(None, [str(results.data["name"]), results.budget]))
    for show_cost, title in ((False, name), (True, "cost")):
        chosen = [index for index, cost in enumerate(is_cost) if cost is show_cost]
        if all(row[index].text == MISSING for row in cells for index in chosen):
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("")
        for index in chosen:
            table.add_column(f"{COLUMNS[index].name}\n{COLUMNS[index].unit}".rstrip(), justify="right", no_wrap=True)
        for run, row in zip(runs, cells, strict=True):
            texts = (Text(row[index].text, "bold" if row[index].best else "") for index in chosen)
            table.add_row(names[run.folder], *texts)
        console.print(table)
    for run in results.runs:
        if run.status == "failed":
            console.print(f"{names[run.folder]} failed: {run.error}", markup=False, highlight=False, soft_wrap=True)
