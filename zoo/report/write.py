"""Write a report, or render it again from its `results.json` and `examples.json`."""

from pathlib import Path

from zoo.io.files import write_atomically
from zoo.report.html import render_html
from zoo.report.markdown import render_markdown
from zoo.report.pictures.examples import Example, read_examples, write_examples
from zoo.report.plots.files import render_plots
from zoo.report.results import Results, read_results, write_results


def write_report(results: Results, out: str | Path, examples: list[Example]) -> None:
    """Write `results.json`, `examples.json`, `report.md`, `report.html` and `plots/*.svg` into the folder `out`.

    Args:
        results: all runs, failed ones too.
        out: the folder of the comparison; created if missing.
        examples: test images to draw, in display order (see `choose_pictures`); may be empty.
    """
    write_results(results, Path(out) / "results.json")
    write_examples(Path(out) / "examples.json", examples)
    make_report(out)


def make_report(folder: str | Path) -> None:
    """Render `report.md`, `report.html` and `plots/*.svg` from `results.json` and, if present, `examples.json`.

    Plots left over from an earlier report are removed.

    Raises:
        InputError: a file is missing or malformed; names the file and the place.
    """
    folder = Path(folder)
    results = read_results(folder / "results.json")
    examples_file = folder / "examples.json"
    examples = read_examples(examples_file) if examples_file.exists() else []
    plots = render_plots(results)
    for name, text in plots.items():
        write_atomically(folder / "plots" / f"{name}.svg", text)
    for file in (folder / "plots").glob("*.svg"):
        if file.stem not in plots:
            file.unlink()
    write_atomically(folder / "report.md", render_markdown(results))
    write_atomically(folder / "report.html", render_html(results, examples))
