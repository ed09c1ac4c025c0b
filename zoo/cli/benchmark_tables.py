"""Terminal output of `zoo benchmark`."""

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo.profiling.latency import PARTS
from zoo.report.benchmark_results import Benchmark
from zoo.report.results import Timing

RESOURCES_LEGEND = (
    "GFLOPs: for one image framed to that size, with that number of proposals; a multiply-add counts as 2. "
    "memory: peak memory of tensors at batch 1, weights included."
)
TIMES_LEGEND = (
    "decode: file to image. search: selective search, without a cache. frame: transfer to the device, resizing, "
    "normalisation. network: all layers, and the steps between two stages. post: scores, boxes, NMS. "
    "total: sum of all parts."
)

_MISSING = "-"
_SHORT_NAMES = {"proposals": "search", "post-processing": "post"}


def print_benchmarks(benchmarks: Sequence[Benchmark], console: Console) -> None:
    """Print a table of resources and one of latencies, with the median above the 95th percentile.

    Names are broken between words so that the tables fit the console. No word or number is truncated: on a console too
    narrow for the numbers, lines are longer than the console.
    """
    for hardware, device, threads in dict.fromkeys((each.hardware, each.device, each.threads) for each in benchmarks):
        environment = f"{hardware}; on {device}, {threads} thread{'s' if threads != 1 else ''}"
        console.print(environment, highlight=False, soft_wrap=True)
    console.print(_resources_table(benchmarks, console.width), crop=False)
    console.print(RESOURCES_LEGEND, style="dim", highlight=False)
    counts = sorted({timing.batches for each in benchmarks for timing in each.cost.timings})
    if not counts:  # no batch size fitted in memory
        return
    num_batches = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    console.print(
        f"\nms per image: the median, and below it the 95th percentile, of {num_batches} batches", highlight=False
    )
    console.print(_times_table(benchmarks, console.width), crop=False)
    console.print(TIMES_LEGEND, style="dim", highlight=False)


def _resources_table(benchmarks: Sequence[Benchmark], width: int) -> Table:
    columns: dict[str, list[Text]] = {
        "precision": [Text(each.precision) for each in benchmarks],
        "framed to": [Text((each.cost.flops_input or _MISSING).rpartition(" ")[2]) for each in benchmarks],
        "params\nM": [_number(each.cost.parameters, 1e-6, 2) for each in benchmarks],
        "GFLOPs": [_number(each.cost.flops, 1e-9, 2) for each in benchmarks],
        "proposals": [_number(each.cost.proposals, 1, 0) for each in benchmarks],
        "memory\nMB": [_number(each.cost.peak_memory_mb, 1, 0) for each in benchmarks],
        "energy\nJ/image": [_number(each.cost.joules_per_image, 1, 2) for each in benchmarks],
    }
    shown = {name: cells for name, cells in columns.items() if any(cell.plain != _MISSING for cell in cells)}
    return _make_table([each.name for each in benchmarks], shown, width)


def _times_table(benchmarks: Sequence[Benchmark], width: int) -> Table:
    timings = [timing for each in benchmarks for timing in each.cost.timings]
    shown = [part for part in PARTS if part in {timing.part for timing in timings}]
    names: list[str] = []
    columns: dict[str, list[Text]] = {
        name: [] for name in ("batch", *(_SHORT_NAMES.get(part, part) for part in shown), "img/s")
    }
    for each in benchmarks:
        for number, batch in enumerate(dict.fromkeys(timing.batch for timing in each.cost.timings)):
            parts: dict[str, Timing] = {timing.part: timing for timing in each.cost.timings if timing.batch == batch}
            rate = Text(f"{1000 / parts['total'].median:.1f}")
            names.append(each.name if number == 0 else "")
            row = [Text(str(batch)), *(_two_lines(parts.get(part)) for part in shown), rate]
            for cells, cell in zip(columns.values(), row, strict=True):
                cells.append(cell)
    return _make_table(names, columns, width)


def _make_table(names: Sequence[str], columns: Mapping[str, Sequence[Text]], width: int) -> Table:
    """Table whose first column, the names, is broken to the width that the other columns leave, if possible."""
    widths = {
        name: max(len(line) for text in (name, *(cell.plain for cell in cells)) for line in text.split("\n"))
        for name, cells in columns.items()
    }
    rest = sum(widths.values()) + len(widths)
    broken = [break_name(name, width - rest) for name in names]
    longest = max((len(line) for name in broken for line in name.split("\n")), default=0)
    # No edge and no padding: the box itself separates columns by a space. Without a width, columns would be truncated.
    table = Table(width=longest + rest, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    for row, name in enumerate(broken):
        table.add_row(name, *(cells[row] for cells in columns.values()))
    return table


def break_name(name: str, width: int) -> str:
    """Break a name between words into lines of at most `width` characters; a longer word gets its own line."""
    lines = [""]
    for word in re.findall(r"[^\W_]+[\W_]*|[\W_]+", name):  # "faster_", "rcnn_", "seed0"
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _two_lines(timing: Timing | None) -> Text:
    if timing is None:
        return Text(_MISSING)
    digits = 2 if timing.p95 < 10 else 1
    return Text.assemble(f"{timing.median:.{digits}f}\n", (f"{timing.p95:.{digits}f}", "dim"))


def _number(value: float | None, factor: float, digits: int) -> Text:
    return Text(_MISSING if value is None else f"{value * factor:.{digits}f}")
