"""Write a report, or make it again from the files that it was written with."""

from pathlib import Path

from zoo.report.examples import Example, read_examples, write_examples
from zoo.report.files import write_atomically
from zoo.report.html import render_html
from zoo.report.markdown import render_markdown
from zoo.report.results import Results, read_results, write_results


def write_report(results: Results, out: str | Path, examples: list[Example]) -> None:
    """Write `results.json`, `examples.json`, `report.md` and `report.html` into the folder `out`.

    Args:
        results: all runs, failed ones too.
        out: the folder of the comparison; made if it is not there.
        examples: test images to draw, in the order in which they shall stand (see `choose_examples`); may be empty.
    """
    write_results(results, Path(out) / "results.json")
    write_examples(Path(out) / "examples.json", examples)
    make_report(out)


def make_report(folder: str | Path) -> None:
    """Make `report.md` and `report.html` from `results.json` and, where it is there, `examples.json` of a folder.

    Raises:
        InputError: a file is missing or malformed; names the file and the place.
    """
    folder = Path(folder)
    results = read_results(folder / "results.json")
    kept = folder / "examples.json"
    examples = read_examples(kept) if kept.exists() else []
    write_atomically(folder / "report.md", render_markdown(results))
    write_atomically(folder / "report.html", render_html(results, examples))
