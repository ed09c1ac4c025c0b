"""`zoo stats` and `zoo doctor`: what DATA is, and what a terminal shows of it."""

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from zoo.data.formats.recognise import recognise
from zoo.data.formats.yolo import read_data_file
from zoo.data.quality.cleaning import Change, write_cleaned
from zoo.data.quality.doctor import Inspection, examine
from zoo.data.quality.findings import KINDS, Finding, count_kinds
from zoo.data.quality.image_files import Item
from zoo.data.quality.stats import Statistics, gather
from zoo.data.source import Source
from zoo.errors import InputError
from zoo.io.files import encode_json, write_atomically
from zoo.report.dataset import class_rows, figure_rows, headlines, render_statistics

_SHOWN = 5  # findings of a kind; --json has them all
_SHOWN_CLASSES = 20
_BAR = 10  # characters


def find_sources(data: Path) -> dict[str, Source]:
    """The splits of DATA: a data configuration as for `zoo fit --data`, or whatever `recognise` knows.

    Raises:
        InputError: it is not there, or nothing of the kind.
    """
    if data.suffix in (".yaml", ".yml") and data.is_file():
        content, _ = read_data_file(data)
        if "names" not in content:
            return _read_configuration(data)
    return recognise(data)


def _read_configuration(data: Path) -> dict[str, Source]:
    # Lightning takes seconds to come up; data sets that say themselves what they are need not wait for it
    from pytorch_lightning.cli import LightningArgumentParser

    from zoo.data.module import ANNOTATED, DetectionDataModule
    from zoo.training.configuration import instantiate, parse

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DetectionDataModule, "data")
    module: DetectionDataModule = instantiate(parser, parse(parser, ["--data", str(data)])).data
    sources: dict[str, Source] = {split: module.sources[split] for split in ANNOTATED if split in module.sources}
    if not sources:
        raise InputError("names no split; set at least one of `train`, `val`, `test`", data)
    return sources


def show_statistics(data: Path, html: Path | None, json: Path | None, command: str) -> None:
    """Counts, prints, and writes the page and the json where they are asked for.

    Raises:
        InputError: DATA cannot be used.
    """
    statistics = gather(data.stem or str(data), find_sources(data), _Progress("reading image headers"))
    print_statistics(statistics, Console())
    if html is not None:
        write_atomically(html, render_statistics(statistics, command))
        print(f"page: {html}")
    if json is not None:
        write_atomically(json, encode_json(statistics))
        print(f"json: {json}")


def print_statistics(statistics: Statistics, console: Console) -> None:
    """Answers, figures and classes, splits side by side."""
    for sentence in headlines(statistics):
        console.print(escape(sentence), highlight=False)
    for note in statistics.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, caption="pixels; median (5%-95%)", caption_justify="left")
    for name in ("", *statistics.splits):
        table.add_column(escape(name), justify="right" if name else "left", no_wrap=not name)
    rows = figure_rows(statistics)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(row.name, *row.cells, end_section=following is not None and following.group != row.group)
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("class", *statistics.splits):
        table.add_column(escape(name), no_wrap=name != "class")
    classes = class_rows(statistics)
    for name, bars in classes[:_SHOWN_CLASSES]:
        cells = [f"{'█' * round(_BAR * bar.share):{_BAR}} {bar.objects}" for bar in bars]
        table.add_row(escape(name), *cells)
    console.print(table)
    if len(classes) > _SHOWN_CLASSES:
        console.print(f"and {len(classes) - _SHOWN_CLASSES} more classes (--html and --json have all)", highlight=False)


def show_findings(data: Path, as_json: bool, fix: Path | None) -> bool:
    """Looks DATA through, prints what is wrong with it, and writes a cleaned copy where one is asked for.

    Returns:
        Whether there is an error.

    Raises:
        InputError: DATA cannot be used, or the copy cannot be written.
    """
    sources = find_sources(data)
    if fix is not None and fix.exists() and (not fix.is_dir() or any(fix.iterdir())):
        raise InputError("is there already; name a new or empty folder", fix)  # said before the work, not after it
    inspection = examine(sources, _Progress("decoding images"))
    changes: list[Change] | None = None
    if fix is not None:
        changes = write_cleaned(inspection, fix, _Progress("copying images"))
    if as_json:
        print(encode_json(findings_document(data, inspection, changes)).decode(), end="")
    else:
        print_findings(inspection, Console())
        if changes is not None:
            print(f"{fix}: a cleaned copy; {len(changes)} changes, listed in {Path(str(fix), 'changes.json')}")
    return inspection.num_errors > 0


def print_findings(inspection: Inspection, console: Console) -> None:
    """Kind by kind, errors first, the first few of each."""
    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in inspection.findings:
        by_kind[finding.kind].append(finding)
    for severity, color in (("error", "red"), ("warning", "yellow")):
        for kind, findings in by_kind.items():
            if not findings or KINDS[kind].severity != severity:
                continue
            console.print(
                f"[{color}]{severity}[/{color}] [bold]{KINDS[kind].title}: {len(findings)}[/bold]", highlight=False
            )
            console.print(f"  {KINDS[kind].advice}", style="dim", highlight=False)
            for finding in findings[:_SHOWN]:
                where = ": ".join(part for part in (finding.file, finding.place) if part)
                split = f"{finding.split} " if finding.split else ""
                console.print(
                    f"  {escape(split)}{escape(where)}: {escape(finding.message)}", highlight=False, soft_wrap=True
                )
            if len(findings) > _SHOWN:
                console.print(f"  and {len(findings) - _SHOWN} more (--json lists all)", highlight=False)
    images, boxes = sum(map(len, inspection.raws.values())), sum(len(raw.labels) for raw in inspection.raws.values())
    looked = f"{images:,} images and {boxes:,} boxes in {', '.join(inspection.raws)}"
    console.print(
        f"{looked}: {_count(inspection.num_errors, 'error')}, {_count(inspection.num_warnings, 'warning')}",
        highlight=False,
    )


def findings_document(data: Path, inspection: Inspection, changes: list[Change] | None) -> dict[str, object]:
    """What `zoo doctor --json` prints."""
    document: dict[str, object] = {
        "data": str(data),
        "splits": {split: {"images": len(raw), "boxes": len(raw.labels)} for split, raw in inspection.raws.items()},
        "errors": inspection.num_errors,
        "warnings": inspection.num_warnings,
        "counts": count_kinds(inspection.findings),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "split": finding.split,
                "file": finding.file,
                "place": finding.place,
                "message": finding.message,
                "advice": finding.advice,
            }
            for finding in inspection.findings
        ],
    }
    return document if changes is None else document | {"changes": changes}


class _Progress:
    """A bar on the terminal; nothing where there is none."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, items: Iterable[Item], count: int) -> Iterable[Item]:
        console = Console(stderr=True)
        return track(items, self.text, count, console=console, transient=True, disable=not console.is_terminal)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
